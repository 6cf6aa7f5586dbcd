"""What every layout's reader hands over, and reading its tables."""

import dataclasses
from pathlib import Path

from m4.data import csv_files
from m4.errors import DataError

IDENTIFIERS = ("empi_anon", "acc_anon", "patient_id", "study_id")  # written alike in every file
DENSITIES = {"A": 0, "B": 1, "C": 2, "D": 3}


@dataclasses.dataclass(frozen=True)
class Picture:
    """One image: `kind` names the function of `pixels.py` that reads it."""

    path: Path
    kind: str
    where: str  # table and line, for messages: file names carry identifiers


@dataclasses.dataclass
class Exam:
    """One record before its images are decoded.

    `split` is "train" or "test" where the owner fixed it, "fold" for cross-validation, or None.
    """

    patient: int
    pictures: dict[str, Picture]  # modality -> image
    targets: dict[str, int | None]
    split: str | None = None
    maps: dict[str, Picture] = dataclasses.field(default_factory=dict)  # segmentation task -> mask


def rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The rows of a csv file as texts, empty where a field is; DataError as `csv_files.stream`."""
    found = []
    kinds = {name: "id" if name in IDENTIFIERS else "text" for name in columns}
    for batch in csv_files.stream(path, kinds):
        found += batch.to_pylist()
    return found


def home(raw_dir: Path, patterns: tuple[str, ...], holds: str) -> Path:
    """`folder`, or a DataError if there is none."""
    found = folder(raw_dir, patterns, holds)
    if found is None:
        raise DataError(f"{raw_dir}: no {patterns[0]} folder with {holds} in it")
    return found


def folder(raw_dir: Path, patterns: tuple[str, ...], holds: str) -> Path | None:
    """The first folder below `raw_dir` that matches a pattern, or itself, and has `holds` in it."""
    places = [found for pattern in patterns for found in sorted(raw_dir.glob(pattern))]
    return next((place for place in [*places, raw_dir] if (place / holds).exists()), None)
