"""Names and fields read from source text, so that a configuration can be checked before JAX.

A method's fields are the annotated assignments of its class; a data set's options are the
arguments of its `spec` function.
"""

import ast
import dataclasses
import functools
import importlib.util
from pathlib import Path
from typing import Any

from m4 import resolve

NO_DEFAULT = object()
_KINDS = {"int": int, "float": float, "bool": bool, "str": str}
_KINDS |= dict.fromkeys(("tuple", "Sequence"), tuple)
_KINDS |= dict.fromkeys(("dict", "Mapping", "FrozenDict", "flax.core.FrozenDict"), dict)


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a method class, as far as its source tells."""

    kind: type
    default: Any
    choices: tuple[str, ...]
    optional: bool


@functools.cache
def gate_names() -> tuple[str, ...]:
    """The gates of `m4.moe.gates`."""
    return resolve.public_names("m4.moe.gates")


@functools.cache
def method_names() -> tuple[str, ...]:
    """The methods in `m4.methods`: modules with a class that has a loss."""
    return tuple(n for n in _modules("m4.methods") if _method_class(f"m4.methods.{n}.model"))


@functools.cache
def data_names() -> tuple[str, ...]:
    """The data sets in `m4.data`: modules with a function `cohort`."""
    return tuple(n for n in _modules("m4.data.sets") if "cohort" in _functions(f"m4.data.sets.{n}"))


def found(name: str) -> bool:
    """Whether `pkg.mod:name` (or the module `pkg.mod`) exists, without importing the module."""
    module, _, attribute = name.rpartition(":")
    try:
        if not module:
            return "." in name and importlib.util.find_spec(name) is not None
        tree = _tree(module)
    except (ImportError, ValueError):
        return False
    return attribute in _bound_names(tree)


def method_target(name: str) -> tuple[str, str]:
    """`"fusemoe"` or `"pkg.mod:Class"` -> (module, class). Raises ValueError if there is none."""
    module, _, attribute = name.rpartition(":")
    if module:
        return module, attribute
    attribute = _method_class(f"m4.methods.{name}.model")
    if not attribute:
        raise ValueError(f"m4.methods.{name} has no class with a loss")
    return f"m4.methods.{name}.model", attribute


def method_fields(name: str) -> dict[str, Field] | None:
    """Fields of a method, or None when its source does not tell (foreign base classes)."""
    module, attribute = method_target(name)
    return _class_fields(_tree(module), attribute)


def data_options(name: str) -> dict[str, Field] | None:
    """Options of a data set, or None when it takes any."""
    spec = _functions(name if "." in name else f"m4.data.sets.{name}").get("spec")
    if spec is None or spec.args.kwarg is not None:
        return None
    arguments = (*spec.args.args, *spec.args.kwonlyargs)
    return {arg.arg: _annotated(arg.annotation, None) for arg in arguments}


def _modules(package: str) -> list[str]:
    folder = Path(importlib.util.find_spec(package).origin).parent
    names = [p.stem for p in folder.glob("*.py")] + [p.parent.name for p in folder.glob("*/*.py")]
    return sorted(set(names) - {"__init__"})


@functools.cache
def _tree(module: str) -> ast.Module:
    spec = importlib.util.find_spec(module)
    if spec is None or not str(spec.origin).endswith(".py"):
        raise ValueError(f"no module {module!r} with source text")
    return ast.parse(Path(spec.origin).read_text())


def _functions(module: str) -> dict[str, ast.FunctionDef]:
    try:
        body = _tree(module).body
    except (ImportError, ValueError):
        return {}
    return {node.name: node for node in body if isinstance(node, ast.FunctionDef)}


def _bound_names(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def _method_class(module: str) -> str | None:
    try:
        body = _tree(module).body
    except (ImportError, ValueError):
        return None
    for node in body:
        public = isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        if public and any(isinstance(n, ast.FunctionDef) and n.name == "loss" for n in node.body):
            return node.name
    return None


def _class_fields(tree: ast.Module, name: str) -> dict[str, Field] | None:
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if name not in classes:
        return None
    fields: dict[str, Field] = {}
    for base in classes[name].bases:
        text = ast.unparse(base)
        if text not in ("nn.Module", "flax.linen.Module"):
            inherited = _class_fields(tree, text)
            if inherited is None:
                return None
            fields |= inherited
    for node in classes[name].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            fields[node.target.id] = _annotated(node.annotation, node.value)
    fields.pop("data", None)
    return fields


def _annotated(annotation: ast.expr | None, default: ast.expr | None) -> Field:
    """Kind, default and choices from `name: annotation = default`."""
    options = _union(annotation) if annotation is not None else []
    optional = "None" in map(ast.unparse, options)
    options = [o for o in options if ast.unparse(o) != "None"]
    choices: tuple[str, ...] = ()
    kind: type = object
    if len(options) == 1:
        head = options[0].value if isinstance(options[0], ast.Subscript) else options[0]
        kind = _KINDS.get(ast.unparse(head), object)
        if ast.unparse(head).endswith("Literal"):
            values = ast.literal_eval(options[0].slice)
            choices = values if isinstance(values, tuple) else (values,)
            kind = str
    return Field(kind, _default(default), choices, optional)


def _union(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union(node.left) + _union(node.right)
    return [node]


def _default(node: ast.expr | None) -> Any:
    """The literal default; `object()`-like ... stands for one that only Python can compute."""
    if node is None:
        return NO_DEFAULT
    if isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        node = node.args[0]  # FrozenDict({...})
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ...
