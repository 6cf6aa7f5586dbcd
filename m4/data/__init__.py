"""Data room: raw files -> records -> batches. NumPy only; nothing here touches a device.

`m4.data.open` is a data set from Python.
"""

import importlib
from typing import Any

__all__ = ["Dataset", "open"]  # pyright: ignore


def __getattr__(name: str) -> Any:
    """What `m4.data.opened` has, imported when it is asked for."""
    if name in __all__:
        return getattr(importlib.import_module("m4.data.opened"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
