"""Programs that are compiled once an arm and serve all of its seeds; training one seed with them.

Seed, learning rate and the scale of targets are arguments of the programs that `m4.main` compiles
(`m4.run.programs`), and training is its loop: a cell's parameters are bit for bit those of
`m4.main`. Only the files are missing: the best parameters stay in memory.

Letters: S seeds (stacked), R rows, M modalities, E experts.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from m4 import sharding, task_losses
from m4.data.loader import TrainLoader
from m4.errors import ConfigError
from m4.eval import evaluate, results
from m4.eval.predictions import Predictions
from m4.lab.held import Opener, Split
from m4.run import programs
from m4.run.setup import Setup, context, make_loader, make_optimiser, make_setup, weighted
from m4.specs import DataSpec
from m4.train import loop, telemetry
from m4.train.step import Inputs, State, init_params, init_state


@dataclasses.dataclass(frozen=True)
class Programs:
    """What an arm compiles but its step; seeds and scales of targets are given to it."""

    setup: Setup
    init: Callable[[Any], State]  # of a seed
    predict: programs.With  # of (params, Batch, keep_M), given a scaling
    seconds: float  # of compiling


@dataclasses.dataclass(frozen=True)
class Stepping:
    """A compiled train step and what it costs; seeds and learning rates are given to it."""

    step: Any  # of (State, Totals, Batch), given (inputs, scaling); or of stacks of all four
    zeros: Callable[[], Any]
    seconds: float  # of compiling
    flops: float | None  # of a step of one seed, as XLA counts them
    peak_bytes: int | None  # of a step
    at_once: int = 1  # steps that one call takes

    @classmethod
    def of(cls, step: Any, program: Any, zeros: Callable[[], Any], start: float, seeds: int = 1):
        """Of a compiled `program` whose compilation began at `start`, for some seeds."""
        seconds = time.perf_counter() - start
        memory, cost = program.memory_analysis(), program.cost_analysis() or {}
        peak = memory and memory.temp_size_in_bytes + memory.argument_size_in_bytes
        flops = cost.get("flops") if isinstance(cost, dict) else None
        return cls(step, zeros, seconds, flops and flops / seeds, peak or None)


@dataclasses.dataclass(frozen=True)
class Seeded:
    """A cell's data: they may depend on the seed, and so may what is fitted to them."""

    config: ml_collections.ConfigDict
    spec: DataSpec
    loader: TrainLoader
    train: Split
    val: Split
    test: Split


@dataclasses.dataclass(frozen=True)
class Fit:
    """A trained cell."""

    params: Any  # of the chosen step
    step: int  # that was chosen
    curve: list[dict[str, float]]  # of every evaluation: step, validation scores
    balance: list[dict[str, float]]  # of every log line: step, load cv, entropy, ... by layer
    selections: list[dict[str, np.ndarray]]  # of every evaluation: layer -> by_row [R, M, E]
    seconds: float  # in steps alone


def data_of(config: ml_collections.ConfigDict, opener: Opener) -> Seeded:
    """A cell's data."""
    splits = opener(config)
    train = splits["train"].store
    loader = make_loader(config, train, 0, 1)
    spec = weighted(train.spec, config.train.task_weights)
    return Seeded(config, spec, loader, **splits)


def compile_for(data: Seeded) -> Programs:
    """The programs of an arm, by the data of one of its seeds."""
    config, train = data.config, data.loader.store
    setup = make_setup(config, train.folder, train)
    if config.train.buckets:
        raise ConfigError("train.buckets: the lab takes batches of one length only; leave it out")
    start = time.perf_counter()
    with context(setup.mesh):
        init = _compile_init(config, setup)
        predict = programs.compile_predict(setup, config.eval.batch_size)
    assert isinstance(predict, programs.With)  # one length
    return Programs(setup, init, predict, time.perf_counter() - start)


def compile_step(setup: Setup, num_rows: int) -> Stepping:
    """The train step of `m4.main`."""
    start = time.perf_counter()
    with context(setup.mesh):
        step, zeros = programs.compile_step(setup, num_rows)
    assert isinstance(step, programs.With)
    return Stepping.of(step, step.program, zeros, start)


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


class Placer:
    """Puts batches on the device. A leaf that is the last batch's (times, masks) is there already.

    A batch has some twenty leaves, and placing one costs a CPU more than a step of a small model.
    """

    def __init__(self, sharding_: Any):
        self._sharding, self._here, self._there = sharding_, None, []

    def __call__(self, batch: Any) -> Any:
        """The batch with its leaves on the device."""
        leaves, structure = jax.tree.flatten(batch)
        before = self._here or [None] * len(leaves)
        new = [i for i, (a, b) in enumerate(zip(leaves, before, strict=True)) if not _same(a, b)]
        placed = jax.device_put([leaves[i] for i in new], self._sharding)
        there = dict(zip(new, placed, strict=True))
        self._there = [there.get(i, x) for i, x in enumerate(self._there or leaves)]
        self._here = leaves
        return jax.tree.unflatten(structure, self._there)


def _same(a: np.ndarray, b: np.ndarray | None) -> bool:
    return b is not None and a.dtype == b.dtype and np.array_equal(a, b)


class Course:
    """What is kept of a seed while it is trained."""

    def __init__(self, own: Programs, data: Seeded):
        self._own, self._data, self._seconds = own, data, 0.0
        self._curve: list[dict[str, float]] = []
        self._balance: list[dict[str, float]] = []
        self._chosen: list[dict[str, np.ndarray]] = []
        self._best: dict[str, Any] = {}

    def begin(self, state: State) -> None:
        """What untrained experts choose."""
        self._swept(state)

    def evaluate(self, state: State) -> dict[str, float]:
        """Validation scores of a step."""
        scores = results.summary(self._swept(state), self._data.spec)
        self._curve.append({"step": int(state.step)} | scores)
        return scores

    def _swept(self, state: State) -> Predictions:
        # From the host they would go to the device with every batch.
        placed = jax.tree.map(lambda x: x.sharding, self._own.setup.state.eval_params)
        params = jax.device_put(state.eval_params, placed)
        found = sweep(self._own, self._data, self._data.val, params)
        routing = found.routing.items()
        self._chosen.append({n: r.by_row for n, r in routing if r.by_row is not None})
        return found

    def log(self, step: int, scalars: Mapping[str, float], seconds: float) -> None:
        """One line of the log, and how long its steps took."""
        own = {k.removeprefix("train/"): v for k, v in scalars.items()}
        kept = {name: value for name, value in own.items() if name.startswith("moe/")}
        self._balance.append({"step": step, "loss": own["loss"]} | kept)
        self._seconds += seconds

    def keep(self, step: int, state: State, value: float | None) -> None:
        """Parameters of the best step so far."""
        self._best = {"step": step, "params": jax.tree.map(np.array, state.eval_params)}

    def fit(self) -> Fit:
        """What came out. Raises ConfigError where there was no step to choose."""
        if not self._best:
            raise ConfigError(f"{self._data.config.train.select}: not defined at any evaluation")
        best = self._best["params"], self._best["step"]
        return Fit(*best, self._curve, self._balance, self._chosen, self._seconds)


class _Notes(telemetry.Writer):
    """Hands lines of the log to a course."""

    def __init__(self, course: Course, batch_size: int):
        self._course, self._batch, self._last = course, batch_size, 0

    def write_scalars(self, step: int, scalars) -> None:
        """One line of the log."""
        if "train/loss" not in scalars:
            return
        steps, self._last = step - self._last, step
        self._course.log(step, scalars, steps * self._batch / scalars["time/examples_per_s"])


def plan_of(config: ml_collections.ConfigDict) -> loop.Plan:
    """When a cell logs and evaluates; it saves nothing."""
    names = {field.name for field in dataclasses.fields(loop.Plan)}
    plan = loop.Plan(**{k: v for k, v in config.train.to_dict().items() if k in names})
    return dataclasses.replace(plan, save_every=plan.steps)


def inputs_of(config: ml_collections.ConfigDict) -> Inputs:
    """A cell's seed and learning rates."""
    return Inputs.of(config.seed, make_optimiser(config)[1])


def fit(own: Programs, stepping: Stepping, data: Seeded) -> Fit:
    """Trains one seed as `m4.main` does, and keeps what the experts chose at every evaluation."""
    setup, plan, inputs = own.setup, plan_of(data.config), inputs_of(data.config)
    course = Course(own, data)
    hooks = loop.Hooks(
        put=Placer(sharding.rows(setup.mesh)),
        evaluate=course.evaluate,
        save=lambda *args: None,
        save_best=course.keep,
        writer=_Notes(course, plan.batch_size),
        whole=setup.whole,
    )
    with context(setup.mesh):
        step = stepping.step.given((inputs, task_losses.scaling(data.spec)))
        state = own.init(inputs.seed)
        course.begin(state)
        loop.run(step, state, data.loader.iter(0), zeros=stepping.zeros, plan=plan, hooks=hooks)
    return course.fit()


def sweep(
    own: Programs,
    data: Seeded,
    split: Split,
    params: Any,
    keep_SM: np.ndarray | None = None,
    predict: programs.With | None = None,
) -> Predictions:
    """Predictions of a split; of the full input alone unless subsets are given."""
    setup, predict = own.setup, predict or own.predict
    if keep_SM is None:
        keep_SM = np.ones((1, len(data.spec.modalities)), bool)
    where = sharding.rows(setup.mesh)
    pairs = split.batches(
        data.config.eval.batch_size, lambda batch: sharding.put_whole(batch, where), where
    )
    return evaluate.sweep(
        functools.partial(predict.given(task_losses.scaling(data.spec)), params),
        pairs,
        data.spec,
        keep_SM,
        patients=split.patients,
    )


def serves(own: Programs, data: Seeded) -> bool:
    """Whether an arm's programs are a cell's, too, but for what is given to them."""
    return task_losses.unscaled(data.spec) == task_losses.unscaled(own.setup.spec)
