"""The safetensors format, by its own library: nothing in such a file can be executed."""

import collections
import json
import os
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from m4 import regular

MAX_HEADER = 100_000_000  # bytes, as the library's own limit


def read(path: Path | str) -> dict[str, np.ndarray]:
    """Tensors by name; bfloat16 becomes float32, which holds it exactly.

    Raises ValueError for a file that is damaged or not of this format, OSError for one that cannot
    be opened or is no regular file.
    """
    _check_header(Path(path))
    try:
        with safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, TypeError, AttributeError, OverflowError) as error:
        # All but the first are NumPy's, of a dtype that it lacks or a shape that it cannot have.
        why = " ".join(str(error).split())
        raise ValueError(f"{path}: not a safetensors file, or damaged ({why})") from None
    wide = np.float32
    return {name: x.astype(wide) if x.dtype == jnp.bfloat16 else x for name, x in tensors.items()}


def _check_header(path: Path) -> None:
    """Raises ValueError for a name that is there twice, a header too long, a file too; OSError."""
    with regular.opened(path) as file:
        length, size = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size
        if MAX_HEADER < length <= size:
            raise ValueError(f"{path}: a header of {length:,} bytes, the limit is {MAX_HEADER:,}")
        header = file.read(length) if length <= size else b""
    twice: list[str] = []

    def unique(pairs):
        found = dict(pairs)
        if len(found) < len(pairs):
            twice.append(collections.Counter(name for name, _ in pairs).most_common(1)[0][0])
        return found

    try:
        tensors = json.loads(header, object_pairs_hook=unique)
        end = max(x["data_offsets"][1] for name, x in tensors.items() if name != "__metadata__")
        extra = size - 8 - length - end
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return  # the library says what is wrong
    if twice:
        raise ValueError(f"{path}: not a safetensors file, or damaged ({twice[0]} is there twice)")
    if extra > 0:
        raise ValueError(f"{path}: damaged: {extra} bytes follow the last tensor")


def write(
    tensors: Mapping[str, np.ndarray],
    path: Path | str,
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes arrays by name; `metadata` goes into the header. Raises ValueError for other dtypes.

    The library takes the bytes of an array as they lie in memory, so that they must be in order.
    """
    ordered = {name: np.array(x, order="C") for name, x in tensors.items()}
    lacking = [f"{name} of dtype {x.dtype}" for name, x in ordered.items() if x.dtype.kind in "OSU"]
    if lacking:
        raise ValueError(f"safetensors cannot hold {', '.join(lacking)}")
    Path(path).write_bytes(save(ordered, metadata=None if metadata is None else dict(metadata)))
