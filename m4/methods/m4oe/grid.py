"""Every modality of a row as tokens of one width, on one padded grid.

Letters: B rows, M modalities, T tokens (the longest modality's), V views, D width, N columns.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from m4.nn.encoders.modalities import CodesEncoder, SummaryTokens, gather
from m4.nn.encoders.query_tokens import QueryTokens
from m4.nn.encoders.vit import ViT, clean_images
from m4.specs import DataSpec
from m4.types import Array, Batch


class TokenGrid(flax.struct.PyTreeNode):
    """Tokens of all modalities in the spec's order."""

    x: Array  # [B, M, T, D]
    mask: Array  # bool[B, M, T]: slots that hold a token, were the modality there
    wide: Array  # [B, N] statistics of series and tables


class GridTokens(nn.Module):
    """Images by a ViT each, stacked where shapes are equal; timed modalities by a summary token and
    (timed='grid') tokens at query times; tables, codes and text by one token.
    """

    data: DataSpec
    width: int
    num_heads: int
    dropout: float = 0.0
    vit_depth: int = 2
    patch: int = 8
    timed: Literal["grid", "summary"] = "grid"
    num_queries: int = 4
    embed_time: int = 32
    epsilon: float = 1e-6  # of the ViTs' layer norms
    scan: bool = False  # of the ViTs' blocks

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> TokenGrid:
        """Raises ValueError for modality kinds without an encoder."""
        parts: dict[str, tuple[Array, Array]] = {}
        wide_BN = jnp.zeros((batch.weight.shape[0], 0))
        mixable = tuple(m for m in self.data.modalities if m.kind not in ("image", "text"))
        if mixable:
            data = dataclasses.replace(self.data, modalities=mixable)
            wide_BN = self._mixed(data, batch, parts, train)
        self._images(batch, parts, train)
        for m in self.data.modalities:
            if m.kind == "text":
                x_BD = CodesEncoder(m.vocab, self.width, name=m.name)(batch.inputs[m.name])
                parts[m.name] = x_BD[:, None], jnp.ones((x_BD.shape[0], 1), bool)
        ordered = [parts[name] for name in self.data.modality_names]
        longest = max(x.shape[1] for x, _ in ordered)

        def pad(x):
            return jnp.pad(x, ((0, 0), (0, longest - x.shape[1]), *((0, 0),) * (x.ndim - 2)))

        x_BMTD = jnp.stack([pad(x) for x, _ in ordered], 1)
        return TokenGrid(x_BMTD, jnp.stack([pad(mask) for _, mask in ordered], 1), wide_BN)

    def _mixed(self, data, batch, parts, train) -> Array:
        streams = gather(data, batch)
        summary = SummaryTokens(data, self.width, self.dropout, name="summary")
        s_BMD, wide_BN = summary(streams, train=train)
        x_BMTD = s_BMD[:, :, None]
        timed = streams.num_timed if self.timed == "grid" else 0
        if timed:
            sizes = self.width, self.num_heads, self.num_queries, self.embed_time
            grid = QueryTokens(*sizes, name="grid")
            init = nn.initializers.normal(0.02)
            position_QD = self.param("position", init, (self.num_queries, self.width))
            grid_BMQD = grid(streams, train=train) + position_QD
            timed_BMTD = jnp.concatenate([x_BMTD[:, :timed], grid_BMQD], 2)
        for i, name in enumerate(streams.names):
            x_BTD = timed_BMTD[:, i] if i < timed else x_BMTD[:, i]
            parts[name] = x_BTD, jnp.ones(x_BTD.shape[:2], bool)
        return wide_BN

    def _images(self, batch, parts, train):
        shapes = {m.shape for m in self.data.modalities if m.kind == "image"}
        for shape in sorted(shapes):
            names = [m.name for m in self.data.modalities if m.kind == "image" and m.shape == shape]
            values, mask_BSV = clean_images([batch.inputs[name] for name in names])
            views = shape[0]
            vit = ViT(
                self.width, self.vit_depth, self.num_heads, self.patch, len(names), self.dropout,
                self.epsilon, scan=self.scan, name="vit_" + "x".join(map(str, shape)),
            )  # fmt: skip
            y = vit(rearrange(values, "b s v h w c -> (b v) s h w c"), train=train)
            x_BSTD = rearrange(y, "(b v) s t d -> b s (v t) d", v=views)
            mask_BST = jnp.repeat(mask_BSV, y.shape[2], axis=2)
            for i, name in enumerate(names):
                parts[name] = x_BSTD[:, i], mask_BST[:, i] | ~batch.inputs[name].present[:, None]


def modality_of_token(grid: TokenGrid) -> np.ndarray:
    """Modality of every token of the flattened grid, int[M * T]."""
    return np.repeat(np.arange(grid.x.shape[1]), grid.x.shape[2])
