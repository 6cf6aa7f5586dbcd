"""Who was studied: patients, outcomes, groups and first values, by split and by outcome.

A feature that is 0 or 1 has a share, any other its quartiles; each has the share of patients in
whom it was observed at all. A patient with several rows counts once in shares (with any of his
rows) and by row in quartiles. Shares that stand for fewer than `min_patients` patients say so.

Letters: N rows, F features.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from m4 import cells
from m4.eval.bootstrap import number
from m4.eval.predictions import Predictions
from m4.specs import DataSpec

QUARTILES = (0.25, 0.5, 0.75)
MAX_CATEGORIES = 12  # of a group column
OTHERS = "other categories"


class Values(NamedTuple):
    """First values of one split's rows in their units, and whose they are."""

    names: list[tuple[str, str]]  # (modality, feature) of each column
    values_NF: np.ndarray  # NaN where not observed
    patient_N: np.ndarray
    groups: dict[str, np.ndarray] = {}  # column -> category of each row


def describe(
    splits: Mapping[str, Values], predictions: Predictions, spec: DataSpec, *, min_patients: int
) -> dict[str, Any] | None:
    """{features, columns: [{name, patients, rows, features: [...], groups}]}; None without values.

    A column per split and, of the last (whose rows `predictions` has), one for either outcome of
    the first task that has two, unless one of these is of few.
    """
    if not splits:
        return None
    *_, last = splits.values()
    columns = [_column(name, values, min_patients) for name, values in splits.items()]
    for task in spec.tasks:
        if task.kind != "binary" or task.name not in predictions.prediction or task.auxiliary:
            continue
        known_N = predictions.label_mask[task.name][:, 0]
        hot_N = predictions.label[task.name][:, 0] > 0
        sides = {"with": known_N & hot_N, "without": known_N & ~hot_N}
        rows = {what: predictions.uid[side_N] for what, side_N in sides.items()}
        # one side beside the whole tells of the other
        if min(len(np.unique(last.patient_N[own])) for own in rows.values()) < min_patients:
            break
        for what, own in rows.items():
            some = Values(
                last.names,
                last.values_NF[own],
                last.patient_N[own],
                {name: column[own] for name, column in last.groups.items()},
            )
            columns.append({**_column(what, some, min_patients), "task": task.name})
        break
    features = [{"modality": modality, "feature": name} for modality, name in last.names]
    return {"features": features, "columns": columns}


def _column(name: str, values: Values, smallest: int) -> dict[str, Any]:
    patients, features = len(np.unique(values.patient_N)), []
    for x_N in values.values_NF.T:
        seen_N = np.isfinite(x_N)
        known = len(np.unique(values.patient_N[seen_N]))
        row: dict[str, Any] = {"observed": _share(known, patients, smallest)}
        if known >= smallest:
            if np.isin(np.round(x_N[seen_N], 4), (0.0, 1.0)).all():
                hot = len(np.unique(values.patient_N[seen_N][x_N[seen_N] > 0.5]))
                row["share"] = _share(hot, known, smallest)
            else:
                row["quartiles"] = [number(q) for q in np.quantile(x_N[seen_N], QUARTILES)]
        features.append(row)
    few = patients < smallest
    return {
        "name": name,
        "patients": None if few else patients,
        "rows": None if few else len(values.patient_N),
        "features": features,
        "groups": {
            group: _categories(column, values.patient_N, smallest)
            for group, column in values.groups.items()
        },
    }


def _categories(column_N: np.ndarray, patient_N: np.ndarray, smallest: int) -> dict[str, str]:
    """Category -> share of patients; '' is unknown.

    Rare ones are pooled with the next smallest until they are many enough, so that none can be had
    by subtraction.
    """
    patients = len(np.unique(patient_N))

    def size(some: Sequence[str]) -> int:
        return len(np.unique(patient_N[np.isin(column_N, some)]))

    shown = sorted(map(str, np.unique(column_N)), key=lambda c: -size([c]))
    shown, pool = shown[:MAX_CATEGORIES], shown[MAX_CATEGORIES:]
    while shown and (size(shown[-1:]) < smallest or 0 < size(pool) < smallest):
        pool.append(shown.pop())
    shares = {c: _share(size([c]), patients, smallest) for c in sorted(shown)}
    return shares | ({OTHERS: _share(size(pool), patients, smallest)} if pool else {})


def _share(part: int, whole: int, smallest: int) -> str:
    return cells.share(part, whole, smallest, digits=0, unknown="–")
