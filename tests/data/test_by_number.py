"""Rows without an identifier: the number of a row says whose it is, so none may slip."""

import pytest

from m4.data.sets import tables
from m4.data.sets.declared import arrow_files

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
