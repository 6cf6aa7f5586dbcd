"""Clustering heads: soft assignment to learned centroids, and what to train it with.

Logits are -log(1 + |o - mu_k|^2), so that their softmax is the Student-t assignment q of DEC (Xie,
Girshick, Farhadi 2016) and every loss below is a function of logits.

Letters: B rows, K clusters, d width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from m4.maths import entropy
from m4.types import Array


class ClusterHead(nn.Module):
    """Logits of K centroids."""

    num_clusters: int

    @nn.compact
    def __call__(self, o_Bd: Array) -> Array:
        """[B, d] -> [B, K]."""
        init = nn.initializers.normal(1.0)
        centroid_Kd = self.param("centroid", init, (self.num_clusters, o_Bd.shape[-1]))
        apart_BKd = o_Bd[:, None] - centroid_Kd
        return -jnp.log1p(jnp.square(apart_BKd).sum(-1))


def dec(logits_BK: Array, weight_B: Array) -> Array:
    """KL(p | q) per row, p_ik ~ q_ik^2 / f_k, f_k = sum_i q_ik over the batch (DEC, eq. 2-3).

    No gradient flows through p. Rows of weight 0 take no part in f. The sum over the batch is
    global on a mesh, as is every reduction under jit.
    """
    log_q_BK = jax.nn.log_softmax(logits_BK.astype(jnp.float32))
    p_BK = jax.lax.stop_gradient(target(jnp.exp(log_q_BK), weight_B))
    log_p_BK = jnp.log(jnp.where(p_BK > 0, p_BK, 1.0))
    return jnp.sum(p_BK * (log_p_BK - log_q_BK), -1)


def target(q_BK: Array, weight_B: Array) -> Array:
    """DEC's sharpened assignment; every row sums to 1."""
    mass_K = jnp.einsum("bk,b->k", q_BK, weight_B)
    sharp_BK = jnp.square(q_BK) / jnp.where(mass_K > 0, mass_K, 1.0)
    return sharp_BK / sharp_BK.sum(-1, keepdims=True)


def mutual_information(logits_BK: Array, weight_B: Array) -> Array:
    """H(q_i) - H(mean_i q_i) per row: its mean is minus the information of row and cluster."""
    q_BK = jax.nn.softmax(logits_BK.astype(jnp.float32))
    mean_K = jnp.einsum("bk,b->k", q_BK, weight_B) / jnp.maximum(weight_B.sum(), 1e-6)
    return entropy(q_BK) - entropy(mean_K)


def kmeans(logits_BK: Array, weight_B: Array) -> Array:
    """Squared distance to the nearest centroid.

    Kept as a warning: features that are learned with it alone end on one point.
    """
    del weight_B
    return jnp.expm1(-logits_BK.astype(jnp.float32)).min(-1)
