"""The lock excludes: many who want it at once, on one host, on two, and where no locks are."""

import contextlib
import errno
import fcntl
import functools
import json
import multiprocessing
import os
import shutil
import signal
import stat
import threading
import time

import pytest

from m4 import flock, owners
from m4.errors import ConfigError, SaveError
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
    owner = owners.own() | {"pid": gone.pid, "token": "x", "born": "1"}
    (tmp_path / "lock").write_text(json.dumps(owner))
    with workdir.locked(tmp_path):  # of this machine a dead process is known at once
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
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)  # what it says at its end is not heard
    with workdir.locked(folder):
        (folder / "lock").write_text(json.dumps({"token": "another's"}))
        time.sleep(30)


def test_a_folder_that_goes_ends_its_run(tmp_path):
    """Savers make folders anew, and what was there before is missing in them."""
    run = multiprocessing.get_context("spawn").Process(target=_without, args=(tmp_path / "w",))
    run.start()
    run.join(20)
    assert run.exitcode == SaveError.exit_code
    with pytest.raises(SaveError, match="removed or replaced"), workdir.locked(tmp_path / "w"):
        shutil.rmtree(tmp_path / "w")
        (tmp_path / "kept").mkdir()  # may have the number of the other, but for this
        (tmp_path / "w").mkdir()
    with workdir.locked(tmp_path / "w"):
        (tmp_path / "w/lock").unlink()  # as messages advise


def _without(folder):
    workdir.BEAT = 0.05
    with workdir.locked(folder):
        folder.rename(folder.with_name("elsewhere"))
        (folder / "checkpoints").mkdir(parents=True)
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
    said = capsys.readouterr().err
    assert "waits for a sign of life of it, 10 minutes at most" in said
    assert f"if that process is gone, delete {lock}" in said
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


NOBODY = {"pid": 1, "host": "elsewhere", "token": "a dead one's"}


@pytest.fixture
def dead(tmp_path):
    """A lock of another machine's run that died long ago."""
    (tmp_path / "lock").write_text(json.dumps(NOBODY))
    os.utime(tmp_path / "lock", (1, 1))
    return workdir._sign_of_life(tmp_path)


def nothing_to_lock(monkeypatch, *, links=False):
    """As on a file system without file locks, and without hard links."""

    def refuse(*args):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(flock, "take", lambda file, **how: None)
    if not links:
        monkeypatch.setattr(os, "link", refuse)


@pytest.mark.parametrize("links", [True, False])
def test_who_comes_late_takes_no_living_lock_away(tmp_path, dead, monkeypatch, links):
    nothing_to_lock(monkeypatch, links=links)
    with workdir.locked(tmp_path):
        before = (tmp_path / "lock").read_text()
        assert workdir._clear_away(tmp_path, dead, owners.own() | {"token": "mine"})
        assert (tmp_path / "lock").read_text() == before
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_dead_lock_is_taken_away_by_who_has_claimed_it(tmp_path, dead, monkeypatch):
    create, mine = workdir._create, owners.own() | {"token": "mine"}
    other = mine | {"token": "other", "boot": "of another machine"}
    monkeypatch.setattr(workdir, "_create", lambda path, owner: create(path, other) and False)
    assert not workdir._clear_away(tmp_path, dead, mine)  # it may be about to
    monkeypatch.setattr(workdir, "_create", create)
    (claim,) = tmp_path.glob(".lock-*")
    assert not workdir._clear_away(tmp_path, dead, mine) and (tmp_path / "lock").exists()
    os.utime(claim, (1, 1))  # it died at it
    assert workdir._clear_away(tmp_path, dead, mine) and not (tmp_path / "lock").exists()
    with workdir.locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]  # the rest is swept


def test_a_claim_that_another_has_overtaken_is_not_acted_on(tmp_path, dead, monkeypatch):
    create, mine = workdir._create, owners.own() | {"token": "mine"}

    def overtaken(path, owner):
        made = create(path, owner)
        path.with_name(path.name.removesuffix("0") + "1").touch()
        return made

    monkeypatch.setattr(workdir, "_create", overtaken)
    assert workdir._clear_away(tmp_path, dead, mine) and (tmp_path / "lock").exists()


@pytest.fixture
def elsewhere(tmp_path_factory, monkeypatch):
    """From here on this process is of another machine; the host has the same name."""

    def go():
        boot = tmp_path_factory.mktemp("boot") / "id"
        boot.write_text("of another machine")
        monkeypatch.setattr(owners, "BOOT", boot)
        monkeypatch.setattr(flock, "take", lambda file, **how: True)  # each has its own

    return go


def test_a_living_lock_of_another_machine_of_the_same_name_stays(tmp_path, elsewhere):
    with workdir.locked(tmp_path):
        elsewhere()
        with pytest.raises(workdir.InUse, match=f"process {os.getpid()}"):
            workdir._acquire(tmp_path, owners.own() | {"token": "mine", "mount": 1})


def test_so_does_one_of_another_mount_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(flock, "take", lambda file, **how: True)  # each mount has its own
    with workdir.locked(tmp_path):
        lock = tmp_path / "lock"
        lock.write_text(json.dumps(json.loads(lock.read_text()) | {"mount": 1, "space": "pid:[1]"}))
        with pytest.raises(workdir.InUse):
            workdir._acquire(tmp_path, owners.own() | {"token": "mine", "mount": 2})


def test_where_no_locks_are_a_process_of_another_namespace_is_not_looked_up(tmp_path, monkeypatch):
    nothing_to_lock(monkeypatch, links=True)
    other = owners.own() | {"space": "pid:[1]", "pid": 2**22 + 1, "token": "x"}
    (tmp_path / "lock").write_text(json.dumps(other))
    with pytest.raises(workdir.InUse):
        workdir._acquire(tmp_path, owners.own() | {"token": "mine", "mount": 1})


@pytest.mark.parametrize("content", [b"", bytes(1024), b"[" * 60_000])
def test_a_lock_that_says_nothing_is_waited_for(tmp_path, monkeypatch, capsys, content):
    """Of a power cut, or another file system's."""
    monkeypatch.setattr(workdir, "POLL", 0.02)
    monkeypatch.setattr(workdir, "STALE", 0.3)
    (tmp_path / "lock").write_bytes(content)
    with workdir.locked(tmp_path):
        pass
    assert "in use by a run that its lock does not name; waits" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_a_wait_has_an_end_whatever_the_times_say(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir, "POLL", 0.02)
    monkeypatch.setattr(workdir, "STALE", 0.3)
    (tmp_path / "lock").write_text(json.dumps(NOBODY))
    os.utime(tmp_path / "lock", (2**32, 2**32))  # its clock was ahead
    with workdir.locked(tmp_path):
        pass
    (tmp_path / "lock").write_text(json.dumps(NOBODY))
    with open(tmp_path / "lock") as stopped:  # on another client of a server that has the lock
        fcntl.flock(stopped, fcntl.LOCK_EX)
        with pytest.raises(workdir.InUse, match="choose another"), workdir.locked(tmp_path):
            pass
    assert (tmp_path / "lock").exists()


def test_where_times_cannot_be_set_the_lock_is_written_again(tmp_path, monkeypatch, capsys):
    def refuse(*args, **how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(workdir, "BEAT", 0.05)
    utime, content = os.utime, None
    monkeypatch.setattr(os, "utime", refuse)
    with workdir.locked(tmp_path):
        content = (tmp_path / "lock").read_bytes()
        utime(tmp_path / "lock", (1, 1))
        end = time.monotonic() + 10
        while (tmp_path / "lock").stat().st_mtime < 2 and time.monotonic() < end:
            time.sleep(0.01)
        assert (tmp_path / "lock").stat().st_mtime > 2
        assert (tmp_path / "lock").read_bytes() == content
        monkeypatch.setattr(os, "pwrite", lambda *args: 0)  # nor does that help
        time.sleep(0.3)
    assert capsys.readouterr().err.count("keeps no time of the last change") == 1


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
    below = tmp_path / "checkpoints/last"
    below.mkdir(parents=True)
    (below / "state").touch()
    for path in (below / "state", below, below.parent, tmp_path):
        path.chmod(0o777)
    with workdir.locked(tmp_path):
        assert tmp_path.stat().st_mode & 0o777 == 0o755
        assert not [path for path in tmp_path.rglob("*") if path.stat().st_mode & 0o022]
    assert "not write to it any more, nor to what it holds" in capsys.readouterr().err
    tmp_path.chmod(0o777)
    (below / "stacks-0.txt").symlink_to("/etc/hostname")  # planted before
    with pytest.raises(ConfigError, match="holds a link"), workdir.locked(tmp_path):
        pass
    assert tmp_path.stat().st_mode & 0o777 == 0o777  # or the next run would not look
    (tmp_path / "w").mkdir()
    (tmp_path / "w").chmod(0o1777)  # as /tmp is
    with pytest.raises(ConfigError, match="others may write to it"), workdir.locked(tmp_path / "w"):
        pass
    assert (tmp_path / "w").stat().st_mode & 0o7777 == 0o1777
    with contextlib.suppress(OSError):
        (tmp_path / "w").chmod(0o700)


def test_nobody_can_do_anything_in_a_folder_while_it_is_looked_through(tmp_path, monkeypatch):
    (tmp_path / "a/b").mkdir(parents=True)
    for path in (tmp_path / "a/b", tmp_path / "a", tmp_path):
        path.chmod(0o777)
    scan, seen = os.scandir, {}

    def scanned(path):
        seen[os.path.basename(path)] = stat.S_IMODE(os.stat(path).st_mode)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scanned)
    workdir.close_to_others(tmp_path, "--out")
    assert seen == {tmp_path.name: 0o766, "a": 0o755, "b": 0o755}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_is_another_users_in_such_a_folder_is_refused(tmp_path):
    (tmp_path / "planted").touch()
    os.chown(tmp_path / "planted", 1001, 1001)
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="holds what is of user 1001, .*planted; move"):
        workdir.close_to_others(tmp_path, "--workdir")
