"""`--mode=tim`: task interaction scores by training every coalition of some tasks.

    python -m m4.main --mode=tim --config=configs/m3h_support2.py --workdir=runs/tim \
        --tasks=hospital_death,function,los

The method's call must take `active_T`, as M3H's does: the mask is an input, so one compiled step
trains all coalitions and one compiled prediction scores them on the test split (`m4.eval.tim`).
Prints the tables and writes `tim.json` into the work directory. Scores: AUROC, macro AUROC, R^2.
With `--permutations` the Shapley values are means over so many random orders.

Letters: T tasks.
"""

import dataclasses
import functools
import inspect
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from rich.console import Console
from rich.table import Table

from m4 import seal, sharding, task_losses
from m4.config import Flags
from m4.data.store import Store
from m4.errors import ConfigError, DataError, DivergedError
from m4.eval import evaluate, results, tim
from m4.nn import front
from m4.run import placed, preflight, selection
from m4.run.setup import Setup, context, make_optimiser, make_setup
from m4.run.workspace import owned, prepare, use_cache
from m4.train import step as steps

METRICS = {"binary": "auroc", "multilabel": "auroc_macro", "multiclass": "auroc_macro"}
METRICS |= {"regression": "r2"}


def run(config: ml_collections.ConfigDict, folder: Path, flags: Flags) -> None:
    """Trains the coalitions of `--tasks` (all scored ones without). See `m4.main`."""
    tasks, number = flags.options.get("tasks", ""), flags.options.get("permutations", "0")
    if not number.isdecimal():
        raise ConfigError(f"--permutations={number}: must be a number of random orders")
    require_plain(config, "tim")
    with owned(folder):
        use_cache(folder)
        scores = _scores(config, tasks, int(number))
        seal.write(folder, "tim.json", json.dumps(scores, indent=1, allow_nan=False) + "\n")
    _print(scores)


def require_plain(config: ml_collections.ConfigDict, mode: str) -> None:
    """Raises ConfigError for fields that training many times from one start does not follow."""
    if problems := preflight.unfollowed(config, f"--mode={mode}"):
        raise ConfigError(*problems)


def _scores(config: ml_collections.ConfigDict, tasks: str, number: int) -> dict[str, Any]:
    """What `tim.json` holds."""
    setup = make_setup(config, prepare(config))
    chosen = _chosen(config, setup, tasks)
    test = Store(setup.data, "test")
    chance = [selection.of_chance(test, n)[METRICS[setup.spec.task(n).kind]].value for n in chosen]
    _require_scores(chosen, chance)  # before hours of training
    with context(setup.mesh):
        value = tim.cached(_trainer(config, setup, chosen), len(chosen))
        shapley = tim.shapley(value, len(chosen), num_permutations=number or None)
        return {
            "tasks": chosen,
            "metric": [METRICS[setup.spec.task(name).kind] for name in chosen],
            "single": [float(value(frozenset({t}))[t]) for t in range(len(chosen))],
            "joint": value(frozenset(range(len(chosen)))).tolist(),
            "shapley": shapley.tolist(),
            "leave_one_out": _finite(tim.leave_one_out(value, len(chosen))),
            "pairwise": _finite(tim.pairwise(value, len(chosen))),
        }


def _require_scores(names: Sequence[str], found: Sequence[float | None]) -> None:
    """Raises DataError for tasks of which the test split tells no score."""
    scores = zip(names, found, strict=True)
    lacks = [name for name, x in scores if x is None or not np.isfinite(x)]
    if lacks:
        raise DataError(f"test split: no score for {', '.join(lacks)}: labels are all alike")


def _finite(gain_TT: np.ndarray) -> list[list[float | None]]:
    """As JSON; None where a gain is relative to a score of 0."""
    return [[float(x) if np.isfinite(x) else None for x in row] for row in gain_TT]


def _chosen(config, setup: Setup, tasks: str) -> list[str]:
    method = type(front.bare(setup.method))
    if "active_T" not in inspect.signature(method.__call__).parameters:
        raise ConfigError(
            f"method.name={config.method.name!r}: its call has no argument active_T, so no task"
            " can be left out; m3h has it"
        )
    scored = [task.name for task in setup.spec.tasks if task.kind in METRICS]
    chosen = [name for name in tasks.split(",") if name] or scored
    unknown = sorted({*chosen} - {*scored})
    if unknown or len(set(chosen)) != len(chosen):
        raise ConfigError(f"--tasks={tasks}: must be some of {', '.join(scored)}, each once")
    return chosen


@dataclasses.dataclass(frozen=True)
class Coalition:
    """A method whose batch is (batch, mask of the active tasks)."""

    method: Any

    def apply(self, variables, batch, **kwargs):
        """As the method's."""
        return self.method.apply(variables, batch[0], active_T=batch[1], **kwargs)

    def loss(self, out, batch, step):
        """As the method's."""
        return self.method.loss(out, batch[0], step)


def fitter(config, setup: Setup, method: Any, mask: np.ndarray):
    """`fit(mask) -> state` after training from the same start; compiles one step for all masks.

    A batch of `method` is (batch, mask). Raises ConfigError for batches of several lengths.
    """
    if config.train.buckets:
        raise ConfigError(
            f"train.buckets={config.train.buckets}: must be () here, where one step is compiled"
        )
    tx, _, ema = make_optimiser(config)
    step = steps.make_step(method, tx, seed=config.seed, ema=ema)
    example = sharding.put_batch(setup.loader.batch(0), setup.mesh), mask
    zeros = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(step.zeros, setup.state, example)
    )
    apply = jax.jit(step.apply, donate_argnums=0).lower(setup.state, zeros, example).compile()
    start = jax.device_get(setup.init())  # compiled once, too
    placed = jax.tree.map(lambda x: x.sharding, setup.state)

    def fit(mask):
        state, totals = jax.device_put(start, placed), zeros
        batches = setup.loader.iter(0)
        for _ in range(config.train.steps):
            batch = sharding.put_batch(next(batches), setup.mesh)
            state, totals = apply(state, totals, (batch, mask))
        found = jax.device_get(totals)
        if found.bad >= config.train.max_bad or any(found.damaged.values()):
            raise DivergedError(f"step {found.last_bad}: updates are not finite: nothing learned")
        return state

    return fit


def _trainer(config, setup: Setup, chosen: list[str]):
    """`train(mask of the chosen tasks) -> test scores`; compiles a step and a prediction, once."""
    place = np.array([setup.spec.task_names.index(name) for name in chosen])
    everything = np.zeros(len(setup.spec.tasks), bool)
    fit = fitter(config, setup, Coalition(setup.method), everything)
    predict = _predictor(config, setup)

    def train(mask):
        active_T = np.zeros(len(setup.spec.tasks), bool)
        active_T[place[mask]] = True
        scores = predict(fit(active_T).eval_params, active_T)
        found = [scores[f"{n}/{METRICS[setup.spec.task(n).kind]}"] for n in chosen]
        own = [*itertools.compress(found, mask)]
        _require_scores([*itertools.compress(chosen, mask)], own)
        print("trained", ", ".join(np.array(chosen)[mask]), flush=True)
        return np.where(mask, np.array(found, np.float64), np.nan)

    return train


def _predictor(config, setup: Setup):
    """`(params, active_T) -> {'task/metric': value}` on the test split."""
    store, spec = Store(setup.data, "test"), setup.spec
    patients = store.columns(["patient"])["patient"]

    @functools.partial(jax.jit, out_shardings=sharding.replicated(setup.mesh))
    def predict(params, batch, active_T):
        out = setup.method.apply({"params": params}, batch, train=False, active_T=active_T)
        scored = [task for task in spec.tasks if task.kind in METRICS]
        return {t.name: task_losses.predict(t, out.logits[t.name]) for t in scored}

    def score(params, active_T):
        found = evaluate.sweep(
            lambda batch, keep: (predict(params, batch, active_T), {}),
            placed.batches(store, config.eval.batch_size, setup.mesh),
            spec,
            np.ones((1, len(spec.modalities)), bool),
            patients=patients,
        )
        return results.summary(found, spec)

    return score


def _print(scores: dict[str, Any]) -> None:
    table = Table(title="value of row's task for column's task (Shapley), and scores")
    for column in ("", *scores["tasks"]):
        table.add_column(column)
    for name, row in zip(scores["tasks"], scores["shapley"], strict=True):
        table.add_row(name, *(f"{x:+.4f}" for x in row))
    for name in ("single", "joint"):
        table.add_row(name, *(f"{x:.4f}" for x in scores[name]))
    Console(width=None if Console().is_terminal else 100, markup=False).print(table)
