"""Files that are replaced at once: a reader sees the old content or the new, never half of it.

Also after a power cut: the content is on the disk before it gets its name. The name meanwhile
cannot be guessed, so nobody who may write to the folder can plant a link in its place.
"""

import contextlib
import glob
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

OLD = 3600.0  # seconds after which what a killed process left is cleared away


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; if the block ends well, that file replaces `path`."""
    sweep(path.parent, f"{glob.escape(f'.{path.name}.')}*.partial", OLD)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
    try:
        yield partial
        to_disk(partial)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # some file systems have no such thing
        to_disk(path.parent)


def write(path: Path, text: str) -> None:
    """Replaces a text file; what has no letter in UTF-8 (bytes of a file's name) is spelled out."""
    with replaced(path) as partial:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(partial, flags, 0o666), "wb") as file:
            file.write(text.encode("utf-8", errors="backslashreplace"))


def to_disk(path: Path) -> None:
    """Waits until what a file or folder holds is on the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path, pattern: str, seconds: float, *, now: float | None = None) -> None:
    """Removes files that killed processes left: those of a glob that are older than some seconds.

    `now` is the time by the file system's clock, where that is known.
    """
    now = time.time() if now is None else now
    for leftover in folder.glob(pattern):
        with contextlib.suppress(OSError):
            if now - leftover.stat().st_mtime > seconds:
                leftover.unlink()
