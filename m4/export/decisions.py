"""What goes with a prediction: the cut chosen in validation, and thresholds of prediction sets.

Cuts are read from the results of the test split, which were made with them. Prediction sets need
patients who neither trained nor chose the model (`data.calibration`); a run without has none.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from m4 import seal
from m4.eval import conformal
from m4.eval.predictions import Predictions
from m4.eval.questions import Question, ask
from m4.specs import DataSpec, TaskSpec


def results(folder: Path) -> dict[str, Any] | None:
    """The results document of the test split; None if there is none, or it is damaged."""
    try:
        if seal.problem(folder, "results/test.json"):
            return None
        found = json.loads((folder / "results/test.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("tasks"), dict) else None


def cuts(task: TaskSpec, document: Mapping[str, Any] | None) -> dict[str, Any]:
    """{'threshold': a cut per label}, {} where none was chosen."""
    found = ((document or {}).get("tasks", {}).get(task.name) or {}).get("threshold")
    if task.kind not in ("binary", "multilabel") or not isinstance(found, list):
        return {}
    known = [c if isinstance(c, float | int) and math.isfinite(c) else None for c in found]
    return {"threshold": known} if len(known) == task.dim and any(known) else {}


def prediction_sets(
    calibration: Predictions, spec: DataSpec, alpha: float
) -> dict[str, list[dict[str, Any]]]:
    """Task -> the rule of every question that has enough patients, as `m4.eval.coverage` chooses.

    By pattern of modalities, and of a class by class, backing off to fewer modalities. Cells of
    fewer patients than a threshold needs are left out, and how many patients there were.
    """
    smallest = conformal.smallest_cell(alpha)
    found: dict[str, list[dict[str, Any]]] = {}
    for task in spec.tasks:
        for question in ask(calibration, spec, task):
            patients = len(np.unique(calibration.patient[question.rows]))
            if patients < smallest or task.dim > 1 and not question.classes:
                continue
            found.setdefault(task.name, []).append(_rule(calibration, question, alpha, smallest))
    return found


def _rule(calibration: Predictions, question: Question, alpha: float, smallest: int) -> dict:
    by_class = bool(question.classes)
    sample = question.sample(calibration)
    rule = conformal.fit(sample, alpha=alpha, by_pattern=True, by_class=by_class, smallest=smallest)
    levels = []
    for among, value, patients in zip(rule.levels, rule.value, rule.patients, strict=True):
        cells = {}
        for key, limit_K in value.items():
            enough = [not among or n >= smallest for n in patients[key]]
            numbers = [
                (float(q) if math.isfinite(q) else "all") if keep else None
                for q, keep in zip(limit_K, enough, strict=True)
            ]
            if any(number is not None for number in numbers):
                cells["".join("1" if there else "0" for there in key)] = numbers
        levels.append({"among": [*among], "cells": cells})
    return {
        "label": question.label,
        "classes": [*question.classes],
        "column": question.column,
        "alpha": alpha,
        "levels": levels,
    }
