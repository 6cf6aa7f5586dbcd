"""Where compiled programs are kept: a folder a user and kind of machine, for all work directories.

Seeds, folds of the data and learning rates are inputs of the programs, so that a second run of a
configuration compiles nothing, whatever its work directory.
"""

import hashlib
import os
import platform
import stat
from pathlib import Path

from m4 import local

MOST_BYTES = 2 * 2**30  # from which the oldest go


def programs(work: Path) -> Path:
    """M4_CACHE, else the user's own cache; a work directory's where that cannot be trusted.

    What is loaded from there is run: the folder must be the user's, and nobody else's to write.
    """
    try:
        named = os.environ.get("M4_CACHE")
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = local.folder(named, "M4_CACHE") if named else Path(home) / "m4" / machine()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        safe = found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if safe and os.access(folder, os.W_OK):
            return folder.absolute()
    except (OSError, RuntimeError):  # no home, a full or read-only disk
        pass
    return (work / "cache").absolute()


def machine() -> str:
    """A name for processors of this kind, whose programs others could not run."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        kind = sorted({x for x in lines if x.startswith(("model name", "flags", "Features"))})
    except OSError:
        kind = [platform.processor()]
    return hashlib.sha256("\n".join([platform.machine(), *kind]).encode()).hexdigest()[:12]


def trim(folder: Path, most: int = MOST_BYTES) -> None:
    """Deletes the oldest programs until the others take at most `most` bytes."""
    sizes = {}
    for path in folder.glob("*-cache"):
        try:
            found = path.stat()
        except OSError:  # another run was faster
            continue
        sizes[path] = (found.st_mtime, found.st_size)
    total = sum(size for _, size in sizes.values())
    for path, (_, size) in sorted(sizes.items(), key=lambda item: item[1]):
        if total <= most:
            return
        path.unlink(missing_ok=True)
        total -= size
