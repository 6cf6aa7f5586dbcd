"""Who may import whom: the rooms of m4 and the direction of their imports."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "m4"
ALLOWED = {
    "specs": set(),
    "errors": set(),
    "resolve": set(),
    "maths": set(),
    "cells": set(),
    "seal": set(),
    "atomic": set(),
    "types": {"specs"},
    "sharding": {"types", "errors"},
    "task_losses": {"types", "specs"},
    "moe": {"maths", "types", "resolve"},
    "nn": {"maths", "types", "specs", "resolve"},
    "methods": {"maths", "types", "specs", "task_losses", "moe", "nn", "resolve", "errors"},
    "data": {"maths", "specs", "types", "resolve", "errors", "cells", "seal", "atomic"},
    "train": {"maths", "types", "specs", "sharding", "errors", "seal", "atomic"},
    "eval": {"maths", "types", "specs", "errors", "cells", "atomic"},
    "config": {"specs", "resolve", "errors"},
}
FREE = {"main", "modes", "run", "bench", "interop", "__init__"}  # the edge: may import everything
FILES = sorted(ROOT.rglob("*.py"))


def room(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_table(path):
    own = room(path)
    if own in FREE:
        return
    assert own in ALLOWED, f"{own} is a new room: add it to the table"
    for module in imported_modules(path):
        parts = module.split(".")
        if parts[0] != "m4" or len(parts) < 2 or parts[1].startswith("__"):
            continue
        assert parts[1] == own or parts[1] in ALLOWED[own], f"{own} must not import {module}"
        if own == "methods" and len(parts) > 2 and parts[1] == "methods":
            mine = path.relative_to(ROOT).parts[1].removesuffix(".py")
            assert parts[2] == mine, f"method {mine} imports its sibling {parts[2]}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_forbidden_modules(path):
    forbidden = {"tensorflow", "pickle", "dill", "joblib", "marshal", "shelve"}
    if room(path) == "data":
        forbidden |= {"jax.numpy"}
    for module in imported_modules(path):
        assert module not in forbidden and module.split(".")[0] not in forbidden, module


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_size_limits(path):
    tree = ast.parse(path.read_text())
    assert len(path.read_text().splitlines()) <= 400, f"{path} is longer than 400 lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{path}:{node.name} has {length} lines"
