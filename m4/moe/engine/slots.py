"""Running experts that own slots: expert choice, and the soft mixtures of Soft-MoE.

Letters: B rows, T tokens per row, N tokens, E experts, C tokens per expert, P slots per expert, D
input and O output width.
"""

import jax.numpy as jnp
from einops import rearrange

from m4.moe.experts import ExpertParams, Functions
from m4.types import Array, Routing


def apply_experts(
    x_ND: Array, routing: Routing, params: ExpertParams, functions: Functions
) -> Array:
    """What tokens get back from the slots of `routing`, [N, O]; 0 where no expert took them."""
    if routing.dispatch is None or routing.combine is None:
        return _by_choice(x_ND, routing, params, functions)
    x_BTD = rearrange(x_ND, "(b t) d -> b t d", b=routing.combine.shape[0])
    rows_ECD = rearrange(fill(x_BTD, routing.dispatch), "b e p d -> e (b p) d")
    y_ECO = functions.apply(rows_ECD, params)
    y_BEPO = rearrange(y_ECO, "e (b p) o -> b e p o", b=x_BTD.shape[0])
    return rearrange(mix(y_BEPO, routing.combine), "b t o -> (b t) o")


def fill(x_BTD: Array, dispatch_BTEP: Array) -> Array:
    """Slot inputs [..., E, P, D]: every slot is a mix of its row's tokens [..., T, D]."""
    return jnp.einsum("...tep,...td->...epd", dispatch_BTEP.astype(x_BTD.dtype), x_BTD)


def mix(y_BEPO: Array, combine_BTEP: Array) -> Array:
    """Tokens [..., T, O], each a mix of its row's slot outputs [..., E, P, O]."""
    return jnp.einsum("...tep,...epo->...to", combine_BTEP.astype(y_BEPO.dtype), y_BEPO)


def _by_choice(x_ND, routing, params, functions):
    """Sum of the outputs of the experts that took each token, weighted."""
    x_ECD = jnp.take(x_ND, routing.tokens, axis=0, mode="fill", fill_value=0)
    y_ECO = functions.apply(x_ECD, params)
    y_ECO = y_ECO * routing.weights[..., None].astype(y_ECO.dtype)
    y_NO = jnp.zeros((x_ND.shape[0], y_ECO.shape[-1]), y_ECO.dtype)
    return y_NO.at[routing.tokens].add(y_ECO, mode="drop")
