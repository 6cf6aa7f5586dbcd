"""A learning rate per task, halved where its validation loss did not fall (FlexCare's recipe)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LOSSES = ("log_loss", "rmse")  # what is watched of a task: the first that it has


class Halving:
    """Every task's share of the rate, 1 at first.

    From the second evaluation on a task's share is halved if its validation loss is not below that
    of the evaluation before, also where it is equal. A loss that is undefined changes nothing.
    """

    def __init__(self, tasks: Sequence[str], kept: Mapping[str, Any] | None = None):
        kept = kept or {}
        self._found = {t: {"share": 1.0, "loss": None, **kept.get(t, {})} for t in tasks}

    def shares(self) -> np.ndarray:
        """f32[tasks], in the order of the schema."""
        return np.array([found["share"] for found in self._found.values()], np.float32)

    def after(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Takes in an evaluation, '<task>/<metric>' -> value; returns what a resumed run needs."""
        for task, found in self._found.items():
            values = [metrics[f"{task}/{n}"] for n in LOSSES if f"{task}/{n}" in metrics]
            if not values or not np.isfinite(values[0]):
                continue
            if found["loss"] is not None and not values[0] < found["loss"]:
                found["share"] /= 2
            found["loss"] = float(values[0])
        return {task: dict(found) for task, found in self._found.items()}
