"""Every modality of every kind as one token, in the spec's order.

Letters: B rows, M modalities, D width, N columns.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from m4.nn.encoders.modalities import CodesEncoder, SummaryTokens, gather
from m4.nn.encoders.volume import VolumeEncoder
from m4.specs import DataSpec
from m4.types import Array, Batch


class ModalitySummary(nn.Module):
    """`SummaryTokens` of all but the kind `apart`.

    Images have a small volume encoder, texts apart a bag of their tokens.
    """

    data: DataSpec
    width: int
    dropout: float = 0.0
    apart: Literal["image", "text"] = "image"

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> tuple[Array, Array]:
        """Tokens [B, M, D], of absent ones too, and statistics [B, N] of series and tables."""
        others = tuple(m for m in self.data.modalities if m.kind != self.apart)
        tokens, wide_BN = {}, jnp.zeros((batch.uid.shape[0], 0))
        if others:
            data = dataclasses.replace(self.data, modalities=others)
            streams, name = gather(data, batch), "mixed" if self.apart == "image" else "summary"
            summary = SummaryTokens(data, self.width, self.dropout, name=name)
            x_BMD, wide_BN = summary(streams, train=train)
            tokens = streams.by_name(x_BMD)
        for m in self.data.modalities:
            if m in others:
                continue
            if m.kind == "text":
                encoder = CodesEncoder(m.vocab, self.width, name=m.name)
                tokens[m.name] = encoder(batch.inputs[m.name])
            else:
                encoder = VolumeEncoder(self.width, (8, 16, 32), self.dropout, name=m.name)
                tokens[m.name] = encoder(batch.inputs[m.name], train=train)
        return jnp.stack([tokens[name] for name in self.data.modality_names], axis=1), wide_BN
