"""What a routing did: counts and shares, cheap enough for every step.

Letters: N tokens, E experts, K chosen experts, B rows, M modalities.
"""

import jax.numpy as jnp

from m4.types import Array, Routing


def counts(routing: Routing, index_N: Array, num: int) -> Array:
    """Assignments per value of `index_N` (below `num`) and expert, f32[num, E]."""
    shape = (num, routing.probs.shape[-1])
    return jnp.zeros(shape).at[index_N[:, None], routing.experts].add(1.0, mode="drop")


def step_stats(routing: Routing, dropped: Array) -> dict[str, Array]:
    """'load' and 'importance' f32[E] (shares), mean 'entropy' (nats) and 'dropped' f32[]."""
    none_N = jnp.zeros(routing.valid.shape, jnp.int32)
    count_E = counts(routing, none_N, 1)[0]
    weight_E = jnp.zeros(count_E.shape).at[routing.experts].add(routing.weights, mode="drop")
    probs = jnp.where(routing.probs > 0, routing.probs, 1.0)
    entropy_N = -jnp.sum(probs * jnp.log(probs), -1)
    return {
        "load": count_E / jnp.maximum(count_E.sum(), 1.0),
        "importance": weight_E / jnp.maximum(weight_E.sum(), 1e-30),
        "entropy": entropy_N.sum() / jnp.maximum(routing.valid.sum(), 1),
        "dropped": dropped,
    }


def counts_by_row(routing: Routing, modality_N: Array, num_modalities: int, num_rows: int) -> Array:
    """Assignments per row, modality and expert, f32[B, M, E], for tokens in (b t) order.

    Raises ValueError unless the tokens divide into `num_rows` rows.
    """
    num_tokens = modality_N.shape[0]
    if num_tokens % num_rows:
        raise ValueError(f"{num_tokens} tokens cannot be {num_rows} rows of equal length")
    row_N = jnp.arange(num_tokens) // (num_tokens // num_rows)
    flat = counts(routing, row_N * num_modalities + modality_N, num_rows * num_modalities)
    return flat.reshape(num_rows, num_modalities, -1)
