"""Routings in which experts own slots, running experts on them, and one view of all routings.

`ExpertChoice`: every expert takes whole tokens; `SoftRouting` (`m4.types`): every slot holds a
convex mix of a row's tokens.

Letters: B rows, T tokens per row, N tokens, E experts, K chosen experts, C tokens per expert, P
slots per expert, A assignments, D input and O output width.
"""

from collections.abc import Callable

import flax.struct
import jax.numpy as jnp
from einops import rearrange
from jax.nn import logsumexp

from m4.moe.experts import ExpertParams, apply_stacked
from m4.types import Array, Routing, SoftRouting


@flax.struct.dataclass
class ExpertChoice:
    """C tokens per expert; an unfilled slot holds token N, which does not exist, at weight 0."""

    tokens: Array  # i32[E, C]
    weights: Array  # f32[E, C]
    probs: Array  # f32[N, E], 0 on invalid tokens
    logits: Array  # f32[N, E]
    valid: Array  # bool[N]


def assignments(routing: Routing | ExpertChoice) -> tuple[Array, Array, Array]:
    """Token i32[A], expert i32[A] and weight f32[A]; fillers have expert E, to be dropped."""
    if isinstance(routing, ExpertChoice):
        num_experts, capacity = routing.tokens.shape
        expert_EC = jnp.broadcast_to(jnp.arange(num_experts)[:, None], (num_experts, capacity))
        real_EC = routing.tokens < routing.valid.shape[0]
        expert_EC = jnp.where(real_EC, expert_EC, num_experts)
        return routing.tokens.ravel(), expert_EC.ravel(), routing.weights.ravel()
    token_NK = jnp.broadcast_to(jnp.arange(routing.valid.shape[0])[:, None], routing.experts.shape)
    return token_NK.ravel(), routing.experts.ravel(), routing.weights.ravel()


def as_routing(soft: SoftRouting, valid_N: Array) -> Routing:
    """Soft routing seen as K = E: every token visits every expert with its total combine weight.

    For losses and statistics; `probs` are those weights.
    """
    share_NE = rearrange(soft.combine.sum(-1), "b t e -> (b t) e")
    num_experts = share_NE.shape[-1]
    return Routing(
        experts=jnp.where(valid_N[:, None], jnp.arange(num_experts), num_experts),
        weights=share_NE,
        probs=share_NE,
        logits=rearrange(logsumexp(soft.logits, axis=-1), "b t e -> (b t) e"),
        valid=valid_N,
    )


def apply_choice(
    x_ND: Array, choice: ExpertChoice, params: ExpertParams, *, activation: Callable, output=None
) -> Array:
    """Sum of the outputs of the experts that took each token, weighted; 0 if none did."""
    x_ECD = jnp.take(x_ND, choice.tokens, axis=0, mode="fill", fill_value=0)
    y_ECO = apply_stacked(x_ECD, params, activation=activation)
    y_ECO = y_ECO if output is None else output(y_ECO)
    y_ECO = y_ECO * choice.weights[..., None].astype(y_ECO.dtype)
    y_NO = jnp.zeros((x_ND.shape[0], y_ECO.shape[-1]), y_ECO.dtype)
    return y_NO.at[choice.tokens].add(y_ECO, mode="drop")


def apply_soft(
    x_ND: Array, soft: SoftRouting, params: ExpertParams, *, activation: Callable, output=None
) -> Array:
    """Soft-MoE: mix tokens into slots, run the experts, mix slots back, [N, O]."""
    x_BTD = rearrange(x_ND, "(b t) d -> b t d", b=soft.dispatch.shape[0])
    y_BEPO = run_slots(fill_slots(x_BTD, soft), params, activation=activation, output=output)
    y_BTO = jnp.einsum("btep,bepo->bto", soft.combine.astype(y_BEPO.dtype), y_BEPO)
    return rearrange(y_BTO, "b t o -> (b t) o")


def fill_slots(x_BTD: Array, soft: SoftRouting) -> Array:
    """Slot inputs [B, E, P, D]. For task slots (M4oE: P = tasks) add the task embeddings here."""
    return jnp.einsum("btep,btd->bepd", soft.dispatch.astype(x_BTD.dtype), x_BTD)


def run_slots(x_BEPD: Array, params: ExpertParams, *, activation: Callable, output=None) -> Array:
    """Every expert on its slots, [B, E, P, O]."""
    rows_ECD = rearrange(x_BEPD, "b e p d -> e (b p) d")
    y_ECO = apply_stacked(rows_ECD, params, activation=activation)
    y_ECO = y_ECO if output is None else output(y_ECO)
    return rearrange(y_ECO, "e (b p) o -> b e p o", b=x_BEPD.shape[0])


def combine_by_task(y_BEPO: Array, soft: SoftRouting) -> Array:
    """Slot p belongs to task p: sum over experts only, [B, T, P, O] (M4oE's MToE).

    `combine` sums to 1 over experts and tasks together, so that a token's share for a task says
    how much it belongs to it.
    """
    return jnp.einsum("btep,bepo->btpo", soft.combine.astype(y_BEPO.dtype), y_BEPO)
