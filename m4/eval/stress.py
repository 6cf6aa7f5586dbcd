"""How scores change when a split lacks more, or is measured otherwise, than it was: `stress.json`.

Schema (version 1). `E` as in `m4.eval.results`:

    schema        1
    split         'test'
    rows, patients, bootstrap, min_patients, parameters   as there
    tasks         {task: {metric, patients}}
    whole         {task: E}             of the split as it is
    conditions    [{kind, rate, lost: share of what is present that goes missing,
                    emptied: rows left with nothing, null if few,
                    tasks: {task: {score: E, drop: E}}}]
    left_out      {kind: why}

`drop` is the loss of the metric against the split as it is, paired over the same draws of patients;
positive is worse, whatever the metric. Its `p_holm` is adjusted over all drops. All conditions are
scored on the same rows: who has nothing left counts with the mean of the model's own answers.

Letters: S conditions, N rows, M modalities, C labels, classes or values.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from m4 import cells
from m4.eval import bootstrap, holm
from m4.eval.predictions import Predictions
from m4.eval.scorer import Scorer
from m4.specs import LOWER_IS_BETTER, DataSpec

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Condition:
    """One way to change a split, what the model then says, and who then has what."""

    kind: str
    rate: float
    found: Predictions  # of the rows that have something left


def joined(whole: Predictions, conditions: Sequence[Condition]) -> Predictions:
    """All conditions as the `S` of one object, the split as it is first."""
    place = {int(uid): i for i, uid in enumerate(whole.uid)}
    prediction = {name: [x[0]] for name, x in whole.prediction.items()}
    counted = [whole.counted[0]]
    for condition in conditions:
        rows = np.array([place[int(uid)] for uid in condition.found.uid], np.int64)
        for name, x in condition.found.prediction.items():
            one = np.zeros_like(prediction[name][0])
            one[rows] = x[0]
            prediction[name].append(one)
        own = np.zeros(len(whole.uid), bool)
        own[rows] = condition.found.counted[0]
        counted.append(own)
    return dataclasses.replace(
        whole,
        subsets=np.ones((1 + len(conditions), whole.subsets.shape[1]), bool),
        prediction={name: np.stack(x) for name, x in prediction.items()},
        counted=np.stack(counted),
    )


@threadpool_limits.wrap(limits=1, user_api="blas")
def compose(
    whole: Predictions,
    conditions: Sequence[Condition],
    spec: DataSpec,
    *,
    split: str,
    left_out: Mapping[str, str],
    draws: int = 1000,
    seed: int = 0,
    min_patients: int = 10,
) -> dict[str, Any]:
    """The document; the schema is in the module's docstring."""
    found = joined(whole, conditions)
    sampled = bootstrap.resample(found.patient, draws=draws, seed=seed)
    patients = len(np.unique(found.patient))
    few = patients < min_patients
    rows = [_row(whole, condition, min_patients) for condition in conditions]
    out: dict[str, Any] = {
        "schema": SCHEMA,
        "split": split,
        "rows": None if few else len(found.uid),
        "patients": None if few else patients,
        "bootstrap": {"draws": draws, "level": 0.95, "seed": seed, "unit": "patient"},
        "min_patients": min_patients,
        "tasks": {},
        "whole": {},
        "conditions": rows,
        "left_out": dict(left_out),
    }
    for task in spec.tasks:
        if task.name not in found.prediction:
            continue
        scorer = Scorer(found, spec, task, sampled, None, min_patients)
        name, mask = scorer.primary, scorer.mask_full
        full, counted = scorer.subset(0, mask, [name]), scorer.patients(mask)
        enough = cells.shown(counted, min_patients)
        out["tasks"][task.name] = {"metric": name, "patients": enough}
        out["whole"][task.name] = scorer.estimates(full, mask)[name]
        for s, row in enumerate(rows, start=1):
            here = scorer.everywhere(s, mask, [name])
            sides = (here, full) if name in LOWER_IS_BETTER else (full, here)
            score, drop = (
                scorer.estimates(here, mask)[name],
                scorer.differences(*sides, mask, [name])[name],
            )
            row["tasks"][task.name] = {"score": score, "drop": drop}
    holm.add(told["drop"] for row in rows for told in row["tasks"].values())
    return out


def _row(whole: Predictions, condition: Condition, min_patients: int) -> dict[str, Any]:
    """What a condition is, and how much goes missing by it."""
    before, after = int(whole.present.sum()), int(condition.found.present.sum())
    emptied = len(whole.uid) - len(condition.found.uid)
    return {
        "kind": condition.kind,
        "rate": condition.rate,
        "lost": round(1 - after / max(1, before), 3),
        "emptied": emptied if emptied >= min_patients or not emptied else None,
        "tasks": {},
    }
