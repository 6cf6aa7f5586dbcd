"""Is the model as good for women as for men, in one ward as in the other? By group columns.

`section` makes the part "groups" of the results document from `Predictions.groups`, columns that
the model never saw. `E` is an estimate {value, low, high, note?} of the patient bootstrap.

    columns  {column: {categories: [{category, patients, absent: {modality: share of rows; null
               where it is of few}, dropped: {layer: share of assignments}}], unknown: patients}}
    tasks    {task: {column: {metric: [{category, patients, E...}]}}}
    gaps     {task: [{column, metric, more: category, less: category, E..., p, p_holm}]}

Per column and metric `gaps` has the two categories that are furthest apart, with the paired
interval of their difference. `p_holm` is adjusted over all pairs of categories of all columns and
metrics of the task, so that the worst of many is not found guilty by chance (Holm 1979).

A share of none or all (24 of 24 covered) has Wilson's interval, as no draw of its patients differs;
gaps to such a share add the two intervals in squares (Newcombe 1998). What would tell of few
patients is a row without a value: a share with few on one of its sides, and a score of two outcomes
of which the rarer has few, which would be noise besides.

Metrics are the task's primary one, and of single answers: `bias` (mean prediction less the rate of
the outcome, or mean error), `covered` by its prediction set or interval (of a binary task those
with the outcome), `answered` (one of two classes in the set) or `set_size` (of more), `absent`
(share of the modalities that a row lacks). `dropped` is of layers whose capacity is limited:
assignments that no expert took.

Letters: N rows, M modalities, B draws.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm

from m4 import cells
from m4.eval import bootstrap, calibration, holm
from m4.eval.bootstrap import Draws, number
from m4.eval.coverage import Verdicts
from m4.eval.metrics import Value
from m4.eval.predictions import Predictions
from m4.eval.scorer import Scorer
from m4.eval.selective import Means
from m4.specs import DataSpec

MAX_CATEGORIES = 12  # of a column, those with most patients
SHARES = ("covered", "answered", "absent")
DIGITS = 2  # of a share: with more, the number of patients could be had from it


class Measured(NamedTuple):
    """A metric of one category of a column."""

    column: str
    metric: str
    category: str
    patients: int
    units: int  # patients that the value rests on: of the rarer outcome, if it has two
    value: float
    draws: np.ndarray  # f64[B]
    note: str = ""  # why the value may not be shown
    smallest: int = 0  # of fewer patients notes do not tell how many, see `bootstrap.interval`

    def estimate(self) -> dict[str, Any]:
        """The value with its interval, as JSON."""
        if self.note:
            return {"value": None, "low": None, "high": None, "note": self.note}
        if not self.alike:
            args = Value(self.value), self.draws
            return bootstrap.interval(*args, units=self.units, smallest=self.smallest)
        if self.metric in SHARES and self.value in (0.0, 1.0):
            low, high = calibration.wilson(self.value, self.units)
            note = "no draw differs: Wilson's interval"
            return {"value": self.value, "low": number(low), "high": number(high), "note": note}
        note = "no interval: all draws are alike"
        note = note if np.isfinite(self.value) else "undefined: nobody has the rarer outcome"
        return {"value": number(self.value), "low": None, "high": None, "note": note}

    @property
    def alike(self) -> bool:
        """Whether no draw differs from another, but for rounding."""
        defined = self.draws[np.isfinite(self.draws)]
        return not defined.size or bool(np.ptp(defined) < 1e-9)


def section(
    predictions: Predictions,
    spec: DataSpec,
    draws: Draws,
    found: list[Verdicts],
    thresholds: Mapping[str, np.ndarray],
    smallest: int,
) -> dict[str, Any] | None:
    """The part of the document; None without a column that has two categories to compare.

    Categories of fewer than `smallest` patients are left out, and shares that would tell of fewer.
    """
    groups = {c: members(predictions, c, smallest) for c in predictions.groups}
    groups = {column: own for column, own in groups.items() if len(own) > 1}
    if not groups:
        return None
    tasks, gaps = {}, {}
    for task in spec.tasks:
        if task.name not in predictions.prediction:
            continue
        scorer = Scorer(predictions, spec, task, draws, thresholds.get(task.name), smallest)
        own = [verdicts for verdicts in found if verdicts.question.task.name == task.name]
        measured = [*_primary(scorer, groups), *_single(own, groups, draws, smallest)]
        tasks[task.name] = _by_column(measured)
        gaps[task.name] = _gaps(measured)
    columns = {c: _column(predictions, spec, c, own, smallest) for c, own in groups.items()}
    return {"columns": columns, "tasks": tasks, "gaps": gaps}


def members(predictions: Predictions, column: str, smallest: int) -> dict[str, np.ndarray]:
    """Category -> its rows, bool[N], of categories with enough patients, the largest first."""
    category_N = predictions.groups[column]
    found = {}
    for category in np.unique(category_N[category_N != ""]):
        rows = category_N == category
        found[str(category)] = rows, len(np.unique(predictions.patient[rows]))
    large = sorted(((n, c) for c, (_, n) in found.items() if n >= smallest), reverse=True)
    return {category: found[category][0] for _, category in large[:MAX_CATEGORIES]}


def _column(predictions: Predictions, spec: DataSpec, column, own, smallest: int) -> dict[str, Any]:
    """Who is in a column: patients, what they lack, what experts did not take."""
    unknown = len(np.unique(predictions.patient[predictions.groups[column] == ""]))
    return {
        "categories": [
            {
                "category": category,
                "patients": _tens(predictions, rows),
                "absent": {
                    name: _absent(predictions, rows, m, smallest)
                    for m, name in enumerate(spec.modality_names)
                },
                "dropped": _dropped(predictions, rows),
            }
            for category, rows in own.items()
        ],
        "unknown": cells.shown(unknown, smallest),
    }


def _absent(predictions: Predictions, rows: np.ndarray, m: int, smallest: int) -> float | None:
    """Share of rows without a modality; None where those are few, or those who have it."""
    present_n, patient_n = predictions.present[rows, m], predictions.patient[rows]
    counts = [len(np.unique(patient_n[side])) for side in (present_n, ~present_n)]
    few = cells.tells_of_few(counts[0], sum(counts), smallest)
    return None if few else number(round(1 - present_n.mean(), DIGITS))


def _dropped(predictions: Predictions, rows: np.ndarray) -> dict[str, float | None]:
    """Layer -> share of the assignments of these rows that no expert took."""
    found = {}
    for name, layer in predictions.routing.items():
        if layer.lost is not None:
            asked, lost = layer.lost[rows].sum(axis=0)
            found[name] = number(round(lost / asked, DIGITS)) if asked else None
    return found


def _primary(scorer: Scorer, groups) -> Iterator[Measured]:
    """The task's primary metric in every category."""
    name = scorer.primary
    for column, own in groups.items():
        for category, rows in own.items():
            mask_NL = scorer.mask_full & rows[:, None]
            patients = scorer.patients(mask_NL)
            if patients >= scorer.min_patients:
                scored = scorer.subset(scorer.full, mask_NL, [name])
                value, drawn = scored.values[name].value, scored.draws[name]
                units = scorer.rests_on(mask_NL, name)
                few = f"fewer than {scorer.min_patients} patients with the rarer outcome"
                two = scorer.task.kind in (
                    "binary",
                    "survival",
                )  # means tell of none
                note = few if two and 0 < units < scorer.min_patients else ""
                own = column, name, category, patients, units, value, drawn
                yield Measured(*own, note, scorer.min_patients)


def _single(found: list[Verdicts], groups, draws: Draws, smallest: int) -> Iterator[Measured]:
    """Means over single answers in every category; of a task that is one question."""
    if len(found) != 1 or found[0].question.task.kind == "multilabel":
        return
    (verdicts,) = found
    mean = Means(verdicts, draws, smallest)
    for metric, (value_N, some_N) in _values(verdicts).items():
        for column, own in groups.items():
            for category, rows in own.items():
                chosen = some_N & rows[verdicts.question.rows]
                patients = mean.patients(chosen)
                if patients < smallest:
                    continue
                few = _few(metric, verdicts, mean, chosen, smallest)
                note = "" if not few else _about(metric, value_N[chosen])
                drawn = mean.drawn(value_N, chosen)
                value = float(value_N[chosen].mean())
                own = column, metric, category, patients, patients, value, drawn
                yield Measured(*own, note, smallest)


def _few(metric: str, verdicts: Verdicts, mean: Means, chosen: np.ndarray, smallest: int) -> bool:
    """Whether a share would tell of few patients: on one of its sides, or without a modality."""
    if metric == "absent":
        parts = verdicts.sample.present_NM.T
    elif metric in SHARES:
        parts = _values(verdicts)[metric][0][None] > 0
    else:
        return False
    sides = [chosen & side for part_N in parts for side in (part_N, ~part_N)]
    return any(0 < mean.patients(side) < smallest for side in sides)


def _about(metric: str, value_n: np.ndarray) -> str:
    """What may be said of a share that would tell of few."""
    if metric == "absent":
        return "would tell of few patients"
    return "nearly all" if value_n.mean() > 0.5 else "few"


def _values(verdicts: Verdicts) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Metric -> (value of each answer f64[N], the answers that it is of bool[N])."""
    question, truth_N, judged = verdicts.question, verdicts.sample.truth_N, verdicts.best
    everybody = np.ones(len(truth_N), bool)
    with_outcome = truth_N == 1 if question.task.kind == "binary" else everybody
    found = {"covered": (judged.covered_N.astype(float), with_outcome)}
    if question.task.kind == "binary":
        found["bias"] = verdicts.answer_NK[:, 1] - truth_N, everybody
    elif not question.classes:
        found["bias"] = verdicts.answer_NK[:, 0] - question.truth_N, everybody
    if question.classes:
        size_N, two = judged.size_N(), len(question.classes) == 2
        of = ("answered", size_N == 1) if two else ("set_size", size_N)
        found[of[0]] = of[1].astype(float), everybody
    found["absent"] = 1 - verdicts.sample.present_NM.mean(axis=1), everybody
    return found


def _by_column(measured: list[Measured]) -> dict[str, dict[str, list[dict]]]:
    out: dict[str, dict[str, list[dict]]] = {}
    for m in measured:
        estimate = _rounded(m.estimate()) if m.metric in SHARES else m.estimate()
        row = {"category": m.category, "patients": cells.tens(m.patients), **estimate}
        out.setdefault(m.column, {}).setdefault(m.metric, []).append(row)
    return out


def _gaps(measured: list[Measured]) -> list[dict[str, Any]]:
    """Of each column and metric the pair that is furthest apart, adjusted for all pairs."""
    worst: dict[tuple[str, str], dict[str, Any]] = {}
    every: list[dict[str, Any]] = []
    shown = [m for m in measured if not m.note]
    for key, own in itertools.groupby(shown, lambda m: (m.column, m.metric)):
        for a, b in itertools.combinations(own, 2):
            gap = _gap(*((a, b) if a.value >= b.value else (b, a)))
            if gap is None:
                continue
            every.append(gap)
            if key not in worst or gap["value"] > worst[key]["value"]:
                worst[key] = gap
    holm.add(every)
    return [*worst.values()]


def _gap(a: Measured, b: Measured) -> dict[str, Any] | None:
    """The difference a - b, paired; None where a value or its interval cannot be had."""
    value = a.value - b.value
    if a.alike or b.alike:
        found = _of_ends(a.estimate(), b.estimate())
        if found is None:
            return None
        estimate, p = found
    else:
        drawn, units = a.draws - b.draws, min(a.units, b.units)
        smallest = max(a.smallest, b.smallest)
        estimate = bootstrap.interval(Value(value), drawn, units=units, smallest=smallest)
        if estimate["low"] is None:
            return None
        p = bootstrap.two_sided(value, drawn, units=units)
    pair = {"column": a.column, "metric": a.metric, "more": a.category, "less": b.category}
    estimate = _rounded(estimate) if a.metric in SHARES else estimate
    return {**pair, **estimate, "p": number(p)}


def _of_ends(a: dict[str, Any], b: dict[str, Any]) -> tuple[dict[str, Any], float] | None:
    """The difference of two shares of different people, by their intervals, and its p.

    None where one of them has no interval.
    """
    if a["low"] is None or b["low"] is None:
        return None
    value = a["value"] - b["value"]
    down = np.hypot(a["value"] - a["low"], b["high"] - b["value"])
    up = np.hypot(a["high"] - a["value"], b["value"] - b["low"])
    p = 2 * norm.sf(norm.ppf(0.975) * value / down) if value > 0 else 1.0
    return {"value": value, "low": number(value - down), "high": number(value + up)}, float(p)


def _rounded(estimate: dict[str, Any]) -> dict[str, Any]:
    """An estimate of a share, to as many digits as may be shown."""
    return {k: round(v, DIGITS) if isinstance(v, float) else v for k, v in estimate.items()}


def _tens(predictions: Predictions, rows: np.ndarray) -> int:
    return cells.tens(len(np.unique(predictions.patient[rows])))
