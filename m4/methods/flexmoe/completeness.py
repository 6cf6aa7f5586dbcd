"""Complete and incomplete rows: the expert of each, and losses that tell them apart.

Flex-MoE's "G-router" and "S-router" are one router with two losses: tokens of complete rows are to
spread over all experts, those of incomplete rows are to find the expert of their combination of
modalities and to spread over the others. All losses are sums over the modalities, whose tokens
the authors route in separate calls.

`pattern_N` is the expert of the token's combination, 0 for a complete row.

Letters: B rows, N tokens, E experts, K chosen experts, M modalities, G = 2 M groups
(complete and incomplete tokens of every modality).
"""

from collections.abc import Callable

import jax.numpy as jnp

from m4.maths import combination_index
from m4.moe import losses
from m4.types import Array, Routing

ROOM = "m4.methods.flexmoe.completeness"
LOSSES = {name: f"{ROOM}:{name}" for name in ("router", "importance", "load")}
PAPER_LOSSES = LOSSES | {name: f"{ROOM}:{name}_of_others" for name in ("importance", "load")}


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


def _balance(smooth: bool, counts: bool, paper: bool) -> Callable[..., Array]:
    """A loss: CV^2 per expert over the complete, and over the incomplete tokens of a modality.

    Of the weights, with `counts` of the number of choices, with `smooth` of the smooth load where
    the router has one. Incomplete rows count without expert 0 (the release's eq. 4) or, as in the
    paper's, without their first choice.
    """

    def loss(
        routing: Routing, *, modality_N: Array, num_modalities: int, pattern_N: Array
    ) -> Array:
        group_N, num = 2 * modality_N + (pattern_N > 0), 2 * num_modalities
        amount_NK = (routing.weights > 0.0).astype(jnp.float32) if counts else routing.weights
        if paper:  # choices come in order of their weight
            first_NK = jnp.arange(amount_NK.shape[-1]) == 0
            amount_NK = jnp.where(first_NK & (pattern_N > 0)[:, None], 0.0, amount_NK)
        total_GE = losses.tally(routing, group_N, num, amount_NK)
        if smooth and routing.load is not None:
            total_GE = jnp.zeros_like(total_GE).at[group_N].add(routing.load)
        all_GE = jnp.ones(total_GE.shape, bool)
        kept_GE = all_GE if paper else all_GE.at[1::2, 0].set(False)
        return jnp.sum(losses.cv_squared(total_GE, kept_GE))

    return loss


importance = _balance(smooth=False, counts=False, paper=False)
load = _balance(smooth=True, counts=True, paper=False)
importance_of_others = _balance(smooth=False, counts=False, paper=True)
load_of_others = _balance(smooth=False, counts=True, paper=True)  # a constant
