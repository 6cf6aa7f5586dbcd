"""Checkpoints on file systems without locks.

The array store locks every file that it writes, as several processes might write one. Ours never
do: a state is written into a folder of its own, every file by one process, which gets its name
when it is whole. So where a file system has no locks the store is told to ask for none; it could
save nothing otherwise.
"""

import contextlib
import os
import tempfile
from pathlib import Path

from orbax.checkpoint._src.serialization import tensorstore_utils

from m4 import atomic, flock

NO_LOCKS = {"mode": "none"}
TRIAL = ".locks-"  # begins the name of a file that is made to be locked once
OLD = 600.0  # seconds after which such a file is nobody's


def prepare(folder: Path) -> None:
    """Makes this process save below `folder`, or where it will be, with or without locks."""
    there = next(place for place in (folder, *folder.parents) if place.is_dir())
    if _has_locks(there):
        return
    # Orbax has no option for it, and makes the store's context of these two anew for every save.
    for name in ("_BASE_TS_CONTEXT", "_DEFAULT_OCDBT_TS_CONTEXT"):
        getattr(tensorstore_utils, name)["file_io_locking"] = dict(NO_LOCKS)


def _has_locks(folder: Path) -> bool:
    try:
        file, name = tempfile.mkstemp(dir=folder, prefix=TRIAL)
    except OSError:  # whoever writes there will tell
        return True
    try:
        now = os.fstat(file).st_mtime
        with contextlib.suppress(OSError):
            os.unlink(name)  # now: nothing is left if this process is killed from here on
        atomic.sweep(folder, f"{TRIAL}*", OLD, now=now)  # of those that were killed before
        return flock.take(file) is not None
    except OSError:
        return True
    finally:
        os.close(file)
