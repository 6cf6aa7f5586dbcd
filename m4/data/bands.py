"""Bands of a number, as categories of a group column."""

import bisect
import math
from collections.abc import Sequence


def band(value: float | None, edges: Sequence[float]) -> str:
    """The band of a number between increasing edges: 'under 50', '50 to under 65', '65 and over'.

    Empty, which means unknown, for None and NaN.
    """
    if value is None or math.isnan(value):
        return ""
    above = bisect.bisect_right(edges, value)
    if above == 0:
        return f"under {edges[0]:g}"
    low = f"{edges[above - 1]:g}"
    return f"{low} and over" if above == len(edges) else f"{low} to under {edges[above]:g}"
