"""What a prediction is good for at a cut: ROC, precision-recall, decision curve, operating points.

All are functions of how many rows with and without the outcome lie at or above a cut, counted once
for every cut and every draw of patients. A curve's points have at least `min_patients` patients
between them; its band holds at one point (at that false positive rate, recall or risk), not over
the whole curve. Net benefit after Vickers & Elkin (Medical Decision Making 2006): true positives
less false positives at the odds of the risk at which one would act, over all.

Letters: N rows of the split, n rows of a question, T cuts, B draws.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from scipy import sparse

from m4 import cells
from m4.eval import bootstrap, calibration, recalibration
from m4.eval.bootstrap import Draws, number
from m4.eval.metrics import Value
from m4.eval.predictions import Predictions
from m4.specs import DataSpec, TaskSpec

MAX_LABELS = 6  # of a multilabel or multiclass task, the most frequent
MAX_POINTS = 50  # of a curve
RISKS = (0.05, 0.1, 0.2, 0.3, 0.5)  # at which one might act; not chosen by anything
SENSITIVITIES, SPECIFICITIES = (0.8, 0.9, 0.95), (0.9, 0.95)  # cuts that reach them in validation
ACTED = np.r_[0.01:0.205:0.01, 0.225:0.5:0.025, 0.5:0.96:0.05]  # risks of the decision curve
EVEN = "min(Se, PPV) best"  # a cut, chosen in validation
BANDS = np.linspace(0, 1, 21)  # of the histogram of predicted risks

SHOWN = ("sensitivity", "specificity", "ppv", "npv", "alerts", "min_se_ppv")  # of a point

Cuts = Mapping[str, Mapping[str, np.ndarray]]  # task -> name of a point -> cut per label


@dataclasses.dataclass(frozen=True)
class Question:
    """One outcome of a task: `row_n` are the rows of the split that have a label."""

    column: int
    label: str
    y_n: np.ndarray  # bool
    p_n: np.ndarray  # f64
    row_n: np.ndarray  # i64
    patient_n: np.ndarray

    @property
    def rarest(self) -> int:
        """Patients with the rarer of the two outcomes."""
        return min(len(np.unique(self.patient_n[side])) for side in (self.y_n, ~self.y_n))


def questions(predictions: Predictions, spec: DataSpec, task: TaskSpec) -> list[Question]:
    """The outcome of a task, or its most frequent labels or classes, on the full input."""
    if task.kind not in ("binary", "multilabel", "multiclass"):
        return []
    full = predictions.full()
    mask_NC, label = predictions.scored(spec, task, full), predictions.label[task.name]
    hot_NC, p_NC = label > 0, predictions.prediction[task.name][full].astype(np.float64)
    if task.kind == "multiclass":
        hot_NC = np.eye(task.dim, dtype=bool)[label[:, 0].astype(int)]
        mask_NC = np.broadcast_to(mask_NC[:, :1], hot_NC.shape)
    order = np.argsort(-(hot_NC & mask_NC).sum(axis=0), kind="stable")[:MAX_LABELS]
    one = hot_NC.shape[1] == 1
    known = len(task.labels) == hot_NC.shape[1]
    found = []
    for c in sorted(order):
        (rows,) = np.nonzero(mask_NC[:, c])
        name = task.labels[c] if known else f"{task.name} {c}"
        parts = hot_NC[rows, c], p_NC[rows, c], rows, predictions.patient[rows]
        found.append(Question(int(c), task.name if one else name, *parts))
    return found


def choose(predictions: Predictions, spec: DataSpec) -> dict[str, dict[str, np.ndarray]]:
    """Cuts that reach a sensitivity or specificity on this (validation) split; NaN where none is.

    The highest cut with at least that sensitivity, the lowest with at least that specificity; and
    the one where the smaller of sensitivity and PPV is largest, as entrants of the PhysioNet/CinC
    Challenge 2012 had to fix theirs before they were scored by it.
    """
    cuts: dict[str, dict[str, np.ndarray]] = {}
    for task in spec.tasks:
        if task.name not in predictions.prediction:
            continue
        for question in questions(predictions, spec, task):
            own = cuts.setdefault(task.name, {})
            for name, cut in _reaching(question):
                own.setdefault(name, np.full(task.dim, np.nan))[question.column] = cut
    return cuts


def _reaching(question: Question) -> Iterator[tuple[str, float]]:
    hot, cold = (np.sort(question.p_n[side]) for side in (question.y_n, ~question.y_n))
    if not len(hot) or not len(cold):
        return
    for share in SENSITIVITIES:
        yield f"sensitivity {share:.0%}", float(hot[int(np.floor((1 - share) * len(hot) + 1e-9))])
    for share in SPECIFICITIES:
        last = cold[int(np.ceil(share * len(cold) - 1e-9)) - 1]  # at most this is not flagged
        yield f"specificity {share:.0%}", float(np.nextafter(last, 2.0))
    cut_T = np.unique(hot)
    counts = Counts.of(question, cut_T)
    yield EVEN, float(cut_T[np.argmax(counts.min_se_ppv[0])])


def describe(
    predictions: Predictions,
    spec: DataSpec,
    draws: Draws,
    *,
    cuts: Cuts | None = None,
    min_patients: int = 10,
) -> tuple[dict[str, list], dict[str, list]]:
    """The sections 'curves' and 'operating_points' of a document, by task.

    `cuts` were chosen elsewhere: on the validation split. A question of which fewer than
    `min_patients` patients have either outcome is left out.
    """
    curves: dict[str, list] = {}
    points: dict[str, list] = {}
    for task in spec.tasks:
        if task.name not in predictions.prediction:
            continue
        if task.kind == "regression":
            if fit := _regression(predictions, spec, task, min_patients):
                curves[task.name] = [fit]
            continue
        for question in questions(predictions, spec, task):
            if question.rarest < min_patients:
                continue
            own = {
                name: float(c[question.column])
                for name, c in (cuts or {}).get(task.name, {}).items()
            }
            curve, rows = _question(question, draws, own, min_patients)
            curves.setdefault(task.name, []).append(curve)
            points.setdefault(task.name, []).append(rows)
    return curves, points


def _question(question: Question, draws: Draws, own: Mapping[str, float], min_patients: int):
    vertices = _vertices(question, min_patients)
    chosen = {name: cut for name, cut in own.items() if np.isfinite(cut)}
    fixed = {f"risk {risk:.0%}": risk for risk in RISKS}
    every = np.unique(np.concatenate([vertices, ACTED, [*chosen.values(), *fixed.values()]]))
    point, drawn = Counts.of(question, every), Counts.drawn(question, every, draws)
    shown = _shown(question, every, min_patients)

    def at(cuts):
        return np.searchsorted(every, cuts)

    units, acted = question.rarest, ACTED[shown[at(ACTED)]]
    v = at(vertices)
    curve = {
        "label": question.label,
        "events": cells.tens(question.rarest),
        "prevalence": number(question.y_n.mean()),
        "roc": _line(1 - point.specificity[0, v], point.sensitivity[0, v],
                     1 - drawn.specificity[:, v], drawn.sensitivity[:, v], units),
        "pr": _line(point.sensitivity[0, v], point.ppv[0, v],
                    drawn.sensitivity[:, v], drawn.ppv[:, v], units),
        "decision": _decision(point, drawn, at(acted), acted, units),
        "risks": _histogram(question, min_patients),
        **recalibration.logistic(question.y_n, question.p_n, question.patient_n),
    }  # fmt: skip
    rows = []
    for how, named in (("fixed", fixed), ("validation", chosen)):
        for name, cut in named.items():
            t = int(at(cut))
            row: dict[str, Any] = {"name": name, "chosen": how, "cut": number(cut)}
            among = _denominators(question, cut)
            for metric in SHOWN:
                value, values = getattr(point, metric)[0, t], getattr(drawn, metric)[:, t]
                row[metric] = _estimate(value, values, units, shown=bool(shown[t]))
                if shown[t] and metric in among and value in (0.0, 1.0):  # no draw differs
                    low, high = calibration.wilson(float(value), among[metric])
                    row[metric] |= {"low": number(max(low, 0.0)), "high": number(min(high, 1.0))}
            rows.append(row)
    per = "patients" if len(np.unique(question.patient_n)) == len(question.y_n) else "rows"
    return curve, {"label": question.label, "per": per, "points": rows}


def _denominators(question: Question, cut: float) -> dict[str, int]:
    """Patients that each share is of."""
    flag_n, y_n = question.p_n >= cut, question.y_n
    sides = {"sensitivity": y_n, "specificity": ~y_n, "ppv": flag_n, "npv": ~flag_n}
    return {name: len(np.unique(question.patient_n[side])) for name, side in sides.items()}


@dataclasses.dataclass(frozen=True)
class Counts:
    """Rows at or above each cut, under each draw; [1, T] without draws."""

    tp_BT: np.ndarray
    fp_BT: np.ndarray
    hot_B1: np.ndarray
    cold_B1: np.ndarray

    @classmethod
    def of(cls, question: Question, cut_T: np.ndarray) -> "Counts":
        """As the rows are."""
        return cls(**_above(question, cut_T)(np.ones((len(question.y_n), 1), np.float32)))

    @classmethod
    def drawn(cls, question: Question, cut_T: np.ndarray, draws: Draws) -> "Counts":
        """Under every draw of patients."""
        return cls(**draws.map(_above(question, cut_T), question.row_n))

    @property
    def rows_B1(self) -> np.ndarray:
        """All rows."""
        return self.hot_B1 + self.cold_B1

    @property
    def sensitivity(self) -> np.ndarray:
        """Flagged among those with the outcome."""
        return _ratio(self.tp_BT, self.hot_B1)

    @property
    def specificity(self) -> np.ndarray:
        """Not flagged among those without."""
        return 1 - _ratio(self.fp_BT, self.cold_B1)

    @property
    def ppv(self) -> np.ndarray:
        """With the outcome among the flagged."""
        return _ratio(self.tp_BT, self.tp_BT + self.fp_BT)

    @property
    def min_se_ppv(self) -> np.ndarray:
        """The smaller of the two."""
        return np.minimum(self.sensitivity, self.ppv)

    @property
    def npv(self) -> np.ndarray:
        """Without among the others."""
        right = self.cold_B1 - self.fp_BT
        return _ratio(right, right + self.hot_B1 - self.tp_BT)

    @property
    def alerts(self) -> np.ndarray:
        """Flagged per 100."""
        return 100 * _ratio(self.tp_BT + self.fp_BT, self.rows_B1)

    def benefit(self, risk_T: np.ndarray) -> np.ndarray:
        """Net benefit where the cut is the risk at which one acts."""
        return (self.tp_BT - self.fp_BT * risk_T / (1 - risk_T)) / self.rows_B1

    def benefit_of_all(self, risk_T: np.ndarray) -> np.ndarray:
        """That of acting on everybody."""
        return (self.hot_B1 - self.cold_B1 * risk_T / (1 - risk_T)) / self.rows_B1


def _above(question: Question, cut_T: np.ndarray):
    """A function of weights f32[n, b] that gives the fields of `Counts`, [b, T] and [b, 1]."""
    bin_n, n = np.searchsorted(cut_T, question.p_n, side="right"), len(question.y_n)
    shape = len(cut_T) + 1, n
    sides = []
    for y in (question.y_n, ~question.y_n):
        sides.append(sparse.csr_array((y.astype(np.float32), (bin_n, np.arange(n))), shape=shape))

    def statistic(weight_nb: np.ndarray) -> dict[str, np.ndarray]:
        found = []
        for side in sides:  # from the top: how many rows lie in or above each bin
            above = np.cumsum((side @ weight_nb)[::-1].astype(np.float64), axis=0)[::-1].T
            found += [above[:, 1:], above[:, :1]]
        names = "tp_BT", "hot_B1", "fp_BT", "cold_B1"
        return dict(zip(names, found, strict=True))

    return statistic


def _ratio(part, whole):
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


def _vertices(question: Question, min_patients: int) -> np.ndarray:
    """Ascending cuts; between two of them, above the last and below the first lie enough patients.

    They are close where rows are many and where rows with the outcome are many.
    """
    order = np.argsort(-question.p_n, kind="stable")
    p_n, y_n, patient_n = question.p_n[order], question.y_n[order], question.patient_n[order]
    half, n = MAX_POINTS // 2, len(p_n)
    wanted = np.zeros(n, bool)
    wanted[np.linspace(0, n - 1, half + 1).astype(int)[1:]] = True
    hot = np.flatnonzero(y_n)
    wanted[hot[np.linspace(0, len(hot) - 1, half + 1).astype(int)[1:]]] = True
    cuts, since, waiting = [], set(), False
    for i in range(n - 1):
        since.add(patient_n[i])
        waiting |= bool(wanted[i])
        if waiting and len(since) >= min_patients and p_n[i + 1] < p_n[i]:
            cuts.append(p_n[i])
            since, waiting = set(), False
    since.add(patient_n[-1])
    if cuts and len(since) < min_patients:
        cuts.pop()
    return np.array(cuts[::-1])


def _shown(question: Question, cut_T: np.ndarray, min_patients: int) -> np.ndarray:
    """bool[T]: enough patients are flagged, and enough are not."""
    _, first, owner_n = np.unique(question.patient_n, return_index=True, return_inverse=True)
    highest, lowest = np.full(len(first), -np.inf), np.full(len(first), np.inf)
    np.maximum.at(highest, owner_n, question.p_n)
    np.minimum.at(lowest, owner_n, question.p_n)
    highest, lowest = np.sort(highest), np.sort(lowest)
    flagged = len(first) - np.searchsorted(highest, cut_T, side="left")
    spared = np.searchsorted(lowest, cut_T, side="left")
    return (flagged >= min_patients) & (spared >= min_patients)


def _estimate(value: float, value_B: np.ndarray, units: int, *, shown: bool = True) -> dict:
    if not shown:
        note = "too few patients above or below the cut"
        return {"value": None, "low": None, "high": None, "note": note}
    return bootstrap.interval(Value(float(value)), value_B, units=units)


def _line(x_T, y_T, x_BT, y_BT, units: int) -> list[dict]:
    """Points from the highest cut down, with an interval of y at that x."""
    y_BT = np.stack([_at(x_T, x, y) for x, y in zip(x_BT, y_BT, strict=True)])
    out = []
    for t in range(len(x_T))[::-1]:
        e = bootstrap.interval(Value(float(y_T[t])), y_BT[:, t], units=units)
        out.append({"x": number(x_T[t]), "y": e["value"], "low": e["low"], "high": e["high"]})
    return out


def _at(x_T, own_x, own_y):
    """A draw's y at other x, between its points; x falls with the cut."""
    known = np.isfinite(own_y) & np.isfinite(own_x)
    if not known.any():
        return np.full(len(x_T), np.nan)
    return np.interp(x_T, own_x[known][::-1], own_y[known][::-1])


def _decision(point: Counts, drawn: Counts, t: np.ndarray, risk_T: np.ndarray, units: int):
    """Net benefit by risk: of the model, of acting on all, of the model over the better plan."""
    out = []

    def at(counts: Counts):
        some = dataclasses.replace(counts, tp_BT=counts.tp_BT[:, t], fp_BT=counts.fp_BT[:, t])
        mine, all_ = some.benefit(risk_T), some.benefit_of_all(risk_T)
        return mine, all_, mine - np.maximum(all_, 0)

    (mine, all_, gain), (mine_BT, _, gain_BT) = at(point), at(drawn)
    for i, risk in enumerate(risk_T):
        out.append(
            {
                "risk": number(risk),
                "benefit": _estimate(mine[0, i], mine_BT[:, i], units),
                "all": number(all_[0, i]),
                "gain": _estimate(gain[0, i], gain_BT[:, i], units),
            }
        )
    return out


def _histogram(question: Question, min_patients: int) -> list[dict]:
    """Share of rows by predicted risk; None where few patients are in a band."""
    band_n = np.clip(np.searchsorted(BANDS, question.p_n, side="right") - 1, 0, len(BANDS) - 2)
    out = []
    for k, (low, high) in enumerate(zip(BANDS[:-1], BANDS[1:], strict=True)):
        inside = band_n == k
        patients = len(np.unique(question.patient_n[inside]))
        share = number(inside.mean()) if patients >= min_patients else None
        out.append({"low": number(low), "high": number(high), "share": share if patients else 0.0})
    return out


def _regression(predictions: Predictions, spec: DataSpec, task: TaskSpec, min_patients: int):
    full = predictions.full()
    mask_N = predictions.scored(spec, task, full)[:, 0]
    y, p = (
        predictions.label[task.name][mask_N, 0],
        predictions.prediction[task.name][full][mask_N, 0],
    )
    patient = predictions.patient[mask_N]
    if len(np.unique(patient)) < 2 * min_patients:
        return None
    bin_n, curve = calibration.bin_index(p), []
    for k in range(calibration.NUM_BINS):
        inside = bin_n == k
        if len(np.unique(patient[inside])) >= min_patients:
            low, middle, high = np.quantile(y[inside], [0.25, 0.5, 0.75])
            row = {"predicted": number(float(np.median(p[inside]))), "observed": number(middle)}
            curve.append({**row, "low": number(low), "high": number(high)})
    return {"label": task.name, "fit": curve, **recalibration.linear(y, p.astype(float), patient)}
