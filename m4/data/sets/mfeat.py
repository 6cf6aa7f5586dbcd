"""UCI Multiple Features: 2,000 handwritten digits, seen as pixels and as five sets of features.

Duin: *Multiple Features* (1998), https://archive.ics.uci.edu/dataset/72/multiple+features. No
patients: a small real multi-view task with images, for checks. The six files describe the same
digits in the same order. Pixels are counts of 0 to 6 in 2 x 3 windows, 16 rows of 15; a column of
zeros makes them square.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from m4.data import split
from m4.data.cohort import Cohort, Example, checksums
from m4.data.option_checks import check
from m4.errors import DataError
from m4.specs import DataSpec, ModalitySpec, TaskSpec

VERSION = "1"
LICENCE = "Creative Commons Attribution 4.0; cite Duin 1998"
WHERE = (
    "download the six views from https://archive.ics.uci.edu/dataset/72/multiple+features as"
    " mfeat-<view>.csv, a header line, the features, the class in the last column"
)
FOLDER = "uci-mfeat"
VIEWS = {  # view -> number of features
    "pix": 240,  # pixels
    "fou": 76,  # Fourier coefficients of the shape
    "fac": 216,  # profile correlations
    "kar": 64,  # Karhunen-Loeve coefficients
    "zer": 47,  # Zernike moments
    "mor": 6,  # morphological
}
PIXELS = (16, 15)
FRACTIONS = {"train": 0.6, "val": 0.2, "test": 0.2}


def spec(*, views: Sequence[str] = ("pix",)) -> DataSpec:
    """Pixels as an image [1, 16, 16, 1] in [-1, 1], other views as tables; task `digit`.

    Raises ConfigError for unknown views.
    """
    check(some=[("views", views, VIEWS)])
    modalities = tuple(
        ModalitySpec("pix", "image", (1, 16, 16, 1))
        if view == "pix"
        else ModalitySpec(view, "table", (size,))
        for view, size in VIEWS.items()
        if view in views
    )
    return DataSpec(modalities, (TaskSpec("digit", "multiclass", dim=10),))


def missing_files(raw_dir: Path | str, **options) -> list[str]:
    """One line per view that is not in `raw_dir/uci-mfeat`."""
    paths = [_path(Path(raw_dir), view) for view in spec(**options).modality_names]
    return [f"{path} is missing" for path in paths if not path.exists()]


def cohort(raw_dir: Path | str, *, seed: int, **options) -> Cohort:
    """Digits split 60 / 20 / 20 by a keyed hash of their number.

    Raises:
      DataError: while iterating, for a view of another shape or views whose classes differ.
    """
    data, root = spec(**options), Path(raw_dir)

    def examples(name: str) -> Iterator[Example]:
        views, label_N = _read(root, data.modality_names)
        for i, label in enumerate(label_N):
            if split.assign(i, FRACTIONS, seed) == name:
                inputs = {view: {"values": values[i]} for view, values in views.items()}
                yield {"patient": i, "inputs": inputs, "targets": {"digit": int(label)}}

    return Cohort(
        spec=data,
        splits={name: lambda name=name: examples(name) for name in FRACTIONS},
        sources=checksums(root, [_path(root, view) for view in data.modality_names]),
        licence=LICENCE,
        version=VERSION,
        notes="UCI Multiple Features; no patients, a row is a digit.",
    )


def _path(root: Path, view: str) -> Path:
    return root / FOLDER / f"mfeat-{view}.csv"


def _read(root: Path, names: Sequence[str]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    views, label_N = {}, None
    for view in names:
        path = _path(root, view)
        try:
            with open(path, newline="") as handle:
                head, *lines = csv.reader(handle)
            rows = np.array(lines, np.float32)
        except (ValueError, csv.Error, OSError):
            raise DataError(f"{path}: not rows of equally many numbers") from None
        numbered = head[:-1] == [str(i) for i in range(len(head) - 1)]
        if head and head[0].replace(".", "").isdigit() and not numbered:
            raise DataError(f"{path}: has no header line")
        if rows.ndim != 2 or rows.shape[1] != VIEWS[view] + 1:
            raise DataError(f"{path}: {rows.shape} values, expected {VIEWS[view]} and the class")
        label_N = rows[:, -1] if label_N is None else label_N
        if not np.array_equal(rows[:, -1], label_N):
            raise DataError(f"{path}: not the digits of {_path(root, names[0])}")
        views[view] = rows[:, :-1]
    if "pix" in views:
        square = views["pix"].reshape(-1, 1, *PIXELS, 1) / 3.0 - 1.0
        views["pix"] = np.pad(square, ((0, 0),) * 3 + ((0, 1), (0, 0)), constant_values=-1.0)
    assert label_N is not None
    return views, label_N
