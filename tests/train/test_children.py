"""What a command starts hears once that it is to stop, may save, and is never left over."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from m4.errors import Preempted
from m4.train import children

# Counts what it is told in the file that it is given, and leaves half a second after the first.
CHILD = """
import os, pathlib, signal, sys, time
place, code = pathlib.Path(sys.argv[1]), int(sys.argv[2])
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
signal.signal(signal.SIGINT, lambda *_: told.append(1))
place.with_suffix(".part").write_text(str(os.getpid()))
os.rename(place.with_suffix(".part"), place)
while not told:
    time.sleep(0.01)
end = time.monotonic() + 0.5
while time.monotonic() < end:
    time.sleep(0.01)
place.with_suffix(".told").write_text(str(len(told)))
sys.exit(code)
"""
PARENT = """
import sys
from m4.errors import guarded
from m4.train import children, early
with early.leaving():
    sys.exit(guarded(lambda: children.run(sys.argv[1:]).returncode, debug=True))
"""


def child(place, code=75):
    return [sys.executable, "-c", CHILD, str(place), str(code)]


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def parent(tmp_path):
    """A command in a session of its own, as on a terminal, once its child runs."""
    place = tmp_path / "child"

    def begin(code=75):
        command = [sys.executable, "-c", PARENT, *child(place, code)]
        options: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True}
        own = subprocess.Popen(command, start_new_session=True, **options)
        wait_for(place.exists)
        return own, int(place.read_text())

    return begin


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT])
def test_a_stop_is_passed_on_once_and_waited_for(parent, tmp_path, number):
    own, pid = parent()
    os.killpg(own.pid, number)  # as a terminal does
    time.sleep(0.1)
    os.killpg(own.pid, number)
    assert "m4: stopped: the same command goes on" in own.communicate(timeout=20)[1]
    assert own.returncode == 75 and not lives(pid)
    assert (tmp_path / "child.told").read_text() == "1"


def test_what_could_not_be_saved_is_not_called_saved(parent):
    own, _ = parent(6)
    own.terminate()
    assert "ended with exit code 6 when it was told to stop" in own.communicate(timeout=20)[1]
    assert own.returncode == 6


def test_a_child_does_not_outlive_a_command_that_is_killed(parent):
    own, pid = parent()
    own.kill()
    own.communicate(timeout=20)
    wait_for(lambda: not lives(pid))


def test_a_child_that_does_not_leave_is_killed(monkeypatch, tmp_path):
    monkeypatch.setattr(children, "GRACE", 0.2)
    threading.Thread(target=told_when_it_runs, args=(tmp_path / "child",)).start()
    with pytest.raises(Preempted, match="exit code 137") as error:
        children.run(child(tmp_path / "child"))
    assert error.value.exit_code == 137
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def told_when_it_runs(place):
    wait_for(place.exists)
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_child_that_takes_too_long_is_killed(tmp_path):
    with pytest.raises(subprocess.TimeoutExpired):
        children.run(child(tmp_path / "child"), timeout=0.2, stdout=subprocess.PIPE)


def test_nothing_of_m4_waits_for_a_child_in_another_way():
    package = Path(children.__file__).parents[1]
    found = [
        (path.relative_to(package).as_posix(), line.strip())
        for path in package.rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"subprocess\.(run|call|check_|Popen\()|os\.(system|spawn|fork)", line)
    ]
    (of_children, of_train) = sorted(found, reverse=True)
    assert of_children[0] == "train/children.py"
    assert of_train[0] == "modes/train.py" and "timeout=5" in of_train[1]  # git says its commit


def test_a_child_reads_what_it_is_given():
    echo = [sys.executable, "-c", "import sys; sys.stdout.write(sys.stdin.read()); sys.exit(3)"]
    done = children.run(echo, given="ä" * 300_000, stdout=subprocess.PIPE)
    assert done.stdout == "ä" * 300_000 and done.returncode == 3
    assert children.run(echo, stdout=subprocess.PIPE).stdout == ""
