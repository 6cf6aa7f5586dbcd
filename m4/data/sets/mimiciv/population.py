"""Who is in the cohort: ICU stays, their labels, static features and earlier diagnoses."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from m4.data.sets.mimiciv import labels, static, windows
from m4.data.sets.mimiciv import life as lives
from m4.data.sets.mimiciv.diagnoses import Diagnoses
from m4.data.sets.mimiciv.stays import Stays
from m4.errors import DataError
from m4.specs import DataSpec

Flow = list[tuple[str, int]]


def load(
    root: Path,
    raw_dir: Path,
    data: DataSpec,
    flow: Flow,
    *,
    seed: int,
    names: tuple[str, ...],
    assign: Callable[[int], str],
    window: str,
    split_by: str,
    phenotype_file: str,
    fitted: Mapping[str, Any] | None = None,
) -> Stays:
    """Read the small tables and apply the filters of the cohort, each counted in `flow`.

    `assign` says in which of the splits `names` a unit is; `fitted` is what training took from its
    stays; without, it is taken from those in 'train'.
    """
    life, known, admissions, contradictions = lives.read(root)
    everyone = {
        "stay_id": np.unique(life.stay),
        "subject_id": np.unique([*life.subject, *admissions["subject_id"]]),
    }
    flow.append(("ICU stays", len(life)))
    flow += [(f"records: {kind}", count) for kind, count in contradictions.items() if count]
    rows = np.flatnonzero(_keep(life, known, window, flow))
    if not len(rows):
        raise DataError(f"{root}: no ICU stay passes the cohort's filters")
    life = life.take(rows)
    unit = life.stay if split_by == "stay" else life.subject
    split_n = np.array([names.index(assign(int(u))) for u in unit])
    order = np.lexsort((life.intime, life.subject, split_n))
    life = life.take(order)
    limit = windows.limits(window, life, seed)
    stays = Stays(life, unit[order], limit, split_n[order], names, static=static.static(life))
    stays.everyone = everyone
    studies: list[str] = []
    if window == "cxr":
        image_of = windows.some_image(stays, raw_dir, seed, flow)
        flow.append(("ICU stays with a frontal chest X-ray after hour 4", len(image_of)))
        stays, studies = stays.only([*image_of]), [*image_of.values()]
    life, diagnoses = stays.life, Diagnoses(root, data, phenotype_file)
    of_tables = {
        "phe": lambda: diagnoses.labels(life.hadm, "phe"),
        "diseases": lambda: diagnoses.labels(life.hadm, "diseases"),
        "readmission": lambda: labels.readmission(life, admissions),
        "drg": lambda: _drg(root, stays, fitted),
        "chexpert": lambda: labels.chexpert(raw_dir, studies),
    }
    for task in data.task_names:
        own = of_tables.get(task)
        stays.targets[task] = own() if own else labels.simple(task, life, stays.limit)
    if "history" in data.modality_names:
        stays.history = diagnoses.history(life, admissions)
    if "haim_demographics" in data.modality_names:
        stays.demographics = static.demographics(root, life, stays.static[:, 0])
    return stays


def _drg(root: Path, stays: Stays, fitted: Mapping[str, Any] | None) -> np.ndarray:
    """f64[n] of the task `drg`; its classes are left in `stays.fitted`."""
    codes = labels.drg_codes(root, stays.life.hadm)
    if fitted is None:
        train_n = stays.split == stays.splits.index("train")
        stays.fitted["drg"] = labels.drg_classes(codes, train_n)
    else:
        stays.fitted["drg"] = [*fitted["drg"]]
    return labels.drg(codes, stays.fitted["drg"])


def _keep(life: lives.Life, known: np.ndarray, window: str, flow: Flow) -> np.ndarray:
    """Filters of the cohort, bool[n], each counted in `flow`."""
    filters = [
        ("with admission and patient record", known),
        ("with ICU exit after entry", life.hours > 0),
        ("within the hospital stay", life.within_hospital),
        ("that overlap no other of the patient", None),
        ("whose patient is alive at entry", life.hours_lived[0] > 0),
        *windows.filters(window, life),
    ]
    keep = np.ones(len(life), bool)
    for step, passed in filters:
        keep &= ~life.overlapping(np.flatnonzero(keep)) if passed is None else passed
        flow.append((f"ICU stays {step}", int(keep.sum())))
    flow.append(("patients", len(np.unique(life.subject[keep]))))
    return keep
