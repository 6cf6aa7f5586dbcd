"""Information in the routing of a soft mixture: what M4oE regularises.

The softmax of all logits of a row is a joint distribution of tokens, experts and tasks; a
modality's share is the sum over its tokens. Raising I(modality; expert | task) makes experts
specialise on modalities.

Letters: B rows, T tokens, E experts, P tasks, M modalities.
"""

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from m4.moe.soft import SoftSlots
from m4.types import Array

RELEASED_FLOOR = 1e-10  # added to a ratio of probabilities before its logarithm is taken
LOG_FLOOR = float(np.log(RELEASED_FLOOR))
FAR = -1e9  # logit of a token that is not there; finite, so that its gradient is 0 and not NaN


Information = Literal["cmi_joint", "cmi_dispatch", "cmi_combine"]


def regulariser(
    slots: SoftSlots,
    modality_T: np.ndarray,
    num_modalities: int,
    counted_B: Array,
    *,
    kind: Information,
    aggregate: Literal["row", "batch"],
) -> Array:
    """Minus I(modality; expert | task), the mean over `counted_B` rows, or that of their mean.

    `kind` says of which distribution: the softmax of all logits, dispatch or combine weights.
    """
    if kind == "cmi_joint":
        log_p = log_joint(slots.logits[:, 0], slots.mask[:, 0], modality_T, num_modalities)
    else:
        weights = slots.dispatch if kind == "cmi_dispatch" else slots.combine
        log_p = log_joint_of(weights[:, 0], modality_T, num_modalities)
    num = jnp.maximum(counted_B.sum(), 1)
    if aggregate == "batch":
        there = jnp.where(counted_B[:, None, None, None], log_p, FAR)
        log_p = jax.nn.logsumexp(there, 0, keepdims=True) - jnp.log(num)
        return -jnp.where(counted_B.any(), conditional_information(log_p)[0], 0.0)
    return -jnp.sum(jnp.where(counted_B, conditional_information(log_p), 0.0)) / num


def as_losses(value: Array, aux_weights: Mapping[str, float]) -> dict[str, Array]:
    """The auxiliary losses of a method that has no other; none without a weight.

    Raises ValueError for a weight of anything else.
    """
    if {*aux_weights} - {"information"}:
        raise ValueError(f"aux_weights {sorted(aux_weights)}; there is only 'information'")
    return dict.fromkeys(aux_weights, value)


def log_joint(
    logits_BTEP: Array, mask_BT: Array, modality_T: np.ndarray, num_modalities: int
) -> Array:
    """Log P(modality, expert, task) of every row from the softmax over (T, E, P), [B, M, E, P]."""
    return _group(_log_softmax(logits_BTEP, mask_BT), modality_T, num_modalities)


def log_joint_of(weights_BTEP: Array, modality_T: np.ndarray, num_modalities: int) -> Array:
    """The same from dispatch or combine weights, normalised to sum 1 per row."""
    positive = weights_BTEP > 0
    log_BTEP = jnp.where(positive, jnp.log(jnp.where(positive, weights_BTEP, 1.0)), FAR)
    log_BTEP -= jax.nn.logsumexp(log_BTEP, (1, 2, 3), keepdims=True)
    return _group(log_BTEP, modality_T, num_modalities)


def conditional_information(log_p_BMEP: Array) -> Array:
    """I(modality; expert | task) in nats of every row, in log space; 0 <= I <= log min(M, E)."""
    log_t = jax.nn.logsumexp(log_p_BMEP, (1, 2), keepdims=True)
    log_mt = jax.nn.logsumexp(log_p_BMEP, 2, keepdims=True)
    log_et = jax.nn.logsumexp(log_p_BMEP, 1, keepdims=True)
    return jnp.sum(jnp.exp(log_p_BMEP) * (log_p_BMEP + log_t - log_mt - log_et), (1, 2, 3))


def released_information(logits_BTEP: Array, mask_BT: Array) -> Array:
    """I(token; task) with the experts summed out, per row: what the code of M4oE computes."""
    log_BTP = jax.nn.logsumexp(_log_softmax(logits_BTEP, mask_BT), 2)
    log_outer_BTP = jax.nn.logsumexp(log_BTP, 2, keepdims=True) + jax.nn.logsumexp(
        log_BTP, 1, keepdims=True
    )
    ratio_BTP = log_BTP - log_outer_BTP  # its logarithm
    joint_BTP, outer_BTP = jnp.exp(log_BTP), jnp.exp(log_outer_BTP)
    # Both sum to 1. With their difference taken off, a term near independence is ratio^2 / 2 of its
    # own, and not what is left of terms that are larger and cancel.
    near = jnp.abs(ratio_BTP) < 0.5
    small = jnp.where(near, ratio_BTP, 0.0)
    apart = jnp.where(near, outer_BTP * jnp.expm1(small), joint_BTP - outer_BTP)
    floored = jnp.where(near, small + RELEASED_FLOOR, jnp.logaddexp(ratio_BTP, LOG_FLOOR))
    return jnp.sum(joint_BTP * floored - apart, (1, 2))


def utilisation(log_p_BMEP: Array) -> Array:
    """P(modality | task) of every row, [B, M, P]."""
    log_mt = jax.nn.logsumexp(log_p_BMEP, 2)
    return jnp.exp(log_mt - jax.nn.logsumexp(log_mt, 1, keepdims=True))


def _log_softmax(logits_BTEP, mask_BT):
    logits_BTEP = jnp.where(mask_BT[..., None, None], logits_BTEP, FAR)
    return logits_BTEP - jax.nn.logsumexp(logits_BTEP, (1, 2, 3), keepdims=True)


def _group(log_BTEP, modality_T, num_modalities):
    member_MT = modality_T == np.arange(num_modalities)[:, None]
    own = jnp.where(member_MT[None, :, :, None, None], log_BTEP[:, None], FAR)
    return jax.nn.logsumexp(own, 2)
