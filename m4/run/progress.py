"""How far a build is: records so far and their rate, a line every few seconds and at the end."""

import time
from collections.abc import Callable

from m4 import cells
from m4.data.build import REPORT_EVERY
from m4.data.manifest import SMALLEST

SAY_EVERY = 2.0  # seconds


class Building:
    """What `m4.data.build.prepare` calls with a split and its records so far."""

    def __init__(self, name: str, *, clock: Callable[[], float] = time.monotonic):
        """`name`: of the data set."""
        self._name, self._clock = name, clock
        self._split, self._rows, self._began, self._said = "", 0, clock(), -SAY_EVERY

    def __call__(self, split: str, rows: int) -> None:
        """A line if one is due; a split's last call is of no full hundred, or the same again."""
        now, last = self._clock(), rows % REPORT_EVERY > 0 or rows == self._rows
        if split != self._split:
            self._split, self._began, self._said = split, now, -SAY_EVERY
        self._rows = rows
        if last or now - self._said >= SAY_EVERY:
            self._said = now
            took = now - self._began
            speed = f", {rows / took:,.0f}/s" if took > 1 else ""
            print(
                f"building {self._name} {split}: {cells.count(rows, SMALLEST)} records{speed}",
                flush=True,
            )
