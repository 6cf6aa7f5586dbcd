"""Mixture-of-experts core: gates, routers, balance losses, experts, dispatch.

`m4.moe.MoE` is the layer, `m4.moe.MoEOptions` what it can be.
"""

import importlib
from typing import Any

__all__ = ["MoE", "MoEOptions"]  # pyright: ignore
_HOME = {"MoE": "layer", "MoEOptions": "options"}  # their files


def __getattr__(name: str) -> Any:
    """The layer and its options, imported when they are asked for."""
    if name in _HOME:
        return getattr(importlib.import_module(f"m4.moe.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
