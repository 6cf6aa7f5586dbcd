"""The metrics of `m4.eval.metrics` by scikit-learn and SciPy, with reasons for the undefined."""

import numpy as np
from scipy.stats import spearmanr
from sklearn import metrics as sk

from m4.eval.calibration import ece
from m4.eval.metrics import EPS, Value
from m4.specs import TaskSpec

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
    if task.kind == "segmentation":  # the predictions are scores already
        return {"dice": Value(float(prediction.mean())) if len(prediction) else NO_ROW}
    raise ValueError(f"task {task.name}: kind {task.kind!r} has no generic metrics")


def _binary(y: np.ndarray, p: np.ndarray, cut: float | None) -> dict[str, Value]:
    cuts = {"f1": p >= 0.5} | ({} if cut is None else {"f1_val": p >= cut})
    found = {"min_se_ppv": min_se_ppv(y, p)}
    return _ranks(y, p) | found | _cuts(y, cuts) | _probability(y, p)


def min_se_ppv(y: np.ndarray, p: np.ndarray) -> Value:
    """The smaller of sensitivity and PPV, at the best of all cuts, one after the other."""
    if not y.any():
        return NO_EVENT if y.size else NO_ROW
    said = [p >= cut for cut in p]
    smaller = [min(y[s].sum() / y.sum(), y[s].mean()) for s in said]
    return Value(float(max(smaller)))


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
