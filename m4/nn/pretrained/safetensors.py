"""The safetensors format, by its own library: nothing in such a file can be executed."""

from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save


def read(path: Path | str) -> dict[str, np.ndarray]:
    """Tensors by name; bfloat16 becomes float32, which holds it exactly.

    Raises ValueError for a file that is damaged or not of this format, OSError for one that cannot
    be opened.
    """
    try:
        with safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError) as error:  # TypeError: a dtype that NumPy lacks
        why = " ".join(str(error).split())
        raise ValueError(f"{path}: not a safetensors file, or damaged ({why})") from None
    wide = np.float32
    return {name: x.astype(wide) if x.dtype == jnp.bfloat16 else x for name, x in tensors.items()}


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
