"""Standard streams that close, fill up or know no letters do not end a command."""

import os
import subprocess
import sys

import pytest

from m4 import streams
from m4.train import workdir

CODE = r"""
import sys, os
from m4 import streams
with streams.patient():
    for number in range(20000):
        print("step", number, "\u2013 \u2713 R\u00b2 \udcff")
    print("said", file=sys.stderr)
os.write(int(sys.argv[1]), b"through")
"""


def run(tmp_path, shell, **environment):
    """What a command says when it is through, with its streams as a shell sets them up."""
    end = tmp_path / "end"
    command = f"{sys.executable} -c '{CODE}' 9 9>{end}"
    done = subprocess.run(
        ["bash", "-c", shell.format(command)],
        env=os.environ | environment,
        capture_output=True,
        check=False,
    )
    return end.read_text(), done


@pytest.mark.parametrize(
    "shell", ["{} | head -n 1", "{} >/dev/full", "{} >&- 2>&-", "{} <&- >&-", "{} 2>/dev/full"]
)
def test_nobody_listens(tmp_path, shell):
    assert run(tmp_path, shell)[0] == "through"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "ascii:strict"])
def test_a_terminal_that_does_not_know_the_letters(tmp_path, encoding):
    end, done = run(tmp_path, "{}", PYTHONIOENCODING=encoding)
    assert end == "through" and done.stdout.count(b"\n") == 20000 and b"said" in done.stderr


def test_what_is_said_arrives(tmp_path):
    _, done = run(tmp_path, "{}", PYTHONIOENCODING="utf-8")
    assert done.stdout.splitlines()[7] == "step 7 \u2013 \u2713 R\u00b2 ?".encode()


def test_a_stream_that_a_test_or_notebook_has_put_there_stays(capsys):
    before = sys.stdout
    with streams.patient():
        assert sys.stdout is before
        print("seen")
    assert capsys.readouterr().out == "seen\n"


@pytest.mark.parametrize("name", ["lr[0.1]", "a\\b", "a\udcffb"])
def test_names_below_which_nothing_can_be_kept(tmp_path, name):
    with pytest.raises(workdir.ConfigError, match="checkpoints cannot be kept below"):
        workdir.require_name(tmp_path / name / "w")


@pytest.mark.parametrize(
    "name", ["a[b", "a]b", "a b", "a%20b", "a\nb", "{a}", "a*?b", "\u00e9\U0001f600"]
)
def test_names_that_are_odd_and_do(tmp_path, name):
    workdir.require_name(tmp_path / name / "w")
