"""`--mode=train`: train or resume, then evaluate the best step on the test split and report."""

import contextlib
import dataclasses
import functools
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from m4 import __version__, atomic, cells, seal, sharding
from m4 import config as configs
from m4.config import Flags, trust
from m4.data import manifest as manifests
from m4.data.store import Store
from m4.errors import CheckpointError, ConfigError, SaveError
from m4.eval import results
from m4.modes import eval as eval_mode
from m4.plan import measure
from m4.remote import mirror, places, states
from m4.run import agreement, members, origin, preflight, programs, selection, trained
from m4.run.setup import Setup, context, make_setup
from m4.run.workspace import let_go, owned, prepare, same_run, use_cache, validation
from m4.train import (
    guard,
    halving,
    loop,
    preemption,
    processes,
    retention,
    speed,
    telemetry,
    trackers,
    watchdog,
)
from m4.train.checkpoint import Checkpoints
from m4.train.step import State, make_step

Finish = Callable[[ml_collections.ConfigDict, Setup, Path, Any], Any]
BEGUN = ("run.json", "fold_*/run.json", "member_*/run.json")  # what a run leaves behind


def run(
    config: ml_collections.ConfigDict,
    folder: Path,
    flags: Flags,
    *,
    finish: Finish = eval_mode.finish,
) -> Any:
    """Trains, evaluates, reports. See `m4.main`. What follows training is `finish`."""
    leave = functools.partial(let_go, folder)
    if members.folders(folder):
        raise ConfigError(f"--workdir={folder}: holds several models; choose another --workdir")
    with preemption.Signals(leave) as signals, owned(folder):
        if processes.first():
            claim(config, folder, force="config" in flags.force)
        use_cache(folder)
        if not retention.complete(folder / "checkpoints/last"):
            origin.require(config, preflight.schema(config), folder)
        data = prepare(config)
        val = validation(config, data)
        selection.require_defined(config, val)
        setup = make_setup(config, data)
        if processes.first():
            _introduce(config, setup, folder)
            selection.tell(config, setup.loader.store, val)
        with context(setup.mesh):
            predict = _train(config, setup, val, folder, flags, signals)
            signals.idle()
            mirror.pull(folder, mirror.STATES)
            return finish(config, setup, folder, predict)


def claim(config: ml_collections.ConfigDict, folder: Path, *, force: bool) -> None:
    """Stores the configuration, or refuses as `require_own` does."""
    require_own(config, folder, force=force)
    atomic.write(folder / "config.json", configs.to_json(config))
    trust.mark(folder, config.to_dict())


def require_own(config: ml_collections.ConfigDict, folder: Path, *, force: bool) -> None:
    """Raises ConfigError if the folder holds a run of another configuration.

    A run that was refused before it began, for its method say, has no run.json.
    """
    path = folder / "config.json"
    if path.exists() and not force:
        changes = configs.diff(configs.stored(path), config.to_dict())
        begun = any(any(folder.glob(name)) for name in BEGUN)
        if changes and begun:
            changes.sort(key=lambda line: (".name:" not in line, "(absent)" in line))
            changes[3:] = [f"and {len(changes) - 3} more fields"] if len(changes) > 3 else []
            raise ConfigError(
                f"--workdir={folder}: holds a run with another configuration;"
                " choose another --workdir, or --force=config to go on with this one:",
                *changes,
            )


def _introduce(config, setup: Setup, folder: Path) -> None:
    """First lines of the output, run.json and data.json."""
    trained.keep(setup.data, folder)
    manifest = manifests.read(setup.data)
    mesh = " ".join(f"{axis}={size}" for axis, size in setup.mesh.shape.items() if size > 1)
    devices = jax.devices()
    parameters = sum(int(np.prod(p.shape)) for p in jax.tree.leaves(setup.state.params))
    rows = {
        name: cells.count(s["rows"], manifests.SMALLEST) for name, s in manifest["splits"].items()
    }
    counts = ", ".join(f"{name} {number}" for name, number in rows.items())
    kind = f"{devices[0].device_kind} ({devices[0].platform})"
    run = {
        "m4": __version__,
        "git": _git(),
        "code": agreement.code(),
        "python": platform.python_version(),
        "versions": {k: v for k, v in agreement.versions().items() if k != "m4"},
        "devices": f"{len(devices)} x {kind}",
        "mesh": dict(setup.mesh.shape),
        "seed": config.seed,
        "parameters": parameters,
        "data": {"name": config.data.name, "fingerprint": setup.data.name},
        "command": sys.argv[1:],
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "processes": jax.process_count(),
        "from_step": max(retention.complete(folder / "checkpoints/last"), default=0),
    }
    starts = [*_starts(folder / "run.json"), run]
    document = seal.sealed(run | {"starts": starts})
    atomic.write(folder / "run.json", json.dumps(document, indent=2) + "\n")
    print(f"m4 {__version__} ({run['git'] or 'no git'}), jax {jax.__version__}")
    print(f"devices  {run['devices']}; mesh {mesh or 'single device'}")
    print(f"data     {config.data.name} {manifest['version']} {setup.data.name}: {counts}")
    print(f"method   {config.method.name}, {parameters:,} parameters")
    print(f"workdir  {places.shown(folder)}", flush=True)


def _starts(path: Path) -> list[dict]:
    """Every start before this one that a run.json tells of; an older version kept the newest."""
    try:
        before = seal.load(path)
        starts = before.pop("starts", [before])
    except (OSError, ValueError, AttributeError, RecursionError):
        return []
    return [one for one in starts if isinstance(one, dict)] if isinstance(starts, list) else []


def _git() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _writer(
    config: ml_collections.ConfigDict, folder: Path, plan: loop.Plan, first: int, least: int
) -> telemetry.Writer:
    """Where this process's numbers go, from step `first` on: of several processes the first's."""
    if not processes.first():
        return telemetry.Writer()
    writers, settings = config.train.writers, configs.flatten(config.to_dict())
    return telemetry.make_writer(
        folder,
        resume=first,
        steps=plan.steps,
        select=plan.select,
        least=least,
        writers=writers,
        others=trackers.made(writers, folder, resume=first, settings=settings),
    )


def _train(
    config: ml_collections.ConfigDict,
    setup: Setup,
    val: Store | None,
    folder: Path,
    flags: Flags,
    signals: preemption.Signals,
):
    """Runs the loop; returns the compiled predict function for the evaluation that follows."""
    predict = programs.compile_predict(setup, config.eval.batch_size)
    plan = _plan(config)
    with _opened(config, folder) as (last, best):
        state, meta = _restore(last, best, config, setup, folder, flags.force)
        first, progress = int(state.step), meta.get("progress")
        if first >= plan.steps and progress and progress["evaluated"] >= first:
            return predict
        _require_space(setup, last)
        start = time.perf_counter()
        made = agreement.made(setup.mesh)
        forced = bool({"program", "config"} & {*flags.force})  # another one has another program
        accept = agreement.accept(meta.get("made"), made, first, force=forced)
        step, zeros = programs.compile_step(setup, config.train.batch_size, accept)
        print(f"compiled in {time.perf_counter() - start:.1f} s", flush=True)
        writer = _writer(config, folder, plan, first, meta.get("log", 0))
        flops, rate = measure.of_run(setup, step, config.train.batch_size)
        when = {"first": first, "began": start, "batch_size": config.train.batch_size}
        meter = speed.Meter(writer, flops=flops, rate=rate, **when)
        stacks = folder / f"stacks-{jax.process_index()}.txt"
        leave = functools.partial(let_go, folder)
        with (
            contextlib.closing(meter),
            watchdog.Watchdog(config.train.watchdog, stacks, leave=leave) as dog,
        ):
            hooks = loop.Hooks(
                put=lambda batch: sharding.put_batch(meter.count(batch), setup.mesh),
                evaluate=_evaluator(config, setup, val, predict, signals),
                **_savers(config, setup, folder, last, best, made),
                writer=meter,
                stop=signals.stop,
                whole=setup.whole,
                explain=_explainer(config, setup, rerun=flags.debug_nans),
                watchdog=dog,
            )
            if config.optim.halve:
                step, hooks = _halving(step, hooks, setup, progress)
            signals.stepping()
            profile = folder / speed.FOLDER, config.train.profile
            with contextlib.closing(speed.traced(setup.loader.iter(first), *profile)) as batches:
                more = {"zeros": zeros, "plan": plan, "hooks": hooks, "progress": progress}
                loop.run(step, state, batches, **more)
    return predict


def _plan(config) -> loop.Plan:
    """When the loop does what."""
    names = {field.name for field in dataclasses.fields(loop.Plan)}
    own = {k: v for k, v in config.train.to_dict().items() if k in names}
    steps = min(config.train.until or own["steps"], own["steps"])
    return loop.Plan(**own | {"steps": steps})


def _halving(step, hooks: loop.Hooks, setup: Setup, progress):
    """The step and hooks of a run whose tasks have a share of the rate each (`optim.halve`)."""
    rates = halving.Halving(setup.spec.task_names, (progress or {}).get("rates"))

    def after(metrics):
        return {"rates": rates.after(metrics)}

    return programs.steered(step, setup, rates.shares), dataclasses.replace(hooks, after=after)


def _savers(config, setup: Setup, folder: Path, last: Checkpoints, best: Checkpoints, made):
    """The loop's hooks that save."""
    note = {"seed": config.seed, "data": setup.data.name, "config": config.to_dict()}
    note |= {"made": made}

    def save(number: int, state: State, progress) -> None:
        own = note | {"progress": progress}
        if processes.first():
            own["log"] = seal.last_line(
                folder / telemetry.LOG
            )  # as it was: lines are written first

        def after() -> None:  # a state must not be there before what it tells of
            best.wait()
            own["best"] = best.newest()
            if processes.first():
                mirror.push(folder)

        last.save(number, state, own, after=after)

    def save_best(number: int, state: State, value: float | None) -> None:
        best.save(number, {"params": state.eval_params}, note | {"step": number, "value": value})

    return {"save": save, "save_best": save_best}


def _require_space(setup: Setup, last: Checkpoints) -> None:
    """Raises SaveError if not even one state fits on the disk: better now than hours later."""
    free, size = last.make_room(setup.state)
    if processes.first() and free < size:
        raise SaveError(
            f"{last.folder}: {free / 2**20:.0f} MiB are free, one state takes"
            f" {size / 2**20:.0f} MiB"
        )


def _explainer(config, setup: Setup, *, rerun: bool):
    """What is known of a bad step: its rows and, if asked for, the operation that fails in it.

    It is run again as one batch and in float32, where every operation is a line of the method.
    """
    plain = make_step(setup.method, optax.identity(), seed=config.seed).gradient

    def explain(number: int, state: State) -> list[str]:
        batch = setup.loader.batch(number - 1)
        lines = [f"step {number}: {guard.rows_of(batch)}"]
        if not rerun:
            return [*lines, "--debug_nans runs such a step again and names the operation"]
        placed = sharding.put_batch(batch, setup.mesh)
        found = guard.culprit(plain, state.params, placed, number - 1)
        return [*lines, f"step {number}: {found}"]

    return explain


def _evaluator(
    config, setup: Setup, val: Store | None, predict, signals: preemption.Signals
) -> loop.Evaluate:
    """Every metric on the validation split, all modalities kept; nothing where there is none."""
    if val is None:
        return lambda state: {}
    whole = np.ones((1, len(setup.spec.modalities)), bool)

    def evaluate(state: State) -> dict[str, float]:
        def bound(*args):
            if signals.asked():  # of several processes all or none: they go on together
                raise loop.Interrupted
            return predict(state.eval_params, *args)

        return results.summary(eval_mode.sweep(config, setup, val, bound, whole), setup.spec)

    return evaluate


@contextlib.contextmanager
def _opened(config, folder: Path):
    """(newest states, best parameters); what is being saved is saved before it closes."""
    train = config.train
    where = states.of(folder)
    last = Checkpoints(where / "last", keep=train.keep, every=train.keep_every)
    best = Checkpoints(where / "best", keep=eval_mode.KEEP_BEST, room=last.spare)
    try:
        yield last, best
    finally:
        try:
            last.close()
        finally:
            best.close()


def _restore(
    last: Checkpoints, best: Checkpoints, config, setup: Setup, folder: Path, force: Collection[str]
):
    """(state, note) of the newest sound checkpoint, or a fresh state if there never was one."""

    def accept(note) -> None:
        sections = () if "config" in force else ("",)
        same_run(note, config, setup.data, folder, sections=sections)

    if not last.used():
        return origin.begin(config, setup, setup.init()), {}
    state, note = last.restore(setup.state, accept=accept)
    mirror.pull(folder, mirror.STATES)  # some may have been found damaged
    first = int(state.step)
    if lost := eval_mode.lost_best(folder, note):
        if "best" not in force:
            raise CheckpointError(
                f"{lost}; copy it back, or give --force=best to choose one among the steps from"
                f" {first} on"
            )
        kept = best.note() or {}
        begun = {**(note.get("progress") or {}), "best": kept.get("value"), "evaluated": first - 1}
        note = {**note, "progress": begun}
        if processes.first():
            print(f"m4: warning: {lost}; one is chosen among the steps from {first} on", flush=True)
    print(f"resuming from step {first}")
    return state, note
