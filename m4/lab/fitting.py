"""Programs that are compiled once an arm and serve all of its seeds; training one seed with them.

Seed, learning rate and the scale of targets are arguments of the programs that `m4.main` compiles
(`m4.run.programs`), and training is its loop: a cell's parameters are bit for bit those of
`m4.main`. Only the files are missing: the best parameters stay in memory.

Letters: S seeds (stacked), R rows, M modalities, E experts.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from m4 import sharding, task_losses
from m4.data.loader import TrainLoader, eval_batches
from m4.data.store import Store
from m4.errors import ConfigError
from m4.eval import evaluate, results
from m4.eval.predictions import Predictions
from m4.run import programs
from m4.run.setup import Setup, context, make_loader, make_optimiser, make_setup, weighted
from m4.run.workspace import open_incomplete, prepare
from m4.specs import DataSpec
from m4.train import loop, telemetry
from m4.train.step import Inputs, State, init_params, init_state

# Fields of a configuration that are given to programs: others need no other program.
GIVEN = ("seed", "optim.lr", "optim.warmup_steps", "optim.end_fraction", "data.dir", "data.raw_dir")


@dataclasses.dataclass(frozen=True)
class Programs:
    """What an arm compiles; seeds, learning rates and scales of targets are given to it."""

    setup: Setup
    init: Callable[[Any], State]  # of a seed
    step: programs.With  # of (State, Totals, Batch), given (inputs, scaling)
    zeros: Callable[[], Any]
    predict: programs.With  # of (params, Batch, keep_M), given a scaling
    seconds: float  # of compiling
    flops: float | None  # of a train step, as XLA counts them
    peak_bytes: int | None  # of a train step


@dataclasses.dataclass(frozen=True)
class Seeded:
    """A cell's data: they may depend on the seed, and so may what is fitted to them."""

    config: ml_collections.ConfigDict
    spec: DataSpec
    loader: TrainLoader
    val: Store
    test: Store


@dataclasses.dataclass(frozen=True)
class Fit:
    """A trained cell."""

    params: Any  # of the chosen step
    step: int  # that was chosen
    curve: list[dict[str, float]]  # of every evaluation: step, validation scores
    balance: list[dict[str, float]]  # of every log line: step, load cv, entropy, ... by layer
    selections: list[dict[str, np.ndarray]]  # of every evaluation: layer -> by_row [R, M, E]
    seconds: float  # in steps alone


def data_of(config: ml_collections.ConfigDict) -> Seeded:
    """Opens a cell's data, building them if need be."""
    folder = prepare(config)
    splits = {name: open_incomplete(config, folder, name) for name in ("train", "val", "test")}
    loader = make_loader(config, splits["train"], 0, 1)
    spec = weighted(splits["train"].spec, config.train.task_weights)
    return Seeded(config, spec, loader, splits["val"], splits["test"])


def compile_for(config: ml_collections.ConfigDict) -> Programs:
    """The programs of an arm, by the data of one of its seeds."""
    setup = make_setup(config, prepare(config))
    if config.train.buckets:
        raise ConfigError("train.buckets: the lab takes batches of one length only; leave it out")
    start = time.perf_counter()
    with context(setup.mesh):
        init = _compile_init(config, setup)
        step, zeros = programs.compile_step(setup, config.train.batch_size)
        predict = programs.compile_predict(setup, config.eval.batch_size)
    assert isinstance(step, programs.With) and isinstance(predict, programs.With)  # one length
    seconds = time.perf_counter() - start
    memory, cost = step.memory_analysis(), step.program.cost_analysis() or {}
    peak = memory and memory.temp_size_in_bytes + memory.argument_size_in_bytes
    flops = cost.get("flops") if isinstance(cost, dict) else None
    return Programs(setup, init, step, zeros, predict, seconds, flops, peak or None)


def _compile_init(config, setup: Setup):
    tx, _, ema = make_optimiser(config, setup.mesh.devices.flat[0].platform)
    batch = jax.tree.map(np.asarray, setup.loader.batch(0))

    def init(seed):
        params = sharding.unbox(init_params(setup.method, batch, seed=seed))
        return init_state(params, tx, ema=ema, spike_window=config.train.spike_window)

    cpu = setup.mesh.devices.flat[0].platform == "cpu"
    options: Any = {"xla_backend_optimization_level": 0} if cpu else None  # as m4.main does
    placed = jax.tree.map(lambda x: x.sharding, setup.state)
    whole = sharding.replicated(setup.mesh)
    like = programs.like_all(setup.inputs.seed, whole)
    compiled = jax.jit(init, out_shardings=placed).lower(like).compile(options)
    return lambda seed: compiled(sharding.put_whole(seed, whole))


class _Notes(telemetry.Writer):
    """Keeps what is logged of the experts, and the time that steps took."""

    def __init__(self, batch_size: int):
        self.balance: list[dict[str, float]] = []
        self.seconds, self._batch, self._last = 0.0, batch_size, 0

    def write_scalars(self, step: int, scalars) -> None:
        """One line of the log."""
        if "train/loss" not in scalars:
            return
        steps, self._last = step - self._last, step
        self.seconds += steps * self._batch / scalars["time/examples_per_s"]
        kept = {
            k.removeprefix("train/"): v for k, v in scalars.items() if k.startswith("train/moe/")
        }
        self.balance.append({"step": step, "loss": scalars["train/loss"]} | kept)


def fit(own: Programs, data: Seeded) -> Fit:
    """Trains one seed as `m4.main` does, and keeps what the experts chose at every evaluation."""
    config, setup = data.config, own.setup
    _, schedule, _ = make_optimiser(config)
    inputs = Inputs.of(config.seed, schedule)
    names = {field.name for field in dataclasses.fields(loop.Plan)}
    plan = loop.Plan(**{k: v for k, v in config.train.to_dict().items() if k in names})
    plan = dataclasses.replace(plan, save_every=plan.steps)
    notes, curve, chosen, best = _Notes(plan.batch_size), [], [], {}

    def evaluation(state: State) -> dict[str, float]:
        found = sweep(own, data, data.val, state.eval_params)
        scores = results.summary(found, data.spec)
        curve.append({"step": int(state.step)} | scores)
        chosen.append({n: r.by_row for n, r in found.routing.items() if r.by_row is not None})
        return scores

    def keep(number: int, state: State, value: float) -> None:
        best.update(step=number, params=jax.tree.map(jnp.copy, state.eval_params))

    hooks = loop.Hooks(
        put=lambda batch: sharding.put_batch(batch, setup.mesh),
        evaluate=evaluation,
        save=lambda *args: None,
        save_best=keep,
        writer=notes,
        whole=setup.whole,
    )
    with context(setup.mesh):
        step, state = (
            own.step.given((inputs, task_losses.scaling(data.spec))),
            own.init(inputs.seed),
        )
        loop.run(step, state, data.loader.iter(0), zeros=own.zeros, plan=plan, hooks=hooks)
    if not best:
        raise ConfigError(f"{plan.select}: not defined at any evaluation")
    return Fit(best["params"], best["step"], curve, notes.balance, chosen, notes.seconds)


def sweep(
    own: Programs,
    data: Seeded,
    store: Store,
    params: Any,
    keep_SM: np.ndarray | None = None,
    predict: programs.With | None = None,
) -> Predictions:
    """Predictions of a split; of the full input alone unless subsets are given."""
    setup, predict = own.setup, predict or own.predict
    if keep_SM is None:
        keep_SM = np.ones((1, len(data.spec.modalities)), bool)
    return evaluate.sweep(
        functools.partial(predict.given(task_losses.scaling(data.spec)), params),
        eval_batches(store, data.config.eval.batch_size),
        data.spec,
        keep_SM,
        patients=store.columns(["patient"])["patient"],
        place=lambda batch: sharding.put_whole(batch, sharding.rows(setup.mesh)),
    )


def serves(own: Programs, data: Seeded) -> bool:
    """Whether an arm's programs are a cell's, too, but for what is given to them."""
    return task_losses.unscaled(data.spec) == task_losses.unscaled(own.setup.spec)
