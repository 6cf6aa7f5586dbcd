"""The files of a study that can be read without JAX: its plan and its rows."""

import json
from pathlib import Path
from typing import Any

from m4 import seal
from m4.errors import DataError


def read_json(path: Path) -> dict[str, Any]:
    """A sealed document. Raises DataError if it is damaged or absent."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DataError(f"{path}: cannot be read") from None
    if not seal.intact(found):
        raise DataError(f"{path}: has changed since it was written; delete it to run it again")
    return found


def rows(out: Path) -> list[dict[str, Any]]:
    """Every row, in the order of their names. Raises DataError for a damaged one."""
    return [read_json(path) for path in sorted((out / "rows").glob("*.json"))]
