"""Rows that are usually held out and train too: `data.also_train`, for a last model of all rows.

- `val`: the validation split trains as well; the test split stays what it is.
- `all`: so does the test split: nobody is held out.

Scales and vocabularies are fitted on all of them. A data set module whose reader fits something to
training rows says by `everyone(**options)` with which options all of its rows are those; the
splits of others are put together as they are, and what they count, they count on their own part.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from m4.data.cohort import Cohort, Example

HELD_OUT: Mapping[str, tuple[str, ...]] = {"none": ("val", "test"), "val": ("test",), "all": ()}
WHICH = ("none", "val", "all")


def hold_in(cohort: Cohort, which: str) -> Cohort:
    """The cohort with one split of all that trains, in the order train, val, test."""
    if which == "none":
        return cohort
    joined = [name for name in ("train", "val", "test") if name not in HELD_OUT[which]]

    def together() -> Iterator[Example]:
        for name in joined:
            yield from cohort.splits[name]()

    kept = {name: start for name, start in cohort.splits.items() if name in HELD_OUT[which]}
    return dataclasses.replace(cohort, splits={"train": together} | kept)


def options_for(module: ModuleType, options: Mapping[str, Any], which: str) -> dict[str, Any]:
    """The options of a data set with which those train whom its folds test in turns.

    With `which` 'val' they are those without folds: there is a test split then that no fold has, if
    its owner keeps one. With 'all' nobody is held out.
    """
    if which == "val":
        return {k: v for k, v in options.items() if k not in ("fold", "num_folds")}
    return module.everyone(**options) if hasattr(module, "everyone") else dict(options)
