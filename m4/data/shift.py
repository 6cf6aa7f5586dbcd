"""How values of other records differ from those that a model is trained on: gone, or out of range.

Asked of validation and test records when a data set is built, and of new data by `--on`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from m4 import cells
from m4.data import normalise
from m4.data.cohort import Example
from m4.data.shares import SMALLEST, share
from m4.specs import DataSpec

MOST = 10  # names in one line
MANY_CLIPPED = 0.05  # share of a feature's values; of the training values it is 0.002


class Features:
    """Per feature of series and tables: values, and how many of them are clipped."""

    def __init__(self, spec: DataSpec, normalisers: Mapping[str, list[dict[str, Any]]]):
        """`normalisers` as in a manifest."""
        names = [m.name for m in spec.modalities if m.kind in ("series", "table")]
        self._fitted = {name: normalisers[name] for name in names}
        self._limits = {name: normalise.limits(fitted) for name, fitted in self._fitted.items()}
        self._counts = {name: np.zeros((2, len(f)), int) for name, f in self._fitted.items()}

    def add(self, record: Example) -> None:
        """Count one encoded record."""
        for name, (low_f, high_f) in self._limits.items():
            values_Nf = record["inputs"][name]["values"].reshape(-1, len(low_f))
            outside_Nf = (values_Nf < low_f) | (values_Nf > high_f)
            self._counts[name] += [(~np.isnan(values_Nf)).sum(axis=0), outside_Nf.sum(axis=0)]

    def result(self) -> dict[str, list[dict[str, Any]]]:
        """JSON types: modality -> [{feature, trained, values, clipped}], `trained` of training."""
        return {
            name: [
                {"feature": f["feature"], "trained": f["count"], "values": v, "clipped": c}
                for f, (v, c) in zip(fitted, self._counts[name].T.tolist(), strict=True)
            ]
            for name, fitted in self._fitted.items()
        }


def warnings(split: Mapping[str, Any], train: Mapping[str, Any], features) -> Iterator[str]:
    """What records lack altogether, and features in a range that training did not have.

    `split` and `train` are of a manifest's `splits`, `features` as of `Features`.
    """
    rows = cells.count(split["rows"], SMALLEST)
    for name, present in split["present"].items():
        trained = [f for f in features.get(name, ()) if f["trained"]]
        if not present and train["present"][name]:
            trained_in = share(train["present"][name], train["rows"])
            yield f"{name}: in 0 of {rows} records (training: {trained_in})"
        elif gone := [f["feature"] for f in trained if not f["values"]]:
            yield f"{name}: {', '.join(gone)} in 0 of {rows} records"
        for f in trained:
            # the smallest and largest of n training values are often passed by chance
            many = f["values"] * max(MANY_CLIPPED, 6 / (f["trained"] + 1))
            if f["values"] >= SMALLEST and f["clipped"] > many:
                yield (
                    f"{name}: {f['feature']} is clipped in {share(f['clipped'], f['values'])} of"
                    " its values: another unit than in training?"
                )


def of_training(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Features that a model can learn nothing from: never there, or always the same."""
    for modality, features in manifest["normalisers"].items():
        never = [f["feature"] for f in features if not f["count"]]
        same = [f["feature"] for f in features if f["count"] and f["low"] == f["high"]]
        if never:
            yield f"{modality}: never observed in training: {_some(never)}"
        if same:
            yield f"{modality}: always the same value in training: {_some(same)}"


def _some(names: list[str]) -> str:
    more = len(names) - MOST
    return ", ".join(names[:MOST]) + (f" and {more} more" if more > 0 else "")


def of_build(manifest: Mapping[str, Any]) -> list[str]:
    """The warnings of a build: its cohort's, and those of its records."""
    splits, found = manifest["splits"], manifest.get("features", {})
    lines = [
        f"{split}: {line}"
        for split, features in found.items()
        for line in warnings(splits[split], splits["train"], features)
    ]
    return [*manifest.get("warnings", ()), *of_training(manifest), *lines]
