"""A table row -> one token.

Letters: B rows, f features, D model width.
"""

import flax.linen as nn
import jax.numpy as jnp

from m4.types import Array, Stream


class TableEncoder(nn.Module):
    """Two-layer MLP of values and observation flags; unobserved values count as 0 (the mean)."""

    features: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, stream: Stream, *, train: bool) -> Array:
        """[B, f] -> [B, D]."""
        seen = stream.observed & stream.present[:, None]
        values = jnp.where(seen, stream.values, 0).astype(jnp.float32)
        x = jnp.concatenate([values, seen.astype(jnp.float32)], -1)
        h = nn.gelu(nn.Dense(self.features, name="up")(x))
        h = nn.Dropout(self.dropout, deterministic=not train, name="drop")(h)
        return nn.Dense(self.features, name="down")(h)
