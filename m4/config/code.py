"""What the code says of itself: fields of methods, options of data sets, names of functions.

Whatever a configuration names is imported here, when it is named.
"""

import dataclasses
import functools
import importlib
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from m4 import resolve
from m4.data import data_sets

METHODS, FOLDER = "m4.methods", Path(__file__).parents[1] / "methods"
FILES = {"m4": "model", "paper": "paper", "released": "released"}  # fidelity -> file of a method
SIZES = ("width", "hidden", "depth", "heads", "patch", "rank", "experts", "mlp", "size", "time")
# last words of whole numbers that are at least 1, beside num_* and top_k*


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a class or argument of a function, as its annotation and default say.

    `default` is `dataclasses.MISSING` where there is none, and ... where it is no plain value.
    """

    kind: type
    default: Any = dataclasses.MISSING
    choices: tuple[str, ...] = ()
    optional: bool = False


def layer() -> ModuleType:
    """What a configuration can say of a layer: names, sizes, and what is wrong with them."""
    return importlib.import_module("m4.moe.options")


def method_names() -> tuple[str, ...]:
    """The methods in `m4.methods`: its files, and its folders with a `model.py`."""
    names = {p.stem for p in FOLDER.glob("[!_]*.py")}
    return tuple(sorted(names | {p.parent.name for p in FOLDER.glob("*/model.py")}))


def method_modules(name: str) -> dict[str, str]:
    """Fidelity -> module of one of m4's methods."""
    folder = FOLDER / name
    if not folder.is_dir():
        return {"m4": f"{METHODS}.{name}"}
    files = {k: v for k, v in FILES.items() if (folder / f"{v}.py").is_file()}
    return {fidelity: f"{METHODS}.{name}.{file}" for fidelity, file in files.items()}


@functools.cache
def method_class(name: str, fidelity: str = "m4") -> type:
    """`"fusemoe"` or `"package.module:Class"` -> the class. Raises ValueError if it isn't one."""
    if ":" in name:
        return _require_method(name, resolve.resolve(name, METHODS))
    place = method_modules(name)[fidelity]
    for found in vars(resolve.module(place, METHODS)).values():
        own = isinstance(found, type) and found.__module__ == place
        if own and not found.__name__.startswith("_") and hasattr(found, "loss"):
            return _require_method(place, found)
    raise ValueError(f"{place} has no class with a loss")


def _require_method(name: str, found: Any) -> type:
    if isinstance(found, type) and dataclasses.is_dataclass(found) and hasattr(found, "loss"):
        return found
    raise ValueError(f"{name} is no class with fields and a loss")


def data_module(name: str) -> Any:
    """A data set (see `m4.data.cohort`). Raises ImportError or ValueError if there is none."""
    module = data_sets.find(name)
    if not hasattr(module, "spec"):
        raise ValueError(f"{name} has no function spec")
    return module


def data_options(name: str) -> dict[str, Field] | None:
    """Options of a data set, the arguments of its `spec`; None when it takes any."""
    parameters = inspect.signature(data_module(name).spec).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name: _field(p.annotation, ...) for p in parameters}


def fields(cls: type, prefix: str = "", values: Any = None) -> list[tuple[str, Field]]:
    """(path, field) of everything that a configuration can set of a method.

    The fields of a field that is itself a dataclass take its place; `values` is its default.
    """
    hints, found = typing.get_type_hints(cls, include_extras=True), []
    for field in dataclasses.fields(cls):
        if "set_by" in field.metadata or field.name in ("data", "parent", "name") and not prefix:
            continue  # set by m4, never by a configuration
        default = _default(field) if values is None else getattr(values, field.name)
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            found += fields(type(default), f"{prefix}{field.name}.", default)
        else:
            found.append((f"{prefix}{field.name}", _field(hints[field.name], default)))
    return found


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _field(annotation: Any, default: Any) -> Field:
    options = [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        options = [*typing.get_args(annotation)]
    optional = type(None) in options
    options = [o for o in options if o is not type(None)]
    kind, choices = object, ()
    if len(options) == 1:
        origin = typing.get_origin(options[0]) or options[0]
        if origin is typing.Literal:
            kind, choices = str, typing.get_args(options[0])
        elif origin in (int, float, bool, str):
            kind = origin
        elif isinstance(origin, type) and issubclass(origin, Mapping):
            kind = dict
        elif isinstance(origin, type) and issubclass(origin, Sequence):
            kind = tuple
    if isinstance(default, Mapping):
        default = dict(default)
    elif callable(default):
        default = ...
    return Field(kind, default, choices, optional)
