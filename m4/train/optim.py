"""Optimiser and learning-rate schedule from plain keyword arguments."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from m4.types import Array

OPTIMISERS = ("adam", "adamw", "lion", "sgd")
SCHEDULES = ("constant", "cosine", "linear")


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
    platform: str | None = None,
) -> optax.GradientTransformation:
    """Clipping by global norm (0 = off), then the optimiser, then decoupled weight decay.

    Decay applies to matrices only: not to biases, norm scales or other vectors. `adam` ignores
    `weight_decay` only if it is 0; asking for both is a ValueError, because L2 in Adam is rarely
    meant (`adamw` decouples it). `b1` is SGD's momentum. On the
    `platform` 'cpu' (None: JAX's default) clipping is written otherwise, to the same effect.
    """
    if name == "adam" and weight_decay:
        raise ValueError(f"adam has no decoupled weight_decay={weight_decay}: use adamw")
    core = {
        "adam": lambda: optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        "adamw": lambda: optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        "lion": lambda: optax.scale_by_lion(b1=b1, b2=b2),
        "sgd": lambda: optax.trace(decay=b1) if b1 else optax.identity(),
    }
    if name not in core:
        raise ValueError(f"optimiser {name!r} is not one of {', '.join(OPTIMISERS)}")
    cpu = (platform or jax.default_backend()) == "cpu"
    clip = _clip_by_a_factor if cpu else optax.clip_by_global_norm
    parts = [clip(clip_norm)] if clip_norm else []
    parts.append(core[name]())
    if weight_decay:
        parts.append(optax.add_decayed_weights(weight_decay, mask=decayed))
    return optax.chain(*parts, optax.scale_by_learning_rate(schedule))


def accept(
    ok: Array, update: Callable[[Any, Any], Any], grads: Any, old: Any, *, platform: str
) -> Any:
    """`update(grads, old)` if `ok`, else `old`, bit for bit.

    On a CPU by a branch, which updates `old` in place: AdamW on 8M parameters then needs no memory
    besides the gradient and takes 0.6 of the time. An accelerator would wait until its host has
    read `ok`; it chooses every number instead.
    """
    if platform == "cpu":
        return jax.lax.cond(ok, update, lambda grads, old: old, grads, old)
    return jax.tree.map(lambda new, old: jnp.where(ok, new, old), update(grads, old), old)


def _clip_by_a_factor(limit: float) -> optax.GradientTransformation:
    """Optax's clipping, which a CPU computes where a gradient is read and stores nowhere."""

    def update(updates, state, params=None):
        del params
        norm = optax.tree.norm(updates)
        return optax.tree.scale(jnp.where(norm < limit, 1.0, limit / norm), updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


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
