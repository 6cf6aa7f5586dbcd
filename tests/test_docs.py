"""The pages that promise to work are executed."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from m4.main import main
from m4.modes import report

PAGE = (Path(__file__).parents[1] / "docs/adding-things.md").read_text()
QUICK = [
    "--config.train.steps=2",
    "--config.eval.bootstrap=5",
    "--config.eval.subsets=false",
    "--config.eval.baselines=false",
]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.M | re.S)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """The page's files in a package outside the tree, which is the working directory."""
    for text in blocks("python"):
        path = tmp_path / re.match(r"# (lab/\w+\.py)\n", text)[1]
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    for name in [n for n in sys.modules if n.partition(".")[0] == "lab"]:
        del sys.modules[name]


def test_adding_things(lab, monkeypatch, capsys):
    monkeypatch.setattr(report, "build", lambda folder: None)  # a third of the time
    assert len(list((lab / "lab").glob("*.py"))) == len(blocks("python")) == 4
    commands = [shlex.split(line) for text in blocks("sh") for line in text.splitlines()]
    assert [c[:3] for c in commands] == [["python", "-m", "m4.main"]] * 2
    for command in commands:
        assert main([*command[3:], *QUICK]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "method   lab.mean:Mean" in printed and "all is well" in printed
    assert (lab / "runs/mean/results/test.json").stat().st_size > 0
    assert "layer_0/gate_w" in printed  # of the gate on the page: laplace has centres


BATCH = (Path(__file__).parents[1] / "docs/follow-a-batch.md").read_text()


def test_follow_a_batch(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names = {}
    steps = re.findall(r"^```python\n(.*?)^```", BATCH, flags=re.M | re.S)
    assert len(steps) == 8 and all("assert " in step for step in steps if "kept =" not in step)
    for step in steps:
        exec(compile(step, "docs/follow-a-batch.md", "exec"), names)  # noqa: S102 (our own page)


def test_follow_a_batch_names_few_files_that_are_there():
    files = set(re.findall(r"`(m4/[\w/]+\.py)`", BATCH))
    assert len(files) == 15
    assert [f for f in files if not (Path(__file__).parents[1] / f).is_file()] == []
