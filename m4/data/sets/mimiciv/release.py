"""Where MIMIC-IV's tables lie, and which release they are."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from m4.data import csv_files
from m4.errors import DataError

# Version 1 keeps admissions and patients in core; linked data sets have tables at their root.
FOLDERS = ("hosp", "icu", "core", "")
ENDINGS = (".csv.gz", ".csv")
ICU = ("icustays", "chartevents", "inputevents", "procedureevents")
HOME: dict[str, str] = dict.fromkeys(ICU, "icu")
# What tells releases apart whose folder and papers do not: files that came with them.
SIGNS = {
    "1.x": ("core",),
    "2.2 or later": ("hosp/provider", "icu/caregiver"),
    "2.0 or 2.1": ("hosp/omr", "icu/ingredientevents"),
}
DEMO_MARK = "demo_subject_id.csv"


def find_root(raw_dir, *, demo: bool) -> Path | None:
    """The folder that holds `hosp/` and `icu/`, of the highest version; None if there is none.

    Looked for: `mimiciv/`, `mimic-iv*/`, a version folder below those or below `raw_dir`
    (`mimiciv/2.2/`), and `raw_dir` itself. A folder counts as the demo if its name says so or it
    holds the demo's list of subjects; demo and full data are never taken for each other.
    """
    raw_dir = Path(raw_dir)
    places = [raw_dir]
    for pattern in ("mimiciv*", "mimic-iv*", "mimiciv*/*", "mimic-iv*/*", "[0-9].[0-9]*"):
        places += sorted(p for p in raw_dir.glob(pattern) if p.is_dir())
    found = [p for p in places if (p / "hosp").is_dir() and (p / "icu").is_dir()]
    found = [p for p in found if _is_demo(p) == demo]

    def rank(place: Path) -> tuple[list[int], str]:
        return [int(part) for part in re.findall(r"\d+", version(place))] or [-1], str(place)

    return max(found, key=rank, default=None)


def _is_demo(root: Path) -> bool:
    names = f"{root.resolve().parent.name}/{root.resolve().name}".lower()
    return bool(re.search(r"mimic-?iv[^/]*demo", names)) or (root / DEMO_MARK).exists()


def version(root: Path) -> str:
    """The release, e.g. "2.2", or "unknown".

    From the folder's name, else CHANGELOG or README, else roughly from the files there are.
    """
    for name in (root.resolve().name, root.resolve().parent.name):
        if match := re.search(r"(?:^|[-_v])(\d+\.\d+(?:\.\d+)?)$", name):
            return match.group(1)
    for name in ("CHANGELOG.txt", "CHANGELOG.md", "README.txt", "README.md"):
        path = root / name
        if path.is_file():
            text = path.read_text(errors="replace")[:4000]
            if match := re.search(r"(?i)mimic-iv[^\n]{0,40}?v?(\d+\.\d+(?:\.\d+)?)", text):
                return match.group(1)
    for found, signs in SIGNS.items():
        if any((root / f"{sign}{end}").exists() for sign in signs for end in ("", *ENDINGS)):
            return found
    return "unknown"


def table(root: Path, name: str) -> Path | None:
    """The file of one table, compressed or not; None if it is not there."""
    paths = [root / folder / f"{name}{ending}" for folder in FOLDERS for ending in ENDINGS]
    return next(filter(Path.is_file, paths), None)


def need(root: Path, name: str) -> Path:
    """The file of one table. Raises DataError when it is not there."""
    path = table(root, name)
    if path is None:
        raise DataError(f"{root}: no file {name}.csv.gz")
    return path


def rows(root: Path, name: str, columns: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The rows of a table as Python values; `columns` as for `csv_files.stream`."""
    for batch in csv_files.stream(need(root, name), columns):
        yield from batch.to_pylist()


def read(root: Path, name: str, columns: dict[str, str]) -> dict[str, np.ndarray]:
    """Columns (as for `csv_files.stream`) of a small table as arrays.

    A null is -1 for a whole number and `csv_files.NEVER` for a time, which is in seconds since
    1970. Raises DataError when the file is missing or has no rows.
    """
    path = need(root, name)
    batches = list(csv_files.stream(path, columns))
    if not batches:
        raise DataError(f"{path}: no rows")
    arrays = {}
    for column, kind in columns.items():
        parts = [batch[column] for batch in batches]
        if kind == "time":
            parts = [csv_files.seconds(part) for part in parts]
        else:
            parts = [part.fill_null(-1) if kind in ("int", "whole") else part for part in parts]
            parts = [part.to_numpy(zero_copy_only=False) for part in parts]
        arrays[column] = np.concatenate(parts)
    return arrays
