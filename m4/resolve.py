"""Names in a configuration -> Python objects, without a registry."""

import ast
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any


def resolve(name: str, default_module: str) -> Any:
    """`"laplace"` -> `default_module.laplace`; `"mylab.gates:mine"` -> that object.

    Raises ValueError that lists the public names of `default_module` when there is none.
    """
    module, _, attribute = name.rpartition(":")
    module = module or default_module
    found = getattr(importlib.import_module(module), attribute, None)
    if found is None:
        raise ValueError(
            f"{module} has no {attribute!r}; it has: {', '.join(public_names(module))}"
        )
    return found


def public_names(module: str, kind: Callable | type = ast.FunctionDef) -> tuple[str, ...]:
    """Public top-level functions (or classes) of a module, read from its source, not imported."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"no module {module!r}")
    tree = ast.parse(Path(spec.origin).read_text())
    return tuple(n.name for n in tree.body if isinstance(n, kind) and not n.name.startswith("_"))
