"""Balance losses and regularisers on a `Routing`: returned unweighted, invalid tokens excluded.

A loss is a function `(routing, *, ...) -> f32[]` to be minimised. What it names is passed to it:
`modality_N` with `num_modalities`, and the gate groups `group_N` with `allowed_GE` (one group
unless every modality has a gate of its own; a group's experts are those it may use).

Letters: N tokens, E experts, G gate groups, M modalities.
"""

import jax.numpy as jnp

from m4.types import Array, Routing


def importance(routing: Routing, *, group_N: Array, allowed_GE: Array) -> Array:
    """CV^2 of the summed weights per expert (Shazeer et al. 2017, eq. 6-7), summed over groups."""
    importance_GE = (
        jnp.zeros(allowed_GE.shape)
        .at[group_N[:, None], routing.experts]
        .add(routing.weights, mode="drop")
    )
    return jnp.sum(cv_squared(importance_GE, allowed_GE))


def load(routing: Routing, *, group_N: Array, allowed_GE: Array) -> Array:
    """CV^2 of the smooth load (Shazeer et al. 2017, eq. 8-11), summed over groups.

    0 where the routing carries no load estimate (evaluation without noise).
    Raises nothing: a router that never estimates load simply contributes 0.
    """
    if routing.load is None:
        return jnp.zeros(())
    load_GE = jnp.zeros(allowed_GE.shape).at[group_N].add(routing.load)
    return jnp.sum(cv_squared(load_GE, allowed_GE))


def cv_squared(values_GE: Array, where_GE: Array) -> Array:
    """Unbiased variance / (mean^2 + 1e-10) over the experts in `where_GE`, f32[G]."""
    count_G1 = where_GE.sum(-1, keepdims=True)
    mean_G1 = jnp.sum(values_GE, -1, keepdims=True, where=where_GE) / jnp.maximum(count_G1, 1)
    squares_G1 = jnp.sum((values_GE - mean_G1) ** 2, -1, keepdims=True, where=where_GE)
    variance_G1 = squares_G1 / jnp.maximum(count_G1 - 1, 1)
    return (variance_G1 / (mean_G1**2 + 1e-10))[:, 0]


def entropy(routing: Routing, *, modality_N: Array, num_modalities: int) -> Array:
    """Mean entropy of the modalities' expert usage minus the entropy of the mean usage.

    FuseMoE eq. 3: minus the generalised Jensen-Shannon divergence, in [-log M, 0]; lowest where
    modalities use disjoint experts. The usage of a modality is the mean router distribution of
    its valid tokens. Departure: a modality without a token in the batch does not count, where
    the paper's 1/M would treat its undefined usage as a distribution.
    """
    usage_ME, seen_M = _usage(routing, modality_N, num_modalities)
    mean_E = jnp.sum(usage_ME, 0) / jnp.maximum(seen_M.sum(), 1)
    return jnp.sum(_entropy(usage_ME)) / jnp.maximum(seen_M.sum(), 1) - _entropy(mean_E)


def _usage(routing, modality_N, num_modalities):
    """Mean router distribution per modality f32[M, E] (0 if unseen), and which are seen."""
    total_ME = (
        jnp.zeros((num_modalities, routing.probs.shape[-1])).at[modality_N].add(routing.probs)
    )
    count_M = jnp.zeros(num_modalities).at[modality_N].add(routing.valid.astype(jnp.float32))
    return total_ME / jnp.maximum(count_M, 1)[:, None], count_M > 0


def _entropy(probs):
    """-sum p log p over the last dimension in nats, with 0 log 0 = 0 and a finite gradient."""
    safe = jnp.where(probs > 0, probs, 1.0)
    return -jnp.sum(safe * jnp.log(safe) * (probs > 0), -1)
