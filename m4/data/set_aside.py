"""Patients who neither train nor choose a model: `data.calibration`.

A share of the training patients becomes a split of its own, on which prediction sets and intervals
are calibrated (`m4.eval.conformal`). Normalisers and scales are fitted without them; vocabularies,
which know no labels, are counted with them. Validation and test stay as they are.
"""

import dataclasses
from collections.abc import Iterator, Mapping

from m4.data.cohort import Cohort, Example
from m4.data.split import assign

SPLIT = "calibration"


def set_aside(cohort: Cohort, share: float, seed: int) -> Cohort:
    """The cohort with that share of the patients of 'train' as the split `SPLIT`.

    Who it is depends on the seed and the patient alone, and not on how 'train' was chosen.
    """
    fractions = {SPLIT: share, "train": 1 - share}

    def some(name: str) -> Iterator[Example]:
        for example in cohort.splits["train"]():
            known = isinstance(example, Mapping)  # what is none is refused when it is encoded
            patient = example.get("patient") if known else None
            if assign(f"{SPLIT} {patient}", fractions, seed) == name:
                yield example

    splits = {"train": lambda: some("train"), SPLIT: lambda: some(SPLIT)}
    return dataclasses.replace(cohort, splits=cohort.splits | splits)
