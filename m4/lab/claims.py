"""Who runs which arm: a claim that lapses unless its holder shows that it lives.

A claim is a file made with O_EXCL, so that of any number of processes on any hosts that see the
folder one gets it. Its time stamp is renewed while the arm runs; one that has not been for `LEASE`
seconds, or whose process is gone from this host, belongs to a process that was killed and is taken
away. Two processes that both think so cannot both succeed: what is taken away is renamed, and a
file can be renamed once. Should a holder only have slept, nothing is lost: cells are written whole
and under their own name, by whoever comes.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

LEASE = 120.0  # seconds


@contextlib.contextmanager
def claimed(path: Path, lease: float = LEASE) -> Iterator[bool]:
    """Whether the claim was got; it is held, and renewed, until the block ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not _make(path):
        if not _lapsed(path, lease):
            yield False
            return
        gone = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            os.rename(path, gone)
        except FileNotFoundError:  # another was faster
            yield False
            return
        gone.unlink()
        if not _make(path):
            yield False
            return
    stop = threading.Event()
    beat = threading.Thread(target=_renew, args=(path, lease / 4, stop), daemon=True)
    beat.start()
    try:
        yield True
    finally:
        stop.set()
        beat.join()
        path.unlink(missing_ok=True)


def _make(path: Path) -> bool:
    owner = json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode()
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return False
    with open(file, "wb") as handle:
        handle.write(owner)
    return True


def _lapsed(path: Path, lease: float) -> bool:
    try:
        age = time.time() - path.stat().st_mtime
        text = path.read_text()
    except OSError:
        return False
    with contextlib.suppress(ValueError, KeyError, TypeError):  # one cut short tells its age alone
        owner = json.loads(text)
        if owner["host"] == socket.gethostname() and not _alive(int(owner["pid"])):
            return True
    return age > lease  # a pod that starts again has the host and the number of the dead one


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _renew(path: Path, every: float, stop: threading.Event) -> None:
    while not stop.wait(every):
        with contextlib.suppress(OSError):
            os.utime(path)
