"""What keeps the tokens of combinations apart.

Letters: B rows, C combinations, K tasks, D width.
"""

import jax.numpy as jnp
import numpy as np

from m4.types import Array


def covariance(z_BKCD: Array, ready_BC: Array) -> Array:
    """Mean squared covariance, over features, between tokens of two available combinations."""
    pair_BCC = ready_BC[:, :, None] & ready_BC[:, None]
    pair_BCC &= ~np.eye(ready_BC.shape[1], dtype=bool)
    squared_BKCC = jnp.where(pair_BCC[:, None], _squared(z_BKCD), 0.0)
    return squared_BKCC.sum() / z_BKCD.shape[1] / jnp.maximum(pair_BCC.sum(), 1)


def covariance_of_all(z_BKCD: Array, counted_B: Array) -> Array:
    """Squared covariances between all combinations' tokens, available or not, over (C - 1)^2.

    Mean over the `counted_B` rows, also such as have nothing.
    """
    combined = z_BKCD.shape[2]
    pair_BCC = counted_B[:, None, None] & ~np.eye(combined, dtype=bool)
    squared_BKCC = jnp.where(pair_BCC[:, None], _squared(z_BKCD), 0.0)
    total = squared_BKCC.sum() / z_BKCD.shape[1]
    return total / jnp.maximum(counted_B.sum() * max(combined - 1, 1) ** 2, 1)


def _squared(z_BKCD: Array) -> Array:
    """Over features, of every pair of combinations, [B, K, C, C]."""
    z_BKCD = z_BKCD.astype(jnp.float32) - z_BKCD.mean(-1, keepdims=True)
    covariance_BKCC = jnp.einsum("bkcd,bked->bkce", z_BKCD, z_BKCD) / max(z_BKCD.shape[-1] - 1, 1)
    return jnp.square(covariance_BKCC)
