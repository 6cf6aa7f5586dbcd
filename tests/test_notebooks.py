"""Notebooks run from top to bottom, kept without outputs; those on the site are made here."""

import base64
import io
import json
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
SLOW = {"00_quickstart", "25_train", "50_a_pod"}  # compile whole methods, a minute each
RAN = FOLDER.parent / "build/notebooks"  # what their cells printed, for docs/site/pages.py
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
    scope, outputs = {}, {}
    for number, cell in enumerate(cells(name)):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}.ipynb", "exec"), scope)
            outputs[number] = {"text": capsys.readouterr().out, "figures": figures()}
    assert any(found["text"] for found in outputs.values())
    RAN.mkdir(parents=True, exist_ok=True)
    (RAN / f"{name}.json").write_text(json.dumps(outputs))


def figures():
    """PNG of every open figure in base 64; they are closed."""
    found = []
    for number in plt.get_fignums():
        file = io.BytesIO()
        plt.figure(number).savefig(file, format="png", dpi=70, bbox_inches="tight")
        found.append(base64.b64encode(file.getvalue()).decode())
        plt.close(number)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_first_cell_installs_where_m4_is_not(name):
    first = next("".join(c["source"]) for c in cells(name) if c["cell_type"] == "code")
    assert 'find_spec("m4") is None' in first and '"pip", "install"' in first
