"""`--mode=check`: configuration, data, one batch, one step; prints sizes and trains nothing.

Checkpoints in the work directory are verified first. Without `--config` nothing else is done, so
that a work directory can be checked where its data are not.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_collections
from clu import parameter_overview

from m4 import sharding
from m4.config import Flags
from m4.errors import CheckpointError, DataError, DivergedError
from m4.eval import damage
from m4.remote import states
from m4.run import members, origin, preflight, programs, selection
from m4.run.setup import context, make_setup
from m4.run.workspace import prepare, validation
from m4.train import retention
from m4.train.checkpoint import Checkpoints


def run(config: ml_collections.ConfigDict, folder: Path, flags: Flags) -> None:
    """Verifies checkpoints; prints schema, parameters, memory, and runs one step. See `m4.main`."""
    _scrub(folder)
    if flags.config is None and flags.config_json is None:
        return
    begun = bool(retention.complete(folder / "checkpoints/last"))  # it needs no `train.from` now
    if not begun:
        origin.require(config, preflight.schema(config), folder)
    data = prepare(config)
    val = validation(config, data)
    selection.require_defined(config, val)
    setup = make_setup(config, data)
    selection.tell(config, setup.loader.store, val)
    for modality in setup.spec.modalities:
        print(f"modality {modality.name}: {modality.kind} {modality.shape}")
    for task in setup.spec.tasks:
        print(f"task     {task.name}: {task.kind} {task.dim}")
    with context(setup.mesh):
        start = time.perf_counter()
        step, zeros = programs.compile_step(setup, config.train.batch_size)
        print(f"compiled in {time.perf_counter() - start:.1f} s")
        state = setup.init() if begun else origin.begin(config, setup, setup.init())
        print(parameter_overview.get_parameter_overview(state.params, include_stats="global"))
        _print_memory(step)
        batch = sharding.put_batch(setup.loader.batch(0), setup.mesh)
        state, totals = step(state, zeros(), batch)
    loss = float(totals.means["loss"].value())
    if int(jax.device_get(state.skipped)):
        names = [name for name, count in jax.device_get(totals.nonfinite).items() if count]
        raise DivergedError(f"the first step is not finite: {', '.join(names)}")
    print(f"one step: loss {loss:.4g}; all is well")


def _scrub(folder: Path) -> None:
    """Reads every checkpoint and compares digests. Raises CheckpointError for damaged ones."""
    damaged = []
    for run, path in _kept(folder):
        checkpoints = Checkpoints(path, keep=1, sweep=False)
        for step, problem in checkpoints.scrub().items():
            newer = problem and problem.startswith("written by a newer")
            state = "sound" if problem is None else "NEWER" if newer else "DAMAGED"
            print(f"checkpoint {run}{path.name}/{step}: {state}")
            damaged += [f"{path / str(step)}: {problem}"] if problem else []
        checkpoints.close()
    if damaged:
        raise CheckpointError(*damaged)
    if wrong := [f"{folder}/{line}" for line in damage.lines(folder)]:
        raise DataError(*wrong)


def _kept(folder: Path) -> Iterator[tuple[str, retention.Folder]]:
    """("" or, of several runs, the run's name and a slash; folder of checkpoints)."""
    for place in (folder, *members.folders(folder)):
        where = states.of(place)
        name = "" if place == folder else f"{place.name}/"
        if where.is_dir():
            yield from ((name, path) for path in sorted(where.iterdir()) if path.is_dir())


def _print_memory(step) -> None:
    memory = step.memory_analysis()
    if memory is not None:
        sizes = {
            "state and batch": memory.argument_size_in_bytes,
            "working memory": memory.temp_size_in_bytes,
        }
        words = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in sizes.items())
        print(f"memory per device: {words}")
