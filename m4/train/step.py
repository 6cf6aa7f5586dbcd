"""The train step: state, gradient, update, and a guard against non-finite numbers.

`B` rows. A step is a pure function `(state, totals, batch) -> (state, totals)`; it is compiled
ahead of time, once for each length of batches (`m4.data.buckets`), so a batch of another shape or
dtype is a TypeError, not one more compile.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from m4.train import guard, optim
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


@flax.struct.dataclass
class Totals:
    """Sums over the steps since the last log line; they stay on the device until fetched."""

    means: dict[str, Mean]  # over steps that were not skipped
    nonfinite: dict[str, Array]  # i32[], steps in which a term was not finite
    damaged: dict[str, Array]  # i32[], steps after which a part of the state was not finite
    spikes: Array  # i32[], steps that the spike guard skipped
    bad: Array  # i32[], longest run of skipped steps seen
    last_bad: Array  # i32[], the step skipped last, counted from 1; 0 if there was none


class Step(NamedTuple):
    """The step itself, fresh totals for it, and its loss and gradient alone."""

    apply: Callable[[State, Totals, Batch], tuple[State, Totals]]
    zeros: Callable[[State, Batch], Totals]
    gradient: Callable[[Params, Batch, Array], tuple[Params, dict[str, Mean]]]


def init_params(method: Method, batch: Batch, *, seed: int) -> Params:
    """Fresh parameters, in the metadata boxes that Linen gives them.

    A method's `pretrained(params)`, where it has one, replaces what it has weights for.
    """
    keys = jax.random.split(jax.random.key(seed), 3)
    rngs = dict(zip(("params", "dropout", "gate"), keys, strict=True))
    params = method.init(rngs, batch, train=False)["params"]
    return method.pretrained(params) if hasattr(method, "pretrained") else params


def init_state(
    params: Params, tx: optax.GradientTransformation, *, ema: float, spike_window: int = 0
) -> State:
    """State at step 0; 0 turns the moving average or the spike guard off."""
    zero = jnp.zeros((), jnp.int32)
    average = jax.tree.map(jnp.copy, params) if ema else None
    history = guard.empty(spike_window)
    return State(zero, params, tx.init(params), average, zero, jnp.copy(zero), history)


def make_step(
    method: Method, tx: optax.GradientTransformation, *, seed: int, ema: float = 0.0
) -> Step:
    """The train step of `method` under optimiser `tx`.

    A step whose loss or gradient norm is not finite or, where the state has a history, a spike
    (`m4.train.guard`) leaves parameters, optimiser and average bit for bit as they were and is
    counted. Numbers that are not finite although both were (an update that overflows, memory
    that fails) are reported in `Totals.damaged`: such a state must not be saved. The average
    decays by `min(ema, (1 + t) / (10 + t))`, so that a short run isn't dominated by its initial
    values.
    """
    tx = optim.gated(tx)

    @jax.jit  # its trace is shared by `apply` and `zeros`
    def gradient(params, batch, step):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
        rngs = dict(zip(("dropout", "gate"), keys, strict=True))

        def objective(params):
            out = method.apply({"params": params}, batch, train=True, rngs=rngs)
            loss, terms = method.loss(out, batch, step)
            return loss, _means(out, terms)

        (loss, means), grads = jax.value_and_grad(objective, has_aux=True)(params)
        norm = optax.tree.norm(grads)
        return grads, {"loss": _one(loss), "grad_norm": _one(norm)} | means

    def apply(state, totals, batch):
        grads, means = gradient(state.params, batch, state.step)
        loss, norm = means["loss"].total, means["grad_norm"].total
        ok, spike, history = guard.accept(state.history, loss, norm)
        updates, opt = tx.update(grads, state.opt, state.params, ok=ok)
        params = _where(ok, optax.apply_updates(state.params, updates), state.params)
        average = None
        if state.ema is not None:
            decay = jnp.minimum(ema, (1.0 + state.step) / (10.0 + state.step))
            average = optax.incremental_update(params, state.ema, 1.0 - decay)
            average = _where(ok, average, state.ema)
        bad = jnp.where(ok, 0, state.bad + 1)
        totals = _add(totals, means, ok)
        parts = {"params": params, "opt": opt, "ema": average}
        totals = totals.replace(
            damaged={k: totals.damaged[k] + ~guard.all_finite(v) for k, v in parts.items()},
            spikes=totals.spikes + spike,
            bad=jnp.maximum(totals.bad, bad),
            last_bad=jnp.where(ok, totals.last_bad, state.step + 1),
        )
        skipped = state.skipped + ~ok
        return State(state.step + 1, params, opt, average, bad, skipped, history), totals

    def zeros(state, batch):
        means = jax.eval_shape(gradient, state.params, batch, state.step)[1]
        means = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), means)
        zero = jnp.zeros((), jnp.int32)
        counts = {name: jnp.copy(zero) for name in means}
        damaged = {name: jnp.copy(zero) for name in ("params", "opt", "ema")}
        return Totals(means, counts, damaged, zero, jnp.copy(zero), jnp.copy(zero))

    return Step(apply, zeros, gradient)


def _means(out: Outputs, terms: dict[str, Mean]) -> dict[str, Mean]:
    """What is worth logging of one step."""
    means = {f"task/{name}": term for name, term in terms.items()}
    means |= {f"aux/{name}": _one(loss) for name, loss in out.aux_losses.items()}
    for layer, aux in out.moe.items():
        stats = {name: aux.stats[name] for name in LAYER_STATS if name in aux.stats}
        means |= {f"moe/{layer}/{name}": _one(stat) for name, stat in stats.items()}
    return jax.lax.stop_gradient(means)


def _one(value: Array) -> Mean:
    return Mean(jnp.asarray(value, jnp.float32), jnp.ones((), jnp.float32))


def _where(ok: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: optim.settled(jnp.where(ok, n, o)), new, old)


def _add(totals: Totals, means: dict[str, Mean], ok: Array) -> Totals:
    kept = _where(ok, means, jax.tree.map(jnp.zeros_like, means))
    merged = {name: totals.means[name].merge(kept[name]) for name in means}
    nonfinite = {
        name: totals.nonfinite[name] + ~jnp.isfinite(mean.total).all()
        for name, mean in means.items()
    }
    return totals.replace(means=merged, nonfinite=nonfinite)
