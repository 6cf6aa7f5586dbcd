"""Metrics of one task under row weights. Undefined values are NaN with a reason.

A patient-bootstrap draw gives every row a multiplicity; a metric on the resampled data equals the
metric with these weights. All draws are computed together (`under`): rank statistics by cumulative
weights along the sorted scores, exact with ties, everything else by one matrix product. The value
itself (`score`) is the draw in which every row counts once. Tests compare it with scikit-learn's.

| kind       | metrics                                                                          |
|------------|----------------------------------------------------------------------------------|
| binary     | auroc auprc min_se_ppv f1 f1_val brier ece log_loss                              |
| multilabel | auroc_macro auroc_micro auprc_macro auprc_micro f1_macro f1_micro f1_val_macro   |
|            | f1_val_micro brier ece log_loss (the last three over all known labels)           |
| multiclass | accuracy f1_macro auroc_macro (one against the rest) log_loss brier ece          |
| regression | mae rmse r2 spearman, in the target's unit; mean over the task's values          |
| survival   | c_index (Harrell), c_index_ipcw (Uno 2011), of the mean chance of the event over |
|            | the intervals                                                                    |
| segmentation | dice, mean over rows and channels; 1 for an empty map found empty              |

`f1` cuts at 0.5, `f1_val` at the threshold that maximises F1 on the validation split
(`choose_threshold`). `min_se_ppv` is score 1 of the PhysioNet/CinC Challenge 2012, the smaller of
sensitivity and PPV, at the cut where that is largest on these very rows: flattering by what such a
choice is worth; at a cut fixed in validation it stands with the operating points. ECE has ten
equal-mass bins (`m4.eval.calibration`), of the original sample for every draw; for multiclass it is
that of the predicted class. Probabilities are clipped to [1e-7, 1 - 1e-7] in `log_loss`. A macro
metric leaves out what is undefined on the sample; a draw that loses another label or class is
undefined.

Out of fold, scores of different networks are not compared: what ranks rows (`RANKED`) is the mean
of the folds, weighted by their events (positive labels, observed events, else rows); of a macro
metric this is so of each label, and the mean of the labels comes last.

Letters: N rows, B draws, C labels, classes or values, L label columns (C, or 1 for multiclass),
K bins.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from sklearn.metrics import precision_recall_curve

from m4.eval.calibration import NUM_BINS, bin_index
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
    "binary": ("auroc", "auprc", "min_se_ppv", "f1_val", "brier", "calibration_error"),
    "multilabel": ("auroc_macro", "auprc_macro", "f1_val_macro", "brier", "calibration_error"),
    "multiclass": ("auroc_macro", "accuracy", "f1_macro", "brier", "calibration_error"),
    "regression": ("mae", "rmse", "r2", "spearman"),
    "survival": ("c_index", "c_index_ipcw"),
    "segmentation": ("dice",),
}
RANKS = ("auroc", "auprc")
RANKS_AND_CUTS = (*RANKS, "f1", "f1_val")
SINGLE = ("brier", "log_loss", "ece")  # of single answers
BLOCK_ROWS = 64
RANKED = ("auroc", "auprc", "c_index", "spearman")  # and what begins with them


class Value(NamedTuple):
    """A metric's value; `note` says why it is NaN or what was left out."""

    value: float
    note: str = ""


def score(
    task: TaskSpec,
    label_NL: np.ndarray,
    mask_NL: np.ndarray,
    prediction_NC: np.ndarray,
    *,
    threshold: np.ndarray | None = None,
    fold_N: np.ndarray | None = None,
    names: Collection[str] | None = None,
) -> dict[str, Value]:
    """Every metric of the task's kind over the cells with `mask_NL` True, or those of `names`.

    `threshold` f64[C] is the cut chosen on the validation split; without it the `f1_val` metrics
    are absent. `fold_N` says which network predicted a row. Raises ValueError for kinds without
    generic metrics.
    """
    args = task, label_NL, mask_NL, prediction_NC, np.ones((len(label_NL), 1))
    values = under(*args, threshold=threshold, fold_N=fold_N, names=names)
    if not mask_NL.any():
        return dict.fromkeys(values, Value(float("nan"), "no labelled row"))
    notes = _notes(task, label_NL, mask_NL, np.asarray(prediction_NC))
    if fold_N is not None:
        _, lost = _over_folds(*args, threshold, fold_N, names)
        folds = len(np.unique(fold_N))
        notes |= {n: f"{k} of {folds} folds undefined, left out" for n, k in lost.items() if k}
    return {name: Value(float(value), notes.get(name, "")) for name, (value,) in values.items()}


def under(
    task: TaskSpec,
    label_NL: np.ndarray,
    mask_NL: np.ndarray,
    prediction_NC: np.ndarray,
    weight_NB: np.ndarray,
    *,
    threshold: np.ndarray | None = None,
    fold_N: np.ndarray | None = None,
    names: Collection[str] | None = None,
) -> dict[str, np.ndarray]:
    """The same metrics under many weights: name -> f64[B], NaN where a draw leaves it undefined.

    `weight_NB` holds multiplicities: whole numbers, of a type that holds their sum over the cells
    (uint16 and float32 are fast and as exact). What `names` leaves out costs nothing.
    """
    known_N, prediction_NC = mask_NL.any(axis=1), np.asarray(prediction_NC, np.float64)
    if not known_N.any():  # one invented row tells the names
        label_1L, prediction_1C = (np.zeros((1, x.shape[1])) for x in (label_NL, prediction_NC))
        one = np.ones(label_1L.shape, bool), prediction_1C, np.ones((1, 1))
        alone = under(task, label_1L, *one, threshold=threshold, names=names)
        return dict.fromkeys(alone, np.full(weight_NB.shape[1], np.nan))
    args = task, label_NL, mask_NL, prediction_NC, weight_NB, threshold
    if fold_N is not None:
        return _over_folds(*args, fold_N, names)[0]
    y, p = label_NL[known_N], prediction_NC[known_N]
    # the last column is the sample: what it leaves undefined, macro metrics leave out
    w = np.ones((len(y), weight_NB.shape[1] + 1), weight_NB.dtype)
    w[:, :-1] = weight_NB if known_N.all() else weight_NB[known_N]
    asked = _Asked(names)
    values = _of_kind(task, y, mask_NL[known_N], p, w, threshold, asked)
    return {name: value_B[:-1] for name, value_B in values.items() if asked.any(name)}


class _Asked:
    """Which metrics are to be had; all of them if `names` is None."""

    def __init__(self, names: Collection[str] | None):
        self._names = names

    def any(self, *names: str) -> bool:
        """Whether one of these is."""
        return self._names is None or any(name in self._names for name in names)


def _of_kind(task, y, mask, p, w, threshold, asked: _Asked) -> dict[str, np.ndarray]:
    with np.errstate(invalid="ignore", divide="ignore"):
        if task.kind in ("binary", "multilabel"):
            by_kind = _binary if task.kind == "binary" else _multilabel
            return by_kind(y, mask, p, w, threshold, asked)
        if task.kind == "multiclass":
            return _multiclass(y[:, 0].astype(int), p, w, asked)
        if task.kind == "regression":
            return _regression(y, p, w, asked)
        if task.kind == "survival":
            return _survival(y[:, 0], y[:, 1] > 0, p.mean(1), w)
        if task.kind == "segmentation":  # the predictions are scores already
            return {"dice": p.mean(1) @ w / w.sum(0)}
    raise ValueError(f"task {task.name}: kind {task.kind!r} has no generic metrics")


def _over_folds(task, label_NL, mask_NL, prediction_NC, weight_NB, threshold, fold_N, names):
    """`under`, but for what ranks rows: there the mean of the folds, of each label by itself.

    Beside it, of each of these means, how many folds the sample leaves undefined (of the label with
    most) while it defines others.
    """
    args = task, label_NL, mask_NL, prediction_NC
    out, lost = under(*args, weight_NB, threshold=threshold, names=names), {}
    # the last column is the sample: a fold that it leaves undefined is left out
    with_sample = np.concatenate([weight_NB, np.ones_like(weight_NB[:, :1])], axis=1), fold_N
    ranked = [name for name in out if name.startswith(RANKED)]
    whole = _fold_means(*args, *with_sample, ranked)
    single = [name.removesuffix("_macro") for name in ranked]
    each = [_fold_means(*column, *with_sample, single) for column in _one_by_one(*args)]
    folds = len(np.unique(fold_N))
    for name in ranked:
        macro = name.endswith("_macro")
        found = [of[name.removesuffix("_macro")] for of in each] if macro else [whole[name]]
        out[name] = _macro(np.stack([mean_B for mean_B, _ in found]))[:-1]
        lost[name] = max((count for _, count in found if count < folds), default=0)
    return out, lost


def _fold_means(task, label_NL, mask_NL, prediction_NC, weight_NB, fold_N, names) -> dict:
    """Of some metrics: name -> (mean of the folds by their events f64[B], folds left out).

    The last draw is the sample; a fold that is undefined in another draw is left out of that one.
    """
    events, folds = [], []
    for fold in np.unique(fold_N):
        own = fold_N == fold
        label, mask = label_NL[own], mask_NL[own]
        events.append(float(mask.any(axis=1).sum()))
        if task.kind in ("binary", "multilabel", "survival"):
            column = -1 if task.kind == "survival" else slice(None)
            events[-1] = float((label * mask)[:, column].sum())
        rows = task, label, mask, prediction_NC[own], weight_NB[own]
        folds.append(under(*rows, names=names))
    means = {}
    for name in folds[0]:
        value_FB = np.stack([found[name] for found in folds])
        defined_F = np.isfinite(value_FB[:, -1])
        weight_FB = np.isfinite(value_FB) * (np.array(events) * defined_F)[:, None]
        total_B = weight_FB.sum(axis=0)
        mean_B = (np.nan_to_num(value_FB) * weight_FB).sum(axis=0) / np.where(total_B, total_B, 1)
        means[name] = np.where(total_B > 0, mean_B, np.nan), int((~defined_F).sum())
    return means


def _one_by_one(task: TaskSpec, label_NL, mask_NL, prediction_NC):
    """Each label of a task with several, or each class against the rest, as a binary task."""
    if task.kind not in ("multilabel", "multiclass"):
        return
    count = prediction_NC.shape[1]
    hot = label_NL if task.kind == "multilabel" else label_NL == np.arange(count)
    for c in range(count):
        label, mask = hot[:, [c]].astype(float), mask_NL[:, [c if task.kind == "multilabel" else 0]]
        yield TaskSpec(task.name, "binary"), label, mask, prediction_NC[:, [c]]


def choose_threshold(
    label_NL: np.ndarray, mask_NL: np.ndarray, prediction_NC: np.ndarray
) -> np.ndarray:
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
        precision, recall, cut = precision_recall_curve(y, p)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        cuts.append(float(cut[np.argmax(f1[:-1])]))
    return np.array(cuts)


def _survival(time_N, event_N, risk_N, w_NB) -> dict[str, np.ndarray]:
    """Harrell's C, and Uno's: each event weighs 1 / P(not censored until then)^2 (Kaplan-Meier).

    At one time events come before censorings, and the chance is taken after both, as in
    scikit-survival. Where it is 0, for events at the last time when others are censored, that
    raises; here they are left out, as by its `tau` at that time.
    """
    order_N = np.lexsort((~event_N, time_N))
    w = w_NB[order_N].astype(np.float64)
    at_risk_NB = np.cumsum(w[::-1], axis=0)[::-1]
    stays_NB = 1 - w * ~event_N[order_N, None] / np.maximum(at_risk_NB, 1e-300)
    after_NB = np.cumprod(np.concatenate([np.ones((1, w.shape[1])), stays_NB]), axis=0)
    free_NB = after_NB[np.searchsorted(time_N[order_N], time_N, side="right")]
    inverse_NB = w_NB / np.where(free_NB > 0, free_NB, np.inf) ** 2
    rows = time_N, event_N, risk_N, w_NB
    return {"c_index": c_index(*rows, w_NB), "c_index_ipcw": c_index(*rows, inverse_NB)}


def c_index(
    time_N: np.ndarray,
    event_N: np.ndarray,
    risk_N: np.ndarray,
    w_NB: np.ndarray,
    event_w_NB: np.ndarray,
) -> np.ndarray:
    """Harrell's C f64[B]: the share of comparable pairs in which the earlier has the higher risk.

    A pair is comparable when the earlier of two times is an event; who is censored at the time of
    an event outlived it (Harrell 1982; R's survival, lifelines and scikit-survival agree). It
    counts the earlier's `event_w` times the later's `w`, ties in risk half. By blocks of events, so
    that the N x N table never exists.
    """
    good_B, pairs_B = np.zeros(w_NB.shape[1]), np.zeros(w_NB.shape[1])
    for rows in np.array_split(np.flatnonzero(event_N), max(1, int(event_N.sum()) // 256)):
        later = (time_N > time_N[rows, None]) | ((time_N == time_N[rows, None]) & ~event_N)
        above = (risk_N[rows, None] > risk_N) + 0.5 * (risk_N[rows, None] == risk_N)
        own, good = event_w_NB[rows], (later * above).astype(np.float32)
        pairs_B += np.einsum("ib,ib->b", own, later.astype(np.float32) @ w_NB)
        good_B += np.einsum("ib,ib->b", own, good @ w_NB)
    return np.where(pairs_B > 0, good_B / pairs_B, np.nan)


def rank_scores(
    y_N: np.ndarray, p_N: np.ndarray, w_NB: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUROC and average precision, both f64[B].

    For each positive i, let n_i and t_i be the weight of the negatives below and tied with it,
    F_i and T_i that of the negatives and positives at or above it. Then
    AUROC = sum_i w_i (n_i + t_i / 2) / (P N) and AP = sum_i w_i T_i / (T_i + F_i) / P.
    """
    found = _ranked(y_N, p_N, w_NB, _Asked(("auprc",)))
    return found["auroc"], found["auprc"]


def _ranked(
    y_n: np.ndarray,
    p_n: np.ndarray,
    w_NB: np.ndarray,
    asked: "_Asked",
    row_n: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """AUROC and, if asked, average precision and min_se_ppv, f64[B]; `row_n` are those of `w`.

    At best the last cut of min_se_ppv is a positive's score: a lower cut, down to the next
    positive, has the same sensitivity and no better precision.
    """
    neg_n, pos_n = np.flatnonzero(~(y_n > 0)), np.flatnonzero(y_n > 0)
    neg_n, pos_n = (own[np.argsort(p_n[own], kind="stable")] for own in (neg_n, pos_n))
    neg, pos = p_n[neg_n], p_n[pos_n]
    if row_n is not None:
        neg_n, pos_n = row_n[neg_n], row_n[pos_n]
    below_neg, w_pos = _cumulative(w_NB, neg_n), w_NB[pos_n]
    low, high = (np.searchsorted(neg, pos, side=side) for side in ("left", "right"))
    first = below_neg[low].astype(np.float64)
    twice = 2 * first if np.array_equal(low, high) else first + below_neg[high]
    total_neg = below_neg[-1].astype(np.float64)
    total_pos = w_pos.sum(axis=0, dtype=np.float64)
    w_pos_64 = w_pos.astype(np.float64)
    out = {"auroc": np.einsum("nb,nb->b", w_pos_64, twice) / (2 * total_pos * total_neg)}
    if not asked.any("auprc", "min_se_ppv"):
        return out
    true = total_pos - _cumulative(w_pos)[np.searchsorted(pos, pos, side="left")]
    precision = true / np.maximum(true + total_neg - first, 1e-300)
    out["auprc"] = np.einsum("nb,nb->b", w_pos_64, precision) / total_pos
    if asked.any("min_se_ppv"):
        smaller = np.minimum(true / total_pos, precision)
        out["min_se_ppv"] = smaller.max(axis=0) if len(smaller) else np.full(w_NB.shape[1], np.nan)
    return out


def _cumulative(w_NB: np.ndarray, row_n: np.ndarray | None = None) -> np.ndarray:
    """Weight of the first n rows (of `row_n`), [n + 1, B]; whole numbers, exact up to 2^24."""
    rows, draws = len(w_NB) if row_n is None else len(row_n), w_NB.shape[1]
    if draws == 1:
        w_nB = w_NB if row_n is None else w_NB[row_n]
        return np.concatenate([np.zeros((1, 1), w_NB.dtype), np.cumsum(w_nB, axis=0)])
    # For many draws np.cumsum takes ten times as long as this: first within blocks of rows, all at
    # once, then over blocks.
    size = -(-(rows + 1) // BLOCK_ROWS)
    sums = np.empty((size, BLOCK_ROWS, draws), w_NB.dtype)
    flat = sums.reshape(-1, draws)
    flat[0] = flat[rows + 1 :] = 0
    if row_n is None:
        flat[1 : rows + 1] = w_NB
    else:
        np.take(w_NB, row_n, axis=0, out=flat[1 : rows + 1], mode="clip")
    for k in range(1, BLOCK_ROWS):
        np.add(sums[:, k], sums[:, k - 1], out=sums[:, k])
    for block in range(1, size):
        sums[block] += sums[block - 1, -1]
    return flat[: rows + 1]


def _sums(w_NB: np.ndarray, **rows) -> dict[str, np.ndarray]:
    """Weighted sums of named row statistics [N] or [N, C], by one product in float64."""
    stacked = [np.reshape(x, (len(w_NB), -1)).astype(np.float64).T for x in rows.values()]
    total = np.concatenate(stacked) @ w_NB.astype(np.float64)
    parts = np.split(total, np.cumsum([len(x) for x in stacked])[:-1])
    return {
        name: part if np.ndim(x) > 1 else part[0]
        for (name, x), part in zip(rows.items(), parts, strict=True)
    }


def _bin_gaps(y_N: np.ndarray, p_N: np.ndarray) -> np.ndarray:
    """What each row adds to the calibration gap of each bin, [N, K]."""
    return (bin_index(p_N)[:, None] == np.arange(NUM_BINS)) * (y_N - p_N)[:, None]


def _probability(y_n, p_n, row_n, w_NB) -> dict[str, np.ndarray]:
    """Brier score, log loss and ECE of cells; `row_n` says whose they are, in order."""
    safe_n, gap_nK = np.clip(p_n, EPS, 1 - EPS), _bin_gaps(y_n, p_n)
    loss_n = -(y_n * np.log(safe_n) + (1 - y_n) * np.log1p(-safe_n))
    cells = {"weight": np.ones_like(p_n), "brier": (p_n - y_n) ** 2, "log_loss": loss_n}
    if len(row_n) > len(w_NB) or (row_n != np.arange(len(row_n))).any():
        cells = {n: np.bincount(row_n, x, len(w_NB)) for n, x in cells.items()}
        gap_nK = np.stack([np.bincount(row_n, x, len(w_NB)) for x in gap_nK.T], axis=1)
    sums = _sums(w_NB, **cells, gaps=gap_nK)
    out = {name: sums[name] / sums["weight"] for name in ("brier", "log_loss")}
    return out | {"ece": np.abs(sums["gaps"]).sum(axis=0) / sums["weight"]}


def probabilities(task: TaskSpec, label_NL, mask_NL, prediction_NC):
    """What calibration is of: labels, predictions and their rows, of all known cells.

    Of several classes it is the predicted one, right or wrong.
    """
    if task.kind != "multiclass":
        row_N, _ = np.nonzero(mask_NL)
        return label_NL[mask_NL], np.asarray(prediction_NC, np.float64)[mask_NL], row_N
    (row_N,) = np.nonzero(mask_NL[:, 0])
    p_NC = np.asarray(prediction_NC, np.float64)[row_N]
    return (p_NC.argmax(axis=1) == label_NL[row_N, 0]).astype(float), p_NC.max(axis=1), row_N


def _f1(y_NC, mask_NC, p_NC, w_NB, cuts) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name of the cut -> F1 of each label f64[C, B] and over all cells f64[B]."""
    out, real_NC = {}, y_NC * mask_NC
    for name, cut in {"f1": 0.5, "f1_val": cuts}.items():
        if cut is not None:
            said_NC = (p_NC >= cut) * mask_NC
            sums = _sums(w_NB, hit=said_NC * real_NC, either=said_NC + real_NC, real=real_NC)
            hit_CB, either_CB, real_CB = sums.values()
            each = np.where(real_CB > 0, 2 * hit_CB / either_CB, np.nan)
            over_all = 2 * hit_CB.sum(0) / either_CB.sum(0)
            out[name] = each, np.where(real_CB.sum(0) > 0, over_all, np.nan)
    return out


def _binary(y_N1, mask_N1, p_N1, w_NB, cut, asked: _Asked) -> dict[str, np.ndarray]:
    y_N, p_N, out = y_N1[:, 0], p_N1[:, 0], {}
    if asked.any("auroc", "auprc", "min_se_ppv"):
        out |= _ranked(y_N, p_N, w_NB, asked)
    if asked.any(*SINGLE):
        out |= _probability(y_N, p_N, np.arange(len(y_N)), w_NB)
    if asked.any("f1", "f1_val"):
        out |= {n: whole for n, (_, whole) in _f1(y_N1, mask_N1, p_N1, w_NB, cut).items()}
    return out


def _multilabel(y_NC, mask_NC, p_NC, w_NB, cuts, asked: _Asked) -> dict[str, np.ndarray]:
    out, ranks = {}, []
    if macro := [name for name in RANKS if asked.any(f"{name}_macro")]:
        for y_N, known_N, p_N in zip(y_NC.T, mask_NC.T, p_NC.T, strict=True):
            own_n = np.flatnonzero(known_N)
            ranks.append(_ranked(y_N[own_n], p_N[own_n], w_NB, _Asked(macro), own_n))
        for name in macro:
            out[f"{name}_macro"] = _macro(np.stack([found[name] for found in ranks]))
    if asked.any(*(f"{name}_{of}" for name in ("f1", "f1_val") for of in ("macro", "micro"))):
        for name, (each_CB, over_all_B) in _f1(y_NC, mask_NC, p_NC, w_NB, cuts).items():
            out |= {f"{name}_macro": _macro(each_CB), f"{name}_micro": over_all_B}
    row_n, _ = np.nonzero(mask_NC)
    y_n, p_n = y_NC[mask_NC], p_NC[mask_NC]
    if micro := [name for name in RANKS if asked.any(f"{name}_micro")]:
        found = _ranked(y_n, p_n, w_NB, _Asked(micro), row_n)
        out |= {f"{name}_micro": found[name] for name in micro}
    return out | (_probability(y_n, p_n, row_n, w_NB) if asked.any(*SINGLE) else {})


def _multiclass(y_N, p_NC, w_NB, asked: _Asked) -> dict[str, np.ndarray]:
    count, said_N = p_NC.shape[1], p_NC.argmax(axis=1)
    hot_NC, said_NC = np.eye(count)[y_N], np.eye(count)[said_N]
    right_N, out = (said_N == y_N).astype(float), {}
    if asked.any("accuracy", "f1_macro", *SINGLE):
        sums = _sums(
            w_NB,
            weight=np.ones(len(y_N)),
            accuracy=right_N,
            log_loss=-np.log(np.clip(p_NC[np.arange(len(y_N)), y_N], EPS, 1.0)),
            brier=((p_NC - hot_NC) ** 2).sum(axis=1),
            gaps=_bin_gaps(right_N, p_NC.max(axis=1)),
            hit=hot_NC * said_NC,
            either=hot_NC + said_NC,
        )
        out |= {name: sums[name] / sums["weight"] for name in ("accuracy", "log_loss", "brier")}
        out["ece"] = np.abs(sums["gaps"]).sum(axis=0) / sums["weight"]
        out["f1_macro"] = _macro(2 * sums["hit"] / sums["either"])  # NaN: neither real nor said
    if asked.any("auroc_macro"):
        each = [_ranked(hot_NC[:, c], p_NC[:, c], w_NB, _Asked(())) for c in range(count)]
        out["auroc_macro"] = _macro(np.stack([found["auroc"] for found in each]))
    return out


def _regression(y_NC, p_NC, w_NB, asked: _Asked) -> dict[str, np.ndarray]:
    centred_NC = y_NC - y_NC.mean(axis=0)  # else the variance subtracts large numbers
    sums = _sums(
        w_NB,
        weight=np.ones(len(y_NC)),
        mae=np.abs(y_NC - p_NC),
        mse=(y_NC - p_NC) ** 2,
        first=centred_NC,
        second=centred_NC**2,
    )
    mae, mse, first, second = (sums[n] / sums["weight"] for n in ("mae", "mse", "first", "second"))
    variance = second - first**2
    known = variance > 1e-12 * np.square(centred_NC).max(axis=0)[:, None]
    # plain means: one undefined value leaves the whole metric undefined
    out = {
        "mae": mae.mean(axis=0),
        "rmse": np.sqrt(mse).mean(axis=0),
        "r2": np.where(known, 1 - mse / variance, np.nan).mean(axis=0),
    }
    if asked.any("spearman"):
        each = [_spearman(y_NC[:, c], p_NC[:, c], w_NB) for c in range(y_NC.shape[1])]
        out["spearman"] = np.mean(each, axis=0)
    return out


def _spearman(y_N, p_N, w_NB) -> np.ndarray:
    """Pearson correlation of the average ranks that the rows have in the resampled data."""
    total_B = w_NB.sum(axis=0, dtype=np.float64)
    a, b = (_ranks(x_N, w_NB) - total_B / 2 for x_N in (y_N, p_N))  # the mean rank is known
    w_a, w_b = w_NB * a, w_NB * b
    pairs = (w_a, b), (w_a, a), (w_b, b)
    cov, var_a, var_b = (np.einsum("nb,nb->b", *pair) for pair in pairs)
    scale = np.sqrt(var_a * var_b)
    return np.where(scale > 1e-9 * total_B**2, cov / scale, np.nan)


def _ranks(x_N: np.ndarray, w_NB: np.ndarray) -> np.ndarray:
    """Centre of each row's tie group on the weight axis, [N, B] (average rank minus 1/2)."""
    order = np.argsort(x_N, kind="stable")
    ordered, below = x_N[order], _cumulative(w_NB, order)
    first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))  # of each tie group
    size, group_N = np.diff(first, append=len(x_N)), np.empty(len(x_N), int)
    group_N[order] = np.repeat(np.arange(len(first)), size)
    return (np.add(below[first], below[first + size], dtype=np.float32) / 2)[group_N]


def _macro(x_CB: np.ndarray) -> np.ndarray:
    """Mean over what the sample, the last draw, defines; a draw that lacks some of it has NaN."""
    defined_C = np.isfinite(x_CB[:, -1])
    with np.errstate(invalid="ignore"):  # the mean of nothing is NaN
        return x_CB[defined_C].sum(axis=0) / defined_C.sum()


def _notes(
    task: TaskSpec, label_NL: np.ndarray, mask_NL: np.ndarray, prediction_NC: np.ndarray
) -> dict[str, str]:
    """Why these labels leave a metric undefined, or what was left out of its mean."""
    known_N = mask_NL.any(axis=1)
    y, p = label_NL[known_N], prediction_NC[known_N]
    if task.kind == "binary":
        return _one_class(y[:, 0])
    if task.kind == "multilabel":
        each = [_one_class(label_NL[mask_NL[:, c], c]) for c in range(label_NL.shape[1])]
        notes = {f"{name}_micro": note for name, note in _one_class(label_NL[mask_NL]).items()}
        return notes | {f"{name}_macro": _left_out(each, name, "labels") for name in RANKS_AND_CUTS}
    if task.kind == "multiclass":
        each = [_one_class(y[:, 0] == c) for c in range(p.shape[1])]
        return {"auroc_macro": _left_out(each, "auroc", "classes")}
    if task.kind == "survival":
        event, last = y[:, 1] > 0, y[:, 0] == y[:, 0].max()
        if (event & ~last).any():
            return {}
        names = ["c_index_ipcw"] if (event & last).any() and not event[last].all() else []
        names = names or ["c_index", "c_index_ipcw"]
        return dict.fromkeys(
            names, "no comparable pair" + " before the last time" * (len(names) < 2)
        )
    if task.kind != "regression":
        return {}
    if (y.min(axis=0) == y.max(axis=0)).any():
        return dict.fromkeys(("r2", "spearman"), "constant labels")
    still = (p.min(axis=0) == p.max(axis=0)).any()
    return {"spearman": "constant predictions"} if still else {}


def _one_class(y_N: np.ndarray) -> dict[str, str]:
    """Reasons of a binary task's undefined metrics."""
    if y_N.size == 0:
        return dict.fromkeys(RANKS_AND_CUTS, "no labelled row")
    notes = {} if y_N.min() != y_N.max() else {"auroc": f"every label is {int(y_N[0])}"}
    none = dict.fromkeys(("auprc", "min_se_ppv", "f1", "f1_val"), "no positive label")
    return notes if y_N.max() > 0 else notes | none


def _left_out(each: Sequence[Mapping[str, str]], name: str, what: str) -> str:
    """How many labels or classes a mean is without."""
    missing = sum(name in notes for notes in each)
    if missing == len(each):
        return f"undefined for all {missing} {what}"
    return f"{missing} of {len(each)} {what} undefined and left out" if missing else ""
