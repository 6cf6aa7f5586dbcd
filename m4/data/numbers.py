"""What a data set module hands over -> arrays of numbers, or a DataError that quotes nothing."""

from typing import Any

import numpy as np

from m4.errors import DataError


def array(value: Any, dtype: Any, *, where: str) -> np.ndarray:
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
        raise DataError(f"{where}: {_WORDS.get(found.dtype.kind, 'something else')}, not numbers")
    if found.dtype == wanted:
        return found
    return _whole(found, wanted, where) if wanted.kind in "iu" else _real(found, wanted, where)


_WORDS = {"U": "text", "S": "bytes", "c": "complex numbers", "M": "dates", "m": "durations"}


def _whole(found: np.ndarray, wanted: np.dtype, where: str) -> np.ndarray:
    limits = np.iinfo(wanted)
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise DataError(f"{where}: {int((~np.isfinite(found)).sum())} values are not finite")
    if found.size and not limits.min <= found.min() <= found.max() <= limits.max:
        raise DataError(f"{where}: values outside {limits.min}..{limits.max} ({wanted})")
    if found.dtype.kind == "f" and (found != np.floor(found)).any():
        raise DataError(f"{where}: values that are not whole numbers")
    return found.astype(wanted)


def _real(found: np.ndarray, wanted: np.dtype, where: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        cast = found.astype(wanted)
    lost = np.isinf(cast) & np.isfinite(found)
    if lost.any():
        raise DataError(f"{where}: {int(lost.sum())} values are too large for {wanted}")
    return cast
