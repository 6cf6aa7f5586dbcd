"""The lock excludes: many who want it at once, on one host, on two, and where no locks are."""

import contextlib
import errno
import fcntl
import functools
import json
import multiprocessing
import os
import signal
import socket
import threading
import time

import pytest

from m4 import flock
from m4.errors import ConfigError
from m4.train import early, workdir
from m4.train.preemption import Signals
from m4.train.watchdog import Watchdog
from tests.faults import locking


@pytest.mark.parametrize("case", locking.CASES)
def test_many_take_it_in_turn_and_never_two_at_once(tmp_path, case):
    held, overlaps = locking.contend(tmp_path / "w", case, holds=120)
    assert held == 120 and overlaps == 0
    assert [*(tmp_path / "w").iterdir()] == []


def test_without_file_locks_it_says_so_and_still_excludes(tmp_path, monkeypatch, capsys):
    def refuse(*args):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with workdir.locked(tmp_path):
        assert "has no locks" in capsys.readouterr().err
        with pytest.raises(ConfigError, match=f"process {os.getpid()}"), workdir.locked(tmp_path):
            pass
    assert not (tmp_path / "lock").exists()
    gone = multiprocessing.get_context("spawn").Process(target=str)
    gone.start()
    gone.join()
    owner = {"pid": gone.pid, "host": socket.gethostname(), "token": "x", "born": "1"}
    (tmp_path / "lock").write_text(json.dumps(owner))
    with workdir.locked(tmp_path):  # of this host a dead process is known at once
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("number", flock.NONE)
def test_every_way_in_which_a_file_system_has_no_locks(tmp_path, monkeypatch, number):
    def refuse(*args):
        raise OSError(number, "")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with open(tmp_path / "f", "w") as file:
        assert flock.take(file.fileno(), wait=True) is None


def test_a_thread_keeps_it_young_while_the_run_is_busy(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir, "BEAT", 0.05)
    with workdir.locked(tmp_path):
        os.utime(tmp_path / "lock", (1, 1))
        end = time.monotonic() + 10
        while (tmp_path / "lock").stat().st_mtime < 2 and time.monotonic() < end:
            time.sleep(0.01)
        assert (tmp_path / "lock").stat().st_mtime > 2


def test_whoever_lost_it_ends_at_once(tmp_path, monkeypatch):
    """Held up for longer than its lock counts, a run finds another in its place."""
    run = multiprocessing.get_context("spawn").Process(target=_held_up, args=(tmp_path,))
    run.start()
    run.join(20)
    assert run.exitcode == 75


def _held_up(folder):
    workdir.BEAT = 0.05
    with workdir.locked(folder):
        (folder / "lock").write_text(json.dumps({"token": "another's"}))
        time.sleep(30)


def test_another_hosts_lock_may_be_free_soon(tmp_path, monkeypatch, capsys):
    """A run that is requeued elsewhere waits; one that is started beside a living one does not."""
    monkeypatch.setattr(workdir, "POLL", 0.02)
    lock = tmp_path / "lock"
    lock.write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": "now"}))
    beats = threading.Timer(0.3, os.utime, [lock])
    beats.start()
    with pytest.raises(workdir.InUse, match="elsewhere") as refused, workdir.locked(tmp_path):
        pass
    beats.join()
    assert refused.value.exit_code == 75
    assert "waits for a sign of life of it, 10 minutes at most" in capsys.readouterr().err
    released = threading.Timer(0.3, lock.unlink)
    released.start()
    with workdir.locked(tmp_path):
        released.join()


def test_a_dead_hosts_lock_is_taken_over_in_time(tmp_path, monkeypatch):
    """SIGKILL, and Slurm starts it again elsewhere: once, not until it gives up."""
    monkeypatch.setattr(workdir, "POLL", 0.05)
    monkeypatch.setattr(workdir, "STALE", 1.0)
    (tmp_path / "lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": "now"}))
    start = time.monotonic()
    with workdir.locked(tmp_path):
        assert 0.5 < time.monotonic() - start < 20
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_whoever_is_told_to_leave_lets_go_of_it(tmp_path, number):
    """Any mode but train has nothing to save; another host would wait for ten minutes."""
    run = multiprocessing.get_context("spawn").Process(target=_left, args=(tmp_path, number))
    run.start()
    run.join(60)
    assert run.exitcode == 75 and not [*tmp_path.glob("**/lock")]


def _left(folder, number):
    signal.signal(number, signal.SIG_DFL)
    with early.leaving(), workdir.locked(folder), workdir.locked(folder / "fold_0"):
        os.kill(os.getpid(), number)
        time.sleep(30)


def test_so_does_a_fold_that_has_nothing_to_save(tmp_path):
    run = multiprocessing.get_context("spawn").Process(target=_fold, args=(tmp_path,))
    run.start()
    run.join(60)
    assert run.exitcode == 75 and not [*tmp_path.glob("**/lock")]


def _fold(folder):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup may have it ignored
    leave = functools.partial(workdir.let_go, folder / "fold_0")
    with early.leaving(), workdir.locked(folder), Signals(leave), workdir.locked(folder / "fold_0"):
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(30)


def test_so_does_a_run_that_hangs(tmp_path):
    run = multiprocessing.get_context("spawn").Process(target=_hung, args=(tmp_path,))
    run.start()
    run.join(60)
    assert run.exitcode == 7 and not (tmp_path / "lock").exists()


def _hung(folder):
    with workdir.locked(folder):
        leave = functools.partial(workdir.let_go, folder)
        Watchdog(1.0, folder / "stacks.txt", leave=leave)._end("for the test")


def test_a_living_lock_that_was_put_aside_goes_back(tmp_path):
    with workdir.locked(tmp_path):
        before = (tmp_path / "lock").read_text()
        workdir._put_aside(tmp_path, {"token": "a dead one's"}, {"token": "mine"})
        assert (tmp_path / "lock").read_text() == before
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_it_is_let_go_by_a_process_that_ends_without_farewell(tmp_path):
    with workdir.locked(tmp_path):
        workdir.let_go(tmp_path)
        assert not (tmp_path / "lock").exists()
    (tmp_path / "lock").write_text(json.dumps({"pid": os.getpid(), "host": "elsewhere"}))
    workdir.let_go(tmp_path)
    assert (tmp_path / "lock").exists()


def test_a_link_in_its_place_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "w").mkdir(mode=0o700)
    (tmp_path / "w/lock").symlink_to(victim)
    with pytest.raises(ConfigError, match="cannot be used"), workdir.locked(tmp_path / "w"):
        pass
    assert victim.read_text() == "mine"


def test_a_folder_that_others_may_write_to_is_closed_or_refused(tmp_path, capsys):
    tmp_path.chmod(0o777)
    with workdir.locked(tmp_path):
        assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert "may not write to it any more" in capsys.readouterr().err
    tmp_path.chmod(0o777)
    (tmp_path / "stacks-0.txt").symlink_to("/etc/hostname")  # planted before
    with pytest.raises(ConfigError, match="holds a link"), workdir.locked(tmp_path):
        pass
    (tmp_path / "w").mkdir()
    (tmp_path / "w").chmod(0o1777)  # as /tmp is
    with pytest.raises(ConfigError, match="others may write to it"), workdir.locked(tmp_path / "w"):
        pass
    assert (tmp_path / "w").stat().st_mode & 0o7777 == 0o1777
    with contextlib.suppress(OSError):
        (tmp_path / "w").chmod(0o700)
