"""File locks of the operating system, and what to do where a file system has none.

Lustre mounted without `-o flock`, some FUSE and object stores refuse them.
"""

import errno
import fcntl

# ENOTSUPP (524) is the kernel's own, which Python does not know.
NONE = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, 524)


def take(file: int, *, wait: bool = False) -> bool | None:
    """Whether the open `file` is locked now: False if another holds it, None without locks.

    `wait` waits for the other. Raises OSError for a broken disk.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NONE:
            return None
        raise
    return True
