"""The folders that built data live in: whose they are, and one process at a time.

In a folder that others may write to, names that m4 opens can be anything: a link to a file of the
user, a pipe that is waited for without end.
"""

import contextlib
import errno
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from m4 import flock
from m4.errors import SaveError

LOCK = ".lock"
OPEN = stat.S_IWGRP | stat.S_IWOTH
ROOT = 0
NO_FILE = (errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENODEV)


def own(home: Path) -> bool:
    """Whether a folder, and a link to it, are this user's or root's. Raises OSError."""
    owners = {os.stat(home).st_uid, os.lstat(home).st_uid} - {os.geteuid(), ROOT}
    return not owners or owners == {_here(home.parent)}


def require_own(home: Path) -> None:
    """Raises SaveError for a folder of somebody else's; closes one's own to others.

    One that is not there, or not for us to look at, is no matter here.
    """
    try:
        ours, status = own(home), os.stat(home)
    except OSError:
        return
    root = status.st_uid == ROOT != os.geteuid()
    if not ours or (root and status.st_mode & OPEN):
        raise SaveError(
            f"{home}: is a folder of user {status.st_uid}, mode {stat.S_IMODE(status.st_mode):o}:"
            " built data are for their owner only, so give --config.data.dir a folder of your own"
        )
    if status.st_mode & OPEN:
        say = "others may not write to it any more"
        try:
            os.chmod(home, stat.S_IMODE(status.st_mode) & ~OPEN)
        except OSError as error:  # a file system without modes
            say = f"others may write to it ({error.strerror})"
        print(f"m4: warning: {home}: {say}", file=sys.stderr)


@contextlib.contextmanager
def locked(home: Path, doing: str) -> Iterator[None]:
    """Holds the lock of a folder; says so if it has to wait, and where there are no locks.

    `doing` says what others do meanwhile, "build". Raises SaveError if what has the lock's name is
    no file, and OSError.
    """
    path = home / LOCK
    file = _opened(path)
    try:
        held = flock.take(file)
        if held is False:
            say = f"m4: {path}: another process has it, to {doing}; waits until it is done"
            print(say, file=sys.stderr, flush=True)
            held = flock.take(file, wait=True)
        if held is None:  # the rename excludes all the same
            say = f"m4: warning: {home}: no file locks here; two processes at once both {doing}"
            print(say, file=sys.stderr)
        yield
    finally:
        os.close(file)


def _opened(path: Path) -> int:
    """A lock's file, made if need be; nothing is written to it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno in NO_FILE:
            raise _no_file(path) from error
        raise
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    raise _no_file(path)


def _no_file(path: Path) -> SaveError:
    return SaveError(f"{path}: is a link, a folder or a pipe, and must be a file; move it away")


def _here(folder: Path) -> int | None:
    """Whom a file system takes this user for: some have one user for all."""
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_uid
    return None
