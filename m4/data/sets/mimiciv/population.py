"""Who is in the cohort: ICU stays, their labels, static features and earlier diagnoses."""

from pathlib import Path

import numpy as np

from m4.data import split
from m4.data.sets.mimiciv import life as lives
from m4.data.sets.mimiciv import static, windows
from m4.data.sets.mimiciv.diagnoses import Diagnoses
from m4.data.sets.mimiciv.labels import Labels
from m4.data.sets.mimiciv.stays import Stays
from m4.errors import DataError
from m4.specs import DataSpec

Flow = list[tuple[str, int]]


def load(
    root: Path,
    data: DataSpec,
    *,
    seed: int,
    fractions: dict[str, float],
    flow: Flow,
    window: str,
    split_by: str,
    phenotype_file: str,
    raw_dir: Path,
) -> Stays:
    """Read the small tables and apply the filters of the cohort, each counted in `flow`."""
    life, known, admissions = lives.read(root)
    rows = np.flatnonzero(_keep(life, known, window, flow))
    if not len(rows):
        raise DataError(f"{root}: no ICU stay passes the cohort's filters")
    life = life.take(rows)
    unit = life.stay if split_by == "stay" else life.subject
    names = tuple(fractions)
    split_n = np.array([names.index(split.assign(int(u), fractions, seed)) for u in unit])
    order = np.lexsort((life.intime, life.subject, split_n))
    life = life.take(order)
    stays = Stays(
        life=life,
        unit=unit[order],
        limit=windows.limits(window, life, seed),
        split=split_n[order],
        splits=names,
        targets={},
        static=static.static(life),
        history=[],
    )
    image_of: dict[int, str] = {}
    if window == "cxr":
        image_of = windows.some_image(stays, raw_dir, seed)
        flow.append(("ICU stays with a frontal chest X-ray after hour 4", len(image_of)))
        stays = stays.only([*image_of])
    diagnoses = Diagnoses(root, data, phenotype_file)
    labels = Labels(
        root,
        raw_dir,
        stays.life,
        stays.limit,
        train=stays.split == names.index("train"),
        admissions=admissions,
        diagnoses=diagnoses,
        studies=[*image_of.values()],
    )
    stays.targets = {task: labels(task) for task in data.task_names}
    if "history" in data.modality_names:
        stays.history = diagnoses.history(stays.life, admissions)
    if "haim_demographics" in data.modality_names:
        stays.demographics = static.demographics(root, stays.life, stays.static[:, 0])
    return stays


def _keep(life: lives.Life, known: np.ndarray, window: str, flow: Flow) -> np.ndarray:
    """Filters of the cohort, bool[n], each counted in `flow`."""
    filters = [
        ("with admission and patient record", known),
        ("with ICU exit after entry", life.timed & (life.hours > 0)),
        *windows.filters(window, life),
    ]
    flow.append(("ICU stays", len(life)))
    keep = np.ones(len(life), bool)
    for step, passed in filters:
        keep &= passed
        flow.append((f"ICU stays {step}", int(keep.sum())))
    flow.append(("patients", len(np.unique(life.subject[keep]))))
    return keep
