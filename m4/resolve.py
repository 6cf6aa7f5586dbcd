"""Names in a configuration -> Python objects, without a registry."""

import ast
import difflib
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints


def resolve(name: str, default_module: str) -> Any:
    """`"laplace"` -> `default_module.laplace`; `"mylab.gates:mine"` -> that object.

    Raises ValueError that lists the public names of `default_module` when there is none.
    """
    place, _, attribute = name.rpartition(":")
    place = place or default_module
    found = getattr(importlib.import_module(place), attribute, None)
    if found is None:
        close = difflib.get_close_matches(attribute, vars(importlib.import_module(place)), 1)
        has = f"did you mean {close[0]}?" if close else f"it has: {', '.join(public_names(place))}"
        raise ValueError(f"{place} has no {attribute!r}; {has}")
    return found


def module(name: str, package: str) -> ModuleType:
    """`"synthetic"` -> `package.synthetic`; `"mylab.data"` -> that module."""
    return importlib.import_module(name if "." in name else f"{package}.{name}")


def public_names(
    name: str, kind: type[ast.FunctionDef] | type[ast.ClassDef] = ast.FunctionDef
) -> tuple[str, ...]:
    """Public top-level functions (or classes) of a module, read from its source, not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ValueError(f"no module {name!r}")
    tree = ast.parse(Path(spec.origin).read_text())
    return tuple(n.name for n in tree.body if isinstance(n, kind) and not n.name.startswith("_"))


def check_fields(instance: Any, **least: int) -> None:
    """Refuses values of a dataclass that its `Literal` annotations, or `least`, do not allow.

    `check_fields(self, depth=1)` raises ValueError for a depth below 1, and for a choice that is
    none of the field's.
    """
    for name, hint in get_type_hints(type(instance)).items():
        for choice in (hint, *get_args(hint)):  # also Literal[...] | None
            allowed = get_args(choice) if get_origin(choice) is Literal else ()
            value = getattr(instance, name) if allowed else None
            if allowed and value not in (allowed if choice is hint else (*allowed, None)):
                raise ValueError(f"{name}={value!r}; choose one of {allowed}")
    for name, low in least.items():
        if getattr(instance, name) < low:
            raise ValueError(f"{name}={getattr(instance, name)} must be at least {low}")
