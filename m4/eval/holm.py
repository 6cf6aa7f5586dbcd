"""Holm's step-down correction (Scand. J. Statist. 6, 1979) of p-values that belong together.

Letters: A p-values of a family.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from m4.eval.bootstrap import number


def adjusted(p_A: np.ndarray) -> np.ndarray:
    """P-values corrected for the whole last dimension."""
    order_A = np.argsort(p_A, axis=-1)
    num = p_A.shape[-1]
    stepped = np.take_along_axis(p_A, order_A, -1) * (num - np.arange(num))
    stepped = np.minimum(np.maximum.accumulate(stepped, axis=-1), 1.0)
    out = np.empty_like(stepped)
    np.put_along_axis(out, order_A, stepped, -1)
    return out


def add(estimates: Iterable[dict[str, Any]]) -> None:
    """Adds 'p_holm' to every estimate that has a 'p', corrected for all of them."""
    tried = [found for found in estimates if found.get("p") is not None]
    for found, p in zip(tried, adjusted(np.array([found["p"] for found in tried])), strict=True):
        found["p_holm"] = number(float(p))
