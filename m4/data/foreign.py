"""Arrays that others made: what is none ends in one line, and nothing of it is quoted.

A damaged header, member or stream can raise anything: what parses it is Python's own parser, its
zip files and its inflater.
"""

import contextlib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m4 import regular
from m4.data import csv_files
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
        reason = csv_files.reason(error)
        raise DataError(f"{path}: no array of plain numbers ({reason})") from None


def numbers(value: Any, dtype: Any, *, where: str) -> np.ndarray:
    """`value` as an array of `dtype` that holds the same numbers.

    None counts as NaN. Raises DataError, with `where` in front, for text and other things that
    are no numbers, lists of different lengths, and numbers that `dtype` cannot hold.
    """
    wanted = np.dtype(dtype)
    try:
        found = np.asarray(value)
        if found.dtype.kind == "O":
            flat = found.ravel().tolist()
            if not all(x is None or isinstance(x, int | float | np.number) for x in flat):
                raise TypeError
            found = found.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{where}: not an array of numbers") from None
    if found.dtype.kind not in "biuf":
        raise DataError(f"{where}: {_KINDS.get(found.dtype.kind, 'something else')}, not numbers")
    if wanted.kind in "iu":
        limits, finite = np.iinfo(wanted), np.isfinite(found)
        if not finite.all():
            raise DataError(f"{where}: {int((~finite).sum())} values are not finite")
        if found.size and not limits.min <= found.min() <= found.max() <= limits.max:
            raise DataError(f"{where}: values outside {limits.min}..{limits.max} ({wanted})")
        if (found != np.floor(found)).any():
            raise DataError(f"{where}: values that are not whole numbers")
    with np.errstate(over="ignore"):
        cast = found.astype(wanted, copy=False)
    lost = np.isinf(cast) & np.isfinite(found)
    if lost.any():
        raise DataError(f"{where}: {int(lost.sum())} values are too large for {wanted}")
    return cast


_KINDS = {"U": "text", "S": "bytes", "c": "complex numbers", "M": "dates", "m": "durations"}
