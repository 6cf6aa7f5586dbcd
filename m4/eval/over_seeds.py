"""Intervals over the seeds that a model was trained with and the patients it is tested on.

The mean of the runs' patient intervals, and the t interval of the mean over seeds, added in squares
on either side (MOVER, Zou & Donner, Statistics in Medicine 2008).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t

UNBOUNDED = ("mae", "rmse", "log_loss", "brier")  # of several classes a Brier score goes up to 2


def interval(
    estimates: Sequence[Mapping[str, Any]], metric: str = ""
) -> tuple[float, float] | None:
    """95 % interval of the mean over seeds of {value, low, high}; None if one lacks its own.

    All seeds are tested on the same patients, so more seeds do not shorten the patients' part. It
    ends at 1 for a `metric` that goes no further.
    """
    if not estimates or any(e.get("low") is None for e in estimates):
        return None
    value = np.array([e["value"] for e in estimates])
    seeds = 0.0
    if len(value) > 1:
        seeds = t.ppf(0.975, len(value) - 1) * value.std(ddof=1) / np.sqrt(len(value))
    below, above = (abs(np.mean([e[end] for e in estimates] - value)) for end in ("low", "high"))
    most = np.inf if not metric or metric in UNBOUNDED else 1.0
    low, high = value.mean() - np.hypot(below, seeds), value.mean() + np.hypot(above, seeds)
    return low, min(high, most)
