"""What every layout's reader hands over: reading its tables, and records of tables that disagree.

What tables say twice and differently is no label, and an image that they place twice belongs
nowhere; both are counted in the flow.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from m4 import local
from m4.data import csv_files, identifiers
from m4.data.bands import band
from m4.data.cohort import patient_number
from m4.errors import DataError

IDENTIFIERS = ("empi_anon", "acc_anon", "patient_id", "study_id")  # written alike in every file
DENSITIES = {"A": 0, "B": 1, "C": 2, "D": 3}
VIEWS = {"CC": "cc", "MLO": "mlo"}
SIDES = ("L", "R")
TWICE = "images listed with another side, view or exam as well, left out"
NO_SIDE = "images without a side, left out"
NO_ID = "images without an identifier of a patient, exam or image, left out"
AGES = (40, 50, 60, 70)  # edges of the age bands
Row = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Picture:
    """One image: `kind` names the function of `pixels.py` that reads it."""

    path: Path
    kind: str
    where: str  # table and line, for messages: file names carry identifiers
    side: str = ""  # that the table gives, L or R


@dataclasses.dataclass
class Exam:
    """One record before its images are decoded.

    `split` is "train" or "test" where the owner fixed it, "fold" for cross-validation, or None.
    """

    patient: int
    pictures: dict[str, Picture]  # modality -> image
    targets: dict[str, int | None]
    split: str | None = None
    key: tuple[str, None, str] | None = None  # see `m4.data.index`: patient or exam, and which side
    maps: dict[str, Picture] = dataclasses.field(default_factory=dict)  # segmentation task -> mask
    groups: dict[str, str] = dataclasses.field(default_factory=dict)  # column -> category


def rows(
    path: Path,
    columns: tuple[str, ...],
    forms: dict | None = None,
    *,
    optional: Collection[str] = (),
) -> list[Row]:
    """The rows of a csv file as texts, without blanks around them and a decimal that says nothing.

    `forms` is handed to every table of a layout: it keeps how each identifier is written. A column
    of `optional` that is not there is empty.

    Raises DataError as `csv_files.stream` does.
    """
    forms = {} if forms is None else forms
    for name in {*IDENTIFIERS} & {*columns}:
        forms.setdefault(name, identifiers.Forms())
    lacking = {*optional} - {*csv_files.header(path)} if optional else {*()}
    there = [name for name in columns if name not in lacking]
    kinds = {name: "id" if name in IDENTIFIERS else "text" for name in there}
    return [
        dict.fromkeys(lacking, "")
        | {name: str(value).strip().removesuffix(".0") for name, value in row.items()}
        for batch in csv_files.stream(path, kinds, forms=forms)
        for row in batch.to_pylist()
    ]


def age_band(text: str) -> str:
    """The band of an age in years; "" for what is none."""
    try:
        return band(float(text), AGES)
    except ValueError:
        return ""


def missing(raw_dir: Path, patterns: tuple[str, ...], holds: str, needs: Mapping) -> list[str]:
    """One line per place that is not there. `needs`: place, or pattern of it -> what it holds."""
    root = folder(raw_dir, patterns, holds)
    if root is None:
        return [f"{raw_dir}: no {patterns[0].rstrip('*')}/{holds}"]
    absent = [place for place in needs if not any(root.glob(place))]
    return [f"{root / place}: missing ({needs[place]})" for place in absent]


def folder(raw_dir: Path, patterns: tuple[str, ...], holds: str) -> Path | None:
    """The first folder below `raw_dir` that matches a pattern, or itself, and has `holds` in it."""
    places = [found for pattern in patterns for found in sorted(raw_dir.glob(pattern))]
    return next((place for place in [*places, raw_dir] if (place / holds).exists()), None)


def disagreeing(table: Iterable[Row], key: Collection[str], names: Collection[str]) -> set:
    """Values of `key`'s columns whose rows differ in a column of `names`, empty fields aside."""
    said: dict[tuple, set] = {}
    for row in table:
        known = ((name, row[name]) for name in names if row[name])
        said.setdefault(tuple(row[name] for name in key), set()).update(known)
    return {who for who, facts in said.items() if len(facts) > len({name for name, _ in facts})}


def _named(names: tuple[str, ...], where: str) -> bool:
    """Whether none is empty. Raises DataError for one that leads out of its folder."""
    if not all(map(local.is_name, filter(None, names))):
        raise DataError(f"{where}: an identifier that is no name of a file")
    return "" not in names


def breasts(
    path: Path,
    read: tuple[str, ...],
    columns: tuple[str, str, str],
    *,
    place: Callable[[Row], Path],
    labels: Callable[[Row], dict[str, int | None]],
    flow: list,
    optional: Collection[str] = (),
    groups: Callable[[Row], dict[str, str]] = lambda row: {},
) -> list[Exam]:
    """The breasts of a table of images, in its order, each with its first CC and MLO image.

    Args:
      path: of the table.
      read: its columns that are read, with `laterality` and `image_id`.
      columns: of the exam, which is split; of the view; of the owner's split ("" without one).
      place: the image's file.
      labels: the labels that a row gives to its breast. Where rows differ there is none, but
        cancer that one row knows of is cancer.
      flow: takes counts.
      optional: columns that may be lacking.
      groups: the categories that a row gives to its breast; the first row's stand.
    """
    table, (exam, view, split) = rows(path, read, optional=optional), columns
    counts: Counter[str] = Counter()
    twice = disagreeing(table, (exam, "image_id"), ("laterality", view))
    torn = disagreeing(table, (exam,), (split,)) if split else set()
    found: dict[tuple[str, str], Exam] = {}
    said: dict[tuple[str, str], list[dict]] = {}
    for line, row in enumerate(table, start=2):
        key, name = (row[exam], row["laterality"]), VIEWS.get(row[view])
        if not _named((row[exam], row["image_id"]), f"{path}, line {line}"):
            counts[NO_ID] += 1
        elif (row[exam],) in torn:
            counts["images of exams in two splits, left out"] += 1
        elif (row[exam], row["image_id"]) in twice:
            counts[TWICE] += 1
        elif row["laterality"] not in SIDES:
            counts[NO_SIDE] += 1
        else:
            part = ("test" if row[split] == "test" else "train") if split else None
            who = (row[exam], None, f"{row[exam]}-{row['laterality']}")
            new = Exam(patient_number(row[exam]), {}, {}, part, who, groups=groups(row))
            breast = found.setdefault(key, new)
            said.setdefault(key, []).append(labels(row))
            if name and name not in breast.pictures:
                where = f"{path.name} line {line}"
                breast.pictures[name] = Picture(place(row), "mammogram", where, row["laterality"])
    for key, breast in found.items():
        for task in said[key][0]:
            known = {label[task] for label in said[key]} - {None}
            one = len(known) == 1 or known and task == "cancer"
            breast.targets[task] = max(known) if one else None
            counts[f"breasts with two labels of {task}"] += len(known) > 1
    flow += [("images in the table", len(table)), ("exams", len({who for who, _ in found}))]
    kept = [breast for breast in found.values() if breast.pictures]
    flow += [("breasts", len(found)), ("breasts with a CC or MLO image", len(kept))]
    flow += [(step, count) for step, count in sorted(counts.items()) if count]
    return kept
