"""What every command does around its work: signals, streams, exit codes."""

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from m4 import cli
from m4.errors import ConfigError

ROOT = Path(__file__).parents[1]
STARTS = [ROOT / "m4/main.py", *sorted((ROOT / "m4").rglob("__main__.py"))]


@pytest.mark.parametrize("path", STARTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_starts_a_process_hears_signals_before_its_long_imports(path):
    name = ".".join(path.relative_to(ROOT / "m4").with_suffix("").parts)
    _, first, start, *others = ast.parse(path.read_text()).body
    assert ast.unparse(first) == "from m4 import cli"
    assert ast.unparse(start) == f"if __name__ == '__main__':\n    cli.alone('{name}')"
    assert not any("__name__ == " in ast.unparse(node) for node in others)


def catches(pid, number):
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_tool_that_is_still_starting_leaves_with_75(number):
    code = "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "sys.argv = ['lab', '--help']; runpy.run_module('m4.lab', run_name='__main__')"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, cwd=ROOT) as run:
        while not catches(run.pid, signal.SIGTERM) and run.poll() is None:
            time.sleep(0.01)  # Python itself starts
        run.send_signal(number)
        assert run.wait(60) == 75
        assert run.stderr.read() == b"m4: stopped: run the same command again\n"


ENDING = """
import atexit, os, signal, sys
from m4 import cli
for number in (signal.SIGXCPU, signal.SIGTERM, signal.SIGINT):
    atexit.register(os.kill, os.getpid(), number)
sys.argv = ["m4", "--completion=x"]
cli.alone("main")
"""


def test_nothing_changes_the_exit_code_of_what_is_done():
    """JAX takes seconds to go, and SIGXCPU comes in every one of them."""
    command = [sys.executable, "-c", ENDING]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2 and "must be one of bash" in done.stderr


@pytest.mark.parametrize("tool", ["m4.data --help", "m4.bench --help", "m4 --completion=bash"])
@pytest.mark.parametrize("shell", ["{} | true; exit ${{PIPESTATUS[0]}}", "{} >/dev/full"])
def test_nobody_need_read_what_it_says(tool, shell):
    text = shell.format(f"{sys.executable} -m {tool}")
    done = subprocess.run(["bash", "-c", text], cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_what_ends_a_tool_is_one_line_and_its_exit_code(capsys):
    def refuses(args):
        raise ConfigError(f"{args[0]}: no")

    def breaks(args):
        raise ValueError("the patient's text")

    def stopped(args):
        raise KeyboardInterrupt

    mask = os.umask(0o022)
    try:
        assert cli.guard(lambda args: len(args), ["a", "--debug"]) == 1
        assert cli.guard(refuses, ["x"]) == 2
        assert cli.guard(stopped, [], again="; again") == 75
        assert capsys.readouterr().err == "m4: config error: x: no\nm4: interrupted; again\n"
        assert cli.guard(breaks, []) == 1
        assert "patient" not in capsys.readouterr().err
        assert cli.guard(breaks, ["--debug"]) == 1
        assert "the patient's text" in capsys.readouterr().err
    finally:
        os.umask(mask)
