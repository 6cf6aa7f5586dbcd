"""A work directory belongs to one run at a time."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from m4.errors import ConfigError

STALE = 600.0  # seconds without a sign of life after which another host's lock is ignored
LOCK = "lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Creates `folder` (0700) and holds it; ConfigError if a living run holds it.

    On one host the operating system's file lock decides, so a killed run leaves nothing behind.
    A run on another host is taken for alive while its lock file is younger than ten minutes
    (`touch` keeps it young).
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = open(folder / LOCK, "a+")  # noqa: SIM115 (held for the whole run)
    except OSError as error:
        raise ConfigError(f"--workdir={folder}: cannot be used ({error.strerror})") from error
    with file:
        file.seek(0)
        owner = _parse(file.read())
        host = socket.gethostname()
        alive_elsewhere = (
            owner.get("host", host) != host and time.time() - os.stat(file.name).st_mtime < STALE
        )
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            alive_elsewhere = True
        if alive_elsewhere:
            raise ConfigError(
                f"--workdir={folder}: in use by process {owner.get('pid', '?')} on"
                f" {owner.get('host', '?')} since {owner.get('started', '?')}; choose another"
                f" --workdir or, if that process is gone, delete {folder / LOCK}"
            )
        file.truncate(0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(json.dumps({"pid": os.getpid(), "host": host, "started": started}))
        file.flush()
        try:
            yield folder
        finally:
            (folder / LOCK).unlink(missing_ok=True)


def touch(folder: Path) -> None:
    """Shows other hosts that this run is alive."""
    with contextlib.suppress(OSError):
        os.utime(folder / LOCK)


def _parse(text: str) -> dict:
    try:
        owner = json.loads(text)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}
