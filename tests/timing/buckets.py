r"""Training steps of a configuration with its buckets and without.

    python -m tests.timing buckets --config=configs/m3h_physionet2012.py \
        --config.train.buckets=48,64,88

Every round makes the steps of an epoch (up to 128) with each, batches included, on the same rows:
CPU seconds of the whole process, which a busy machine slows little, and their ratio. Compiling is
measured apart, without a cache of programs; a bucket more is a compile more.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections

from m4 import config as configs
from m4 import sharding
from m4.data.buckets import WINDOW
from m4.errors import ConfigError
from m4.run import preflight, programs
from m4.run.setup import Setup, context, make_setup
from m4.run.workspace import prepare
from m4.specs import RAGGED_KINDS

ROUNDS = 5


def main(argv: list[str]) -> None:
    """Parse the flags of `m4.main`, measure, print a table."""
    flags = configs.parse(argv)
    config = configs.load(flags)
    if not config.train.buckets:
        raise ConfigError("train.buckets: is (); there is nothing to compare")
    preflight.require(config, flags.config)
    jax.config.update("jax_enable_compilation_cache", False)
    print(table(measure(config)))


def measure(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """CPU seconds by variant: of a step, of all compiles; padded shares; ratios of each round."""
    data = prepare(config)
    variants = {"whole": (), "buckets": config.train.buckets}
    runs, compiling, padded = {}, {}, {}
    for name, buckets in variants.items():
        own = config.copy_and_resolve_references()
        with own.unlocked(), own.ignore_type():
            own.train.buckets = buckets
        setup = make_setup(own, data)
        runs[name], compiling[name] = _runner(setup, config.train.batch_size)
        padded[name] = _padded(setup)
    steps = _steps(setup)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(ROUNDS):
        for name, run in runs.items():
            before = time.process_time()
            run(number * steps, steps)
            seconds[name].append((time.process_time() - before) / steps)
    pairs = zip(seconds["whole"], seconds["buckets"], strict=True)
    return {
        "lengths": config.train.buckets,
        "steps": steps,
        "seconds": seconds,
        "ratios": [whole / cut for whole, cut in pairs],
        "compiling": compiling,
        "padded": padded,
    }


def _steps(setup: Setup) -> int:
    return min(setup.loader.steps_per_epoch, WINDOW)


def _runner(setup: Setup, batch_size: int) -> tuple[Callable[[int, int], None], float]:
    """`run(first step, number of steps)`, warm, and the CPU seconds of compiling it."""
    with context(setup.mesh):
        before = time.process_time()
        step, zeros = programs.compile_step(setup, batch_size)
        compiling = time.process_time() - before
        held = [setup.init()]

    def run(first: int, number: int) -> None:
        state, totals = held.pop(), zeros()
        for at in range(first, first + number):
            batch = sharding.put_batch(setup.loader.batch(at), setup.mesh)
            state, totals = step(state, totals, batch)
            jax.block_until_ready(totals)
        held.append(state)

    run(0, 2)
    return run, compiling


def _padded(setup: Setup) -> float:
    """Share of the positions of ragged modalities that hold nothing."""
    names = [m.name for m in setup.spec.modalities if m.kind in RAGGED_KINDS]
    real = total = 0
    for step in range(_steps(setup)):
        inputs = setup.loader.batch(step).inputs
        real += sum(inputs[name].mask.sum() for name in names)
        total += sum(inputs[name].mask.size for name in names)
    return 1.0 - real / total


def table(result: dict[str, Any]) -> str:
    ratios = result["ratios"]
    lines = [
        f"buckets {result['lengths']} and full length, rounds of {result['steps']} steps",
        f"{'':<10}{'CPU ms a step':>16}{'padded':>10}{'compile CPU s':>16}",
    ]
    for name, seconds in result["seconds"].items():
        lines.append(
            f"{name:<10}{1e3 * statistics.median(seconds):>16.1f}{result['padded'][name]:>10.1%}"
            f"{result['compiling'][name]:>16.1f}"
        )
    middle = statistics.median(ratios)
    lines.append(f"steps/s: {middle:.2f} x [{min(ratios):.2f}-{max(ratios):.2f}]")
    return "\n".join(lines)
