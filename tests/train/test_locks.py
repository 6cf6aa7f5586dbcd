"""The lock excludes: many who want it at once, on one host, on two, and where no locks are."""

import contextlib
import errno
import fcntl
import json
import multiprocessing
import os
import socket
import time

import pytest

from m4 import flock
from m4.errors import ConfigError
from m4.train import workdir
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


def test_another_hosts_lock_may_be_free_soon(tmp_path):
    (tmp_path / "lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": "now"}))
    with pytest.raises(workdir.InUse, match="elsewhere") as refused, workdir.locked(tmp_path):
        pass
    assert refused.value.exit_code == 75


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
