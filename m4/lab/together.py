"""Some steps of training in one call, of one seed or of all seeds of an arm, on one device.

What is saved is the host's part of a step, which a small model spends most of its time in.

`map` takes seeds one after the other, whose numbers are those of `m4.main` bit for bit: S is 1.
`vmap` makes one wider computation of them: for accelerators, and equal up to rounding.

Letters: S seeds, K steps at a time.
"""

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np

from m4 import sharding, task_losses
from m4.errors import ConfigError, DivergedError
from m4.lab import fitting, held
from m4.run import compiler, programs
from m4.run.setup import Setup, context
from m4.train import guard, loop

How = Literal["map", "vmap"]
MOST = 1 << 26  # bytes of batches that are placed at once


def steps_at_once(plan: loop.Plan, bytes_of_batch: int) -> int:
    """K, the most steps between two looks at the numbers whose batches are few bytes."""
    between = math.gcd(plan.steps, plan.eval_every, plan.log_every)
    most = max(1, MOST // max(bytes_of_batch, 1))
    return max(k for k in range(1, between + 1) if between % k == 0 and k <= most)


def compile_step(setup: Setup, plan: loop.Plan, seeds: int, how: How) -> fitting.Stepping:
    """K train steps of S states, totals and inputs, each stacked, on batches [S, K, ...].

    `map` takes one seed: a loop over several would cut every leaf out of its stack and put it back,
    which is a third of the program. Raises ConfigError for a mesh of several devices.
    """
    if setup.mesh.size > 1:
        raise ConfigError(f"together={how!r}: takes one device; leave it out, or set mesh.* to 1")
    with context(setup.mesh):  # in which a gradient is traced once for totals and step
        state, totals, batch, given = programs.like_step(setup, plan.batch_size)
    size = seeds * sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(batch))
    steps = steps_at_once(plan, size)
    stacked = _wider((state, totals, _wider(batch, steps), given), seeds)
    step = programs.step_of(setup)

    def one_seed(state, totals, batches, given):
        def one_step(carry, batch):
            # Else XLA makes one operation of a batch's part of the stack and what is done with it,
            # which rounds otherwise than a step of its own.
            return step(*jax.lax.optimization_barrier((*carry, batch, given))), None

        return jax.lax.scan(one_step, (state, totals), batches)[0]

    def all_of(*args):
        if how == "vmap":
            return jax.vmap(one_seed)(*args)
        alone = jax.tree.map(lambda x: x[0], args)
        return jax.tree.map(lambda x: x[None], one_seed(*alone))

    options, start = compiler.options(setup.efforts[0], setup.mesh), time.perf_counter()
    with context(setup.mesh):
        compiled = jax.jit(all_of, donate_argnums=0).lower(*stacked).compile(options)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), stacked[1])
    found = fitting.Stepping.of(compiled, compiled, lambda: zeros, start, seeds)
    return dataclasses.replace(found, at_once=steps)


def _wider(tree: Any, number: int) -> Any:
    """Shapes with a leading dim."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((number, *x.shape), x.dtype, sharding=x.sharding), tree
    )


def fit(
    own: fitting.Programs, stepping: fitting.Stepping, cells: Sequence[fitting.Seeded]
) -> list[fitting.Fit | DivergedError]:
    """Trains as many seeds of an arm as a call takes, as `fitting.fit` does each of them."""
    setup, plan = own.setup, fitting.plan_of(cells[0].config)
    layout = setup.layout
    courses = [fitting.Course(own, data) for data in cells]
    stacks = _stacks(cells, stepping.at_once, plan.steps, sharding.replicated(setup.mesh))
    inputs = [fitting.inputs_of(data.config) for data in cells]
    scalings = [task_losses.scaling(data.spec) for data in cells]
    over: list[DivergedError | None] = [None] * len(cells)
    best: list[float | None] = [None] * len(cells)
    with context(setup.mesh):
        states = [own.init(given.seed) for given in inputs]
        for course, state in zip(courses, states, strict=True):
            course.begin(state)
        state = _stacked([_packed(setup, state) for state in states])
        given = jax.device_put(_stacked([*zip(inputs, scalings, strict=True)]))
        totals, last, clock = stepping.zeros(), 0, time.perf_counter()
        for call, stack in enumerate(stacks, start=1):
            number = call * stepping.at_once
            state, totals = stepping.step(state, totals, stack, given)
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
                    whole = _of(kept, s) if layout is None else layout.unpacked(_of(kept, s))
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


def _stacks(
    cells: Sequence[fitting.Seeded], at_once: int, steps: int, where: jax.sharding.Sharding
) -> Iterator[Any]:
    """The batches of every seed on the device, [S, K, ...] at a time."""

    def made() -> Iterator[Any]:
        place, shape = fitting.Placer(where), (len(cells), at_once)
        streams = [data.loader.iter(0) for data in cells]
        for _ in range(0, steps, at_once):
            trees = [next(stream) for stream in streams for _ in range(at_once)]
            yield place(jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), _stacked(trees)))

    drawn_by = [(data.config.seed, data.config.train.to_json(sort_keys=True)) for data in cells]
    # Arms differ in their model: the same seeds draw the same batches for each of them.
    return cells[0].train.once((*drawn_by, at_once, where), made(), held.bytes_of)


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
