"""What a routing did, inside the step: counts, shares and scalars at negligible cost.

What needs whole data sets (mutual information with modality, task and presence pattern, its bias
and its permutation null) is computed from `counts_by_row` on the host, in `m4.eval.specialisation`.

Letters: N tokens, E experts, K chosen experts, A assignments, B rows, M modalities.
"""

import jax
import jax.numpy as jnp
from einops import rearrange

from m4.moe.engine.dispatch import choose_layout
from m4.moe.engine.plan import make_plan
from m4.moe.engine.slots import ExpertChoice, assignments
from m4.moe.losses import entropy_of
from m4.types import Array, Routing


def counts(routing: Routing | ExpertChoice, index_N: Array, num: int) -> Array:
    """Assignments per value of `index_N` (below `num`) and expert, f32[num, E]."""
    token_A, expert_A, _ = assignments(routing)
    index_A = jnp.take(index_N, token_A, mode="clip")
    zeros = jnp.zeros((num, routing.probs.shape[-1]))
    return zeros.at[index_A, expert_A].add(1.0, mode="drop")


def counts_by_row(
    routing: Routing | ExpertChoice, modality_N: Array, num_modalities: int, num_rows: int
) -> Array:
    """Assignments per row, modality and expert, f32[B, M, E], for tokens in (b t) order.

    Raises ValueError unless the tokens divide into `num_rows` rows.
    """
    num_tokens = modality_N.shape[0]
    if num_tokens % num_rows:
        raise ValueError(f"{num_tokens} tokens cannot be {num_rows} rows of equal length")
    row_N = jnp.arange(num_tokens) // (num_tokens // num_rows)
    flat = counts(routing, row_N * num_modalities + modality_N, num_rows * num_modalities)
    return flat.reshape(num_rows, num_modalities, -1)


def step_stats(routing: Routing | ExpertChoice, dropped: Array) -> dict[str, Array]:
    """Load, importance (shares, f32[E]) and scalars, at a cost of a few passes over [N, E].

    'entropy' (nats) and 'margin' (probability of the best choice minus that of the second) are
    means over valid tokens; the rest is `load_stats` of the assignment counts.
    """
    _, expert_A, weight_A = assignments(routing)
    zeros_E = jnp.zeros(routing.probs.shape[-1])
    count_E = zeros_E.at[expert_A].add(1.0, mode="drop")
    weight_E = zeros_E.at[expert_A].add(weight_A, mode="drop")
    num_valid = jnp.maximum(routing.valid.sum(), 1)
    stats = {
        "load": count_E / jnp.maximum(count_E.sum(), 1.0),
        "importance": weight_E / jnp.maximum(weight_E.sum(), 1e-30),
        "entropy": jnp.sum(entropy_of(routing.probs)) / num_valid,
        "margin": jnp.sum(_margin(routing)) / num_valid,
        "dropped": dropped,
    }
    return jax.lax.stop_gradient(stats | load_stats(count_E))


def load_stats(count_E: Array) -> dict[str, Array]:
    """Balance of assignment counts as scalars; all 0 (effective 1) where nothing was routed.

    'cv' std / mean; 'max_violation' max / mean - 1; 'gini' 0 equal to 1 - 1/E all on one; 'dead'
    share of experts below 1 % of the mean; 'effective' number of experts exp(H(load)).
    """
    num_experts = count_E.shape[-1]
    share_E = count_E / jnp.maximum(count_E.sum(), 1.0)
    any_routed = count_E.sum() > 0
    rank_E = 2.0 * jnp.arange(1, num_experts + 1) - num_experts - 1
    return {
        "cv": jnp.std(share_E) * num_experts,
        "max_violation": jnp.where(any_routed, share_E.max() * num_experts - 1.0, 0.0),
        "gini": jnp.sum(rank_E * jnp.sort(share_E)) / num_experts,
        "dead": jnp.where(any_routed, jnp.mean(share_E < 0.01 / num_experts), 0.0),
        "effective": jnp.exp(entropy_of(share_E)),
    }


def _margin(routing):
    """Of the first two choices if there are two: a search over all E would double the cost."""
    if isinstance(routing, Routing) and routing.experts.shape[-1] > 1:
        chosen_N2 = jnp.minimum(routing.experts[:, :2], routing.probs.shape[-1] - 1)
        best_N2 = jnp.take_along_axis(routing.probs, chosen_N2, axis=-1)
    else:
        best_N2 = jax.lax.top_k(routing.probs, min(2, routing.probs.shape[-1]))[0]
    return best_N2[:, 0] - best_N2[:, -1]


def unserved(routing: Routing, *, strategy: str, capacity_factor: float | None = None) -> Routing:
    """The assignments that a capacity strategy of `m4.moe.engine.dispatch` drops, as a `Routing`.

    `counts` of it give the drops by modality, task or row.
    """
    num_experts = routing.probs.shape[-1]
    layout = choose_layout(
        routing.experts.size,
        num_experts,
        strategy=strategy,
        capacity_factor=capacity_factor,
        backend=jax.local_devices()[0].platform,
    )
    priority_N = routing.weights.max(-1) if strategy == "capacity_prioritised" else None
    plan = make_plan(routing.experts, num_experts, priority_N=priority_N)
    lost_NK = rearrange(plan.rank_A >= layout.capacity, "(k n) -> n k", n=routing.valid.size)
    return routing.replace(experts=jnp.where(lost_NK, routing.experts, num_experts))


def coactivation(routing: Routing) -> Array:
    """How many tokens visit both experts, f32[E, E]; the diagonal counts visits."""
    num_experts = routing.probs.shape[-1]
    pairs = jnp.zeros((num_experts, num_experts))
    first_NKK, second_NKK = routing.experts[:, :, None], routing.experts[:, None, :]
    return pairs.at[first_NKK, second_NKK].add(1.0, mode="drop")
