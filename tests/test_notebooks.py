"""Notebooks run from top to bottom, and are kept without outputs."""

import json
from pathlib import Path

import matplotlib
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
SLOW = {"00_quickstart"}  # trains a method, a minute of compilation
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def cells(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]


def test_there_are_notebooks():
    assert set(NAMES) >= SLOW


@pytest.mark.parametrize("name", NAMES)
def test_no_outputs_are_kept(name):
    code = [cell for cell in cells(name) if cell["cell_type"] == "code"]
    assert code and not any(cell["outputs"] or cell["execution_count"] for cell in code)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in NAMES]
)
def test_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    matplotlib.use("Agg")
    scope = {}
    for cell in cells(name):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}.ipynb", "exec"), scope)
    assert capsys.readouterr().out
