"""Presence-aware fusion: missing-modality indicators and pooling.

Letters: B rows, M modalities, T tokens of a modality, D model width.
"""

import flax.linen as nn
import jax.numpy as jnp

from m4.types import Array


def masked_mean(x: Array, mask: Array, *, dim: int) -> Array:
    """Mean over dimension `dim` of what `mask` keeps; 0 where it keeps nothing.

    `mask` has the dimensions of `x` but the last.
    """
    kept = mask[..., None]
    total = jnp.where(kept, x, 0).sum(dim)
    return total / jnp.maximum(kept.sum(dim), 1)


class MissingIndicator(nn.Module):
    """Replaces absent modalities by a learned vector Z_m (FuseMoE section 3.1).

    Replaced by `where`: nothing of an absent slot survives, and its gradient is zero.
    """

    num_modalities: int

    @nn.compact
    def __call__(self, x: Array, present_BM: Array) -> Array:
        """[B, M, ..., D], bool[B, M] -> the same shape as x."""
        init = nn.initializers.normal(0.02)
        z_MD = self.param("embedding", init, (self.num_modalities, x.shape[-1]))
        lift = (1,) * (x.ndim - 3)
        present = present_BM.reshape(*present_BM.shape, *lift, 1)
        return jnp.where(present, x, z_MD.reshape(z_MD.shape[0], *lift, z_MD.shape[1]))
