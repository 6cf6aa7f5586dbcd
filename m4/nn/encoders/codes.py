"""A bag of codes -> one token.

Letters: B rows, T codes, D model width.
"""

import flax.linen as nn
import jax.numpy as jnp

from m4.types import Array, Stream


class CodesEncoder(nn.Module):
    """Mean embedding of the codes of a row and the log of their number, then an affine map."""

    vocab: int
    features: int

    @nn.compact
    def __call__(self, stream: Stream) -> Array:
        """i32[B, T] -> [B, D]; zeros enter the last map where a row has no code."""
        mask_BT = stream.mask & stream.present[:, None]
        code_BT = jnp.clip(jnp.where(mask_BT, stream.values, 0), 0, self.vocab - 1)
        x_BTD = nn.Embed(self.vocab, self.features, name="embed")(code_BT)
        count_B1 = mask_BT.sum(-1, keepdims=True).astype(jnp.float32)
        mean_BD = jnp.where(mask_BT[..., None], x_BTD, 0).sum(1) / jnp.maximum(count_B1, 1.0)
        return nn.Dense(self.features, name="out")(
            jnp.concatenate([mean_BD, jnp.log1p(count_B1)], -1)
        )
