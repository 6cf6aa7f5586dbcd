"""One point of a scaling study, in a process of its own: real steps on real batches, timed.

    python -m m4.plan.measure < request.json    # configuration, built data, steps

Every step is waited for, with its batch already in place. The first process prints one line of
JSON: what was measured, and the facts of the program that ran.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from m4 import sharding, virtual
from m4.config import plain
from m4.errors import UserError
from m4.plan import facts, roofline, topology
from m4.run import programs, setup
from m4.train import processes
from m4.types import Batch

WARM = 3  # steps before the first that counts


@dataclasses.dataclass(frozen=True)
class Measured:
    """Of all chips together, but for `peak_bytes` and what is in `facts`."""

    device: str
    kind: str | None  # of `m4.plan.topology`
    step_s: tuple[float, ...]  # of every step
    rows_per_s: float
    tokens_per_s: float  # positions that hold something
    loss: float  # of the last step
    peak_bytes: int
    facts: dict[str, Any]


def run(config: ml_collections.ConfigDict, data: Path, steps: int) -> Measured:
    """Trains `steps` steps from the start. Raises ConfigError as a run does."""
    start = time.process_time()
    made = setup.make_setup(config, data)
    seconds, tokens = [], 0
    with setup.context(made.mesh):
        step, zeros = programs.compile_step(made, config.train.batch_size)
        compiled_s, state = time.process_time() - start, made.init()
        program = step.program
        batches, totals = made.loader.iter(0), zeros()
        for number in range(WARM + steps):
            raw = next(batches)
            batch, totals = sharding.put_batch(raw, made.mesh), zeros()
            jax.block_until_ready((batch, totals, state))
            begun = time.perf_counter()
            state, totals = step(state, totals, batch)
            jax.block_until_ready((state, totals))
            if number >= WARM:
                seconds.append(time.perf_counter() - begun)
                tokens += positions(raw) * sharding.row_block(made.mesh)[1]
        idle = len(jax.devices()) - made.mesh.size
        found = facts.examine(made, program, config.train.batch_size, idle=idle, seconds=compiled_s)
    device, median = jax.local_devices()[0], float(np.median(seconds))
    stats = device.memory_stats() or {}
    return Measured(
        device=f"{device.device_kind} ({device.platform})",
        kind=topology.kind_of(device),
        step_s=tuple(seconds),
        rows_per_s=config.train.batch_size / median,
        tokens_per_s=tokens / steps / median,
        loss=float(totals.means["loss"].value()),
        peak_bytes=int(stats.get("peak_bytes_in_use", found.peak_bytes)),
        facts=dataclasses.asdict(found),
    )


def positions(batch: Batch) -> int:
    """Positions of a batch that hold something: visits, tokens, views, tables."""
    return sum(int(np.count_nonzero(stream.mask)) for stream in batch.inputs.values())


def rates(found: Mapping[str, Any]) -> tuple[float, float | None]:
    """(FLOP/s of one chip, MFU) of a measured point; a guessed rate gives no MFU."""
    median = float(np.median(found["step_s"]))
    flops = found["facts"]["model"]["products"]
    achieved = sum(flops.values()) / median
    if found["kind"] in (None, "cpu"):
        return achieved, None
    chip = topology.CHIPS[found["kind"]]
    ideal = sum(n / roofline.rate(chip, dtype) for dtype, n in flops.items())
    return achieved, ideal / median


def of_run(model: setup.Model, step: Any, rows: int) -> tuple[float | None, float | None]:
    """(matrix FLOPs of one device in a step, FLOP/s that it can do) of a run, where known.

    On a chip of the table FLOPs are counted from the trace; elsewhere the compiler's sum, with
    elementwise arithmetic, has to do. Batches of several lengths have no one number.
    """
    device = model.mesh.devices.flat[0]
    kind = topology.kind_of(device)
    program = getattr(step, "program", None)
    if program is None:
        return None, None
    if kind in (None, "cpu"):
        return (program.cost_analysis() or {}).get("flops"), None
    products = facts.form(model, rows).products
    total, chip = sum(products.values()), topology.CHIPS[kind]
    seconds = sum(n / roofline.rate(chip, dtype) for dtype, n in products.items())
    return total, total / seconds if seconds else None


def main() -> int:
    """Answers one request."""
    os.umask(0o077)
    virtual.make_room(os.environ)
    request = json.load(sys.stdin)
    config = ml_collections.ConfigDict(plain.tuples(request["config"])).lock()
    try:
        processes.join({}, saves=False)
        answer = dataclasses.asdict(run(config, Path(request["data"]), request["steps"]))
    except UserError as error:
        answer = {"refused": error.args}
    if processes.first():
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
