"""The train step: state, gradient, update, and a guard against non-finite numbers.

`B` rows. A step is a pure function `(state, totals, batch) -> (state, totals)`; it is compiled
ahead of time, once for each length of batches (`m4.data.buckets`), so a batch of another shape or
dtype is a TypeError, not one more compile.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from m4 import sharding
from m4.maths import HASHED, exact
from m4.train import guard, optim
from m4.train.precision import Precision, in_precision
from m4.train.ranking import Ranking
from m4.train.remat import Remat, rematerialised
from m4.types import Array, Batch, Mean, Method, Outputs

Params = Any
LAYER_STATS = ("load", "importance", "entropy", "dropped")


@flax.struct.dataclass
class State:
    """All that a run needs to go on. Random keys derive from (seed, step) and are not stored."""

    step: Array  # i32[], batches seen, skipped ones included
    params: Params
    opt: optax.OptState
    ema: Params | None  # moving average of params, None when it is off
    bad: Array  # i32[], steps skipped in a row
    skipped: Array  # i32[], steps skipped in all
    history: guard.History | None  # what the spike guard compares with, None when it is off

    @property
    def eval_params(self) -> Params:
        """What evaluation uses: the moving average where there is one."""
        return self.params if self.ema is None else self.ema


class Totals(flax.struct.PyTreeNode):
    """Sums over the steps since the last log line; they stay on the device until fetched."""

    means: dict[str, Mean]  # over steps that were not skipped
    nonfinite: dict[str, Array]  # i32[], steps in which a term was not finite
    damaged: dict[str, Array]  # i32[], steps after which a part of the state was not finite
    spikes: Array  # i32[], steps that the spike guard skipped
    bad: Array  # i32[], longest run of skipped steps seen
    last_bad: Array  # i32[], the step skipped last, counted from 1; 0 if there was none


class Inputs(flax.struct.PyTreeNode):
    """Numbers of a run that a step reads: with others it is the same program."""

    seed: Array | np.ndarray | np.uint32  # u32[]
    schedule: optim.Schedule | None = None  # None: the optimiser's own
    shares: Array | np.ndarray | None = None  # f32[tasks] of the rate; batches are of one task

    @classmethod
    def of(cls, seed: int, schedule: optim.Schedule | None = None, shares: Any = None) -> "Inputs":
        """Of a seed modulo 2^32."""
        return cls(np.uint32(seed % 2**32), jax.tree.map(np.float32, schedule), shares)

    def rate(self, batch: Batch) -> optim.Schedule | None:
        """The schedule for a batch's task."""
        if self.schedule is None or self.shares is None:
            return self.schedule
        share = jnp.asarray(self.shares)[batch.task.max()]
        return self.schedule.replace(lr=self.schedule.lr * share)


class Step(NamedTuple):
    """The step itself, fresh totals for it, and its loss and gradient alone.

    Without `Inputs`, or a seed, those of `make_step` are part of the program.
    """

    apply: Callable[..., tuple[State, Totals]]  # (State, Totals, Batch, Inputs = ...)
    zeros: Callable[..., Totals]  # (State, Batch, Inputs = ...); a trace is shared if all are alike
    gradient: Callable[..., tuple[Params, dict[str, Mean]]]  # (Params, Batch, step, seed = ...)


def init_params(method: Method, batch: Batch, *, seed: int | Array) -> Params:
    """Fresh parameters, in the metadata boxes that Linen gives them.

    A method's `pretrained(params)`, where it has one, replaces what it has weights for.
    """
    keys = jax.random.split(jax.random.key(seed, impl=HASHED), 3)
    rngs = dict(zip(("params", "dropout", "gate"), keys, strict=True))
    params = method.init(rngs, batch, train=False)["params"]
    pretrained = getattr(method, "pretrained", None)
    return pretrained(params) if pretrained else params


def init_state(
    params: Params, tx: optax.GradientTransformation, *, ema: float, spike_window: int = 0
) -> State:
    """State at step 0; 0 turns the moving average or the spike guard off."""
    zero = jnp.zeros((), jnp.int32)
    average = jax.tree.map(jnp.copy, params) if ema else None
    history = guard.empty(spike_window)
    return State(zero, params, tx.init(params), average, zero, jnp.copy(zero), history)


def make_step(
    method: Method,
    tx: optax.GradientTransformation,
    *,
    seed: int,
    ema: float = 0.0,
    precision: Precision = "float32",
    remat: Remat = "none",
    accumulate: int = 1,
    ranking: Ranking | None = None,
    platform: str | None = None,
    gather: Callable[[Params], Params] = lambda params: params,
    scatter: Callable[[Params], Params] = lambda grads: grads,
) -> Step:
    """The train step of `method`.

    A step whose loss or gradient norm is not finite or, where the state has a history, a spike
    (`m4.train.guard`) leaves parameters, optimiser and average bit for bit as they were, and is
    counted. What else is not finite (an update overflowed, memory failed) `Totals.damaged` reports:
    never save such a state. The average decays by `min(ema, (1 + t) / (10 + t))`: short runs too.

    Args:
      method: what is trained.
      tx: the optimiser.
      seed: key of dropout and gate noise.
      ema: decay of the average; 0 = off.
      precision: of matrix products (`m4.train.precision`).
      remat: what the backward pass computes again (`m4.train.remat`).
      accumulate: micro-batches in which a batch is taken, see `_accumulated`.
      ranking: a second pass with fewer modalities (`m4.train.ranking`).
      platform: that it will run on, such as 'cpu'; None: JAX's default.
      gather: of parameters what a forward pass uses (`sharding.gatherer`).
      scatter: of a gradient what updates the moments that a device has (`sharding.over_data`).
    """
    platform, own = platform or jax.default_backend(), Inputs.of(seed)
    traced = _gradient(method, remat, accumulate, gather, ranking)
    traced = jax.jit(in_precision(precision, traced, platform=platform))  # once

    def gradient(params, batch, step, seed=own.seed):
        return traced(params, batch, step, seed)

    def apply(state, totals, batch, inputs=own):
        grads, means = gradient(state.params, batch, state.step, inputs.seed)
        loss, norm = means["loss"].total, means["grad_norm"].total
        ok, spike, history = guard.accept(state.history, loss, norm)

        given = {} if inputs.schedule is None else {"schedule": inputs.rate(batch)}
        update = functools.partial(_update, optax.with_extra_args_support(tx), given, ema, state)
        old = {"params": state.params, "opt": state.opt, "ema": state.ema}
        parts = optim.accept(ok, update, scatter(grads), old, platform=platform)
        bad, skipped = jnp.where(ok, 0, state.bad + 1), state.skipped + ~ok
        totals = _add(totals, means, ok).replace(
            damaged={k: totals.damaged[k] + ~guard.all_finite(v) for k, v in parts.items()},
            spikes=totals.spikes + spike,
            bad=jnp.maximum(totals.bad, bad),
            last_bad=jnp.where(ok, totals.last_bad, state.step + 1),
        )
        return State(state.step + 1, bad=bad, skipped=skipped, history=history, **parts), totals

    return Step(apply, functools.partial(_zeros, gradient), gradient)


def _update(tx, given: dict[str, Any], ema: float, state: State, grads: Params, old: Any) -> Any:
    """Parameters, optimiser and average of `old` after a gradient."""
    updates, opt = tx.update(grads, old["opt"], old["params"], **given)
    params, average = optax.apply_updates(old["params"], updates), None
    if old["ema"] is not None:
        decay = jnp.minimum(ema, (1.0 + state.step) / (10.0 + state.step))
        average = optax.incremental_update(params, old["ema"], 1.0 - decay)
    return {"params": params, "opt": opt, "ema": average}


def _zeros(gradient: Callable, state: State, batch: Batch, inputs: Inputs | None = None) -> Totals:
    seed = () if inputs is None else (inputs.seed,)
    means = jax.eval_shape(gradient, state.params, batch, state.step, *seed)[1]
    means = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), means)
    zero = jnp.zeros((), jnp.int32)
    counts = {name: jnp.copy(zero) for name in means}
    damaged = {name: jnp.copy(zero) for name in ("params", "opt", "ema")}
    return Totals(means, counts, damaged, zero, jnp.copy(zero), jnp.copy(zero))


def _gradient(
    method: Method,
    remat: Remat,
    accumulate: int,
    gather: Callable[[Params], Params],
    ranking: Ranking | None,
) -> Callable:
    """`(params, batch, step, seed) -> (gradient, what is worth logging)`."""

    def forward(params, batch, rngs):
        return method.apply({"params": gather(params)}, batch, train=True, rngs=rngs)

    forward = rematerialised(remat, forward)

    def objective(params, batch, key, step):
        rngs = dict(zip(("dropout", "gate"), jax.random.split(key), strict=True))
        out = forward(params, batch, rngs)
        with exact():
            loss, terms = method.loss(out, batch, step)
        found = _logged(out)
        if ranking is not None:
            less = ranking.fewer(batch, key, terms)
            other = forward(params, less, rngs)
            with exact():
                found["ranking"] = ranking.loss(out, other, batch, less)
                loss = (loss + method.loss(other, less, step)[0]) / 2
            loss += ranking.weight * found["ranking"]
        return loss, (terms, {"loss": loss} | found)

    def gradient(params, batch, step, seed):
        key = jax.random.fold_in(jax.random.key(seed, impl=HASHED), step)
        if accumulate > 1:
            parts = sharding.micro_batches(batch, accumulate), jax.random.split(key, accumulate)
            grads, terms, means = _accumulated(objective, params, parts, step)
        else:
            take = jax.value_and_grad(objective, has_aux=True)
            (_, (terms, means)), grads = take(params, batch, key, step)
        means["grad_norm"] = optax.tree.norm(grads)
        found = {f"task/{name}": term for name, term in terms.items()}
        return grads, jax.lax.stop_gradient(found | jax.tree.map(_one, means))

    return gradient


def _accumulated(objective: Callable, params: Params, parts: Any, step: Array) -> Any:
    """(gradient, task terms, other means) of a batch whose micro-batches are taken in turn.

    `parts` are the micro-batches and a key for each, stacked. The task losses of every part are
    divided by the label weight of the whole batch: their sum and its gradient are those of one
    batch, however labels are spread. All else that a loss or statistic is made of (balance losses,
    load) is computed within a part, and the parts' mean is taken.
    """
    number = len(parts[1])

    def weights(part):  # compiled without the forward pass, of which they don't need a number
        terms = objective(params, *part, step)[1][0]
        return {name: term.weight for name, term in terms.items()}

    weight_parts = jax.lax.map(weights, parts)
    labels = jax.tree.map(lambda weight_K: weight_K.sum() / number, weight_parts)

    def add(total, part):
        batch, key = part[0].replace(labels=labels), part[1]
        (_, found), grads = jax.value_and_grad(objective, has_aux=True)(params, batch, key, step)
        return jax.tree.map(jnp.add, total, (grads, *found)), None

    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(lambda part: objective(params, *part, step)[1], first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(add, (jax.tree.map(jnp.zeros_like, params), *zeros), parts)
    grads, terms, means = total
    grads, means = jax.tree.map(lambda x: x / number, (grads, means))
    return grads, terms, means


def _logged(out: Outputs) -> dict[str, Array]:
    """What is worth logging of one step, besides its task losses."""
    means = {f"aux/{name}": loss for name, loss in out.aux_losses.items()}
    for layer, aux in out.moe.items():
        stats = {name: aux.stats[name] for name in LAYER_STATS if name in aux.stats}
        means |= {f"moe/{layer}/{name}": stat for name, stat in stats.items()}
    return means


def _one(value: Array) -> Mean:
    return Mean(jnp.asarray(value, jnp.float32), jnp.ones((), jnp.float32))


def _add(totals: Totals, means: dict[str, Mean], ok: Array) -> Totals:
    kept = jax.tree.map(lambda x: jnp.where(ok, x, jnp.zeros_like(x)), means)
    merged = {name: totals.means[name].merge(kept[name]) for name in means}
    nonfinite = {
        name: totals.nonfinite[name] + ~jnp.isfinite(mean.total).all()
        for name, mean in means.items()
    }
    return totals.replace(means=merged, nonfinite=nonfinite)
