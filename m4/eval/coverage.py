"""Whether prediction sets and intervals hold what they promise: overall, by class, by pattern.

`section` makes the part "conformal" of the results document. `E` is {value, band}: the share of
patients covered, and where 95 of 100 such shares would lie if the promise held. In the band is what
chance does on both sides: n patients of calibration leave a threshold whose coverage is
Beta(k, n + 1 - k) distributed, k = ceil((1 - alpha)(n + 1)), and those tested are a binomial draw
from it (Vovk 2012; Angelopoulos and Bates 2023, section 3.2).

    alpha        share that may be outside
    calibrated   'calibration' (patients of their own) or 'cross-fitted' (test patients on others)
    patients     of calibration, rounded to tens; of the one network with the fewest
    tasks        {task: [{label, classes: [name], chosen: method,
                  methods: {method: {
                    all: cell, classes: [cell], worst: share covered of the worst pattern,
                    patterns: [cell], cells: [cell],         of the chosen method
                    outside: [n, of]}},      cells (pattern and class) below their band
                  unit: 'classes' | 'width'}]}
    cell         {label, class?, patients, behind: patients of calibration behind the threshold,
                  coverage: E and `inside`, whether it is no smaller than the band; value null,
                  with `note`, where few patients are covered or are not,
                  size: classes or width of the median interval,
                  sizes: [share of sets with 0, 1, ... classes]}

With cross-fitting the coverage of whole cells is close to 1 - alpha by construction and the band is
too wide for it; what it can tell is whether finer cells and other groups are covered.

Letters: N rows, K classes, M modalities, D draws.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from scipy.stats import betabinom, norm

from m4 import cells
from m4.eval import conformal, nested
from m4.eval.bootstrap import number
from m4.eval.conformal import Judged, Sample
from m4.eval.predictions import Predictions
from m4.eval.questions import Question, ask
from m4.eval.subsets import describe, patterns
from m4.specs import DataSpec

FOLDS = 5
DRAWS = 1000  # of a band over several thresholds
MANY = 20  # thresholds, whose sum is as good as normal
MAX_LABELS = 6  # of a multilabel task, those whose rarer class has most patients
NESTED = "nested"
DIGITS = 2  # of a share: with more, the number of patients could be had from it


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """One question, what each method said of its rows, and where it was calibrated."""

    question: Question
    sample: Sample
    answer_NK: np.ndarray  # what was predicted
    methods: dict[str, Judged]
    chosen: str
    calibrated: str
    patients: int  # of calibration, per network

    def sample_patients(self) -> int:
        """Patients of the test split whose answer is known."""
        return len(np.unique(self.sample.patient_N))

    @property
    def best(self) -> Judged:
        """By the method that is recommended."""
        return self.methods[self.chosen]


def judge(
    predictions: Predictions,
    spec: DataSpec,
    *,
    alpha: float,
    calibration: Predictions | None = None,
    seed: int = 0,
) -> Iterator[Verdicts]:
    """Every method on every question that has enough patients.

    Args:
      predictions: of the test split.
      spec: the data set.
      alpha: share of patients that may be outside.
      calibration: predictions of patients who neither trained nor chose the model; without them
        test patients are judged by thresholds of other test patients.
      seed: of the folds.
    """
    for task in spec.tasks:
        asked = [*ask(predictions, spec, task)]
        others = [*ask(calibration, spec, task)] if calibration is not None else asked
        both = [*zip(asked, others, strict=False)]
        if task.kind == "multilabel":
            both = sorted(both, key=lambda pair: -_rarer(pair[0], predictions))[:MAX_LABELS]
        for question, other in both:
            found = _judge(predictions, question, calibration, other, alpha, seed)
            if found is not None:
                yield found


def _judge(
    predictions: Predictions,
    question: Question,
    calibration: Predictions | None,
    other: Question,
    alpha: float,
    seed: int,
) -> Verdicts | None:
    sample = question.sample(predictions)
    source = predictions if calibration is None else calibration
    pairs = _pairs(predictions, question, calibration, other, seed)
    behind = [len(np.unique(source.patient[other.rows[chosen]])) for chosen, _ in pairs]
    if not pairs or min(behind) < conformal.smallest_cell(alpha):
        return None
    theirs = other.sample(source)
    plain = [(theirs.rows(chosen), rows) for chosen, rows in pairs]
    names = [
        m for m, (_, by_class) in conformal.METHODS.items() if question.classes or not by_class
    ]
    methods = {name: conformal.judge(sample, plain, name, alpha) for name in names}
    chosen = conformal.recommended(question.classes)
    masked = [(nested.Masked(source, other, chosen), rows) for chosen, rows in pairs]
    whole = nested.Masked(predictions, question, None)
    methods[NESTED] = nested.judge(whole, masked, alpha, methods[chosen], seed=seed)
    how = "cross-fitted" if calibration is None else "calibration"
    answer_NK = question.answers(predictions, predictions.full())
    return Verdicts(question, sample, answer_NK, methods, chosen, how, min(behind))


def _pairs(predictions, question, calibration, other, seed) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows of calibration, test rows that they serve): by network, or by fold."""
    network = None if predictions.fold is None else predictions.fold[question.rows]
    if calibration is None:
        patient_N = predictions.patient[question.rows]
        return [*conformal.parts(patient_N, network, folds=FOLDS, seed=seed)]
    if network is None or calibration.fold is None:
        return [(np.ones(len(other.rows), bool), np.ones(len(question.rows), bool))]
    theirs = calibration.fold[other.rows]
    return [(theirs == k, network == k) for k in np.unique(network)]


def _rarer(question: Question, predictions: Predictions) -> int:
    """Patients with the rarer class."""
    patient_N = predictions.patient[question.rows]
    return min(len(np.unique(patient_N[question.truth_N == k])) for k in (0, 1))


def section(
    found: list[Verdicts], predictions: Predictions, spec: DataSpec, alpha: float, smallest: int
) -> dict[str, Any] | None:
    """The part of the document; None without a question that can be judged.

    Cells of fewer than `smallest` patients are left out.
    """
    if not found:
        return None
    tasks: dict[str, list] = {}
    for verdicts in found:
        question = verdicts.question
        methods = {
            name: _method(verdicts, judged, predictions, spec, alpha, smallest)
            for name, judged in verdicts.methods.items()
        }
        tasks.setdefault(question.task.name, []).append(
            {
                "label": question.label,
                "classes": [*question.classes],
                "chosen": verdicts.chosen,
                "unit": "classes" if question.classes else "width",
                "methods": methods,
            }
        )
    return {
        "alpha": alpha,
        "calibrated": found[0].calibrated,
        "patients": cells.tens(min(v.patients for v in found)),
        "tasks": tasks,
    }


def _method(verdicts: Verdicts, judged: Judged, predictions, spec, alpha, smallest) -> dict:
    """One method of one question: everybody, by class, by pattern, and both."""
    question, names = verdicts.question, spec.modality_names
    rows, truth_N = question.rows, verdicts.sample.truth_N
    present_NM, patient_N = predictions.present[rows], predictions.patient[rows]
    kinds = range(len(question.classes))

    def judged_of(label: str, mask_N: np.ndarray, kind: int | None = None) -> Iterator[dict]:
        mask_N = mask_N if kind is None else mask_N & (truth_N == kind)
        if len(np.unique(patient_N[mask_N])) >= smallest:
            named = {} if kind is None else {"class": question.classes[kind]}
            found = describe_cell(verdicts, judged, mask_N, alpha, smallest)
            yield {"label": label, **named, **found}

    everybody = np.ones(len(rows), bool)
    where = [
        (describe(names, keep), (present_NM == keep).all(axis=1))
        for keep, count in patterns(present_NM, patient_N)
        if count >= smallest
    ]
    fine = [c for label, mask in where for k in kinds for c in judged_of(label, mask, k)]
    by_pattern = [c for label, mask in where for c in judged_of(label, mask)]
    judged_by = fine or by_pattern
    detail = {"patterns": by_pattern, "cells": fine} if judged is verdicts.best else {}
    return {
        "all": next(judged_of("everybody", everybody), None),
        "classes": [c for k in kinds for c in judged_of("everybody", everybody, k)],
        "worst": min((share for c in by_pattern if (share := value(c)) is not None), default=None),
        **detail,
        "outside": [sum(not inside(c["coverage"]) for c in judged_by), len(judged_by)],
    }


def inside(coverage: Mapping[str, Any]) -> bool:
    """Whether a share of covered patients is no smaller than chance makes it."""
    return coverage["inside"] if "inside" in coverage else coverage["value"] >= coverage["band"][0]


def value(cell: Mapping[str, Any]) -> float | None:
    """The share of a cell that is covered; None where it would tell of few patients."""
    return cell["coverage"]["value"]


def describe_cell(
    verdicts: Verdicts, judged: Judged, mask_N: np.ndarray, alpha: float, smallest: int = 1
) -> dict[str, Any]:
    """Coverage with its band, and size, of some rows of a question; a patient counts once.

    Shares have two digits, or none where fewer than `smallest` patients are covered or are not.
    """
    patients, weight_n = conformal.weights(verdicts.sample.patient_N[mask_N])
    weight_n = weight_n / weight_n.sum()
    covered = float(weight_n @ judged.covered_N[mask_N])
    band = chance(judged.patients_N[mask_N], judged.cell_N[mask_N], weight_n * patients, alpha)
    few = cells.tells_of_few(round(covered * patients, 6), patients, smallest)
    out: dict[str, Any] = {
        "patients": cells.tens(patients),
        "behind": cells.tens(int(np.median(judged.patients_N[mask_N]))),
        "coverage": {
            "value": None if few else number(round(covered, DIGITS)),
            "band": [number(round(end, DIGITS)) for end in band],
            "inside": covered >= band[0],
        }
        | ({"note": "nearly all" if covered > 0.5 else "few"} if few else {}),
    }
    if verdicts.question.classes:
        size_n, most = judged.size_N()[mask_N], len(verdicts.question.classes)
        shares = np.bincount(size_n, weights=weight_n, minlength=most + 1)
        out |= {
            "size": number(round(weight_n @ size_n, DIGITS)),
            "sizes": [number(round(share, DIGITS)) for share in shares],
        }
    else:
        out["size"] = number(_width(verdicts, judged, mask_N))
    return out


def _width(verdicts: Verdicts, judged: Judged, mask_N: np.ndarray) -> float:
    """Median width of the intervals, in the unit of the answer; NaN where it is not known."""
    question, value_n = verdicts.question, judged.value_NK[mask_N, 0]
    if not np.isfinite(value_n).all():
        return math.nan
    middle_n = question.scale(verdicts.answer_NK[mask_N, 0])
    low_n, high_n = (question.unscale(middle_n + sign * value_n) for sign in (-1, 1))
    return float(np.median(high_n - low_n))


def chance(
    behind_n: np.ndarray, cell_n: np.ndarray, weight_n: np.ndarray, alpha: float, *, level=0.95
) -> tuple[float, float]:
    """The band of the share covered, given the patients behind each row's threshold.

    Rows with the same `cell_n` share a threshold; `weight_n` sums to the number of patients.
    """
    cells, first, which = np.unique(cell_n, return_index=True, return_inverse=True)
    tested = np.rint(np.bincount(which.reshape(-1), weights=weight_n)).astype(int)
    tested, behind = np.maximum(tested, 1), behind_n[first]
    rank = np.ceil((1 - alpha) * (behind + 1) - 1e-9)
    ends = np.array([(1 - level) / 2, (1 + level) / 2])
    some = rank <= behind  # otherwise everything is inside
    if len(cells) == 1 and some.all():
        low, high = betabinom.ppf(ends, tested[0], rank[0], behind[0] + 1 - rank[0])
        return float(low / tested[0]), float(high / tested[0])
    sure, (n, k, m) = tested[~some].sum(), (x[some] for x in (tested, rank, behind))
    if len(n) > MANY:
        share = k / (m + 1)
        spread = np.sqrt((n * share * (1 - share) * (m + 1 + n) / (m + 2)).sum())
        found = np.clip(sure + (n * share).sum() + norm.ppf(ends) * spread, 0, tested.sum())
    else:
        rng = np.random.default_rng(0)
        total_D = rng.binomial(n, rng.beta(k, m + 1 - k, (DRAWS, len(n)))).sum(axis=1)
        found = np.quantile(sure + total_D, ends, method="inverted_cdf")
    low, high = found / tested.sum()
    return float(low), float(high)
