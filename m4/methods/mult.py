"""MulT (Tsai and others, ACL 2019, arXiv 1906.00295): every modality reads every other.

Section 3: for every ordered pair of modalities a transformer whose queries are the target's
positions and whose keys and values are the source's, without alignment between them; a transformer
over each target's result; the last positions are read together. Series and vectors are tokens at
common query times, anything else is one token at each.

The paper has three modalities and concatenates what a target reads; here it is averaged over the
sources that a row has, and with the target itself, so that any may be absent and the width does not
grow. Cost grows with M (M - 1). docs/methods/baselines.md lists the differences.

Letters: B rows, M modalities, S = M (M - 1) ordered pairs, Q query times, D width.
"""

import dataclasses
import itertools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from m4 import task_losses
from m4.nn.encoders.modalities import gather
from m4.nn.encoders.query_tokens import QueryTokens
from m4.nn.encoders.summary import ModalitySummary
from m4.nn.layers import (
    AttentionBlock,
    Dropout,
    MissingIndicator,
    MLPBlock,
    StackedDense,
    StackedLayerNorm,
    TaskHeads,
    attend,
    masked_mean,
    repeat,
)
from m4.resolve import check_fields
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, Outputs

small = nn.initializers.normal(0.02)
TIMED = ("series", "vectors")


class MulT(nn.Module):
    """Any number of modalities of any kind; tasks of the generic kinds."""

    data: DataSpec
    width: int = 32
    depth: int = 1  # layers of every crossmodal transformer
    scan: bool = False
    num_heads: int = 4
    num_queries: int = 4
    embed_time: int = 32
    dropout: float = 0.2

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task, [B, dim]. Training needs the rng 'dropout'.

        Raises ValueError for modality kinds without an encoder and for impossible fields.
        """
        check_fields(self, depth=1)
        present_BM, num = batch.present(self.data), len(self.data.modalities)
        x_BMQD = self._tokens(batch, train)
        x_BMQD += self.param("position", small, x_BMQD.shape[2:])
        y_BMQD = self._crossed(x_BMQD, present_BM, train)
        block = AttentionBlock(self.num_heads, num, self.dropout, name="self")
        here_BMQ = jnp.broadcast_to(present_BM[..., None], y_BMQD.shape[:3])
        y_BMQD = block(y_BMQD, here_BMQ, train=train)
        last_BMD = StackedLayerNorm(num, name="norm")(y_BMQD[:, :, -1])
        last_BMD = MissingIndicator(num, name="missing")(last_BMD, present_BM)
        row_BN = rearrange(last_BMD, "b m d -> b (m d)")
        drop = Dropout(self.dropout, deterministic=not train, name="drop")
        h_BD = drop(nn.gelu(nn.Dense(2 * self.width, name="head")(drop(row_BN))))
        heads = TaskHeads(self.data.tasks, name="heads")
        return Outputs(heads(h_BD), {})

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """The losses of the tasks; see `task_losses.objective`."""
        del step
        return task_losses.objective(self.data, out, batch, {})

    def _tokens(self, batch: Batch, train: bool) -> Array:
        """[B, M, Q, D] in the schema's order; Q is 1 where nothing has times."""
        found = {}
        timed = tuple(m for m in self.data.modalities if m.kind in TIMED)
        others = tuple(m for m in self.data.modalities if m.kind not in TIMED)
        queries = self.num_queries if timed else 1
        if timed:
            streams = gather(dataclasses.replace(self.data, modalities=timed), batch)
            sizes = self.width, self.num_heads, queries, self.embed_time
            found |= streams.by_name(QueryTokens(*sizes, name="grid")(streams, train=train))
        if others:
            data = dataclasses.replace(self.data, modalities=others)
            encode = ModalitySummary(data, self.width, self.dropout, name="summary")
            x_BMD, _ = encode(batch, train=train)
            repeated_BMQD = jnp.repeat(x_BMD[:, :, None], queries, axis=2)
            found |= {m.name: repeated_BMQD[:, i] for i, m in enumerate(others)}
        return jnp.stack([found[name] for name in self.data.modality_names], axis=1)

    def _crossed(self, x_BMQD: Array, present_BM: Array, train: bool) -> Array:
        """Every modality after reading the others that are present, [B, M, Q, D]."""
        num = x_BMQD.shape[1]
        if num == 1:
            return x_BMQD
        target_S, source_S = np.array([*itertools.permutations(range(num), 2)]).T
        source_BSQD, here_BS = x_BMQD[:, source_S], present_BM[:, source_S]

        def layer(i: int, y_BSQD: Array) -> tuple[Array, None]:
            block = CrossmodalBlock(self.num_heads, len(target_S), self.dropout, name=f"cross_{i}")
            return block(y_BSQD, source_BSQD, here_BS, train=train), None

        y_BSQD, _ = repeat(layer, self.depth, x_BMQD[:, target_S], scan=self.scan)
        y_BMSQD = rearrange(y_BSQD, "b (m s) q d -> b m s q d", m=num)
        own_BMSQD = jnp.concatenate([x_BMQD[:, :, None], y_BMSQD], 2)
        here_BMS = rearrange(here_BS, "b (m s) -> b m s", m=num)
        here_BMS = jnp.concatenate([jnp.ones_like(here_BMS[..., :1]), here_BMS], 2)
        mask_BMSQ = jnp.broadcast_to(here_BMS[..., None], own_BMSQD.shape[:4])
        return masked_mean(own_BMSQD, mask_BMSQ, dim=2)


class CrossmodalBlock(nn.Module):
    """y + drop(attention(norm y, norm x)), then y + drop(MLP(norm y)), for pairs of modalities."""

    num_heads: int
    num_stacks: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, y_BSQD: Array, x_BSQD: Array, here_BS: Array, *, train: bool) -> Array:
        """Targets and their sources, [B, S, Q, D] each; an absent source is never read."""
        width, stacks = y_BSQD.shape[-1], self.num_stacks
        if width % self.num_heads:
            raise ValueError(f"{self.num_heads} heads cannot split a width of {width}")
        norm_y, norm_x = (StackedLayerNorm(stacks, name=f"norm_{n}") for n in ("target", "source"))
        read, told = norm_y(y_BSQD), norm_x(x_BSQD)

        def heads(x, name):
            y = StackedDense(width, stacks, name=name)(x)
            return rearrange(y, "b s q (h c) -> b s q h c", h=self.num_heads)

        drop = Dropout(self.dropout, deterministic=not train, name="drop")
        mask_BSQ = jnp.broadcast_to(here_BS[..., None], x_BSQD.shape[:3])
        parts = heads(read, "query"), heads(told, "key"), heads(told, "value")
        a_BSQD = rearrange(attend(*parts, mask_BSQ, drop), "b s q h c -> b s q (h c)")
        y_BSQD += drop(StackedDense(width, stacks, name="out")(a_BSQD))
        return MLPBlock(4 * width, stacks, self.dropout, name="mlp")(y_BSQD, train=train)
