"""Arrays that others wrote with NumPy: what is none ends in one line, and nothing of it is quoted.

A damaged header, member or stream can raise anything: what parses it is Python's own parser, its
zip files and its inflater.
"""

import contextlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from m4 import regular
from m4.errors import DataError


def array(path: Path) -> np.ndarray:
    """The array of a .npy file, mapped: its header cannot ask for more than there is.

    Raises DataError for a file that is no such array, or one of Python's objects.
    """
    with sound(path):
        regular.opened(path).close()  # it is opened once more by its name
        found = np.lib.format.open_memmap(path, "r")
        if not found.ndim:
            raise DataError(f"{path}: is one number, no array")
        return found


def members(
    path: Path, names: Sequence[str], check: Callable[[Sequence[int]], None] = lambda sizes: None
) -> dict[str, np.ndarray]:
    """Those of the arrays `names` that an .npz file has, read into memory.

    `check` sees the sizes of all members in bytes, as the file has them, before one is read.
    Raises DataError for a damaged file, and for one of Python's objects.
    """
    with sound(path), regular.opened(path) as file:
        with zipfile.ZipFile(file) as archive:
            check([member.file_size for member in archive.infolist()])
        file.seek(0)
        with np.load(file, allow_pickle=False) as found:
            return {name: _array(found[name]) for name in names if name in found.files}


def _array(found: object) -> np.ndarray:
    if not isinstance(found, np.ndarray):  # the bytes of a member that is none
        raise ValueError
    return found


@contextlib.contextmanager
def sound(path: Path) -> Iterator[None]:
    """Raises DataError, with the kind of the fault alone, for whatever reading arrays ends in."""
    try:
        yield
    except DataError:
        raise
    except MemoryError:
        raise DataError(f"{path}: asks for more memory than there is") from None
    except Exception as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise DataError(f"{path}: no array of plain numbers ({reason})") from None
