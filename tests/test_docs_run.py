"""What is typed on the pages is executed, page by page, in one folder, as a reader would.

Slow. A page's commands run in order; runs are cut to a few steps (`SHORT`), all else is as it
stands. Python that begins with the name of a file is that file, the rest runs after the commands.
What is not executed, and why, is `NOT_RUN` in tests/doc_blocks.py.
"""

import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests import doc_blocks
from tests.doc_blocks import ROOT

pytestmark = pytest.mark.slow
# Of the tree; the rest of what is there (runs, data, .venv) is the sandbox's own.
TREE = ("m4", "configs", "launch", "docs", "tests", "Makefile", "pyproject.toml", "README.md")
SHORT = (
    "--config.train.steps=4 --config.train.eval_every=4 --config.train.save_every=4"
    " --config.optim.warmup_steps=1"
    " --config.eval.bootstrap=20 --config.eval.subsets=false --config.eval.baselines=false"
)
WHOLE = ("own.py", ":tiny")  # short already
# What a reader of a page's Python has beside it.
BEFORE = {"README.md": 'import pandas\nframe = pandas.read_csv("docs/example/ward.csv")\n'}
# Raw files by what is in a configuration's name; without them its commands are left out, aloud.
RAW = {"physionet2012": "physionet2012", "support2": "support2", "eicu": "eicu-demo-meds"}
RAW |= {"mfeat": "uci-mfeat", "digits.py": "free-spoken-digits"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A clone as somebody has it who has typed `make demo`: no data but what is in the tree."""
    folder = tmp_path_factory.mktemp("reader")
    for name in TREE:
        (folder / name).symlink_to(ROOT / name)
    venv.create(folder / ".venv", symlinks=True)
    site = folder / f".venv/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    (site / "deps.pth").write_text(sysconfig.get_path("purelib"))
    script = folder / ".venv/bin/m4-moe"
    script.write_text(f'#!/bin/sh\nexec "{folder}/.venv/bin/python" -m m4 "$@"\n')
    script.chmod(0o755)
    (folder / "raw").mkdir()
    for name in os.listdir(os.environ.get("M4_RAW_DIR") or folder / "raw"):
        (folder / "raw" / name).symlink_to(Path(os.environ["M4_RAW_DIR"]).resolve() / name)
    page = "README.md"  # whose runs other pages speak of
    for block in doc_blocks.of(page, (ROOT / page).read_text()):
        if "runs/ward" in block.text and block.language == "sh":
            execute(page, [block], folder)
    return folder


def environment(folder):
    found = {k: v for k, v in os.environ.items() if not k.startswith(("M4_DATA", "XLA_"))}
    found |= {"PATH": f"{folder}/.venv/bin:{os.environ['PATH']}", "PYTHONPATH": str(folder)}
    # Compiled fast rather than well, and on one device.
    found["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    return found | {"M4_RAW_DIR": str(folder / "raw"), "HOME": str(folder)}


def bash(text, folder):
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder, env=environment(folder), timeout=1200, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    told = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
    assert done.returncode == 0, f"exit code {done.returncode} of: {text}\n{told}"


def typed(command):
    """What is executed of a command: short runs, and no queue of a cluster behind it."""
    text, words = command.text.removesuffix("| sbatch"), command.words
    trains = words[0] == "m4-moe" and "--config=" in text and "--mode=plan" not in text
    return f"{text} {SHORT}" if trains and not any(w in text for w in WHOLE) else text


def lacking(text, folder):
    """The raw files that a command needs and that are not here."""
    return [
        raw for name, raw in RAW.items() if name in text and not (folder / "raw" / raw).exists()
    ]


def execute(page, blocks, folder):
    """Runs a page's blocks; returns the commands that were left out for want of raw files."""
    left, code = [], []
    for block in blocks:
        file = re.match(r"# ([\w/]+\.py)\n", block.text)
        if block.language == "python" and file:
            (folder / file[1]).parent.mkdir(exist_ok=True)
            (folder / file[1]).write_text(block.text)
        elif block.language == "python" and not doc_blocks.why_not(page, block.text):
            code.append(block.text)
    for block in blocks:
        for command in doc_blocks.commands(block) if block.language == "sh" else ():
            if doc_blocks.why_not(page, command.whole):
                continue
            if lacking(command.text, folder):
                left.append(command.text)
                continue
            bash(typed(command), folder)
    if code:
        (folder / "page.py").write_text(BEFORE.get(page, "") + "\n".join(code))
        bash("python page.py", folder)
    return left


BLOCKS = {page: doc_blocks.of(page, text) for page, text in doc_blocks.pages().items()}
PAGES = {
    page: blocks
    for page, blocks in BLOCKS.items()
    if page not in doc_blocks.ELSEWHERE and {"sh", "python"} & {b.language for b in blocks}
}


@pytest.mark.parametrize("page", PAGES)
def test_the_page_runs(page, place):
    if left := execute(page, PAGES[page], place):
        pytest.skip("raw files are not here: " + "; ".join(left))
