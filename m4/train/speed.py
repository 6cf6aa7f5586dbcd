"""How fast a run is and how much of its time counts: lines beside those of the loop, and a trace.

- `time/tokens_per_s`: positions that hold something, of all devices.
- `time/flops_per_s`: of one device, and `time/mfu`, its share of what the chip can do at most.
- `time/goodput`: seconds spent in steps over all since the run, or its continuation, began;
  compiling, evaluating and saving are the rest.
"""

import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from m4.train import telemetry

SKIP = 3  # steps before a trace: the first ones wait for what comes once
FOLDER = "profile"


class Meter(telemetry.Writer):
    """A writer that adds speeds to every line of training before it passes it on.

    Args:
      writer: takes everything.
      batch_size: rows of a batch.
      first: step that the run goes on from.
      began: `time.perf_counter()` when it did, before anything was compiled.
      flops: matrix FLOPs of one device in a step, if they are known.
      rate: FLOP/s that such a device can do at most, if that is known.
    """

    def __init__(
        self,
        writer: telemetry.Writer,
        *,
        batch_size: int,
        first: int,
        began: float,
        flops: float | None = None,
        rate: float | None = None,
    ):
        self._writer, self._batch_size = writer, batch_size
        self._flops, self._rate = flops, rate
        self._tokens, self._rows, self._useful = 0, 0, 0.0
        self._began, self._step = began, first

    def count(self, batch: Any) -> Any:
        """Takes notice of a batch on its way to the devices, and returns it."""
        self._rows += len(batch.uid)
        self._tokens += sum(int(np.count_nonzero(s.mask)) for s in batch.inputs.values())
        return batch

    def write_scalars(self, step: int, scalars: telemetry.Scalars) -> None:
        """Adds speeds to a line that has the loop's."""
        rows_per_s = scalars.get("time/examples_per_s")
        self._writer.write_scalars(step, {**scalars, **(self._speeds(step, rows_per_s) or {})})

    def _speeds(self, step: int, rows_per_s: float | None) -> dict[str, float] | None:
        if not rows_per_s or not self._rows:
            return None
        steps_per_s = rows_per_s / self._batch_size
        found = {"time/tokens_per_s": rows_per_s * self._tokens / self._rows}
        if self._flops:
            found["time/flops_per_s"] = self._flops * steps_per_s
        if self._flops and self._rate:
            found["time/mfu"] = self._flops * steps_per_s / self._rate
        self._useful += (step - self._step) / steps_per_s
        self._step = step
        elapsed = time.perf_counter() - self._began
        return found | {"time/goodput": min(1.0, self._useful / max(elapsed, 1e-9))}

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Passes them on."""
        self._writer.write_texts(step, texts)

    def write_histograms(
        self, step: int, arrays: Mapping[str, np.ndarray], num_buckets: Any = None
    ) -> None:
        """Passes them on."""
        self._writer.write_histograms(step, arrays, num_buckets)

    def flush(self) -> None:
        """Passes it on."""
        self._writer.flush()

    def close(self) -> None:
        """Passes it on."""
        self._writer.close()


def traced(batches: Iterator[Any], folder: Path, steps: int) -> Generator[Any, None, None]:
    """The same batches; while `steps` of them are used, a trace for xprof is written.

    It holds names and times of operations, no numbers of patients. See it with
    `xprof --logdir=WORKDIR/profile` or TensorBoard's profile plugin.
    """
    on = False
    try:
        for number, batch in enumerate(batches):
            if number == SKIP and steps:
                jax.profiler.start_trace(str(folder))
                on = True
            elif on and number == SKIP + steps:
                jax.profiler.stop_trace()
                on = False
            yield batch
    finally:
        if on:
            jax.profiler.stop_trace()
