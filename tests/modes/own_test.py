"""A data set of 60 patients whom folds test in turns, and 20 of its owner's test."""

from typing import Any

import numpy as np

from m4.data.cohort import Cohort
from m4.data.split import assign
from m4.specs import DataSpec, ModalitySpec, TaskSpec

VERSION, LICENCE, WHERE = "1", "Apache-2.0", "generated"
LABELS = {"sign": 1.0}  # of the owner's patients; a test turns them round
ROWS, OWN = 60, 20


def spec(*, fold=0, num_folds=0):
    return DataSpec(
        (ModalitySpec("static", "table", (4,)),),
        (TaskSpec("death", "binary"), TaskSpec("los", "regression")),
    )


def missing_files(raw_dir, **options):
    return []


def cohort(raw_dir, *, seed, fold=0, num_folds=0):
    """Without folds the test split is the owner's patients."""

    def of(patient):
        if not num_folds:
            shares = {"train": 0.8, "val": 0.2}
            return "test" if patient >= ROWS else assign(patient, shares, seed)
        if assign(patient, {str(k): 1 / num_folds for k in range(num_folds)}, seed) == str(fold):
            return "test"
        return assign(f"{patient} of the rest", {"train": 0.8, "val": 0.2}, seed)

    def examples(split):
        for patient in range(ROWS if num_folds else ROWS + OWN):
            if of(patient) == split:
                values = np.random.default_rng(patient).normal(size=4)
                sign = LABELS["sign"] if patient >= ROWS else 1.0
                targets = {"death": float(sign * values[0] > 0), "los": sign * values[1]}
                yield {"patient": patient, "inputs": {"static": {"values": values}}} | {
                    "targets": targets
                }

    names = ("train", "val", "test")
    splits: Any = {name: lambda name=name: examples(name) for name in names}
    return Cohort(spec(), splits, {}, LICENCE, VERSION)
