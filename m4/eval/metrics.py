"""Metrics of one task, computed by scikit-learn. Undefined values are NaN with a reason.

| kind       | metrics                                                                          |
|------------|----------------------------------------------------------------------------------|
| binary     | auroc auprc f1 f1_val brier ece log_loss                                         |
| multilabel | auroc_macro auroc_micro auprc_macro auprc_micro f1_macro f1_micro f1_val_macro   |
|            | f1_val_micro brier ece log_loss (the last three over all known labels)           |
| multiclass | accuracy f1_macro auroc_macro (one against the rest) log_loss brier ece          |
| regression | mae rmse r2 spearman, in the target's unit; mean over the task's values          |
| survival   | c_index (Harrell), of the mean chance of the event over the intervals            |
| segmentation | dice, mean over rows and channels; 1 for an empty map found empty              |

`f1` cuts at 0.5, `f1_val` at the threshold that maximises F1 on the validation split
(`choose_threshold`). ECE has ten equal-mass bins (`m4.eval.calibration`); for multiclass it is
that of the predicted class. Probabilities are clipped to [1e-7, 1 - 1e-7] in `log_loss`.

Letters: N rows, C labels, classes or values, L label columns (C, or 1 for multiclass).
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr
from sklearn import metrics as sk

from m4.eval.calibration import ece
from m4.specs import TaskSpec

EPS = 1e-7
PRIMARY = {
    "binary": "auroc",
    "multilabel": "auroc_macro",
    "multiclass": "auroc_macro",
    "regression": "mae",
    "survival": "c_index",
    "segmentation": "dice",
}
HEADLINE = {
    "binary": ("auroc", "auprc", "f1_val", "brier", "ece"),
    "multilabel": ("auroc_macro", "auprc_macro", "f1_val_macro", "brier", "ece"),
    "multiclass": ("auroc_macro", "accuracy", "f1_macro", "brier", "ece"),
    "regression": ("mae", "rmse", "r2", "spearman"),
    "survival": ("c_index",),
    "segmentation": ("dice",),
}


class Value(NamedTuple):
    """A metric's value; `note` says why it is NaN or what was left out."""

    value: float
    note: str = ""


NO_ROW = Value(float("nan"), "no labelled row")
NO_EVENT = Value(float("nan"), "no positive label")


def score(
    task: TaskSpec,
    label_NL: np.ndarray,
    mask_NL: np.ndarray,
    prediction_NC: np.ndarray,
    *,
    threshold: np.ndarray | None = None,
) -> dict[str, Value]:
    """Every metric of the task's kind over the cells with `mask_NL` True.

    `threshold` f64[C] is the cut chosen on the validation split; without it the `f1_val` metrics
    are absent. Raises ValueError for kinds without generic metrics.
    """
    known_N = mask_NL.any(axis=1)
    label, mask = label_NL[known_N], mask_NL[known_N]
    prediction = np.asarray(prediction_NC, np.float64)[known_N]
    if task.kind == "binary":
        cut = None if threshold is None else float(np.ravel(threshold)[0])
        return _binary(label[:, 0], prediction[:, 0], cut)
    if task.kind == "multilabel":
        return _multilabel(label, mask, prediction, threshold)
    if task.kind == "multiclass":
        return _multiclass(label[:, 0].astype(int), prediction)
    if task.kind == "regression":
        return _regression(label, prediction)
    if task.kind == "survival":
        return {"c_index": c_index(label[:, 0], label[:, 1] > 0, prediction.mean(1))}
    if task.kind == "segmentation":  # the predictions are scores already
        return {"dice": Value(float(prediction.mean())) if len(prediction) else NO_ROW}
    raise ValueError(f"task {task.name}: kind {task.kind!r} has no generic metrics")


def c_index(time_N: np.ndarray, event_N: np.ndarray, risk_N: np.ndarray) -> Value:
    """Share of comparable pairs in which the earlier event has the higher risk; ties count half.

    A pair is comparable when the earlier of two times is an event (Harrell 1982).
    """
    good, pairs = 0.0, 0
    for i in np.flatnonzero(event_N):
        later = time_N > time_N[i]
        pairs += int(later.sum())
        good += np.sum(risk_N[later] < risk_N[i]) + 0.5 * np.sum(risk_N[later] == risk_N[i])
    return Value(good / pairs) if pairs else Value(np.nan, "no comparable pair")


def choose_threshold(label_NL: np.ndarray, mask_NL: np.ndarray, prediction_NC: np.ndarray):
    """The cut per label that maximises F1, f64[C]; 0.5 where a label has only one class.

    Meant for the validation split. Predictions at or above the cut count as positive.
    """
    cuts = []
    for c in range(prediction_NC.shape[1]):
        keep = mask_NL[:, c]
        y, p = label_NL[keep, c], np.asarray(prediction_NC[keep, c], np.float64)
        if y.size == 0 or y.min() == y.max():
            cuts.append(0.5)
            continue
        precision, recall, cut = sk.precision_recall_curve(y, p)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        cuts.append(float(cut[np.argmax(f1[:-1])]))
    return np.array(cuts)


def _binary(y: np.ndarray, p: np.ndarray, cut: float | None) -> dict[str, Value]:
    cuts = {"f1": p >= 0.5} | ({} if cut is None else {"f1_val": p >= cut})
    return _ranks(y, p) | _cuts(y, cuts) | _probability(y, p)


def _ranks(y: np.ndarray, p: np.ndarray) -> dict[str, Value]:
    if y.size == 0:
        return dict.fromkeys(("auroc", "auprc"), NO_ROW)
    one_class = "" if y.min() != y.max() else f"every label is {int(y[0])}"
    return {
        "auroc": Value(np.nan, one_class) if one_class else Value(sk.roc_auc_score(y, p)),
        "auprc": Value(sk.average_precision_score(y, p)) if y.max() > 0 else NO_EVENT,
    }


def _cuts(y: np.ndarray, said: dict[str, np.ndarray]) -> dict[str, Value]:
    """F1 of every named set of positive decisions."""
    if y.size == 0:
        return dict.fromkeys(said, NO_ROW)
    if y.max() == 0:
        return dict.fromkeys(said, NO_EVENT)
    return {name: Value(sk.f1_score(y, decision)) for name, decision in said.items()}


def _probability(y: np.ndarray, p: np.ndarray) -> dict[str, Value]:
    if y.size == 0:
        return dict.fromkeys(("brier", "ece", "log_loss"), NO_ROW)
    safe = np.clip(p, EPS, 1 - EPS)
    return {
        "brier": Value(float(np.mean((p - y) ** 2))),
        "ece": Value(ece(y, p)),
        "log_loss": Value(-float(np.mean(y * np.log(safe) + (1 - y) * np.log1p(-safe)))),
    }


def _multilabel(y, mask, p, cuts) -> dict[str, Value]:
    said = {"f1": p >= 0.5} | ({} if cuts is None else {"f1_val": p >= cuts})
    per: dict[str, list[float]] = {}
    for c in range(p.shape[1]):
        rows = mask[:, c]
        decided = {name: decision[rows, c] for name, decision in said.items()}
        both = _ranks(y[rows, c], p[rows, c]) | _cuts(y[rows, c], decided)
        for name, value in both.items():
            per.setdefault(f"{name}_macro", []).append(value.value)
    flat = _ranks(y[mask], p[mask])
    flat |= _cuts(y[mask], {name: decision[mask] for name, decision in said.items()})
    macro = {name: _mean(values, "labels") for name, values in per.items()}
    micro = {f"{name}_micro": value for name, value in flat.items()}
    return macro | micro | _probability(y[mask], p[mask])


def _multiclass(y: np.ndarray, p: np.ndarray) -> dict[str, Value]:
    if y.size == 0:
        names = ("accuracy", "f1_macro", "auroc_macro", "log_loss", "brier", "ece")
        return dict.fromkeys(names, NO_ROW)
    said, count = p.argmax(axis=1), p.shape[1]
    hot = np.eye(count)[y]
    rest = [_ranks(hot[:, c], p[:, c])["auroc"].value for c in range(count)]
    right = (said == y).astype(float)
    return {
        "accuracy": Value(sk.accuracy_score(y, said)),
        "f1_macro": Value(sk.f1_score(y, said, average="macro")),
        "auroc_macro": _mean(rest, "classes"),
        "log_loss": Value(float(-np.log(np.clip(p[np.arange(len(y)), y], EPS, 1.0)).mean())),
        "brier": Value(float(((p - hot) ** 2).sum(axis=1).mean())),
        "ece": Value(ece(right, p.max(axis=1))),
    }


def _regression(y: np.ndarray, p: np.ndarray) -> dict[str, Value]:
    names = ("mae", "rmse", "r2", "spearman")
    if y.size == 0:
        return dict.fromkeys(names, NO_ROW)
    flat = (y.min(axis=0) == y.max(axis=0)).any()
    still = (p.min(axis=0) == p.max(axis=0)).any()
    note = "constant labels" if flat else ""
    rank_note = note or ("constant predictions" if still else "")
    return {
        "mae": Value(sk.mean_absolute_error(y, p)),
        "rmse": Value(sk.root_mean_squared_error(y, p)),
        "r2": Value(np.nan, note) if note else Value(sk.r2_score(y, p)),
        "spearman": Value(np.nan, rank_note) if rank_note else Value(_spearman(y, p)),
    }


def _spearman(y: np.ndarray, p: np.ndarray) -> float:
    return float(np.mean([spearmanr(y[:, c], p[:, c])[0] for c in range(y.shape[1])]))


def _mean(values: list[float], what: str) -> Value:
    """Mean over what is defined; the note counts what is not."""
    missing = int(np.isnan(values).sum())
    if missing == len(values):
        return Value(np.nan, f"undefined for all {missing} {what}")
    note = f"{missing} of {len(values)} {what} undefined and left out" if missing else ""
    return Value(float(np.nanmean(values)), note)
