"""Complete and incomplete rows: the expert of each, and losses that tell them apart.

Flex-MoE's "G-router" and "S-router" are one router with two losses: tokens of complete rows are to
spread over all experts, those of incomplete rows are to find the expert of their combination of
modalities and to spread over the others. All losses are sums over the modalities, whose tokens
the authors route in separate calls.

`pattern_N` is the expert of the token's combination, 0 for a complete row.

Letters: B rows, N tokens, E experts, K chosen experts, M modalities, G = 2 M groups
(complete and incomplete tokens of every modality).
"""

from collections.abc import Mapping

import jax.numpy as jnp

from m4.maths import combination_index
from m4.moe import losses
from m4.types import Array, Routing

ROOM = "m4.methods.flexmoe.completeness"
LOSSES = {name: f"{ROOM}:{name}" for name in ("router", "importance", "load")}
PAPER_LOSSES = LOSSES | {name: f"{ROOM}:{name}_of_others" for name in ("importance", "load")}


def chosen(aux_weights: Mapping[str, float], own: Mapping[str, str] = LOSSES) -> dict[str, str]:
    """Names in `aux_weights` -> functions: Flex-MoE's `own`, any other of `m4.moe.losses`."""
    return {name: own.get(name, name) for name in sorted(aux_weights)}


def check_experts(num_experts: int, num_modalities: int) -> None:
    """Raises ValueError unless every combination of modalities can have an expert of its own."""
    least = max(2, 2**num_modalities - 1)
    if num_experts < least:
        raise ValueError(
            f"moe.num_experts={num_experts} must be at least {least}: every one of the"
            f" 2^{num_modalities} - 1 combinations of modalities has its expert (fidelity='m4' lets"
            " them share)"
        )


def pattern(present_BM: Array, num_experts: int) -> Array:
    """Expert of each row, i32[B]: 0 if complete, else its combination's, modulo those but 0."""
    others = num_experts - 1
    index_B = combination_index(present_BM, modulo=others)
    return jnp.where(present_BM.all(-1), 0, 1 + (index_B - 1) % others)


def router(routing: Routing, *, pattern_N: Array, num_modalities: int) -> Array:
    """-log p(the combination's expert) of incomplete rows, from noisy logits (paper eq. 3).

    The paper compares the largest router probability with the target; the release takes the
    cross-entropy, and so do we.
    """
    return num_modalities * losses.pattern_cross_entropy(routing, pattern_N=pattern_N)


def importance(
    routing: Routing, *, modality_N: Array, num_modalities: int, pattern_N: Array
) -> Array:
    """CV^2 of the weights per expert; incomplete rows: without expert 0 (the release's eq. 4)."""
    group_N = _group(modality_N, pattern_N)
    total_GE = losses.tally(routing, group_N, 2 * num_modalities, routing.weights)
    return jnp.sum(losses.cv_squared(total_GE, _without_expert_0(total_GE.shape)))


def load(routing: Routing, *, modality_N: Array, num_modalities: int, pattern_N: Array) -> Array:
    """CV^2 of the smooth load, else of the number of choices; see `importance`."""
    shape = (2 * num_modalities, routing.probs.shape[-1])
    group_N = _group(modality_N, pattern_N)
    if getattr(routing, "load", None) is not None:
        load_GE = jnp.zeros(shape).at[group_N].add(routing.load)
    else:
        chosen_NK = (routing.weights > 0.0).astype(jnp.float32)
        load_GE = losses.tally(routing, group_N, 2 * num_modalities, chosen_NK)
    return jnp.sum(losses.cv_squared(load_GE, _without_expert_0(shape)))


def importance_of_others(
    routing: Routing, *, modality_N: Array, num_modalities: int, pattern_N: Array
) -> Array:
    """CV^2 of the weights per expert; incomplete rows: without the first choice (paper eq. 4)."""
    return _others(routing, routing.weights, modality_N, num_modalities, pattern_N)


def load_of_others(
    routing: Routing, *, modality_N: Array, num_modalities: int, pattern_N: Array
) -> Array:
    """CV^2 of the number of choices per expert, a constant; see `importance_of_others`."""
    chosen_NK = (routing.weights > 0.0).astype(jnp.float32)
    return _others(routing, chosen_NK, modality_N, num_modalities, pattern_N)


def _others(routing, amount_NK, modality_N, num_modalities, pattern_N):
    first_NK = jnp.arange(amount_NK.shape[-1]) == 0  # choices come in order of their weight
    amount_NK = jnp.where(first_NK & (pattern_N > 0)[:, None], 0.0, amount_NK)
    shape = (2 * num_modalities, routing.probs.shape[-1])
    group_N1 = _group(modality_N, pattern_N)[:, None]
    total_GE = jnp.zeros(shape).at[group_N1, routing.experts].add(amount_NK, mode="drop")
    return jnp.sum(losses.cv_squared(total_GE, jnp.ones(shape, bool)))


def _group(modality_N, pattern_N):
    return 2 * modality_N + (pattern_N > 0)


def _without_expert_0(shape):
    group_G1, expert_E = jnp.arange(shape[0])[:, None], jnp.arange(shape[1])
    return (group_G1 % 2 == 0) | (expert_E > 0)
