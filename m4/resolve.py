"""Names in a configuration -> Python objects, without a registry."""

import ast
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def resolve(name: str, default_module: str) -> Any:
    """`"laplace"` -> `default_module.laplace`; `"mylab.gates:mine"` -> that object.

    Raises ValueError that lists the public names of `default_module` when there is none.
    """
    place, _, attribute = name.rpartition(":")
    place = place or default_module
    found = getattr(importlib.import_module(place), attribute, None)
    if found is None:
        raise ValueError(f"{place} has no {attribute!r}; it has: {', '.join(public_names(place))}")
    return found


def module(name: str, package: str) -> ModuleType:
    """`"synthetic"` -> `package.synthetic`; `"mylab.data"` -> that module."""
    return importlib.import_module(name if "." in name else f"{package}.{name}")


def public_names(name: str, kind: Callable | type = ast.FunctionDef) -> tuple[str, ...]:
    """Public top-level functions (or classes) of a module, read from its source, not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ValueError(f"no module {name!r}")
    tree = ast.parse(Path(spec.origin).read_text())
    return tuple(n.name for n in tree.body if isinstance(n, kind) and not n.name.startswith("_"))
