"""A work directory belongs to one run at a time.

The lock is a file that holds a token of its owner. It comes into being with its content (a link),
which only one of several can make on any file system, and is taken away by its owner alone:

* within one start of one machine, below one mount, the operating system's file lock decides who
  may, so a killed run blocks nobody; whoever has it looks whether the file is still the one in the
  folder, and begins again if not;
* where file locks tell nothing (of another machine or mount, or where there are none) a process
  that can be seen from here lives or does not (`m4.owners`);
* of any other a run is taken for alive while its file is younger than ten minutes. A thread keeps
  it young, also during a long compilation. Ages are told by the file system's clock. Whoever finds
  such a lock waits for a sign of life, and is refused at the first; without one the lock is taken
  over when it is old enough, or has not changed for ten minutes.

Of several that would take a dead run's lock away one may, who has claimed it: by a file that is
named by the lock's content and comes into being once. After a claimant that died there is a next.

A run whose lock was taken over while it was held up ends itself at once.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import secrets
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m4 import atomic, flock, owners
from m4.errors import ConfigError, Preempted, SaveError
from m4.train import early

STALE = 600.0  # seconds without a sign of life after which another host's lock is ignored
BEAT = 20.0  # seconds between signs of life
POLL = 2.0  # seconds between looks at another host's lock
TRIES = 1000  # of a lock that goes away at every look
LOOK = 0.01  # seconds that another's look at one's own lock may take
MOMENT = 1.0  # second for saying that the run has ended
LOCK = "lock"
GONE = "was removed or replaced while a run had it; what that wrote is not whole, so begin again"
SIZE = 1024  # bytes
MOST = 2**16  # bytes that are read of it
OTHERS = stat.S_IWGRP | stat.S_IWOTH
Sign = tuple[bytes, int]  # of life: a lock's content and the time of its last change [ns]


class InUse(ConfigError):
    """A run of which nobody here can tell that it is dead holds the folder: retry."""

    exit_code = Preempted.exit_code


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Creates `folder` (0700) and holds it; ConfigError if a living run holds it.

    Raises InUse if that is not known to live, and seems to; SaveError where nothing can be
    written, or if the folder went while it was held. Of a run that seems to live it waits for a
    sign of life, or until it counts as dead. A folder of one's own that others may write to is
    closed to them; somebody else's is refused.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigError(f"--workdir={folder}: cannot be used ({error.strerror})") from error
    close_to_others(folder, "--workdir")
    try:
        owner = owners.own() | {
            "mount": os.stat(folder).st_dev,
            "started": time.strftime("%Y-%m-%d %H:%M:%S"),
            "token": secrets.token_hex(8),
        }
        file, place = _in_turn(folder, owner), _place(folder)
        # What runs left that were killed while they asked for the lock.
        atomic.sweep(folder, f".{LOCK}-*", STALE, now=os.fstat(file).st_mtime)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        raise ConfigError(f"--workdir={folder}: cannot be used ({error.strerror})") from error
    done = threading.Event()
    beat = threading.Thread(target=_beat, args=(folder, owner, file, place, done), daemon=True)
    beat.start()
    try:
        with early.farewell(lambda: _release(folder, owner)):
            yield folder
        if not (folder / LOCK).exists() and _place(folder) != place:
            raise SaveError(f"--workdir={folder}: {GONE}")
    finally:
        done.set()
        beat.join()
        _release(folder, owner)
        os.close(file)


def let_go(folder: Path) -> None:
    """Gives up this process's lock, for one that is about to end without a farewell."""
    with contextlib.suppress(OSError):
        owner = _read(folder / LOCK)
        if owners.own().items() <= owner.items():
            _release(folder, owner)


def require_name(folder: Path) -> None:
    """Raises ConfigError for a path in which Orbax saves what it cannot read back."""
    text = str(folder.absolute())
    if "\\" in text or re.search(r"\[[^/]*\]", text) or not _encodable(text):
        raise ConfigError(
            f"--workdir={ascii(text)[1:-1]}: checkpoints cannot be kept below a name with a"
            " backslash, brackets [...] or bytes that are not UTF-8; choose another"
        )


def _in_turn(folder: Path, owner: dict[str, Any]) -> int:
    """`_acquire`, waiting for a run as long as it is not known whether that lives.

    A lock that has not changed for `STALE` seconds is a dead one's, whatever its time.
    """
    seen: Sign | None = None
    end = None
    while True:
        late = end is not None and time.monotonic() > end
        try:
            return _acquire(folder, owner, dead=seen if late else None)
        except InUse as error:
            now = _sign_of_life(folder)
            if late or (seen and now not in (None, seen)):
                raise
            if end is None:
                what, _, remedy = error.args[0].partition("; ")
                wait = f"waits for a sign of life of it, {STALE / 60:.0f} minutes at most"
                print(f"m4: {what}; {wait}; not to wait, {remedy}", file=sys.stderr, flush=True)
                end = time.monotonic() + STALE
            seen = seen or now
        time.sleep(POLL)


def _acquire(folder: Path, owner: dict[str, Any], dead: Sign | None = None) -> int:
    """The open lock file, which is this run's. Raises ConfigError if another run's is alive.

    `dead` is a lock whose owner has given no sign of life for long enough.
    """
    path = folder / LOCK
    for _ in range(TRIES):
        _make(folder, owner)
        try:
            file = _open(path, os.O_RDWR)
        except FileNotFoundError:  # released meanwhile
            continue
        mine = False
        try:
            held, seen = flock.take(file), _sign(file)
            before = parse(seen[0])
            own = before.get("token") == owner["token"]
            here = owners.same_kernel(before)
            if held is False and own:  # another looks whose it is
                time.sleep(LOOK)
                continue
            if held is False:  # by a process that can be seen from here, if it says nothing else
                raise _in_use(folder, before, known=here or not before)
            if not _is(path, file):  # released, and perhaps another's, meanwhile
                continue
            if own:
                if held is None:
                    _say_no_locks(folder)
                mine = True
                return file
            if held and here and before.get("mount") == owner["mount"]:
                # Whoever wrote it is dead: it would hold the lock.
                os.pwrite(file, _content(owner), 0)
                if mine := _is(path, file):  # not cleared away from elsewhere
                    return file
                continue
            lives = owners.lives(before)
            young = lives is None and seen != dead and _now(folder, owner) - seen[1] < STALE * 1e9
            if lives or young or not _clear_away(folder, seen, owner):
                raise _in_use(folder, before, known=bool(lives))
        finally:
            if not mine:
                os.close(file)
    raise ConfigError(f"--workdir={folder}: in use by many at once; choose another --workdir")


def _make(folder: Path, owner: dict[str, Any]) -> None:
    """Makes the lock this run's, unless there is one."""
    partial, path = folder / f".{LOCK}-{owner['token']}", folder / LOCK
    if os.path.lexists(path):
        return
    try:
        _create(partial, owner)
        try:
            os.link(partial, path)
        except FileExistsError:
            return
        except OSError:  # no links here
            _create(path, owner)
    finally:
        partial.unlink(missing_ok=True)


def _create(path: Path, owner: dict[str, Any]) -> bool:
    """Whether a file came into being as this run's; there may be one of the name."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        place = os.open(path, flags, 0o600)
    except FileExistsError:
        return False
    try:
        with open(place, "wb") as file:
            file.write(_content(owner))
            file.flush()
            os.fsync(file.fileno())  # a power cut would leave the name alone
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return True


def _now(folder: Path, owner: dict[str, Any]) -> int:
    """Time by the file system's clock [ns]."""
    fresh = folder / f".{LOCK}-{owner['token']}"
    try:
        _create(fresh, owner)
        return os.stat(fresh).st_mtime_ns
    finally:
        fresh.unlink(missing_ok=True)


def _clear_away(folder: Path, dead: Sign, owner: dict[str, Any]) -> bool:
    """Takes a dead run's lock away if it is still that; False if another is about to.

    Between the last look and the removal only its owner, come back to life, could do something.
    """
    name = hashlib.sha256(dead[0]).hexdigest()[:16]
    claims = (folder / f".{LOCK}-{name}-{turn}" for turn in itertools.count())
    for claim in claims:
        if _create(claim, owner):
            break
        if _claimed(claim, _now(folder, owner)):
            return False
    with contextlib.suppress(FileNotFoundError):  # another has swept, or let go
        if _read(claim).get("token") == owner["token"]:
            try:
                if not os.path.lexists(next(claims)) and _sign_of_life(folder) == dead:
                    (folder / LOCK).unlink(missing_ok=True)
            finally:
                claim.unlink(missing_ok=True)
    return True


def _claimed(claim: Path, now: int) -> bool:
    """Whether who made a claim may still act on it."""
    try:
        content, then = _sign_at(claim)
    except FileNotFoundError:  # has just done so
        return True
    lives = owners.lives(parse(content))
    return abs(now - then) < STALE * 1e9 if lives is None else lives


def _in_use(folder: Path, other: dict[str, Any], *, known: bool) -> ConfigError:
    """`known`: it lives for certain."""
    who = "a run that its lock does not name"
    if "pid" in other:
        who = f"process {other['pid']} on {other.get('host', '?')}"
        who += f" since {other.get('started', '?')}"
    return (ConfigError if known else InUse)(
        f"--workdir={folder}: in use by {who}; choose another --workdir or, if that process is"
        f" gone, delete {folder / LOCK}"
    )


def _beat(
    folder: Path,
    owner: dict[str, Any],
    file: int,
    place: tuple[int, int] | None,
    done: threading.Event,
) -> None:
    """Keeps the lock young, and ends the run if the folder is not its own any more, or is gone."""
    said = False
    while not done.wait(BEAT):
        if not _show_life(file, owner) and not said:
            said = True
            _say_no_times(folder)
        try:
            now = _read(folder / LOCK).get("token")
        except FileNotFoundError:
            now = None  # somebody took it away, on the advice of a message perhaps
        except OSError:  # a server that does not answer
            continue
        if now not in (None, owner["token"]) and not done.is_set():
            text = f"m4: stopped: --workdir={folder}: another run has taken it over"
            early.end(Preempted.exit_code, early.say(text), seconds=MOMENT)
        if now is None and _place(folder) != place and not done.is_set():
            text = f"m4: stopped: --workdir={folder}: {GONE}"
            early.end(SaveError.exit_code, early.say(text), seconds=MOMENT)


def _place(folder: Path) -> tuple[int, int] | None:
    """What a folder is known by, whatever its name; None if it is gone."""
    try:
        status = os.stat(folder)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _show_life(file: int, owner: dict[str, Any]) -> bool:
    """Shows those elsewhere that this run is alive; False if its lock stays as old as it was.

    Where times cannot be set the same content is written again.
    """
    try:
        before = os.fstat(file).st_mtime_ns
        with contextlib.suppress(OSError):
            os.utime(file)
        if os.fstat(file).st_mtime_ns == before:
            os.pwrite(file, _content(owner), 0)
            os.fsync(file)
        return os.fstat(file).st_mtime_ns != before
    except OSError:  # a full disk, a server that does not answer: the next beat may tell
        return True


def _release(folder: Path, owner: dict[str, Any]) -> None:
    if owner["pid"] != os.getpid():  # a forked child's end is not that of the run
        return
    with contextlib.suppress(OSError):
        if _read(folder / LOCK).get("token") == owner["token"]:
            (folder / LOCK).unlink()


def close_to_others(folder: Path, option: str) -> None:
    """Lets nobody else write to a folder, which is an option's, nor to what it holds.

    Raises ConfigError for somebody else's folder in which others may plant files, and for one of
    one's own in which they could and that holds a link or something that is another's; SaveError
    where it cannot be closed.
    """
    status = os.stat(folder)
    if not status.st_mode & OTHERS:
        return
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.geteuid() or mode & stat.S_ISVTX:
        raise ConfigError(
            f"{option}={folder}: others may write to it (mode {mode:o}, of user {status.st_uid});"
            " choose a folder below it, or one of your own"
        )
    try:
        # Nobody may go in while it is looked through; that they may write to it tells the next run
        # to look, should this one be killed meanwhile.
        os.chmod(folder, mode & ~(stat.S_IXGRP | stat.S_IXOTH))
        try:
            _close_below(folder, option)
            mode &= ~OTHERS
        finally:
            os.chmod(folder, mode)
    except OSError as error:
        raise SaveError(f"{option}={folder}: others may write to it ({error.strerror})") from error
    text = "others may not write to it any more, nor to what it holds"
    print(f"m4: warning: {option}={folder}: {text}", file=sys.stderr)


def _close_below(folder: Path, option: str) -> None:
    """Closes each folder before it is looked into."""

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # a living run's own
            raise error

    for place, folders, files in os.walk(folder, onerror=fail):
        for path in (os.path.join(place, name) for name in (*folders, *files)):
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(path)
                what = "a link" if stat.S_ISLNK(status.st_mode) else ""
                if status.st_uid != os.geteuid():
                    what = what or f"what is of user {status.st_uid}"
                if what:
                    raise ConfigError(
                        f"{option}={folder}: others could write to it, and it holds {what},"
                        f" {path}; move that away"
                    )
                if status.st_mode & OTHERS:
                    os.chmod(path, stat.S_IMODE(status.st_mode) & ~OTHERS)


def _say_no_locks(folder: Path) -> None:
    print(
        f"m4: warning: --workdir={folder}: the file system has no locks (Lustre: mount it with"
        f" -o flock); a run elsewhere counts as alive for {STALE / 60:.0f} minutes",
        file=sys.stderr,
    )


def _say_no_times(folder: Path) -> None:
    print(
        f"m4: warning: --workdir={folder}: the file system keeps no time of the last change: to a"
        f" run elsewhere this one looks dead after {STALE / 60:.0f} minutes; start none there",
        file=sys.stderr,
    )


def _is(path: Path, file: int) -> bool:
    """Whether a name stands for an open file."""
    try:
        there, here = os.stat(path, follow_symlinks=False), os.fstat(file)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _content(owner: dict[str, Any]) -> bytes:
    """Always as long, so that one write replaces another's and nobody ever reads half of it."""
    return json.dumps(owner).encode().ljust(SIZE)


def _open(path: Path, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)


def _sign(file: int) -> Sign:
    return os.pread(file, MOST, 0), os.fstat(file).st_mtime_ns


def _sign_at(path: Path) -> Sign:
    file = _open(path, os.O_RDONLY)
    try:
        return _sign(file)
    finally:
        os.close(file)


def _sign_of_life(folder: Path) -> Sign | None:
    """What changes in a lock while its owner lives; None if it went meanwhile."""
    try:
        return _sign_at(folder / LOCK)
    except FileNotFoundError:
        return None


def _read(path: Path) -> dict[str, Any]:
    return parse(_sign_at(path)[0])


def parse(content: bytes) -> dict[str, Any]:
    """What a lock says; nothing if it is damaged."""
    try:
        owner = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) else {}
