"""Rows without an identifier: the number of a row says whose it is, so none may slip."""

import pytest

from m4.data.sets import tables
from m4.data.sets.declared import arrow_files
from m4.errors import ConfigError, DataError

NUMBERED = """
folder = "."
[[rows]]
files = "x*.csv"
[labels]
files = "y*.csv"
[splits]
from = "all"
[modalities.t]
kind = "table"
features = ["a"]
[tasks.y]
kind = "multiclass"
classes = ["0", "1", "2", "3"]
column = "y"
"""


def read(folder, definition=NUMBERED, **files):
    """Value and label of every record, by the number of its row."""
    for name, text in files.items():
        (folder / f"{name}.csv").write_bytes(text.encode())
    (folder / "d.toml").write_text(definition)
    cohort = tables.cohort(folder, seed=0, file=str(folder / "d.toml"))
    found = {e["key"][0]: e for e in cohort.splits["train"]()}
    return {
        n: (
            example["inputs"]["t"]["values"].item(),
            None if example["targets"]["y"] is None else example["targets"]["y"].item(),
        )
        for n, example in sorted(found.items())
    }


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("block", [16, 1 << 20])
def test_an_empty_line_of_one_column_is_a_row_without_a_value(tmp_path, monkeypatch, end, block):
    monkeypatch.setattr(arrow_files, "BLOCK", block)
    x = end.join(["a,b", "0,0", "1,0", "2,0", "3,0", ""])
    y = end.join(["y", "0", "", "2", "3", "", "", ""])
    expected = {0: (0, 0), 1: (1, None), 2: (2, 2), 3: (3, 3)}
    assert read(tmp_path, x=x, y=y) == expected
    assert read(tmp_path, x=x, y=y.replace(f"{end}{end}2", f'{end}""{end}2')) == expected
    lines = end.join(["a", "0", "", "", '""', "", ""])  # the quoted one is a row of the file
    (tmp_path / "z.csv").write_bytes(lines.encode())
    cells = [c for t in arrow_files.tables(tmp_path / "z.csv") for c in t.strings("a").to_pylist()]
    assert cells == ["0", "", "", ""]


@pytest.mark.parametrize("where", ["[[rows]]", "[labels]"])
@pytest.mark.parametrize("files", ["x.csv", "y.csv"])
def test_row_numbers_are_not_looked_up_among_identifiers(tmp_path, where, files):
    text = NUMBERED.replace("y*.csv", files).replace(where, f'{where}\nsubject = "id"')
    with pytest.raises(ConfigError, match="subject: is missing for .*everywhere or nowhere"):
        read(tmp_path, text, x="id,a,y\n1,10,1\n2,20,2\n", y="id,y\n1,1\n2,2\n")
    both = text.replace("y*", "y").replace("[[rows]]", '[[rows]]\nsubject = "id"')
    both = both.replace("[labels]", '[labels]\nsubject = "id"')
    both = both.replace('subject = "id"\nsubject = "id"', 'subject = "id"')
    found = read(tmp_path, both, x="id,a,y\n1,10,1\n2,20,2\n", y="id,y\n1,1\n2,2\n")
    assert found == {1: (10, 1), 2: (20, 2)}


WRONG_ROWS = {
    "two files of rows": ({"x1": "a,b\n0,0\n", "x2": "a,b\n1,0\n", "y": "y\n0\n1\n"}, "x2.csv"),
    "two of labels": ({"x": "a,b\n0,0\n1,0\n", "y1": "y\n0\n", "y2": "y\n1\n"}, "y2.csv"),
    "fewer labels": ({"x": "a,b\n0,0\n1,0\n", "y": "y\n0\n"}, "x.csv: has 2 rows, y.csv has 1,"),
    "fewer rows": ({"x": "a,b\n0,0\n", "y": "y\n0\n1\n"}, "x.csv: has 1 rows, y.csv has 2,"),
    "no rows": ({"x": "a,b\n", "y": "y\n0\n1\n"}, "x.csv: has 0 rows, y.csv has 2,"),
}


@pytest.mark.parametrize("case", WRONG_ROWS)
def test_files_whose_numbers_cannot_be_the_same_are_refused(tmp_path, case):
    files, message = WRONG_ROWS[case]
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path, **files)
    assert "without `subject`" in str(error.value) and len(error.value.args) == 1
