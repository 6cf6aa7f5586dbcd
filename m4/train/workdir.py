"""A work directory belongs to one run at a time.

The lock is a file that holds a token of its owner. It comes into being with its content (a link),
which only one of several can make on any file system, and is taken away by its owner alone:

* on one host the operating system's file lock decides who may, so a killed run blocks nobody;
  whoever has it looks whether the file is still the one in the folder, and begins again if not;
* of another host, and where the file system has no such locks, a run is taken for alive while its
  file is younger than ten minutes. A thread keeps it young, also during a long compilation.
  Ages are told by the file system's clock. Whoever finds such a lock waits for a sign of life, and
  is refused at the first; without one the lock is taken over when it is old enough.

A run whose lock was taken over while it was held up ends itself at once.
"""

import contextlib
import errno
import json
import os
import re
import secrets
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m4 import flock
from m4.errors import ConfigError, Preempted, SaveError
from m4.train import early

STALE = 600.0  # seconds without a sign of life after which another host's lock is ignored
BEAT = 20.0  # seconds between signs of life
POLL = 2.0  # seconds between looks at another host's lock
TRIES = 1000  # of a lock that goes away at every look
MOMENT = 1.0  # second for saying that the run has ended
LOCK = "lock"
SIZE = 1024  # bytes


class InUse(ConfigError):
    """A run on another host, which lives, holds the folder: it may be free when retried."""

    exit_code = Preempted.exit_code


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Creates `folder` (0700) and holds it; ConfigError if a living run holds it.

    Raises InUse if that is on another host, SaveError where nothing can be written. Of another
    host's run it waits for a sign of life, or until it counts as dead. A folder of one's own that
    others may write to is closed to them; somebody else's is refused.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"--workdir={folder}: cannot be used ({error.strerror})") from error
    close_to_others(folder, "--workdir")
    owner = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "token": secrets.token_hex(8),
        "born": _born(os.getpid()),
    }
    try:
        file = _in_turn(folder, owner)
        _sweep(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        raise ConfigError(f"--workdir={folder}: cannot be used ({error.strerror})") from error
    done = threading.Event()
    beat = threading.Thread(target=_beat, args=(folder, owner, done), daemon=True)
    beat.start()
    try:
        with early.farewell(lambda: _release(folder, owner)):
            yield folder
    finally:
        done.set()
        beat.join()
        _release(folder, owner)
        os.close(file)


def let_go(folder: Path) -> None:
    """Gives up this process's lock, for one that is about to end without a farewell."""
    with contextlib.suppress(OSError):
        owner = _read(folder / LOCK)
        if (owner.get("pid"), owner.get("host")) == (os.getpid(), socket.gethostname()):
            _release(folder, owner)


def require_name(folder: Path) -> None:
    """Raises ConfigError for a path in which Orbax saves what it cannot read back."""
    text = str(folder.absolute())
    if "\\" in text or re.search(r"\[[^/]*\]", text) or not _encodable(text):
        raise ConfigError(
            f"--workdir={ascii(text)[1:-1]}: checkpoints cannot be kept below a name with a"
            " backslash, brackets [...] or bytes that are not UTF-8; choose another"
        )


def touch(folder: Path) -> None:
    """Shows other hosts that this run is alive."""
    with contextlib.suppress(OSError):
        os.utime(folder / LOCK)


def _in_turn(folder: Path, owner: dict[str, Any]) -> int:
    """`_acquire`, waiting for another host's run as long as it is not known whether that lives."""
    seen = None
    while True:
        try:
            return _acquire(folder, owner)
        except InUse as error:
            now = _sign_of_life(folder)
            if seen is None:
                text = f"{error.args[0].partition('; choose')[0]}; waits for a sign of life of it"
                print(f"m4: {text}, {STALE / 60:.0f} minutes at most", file=sys.stderr, flush=True)
                seen = now
            elif now not in (None, seen):
                raise
        time.sleep(POLL)


def _sign_of_life(folder: Path) -> tuple[Any, int] | None:
    """What changes in a lock while its owner lives; None if it went meanwhile."""
    try:
        file = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return _parse(file).get("token"), os.fstat(file).st_mtime_ns
    finally:
        os.close(file)


def _acquire(folder: Path, owner: dict[str, Any]) -> int:
    """The open lock file, which is this run's. Raises ConfigError if another run's is alive."""
    path = folder / LOCK
    for _ in range(TRIES):
        made, now = _make(folder, owner)
        try:
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:  # released meanwhile
            continue
        mine = False
        try:
            held = flock.take(file)
            before = _parse(file)
            if held is False:
                raise _in_use(folder, before)
            if not _is(path, file):  # released, and perhaps another's, meanwhile
                continue
            if made and before.get("token") == owner["token"]:
                if held is None:
                    _say_no_locks(folder)
                mine = True
                return file
            if held is not None and before.get("host") == owner["host"]:
                # Whoever wrote it is dead: it would hold the lock.
                os.pwrite(file, _content(owner), 0)
                mine = True
                return file
            if _alive(before, owner["host"], now - os.fstat(file).st_mtime):
                raise _in_use(folder, before)
            _put_aside(folder, before, owner)
        finally:
            if not mine:
                os.close(file)
    raise ConfigError(f"--workdir={folder}: in use by many at once; choose another --workdir")


def _make(folder: Path, owner: dict[str, Any]) -> tuple[bool, float]:
    """(whether the lock came into being as this run's, time by the file system's clock)."""
    partial, path = folder / f".{LOCK}-{owner['token']}", folder / LOCK
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with open(os.open(partial, flags, 0o600), "wb") as file:
            file.write(_content(owner))
            file.flush()
            now = os.fstat(file.fileno()).st_mtime
        try:
            os.link(partial, path)
        except FileExistsError:
            return False, now
        except OSError:  # no links here
            try:
                place = os.open(path, flags, 0o600)
            except FileExistsError:
                return False, now
            with open(place, "wb") as file:
                file.write(_content(owner))
        return True, now
    finally:
        partial.unlink(missing_ok=True)


def _put_aside(folder: Path, dead: dict[str, Any], owner: dict[str, Any]) -> None:
    """Takes a dead run's lock away, for only one of several; a living one's goes back."""
    path, aside = folder / LOCK, folder / f".{LOCK}-{owner['token']}-dead"
    try:
        os.rename(path, aside)
    except FileNotFoundError:  # another was quicker
        return
    if _read(aside).get("token") != dead.get("token"):
        with contextlib.suppress(OSError):
            os.link(aside, path)
    aside.unlink()


def _sweep(folder: Path) -> None:
    """Clears away what runs left that were killed while they asked for the lock."""
    for leftover in folder.glob(f".{LOCK}-*"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > STALE:
                leftover.unlink()


def _alive(other: dict[str, Any], host: str, age: float) -> bool:
    """Whether the owner of a lock lives, as far as can be told."""
    if other.get("host") == host and isinstance(other.get("pid"), int) and other.get("born"):
        return _born(other["pid"]) == other["born"]
    return age < STALE


def _in_use(folder: Path, other: dict[str, Any]) -> ConfigError:
    kind = InUse if other.get("host", socket.gethostname()) != socket.gethostname() else ConfigError
    return kind(
        f"--workdir={folder}: in use by process {other.get('pid', '?')} on"
        f" {other.get('host', '?')} since {other.get('started', '?')}; choose another"
        f" --workdir or, if that process is gone, delete {folder / LOCK}"
    )


def _beat(folder: Path, owner: dict[str, Any], done: threading.Event) -> None:
    """Keeps the lock young, and ends the run if it is not its own any more."""
    while not done.wait(BEAT):
        touch(folder)
        try:
            now = _read(folder / LOCK).get("token")
        except FileNotFoundError:
            now = None  # somebody took it away, on the advice of a message perhaps
        except OSError:  # a server that does not answer
            continue
        if now not in (None, owner["token"]) and not done.is_set():
            text = f"m4: stopped: --workdir={folder}: another run has taken it over"
            early.end(Preempted.exit_code, early.say(text), seconds=MOMENT)


def _release(folder: Path, owner: dict[str, Any]) -> None:
    if owner["pid"] != os.getpid():  # a forked child's end is not that of the run
        return
    with contextlib.suppress(OSError):
        if _read(folder / LOCK).get("token") == owner["token"]:
            (folder / LOCK).unlink()


def close_to_others(folder: Path, option: str) -> None:
    """Lets nobody else write to a folder, which is an option's.

    Raises ConfigError for somebody else's folder in which others may plant files, and for one of
    one's own in which they could and that holds a link.
    """
    status = os.stat(folder)
    if not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.geteuid() or mode & stat.S_ISVTX:
        raise ConfigError(
            f"{option}={folder}: others may write to it (mode {mode:o}, of user {status.st_uid});"
            " choose a folder below it, or one of your own"
        )
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            if os.path.islink(os.path.join(place, name)):
                raise ConfigError(
                    f"{option}={folder}: others could write to it, and it holds a link,"
                    f" {os.path.join(place, name)}; move that away"
                )
    try:
        os.chmod(folder, mode & ~(stat.S_IWGRP | stat.S_IWOTH))
    except OSError as error:
        raise SaveError(f"{option}={folder}: others may write to it ({error.strerror})") from error
    print(f"m4: warning: {option}={folder}: others may not write to it any more", file=sys.stderr)


def _say_no_locks(folder: Path) -> None:
    print(
        f"m4: warning: --workdir={folder}: the file system has no locks (Lustre: mount it with"
        f" -o flock); a run elsewhere counts as alive for {STALE / 60:.0f} minutes",
        file=sys.stderr,
    )


def _is(path: Path, file: int) -> bool:
    """Whether a name stands for an open file."""
    try:
        there, here = os.stat(path, follow_symlinks=False), os.fstat(file)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _born(pid: int) -> str | None:
    """When a process of this host began, in ticks of its clock; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _content(owner: dict[str, Any]) -> bytes:
    """Always as long, so that one write replaces another's and nobody ever reads half of it."""
    return json.dumps(owner).encode().ljust(SIZE)


def _read(path: Path) -> dict[str, Any]:
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return _parse(file)
    finally:
        os.close(file)


def _parse(file: int) -> dict[str, Any]:
    try:
        owner = json.loads(os.pread(file, 2**16, 0))
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}
