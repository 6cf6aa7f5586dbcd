"""One number of a train step becomes NaN or infinite, at seven places, for every method.

What a batch brings (`input`, `label`) and what happens inside a step (`loss`, `gradient`,
`router`) must cost that step and nothing else: the state keeps its bits, the step is counted and
named, and going on gives the bits of a run without it. What sits in the state itself (`expert`,
`average`) must be reported by the same step, so that it is never saved. The method is wrapped for
it: the product has no switch for faults.
"""

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m4 import config as configs
from m4 import sharding
from m4.run.setup import context, make_optimiser, make_setup
from m4.run.workspace import prepare
from m4.train import step as steps
from tests.faults import config as smallest
from tests.faults.harness import Bench, Outcome

NONE, LOSS, GRADIENT, ROUTER = range(4)
INSIDE = {"loss": LOSS, "gradient": GRADIENT, "router": ROUTER}
PLACES = ("input", "label", *INSIDE, "expert", "average")
ROUTERS = ("router", "gate", "slot", "query", "attention", "kernel")  # the first that a method has
EXPERTS = ("expert", "task", "kernel")
VALUES = {"NaN": np.nan, "infinity": np.inf}


@jax.custom_vjp
def spoil(x, value):
    """`x`; to the first entry of its gradient `value` is added."""
    return x


def _forward(x, value):
    return x, value


def _backward(value, grad):
    return grad + value * (jnp.arange(grad.size).reshape(grad.shape) == 0), jnp.zeros_like(value)


spoil.defvjp(_forward, _backward)


@dataclasses.dataclass(frozen=True)
class Spoilt:
    """A method whose batch is (batch, which fault, the number it brings)."""

    method: Any

    def apply(self, variables, batch, **kwargs):
        """As the method's, with parameters that are wrong while it is called."""
        batch, fault, value = batch
        params = variables["params"]
        router, any_leaf = _find(params, ROUTERS), _find(params, ("kernel",))
        added = jnp.where(fault == GRADIENT, value, 0.0)
        params = jax.tree_util.tree_map_with_path(
            lambda p, x: spoil(x, added.astype(x.dtype)) if p == any_leaf else x, params
        )
        params = jax.tree_util.tree_map_with_path(
            lambda p, x: jnp.where(fault == ROUTER, value, x) if p == router else x, params
        )
        return self.method.apply({"params": params}, batch, **kwargs)

    def loss(self, out, batch, step):
        """As the method's."""
        batch, fault, value = batch
        total, terms = self.method.loss(out, batch, step)
        return total + jnp.where(fault == LOSS, value, 0.0), terms


def nans(bench: Bench) -> Outcome:
    """Every method, place and value; the short form tries one method."""
    os.environ.setdefault("M4_DATA_DIR", str(bench.shared / "data"))
    methods = smallest.METHODS[: bench.number(1, len(smallest.METHODS))]
    tried, lost = 0, []
    for method in methods:
        rig = Rig(method)
        for place in PLACES:
            for word, value in VALUES.items():
                tried += 1
                problem = rig.problem(place, value)
                if problem:
                    lost.append(method)
                    print(f"  {method}, {word} in {place}: {problem}", flush=True)
    notes = f"{len(PLACES)} places, 2 values, {len(methods)} methods"
    return Outcome(tried, tried - len(lost), len(lost), notes)


class Rig:
    """One method's step, compiled once, and its state after one step."""

    def __init__(self, method: str):
        config = configs.check(smallest.get_config(method), {}, "the smallest configuration")
        self.setup = make_setup(config, prepare(config))
        tx, _, ema = make_optimiser(config)
        step = steps.make_step(Spoilt(self.setup.method), tx, seed=config.seed, ema=ema)
        with context(self.setup.mesh):
            state, batch = self.setup.init(), self.batch(0)
            zeros = jax.eval_shape(step.zeros, state, batch)
            self.zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), zeros)
            options = {"xla_backend_optimization_level": 0}
            self._step = jax.jit(step.apply).lower(state, self.zeros, batch).compile(options)
            self.start, _ = self._step(state, self.zeros, batch)

    def batch(self, number: int, *, fault: int = NONE, value: float = 0.0, edit=None):
        """A batch with a fault; `edit` changes the host's copy."""
        batch = self.setup.loader.batch(number)
        if edit:
            edit(batch, value)
        placed = sharding.put_batch(batch, self.setup.mesh)
        return placed, np.int32(fault), np.float32(value)

    def problem(self, place: str, value: float) -> str | None:
        """What a fault in the second step does that it must not."""
        with context(self.setup.mesh):
            if place in ("expert", "average"):
                return self._in_state(place, value)
            edit = {"input": _edit_input, "label": _edit_label}.get(place)
            bad = self.batch(1, fault=INSIDE.get(place, NONE), value=value, edit=edit)
            after, totals = self._step(self.start, self.zeros, bad)
            if not _same(after, self.start):
                return "the state has changed"
            counted = int(totals.last_bad) == 2 and int(after.skipped) == 1
            if not counted or not sum(map(int, totals.nonfinite.values())):
                return "the step is not counted, or nothing is named"
            without = self.start.replace(step=after.step)
            going_on, _ = self._step(after, totals, self.batch(2))
            expected, _ = self._step(without, self.zeros, self.batch(2))
            moved = not _same(expected, self.start)
            return None if moved and _same(going_on, expected) else "going on gives other bits"

    def _in_state(self, place: str, value: float) -> str | None:
        part = "params" if place == "expert" else "ema"
        tree = getattr(self.start, part)
        path = _find(tree, EXPERTS)
        hurt = jax.tree_util.tree_map_with_path(
            lambda p, x: x.at[(0,) * x.ndim].set(value) if p == path else x, tree
        )
        state = self.start.replace(**{part: hurt})
        _, totals = self._step(state, self.zeros, self.batch(1))
        return None if int(totals.damaged[part]) == 1 else "the state is taken for sound"


def _find(tree: Any, words: tuple[str, ...]):
    """Path of the first matrix whose name holds the first of `words` that any name holds."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    paths = [path for path, leaf in leaves if leaf.ndim >= 2]
    for word in words:
        for path in paths:
            if word in jax.tree_util.keystr(path).lower():
                return path
    raise ValueError(f"no matrix is called one of {words}")


def _same(a: steps.State, b: steps.State) -> bool:
    """Whether parameters, optimiser and average have the same bits."""
    pairs = zip(
        jax.tree.leaves((a.params, a.opt, a.ema)),
        jax.tree.leaves((b.params, b.opt, b.ema)),
        strict=True,
    )
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def _edit_input(batch: Any, value: float) -> None:
    stream = batch.inputs["static"]
    row, column = np.argwhere(stream.observed & (batch.weight > 0)[:, None])[0]
    stream.values[row, column] = value


def _edit_label(batch: Any, value: float) -> None:
    target = batch.targets["los"]
    row = np.flatnonzero((target.mask > 0) & (batch.weight > 0))[0]
    target.value[row] = value
