"""Reference rows: what simpler models make of per-patient aggregates of the same rows.

Protocol, the same for all: fitted on the training split alone, nothing tuned on the data at hand,
one model per task and label, rows without that label left out. The validation split is not used,
because nothing is selected; the method under test uses it to select a checkpoint.

| row | model |
|---|---|
| boosting | gradient boosting by one fixed recipe, stronger than the default |
| default boosting | gradient boosting with scikit-learn's defaults; both take missing values |
| late | late fusion: boosting of each modality by itself, put together by a logistic stacker |
| linear | logistic or ridge regression, imputed, with an indicator for what is missing |
| presence | the same on the indicators alone: what was measured, not what came out |

`m4.eval.recipes` has the models; `m4.eval.blend` adds the mean of the method and boosting. A
regression target is fitted on the task's transform and mapped back, and predictions are clipped to
the range of the training labels, without which one outlying feature could send exp to infinity.

Letters: N training rows, T test rows, F features, C labels, classes or values, L label columns.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from m4.eval import recipes
from m4.eval.recipes import Problem
from m4.specs import DataSpec, TaskSpec

ROWS: dict[str, Callable[[Problem], np.ndarray]] = {
    "boosting": recipes.boosting,
    "default boosting": recipes.default_boosting,
    "late": recipes.late,
    "linear": recipes.linear,
    "presence": recipes.presence,
}
NAMES = (*ROWS,)
CHEAP = ("boosting", "linear", "presence")  # where every row would be fitted to many labels
MANY = 12  # labels of all tasks from which on it is these alone
FITTED_KINDS = ("binary", "multilabel", "multiclass", "regression")


class Table(NamedTuple):
    """Aggregates of rows with their columns' names, '<modality>/...', and the rows' patients."""

    x_NF: np.ndarray  # NaN where nothing was measured
    names: Sequence[str] = ()
    patient_N: np.ndarray | None = None


def chosen(
    setting: bool | str | Sequence[str], spec: DataSpec
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(rows that are fitted, rows left out for their cost) under a setting `eval.baselines`.

    True is every row, but `CHEAP` alone where there are more than `MANY` labels; else it names
    rows, with commas between them or as a list.
    """
    if not isinstance(setting, bool):
        named = setting.split(",") if isinstance(setting, str) else setting
        return tuple(name for name in NAMES if name in named), ()
    if not setting:
        return (), ()
    labels = sum(1 if t.kind == "multiclass" else t.dim for t in spec.tasks if _fits(t))
    names = CHEAP if labels > MANY else NAMES
    return names, tuple(name for name in NAMES if name not in names)


# Threads of boosting spin while they wait: on shared cores they took 3.5 times the time of one.
@threadpool_limits.wrap(limits=1)
def fit_predict(
    spec: DataSpec,
    x_NF: np.ndarray | Table,
    labels: Mapping[str, tuple[np.ndarray, np.ndarray]],
    x_TF: np.ndarray,
    *,
    seed: int = 0,
    names: Sequence[str] = NAMES,
) -> dict[str, dict[str, np.ndarray]]:
    """Reference name -> task -> predictions f64[T, C], in the order of `x_TF`.

    `labels` holds per task the training labels [N, L] and their mask [N] or [N, L]; `x_NF` and
    `x_TF` have NaN where nothing was measured. Late fusion needs a `Table`, for the names of its
    columns. Tasks without any training label are left out, and so are kinds that scikit-learn has
    no model for.
    """
    table = x_NF if isinstance(x_NF, Table) else Table(np.asarray(x_NF))
    whole = _problem(spec, table, x_TF, seed)
    wanted = [name for name in names if name != "late" or whole.modality_F.any()]
    out: dict[str, dict[str, np.ndarray]] = {name: {} for name in wanted}
    for task in spec.tasks:
        if task.name not in labels or not _fits(task):
            continue
        label, mask = labels[task.name]
        label_NL = np.asarray(label, np.float64).reshape(len(label), -1)
        mask_NL = np.broadcast_to(np.asarray(mask).reshape(len(mask), -1) > 0, label_NL.shape)
        if mask_NL.any():
            for name in wanted:
                out[name][task.name] = _task(ROWS[name], task, whole, label_NL, mask_NL)
    return out


def _fits(task: TaskSpec) -> bool:
    return task.kind in FITTED_KINDS


def _problem(spec: DataSpec, table: Table, x_TF: np.ndarray, seed: int) -> Problem:
    """All rows, without labels yet."""
    rows, features = np.shape(table.x_NF)
    modality_F = np.full(features, "", object)
    presence_F = np.zeros(features, bool)
    for f, name in enumerate(table.names):
        for modality in spec.modality_names:
            if name.startswith(f"{modality}/"):
                modality_F[f], presence_F[f] = modality, name == f"{modality}/present"
    return Problem(
        x_NF=np.asarray(table.x_NF),
        y_N=np.zeros(rows, int),
        x_TF=np.asarray(x_TF),
        classes=True,
        owner_N=np.arange(rows) if table.patient_N is None else np.asarray(table.patient_N),
        modality_F=modality_F,
        presence_F=presence_F,
        seed=seed,
    )


def _task(recipe, task: TaskSpec, whole: Problem, label_NL, mask_NL) -> np.ndarray:
    if task.kind == "multiclass":
        known = mask_NL[:, 0]
        return _classes(recipe, _of(whole, known), label_NL[known, 0].astype(int), task.dim)
    columns = []
    for c in range(task.dim):
        known = mask_NL[:, c]
        own = _of(whole, known)
        if task.kind == "regression":
            columns.append(_value(recipe, task, own, label_NL[known, c]))
        else:
            y = (label_NL[known, c] > 0).astype(int)
            columns.append(_classes(recipe, own, y, 2)[:, 1])
    return np.stack(columns, axis=1)


def _of(whole: Problem, known: np.ndarray) -> Problem:
    return dataclasses.replace(whole, x_NF=whole.x_NF[known], owner_N=whole.owner_N[known])


def _classes(recipe, problem: Problem, y_N, num_classes: int) -> np.ndarray:
    """Class probabilities f64[T, classes]; a class never seen in training gets 0."""
    out = np.zeros((len(problem.x_TF), num_classes))
    seen, y_N = np.unique(y_N, return_inverse=True)
    if len(seen) < 2:  # nothing to fit: the prevalence is all there is
        out[:, seen] = 1.0
        return out
    out[:, seen] = recipe(dataclasses.replace(problem, y_N=y_N, classes=True))
    return out


def _value(recipe, task: TaskSpec, problem: Problem, y_N) -> np.ndarray:
    log = task.transform == "log1p"
    target_N = np.log1p(np.maximum(y_N, 0)) if log else y_N
    if not len(target_N):  # of several values one that nobody has
        return np.zeros(len(problem.x_TF))
    said = recipe(dataclasses.replace(problem, y_N=target_N, classes=False))[:, 0]
    out = np.clip(said, target_N.min(), target_N.max())
    return np.expm1(out) if log else out
