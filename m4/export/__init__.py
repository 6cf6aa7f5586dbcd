"""Deployment: a trained model as one file that runs with JAX and NumPy alone.

`m4.export.write(workdir, path)` makes it, `m4.export.open(path)` reads one: `docs/deployment.md`.
"""

import importlib
from typing import Any

__all__ = ["Bundle", "Refused", "open", "write"]  # pyright: ignore
_HOME = {"write": "bundle", "open": "standalone", "Bundle": "standalone", "Refused": "standalone"}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"m4.export.{_HOME[name]}")
    return home.Bundle if name == "open" else getattr(home, name)
