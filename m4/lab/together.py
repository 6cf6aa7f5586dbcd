"""All seeds of an arm in one program, in lock step, on one device.

`map` runs them one after the other within a step, so a seed's numbers are those of `m4.main` bit
for bit; what is saved is the host's part of a step, which a small model spends most of its time in.
`vmap` makes one wider computation of them: for accelerators, and equal up to rounding.

Letters: S seeds.
"""

import collections
import time
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np

from m4 import sharding, task_losses
from m4.errors import ConfigError, DivergedError
from m4.lab import fitting
from m4.run import compiler, programs
from m4.run.setup import Setup, context
from m4.train import guard, loop

How = Literal["map", "vmap"]


def compile_step(setup: Setup, num_rows: int, seeds: int, how: How) -> fitting.Stepping:
    """The train step of S states, totals, batches and inputs, each stacked.

    Raises ConfigError for a mesh of several devices.
    """
    if setup.mesh.size > 1:
        raise ConfigError(f"together={how!r}: takes one device; leave it out, or set mesh.* to 1")
    like = programs.like_step(setup, num_rows)
    stacked = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((seeds, *x.shape), x.dtype, sharding=x.sharding), like
    )
    step = programs.step_of(setup)

    def all_of(*args):
        return jax.lax.map(lambda own: step(*own), args) if how == "map" else jax.vmap(step)(*args)

    options, start = compiler.options(setup.efforts[0], setup.mesh), time.perf_counter()
    with context(setup.mesh):
        compiled = jax.jit(all_of, donate_argnums=0).lower(*stacked).compile(options)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), stacked[1])
    # XLA counts the body of a loop once.
    counted = seeds if how == "vmap" else 1
    return fitting.Stepping.of(compiled, compiled, lambda: zeros, start, counted)


def fit(
    own: fitting.Programs, stepping: fitting.Stepping, cells: Sequence[fitting.Seeded]
) -> list[fitting.Fit | DivergedError]:
    """Trains seeds of one arm, as `fitting.fit` does each of them."""
    setup, plan = own.setup, fitting.plan_of(cells[0].config)
    courses = [fitting.Course(own, data) for data in cells]
    place = fitting.Placer(sharding.replicated(setup.mesh))
    batches = [data.loader.iter(0) for data in cells]
    inputs = [fitting.inputs_of(data.config) for data in cells]
    scalings = [task_losses.scaling(data.spec) for data in cells]
    over: list[DivergedError | None] = [None] * len(cells)
    best: list[float | None] = [None] * len(cells)
    running = collections.deque()
    with context(setup.mesh):
        states = [own.init(given.seed) for given in inputs]
        for course, state in zip(courses, states, strict=True):
            course.begin(state)
        state = _stacked([_packed(setup, state) for state in states])
        given = jax.device_put(_stacked([*zip(inputs, scalings, strict=True)]))
        totals, last, clock = stepping.zeros(), 0, time.perf_counter()
        for number in range(1, plan.steps + 1):
            batch = place(_stacked([next(stream) for stream in batches]))
            state, totals = stepping.step(state, totals, batch, given)
            running.append(totals.bad)
            if len(running) > loop.IN_FLIGHT:
                jax.block_until_ready(running.popleft())
            evaluated = number % plan.eval_every == 0 or number == plan.steps
            if not evaluated and number % plan.log_every:
                continue
            found, totals = jax.device_get(totals), stepping.zeros()
            seconds = (time.perf_counter() - clock) / len(cells)
            kept = jax.device_get(state) if evaluated else None
            for s, course in enumerate(courses):
                if over[s] is not None:
                    continue
                one = _of(found, s)
                course.log(number, loop.scalars(one, number - last), seconds)
                over[s] = _diverged(one, number, plan.max_bad)
                if evaluated and over[s] is None:
                    whole = setup.whole(_of(kept, s))
                    value = course.evaluate(whole).get(plan.select, np.nan)
                    chosen = plan.choose == "last" and np.isfinite(value)
                    if chosen or loop.better(plan.select, value, best[s]):
                        course.keep(number, whole, value)
                        best[s] = value
            last, clock = number, time.perf_counter()
    return [error or course.fit() for error, course in zip(over, courses, strict=True)]


def _packed(setup: Setup, state: Any) -> Any:
    state = jax.device_get(state)
    return state if setup.layout is None else setup.layout.packed(state, join=np.concatenate)


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *trees)


def _of(tree: Any, seed: int) -> Any:
    return jax.tree.map(lambda x: x[seed], tree)


def _diverged(totals: Any, number: int, most: int) -> DivergedError | None:
    """What ends a run of `m4.train.loop`."""
    if totals.bad >= most:
        why = guard.reasons(totals.nonfinite, totals.spikes)
        return DivergedError(
            f"step {totals.last_bad}: {totals.bad} updates in a row skipped: {why}"
        )
    parts = [name for name, count in totals.damaged.items() if count]
    return DivergedError(f"step {number}: {', '.join(parts)} not finite") if parts else None
