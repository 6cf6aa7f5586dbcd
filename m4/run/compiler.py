"""How much XLA optimises a program for a CPU, by the configuration alone.

So a resumed run has the numbers of one that never stopped. A short run compiles longer than it
computes: with little optimisation FuseMoE's step compiles in a fifth of the time and takes four
times as long; with older loop emitters alone, in two thirds, and takes 1.3 times as long.
"""

from typing import Any, Literal

import jax
import ml_collections

from m4 import sharding

Effort = Literal["full", "some", "little"]
LITTLE_ROWS = 1000  # rows that a run trains on, up to which it pays
SOME_ROWS = 5000
SOME_PREDICTED = 20_000  # the same of predictions: they take 1.1 times as long, to the bit alike
# Code in one part: in more the same few functions take a third more processor time to compile.
OLDER = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
OPTIONS = {"full": {}, "some": OLDER, "little": OLDER | {"xla_backend_optimization_level": 0}}


def step_effort(config: ml_collections.ConfigDict) -> Effort:
    """Of the train step: as `train.compile` says, or by the rows that a run trains on."""
    return _effort(config, SOME_ROWS)


def predict_effort(config: ml_collections.ConfigDict) -> Effort:
    """Of predictions, likewise; a sweep over subsets makes too many for little.

    Up to `SOME_PREDICTED` rows to train on, what they take longer is less than what the compiler
    would: it is worth its time from some 45 seconds of predicting on.
    """
    effort = _effort(config, SOME_PREDICTED)
    return "some" if effort == "little" and config.eval.subsets else effort


def _effort(config: ml_collections.ConfigDict, some_rows: int) -> Effort:
    if config.train.get("compile", "auto") != "auto":
        return config.train.compile
    rows = config.train.steps * config.train.batch_size
    return "little" if rows <= LITTLE_ROWS else "some" if rows <= some_rows else "full"


def options(effort: Effort, mesh: jax.sharding.Mesh) -> Any:
    """Compiler options of a program on `mesh`."""
    shared = sharding.compiler_options(mesh) or {}
    cpu = mesh.devices.flat[0].platform == "cpu"
    return shared | (OPTIONS[effort] if cpu else {}) or None
