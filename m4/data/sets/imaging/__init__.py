"""Published image cohorts of M4oE: EMBED, RSNA 2022, VinDr-Mammo and GAMMA.

**Layout only**: read on invented files, never yet on the real ones.

| layout | record | images, each a modality | tasks |
|---|---|---|---|
| `embed` | breast of an exam | synthetic 2-D, full-field; CC, MLO | density, BI-RADS, `risk_1y` |
| `rsna` | breast | CC, MLO | density, BI-RADS 0 / 1 / 2; `cancer` on request |
| `vindr` | breast of an exam | CC, MLO | density, BI-RADS 1 to 5 |
| `gamma` | pair | fundus; three slices of an OCT volume | glaucoma grade, optic cup |

Images are uint8 [1, size, size, 3]; how a DICOM file becomes one is said in `pixels.py`, what
counts as a label in each layout's file. Where m4 departs from M4oE's release: a record is one
breast, with findings joined by exam and side, where the release takes the first file of an exam
from either side (`record="exam"` for that); aspect ratios are kept (`fit="stretch"` for theirs);
a risk beyond the patient's follow-up is no label, not 0.

A file that a table lists and the disk lacks is an absent view, counted. A file that cannot be
decoded stops the build with its table's row (`unreadable="skip"` counts it as absent instead).

With `num_folds` patients are tested in turns; those of an owner's test split are in no fold. New
exams for a trained model (`--on`) are those of such a folder, with labels or without.
"""

import functools
import importlib.util
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from m4.data import split as splits
from m4.data.cohort import Cohort, Example, checksums
from m4.data.option_checks import check
from m4.data.sets.imaging import about, embed, gamma, pixels, rsna, vindr
from m4.data.sets.imaging.exam import folder as find
from m4.data.sets.imaging.exam import missing
from m4.data.sets.imaging.invented import invent  # noqa: F401
from m4.data.workers import ordered
from m4.errors import DataError
from m4.specs import DataSpec, ModalitySpec, TaskSpec

VERSION = "3"
LICENCE = "as granted by each cohort's owner; none may be passed on"
WHERE = "docs/datasets.md says where to apply for each cohort and what it costs"
DENSITY = TaskSpec(
    "density",
    "multiclass",
    dim=4,
    labels=("A", "B", "C", "D"),
    title="Breast density",
    definition="How dense the radiologist called the breast, in the four grades of BI-RADS: from "
    "A, nearly all fat, to D, extremely dense.",
)
BIRADS = "BI-RADS assessment"
LAYOUTS: dict[str, tuple[tuple[str, ...], tuple[TaskSpec, ...]]] = {
    "embed": (
        ("cview_cc", "cview_mlo", "ffdm_cc", "ffdm_mlo"),
        (
            DENSITY,
            TaskSpec(
                "birads",
                "multiclass",
                dim=3,
                labels=("negative", "benign", "suspicious"),
                title=BIRADS,
                definition="The worst assessment of the breast: 1 negative; 2 or 3 benign or "
                "probably so; 4 to 6 suspicious or proven. None where more images were asked for.",
            ),
            TaskSpec(
                "risk_1y",
                "binary",
                title="Cancer within a year",
                definition="Cancer, invasive or in situ, was proven in the patient from the exam's "
                "date to a year later; unknown where follow-up ends before.",
            ),
        ),
    ),
    "rsna": (
        ("cc", "mlo"),
        (
            DENSITY,
            TaskSpec(
                "birads",
                "multiclass",
                dim=3,
                title=BIRADS,
                definition="0: more images needed; 1: negative; 2: normal.",
            ),
            TaskSpec(
                "cancer",
                "binary",
                title="Cancer",
                definition="The breast was found to have cancer, as the competition's table says.",
            ),
        ),
    ),
    "vindr": (
        ("cc", "mlo"),
        (
            DENSITY,
            TaskSpec(
                "birads",
                "multiclass",
                dim=5,
                title=BIRADS,
                definition="Assessment of the breast agreed on by the readers, 1 to 5 (classes 0 "
                "to 4): from negative to highly suggestive of cancer.",
            ),
        ),
    ),
    "gamma": (
        ("fundus", "oct"),
        (
            TaskSpec(
                "glaucoma",
                "multiclass",
                dim=3,
                labels=("none", "early", "advanced"),
                title="Glaucoma",
                definition="Grade of the eye as the challenge gives it: none, early, or moderate "
                "to advanced.",
            ),
            TaskSpec(
                "cup",
                "segmentation",
                needs=("fundus",),
                title="Optic cup",
                definition="Which pixels of the fundus photograph belong to the optic cup.",
            ),
        ),
    ),
}
READERS = {"embed": embed, "rsna": rsna, "vindr": vindr, "gamma": gamma}
INVENTED = {layout: {"layout": layout} for layout in LAYOUTS}
ON_REQUEST = ("cancer",)
CHOICES = {"record": ("breast", "exam"), "fit": ("pad", "stretch"), "unreadable": ("stop", "skip")}
FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}
FOLDS = 5
LOOKED_AT = 2000  # images whose files are looked for before a build


def spec(
    *,
    layout: str = "embed",
    size: int = 224,
    tasks: Sequence[str] = (),
    record: str = "breast",
    fit: str = "pad",
    unreadable: str = "stop",
    fold: int = 0,
    num_folds: int = 0,
) -> DataSpec:
    """The schema of a layout.

    Args:
      layout: one of `LAYOUTS`.
      size: height and width of every image.
      tasks: names of the layout's tasks; empty for all but those of `ON_REQUEST`.
      record: "breast", or "exam" as M4oE's release (EMBED alone has the choice).
      fit: "pad" keeps the aspect ratio, "stretch" does not.
      unreadable: "stop" or "skip", see the module.
      fold: which of `num_folds` is tested (of GAMMA's the next one is the validation split).
      num_folds: of cross-validation by patient; 0 for the usual splits, of GAMMA five folds.

    Raises:
      ConfigError: one line per wrong option.
    """
    check(one=[("layout", layout, LAYOUTS)])
    names, known = LAYOUTS[layout]
    tasks_known = [task.name for task in known]
    wanted = [*tasks] or [name for name in tasks_known if name not in ON_REQUEST]
    chosen = {"record": record, "fit": fit, "unreadable": unreadable}
    usual = FOLDS if layout == "gamma" else 0
    also = splits.fold_problems(fold, num_folds or usual)
    if usual and num_folds == 2:
        also.append("data.options.num_folds: 2 leave nobody to train on, since one is validation")
    if record == "exam" and layout != "embed":
        also.append(f"data.options.record: 'exam' is for embed, not {layout}")
    check(
        one=[(name, value, CHOICES[name]) for name, value in chosen.items()],
        some=[("tasks", sorted(wanted), tasks_known)],
        least=[("size", size, 8)],
        also=also,
    )
    return DataSpec(
        tuple(
            ModalitySpec(
                name, "image", (1, size, size, 3), dtype="uint8", title=about.MODALITIES[name]
            )
            for name in names
        ),
        tuple(task for task in known if task.name in wanted),
        groups=tuple(getattr(READERS[layout], "GROUPS", ())),
        about=about.ABOUT[layout],
    )


def missing_files(raw_dir: Path | str, **options) -> list[str]:
    """One line per table, folder or package that a layout needs and is not there."""
    spec(**options)
    reader = _reader(options)
    return missing(Path(raw_dir), reader.FOLDERS, reader.TABLE, reader.NEEDS) + _packages()


def _packages() -> list[str]:
    """One line per package that is not installed."""
    lines = []
    for package, install in (("PIL", "pillow"), ("pydicom", "pydicom")):
        if importlib.util.find_spec(package) is None:
            lines.append(f"{install} is not installed: pip install 'm4-moe[images]'")
    return lines


def cohort(raw_dir: Path | str, *, seed: int, **options) -> Cohort:
    """The cohort of a layout; images are decoded while its splits are iterated.

    Raises:
      DataError: missing files; a damaged table or, while iterating, image.
    """
    data, raw_dir, reader, flow = spec(**options), Path(raw_dir), _reader(options), []
    lines = missing_files(raw_dir, **options)
    root = find(raw_dir, reader.FOLDERS, reader.TABLE)
    if lines or not root:
        raise DataError(*lines)
    exams, tables = reader.load(root, flow, record=options.get("record", "breast"))
    turn = {name: options.get(name, 0) for name in ("fold", "num_folds")}
    assign = functools.partial(_assign, seed=seed, **turn)
    parts = {name: [e for e in exams if assign(e) == name] for name in FRACTIONS}
    return _cohort(raw_dir, data, options, parts, tables, flow)


def new(
    folder: Path, resolved: Mapping[str, Any], vocabularies: Mapping[str, Sequence[str]]
) -> Cohort:
    """Other exams as the split 'new', see the module; they may lack labels.

    Raises DataError for a folder without the layout's table, and as `cohort`.
    """
    del vocabularies
    data, reader, flow = spec(**resolved), _reader(resolved), []
    roots = [place for table in reader.NEW if (place := find(folder, reader.FOLDERS, table))]
    if not roots:
        raise DataError(f"{folder}: no {' nor '.join(reader.NEW)} of the layout is there")
    if lines := _packages():
        raise DataError(*lines)
    record = resolved.get("record", "breast")
    exams, tables = reader.load(roots[0], flow, record=record, new=True)
    return _cohort(folder, data, resolved, {"new": exams}, tables, flow)


def _cohort(
    raw_dir: Path,
    data: DataSpec,
    options: Mapping[str, Any],
    parts: dict[str, list],
    tables: list[Path],
    flow: list[tuple[str, int]],
) -> Cohort:
    """The exams of every split, decoded while they are iterated."""
    reader = _reader(options)

    def examples(name: str) -> Iterator[Example]:
        lost: Counter[str] = Counter()
        read = functools.partial(
            pixels.example,
            data=data,
            fit=options.get("fit", "pad"),
            skip=options.get("unreadable") == "skip",
        )
        for example, counts in ordered(read, parts[name]):
            lost.update(counts)
            yield example
        flow.extend((f"{name}: {step}", count) for step, count in sorted(lost.items()))

    def joining() -> list[str]:
        exams = [exam for part in parts.values() for exam in part]
        listed = [(name, image.path) for exam in exams for name, image in exam.pictures.items()]
        asked = listed[:: max(len(listed) // LOOKED_AT, 1)]
        there = Counter(name for name, path in asked if path.exists())
        if not there:
            raise DataError(f"{raw_dir}: not one image that {reader.TABLE} lists is there")
        total = Counter(name for name, _ in asked)
        return [
            f"{name}: {there[name] / n:.0%} of the listed images are there (of {n} looked for)"
            for name, n in sorted(total.items())
        ]

    return Cohort(
        joining=joining,
        spec=data,
        splits={name: lambda name=name: examples(name) for name in parts},
        sources=checksums(raw_dir, tables),
        licence=f"{options.get('layout', 'embed')}: {reader.LICENCE}",
        version=VERSION,
        flow=flow,
        notes=f"layout {options.get('layout', 'embed')}; checksums are of the tables alone",
    )


def _reader(options):
    return READERS[options.get("layout", "embed")]


def _assign(exam, *, seed: int, fold: int, num_folds: int) -> str:
    """The split of an exam; '' for none."""
    if exam.split == "fold":
        number = num_folds or FOLDS
        folds = {str(k): 1 / number for k in range(number)}
        own = int(splits.assign(exam.patient, folds, seed))
        return {fold: "test", (fold + 1) % number: "val"}.get(own, "train")
    if num_folds:
        turn = {"fold": fold, "num_folds": num_folds}
        return "" if exam.split == "test" else splits.part(exam.patient, FRACTIONS, seed, **turn)
    if exam.split == "test":
        return "test"
    shares = FRACTIONS if exam.split is None else {"train": 0.85, "val": 0.15}
    return splits.assign(exam.patient, shares, seed)
