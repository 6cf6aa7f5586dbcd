"""Names and places that data or a definition choose: refused in one line, or harmless."""

import json

import pytest

from m4 import atomic, specs
from m4.data import data_sets
from m4.data.sets import meds
from m4.errors import ConfigError
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from tests.data import meds_folder as mf

WEAPONS = (
    "../../evil", "/abs/evil", "..", ".", ".hidden", "a/b", "a\\b", 'x"><script>alert(1)</script>',
    "[/red]x[bold", "$\\frac{$", "\x1b]0;title\x07", "a\nb", "a\x00b", "", " ", "a ", "a.",
    "x" * 65,
    "\u202eabc", "=1+1", "-x", "@sum", "a%2f", "a:b", "a*b", "a?", "{a}", "a|b", "'a'", "~",
    "a\u2028",
)  # fmt: skip
FINE = (
    "death",
    "los_over_72h",
    "HbA1c (%)"[:5],
    "x-ray 2",
    "Größe",
    "心率",
    "risk_1y",
    "a+b",
    "5a",
)


@pytest.mark.parametrize("name", WEAPONS)
def test_names_that_are_weapons_are_refused(name):
    assert specs.name_problem(name)
    with pytest.raises(ValueError, match="is no name"):
        TaskSpec(name, "binary")
    with pytest.raises(ValueError, match="is no name"):
        ModalitySpec(name, "table", (1,))


@pytest.mark.parametrize("name", FINE)
def test_names_that_people_give_are_names(name):
    assert specs.name_problem(name) is None
    DataSpec(
        (ModalitySpec(name, "table", (1,), ("Glucose (mg/dL) <70 %",)),),
        (TaskSpec(name, "binary"),),
    )


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "", "x" * 201, "\u202e", "a\x7f", "\ud800"])
def test_features_and_labels_are_printable(text):
    with pytest.raises(ValueError, match="is no name"):
        ModalitySpec("labs", "table", (1,), (text,))
    with pytest.raises(ValueError, match="is no name"):
        TaskSpec("death", "multiclass", 2, labels=(text, "b"))


@pytest.mark.parametrize("name", [*WEAPONS, "..\\x", "CON/x"])
def test_file_names_stay_in_their_folder(name, tmp_path):
    found = specs.file_name(name)
    assert "/" not in found and "\\" not in found and found.isprintable()
    assert not found.startswith(".")
    if found:
        assert (tmp_path / found).parent == tmp_path
    assert specs.file_name("death") == "death"


def one_line(caught):
    assert all("\n" not in line and line.isprintable() for line in caught.value.lines())


@pytest.mark.parametrize("name", [n for n in WEAPONS if n.isprintable()])
def test_definitions_with_weapons_are_refused(tmp_path, name):
    for old, table in (("[tasks.death]", "tasks"), ("[modalities.drugs]", "modalities")):
        text = mf.DEFINITION.replace(old, f"[{table}.{json.dumps(name)}]")
        (tmp_path / "spec.toml").write_text(text)
        with pytest.raises(ConfigError, match="is no name") as caught:
            meds.spec(file=str(tmp_path / "spec.toml"))
        one_line(caught)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("folder", "../.."), ("folder", "/etc"), ("folder", "a/../../b"), ("labels", "/etc/passwd"),
        ("labels", "../../../etc/passwd"), ("labels", "a/../../../b"), ("files", "/etc/passwd"),
        ("files", "data/../../../x"), ("files", "/etc/*"),
    ],
)  # fmt: skip
def test_files_of_a_definition_are_below_the_raw_folder(tmp_path, key, value):
    text = {
        "folder": mf.DEFINITION.replace('folder = "hospital"', f'folder = "{value}"'),
        "labels": mf.DEFINITION.replace('"labels/death"', f'"{value}"'),
        "files": f'{mf.DEFINITION}\n[[events]]\nfiles = "{value}"\nsubject = "s"\ncode = "c"\n',
    }[key]
    (tmp_path / "spec.toml").write_text(text)
    with pytest.raises(ConfigError, match="must be a path below") as caught:
        meds.missing_files(tmp_path, file=str(tmp_path / "spec.toml"))
    one_line(caught)


@pytest.mark.parametrize(
    "name", ["os.path", "..", "a..b", "no.such.module", "x y.z", "/etc.x", "json.decoder"]
)
def test_names_of_data_sets(name):
    with pytest.raises(ConfigError) as caught:
        data_sets.find(name)
    one_line(caught)


def test_names_are_no_longer_than_a_file_system_takes(tmp_path):
    """64 letters of 4 bytes are 256; a mark, an ending and 22 of a name beside it come on top."""
    assert "at most 180 bytes" in specs.name_problem("\U00020000" * 64)
    assert specs.name_problem("心" * 60) is None and specs.name_problem("a" * 64) is None
    labels = ["é" * 200, "é" * 199 + "e", "/" * 200, "\U00020000" * 200]
    found = [specs.file_name(f"{'心' * 60}-{label}") for label in labels]
    assert len({*found}) == len(labels)
    for name in found:
        atomic.write(tmp_path / f"{name}.parquet", "")
