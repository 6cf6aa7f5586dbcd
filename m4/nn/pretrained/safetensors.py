"""The safetensors format: 8 bytes of length, a JSON header, then raw little-endian buffers.

https://github.com/huggingface/safetensors describes it. Reading maps the file; nothing in it can be
executed. bfloat16 becomes float32, which holds it exactly.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "<i1", "U8": "<u1", "BOOL": "?",
}  # fmt: skip
LIMIT = 100_000_000  # bytes of a header, as in the reference implementation


def read(path: Path | str) -> dict[str, np.ndarray]:
    """Tensors by name, read when they are used. ValueError for a file that is not of this format.

    Raises OSError if the file cannot be opened.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, LIMIT):
            raise ValueError(f"{path}: not a safetensors file (header of {length} bytes)")
        try:
            header = json.loads(file.read(length))
        except ValueError:
            raise ValueError(f"{path}: not a safetensors file (header is not JSON)") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path}: not a safetensors file (header is no dictionary)")
    header.pop("__metadata__", None)
    data = np.memmap(path, np.uint8, "r", offset=8 + length) if size > 8 + length else b""
    return {name: _tensor(path, name, about, data) for name, about in header.items()}


def write(
    tensors: Mapping[str, np.ndarray],
    path: Path | str,
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes arrays by name, in order of name; `metadata` goes into the header."""
    names = {np.dtype(code): name for name, code in DTYPES.items() if name != "BF16"}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    arrays, end = [], 0
    for name in sorted(tensors):
        x = np.ascontiguousarray(tensors[name])
        x = x.astype(x.dtype.newbyteorder("<"))
        if x.dtype not in names:
            raise ValueError(f"{name}: safetensors has no dtype {x.dtype}")
        about = {"dtype": names[x.dtype], "shape": np.shape(tensors[name])}
        header[name] = about | {"data_offsets": [end, end + x.nbytes]}
        arrays.append(x)
        end += x.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with Path(path).open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for x in arrays:
            file.write(x.tobytes())


def _tensor(path, name, about, data) -> np.ndarray:
    try:
        code, shape = about["dtype"], tuple(about["shape"])
        start, end = about["data_offsets"]
        dtype = np.dtype(DTYPES[code])
        whole = math.prod(shape) * dtype.itemsize
        if not 0 <= start <= end <= len(data) or end - start != whole:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path}: {name} is damaged or of an unknown type") from None
    if not whole:
        return np.zeros(shape, dtype)
    x = np.ndarray(shape, dtype, data[start:end])
    return (x.astype(np.uint32) << 16).view(np.float32) if code == "BF16" else x
