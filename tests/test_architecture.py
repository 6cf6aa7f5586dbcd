"""The laws of the house: rooms, directions, names, sizes; each tried on a file that breaks it."""

import ast
import fnmatch
import functools
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Room -> rooms that it may import besides itself. A room is a file or a folder of m4; the longest
# name that fits counts. This is the table of docs/architecture.md.
ALLOWED = {
    "specs": set(),
    "errors": set(),
    "resolve": set(),
    "axes": set(),
    "maths": {"axes"},
    "evenness": set(),
    "cells": set(),
    "seal": {"atomic", "regular", "errors"},
    "atomic": set(),
    "regular": set(),
    "owners": set(),
    "flock": set(),
    "streams": set(),
    "cli": {"errors", "streams", "train"},
    "local": {"errors"},
    "remote": {"errors", "local", "atomic", "flock", "seal"},
    "placement": {"errors"},
    "virtual": set(),
    "types": {"specs"},
    "sharding": {"axes", "types", "errors", "placement"},
    "task_losses": {"types", "specs"},
    "moe": {"maths", "evenness", "types", "resolve", "moe.engine"},
    "moe.engine": {"maths", "types", "moe"},
    "nn": {"maths", "types", "specs", "resolve"},
    "nn.pretrained": {"maths", "types", "specs", "nn", "regular"},
    "methods": {"maths", "types", "specs", "errors", "resolve", "task_losses", "moe", "nn"}
    | {"moe.engine"},
    "data": {"specs", "types", "resolve", "errors", "cells", "seal", "atomic", "flock", "local"}
    | {"regular", "owners", "cli"},
    "data.sets": {"data", "specs", "types", "resolve", "errors", "cells", "seal", "atomic"}
    | {"local", "regular", "owners"},
    "train": {"maths", "types", "specs", "task_losses", "sharding", "errors", "seal", "atomic"}
    | {"flock", "owners", "remote"},
    "eval": {"evenness", "types", "specs", "errors", "cells", "atomic", "seal"},
    "eval.report": {"eval", "specs", "errors", "cells", "atomic", "seal"},
}  # fmt: skip
# The edge, where rooms meet and configuration objects end: may import everything below it.
EDGE = {
    "config": {"modes", "main", "bench", "interop", "run", "plan", "lab", "api", "audit", "export"},
    "run": {"modes", "main", "bench", "interop", "plan", "lab", "api", "audit", "export"},
    "plan": {"modes", "main", "bench", "interop", "lab", "api", "audit", "export"},
    "modes": {"main", "bench", "interop", "lab", "audit", "export"},
    "api": {"main", "bench", "interop", "lab"},
    "audit": {"main", "bench", "interop", "lab", "export"},
    "export": {"main", "bench", "interop", "lab", "api"},
    "lab": {"main", "bench", "interop", "audit", "export"},
    "interop": {"main", "bench"},
    "bench": {"main", "modes"},
    "main": {"bench", "interop"},
    "__main__": {"bench", "interop", "lab", "audit", "export"},
}  # room -> rooms that it may not import

# The one meaning of a name that several files have, and where they stand; any other repeat is a
# mistake. `*` is one part of the path.
SAME_NAME = {
    "model": ("m4.methods.*.model", "the method that we ship"),
    "paper": ("m4.methods.*.paper", "a method by its equations, in the paper's order"),
    "released": ("m4.methods.*.released", "a method as its authors' code has it"),
    "torch_layout": ("m4.methods.*.torch_layout", "its parameters in the authors' checkpoints"),
    "invented": ("m4.data.sets.*.invented", "invented raw files in the layout of a data set"),
    "examples": ("m4.data.sets.*.examples", "the examples of a data set, one by one"),
    "tim": ("m4.*.tim", "task interaction: its numbers in eval, its command in modes"),
    "stress": (
        "m4.*.stress|m4.eval.report.stress",
        "a split that lacks more: numbers, page, command",
    ),
    "interplay": ("m4.*.interplay", "competition in training: numbers in eval, command in modes"),
}
# (file, module imported inside a function) -> why it is not imported at the top.
LATE = {
    ("m4.main", "m4.modes"): "dispatch of commands",
    ("m4.data.csv_files", "pyarrow"): "what needs no Arrow is refused before Arrow is imported",
    ("m4.data.sets.physionet2012.archive", "pyarrow"): "the same",
    ("m4.data.sets.mimiciv.embeddings.backends", "sklearn.feature_extraction.text"): "the same",
    ("m4.modes", "m4.run.agreement"): "what needs no JAX is refused before JAX is imported",
    ("m4.modes", "m4.run.preflight"): "a report needs no JAX, and no method",
    ("m4.modes", "m4.run.trained"): "what needs no JAX is refused before JAX is imported",
    ("m4.modes", "m4.train.processes"): "what needs no JAX is refused before JAX is imported",
}
# Of optional extras: not installed everywhere.
EXTRAS = {"torch", "transformers", "onnxruntime", "tokenizers", "h5py", "nibabel", "openpyxl"}
EXTRAS |= {"mlflow", "wandb", "PIL", "pydicom", "tensorboardX", "matplotlib", "polars"}
EXTRAS |= {"gcsfs", "fsspec"}

Sources = Mapping[str, str]  # module -> its text


def read(folder: Path) -> dict[str, str]:
    """Every module of a package."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return found


SOURCES = read(ROOT / "m4")
parse = functools.cache(ast.parse)  # the same nodes for the same text


def room(module: str) -> str:
    parts = module.split(".")[1:]
    inner = ".".join(parts[:2])
    return inner if inner in ALLOWED else parts[0] if parts else ""


def imports(sources: Sources, module: str, *, top: bool = False) -> Iterator[tuple[str, ast.AST]]:
    """Every module that a module imports; with `top` only outside functions."""
    tree = parse(sources[module])
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if top and id(node) in late:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in sources else node.module), node


def ours(sources: Sources, module: str, **options) -> set[str]:
    return {name for name, _ in imports(sources, module, **options) if name in sources} - {module}


def wrong_directions(sources: Sources) -> list[str]:
    """Imports that the table forbids, and rooms that it doesn't know."""
    found = []
    for module in sources:
        own = room(module)
        if own and own not in ALLOWED and own not in EDGE:
            found.append(f"{module}: a new room, which the table must know")
            continue
        for other in sorted(ours(sources, module)):
            theirs = room(other)
            if theirs in ("", own):
                allowed = True
            elif own in EDGE:
                allowed = theirs not in EDGE[own]
            else:
                allowed = theirs in ALLOWED.get(own, ()) or not own
            siblings = own == theirs == "methods" and "." in other.removeprefix("m4.methods")
            if siblings and other.split(".")[2] != (*module.split("."), "")[2]:
                found.append(f"{module} imports the other method {other}")
            elif not allowed:
                found.append(f"{module} imports {other}: {own} may not import {theirs}")
    return found


def circles(sources: Sources) -> list[list[str]]:
    """Sets of files that import each other, also inside functions (Tarjan's components)."""
    graph = {module: sorted(ours(sources, module)) for module in sources}
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(module: str) -> None:
        number[module] = low[module] = len(number)
        stack.append(module)
        for other in graph[module]:
            if other not in number:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], number[other])
        if low[module] == number[module]:
            component = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(component) > 1:
                found.append(sorted(component))

    for module in graph:
        if module not in number:
            visit(module)
    return found


def late_imports(sources: Sources) -> list[str]:
    """Imports inside functions, but for optional extras and the list above."""
    found = []
    for module in sources:
        early = {id(node) for _, node in imports(sources, module, top=True)}
        for name, node in imports(sources, module):
            allowed = name.partition(".")[0] in EXTRAS or (module, name) in LATE
            if id(node) not in early and not allowed:
                found.append(f"{module}:{node.lineno} imports {name} inside a function")
    return found


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined(tree: ast.AST) -> set[str]:
    """Names that a file gives to something: functions, classes, fields, variables, attributes."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.id if isinstance(node, ast.Name) else node.attr)
    return found


def foreign_private_names(sources: Sources) -> list[str]:
    """Uses of what another file keeps to itself: imports, attributes, overridden methods."""
    found = []
    trees = {module: parse(text) for module, text in sources.items()}
    own = {module: defined(tree) for module, tree in trees.items()}
    theirs = set().union(*own.values())
    for module, tree in trees.items():
        folder = module.rpartition(".")[0]
        for name, node in imports(sources, module):
            parts = name.split(".")
            hidden = [i for i, part in enumerate(parts) if private(part)]
            if name in sources and any(".".join(parts[:i]) != folder for i in hidden):
                found.append(f"{module}:{node.lineno} imports {name}")
            if isinstance(node, ast.ImportFrom) and name in sources:
                found += [
                    f"{module}:{node.lineno} imports {alias.name} of {name}"
                    for alias in node.names
                    if private(alias.name) and f"{name}.{alias.name}" not in sources
                    and name == node.module
                ]  # fmt: skip
        found += [
            f"{module}:{node.lineno} uses {ast.unparse(node)}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and private(node.attr)
            and node.attr in theirs - own[module]
        ]
        for cls in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
            mine = {node.name for node in cls.body if isinstance(node, ast.FunctionDef)}
            for other in ours(sources, module):
                for base in (n for n in ast.walk(trees[other]) if isinstance(n, ast.ClassDef)):
                    if base.name in {ast.unparse(b).rpartition(".")[2] for b in cls.bases}:
                        names = {n.name for n in base.body if isinstance(n, ast.FunctionDef)}
                        both = sorted(filter(private, mine & names))
                        found += [f"{module}: {cls.name}.{name} overrides {other}" for name in both]
    return found


def repeated_names(sources: Sources) -> list[str]:
    """Files of the same name that the list doesn't know.

    A section of the report bears the name of the analysis that it shows.
    """
    places: dict[str, list[str]] = {}
    for module in sources:
        if module.startswith("m4.eval.report."):
            continue
        name = module.rpartition(".")[2]
        package = any(other.startswith(f"{module}.") for other in sources)
        if name != "__main__" and not package:
            places.setdefault(name, []).append(module)
    return [
        f"{name}: {', '.join(modules)}"
        for name, modules in sorted(places.items())
        if len(modules) > 1 and not all(known_place(module) for module in modules)
    ]


def known_place(module: str) -> bool:
    patterns = SAME_NAME.get(module.rpartition(".")[2], ("", ""))[0].split("|")
    return any(
        fnmatch.fnmatchcase(module, pattern) and module.count(".") == pattern.count(".")
        for pattern in patterns
    )


def long_functions(sources: Sources, most: int = 60) -> list[str]:
    return [
        f"{module}:{node.name} has {node.end_lineno - node.lineno + 1} lines"
        for module, text in sources.items()
        for node in ast.walk(parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > most
    ]


def forbidden_modules(sources: Sources) -> list[str]:
    """What no file of m4 may import, and what data must not: it never touches a device.

    One file has an unpickler, which makes inert objects of a fixed list of names and refuses all
    others (tests/interop/test_torch_file.py).
    """
    never = {"tensorflow", "pickle", "dill", "joblib", "marshal", "shelve"}
    return [
        f"{module} imports {name}"
        for module in sources
        for name, _ in imports(sources, module)
        if (
            name.partition(".")[0] in never
            and (module, name) != ("m4.interop.torch_file", "pickle")
        )
        or (module.startswith("m4.data") and name.startswith("jax"))
    ]


def without_an_idea(sources: Sources) -> list[str]:
    """Files whose first line doesn't say what they are."""
    return [
        module
        for module, text in sources.items()
        if text.strip() and not (ast.get_docstring(parse(text)) or "").strip()
    ]


LAWS = {
    "directions": wrong_directions,
    "circles": circles,
    "late": late_imports,
    "private": foreign_private_names,
    "repeated": repeated_names,
    "long": long_functions,
    "forbidden": forbidden_modules,
    "idea": without_an_idea,
}


@pytest.mark.parametrize("name", LAWS)
def test_the_law_holds(name):
    assert len(SOURCES) > 150 and LAWS[name](SOURCES) == []


GOOD = {
    "m4.types": '"""Types."""',
    "m4.moe.gates": '"""Gates."""\nimport m4.types\n\n\ndef _f(x):\n    return x._y\n',
    "m4.moe.layer": '"""L."""\nfrom m4.moe import gates\n\n\nclass MoE:\n    def _f(self): ...\n',
    "m4.methods.a.model": '"""A."""\nfrom m4.moe.layer import MoE\n\n\nclass A(MoE): ...\n',
    "m4.methods.b.model": '"""B."""\n\n\ndef f():\n    import torch\n',
    "m4.run.setup": '"""Setup."""\nfrom m4.methods.a import model\n',
}
BAD = {
    "directions": [
        {"m4.types": '"""T."""\nfrom m4.moe import gates\n'},
        {"m4.methods.b.model": '"""B."""\nfrom m4.methods.a.model import A\n'},
        {"m4.run.setup": '"""S."""\nimport m4.main\n', "m4.main": '"""Main."""\n'},
        {"m4.attic.x": '"""X."""\n'},
    ],
    "circles": [
        {"m4.moe.gates": '"""G."""\nfrom m4.moe import layer\n'},
        {"m4.moe.gates": '"""G."""\n\n\ndef f():\n    import m4.moe.layer\n'},
        {
            "m4.moe.gates": '"""G."""\nimport m4.moe.plan\n',
            "m4.moe.plan": '"""P."""\nfrom m4.moe.layer import MoE\n',
        },
    ],
    "late": [
        {"m4.moe.gates": '"""G."""\n\n\ndef f():\n    from m4 import types\n'},
        {"m4.moe.gates": '"""G."""\n\n\nclass A:\n    def f(self):\n        import numpy\n'},
    ],
    "private": [
        {"m4.moe.layer": '"""L."""\nfrom m4.moe.gates import _f\n'},
        {"m4.moe.layer": '"""L."""\nfrom m4.moe import gates\nx = gates._f(1)\n'},
        {"m4.methods.a.model": '"""A."""\nfrom m4.moe.layer import MoE\nMoE()._f()\n'},
        {
            "m4.methods.a.model": '"""A."""\nfrom m4.moe.layer import MoE\n\n\n'
            "class A(MoE):\n    def _f(self): ...\n"
        },
        {"m4.moe._hidden": '"""H."""', "m4.run.setup": '"""S."""\nfrom m4.moe import _hidden\n'},
    ],
    "repeated": [{"m4.nn.gates": '"""Other gates."""'}, {"m4.run.model": '"""A model."""'}],
    "long": [{"m4.moe.gates": '"""G."""\n\n\ndef f():\n' + "    x = 1\n" * 60}],
    "forbidden": [
        {"m4.moe.gates": '"""G."""\nfrom pickle import loads\n'},
        {"m4.data.store": '"""S."""\nimport jax.numpy as jnp\n'},
    ],
    "idea": [{"m4.moe.gates": "x = 1\n"}],
}


@pytest.mark.parametrize("name", LAWS)
def test_the_law_sees_what_breaks_it(name):
    law = LAWS[name]
    assert law(GOOD) == []
    for change in BAD[name]:
        assert len(law(GOOD | change)) == 1, change


def test_the_lists_hold_nothing_that_is_gone():
    for module, name in LATE:
        assert name in {found for found, _ in imports(SOURCES, module)}, (module, name)
    names = [module.rpartition(".")[2] for module in SOURCES]
    assert [name for name in SAME_NAME if names.count(name) < 2] == []
    rooms = {room(module) for module in SOURCES} - {""}
    assert rooms == {*ALLOWED, *EDGE}


def test_the_page_has_the_same_rooms():
    page = (ROOT / "docs/architecture.md").read_text()
    table = page[page.index("| room |") : page.index("## Laws")]
    named = {name.strip("/").removesuffix(".py") for name in re.findall(r"`m4/([\w/.<>]+)`", table)}
    assert {name.partition("/<")[0].replace("/", ".") for name in named} == {*ALLOWED, *EDGE}


def test_what_runs_alone_imports_nothing_of_ours():
    # It is copied into files that run where m4 is not installed.
    names = {name.partition(".")[0] for name, _ in imports(SOURCES, "m4.export.standalone")}
    assert names - set(sys.stdlib_module_names) == {"jax", "numpy"}


def test_configurations_are_differences():
    # Of experiments. A study of the lab (lab_*) is a list of axes and arms over such a base, and
    # says nothing twice that a base says.
    paths = [p for p in (ROOT / "configs").glob("*.py") if not p.name.startswith("lab_")]
    lines = sum(len(path.read_text().splitlines()) for path in paths)
    assert 300 < lines <= 700
