"""What several models predict of the same rows, as the predictions of one.

Averaged are the numbers before the last function, which a probability or a value was made of:
- binary, multilabel: log-odds;
- multiclass: log-probabilities, renormalised over the classes;
- regression: values on the scale of the task's `transform`;
- survival: log-odds of the event up to the end of every interval, which stay in their order.
A map is scored by its Dice coefficient where it is predicted and is not there any more, so tasks of
segmentation are left out.

Letters: k members, S subsets, N rows, C labels, classes or values.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from m4.errors import CheckpointError
from m4.eval.predictions import Predictions
from m4.specs import DataSpec, TaskSpec

LEAST = 1e-7  # the smallest probability, and 1 less the largest, of which a logarithm is taken
AVERAGED = ("binary", "multilabel", "multiclass", "regression", "survival")


def mean(found: Sequence[Predictions], spec: DataSpec) -> Predictions:
    """The average over members, task by task and subset by subset; of one member itself.

    Rows, labels and what is present are those of every member. What experts did is left out: those
    of different members have nothing to do with each other.
    Raises CheckpointError if the members did not predict the same rows.
    """
    first, *others = found
    if not others:
        return first
    if not all(_same_rows(first, other) for other in others):
        raise CheckpointError(
            "the members of an ensemble predict different rows: they were trained on other data,"
            " or split otherwise"
        )
    shared = {name for name in first.prediction if all(name in f.prediction for f in found)}
    tasks = [task for task in spec.tasks if task.kind in AVERAGED and task.name in shared]
    names = [task.name for task in tasks]
    return dataclasses.replace(
        first,
        prediction={
            task.name: mean_of(task, np.stack([f.prediction[task.name] for f in found]))
            for task in tasks
        },
        label={name: first.label[name] for name in names},
        label_mask={name: first.label_mask[name] for name in names},
        routing={},
    )


def mean_of(task: TaskSpec, value_kC: np.ndarray) -> np.ndarray:
    """The average over the first axis of predictions [k, ..., C] of a task, f32[..., C].

    Raises ValueError for a kind that has none.
    """
    value_kC = np.asarray(value_kC, np.float64)
    if task.kind == "regression":
        if task.transform != "log1p":
            return value_kC.mean(axis=0).astype(np.float32)
        return np.expm1(np.log1p(np.maximum(value_kC, LEAST - 1)).mean(axis=0)).astype(np.float32)
    if task.kind == "multiclass":
        log_C = np.log(value_kC.clip(LEAST, None)).mean(axis=0)
        share_C = np.exp(log_C - log_C.max(axis=-1, keepdims=True))
        return (share_C / share_C.sum(axis=-1, keepdims=True)).astype(np.float32)
    if task.kind not in AVERAGED:
        raise ValueError(f"task {task.name}: predictions of kind {task.kind!r} have no average")
    value_kC = value_kC.clip(LEAST, 1 - LEAST)
    logit_C = (np.log(value_kC) - np.log1p(-value_kC)).mean(axis=0)
    return (1 / (1 + np.exp(-logit_C))).astype(np.float32)


def of_full(found: Predictions) -> Predictions:
    """Only what is said of the full input, and no routing."""
    place = [found.full()]
    return dataclasses.replace(
        found,
        subsets=found.subsets[place],
        counted=found.counted[place],
        prediction={name: value[place] for name, value in found.prediction.items()},
        routing={},
    )


def beside(found: Sequence[Predictions]) -> Predictions:
    """Predictions of different rows, each by its own model, one below the other.

    A row that several have comes several times.
    """
    if len(found) == 1:
        return found[0]

    def joined(pieces: list[np.ndarray], axis: int = 0) -> np.ndarray:
        return np.concatenate(pieces, axis=axis)

    tasks = [name for name in found[0].prediction if all(name in f.prediction for f in found)]
    start = np.cumsum([0, *(len(f.uid) for f in found)])
    return Predictions(
        subsets=found[0].subsets,
        uid=np.arange(start[-1]),
        patient=joined([f.patient for f in found]),
        present=joined([f.present for f in found]),
        prediction={t: joined([f.prediction[t] for f in found], axis=1) for t in tasks},
        label={t: joined([f.label[t] for f in found]) for t in tasks},
        label_mask={t: joined([f.label_mask[t] for f in found]) for t in tasks},
        counted=joined([f.counted for f in found], axis=1),
        routing={},
    )


def _same_rows(a: Predictions, b: Predictions) -> bool:
    """Whether two models predicted the same subsets of the same patients' same rows."""
    own = [
        [f.subsets, f.uid, f.patient, f.present, f.counted]
        + [part[name] for part in (f.label, f.label_mask) for name in sorted(part)]
        for f in (a, b)
    ]
    same_tasks = a.label.keys() == b.label.keys()
    return same_tasks and all(np.array_equal(x, y) for x, y in zip(*own, strict=True))
