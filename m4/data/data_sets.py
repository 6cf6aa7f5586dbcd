"""The data sets, found by their names: whatever in `m4/data/sets` follows `m4.data.cohort`.

A data set is a module or package with `spec` and `cohort`, or a definition in `declared/`, which
is one under its file's name. Whatever is put here is found; nothing else has to name it.
"""

import ast
import functools
import importlib
from pathlib import Path
from typing import Any

from m4 import resolve
from m4.errors import ConfigError

FOLDER = Path(__file__).parent / "sets"
WANTED = {"spec", "cohort"}


@functools.cache
def names() -> tuple[str, ...]:
    """The data sets of this folder, in the order of the alphabet; nothing is imported."""
    places = {path.stem: path for path in FOLDER.glob("*.py")}
    places |= {path.parent.name: path for path in FOLDER.glob("*/__init__.py")}
    found = [name for name, path in places.items() if _bound(path) >= WANTED]
    return tuple(sorted({*found, *_definitions()}))


def seed_of(module: Any, seed: int) -> int:
    """What of a seed a data set depends on: 0 where its rows ignore it (`SEEDED = False`)."""
    return seed if getattr(module, "SEEDED", True) else 0


def find(name: str) -> Any:
    """The data set `name`, or the importable module 'mylab.data'. See `m4.data.cohort`.

    Raises ConfigError for a name that is no data set of this folder.
    """
    if name in _definitions():
        return importlib.import_module("m4.data.sets.declared.dataset").shipped(name)
    if "." not in name and name not in names():
        raise ConfigError(f"data.name={name!r} is none of {', '.join(names())}")
    if not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"data.name={name!r} is no name of a data set or module")
    try:
        found = resolve.module(name, "m4.data.sets")
    except ModuleNotFoundError as error:
        raise ConfigError(f"data.name={name!r}: there is no module {error.name!r}") from None
    if not hasattr(found, "spec"):
        raise ConfigError(f"data.name={name!r}: the module has no function spec")
    return found


def _definitions() -> tuple[str, ...]:
    return tuple(path.stem for path in FOLDER.glob("declared/*.toml"))


def _bound(path: Path) -> set[str]:
    """Names that a module defines."""
    nodes = ast.walk(ast.parse(path.read_text()))
    stored = (n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
    functions = (n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef))
    return {*stored, *functions}
