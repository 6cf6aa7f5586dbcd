"""Time-stamped embeddings (notes, images, ECGs) -> tokens at the query points.

Letters: B rows, L vectors, p their width, Q query points, K time-embedding width, D model width.
"""

import flax.linen as nn
import flax.struct
import jax.numpy as jnp

from m4.nn.time import MultiTimeAttention
from m4.types import Array, Stream


@flax.struct.dataclass
class VectorsInput:
    """A sanitised stream of vectors: zeros outside the mask, times in windows."""

    values: Array  # f32[B, L, p]
    mask: Array  # bool[B, L]
    times: Array  # f32[B, L]


def clean_vectors(stream: Stream, *, hours: float) -> VectorsInput:
    """Replaces padding and absent rows by zeros, whatever they hold."""
    mask = stream.mask & stream.present[:, None]
    return VectorsInput(
        values=jnp.where(mask[..., None], stream.values, 0).astype(jnp.float32),
        mask=mask,
        times=(jnp.where(mask, stream.times, 0) / hours).astype(jnp.float32),
    )


class VectorsEncoder(nn.Module):
    """mTAND over the vectors; with `project`, of their projection to the model width.

    FuseMoE attends to the raw vectors and maps H * p channels to D afterwards (786,000 weights
    for a note). Attention weights sum to 1, so projecting first loses only what heads could
    read differently, and costs p * D.
    """

    features: int
    num_heads: int
    dropout: float = 0.0
    project: bool = True

    @nn.compact
    def __call__(self, x: VectorsInput, query_QK: Array, key_BLK: Array, *, train: bool) -> Array:
        """[B, Q, D]."""
        values = nn.Dense(self.features, name="project")(x.values) if self.project else x.values
        mask = jnp.broadcast_to(x.mask[..., None], values.shape)
        return MultiTimeAttention(self.features, self.num_heads, 1, self.dropout, name="mtand")(
            query_QK, key_BLK[:, None], values[:, None], mask[:, None], train=train
        )[:, 0]


class VectorsSummary(nn.Module):
    """Mean and newest vector, the log of their number and the newest time -> one token."""

    features: int

    @nn.compact
    def __call__(self, x: VectorsInput) -> Array:
        """[B, D]."""
        count_B1 = x.mask.sum(-1, keepdims=True).astype(jnp.float32)
        newest_BL = x.mask & (jnp.cumsum(x.mask[:, ::-1], 1)[:, ::-1] == 1)
        parts = (
            x.values.sum(1) / jnp.maximum(count_B1, 1.0),
            jnp.where(newest_BL[..., None], x.values, 0).sum(1),
            jnp.log1p(count_B1),
            jnp.where(newest_BL, x.times, 0).sum(1, keepdims=True),
        )
        h = nn.gelu(nn.Dense(self.features, name="up")(jnp.concatenate(parts, -1)))
        return nn.Dense(self.features, name="down")(h)
