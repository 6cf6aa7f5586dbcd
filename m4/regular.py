"""Files that others wrote, opened only if they are regular and of a size that they may have.

A pipe or a device in the place of a file would be waited for, or read without end.
"""

import errno
import os
import stat
import sys
from io import BufferedReader
from pathlib import Path


def opened(path: str | Path, most: int = sys.maxsize) -> BufferedReader:
    """A file of at most `most` bytes, to be read. Links are followed.

    Raises OSError if it is not there, is no regular file (EINVAL) or is larger (EFBIG).
    """
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 (the caller closes it)
    status = os.fstat(file.fileno())
    wrong = None
    if not stat.S_ISREG(status.st_mode):
        wrong = errno.EINVAL, "is no regular file"
    elif status.st_size > most:
        wrong = errno.EFBIG, f"{status.st_size:,} bytes, the limit is {most:,}"
    if wrong:
        file.close()
        raise OSError(*wrong, str(path))
    return file


def read(path: str | Path, most: int) -> bytes:
    """What is in a file, see `opened`."""
    with opened(path, most) as file:
        return file.read()


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
