"""UCI Multiple Features: 2,000 handwritten digits, seen as pixels and as five sets of features.

Duin: *Multiple Features* (1998), https://archive.ics.uci.edu/dataset/72/multiple+features. No
patients: a small real multi-view task with images, for checks. The six files describe the same
digits in the same order. Pixels are counts of 0 to 6 in 2 x 3 windows, 16 rows of 15; a column of
zeros makes them square.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m4.data import split
from m4.data.cohort import Cohort, Example, checksums, home
from m4.data.option_checks import check
from m4.errors import DataError
from m4.specs import About, DataSpec, ModalitySpec, TaskSpec

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
TITLES = {
    "pix": "Pixels",
    "fou": "Fourier coefficients of the outline",
    "fac": "Profile correlations",
    "kar": "Karhunen-Loève coefficients",
    "zer": "Zernike moments",
    "mor": "Morphology",
}
PIXELS = (16, 15)
TASK = TaskSpec(
    "digit",
    "multiclass",
    dim=10,
    title="Which digit",
    definition="The digit that was written, as the data set's authors labelled it.",
)
ABOUT = About(
    title="Multiple Features: handwritten digits",
    source="Digits cut out of scanned utility maps, 200 of each, described in six ways.",
    setting="Maps of the Netherlands; no patients.",
    period="Published in 1998.",
    participants="2,000 digits; nobody knows by how many hands.",
    use="To see that a model learns from several views of one thing.",
    not_for="Anything clinical.",
    limits="Clean, small and nearly solved: any sound method is right in more than 95 of 100.",
)
FRACTIONS = {"train": 0.6, "val": 0.2, "test": 0.2}


def spec(*, views: Sequence[str] = ("pix",), fold: int = 0, num_folds: int = 0) -> DataSpec:
    """Pixels as an image [1, 16, 16, 1] in [-1, 1], other views as tables; task `digit`.

    Args:
      views: some of `VIEWS`.
      fold: which of `num_folds` is tested.
      num_folds: of cross-validation; 0 for the shares of `FRACTIONS`.

    Raises ConfigError for unknown views and folds.
    """
    check(some=[("views", views, VIEWS)], also=split.fold_problems(fold, num_folds))
    modalities = tuple(
        ModalitySpec("pix", "image", (1, 16, 16, 1), title=TITLES[view])
        if view == "pix"
        else ModalitySpec(view, "table", (size,), title=TITLES[view])
        for view, size in VIEWS.items()
        if view in views
    )
    return DataSpec(modalities, (TASK,), about=ABOUT)


def missing_files(raw_dir: Path | str, **options) -> list[str]:
    """One line per view that is not in `raw_dir/uci-mfeat`."""
    root = Path(raw_dir) / FOLDER
    paths = [_path(root, view) for view in spec(**options).modality_names]
    return [f"{path} is missing" for path in paths if not path.exists()]


def cohort(raw_dir: Path | str, *, seed: int, **options) -> Cohort:
    """Digits split 60 / 20 / 20 by a keyed hash of their number.

    Raises:
      DataError: while iterating, for a view of another shape or views whose classes differ.
    """
    data, root = spec(**options), Path(raw_dir) / FOLDER
    turn = {name: options.get(name, 0) for name in ("fold", "num_folds")}

    def examples(name: str) -> Iterator[Example]:
        for example in _examples(root, data.modality_names):
            if split.part(example["patient"], FRACTIONS, seed, **turn) == name:
                yield example

    splits = {name: lambda name=name: examples(name) for name in FRACTIONS}
    return _cohort(Path(raw_dir), data, splits, [_path(root, view) for view in data.modality_names])


def new(
    folder: Path, resolved: Mapping[str, Any], vocabularies: Mapping[str, Sequence[str]]
) -> Cohort:
    """Other digits as the split 'new', see `m4.data.apply`; their class may be lacking.

    A view whose file is not there is absent. Raises DataError if none is.
    """
    del vocabularies
    data, root = spec(**resolved), home(folder, FOLDER)
    names = [view for view in data.modality_names if _path(root, view).exists()]
    if not names:
        raise DataError(f"{root}: no {' nor '.join(f'mfeat-{v}.csv' for v in data.modality_names)}")

    def examples() -> Iterator[Example]:
        for example in _examples(root, names, labelled=False):
            yield {**example, "key": (example["patient"], None)}  # its row is all that it has

    return _cohort(folder, data, {"new": examples}, [_path(root, view) for view in names])


def _cohort(raw_dir: Path, data: DataSpec, splits, files: list[Path]) -> Cohort:
    return Cohort(
        spec=data,
        splits=splits,
        sources=checksums(raw_dir, files),
        licence=LICENCE,
        version=VERSION,
        notes="UCI Multiple Features; no patients, a row is a digit.",
    )


def _examples(root: Path, names: Sequence[str], *, labelled: bool = True) -> Iterator[Example]:
    views, label_N = _read(root, names, labelled)
    for i, label in enumerate(label_N):
        inputs = {view: {"values": values[i]} for view, values in views.items()}
        targets = {"digit": None if np.isnan(label) else int(label)}
        yield {"patient": i, "inputs": inputs, "targets": targets}


def _path(root: Path, view: str) -> Path:
    return root / f"mfeat-{view}.csv"


def _read(
    root: Path, names: Sequence[str], labelled: bool
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Values of every view and the classes, NaN where there is none, which is an error if labelled.

    Raises DataError, see `cohort`.
    """
    views, label_N = {}, None
    for view in names:
        path = _path(root, view)
        try:
            with open(path, newline="") as handle:
                head, *lines = csv.reader(handle)
            rows = np.array(lines, np.float32)
        except (ValueError, csv.Error, OSError):
            raise DataError(f"{path}: not rows of equally many numbers") from None
        if not labelled and rows.ndim == 2 and rows.shape[1] == VIEWS[view]:
            head, rows = [*head, ""], np.pad(rows, ((0, 0), (0, 1)), constant_values=np.nan)
        numbered = head[:-1] == [str(i) for i in range(len(head) - 1)]
        if head and head[0].replace(".", "").isdigit() and not numbered:
            raise DataError(f"{path}: has no header line")
        if rows.ndim != 2 or rows.shape[1] != VIEWS[view] + 1:
            raise DataError(f"{path}: {rows.shape} values, expected {VIEWS[view]} and the class")
        label_N = rows[:, -1] if label_N is None else label_N
        known_N = labelled | ~np.isnan(rows[:, -1] + label_N) if len(rows) == len(label_N) else None
        if known_N is None or (known_N & (rows[:, -1] != label_N)).any():
            raise DataError(f"{path}: not the digits of {_path(root, names[0])}")
        label_N = np.where(np.isnan(label_N), rows[:, -1], label_N)
        wrong_N = ~np.isnan(rows[:, -1]) & ~np.isin(rows[:, -1], range(TASK.dim))
        if wrong_N.any():
            raise DataError(f"{path}, line {2 + int(wrong_N.argmax())}: a class that is no digit")
        views[view] = rows[:, :-1]
    if "pix" in views:
        square = views["pix"].reshape(-1, 1, *PIXELS, 1) / 3.0 - 1.0
        views["pix"] = np.pad(square, ((0, 0),) * 3 + ((0, 1), (0, 0)), constant_values=-1.0)
    assert label_N is not None
    return views, label_N
