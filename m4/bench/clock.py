"""How the device benchmark times: many steps queued, one wait a group, medians over groups."""

import statistics
import time
from collections.abc import Callable
from typing import Any


def milliseconds(
    step: Callable[[], Any], wait: Callable[[Any], Any], *, seconds: float, groups: int
) -> dict[str, float]:
    """Median, least and most milliseconds of a step; `wait` returns when a result is there.

    Three steps first: the first loads kernels and makes work space. A group has as many steps as
    take `seconds`, at least one; a result is let go before the next is asked for.
    """
    for _ in range(3):
        begun = time.perf_counter()
        wait(step())
        once = time.perf_counter() - begun
    number, found = max(1, round(seconds / max(once, 1e-6))), []
    for _ in range(groups):
        begun, out = time.perf_counter(), None
        for _ in range(number):
            out = None  # noqa: F841 (its memory is free before the next one's is asked for)
            out = step()
        wait(out)
        found.append(1e3 * (time.perf_counter() - begun) / number)
    return {"ms": statistics.median(found), "ms_min": min(found), "ms_max": max(found)}
