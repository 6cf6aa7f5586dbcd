"""A task as questions with one answer each, for analyses that judge single predictions.

A binary task and every label of a multilabel one are a question with two classes, a multiclass task
is one with its classes, a regression task one with a number as its answer. Survival times and maps
are no such questions.

Letters: S subsets, N rows that have an answer, K classes (1 of a number).
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from m4.eval.conformal import Sample
from m4.eval.predictions import Predictions
from m4.specs import DataSpec, TaskSpec

KINDS = ("binary", "multilabel", "multiclass", "regression")


@dataclasses.dataclass(frozen=True)
class Question:
    """One question and the rows of the split whose answer is known on the full input.

    `column` is that of the label of a multilabel task, 0 otherwise.
    """

    task: TaskSpec
    label: str
    classes: tuple[str, ...]  # () of a number
    column: int
    rows: np.ndarray  # i64[N], into the predictions
    truth_N: np.ndarray  # i64 class, or f64 number

    def answers(self, predictions: Predictions, subset: int) -> np.ndarray:
        """What is predicted under a subset: f64[N, K] probabilities, or f64[N, 1] numbers."""
        found = predictions.prediction[self.task.name][subset, self.rows].astype(np.float64)
        if self.task.kind in ("binary", "multilabel"):
            found = found[:, [self.column]]
            return np.concatenate([1 - found, found], axis=1)
        return found

    def scores(self, answers_NK: np.ndarray) -> np.ndarray:
        """How strange each candidate is: 1 - p of a class, the residual of a number."""
        if self.classes:
            return 1 - answers_NK
        return np.abs(self.scale(self.truth_N[:, None]) - self.scale(answers_NK))

    def sample(self, predictions: Predictions) -> Sample:
        """The rows on the full input."""
        answers_NK = self.answers(predictions, predictions.full())
        truth_N = self.truth_N if self.classes else np.zeros(len(self.rows), int)
        there = predictions.present[self.rows], predictions.patient[self.rows]
        return Sample(self.scores(answers_NK), truth_N.astype(int), *there)

    def scale(self, value: np.ndarray) -> np.ndarray:
        """Values on the scale on which residuals are compared, that of the loss."""
        return np.log1p(np.maximum(value, 0)) if self.task.transform == "log1p" else value

    def unscale(self, value: np.ndarray) -> np.ndarray:
        """The inverse of `scale`; a value that has none is where the unit begins."""
        return np.expm1(np.maximum(value, 0)) if self.task.transform == "log1p" else value


def ask(
    predictions: Predictions, spec: DataSpec, task: TaskSpec, *, everybody: bool = False
) -> Iterator[Question]:
    """The questions of a task, in the order of its labels.

    With `everybody` also of rows whose answer is not known; what stands for it means nothing.
    """
    if task.kind not in KINDS or task.name not in predictions.prediction:
        return
    known_NL = predictions.scored(spec, task, predictions.full())
    if everybody:
        known_NL = predictions.asked(spec, task, predictions.full())[:, None] | known_NL
    value_NL = predictions.label[task.name]
    for column in range(task.dim if task.kind == "multilabel" else 1):
        rows = np.flatnonzero(known_NL[:, column])
        truth_N = value_NL[rows, column]
        label = task.name
        if task.kind == "regression":
            yield Question(task, label, (), column, rows, truth_N)
            continue
        if task.kind == "multilabel":
            label = task.labels[column] if task.labels else f"{task.name} {column}"
        classes = (f"no {label}", label)
        if task.kind == "multiclass":
            classes = task.labels or tuple(f"{task.name} {k}" for k in range(task.dim))
        yield Question(task, label, classes, column, rows, truth_N.astype(int))
