"""Every modality of every kind as one token, in the spec's order.

Letters: B rows, M modalities, D width, N columns.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from m4.nn.encoders.modalities import SummaryTokens, gather
from m4.nn.encoders.volume import VolumeEncoder
from m4.specs import DataSpec
from m4.types import Array, Batch


class ModalitySummary(nn.Module):
    """`SummaryTokens` of everything but images, a small volume encoder of those."""

    data: DataSpec
    width: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> tuple[Array, Array]:
        """Tokens [B, M, D] and, of series and tables, statistics [B, N]."""
        images = tuple(m for m in self.data.modalities if m.kind == "image")
        others = tuple(m for m in self.data.modalities if m.kind != "image")
        tokens, wide_BN = {}, jnp.zeros((batch.uid.shape[0], 0))
        if others:
            spec = dataclasses.replace(self.data, modalities=others)
            encoder = SummaryTokens(spec, self.width, self.dropout, name="mixed")
            streams = gather(spec, batch)
            x_BMD, wide_BN = encoder(streams, train=train)
            tokens = streams.by_name(x_BMD)
        for m in images:
            encoder = VolumeEncoder(self.width, (8, 16, 32), self.dropout, name=m.name)
            tokens[m.name] = encoder(batch.inputs[m.name], train=train)
        return jnp.stack([tokens[name] for name in self.data.modality_names], axis=1), wide_BN
