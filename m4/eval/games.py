"""What every subset of the modalities is worth to every row: the game that analyses play.

A task with probabilities is worth the log of the one given to what came true, in nats; a regression
the absolute error with its sign turned. Unlike AUROC such a value belongs to one row, so it can be
had for a cohort, a group or a patient, and it does not saturate. Rows that have nothing left under
a subset, and all rows under the empty one, get the mean of the full input's answers; so every
subset is judged on the same rows, those of the full input. Survival times and maps have no game.

Letters: S subsets (the empty one last), N rows of the split, n rows with a label, M modalities,
C labels, classes or values, L label columns, Q quantities, P patients, B draws, R pairs of
reversed orders.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from m4.eval import bootstrap, subsets
from m4.eval.bootstrap import Draws
from m4.eval.metrics import EPS, Value
from m4.eval.predictions import Predictions
from m4.specs import DataSpec, TaskSpec

KINDS = ("binary", "multilabel", "multiclass", "regression")


@dataclasses.dataclass(frozen=True)
class Game:
    """One task of a split, on the rows whose label is known."""

    predictions: Predictions
    task: TaskSpec
    names: tuple[str, ...]  # of the modalities
    keep_SM: np.ndarray  # bool
    value_Sn: np.ndarray  # f64, summed over a row's known labels
    weight_n: np.ndarray  # f64, how many those are
    row_n: np.ndarray  # i64, into the split
    patient_n: np.ndarray  # as in the split
    present_nM: np.ndarray  # bool
    positive_n: np.ndarray | None  # bool: the outcome of a binary task
    draws: Draws
    min_patients: int
    seed: int = 0  # of the random orders, where not every subset was swept

    @property
    def unit(self) -> str:
        """Of the values."""
        return "mean absolute error" if self.task.kind == "regression" else "nats"

    @property
    def complete(self) -> bool:
        """Whether every subset is there."""
        return len(self.keep_SM) == 2 ** len(self.names)

    @functools.cached_property
    def orders(self) -> list[tuple[int, ...]]:
        """The random orders that pass the swept subsets, each followed by its reverse."""
        return [] if self.complete else subsets.orders(self.keep_SM, self.seed)

    @property
    def label_nL(self) -> np.ndarray:
        """Labels of the rows, 0 where unknown."""
        return self.predictions.label[self.task.name][self.row_n]

    @property
    def known_nL(self) -> np.ndarray:
        """Which of them are known."""
        return self.predictions.label_mask[self.task.name][self.row_n]

    def answer(self, s: int) -> np.ndarray:
        """What is predicted for the rows under subset `s`, f64[n, C]."""
        return answers(self.predictions, self.task, self.row_n, s)

    def place(self) -> dict[tuple[bool, ...], int]:
        """Where each subset stands."""
        return {tuple(map(bool, keep)): s for s, keep in enumerate(self.keep_SM)}

    def means(
        self,
        value_Qn: np.ndarray,
        some_n: np.ndarray | None = None,
        *,
        weighted: bool = True,
        pairs_QR: np.ndarray | None = None,
    ) -> list[dict[str, Any]]:
        """The mean of each quantity over (some) rows as an estimate, all from the same draws.

        A row counts by its labels, or once if not `weighted`. Too few patients give no numbers.
        `pairs_QR` is what each pair of orders says of them, whose error then counts, too.
        """
        some_n = np.ones(len(self.row_n), bool) if some_n is None else some_n
        units = self.units(some_n)
        if units is None:
            note = f"fewer than {self.min_patients} patients"
            return [{"value": None, "low": None, "high": None, "note": note}] * len(value_Qn)
        weight_n = self.weight_n[some_n] if weighted else np.ones(some_n.sum())
        value_Q, value_QB = self._drawn(value_Qn[:, some_n], weight_n, some_n)
        pairs = [None] * len(value_Q) if pairs_QR is None else pairs_QR
        return [
            estimate(float(value), value_B, units, pairs_R, smallest=self.min_patients)
            for value, value_B, pairs_R in zip(value_Q, value_QB, pairs, strict=True)
        ]

    def _drawn(self, value_Qn, weight_n, some_n) -> tuple[np.ndarray, np.ndarray]:
        """Means f64[Q] and their draws f64[Q, B]."""
        owner_n = self.draws.patient_N[self.row_n[some_n]]
        count_PB = self.draws.count_PB
        both = [np.bincount(owner_n, x, minlength=len(count_PB)) for x in (*value_Qn, weight_n)]
        *sum_QB, weight_B = np.stack(both) @ count_PB.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            return value_Qn.sum(axis=1) / weight_n.sum(), np.stack(sum_QB) / weight_B

    def patients(self, some_n: np.ndarray) -> int:
        """How many patients the rows are of."""
        return len(np.unique(self.patient_n[some_n]))

    def units(self, some_n: np.ndarray) -> int | None:
        """Patients that a mean rests on, of the rarer outcome if there are two; None: too few."""
        if self.patients(some_n) < self.min_patients:
            return None
        if self.positive_n is None:
            return self.patients(some_n)
        return min(self.patients(some_n & side) for side in (self.positive_n, ~self.positive_n))


def estimate(
    value: float,
    value_B: np.ndarray,
    units: int,
    pairs_R: np.ndarray | None = None,
    *,
    smallest: int = 0,
) -> dict[str, Any]:
    """An estimate with two-sided p, as JSON; `units`, `smallest`: `m4.eval.bootstrap.interval`.

    `value` may be a mean of what R independent pairs of orders say: `bootstrap.Sampled`.
    """
    error = None if pairs_R is None else bootstrap.Sampled.of(pairs_R)
    found = bootstrap.interval(Value(value), value_B, units=units, smallest=smallest)
    if found["low"] is not None and units > 1:
        found["p"] = bootstrap.number(bootstrap.two_sided(value, value_B, units=units, error=error))
    return found if error is None else error.widen(found)


def play(
    predictions: Predictions,
    spec: DataSpec,
    task: TaskSpec,
    draws: Draws,
    *,
    min_patients: int,
    seed: int = 0,
) -> Game | None:
    """The game of a task; None for a kind without one, or if no label is known.

    `seed` is that of the random orders whose subsets were swept, if not all were.
    """
    if task.kind not in KINDS or task.name not in predictions.prediction:
        return None
    known_NL = predictions.scored(spec, task, predictions.full())
    row_n = np.flatnonzero(known_NL.any(axis=1))
    if not row_n.size:
        return None
    keep_SM = np.concatenate([predictions.subsets, np.zeros((1, len(spec.modalities)), bool)])
    label_nL, known_nL = predictions.label[task.name][row_n], known_NL[row_n]
    value_Sn = np.stack(
        [
            worth(task, label_nL, known_nL, answers(predictions, task, row_n, s))
            for s in range(len(keep_SM))
        ]
    )
    return Game(
        predictions=predictions,
        task=task,
        names=spec.modality_names,
        keep_SM=keep_SM,
        value_Sn=value_Sn,
        weight_n=known_nL.sum(axis=1).astype(np.float64),
        row_n=row_n,
        patient_n=predictions.patient[row_n],
        present_nM=predictions.present[row_n],
        positive_n=label_nL[:, 0] > 0 if task.kind == "binary" else None,
        draws=draws,
        min_patients=min_patients,
        seed=seed,
    )


def answers(predictions: Predictions, task: TaskSpec, row_n: np.ndarray, s: int) -> np.ndarray:
    """Predictions under subset `s`, f64[n, C]; one beyond the last is the empty subset.

    Where nothing is left, the full input's mean over the rows (of the same network).
    """
    full_nC = predictions.prediction[task.name][predictions.full(), row_n].astype(np.float64)
    fold_n = np.zeros(len(row_n)) if predictions.fold is None else predictions.fold[row_n]
    mean_nC = np.empty_like(full_nC)
    for fold in np.unique(fold_n):
        mean_nC[fold_n == fold] = full_nC[fold_n == fold].mean(axis=0)
    if s == len(predictions.subsets):
        return mean_nC
    own_nC = predictions.prediction[task.name][s, row_n].astype(np.float64)
    return np.where(predictions.counted[s, row_n][:, None], own_nC, mean_nC)


def worth(
    task: TaskSpec, label_nL: np.ndarray, known_nL: np.ndarray, answer_nC: np.ndarray
) -> np.ndarray:
    """Value of an answer to each row, summed over its known labels, f64[n]."""
    if task.kind == "regression":
        return -(known_nL * np.abs(label_nL - answer_nC)).sum(axis=1)
    if task.kind == "multiclass":
        of_true_n = np.take_along_axis(answer_nC, label_nL.astype(int), axis=1)[:, 0]
        return np.log(np.clip(of_true_n, EPS, 1))
    safe_nC = np.clip(answer_nC, EPS, 1 - EPS)
    return (known_nL * np.where(label_nL > 0, np.log(safe_nC), np.log1p(-safe_nC))).sum(axis=1)
