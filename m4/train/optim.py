"""Optimiser and learning-rate schedule from plain keyword arguments."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from m4.types import Array

OPTIMISERS = ("adam", "adamw", "lion", "sgd")
SCHEDULES = ("constant", "cosine", "linear")


class Gated(optax.GradientTransformationExtraArgs):
    """A transformation whose update takes `ok`; where that is False, it returns its old state."""


def make_schedule(
    lr: float,
    *,
    steps: int,
    schedule: str = "cosine",
    warmup_steps: int = 0,
    end_fraction: float = 0.0,
) -> optax.Schedule:
    """Linear warm-up from 0 to `lr`, then constant, cosine or linear decay to `end_fraction * lr`.

    The decay ends at `steps`. Raises ValueError on an unknown schedule.
    """
    rest = max(steps - warmup_steps, 1)
    if schedule == "constant":
        decay = optax.constant_schedule(lr)
    elif schedule == "cosine":
        decay = optax.cosine_decay_schedule(lr, rest, alpha=end_fraction)
    elif schedule == "linear":
        decay = optax.linear_schedule(lr, lr * end_fraction, rest)
    else:
        raise ValueError(f"schedule {schedule!r} is not one of {', '.join(SCHEDULES)}")
    if not warmup_steps:
        return decay
    warmup = optax.linear_schedule(0.0, lr, warmup_steps)
    return optax.join_schedules([warmup, decay], [warmup_steps])


def make_optimiser(
    name: str,
    schedule: optax.Schedule,
    *,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> Gated:
    """Clipping by global norm (0 = off), then the optimiser, then decoupled weight decay.

    Decay applies to matrices only: not to biases, norm scales or other vectors. `adam` ignores
    `weight_decay` only if it is 0; asking for both is a ValueError, because L2 in Adam is rarely
    meant (`adamw` decouples it). `b1` is SGD's momentum.
    """
    if name == "adam" and weight_decay:
        raise ValueError(f"adam has no decoupled weight_decay={weight_decay}: use adamw")
    core = {
        "adam": lambda: scale_by_adam(b1=b1, b2=b2, eps=eps),
        "adamw": lambda: scale_by_adam(b1=b1, b2=b2, eps=eps),
        "lion": lambda: optax.scale_by_lion(b1=b1, b2=b2),
        "sgd": lambda: optax.trace(decay=b1) if b1 else optax.identity(),
    }
    if name not in core:
        raise ValueError(f"optimiser {name!r} is not one of {', '.join(OPTIMISERS)}")
    parts = [clip_by_global_norm(clip_norm)] if clip_norm else []
    parts.append(core[name]())
    if weight_decay:
        parts.append(optax.add_decayed_weights(weight_decay, mask=decayed))
    return Gated(*optax.chain(*map(gated, [*parts, optax.scale_by_learning_rate(schedule)])))


def gated(tx: optax.GradientTransformation) -> Gated:
    """`tx` with an argument `ok` (default True)."""
    if isinstance(tx, Gated):
        return tx
    tx = optax.with_extra_args_support(tx)

    def update(grads, state, params=None, *, ok: Array | bool = True, **extra):
        updates, new = tx.update(grads, state, params, **extra)
        return updates, jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, state)

    return Gated(tx.init, update)


def clip_by_global_norm(limit: float) -> Gated:
    """Optax's, with one factor for all instead of a division of every number.

    Optax keeps the clipped gradients as an array, since two branches make them; a product with a
    scalar is computed where it is read.
    """

    def update(grads, state, params=None, **extra):
        del params, extra
        norm = optax.tree.norm(grads)
        factor = jnp.where(norm < limit, 1.0, limit / norm)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads), state

    return Gated(optax.init_empty_state, update)


def scale_by_adam(*, b1: float, b2: float, eps: float) -> Gated:
    """Optax's, with state and result of the same numbers, written for updates in place.

    The direction is computed from the new moments and not beside them from the old: on a CPU XLA
    copies an array that one kernel overwrites and another still reads (`settled`).
    """
    plain = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)

    def update(grads, state, params=None, *, ok: Array | bool = True, **extra):
        del params, extra
        count = jnp.where(ok, optax.safe_increment(state.count), state.count)

        def moments(g, mu, nu):
            new = (1 - b1) * g + b1 * mu, (1 - b2) * jnp.square(g) + b2 * nu
            return settled((jnp.where(ok, new[0], mu), jnp.where(ok, new[1], nu)))

        both = jax.tree.map(moments, grads, state.mu, state.nu)
        mu, nu = jax.tree.transpose(jax.tree.structure(grads), jax.tree.structure((0, 0)), both)
        hat = optax.tree.bias_correction
        mu_hat, nu_hat = hat(mu, b1, count), hat(nu, b2, count)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu_hat, nu_hat)
        return updates, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return Gated(plain.init, update)


def settled(tree: Any) -> Any:
    """The tree, but on a CPU each array is in memory before anything reads it.

    A kernel that would rather compute an array's elements again, from what they were made of,
    keeps that alive, and it could not be overwritten. Accelerators fuse the readers with the
    writer instead.
    """
    barrier = jax.lax.optimization_barrier
    return jax.lax.platform_dependent(tree, cpu=barrier, default=lambda tree: tree)


def decayed(params):
    """True for every leaf that weight decay applies to.

    Biases stacked over experts or modalities are matrices, so names count besides dimensions:
    `bias`, `scale`, and `b1`, `b2` of an expert are spared. So are modules whose names begin with
    `frozen`: they have no gradient, and must not shrink instead.
    """

    def is_matrix(path, leaf):
        names = [str(getattr(part, "key", part)) for part in path]
        name = names[-1]
        if any(part.startswith("frozen") for part in names):
            return False
        return leaf.ndim > 1 and not re.search(r"bias|scale|^b\d*$", name)

    return jax.tree_util.tree_map_with_path(is_matrix, params)
