"""The files of a study: its plan and its rows, read and never believed."""

from pathlib import Path
from typing import Any

from m4 import seal
from m4.errors import DataError, all_printable

SCHEMA = 3
# What a row says of its arm -> what the plan calls it.
OF_ARM = {"label": "label", "family": "family", "null": "null", "reference": "is"}


def read_json(path: Path) -> dict[str, Any]:
    """A sealed document, its texts printable. Raises DataError if it is damaged or absent."""
    try:
        found = seal.load(path)
    except (OSError, ValueError):
        raise DataError(f"{path}: cannot be read") from None
    if not seal.intact(found):
        raise DataError(f"{path}: has changed since it was written; delete it to run it again")
    return all_printable(found)


def read_plan(out: Path) -> dict[str, Any]:
    """What `m4.lab.runner.begin` wrote. Raises DataError as `read_json`, and for other versions."""
    if not (out / "study.json").exists():
        raise DataError(f"{out}: holds no study; --config=FILE runs one there")
    found = read_json(out / "study.json")
    if found.get("schema") != SCHEMA:
        raise DataError(f"{out}: is a study of another version of the lab; run it in another --out")
    return found


def rows(out: Path) -> list[dict[str, Any]]:
    """Every row, in the order of their names.

    Raises DataError for a damaged one, and for one that is not of this study.
    """
    whole = read_plan(out)
    plan, arms = whole.get("study"), {arm["key"]: arm for arm in whole["arms"]}
    found = {path: read_json(path) for path in sorted((out / "rows").glob("*.json"))}
    for path, row in found.items():
        if row.get("schema") != SCHEMA or row.get("study") != plan:
            raise DataError(f"{path}: is of another study or version of the lab; move it away")
        if path.stem != f"{row.get('arm')}-s{row.get('seed')}":
            raise DataError(f"{path}: holds the row of another run; delete it to run it again")
        arm = arms.get(row["arm"])
        if arm is None or any(row[own] != arm[planned] for own, planned in OF_ARM.items()):
            raise DataError(f"{path}: is of an arm that study.json does not have; move it away")
        if row["seed"] not in whole["seeds"]:
            raise DataError(f"{path}: is of a seed that study.json does not have; move it away")
    return [*found.values()]
