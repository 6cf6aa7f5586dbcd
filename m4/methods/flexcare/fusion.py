"""A task's token weighs the combinations' (additive attention), and what keeps those apart.

Letters: B rows, C combinations, K tasks, D width.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from m4.maths import softmax, torch_uniform
from m4.nn.layers import StackedLayerNorm
from m4.types import Array


def fuse(q_BKD: Array, y_BKCD: Array, ready_BC: Array, *, temperature: float) -> Array:
    """U = LN(sum_c w_c y_c), w the softmax of v' tanh(W [q; y]) / temperature, [B, K, D].

    Over available combinations. Parameters are 'choose', 'score' and 'fused_norm'; called inside a
    compact method.
    """
    width = q_BKD.shape[-1]
    choose = nn.Dense(width, use_bias=False, kernel_init=torch_uniform(2 * width), name="choose")
    score = nn.Dense(1, use_bias=False, kernel_init=torch_uniform(width), name="score")
    q_BKCD = jnp.broadcast_to(q_BKD[:, :, None], y_BKCD.shape)
    score_BKC = score(jnp.tanh(choose(jnp.concatenate([q_BKCD, y_BKCD], -1))))[..., 0]
    weight_BKC = softmax(score_BKC / temperature, ready_BC[:, None])
    mixed_BKD = jnp.einsum("bkc,bkcd->bkd", weight_BKC, y_BKCD)
    return StackedLayerNorm(name="fused_norm")(mixed_BKD)


def covariance(z_BKCD: Array, ready_BC: Array) -> Array:
    """Mean squared covariance, over features, between tokens of two available combinations."""
    pair_BCC = ready_BC[:, :, None] & ready_BC[:, None]
    pair_BCC &= ~np.eye(ready_BC.shape[1], dtype=bool)
    squared_BKCC = jnp.where(pair_BCC[:, None], squared_covariances(z_BKCD), 0.0)
    return squared_BKCC.sum() / z_BKCD.shape[1] / jnp.maximum(pair_BCC.sum(), 1)


def squared_covariances(z_BKCD: Array) -> Array:
    """Over features, of every pair of combinations, [B, K, C, C]."""
    z_BKCD = z_BKCD.astype(jnp.float32) - z_BKCD.mean(-1, keepdims=True)
    covariance_BKCC = jnp.einsum("bkcd,bked->bkce", z_BKCD, z_BKCD) / max(z_BKCD.shape[-1] - 1, 1)
    return jnp.square(covariance_BKCC)
