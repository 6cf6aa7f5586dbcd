"""Optimiser and learning-rate schedule from plain keyword arguments."""

import re
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from m4 import sharding
from m4.types import Array

OPTIMISERS = ("adam", "adamw", "lion", "sgd")
SCHEDULES = ("constant", "cosine", "linear")


class Schedule(flax.struct.PyTreeNode):
    """Learning rate by step; its numbers can be inputs of a program, so that others need no other.

    Linear warm-up from 0 to `lr`, then constant, cosine or linear decay to `end * lr`.
    """

    lr: Array | float
    warmup: Array | float  # steps
    rest: Array | float  # steps of the decay
    end: Array | float  # fraction
    kind: str = flax.struct.field(pytree_node=False)

    def __call__(self, step: Array | int) -> Array:
        """The rate of a step, counted from 0."""
        done = jnp.clip((step - self.warmup) / self.rest, 0.0, 1.0)
        if self.kind == "cosine":
            fall = 0.5 * (1.0 - jnp.cos(jnp.pi * done))
        else:
            fall = done if self.kind == "linear" else jnp.zeros(())
        rising = step / jnp.maximum(self.warmup, 1.0)
        return self.lr * jnp.where(step < self.warmup, rising, 1.0 - (1.0 - self.end) * fall)


def make_schedule(
    lr: float,
    *,
    steps: int,
    schedule: str = "cosine",
    warmup_steps: int = 0,
    end_fraction: float = 0.0,
) -> Schedule:
    """`Schedule` whose decay ends at `steps`. Raises ValueError on an unknown schedule."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule {schedule!r} is not one of {', '.join(SCHEDULES)}")
    rest = max(steps - warmup_steps, 1)
    return Schedule(float(lr), float(warmup_steps), float(rest), float(end_fraction), schedule)


def make_optimiser(
    name: str,
    schedule: Callable[[Any], Any],
    *,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    platform: str | None = None,
    mask: Callable | None = None,
) -> optax.GradientTransformation:
    """Clipping by global norm (0 = off), then the optimiser, then decoupled weight decay.

    Decay applies to matrices only: not to biases, norm scales or other vectors. `adam` ignores
    `weight_decay` only if it is 0; asking for both is a ValueError, because L2 in Adam is rarely
    meant (`adamw` decouples it). `b1` is SGD's momentum. On the
    `platform` 'cpu' (None: JAX's default) clipping is written otherwise, to the same effect.
    Its `update` takes a `schedule` in the place of this one, too. `mask` is `decayed` or, for
    parameters in another form, what is of the same use.
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
        parts.append(optax.add_decayed_weights(weight_decay, mask=mask or decayed))
    return optax.chain(*parts, _by_rate(schedule))


def _by_rate(schedule: Callable) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_learning_rate`, of another schedule where `update` is given one."""

    def init(params):
        del params
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, *, schedule=schedule, **others):
        del params, others
        scaled = optax.tree.scale(-schedule(state.count), updates)
        return scaled, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


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
    `frozen`: they have no gradient, and must not shrink instead. The leading dimension of layers
    that are stacked (`m4.nn.layers`) is none.
    """

    def is_matrix(path, leaf):
        names = [str(getattr(part, "key", part)) for part in path]
        name = names[-1]
        if any(part.startswith("frozen") for part in names):
            return False
        return leaf.ndim - sharding.in_layers(path) > 1 and not re.search(
            r"bias|scale|^b\d*$", name
        )

    return jax.tree_util.tree_map_with_path(is_matrix, params)
