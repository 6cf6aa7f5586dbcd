"""Running experts that own slots: expert choice, and the soft mixtures of Soft-MoE.

Rows do not see each other, so slots of a row lie where the row does. On a mesh slots travel to the
devices that have their experts, and back (`engine.mesh`); tokens and weights stay.

Letters: B rows, T tokens per row, N tokens, E experts, C slots of an expert in a row (expert
choice) or in all, P slots per expert, D input and O output width.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from m4.maths import row_axes
from m4.moe.engine import mesh
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
    y_ECO = run(rows_ECD, params, functions)
    y_BEPO = rearrange(y_ECO, "e (b p) o -> b e p o", b=x_BTD.shape[0])
    return rearrange(mix(y_BEPO, routing.combine), "b t o -> (b t) o")


def run(x_ECD: Array, params: ExpertParams, functions: Functions) -> Array:
    """Every expert on its slots, [E, C, O]; slots of a row are neighbours."""
    if row_axes():
        return mesh.apply_slots(x_ECD, params, functions)
    return functions.apply(x_ECD, params)


def fill(x_BTD: Array, dispatch_BTEP: Array) -> Array:
    """Slot inputs [..., E, P, D]: every slot is a mix of its row's tokens [..., T, D]."""
    return jnp.einsum("...tep,...td->...epd", dispatch_BTEP.astype(x_BTD.dtype), x_BTD)


def mix(y_BEPO: Array, combine_BTEP: Array) -> Array:
    """Tokens [..., T, O], each a mix of its row's slot outputs [..., E, P, O]."""
    return jnp.einsum("...tep,...epo->...to", combine_BTEP.astype(y_BEPO.dtype), y_BEPO)


def _by_choice(x_ND, routing, params, functions):
    """Sum of the outputs of the experts that took each token, weighted."""
    rows, num_tokens = routing.num_rows, x_ND.shape[0]
    tokens = num_tokens // rows

    def apart(a_EC):
        return rearrange(a_EC, "e (b c) ... -> b e c ...", b=rows)

    # Places within the row; T where nobody took one.
    place_BEC = apart(routing.tokens) - tokens * jnp.arange(rows)[:, None, None]
    place_BEC = jnp.where(apart(routing.tokens) < num_tokens, place_BEC, tokens)

    def take(x_TD, place_EC):
        # Not zeros, of which the gradient of an output function may be NaN, as of y / |y|.
        return jnp.take(x_TD, place_EC, axis=0, mode="fill", fill_value=1)

    def add(y_ECO, place_EC):
        zeros_TO = jnp.zeros((tokens, y_ECO.shape[-1]), y_ECO.dtype)
        return zeros_TO.at[place_EC].add(y_ECO, mode="drop")

    x_BECD = jax.vmap(take)(rearrange(x_ND, "(b t) d -> b t d", b=rows), place_BEC)
    y_ECO = run(rearrange(x_BECD, "b e c d -> e (b c) d"), params, functions)
    y_ECO = y_ECO * routing.weights[..., None].astype(y_ECO.dtype)
    return rearrange(jax.vmap(add)(apart(y_ECO), place_BEC), "b t o -> (b t) o")
