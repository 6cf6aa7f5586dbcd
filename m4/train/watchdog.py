"""A thread that ends the process when no step finishes any more.

A dead peer makes the others abort by itself; one that still sends heartbeats but computes nothing
does not, nor does a hung driver. A hang ends in exit code 7 with the stacks of all threads.
"""

import collections
import contextlib
import faulthandler
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from m4.train import early

FACTOR = 20.0  # of the median time of a step
PATIENT = 30.0  # of the floor, for what is longer than a step: evaluation, saving, the first step
EXIT_CODE = 7


class Watchdog:
    """Fires when nothing was heard for max(`floor`, 20 x median step time) seconds.

    Time is counted in ticks that this process was awake for, so that a run that was suspended
    as a whole does not take itself for hung. `floor` 0 turns it off. `leave` is called before the
    process ends.
    """

    def __init__(
        self,
        floor: float,
        stacks: Path,
        *,
        fire: Callable[[str], None] | None = None,
        leave: Callable[[], None] = lambda: None,
    ):
        self._floor, self._stacks, self._leave = floor, stacks, leave
        self._fire = fire or self._end
        self._steps: collections.deque[float] = collections.deque(maxlen=100)
        self._silence = 0.0
        self._patience = PATIENT
        self._last = time.monotonic()
        self._done = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self._floor > 0:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()

    def step(self) -> None:
        """A step has finished."""
        now = time.monotonic()
        if self._patience == 1:
            self._steps.append(now - self._last)
        self._last, self._silence, self._patience = now, 0.0, 1

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """Inside, and until the next step, thirty times as long is allowed."""
        self._silence, self._patience = 0.0, PATIENT
        yield
        self._silence = 0.0

    def limit(self) -> float:
        """Seconds of silence that are allowed now."""
        median = statistics.median(self._steps) if self._steps else 0.0
        return self._patience * max(self._floor, FACTOR * median)

    def _watch(self) -> None:
        tick = min(1.0, self._floor / 4)
        while not self._done.wait(tick):
            self._silence += tick
            if self._silence > self.limit():
                self._fire(f"no step for {self._silence:.0f} s")
                return

    def _end(self, what: str) -> None:
        stacks = _stacks()
        text = f"m4: hung: {what}; stacks above and in {self._stacks}; run the same command again"

        def tell() -> None:
            os.write(2, stacks)
            early.say(text)()

        # Each may hang for the same reason as the run, or as nobody reads.
        early.end(EXIT_CODE, lambda: self._stacks.write_bytes(stacks), tell, self._leave)


def _stacks() -> bytes:
    """Of all threads, in memory: what writes them holds everything up while nobody reads."""
    try:
        file = open(os.memfd_create("stacks"), "w+b")  # noqa: SIM115 (it ends with the process)
    except (OSError, AttributeError):  # no more open files, not Linux
        faulthandler.dump_traceback(2, all_threads=True)
        return b""
    faulthandler.dump_traceback(file, all_threads=True)
    file.seek(0)
    return file.read()
