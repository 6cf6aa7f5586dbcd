"""Selective prediction: what is gained by answering only where the model is sure.

A model answers those of whom it is surest, by the probability of the class that it gives; the
others go to a person. `section` makes the part "selective" of the results document. `E` is an
estimate {value, low, high, note?} of the patient bootstrap.

    tasks   {task: [{label, classes: [name],
              curve: [{share, sure, patients, error: E, brier: E, classes: [share answered]}],
              area: {model: E, random, best},    mean error over all shares answered
              single: {answered: E, error: E, classes: [share answered]} }]}

`share` of the rows is answered: those whose probability is at least `sure`. A point is left out
where fewer than `smallest` patients lie between it and the one before, a class's share likewise:
otherwise the few could be had by subtraction. A share of none or all has Wilson's interval, as no
draw of its patients differs. `single` answers where the prediction set of `m4.eval.coverage` has
one class, which is the answer; None without sets.
Who is left to people may be of one kind: see `m4.eval.fairness`.

Letters: N rows, K classes, B draws, b draws of one chunk, G shares.
"""

from typing import Any

import numpy as np

from m4 import cells
from m4.eval import bootstrap, calibration
from m4.eval.bootstrap import Draws, number
from m4.eval.coverage import Verdicts
from m4.eval.metrics import Value

SHARES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)


def section(found: list[Verdicts], draws: Draws, smallest: int) -> dict[str, Any] | None:
    """The part of the document; None without a question that has classes."""
    tasks: dict[str, list] = {}
    for verdicts in found:
        if verdicts.question.classes and verdicts.sample_patients() >= smallest:
            described = _question(verdicts, draws, smallest)
            tasks.setdefault(verdicts.question.task.name, []).append(described)
    return {"tasks": tasks} if tasks else None


def _question(verdicts: Verdicts, draws: Draws, smallest: int) -> dict[str, Any]:
    question, p_NK, truth_N = verdicts.question, verdicts.answer_NK, verdicts.sample.truth_N
    sure_N, wrong_N = p_NK.max(axis=1), (p_NK.argmax(axis=1) != truth_N).astype(float)
    hot_NK = np.eye(p_NK.shape[1])[truth_N]
    brier_N = ((p_NK - hot_NK) ** 2).sum(axis=1) / (2 if p_NK.shape[1] == 2 else 1)
    mean = Means(verdicts, draws, smallest)
    curve, last_N = [], None
    classes = _Answered(verdicts, mean, smallest)
    for share in SHARES:
        cut = np.quantile(sure_N, 1 - share, method="inverted_cdf") if share < 1 else 0.0
        some_N = sure_N >= cut
        between_N = some_N if last_N is None else last_N & ~some_N
        if min(mean.patients(some_N), mean.patients(between_N)) < smallest:
            continue
        last_N = some_N
        point = {"share": number(some_N.mean()), "sure": number(cut)}
        point |= {"patients": mean.count(some_N)}
        point |= {"error": mean.share(wrong_N, some_N), "brier": mean.of(brier_N, some_N)}
        curve.append(point | {"classes": classes.shares(some_N)})
    return {
        "label": question.label,
        "classes": [*question.classes],
        "curve": curve,
        "area": _area(sure_N, wrong_N, verdicts, draws),
        "single": _single(verdicts, mean, smallest),
    }


class Means:
    """Means of a value over rows of a question, with intervals of the patient bootstrap."""

    def __init__(self, verdicts: Verdicts, draws: Draws, smallest: int):
        """`smallest` patients are needed for a mean."""
        self._rows, self._draws, self._smallest = verdicts.question.rows, draws, smallest

    def count(self, some_N: np.ndarray) -> int | None:
        """Patients of some rows, rounded to tens; None below the smallest cell."""
        return cells.shown(self.patients(some_N), self._smallest)

    def patients(self, some_N: np.ndarray) -> int:
        """Patients of some rows."""
        return len(np.unique(self._draws.patient_N[self._rows[some_N]]))

    def drawn(self, value_N: np.ndarray, some_N: np.ndarray) -> np.ndarray:
        """The mean under every draw, f64[B]; NaN where nobody is drawn."""
        chosen = np.zeros(len(self._draws.patient_N), bool)
        chosen[self._rows[some_N]] = True  # rows of a question are in order
        value_n = value_N[some_N]

        def statistic(weight_nb):
            total_b = weight_nb.sum(axis=0)
            sums = value_n @ weight_nb
            return {"mean": np.where(total_b > 0, sums / np.maximum(total_b, 1), np.nan)}

        return self._draws.map(statistic, chosen)["mean"]

    def of(self, value_N: np.ndarray, some_N: np.ndarray) -> dict[str, Any]:
        """The mean with its interval, as JSON."""
        if (patients := self.patients(some_N)) < self._smallest:
            note = f"fewer than {self._smallest} patients"
            return {"value": None, "low": None, "high": None, "note": note}
        value = Value(float(value_N[some_N].mean()))
        return bootstrap.interval(value, self.drawn(value_N, some_N), units=patients)

    def share(self, hit_N: np.ndarray, some_N: np.ndarray) -> dict[str, Any]:
        """`of` values that are 0 or 1. No draw differs where none or all of them are 1."""
        found = self.of(hit_N, some_N)
        if found["value"] not in (0.0, 1.0):
            return found
        low, high = calibration.wilson(found["value"], self.patients(some_N))
        found |= {"low": number(max(low, 0.0)), "high": number(min(high, 1.0))}
        return found | {"note": "no draw differs: Wilson's interval"}


class _Answered:
    """Of each class the share that is answered, such that the few cannot be had by subtraction."""

    def __init__(self, verdicts: Verdicts, mean: Means, smallest: int):
        kinds = range(len(verdicts.question.classes))
        self._own = [verdicts.sample.truth_N == k for k in kinds]
        self._last, self._mean, self._smallest = [*self._own], mean, smallest

    def shares(self, some_N: np.ndarray) -> list[float | None]:
        """None where few patients are answered, or few lie between these and those last given."""
        found: list[float | None] = []
        for k, own_N in enumerate(self._own):
            now_N = own_N & some_N
            few = self._mean.patients(own_N) < self._smallest
            for part_N in (now_N, self._last[k] & ~now_N):
                few |= 0 < self._mean.patients(part_N) < self._smallest
            found.append(None if few else number(some_N[own_N].mean()))
            self._last[k] = self._last[k] if few else now_N
        return found


def _area(sure_N, wrong_N, verdicts: Verdicts, draws: Draws) -> dict[str, Any]:
    """Mean error over all shares, the surest first; of a random order, and of the best one.

    Rows of equal sureness are answered together.
    """
    order, rows = np.argsort(-sure_N, kind="stable"), verdicts.question.rows
    last = np.searchsorted(-sure_N[order], -sure_N[order], side="right") - 1
    place = np.full(len(draws.patient_N), -1)
    place[rows] = np.arange(len(rows))
    chosen = place >= 0

    def statistic(weight_nb):
        weight = weight_nb[order]
        errors = np.cumsum(weight * wrong_N[order][:, None], axis=0)
        count = np.cumsum(weight, axis=0)
        risk = (errors / np.maximum(count, 1))[last]
        return {"area": (risk * weight).sum(axis=0) / np.maximum(count[-1], 1)}

    once = np.ones((len(rows), 1))
    value = float(statistic(once)["area"][0])
    drawn = draws.map(statistic, chosen)["area"]
    units = len(np.unique(verdicts.sample.patient_N))
    right_first = np.cumsum(np.sort(wrong_N)) / np.arange(1, len(rows) + 1)
    model = bootstrap.interval(Value(value), drawn, units=units)
    return {
        "model": model,
        "random": number(wrong_N.mean()),
        "best": number(right_first.mean()),
    }


def _single(verdicts: Verdicts, mean: Means, smallest: int) -> dict[str, Any]:
    """What is answered where one class alone is in the set."""
    judged, truth_N = verdicts.best, verdicts.sample.truth_N
    alone_N = judged.size_N() == 1
    wrong_N = (judged.inside_NK.argmax(axis=1) != truth_N).astype(float)
    some = {
        "answered": mean.share(alone_N.astype(float), np.ones(len(truth_N), bool)),
        "error": mean.share(wrong_N, alone_N),
    }
    if any(0 < mean.patients(side) < smallest for side in (alone_N, ~alone_N)):
        note = f"fewer than {smallest} patients on one side"
        some = {key: {"value": None, "low": None, "high": None, "note": note} for key in some}
    return {
        **some,
        "classes": _Answered(verdicts, mean, smallest).shares(alone_N),
    }
