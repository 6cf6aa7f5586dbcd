"""`python -m tests.faults.network_fs FOLDER MOUNT`: a folder as a bad network file system shows it.

What such systems do, all at once: no file locks (ENOLCK) and no hard links; a rename onto a file
that exists removes that one first; a file that is removed while it is open stays as a hidden one
beside the others until it is closed; everything takes its time.
"""

import errno
import os
import sys
import time

import mfusepy

GAP = 0.002  # seconds between the two halves of a rename


class NetworkFS(mfusepy.Operations):
    """Passes everything on to a folder; `use_ns`: times are in nanoseconds."""

    use_ns = True

    def __init__(self, root: str):
        self._root = root

    def _at(self, path: str) -> str:
        return self._root + path

    def getattr(self, path, fh=None):
        """Of a file or folder."""
        found = os.lstat(self._at(path)) if fh is None else os.fstat(fh)
        names = ("mode", "uid", "gid", "nlink", "size")
        times = {f"st_{n}time": getattr(found, f"st_{n}time_ns") for n in "acm"}
        return {f"st_{n}": getattr(found, f"st_{n}") for n in names} | times

    def readdir(self, path, fh):
        """What is in a folder."""
        return [".", "..", *os.listdir(self._at(path))]

    def open(self, path, flags):
        """A file's number."""
        return os.open(self._at(path), flags & ~os.O_NOFOLLOW)

    def create(self, path, mode, fi=None):
        """A new file's number."""
        return os.open(self._at(path), os.O_RDWR | os.O_CREAT, mode)

    def read(self, path, size, offset, fh):
        """Bytes of a file."""
        return os.pread(fh, size, offset)

    def write(self, path, data, offset, fh):
        """How many bytes were written."""
        return os.pwrite(fh, data, offset)

    def truncate(self, path, length, fh=None):
        """Cuts a file."""
        os.truncate(self._at(path) if fh is None else fh, length)

    def release(self, path, fh):
        """Closes a file."""
        os.close(fh)

    def fsync(self, path, datasync, fh):
        """To the disk."""
        os.fsync(fh)

    def fsyncdir(self, path, datasync, fh):
        """Nothing is kept back."""

    def rename(self, old, new, flags=0):
        """In two halves where there is a file already."""
        if flags:
            raise mfusepy.FuseOSError(errno.EINVAL)
        if os.path.isfile(self._at(new)):
            os.unlink(self._at(new))
            time.sleep(GAP)
        os.rename(self._at(old), self._at(new))

    def link(self, target, source):
        """There are no hard links."""
        raise mfusepy.FuseOSError(errno.EPERM)

    def flock(self, path, fh, op):
        """There are no locks."""
        raise mfusepy.FuseOSError(errno.ENOLCK)

    def lock(self, path, fh, cmd, lock):
        """There are no locks."""
        raise mfusepy.FuseOSError(errno.ENOLCK)

    def statfs(self, path):
        """Room, as of the folder."""
        found = os.statvfs(self._root)
        names = ("bavail", "bfree", "blocks", "bsize", "favail", "ffree", "files", "flag")
        return {f"f_{n}": getattr(found, f"f_{n}") for n in (*names, "frsize", "namemax")}

    def utimens(self, path, times=None):
        """Sets times."""
        os.utime(self._at(path), ns=times)

    def chmod(self, path, mode):
        """Sets permissions."""
        os.chmod(self._at(path), mode)

    def mkdir(self, path, mode):
        """A new folder."""
        os.mkdir(self._at(path), mode)

    def rmdir(self, path):
        """Removes a folder."""
        os.rmdir(self._at(path))

    def unlink(self, path):
        """Removes a file."""
        os.unlink(self._at(path))

    def symlink(self, target, source):
        """A link called `target` to `source`."""
        os.symlink(source, self._at(target))

    def readlink(self, path):
        """Where a link leads."""
        return os.readlink(self._at(path))


if __name__ == "__main__":
    mfusepy.FUSE(NetworkFS(sys.argv[1]), sys.argv[2], foreground=True)
