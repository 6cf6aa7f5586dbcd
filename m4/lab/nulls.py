"""Gates to compare with that only the lab needs: what they know is all that they know.

The others are gates like any other: `hash` (the token's content, nothing of where it comes from),
`fixed_random` (a projection that is never trained), `oracle` (the modality), `hash_modality`.

Letters: N tokens, D width, E experts.
"""

import jax
import jax.numpy as jnp

from m4.types import Array

# Name of a null -> what it changes in the section of the layer; E stands for the experts.
NULLS = {
    "content_hash": {"gate": "hash"},
    "fixed_random": {"gate": "fixed_random"},
    "hash_modality": {"gate": "hash_modality"},
    "dense_mean": {"gate": "m4.lab.nulls:even", "top_k": "E", "engine": "dense"},
    "oracle_modality": {"gate": "oracle"},
    "oracle_task": {"gate": "m4.lab.nulls:by_task"},
    "oracle_cluster": {"gate": "m4.lab.nulls:by_cluster"},
}


def even(x_ND: Array, *, num_experts: int) -> Array:
    """The same score for every expert: with all of them chosen, their mean. No choice is made."""
    score_NE = jnp.zeros((x_ND.shape[0], num_experts), x_ND.dtype)
    return jax.lax.optimization_barrier(score_NE)  # else XLA sorts the constant as it compiles


def by_task(x_ND: Array, *, num_experts: int, task_N: Array, num_tasks: int) -> Array:
    """Each task has its own block of experts, equally weighted; all others are forbidden."""
    return _blocks(x_ND, task_N, num_tasks, num_experts)


def by_cluster(x_ND: Array, *, num_experts: int, cluster_N: Array, num_clusters: int) -> Array:
    """Each cluster of each modality has its own block of experts, as the planted task has maps.

    Clusters are counted over all modalities.
    """
    return _blocks(x_ND, cluster_N, num_clusters, num_experts)


def _blocks(x_ND: Array, group_N: Array, num_groups: int, num_experts: int) -> Array:
    """0 for the experts of a token's group, -inf for others; groups share where experts are few."""
    expert_E = jnp.arange(num_experts)
    owner_E = expert_E * num_groups // num_experts
    if num_experts < num_groups:
        owner_E, group_N = expert_E, group_N % num_experts
    return jnp.where(group_N[:, None] == owner_E, 0.0, -jnp.inf).astype(x_ND.dtype)
