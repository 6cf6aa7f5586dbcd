"""Every modality of a row as one vector, whatever its kind.

Letters: B rows, M modalities, L observations, D width, N columns, f features, S statistics.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from m4.methods.m3h import haim
from m4.nn.encoders import mixed
from m4.nn.encoders.codes import CodesEncoder
from m4.nn.encoders.vectors import VectorsInput
from m4.nn.layers import StackedDense, StackedLayerNorm
from m4.specs import DataSpec
from m4.types import Array, Batch

Features = Literal["summary", "haim", "haim_released"]


class RowEncoder(nn.Module):
    """Vectors of all modalities in the spec's order; what absent ones hold means nothing.

    `features='summary'` reads everything that `mixed.SummaryEncoder` does. 'haim' reads what
    HAIM-MIMIC-MM gives its models: eleven statistics per signal, mean embeddings, table values;
    'haim_released' with the authors' appended zeros and hours as weights of embeddings.
    """

    data: DataSpec
    width: int
    dropout: float = 0.0
    features: Features = "summary"

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> tuple[Array, Array]:
        """Vectors [B, M, D], and for the heads the columns [B, N] of series and tables.

        Raises ValueError for modality kinds without an encoder.
        """
        names, tokens, wide_BN = [], [], jnp.zeros((batch.weight.shape[0], 0))
        mixable = tuple(m for m in self.data.modalities if m.kind != "text")
        if mixable:
            data = dataclasses.replace(self.data, modalities=mixable)
            encode = self._summary if self.features == "summary" else self._haim
            x_BMD, wide_BN = encode(data, mixed.gather(data, batch), train)
            names = [data.modality_names[i] for i in mixed.order(data)]
            tokens = [x_BMD]
        for m in self.data.modalities:
            if m.kind == "text":
                tokens.append(
                    CodesEncoder(m.vocab, self.width, name=m.name)(batch.inputs[m.name])[:, None]
                )
                names.append(m.name)
        place = np.array([names.index(name) for name in self.data.modality_names])
        return jnp.concatenate(tokens, 1)[:, place], wide_BN

    def _summary(self, data, inputs, train):
        return mixed.SummaryEncoder(data, self.width, self.dropout, name="summary")(
            inputs, train=train
        )

    def _haim(self, data, inputs, train):
        released = self.features == "haim_released"
        tokens = []
        for limit, series in inputs.series.items():
            statistics = haim.statistics(series, zero_row=released)
            x_BMN = rearrange(statistics, "b m f s -> b m (f s)")
            tokens.append(self._embed(f"series_{limit}", x_BMN, train))
        for name, x in inputs.vectors.items():
            mean_BD = mean_by_hour(x) if released else mean(x)
            tokens.append(self._embed(name, mean_BD[:, None], train))
        for name, stream in inputs.tables.items():
            seen = stream.observed & stream.present[:, None]
            x_B1f = jnp.where(seen, stream.values, 0.0)[:, None]
            tokens.append(self._embed(name, x_B1f, train, norm=False))
        for name, stream in inputs.codes.items():
            vocab = data.modality(name).vocab
            tokens.append(CodesEncoder(vocab, self.width, name=name)(stream)[:, None])
        x_BMD = jnp.concatenate(tokens, 1)
        return x_BMD, jnp.zeros((x_BMD.shape[0], 0))

    def _embed(self, name, x_BMN, train, norm=True):
        """Layer norm, affine, GELU, dropout, affine; parameters per modality of the stack."""
        stacks = x_BMN.shape[1]
        if norm:  # not for tables: a single value would be normalised away
            x_BMN = StackedLayerNorm(stacks, name=f"{name}_norm")(x_BMN)
        h = nn.gelu(StackedDense(self.width, stacks, name=f"{name}_up")(x_BMN))
        h = nn.Dropout(self.dropout, deterministic=not train, name=f"{name}_drop")(h)
        return StackedDense(self.width, stacks, name=f"{name}_down")(h)


def mean(x: VectorsInput) -> Array:
    """Mean vector, [B, p]; 0 without any."""
    return x.values.sum(1) / jnp.maximum(x.mask.sum(1), 1)[:, None]


def mean_by_hour(x: VectorsInput) -> Array:
    """Mean weighted by the time since the start of the window, [B, p].

    As released: a vector at time 0 does not count, and if there is no other the mean is 0.
    """
    weight_BL = jnp.where(x.mask, x.times, 0.0)
    total_B1 = weight_BL.sum(1, keepdims=True)
    return jnp.einsum("blp,bl->bp", x.values, weight_BL) / jnp.where(total_B1 > 0, total_B1, 1.0)
