"""What the command says of itself, from anywhere: help, version, list, completion, names."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from m4 import __version__
from m4.__main__ import main
from m4.config import completion, flags, program
from m4.data import data_sets

ROOT = Path(__file__).parents[1]


def said(capsys, *args):
    assert main(args) == 0
    out, err = capsys.readouterr()
    assert not err
    return out


def test_help_and_version(capsys):
    assert said(capsys, "-h") == said(capsys, "--help") == f"{flags.USAGE}\n"
    assert said(capsys, "--version").startswith(f"m4 {__version__} (jax 0.")
    for name in (*flags.NAMES, *flags.MODES, *flags.TOOLS):
        assert name in flags.USAGE, name


def test_the_citation_names_this_version():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_list_has_everything(capsys):
    found = said(capsys, "--list")
    for path in program.shipped():
        assert f"  {Path(path).stem} " in found and program.purpose(path).strip() in found
    for word in (":synthetic", "laplace", "expert_choice", "paper, released", *data_sets.names()):
        assert word in found, word


@pytest.mark.parametrize("tool", [t for t in flags.TOOLS if t not in ("launch", "compare")])
def test_every_tool_has_help(tool, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    importlib.import_module(f"m4.{tool}.__main__")
    for flag in ("--help", "-h"):
        try:
            assert main([tool, flag]) == 0
        except SystemExit as left:  # argparse
            assert not left.code
        assert "m4" in capsys.readouterr().out
    assert not [*tmp_path.iterdir()]


def test_comparing_runs_is_a_word_of_the_command(capsys):
    assert main(["compare", "--help"]) == 0
    assert "m4-moe compare RUN RUN" in capsys.readouterr().out
    assert main(["compare", "nowhere", "nothing"]) == 2
    assert "nowhere: left out, holds no finished run" in capsys.readouterr().err


def test_a_mode_in_front_and_fields_by_set():
    found = flags.parse(["predict", "--workdir=w", "--set", "seed=3", "--set=optim.lr=0.1"])
    assert found.mode == "predict" and found.overrides == {"seed": "3", "optim.lr": "0.1"}
    assert flags.parse(["--set", "a.b=c=d", "--config=x.py"]).overrides == {"a.b": "c=d"}


def test_shipped_configurations_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = program.load_file("configs/fusemoe_mimic.py:tiny")
    for name in ("fusemoe_mimic:tiny", "fusemoe_mimic.py:tiny"):
        assert program.load_file(name) == whole
    assert program.variants("fusemoe_mimic") == program.variants("configs/fusemoe_mimic.py")
    (tmp_path / "fusemoe_mimic.py").write_text("def get_config():\n    return {'mine': 1}\n")
    assert program.load_file("fusemoe_mimic.py") == {"mine": 1}  # a file that is there comes first
    assert program.load_file("fusemoe_mimic:tiny") == whole  # but a bare name is no file
    assert program.locate("common") is None  # what they share is none


COMPLETED = {
    "m4-moe pred": ["predict"],
    "m4-moe la": ["lab", "launch"],
    "m4-moe --mode=p": ["--mode=plan", "--mode=predict"],
    "m4-moe --mode p": ["plan", "predict"],
    "m4-moe --for": ["--force="],
    "m4-moe --force=": ["--force=best", "--force=config", "--force=program"],
    "m4-moe --config=fusemoe_mi": ["--config=fusemoe_mimic"],
    "m4-moe --config=configs/fusemoe_mi": ["--config=configs/fusemoe_mimic.py"],
    "m4-moe --config=fusemoe_mimic:t": ["--config=fusemoe_mimic:tiny"],
    "m4-moe --config fusemoe_mimic:t": ["fusemoe_mimic:tiny"],
    "m4-moe --set train.st": ["train.steps=", "train.stream_ratio=", "train.streams="],
    "m4-moe --config.optim.name=ad": ["--config.optim.name=adam", "--config.optim.name=adamw"],
    "m4-moe --config=fusemoe_mimic --set method.moe.gate=lap": ["method.moe.gate=laplace"],
    "m4-moe --config=m3h_mimic --set method.moe.gate=lap": [],
    "m4-moe --config=nowhere:": [],
    "m4-moe --workdir=ru": [],
    "m4-moe --completion=": ["--completion=bash", "--completion=fish", "--completion=zsh"],
}


@pytest.mark.parametrize("line", COMPLETED)
def test_completion_knows(line, capsys):
    assert said(capsys, completion.ASK, line).split() == COMPLETED[line]


BASH = """
eval "$(cat)"
m4-moe() {{ {python} -m m4 "$@"; }}
COMP_LINE='m4-moe --config=fusemoe_mimic:t' COMP_POINT=${{#COMP_LINE}}
COMP_WORDS=(m4-moe --config = fusemoe_mimic : t) COMP_CWORD=5
_m4_moe; echo "${{COMPREPLY[@]}}"
COMP_LINE='m4-moe --mode=' COMP_POINT=14 COMP_WORDS=(m4-moe --mode =) COMP_CWORD=2
_m4_moe; echo "${{COMPREPLY[@]:0:2}}"
"""


def test_bash_completes_after_the_marks_at_which_it_breaks_words(capsys):
    script = said(capsys, "--completion=bash")
    done = subprocess.run(
        ["bash", "-c", BASH.format(python=sys.executable)],
        input=script, capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["tiny", "check crossval"]


@pytest.mark.parametrize("shell", flags.SHELLS)
def test_every_shell_has_a_script(shell, capsys):
    assert completion.ASK in said(capsys, f"--completion={shell}")
