"""FuseMoE (Han et al., NeurIPS 2024) as we ship it: incomplete, irregular modalities and experts.

Every modality has a summary token; timed ones also have tokens at common query times. A layer
attends within each timed modality, then between the summaries of what a row has, and routes every
token of a present modality through a mixture of experts. The head reads the summaries, a learned
vector for what is absent, and the statistics themselves. With `alone` above 0 it says what several
modalities have beyond the mean of what each says alone: a single one is then asked alone, and how
each is read is learnt from its own losses, as in late fusion.

`paper.py` holds the paper's equations, `released.py` what the authors' code computes;
docs/methods/fusemoe.md lists every difference.

Letters: B rows, M modalities, Q query times, D width, T tokens of a row (M summaries, then Q of
every timed modality), N = B T routed tokens, C columns of statistics, K logits of a task.
"""

from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.core import FrozenDict

from m4 import task_losses
from m4.maths import combination_index
from m4.moe.layer import MoE
from m4.moe.options import MoEOptions
from m4.nn.encoders.modalities import Streams, SummaryTokens, gather
from m4.nn.encoders.query_tokens import Level, QueryTokens
from m4.nn.fusion import HeadsOfEach, mean_of_present
from m4.nn.layers import (
    AttentionBlock,
    Dropout,
    MissingIndicator,
    StackedLayerNorm,
    TaskHeads,
    hats,
    repeat,
)
from m4.resolve import check_fields
from m4.specs import DataSpec
from m4.types import Array, Batch, Mean, MoeAux, Outputs

small = nn.initializers.normal(0.02)


class FuseMoE(nn.Module):
    """Fuses any number of modalities of kinds series, vectors, table, codes and text."""

    data: DataSpec
    moe: MoEOptions = MoEOptions(router="noisy_top_k", share="permod")
    width: int = 64
    depth: int = 1
    scan: bool = False
    num_heads: int = 4
    num_queries: int = 12
    embed_time: int = 32
    dropout: float = 0.2
    utde: Level = "batch_seq_feature"
    mix: Literal["attention", "none"] = "attention"  # between the summaries
    statistics_hidden: int = 256  # units that read the summary statistics directly
    alone: float = 0.0  # weight of the losses of what each modality says alone; 0: none says
    aux_weights: Mapping[str, float] = FrozenDict({"importance": 0.01, "load": 0.01})

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits of every task, [B, dim]; with `alone` each modality's in `extra`, [B, M, dim].

        Training needs the rngs 'dropout' and 'gate'; evaluation none. Raises ValueError for
        modality kinds without an encoder and for unknown choices.
        """
        check_fields(self, depth=1)
        streams, here_BM = gather(self.data, batch), batch.present(self.data)
        modality_M = np.array(streams.modality)  # in the spec, of every token; timed ones first
        timed = modality_M[: streams.num_timed]
        modality_T = np.concatenate([modality_M, np.repeat(timed, self.num_queries)])
        routing = {
            "valid_N": (here_BM[:, modality_T] & (batch.weight > 0)[:, None]).reshape(-1),
            "modality_N": np.tile(modality_T, here_BM.shape[0]),
            "pattern_N": jnp.repeat(
                combination_index(here_BM, modulo=self.moe.num_experts), modality_T.size
            ),
            "num_rows": here_BM.shape[0],
        }
        present_BM = here_BM[:, modality_M]
        s_BMD, x_BMQD, columns_BC = self._embed(streams, train)
        own_BMD, s_BMD = s_BMD, self._given(s_BMD)

        def layer(i: int, tokens: tuple[Array, Array]) -> tuple[tuple[Array, Array], MoeAux]:
            s_BMD, x_BMQD = self._attend(i, *tokens, present_BM, train)
            s_BMD, x_BMQD, aux = self._route(i, s_BMD, x_BMQD, routing, train)
            return (s_BMD, x_BMQD), aux

        (s_BMD, x_BMQD), each = repeat(layer, self.depth, (s_BMD, x_BMQD), scan=self.scan)
        moe = {f"layer_{i}": aux for i, aux in enumerate(each)}
        h_BD = self._read(s_BMD, x_BMQD, columns_BC, present_BM, train)
        logits = TaskHeads(self.data.tasks, name="heads")(h_BD)
        aux, own = task_losses.over_layers(moe, self.aux_weights), {}
        if self.alone:
            in_order = own_BMD[:, np.argsort(modality_M)]
            own = HeadsOfEach(self.data.tasks, name="alone")(nn.gelu(in_order))
            said = self._given(own)
            logits = {name: beyond(logits[name], said[name], here_BM) for name in said}
        return Outputs(logits, aux, moe, own)

    def loss(self, out: Outputs, batch: Batch, step: Array) -> tuple[Array, dict[str, Mean]]:
        """See `task_losses.objective`; with `alone` also the mean of each modality's own."""
        del step
        total, terms = task_losses.objective(self.data, out, batch, self.aux_weights)
        if self.alone:
            own = task_losses.of_each(self.data, out.extra, batch, batch.present(self.data))
            total += self.alone * own[0]
        return total, terms

    def _embed(self, streams: Streams, train: bool) -> tuple[Array, Array, Array]:
        """Summary tokens [B, M, D], query tokens [B, timed, Q, D] and statistics [B, C]."""
        summary = SummaryTokens(self.data, self.width, self.dropout, name="summary")
        s_BMD, columns_BC = summary(streams, train=train)
        s_BMD += self.param("type", small, s_BMD.shape[1:])
        if not streams.num_timed:
            nothing = jnp.zeros((s_BMD.shape[0], 0, self.num_queries, self.width))
            return s_BMD, nothing, columns_BC
        sizes = self.width, self.num_heads, self.num_queries, self.embed_time
        x_BMQD = QueryTokens(*sizes, self.utde, name="grid")(self._given(streams), train=train)
        x_BMQD += self.param("grid_type", small, (x_BMQD.shape[1], 1, self.width))
        return s_BMD, x_BMQD + self.param("position", small, x_BMQD.shape[2:]), columns_BC

    @nn.nowrap
    def _given(self, x: Any) -> Any:
        """What the mixture reads; with `alone` it does not change how that is learnt."""
        return jax.lax.stop_gradient(x) if self.alone else x

    @nn.nowrap
    def _attend(
        self, i: int, s_BMD: Array, x_BMQD: Array, present_BM: Array, train: bool
    ) -> tuple[Array, Array]:
        """Within each timed modality over its summary and queries, then between the summaries."""
        timed = x_BMQD.shape[1]
        if timed:
            y_BMTD = jnp.concatenate([s_BMD[:, :timed, None], x_BMQD], axis=2)
            mask_BMT = jnp.broadcast_to(present_BM[:, :timed, None], y_BMTD.shape[:3])
            block = AttentionBlock(self.num_heads, 1, self.dropout, name=f"time_{i}")
            y_BMTD = block(y_BMTD, mask_BMT, train=train)
            s_BMD = jnp.concatenate([y_BMTD[:, :, 0], s_BMD[:, timed:]], axis=1)
            x_BMQD = y_BMTD[:, :, 1:]
        if self.mix == "attention":
            block = AttentionBlock(self.num_heads, 1, self.dropout, name=f"mix_{i}")
            s_BMD = block(s_BMD[:, None], present_BM[:, None], train=train)[:, 0]
        return s_BMD, x_BMQD

    @nn.nowrap
    def _route(
        self, i: int, s_BMD: Array, x_BMQD: Array, routing: Mapping[str, Any], train: bool
    ) -> tuple[Array, Array, MoeAux]:
        """X + drop(MoE(layer norm(x))) on the tokens of present modalities."""
        num = s_BMD.shape[1]
        x_BTD = jnp.concatenate([s_BMD, rearrange(x_BMQD, "b m q d -> b (m q) d")], axis=1)
        normed_BTD = StackedLayerNorm(name=f"norm_{i}")(x_BTD)
        losses = tuple(sorted(self.aux_weights))
        layer = MoE(self.moe, num_modalities=num, losses=losses, name=f"layer_{i}")
        y_ND, aux = layer(rearrange(normed_BTD, "b t d -> (b t) d"), train=train, **routing)
        drop = Dropout(self.dropout, deterministic=not train, name=f"drop_{i}")
        x_BTD += drop(y_ND.reshape(x_BTD.shape))
        x_BMQD = rearrange(x_BTD[:, num:], "b (m q) d -> b m q d", q=self.num_queries)
        return x_BTD[:, :num], x_BMQD, aux

    def _read(
        self, s_BMD: Array, x_BMQD: Array, columns_BC: Array, present_BM: Array, train: bool
    ) -> Array:
        """What the heads read: all summaries, the statistics, and units over their encoding."""
        num, timed = s_BMD.shape[1], x_BMQD.shape[1]
        if timed:
            s_BMD += jnp.pad(x_BMQD.mean(2), ((0, 0), (0, num - timed), (0, 0)))
        s_BMD = StackedLayerNorm(name="norm")(s_BMD)
        s_BMD = MissingIndicator(num, name="missing")(s_BMD, present_BM)
        drop = Dropout(self.dropout, deterministic=not train, name="head_drop")
        h_BD = nn.Dense(self.width, name="head")(drop(rearrange(s_BMD, "b m d -> b (m d)")))
        parts = [drop(nn.gelu(h_BD)), drop(columns_BC)]
        if self.statistics_hidden and columns_BC.shape[-1]:
            dense = nn.Dense(self.statistics_hidden, name="statistics")
            parts.append(drop(nn.gelu(dense(drop(hats(columns_BC))))))
        return jnp.concatenate(parts, -1)


def beyond(together_BK: Array, each_BMK: Array, present_BM: Array) -> Array:
    """The mean of what each modality says, and of what they say together 1 - 1 / how many; [B, K].

    Of one modality that is what it says, and where there is none what is said of nothing.
    """
    mean_BK = mean_of_present(each_BMK, present_BM[..., None].astype(jnp.float32))
    count_B1 = present_BM.sum(1, keepdims=True)
    return mean_BK + jnp.where(count_B1 > 0, 1 - 1 / jnp.maximum(count_B1, 1), 1) * together_BK
