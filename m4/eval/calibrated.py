"""Prediction sets and intervals of people whose answer is not known, by patients set aside.

`rules` are the thresholds by which `m4.eval.coverage` judges the recommended method, as JSON:

    {task: [{label, classes: [name], column, alpha, levels: [{among: [modality], cells: {pattern:
     [threshold of each class, null where it rests on too few, 'all' where everything is inside]}}]
    }]}

A question has one each; `column` is that of the label of a multilabel task. A person's threshold is
that of the first level whose cell is not null. `sets` says what they make of predictions.

Letters: N rows, K classes (1 of an interval), M modalities.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from m4.eval import conformal
from m4.eval.conformal import Rule
from m4.eval.predictions import Predictions
from m4.eval.questions import Question, ask
from m4.specs import DataSpec

Rules = Mapping[str, Sequence[Mapping[str, Any]]]


class Sets(NamedTuple):
    """What the thresholds of one question say of N rows; nothing of rows that it is not asked."""

    question: Question
    asked_N: np.ndarray  # bool: rows with all that the task needs
    inside_NK: np.ndarray | None  # bool: classes in the set; None of a number
    ends_N2: np.ndarray | None  # f64, the interval in the unit of the answer; NaN: no end is sure


def rules(
    calibration: Predictions, spec: DataSpec, alpha: float
) -> dict[str, list[dict[str, Any]]]:
    """Task -> the rule of every question that has enough patients, see the module.

    By pattern of modalities, and of a class by class, backing off to fewer modalities. How many
    patients stand behind a threshold is left out.
    """
    smallest = conformal.smallest_cell(alpha)
    found: dict[str, list[dict[str, Any]]] = {}
    for task in spec.tasks:
        for question in ask(calibration, spec, task):
            patients = len(np.unique(calibration.patient[question.rows]))
            if patients < smallest or task.dim > 1 and not question.classes:
                continue
            method = conformal.recommended(question.classes)
            rule = conformal.rule(question.sample(calibration), method, alpha)
            head = {"label": question.label, "classes": [*question.classes]}
            head |= {"column": question.column, "alpha": alpha}
            found.setdefault(task.name, []).append(head | {"levels": _plain(rule)})
    return found


def sets(found: Predictions, spec: DataSpec, known: Rules) -> Iterator[Sets]:
    """What rules say of rows, whose labels are not looked at, question by question."""
    full = found.full()
    for task in spec.tasks:
        by_column = {rule["column"]: rule for rule in known.get(task.name, ())}
        asked_N = found.asked(spec, task, full)
        for question in ask(found, spec, task, everybody=True):
            if question.column not in by_column:
                continue
            rule = _rule(by_column[question.column], found.present.shape[1])
            limit_nK, _, _ = rule.cells(found.present[question.rows])
            answer_nK = question.answers(found, full)
            inside_NK = ends_N2 = None
            if question.classes:
                inside_NK = np.zeros((len(asked_N), len(question.classes)), bool)
                inside_NK[question.rows] = 1 - answer_nK <= limit_nK
            else:
                ends_N2 = np.full((len(asked_N), 2), np.nan)
                ends_N2[question.rows] = _ends(question, answer_nK[:, 0], limit_nK[:, 0])
            yield Sets(question, asked_N, inside_NK, ends_N2)


def _ends(question: Question, answer_n: np.ndarray, width_n: np.ndarray) -> np.ndarray:
    """f64[n, 2]; NaN where the threshold is infinite."""
    middle_n = question.scale(answer_n)
    width_n = np.where(np.isfinite(width_n), width_n, np.nan)
    return np.stack([question.unscale(middle_n + sign * width_n) for sign in (-1, 1)], axis=1)


def _plain(rule: Rule) -> list[dict[str, Any]]:
    """The levels of a rule as JSON."""
    levels = []
    for among, value, patients in zip(rule.levels, rule.value, rule.patients, strict=True):
        cells = {}
        for key, limit_K in value.items():
            enough = [not among or n >= rule.smallest for n in patients[key]]
            numbers = [
                (float(q) if math.isfinite(q) else "all") if keep else None
                for q, keep in zip(limit_K, enough, strict=True)
            ]
            if any(number is not None for number in numbers):
                cells["".join("1" if there else "0" for there in key)] = numbers
        levels.append({"among": [*among], "cells": cells})
    return levels


def _rule(plain: Mapping[str, Any], modalities: int) -> Rule:
    """The rule that JSON stands for, of a model of so many modalities.

    Raises ValueError for levels of other modalities.
    """
    levels, value, patients = [], [], []
    for level in plain["levels"]:
        among = tuple(level["among"])
        if among and not 0 <= min(among) <= max(among) < modalities:
            raise ValueError(f"a level of modalities {among}, of {modalities}")
        levels.append(among)
        cells = {tuple(c == "1" for c in key): row for key, row in level["cells"].items()}
        value.append({key: np.array([_number(q) for q in row]) for key, row in cells.items()})
        patients.append({k: np.array([q is not None for q in row]) for k, row in cells.items()})
    return Rule(tuple(levels), tuple(value), tuple(patients), smallest=1)


def _number(threshold: float | str | None) -> float:
    return math.inf if threshold == "all" or threshold is None else float(threshold)
