"""What every layout's reader hands over, and reading its tables."""

import dataclasses
import hashlib
from pathlib import Path

from m4.data.mimiciv import files

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
    """The rows of a csv file as texts, empty where a field is; DataError as `files.stream`."""
    found = []
    for batch in files.stream(path, dict.fromkeys(columns, "text")):
        found += batch.to_pylist()
    return found


def number(text: str) -> int:
    """A patient's identifier as an integer: itself, or a hash of 63 bits."""
    text = text.strip()
    if text.isdecimal() and len(text) < 18:
        return int(text)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def folder(raw_dir: Path, patterns: tuple[str, ...], holds: str) -> Path | None:
    """The first folder below `raw_dir` that matches a pattern, or itself, and has `holds` in it."""
    places = [found for pattern in patterns for found in sorted(raw_dir.glob(pattern))]
    return next((place for place in [*places, raw_dir] if (place / holds).exists()), None)
