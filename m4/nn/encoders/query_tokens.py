"""Irregular modalities -> tokens at common query times.

Vectors go through multi-time attention (mTAND, Shukla and Marlin 2021). A series is encoded twice,
by multi-time attention over its observations and by imputation on a regular grid, and a learned
gate mixes both (UTDE: Zhang et al. 2023, FuseMoE section 3.1).

Times are hours divided by the length of the window, so queries lie in [0, 1].

Letters: B rows, M modalities, L observations, Q query points, H heads, c width of a head,
P value channels, p width of a vector, f features, K time-embedding width, D model width.
"""

import math
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from m4.maths import torch_uniform
from m4.nn.encoders.modalities import SeriesStack, Streams, Vectors
from m4.nn.layers import Dropout, Initializer, StackedDense
from m4.types import Array

Level = Literal["batch", "batch_seq", "batch_seq_feature"]
BAND = 64.0  # of scores: e^-64 is nothing beside 1 in float32, and 1 over it is finite
Impute = Callable[[SeriesStack, int], tuple[Array, Array]]


def impute(series: SeriesStack, num_bins: int) -> tuple[Array, Array]:
    """Last observed value at the end of each bin, else 0 (the mean of z-scored values).

    Rows are in time order; the last bin takes everything later. Returns values and flags "observed
    within the bin", both [B, M, num_bins, f]. FuseMoE appendix E.1.
    """
    position = jnp.arange(series.values.shape[-2])
    bin_BML = jnp.clip(jnp.floor(series.times * num_bins), 0, num_bins - 1).astype(jnp.int32)
    observed = series.observed & series.mask[..., None]
    # Of every row: the newest observation up to it; of every bin: the last row up to it.
    newest = jnp.where(observed, position[:, None], -1)
    newest = jax.lax.cummax(newest, axis=observed.ndim - 2)
    bins = jnp.arange(num_bins)[:, None]
    earlier = series.mask[..., None, :] & (bin_BML[..., None, :] <= bins)
    until = jnp.where(earlier, position, -1).max(-1)
    row = jnp.take_along_axis(newest, jnp.maximum(until, 0)[..., None], axis=-2)
    seen, row = (until[..., None] >= 0) & (row >= 0), jnp.maximum(row, 0)
    value = jnp.take_along_axis(jnp.where(observed, series.values, 0.0), row, axis=-2)
    row_bin = jnp.take_along_axis(bin_BML[..., None], row, axis=-2)
    return jnp.where(seen, value, 0.0), (seen & (row_bin == bins)).astype(value.dtype)


class QueryTokens(nn.Module):
    """Timed modalities -> tokens at `num_queries` times from 0 to 1: series first, then vectors.

    What FuseMoE's authors do otherwise are fields: `dropout` in the attention, the first
    `frequencies` of phi (None: `frequency_init`), raw vectors (`project=False`), and `impute`.
    """

    width: int
    num_heads: int
    num_queries: int
    embed_time: int
    utde: Level = "batch"
    dropout: float = 0.0
    frequencies: Initializer | None = None
    project: bool = True
    impute: Impute = impute

    @nn.compact
    def __call__(self, streams: Streams, *, train: bool) -> Array:
        """[B, M, Q, D] of the timed modalities in the order of `streams`."""
        init = self.frequencies or frequency_init(self.num_queries)
        embed = TimeEmbedding(self.embed_time, init, name="time")
        query_QK = embed(jnp.linspace(0.0, 1.0, self.num_queries))
        tokens = []
        for limit, series in streams.series.items():
            sizes = self.width, self.num_heads, series.mask.shape[1], self.utde, self.dropout
            utde = UTDE(*sizes, self.impute, name=f"series_{limit}")
            tokens.append(utde(series, query_QK, embed(series.times), train=train))
        for name, x in streams.vectors.items():
            sizes = self.width, self.num_heads, self.dropout, self.project
            encoder = VectorsEncoder(*sizes, name=name)
            tokens.append(encoder(x, query_QK, embed(x.times), train=train)[:, None])
        return jnp.concatenate(tokens, axis=1)


class UTDE(nn.Module):
    """g * mTAND(observations) + (1 - g) * linear(imputed grid), FuseMoE section 3.1.

    `level` says what g depends on: `batch` one number per row from the maxima over time,
    `batch_seq` one per query, `batch_seq_feature` one per query and channel.
    """

    features: int
    num_heads: int
    num_stacks: int
    level: Level = "batch"
    dropout: float = 0.0
    impute: Impute = impute

    @nn.compact
    def __call__(
        self, series: SeriesStack, query_QK: Array, key_BMLK: Array, *, train: bool
    ) -> Array:
        """[B, M, Q, features]; parameters per modality."""
        sizes = self.features, self.num_heads, self.num_stacks, self.dropout
        mtand = MultiTimeAttention(*sizes, append_flags=True, name="mtand")
        irregular = mtand(query_QK, key_BMLK, series.values, series.observed, train=train)
        grid = jnp.concatenate(self.impute(series, query_QK.shape[0]), -1)
        init = torch_uniform(grid.shape[-1])
        dense = StackedDense(self.features, self.num_stacks, init, bias_init=None, name="imputed")
        regular = dense(grid)
        gate = self._gate(irregular, regular, train)
        return gate * irregular + (1.0 - gate) * regular

    def _gate(self, irregular, regular, train):
        both = jnp.concatenate([irregular, regular], -1)
        if self.level == "batch":
            both = both.max(-2, keepdims=True)
        both = Dropout(self.dropout, deterministic=not train, name="gate_drop")(both)
        out = self.features if self.level == "batch_seq_feature" else 1

        def dense(size: int, inputs: int, name: str) -> StackedDense:
            init = nn.initializers.xavier_normal(batch_axis=(0,))
            return StackedDense(size, self.num_stacks, init, torch_uniform(inputs), name=name)

        up = dense(self.features, both.shape[-1], "gate_up")
        return nn.sigmoid(dense(out, self.features, "gate_out")(nn.relu(up(both))))


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
    def __call__(self, x: Vectors, query_QK: Array, key_BLK: Array, *, train: bool) -> Array:
        """[B, Q, D]."""
        values = nn.Dense(self.features, name="project")(x.values) if self.project else x.values
        mask = x.mask[..., None]  # of all channels
        mtand = MultiTimeAttention(self.features, self.num_heads, 1, self.dropout, name="mtand")
        return mtand(query_QK, key_BLK[:, None], values[:, None], mask[:, None], train=train)[:, 0]


def frequency_init(num_queries: int) -> Initializer:
    """Slope 1, then angular frequencies in geometric steps from pi/2 to pi * num_queries.

    The authors draw all slopes from U(-1, 1): no sine completes a sixth of a turn over the
    whole window, so at first every query sees the same average of the record.
    """

    def init(key, shape, dtype=jnp.float32):
        del key
        waves = jnp.geomspace(math.pi / 2, math.pi * max(num_queries, 2), shape[0] - 1)
        return jnp.concatenate([jnp.ones(1), waves]).astype(dtype)

    return init


class TimeEmbedding(nn.Module):
    """phi(t): one linear coordinate, then sines of affine maps (mTAND, section 2.1).

    Shared by all modalities and by the queries.
    """

    features: int
    weight_init: Initializer = torch_uniform(1)

    @nn.compact
    def __call__(self, times: Array) -> Array:
        """[...] in windows -> [..., features]."""
        weight_K = self.param("weight", self.weight_init, (self.features,))
        bias_K = self.param("bias", torch_uniform(1), (self.features,))
        affine = times[..., None] * weight_K + bias_K
        return jnp.concatenate([affine[..., :1], jnp.sin(affine[..., 1:])], axis=-1)


def channel_attention(scores_BMHQL: Array, values_BMLP: Array, mask_BMLP: Array, drop) -> Array:
    """Softmax over L separately for every value channel, without a tensor of H x Q x L x P.

    Equal to masking scores by -10000 wherever a channel has an observation; 0 where it has none.
    A mask of one channel is that of all. `drop` acts on the numerator only, shared by the channels
    (the authors draw one mask per channel). Returns [B, M, Q, H, P].
    """
    any_BMHQL = mask_BMLP.any(-1)[:, :, None, None]
    scores_BMHQL = jnp.where(any_BMHQL, scores_BMHQL.astype(jnp.float32), -jnp.inf)
    keep_BMHQL = drop(jnp.ones_like(scores_BMHQL))
    values_BMLP = jnp.where(mask_BMLP, values_BMLP, 0.0).astype(jnp.float32)
    mean = _channel_means(scores_BMHQL, values_BMLP, mask_BMLP.astype(jnp.float32), keep_BMHQL)
    return rearrange(mean, "b m h q p -> b m q h p")


@jax.custom_vjp
def _channel_means(scores, values, mask, keep):
    """sum_l e^s k m v / sum_l e^s m by matrix products, exact however far the scores spread.

    Scores are taken in bands of `BAND` below the largest that is left, nearly always one. A channel
    counts from the top of the band in which it is first observed, as its own softmax would, so no
    sum underflows; bands below it add what is left of them.
    """
    return _channel_means_forward(scores, values, mask, keep)[0]


def _channel_means_forward(scores, values, mask, keep):
    def add(state):
        left, num, den, ref = state
        power, top, left = _next_band(scores, left, mask.shape[-1] == 1)
        scale = jnp.where(den > 0, jnp.exp(jnp.minimum(top - ref, 0.0)), 1.0)
        ref = jnp.where(den > 0, ref, top)
        num += scale * jnp.einsum("bmhql,bmlp->bmhqp", power * keep, values)
        return left, num, den + scale * jnp.einsum("bmhql,bmlp->bmhqp", power, mask), ref

    shape = scores.shape[:-1]
    none = jnp.zeros((*shape, mask.shape[-1]))
    start = jnp.ones(scores.shape, bool), jnp.zeros((*shape, values.shape[-1])), none, none
    _, num, den, ref = jax.lax.while_loop(lambda s: _any_left(scores, s[0]), add, add(start))
    none = den <= 0  # not true of NaN, which must not become 0
    mean = jnp.where(none, 0.0, num / jnp.where(none, 1.0, den))
    return mean, (scores, values, mask, keep, mean, den, ref)


def _channel_means_backward(saved, dmean):
    scores, values, mask, keep, mean, den, ref = saved
    dnum = jnp.where(den <= 0, 0.0, dmean / jnp.where(den <= 0, 1.0, den))
    dden = dnum * mean
    dden = dden.sum(-1, keepdims=True) if mask.shape[-1] == 1 else dden

    def add(state):
        left, dscores, dvalues = state
        power, top, left = _next_band(scores, left, mask.shape[-1] == 1)
        scale = jnp.exp(jnp.minimum(top - ref, 0.0))
        dpower = keep * jnp.einsum("bmhqp,bmlp->bmhql", scale * dnum, values)
        dpower -= jnp.einsum("bmhqp,bmlp->bmhql", scale * dden, mask)
        dvalues += jnp.einsum("bmhql,bmhqp->bmlp", power * keep, scale * dnum)
        return left, dscores + power * dpower, dvalues

    start = jnp.ones(scores.shape, bool), jnp.zeros_like(scores), jnp.zeros_like(values)
    _, dscores, dvalues = jax.lax.while_loop(lambda s: _any_left(scores, s[0]), add, add(start))
    return dscores, dvalues, None, None


def _any_left(scores, left):
    return (left & (scores > -jnp.inf)).any()


def _next_band(scores, left, whole: bool):
    """Exponentials of the largest scores `left`, all of them with `whole`, over the largest.

    NaN and infinity stay what they are. Returns the largest and who is left then, too.
    """
    top = jnp.where(left, scores, -jnp.inf).max(-1, keepdims=True)
    below = (scores < top - BAND) & (not whole)
    top_or_0 = jnp.where(jnp.isfinite(top), top, 0.0)
    power = jnp.where(left & ~below, jnp.exp(scores - top_or_0), 0.0)
    return power, top_or_0, left & below


_channel_means.defvjp(_channel_means_forward, _channel_means_backward)


class MultiTimeAttention(nn.Module):
    """mTAND: irregular observations -> tokens at the query points.

    Q = A_q phi(query), K = A_k phi(times), scores <Q, K> / sqrt(K / H) (the paper prints the
    square root of the sequence length), a softmax per value channel, heads concatenated, one
    affine map to the model width. Parameters per modality.

    With `append_flags` the value channels are values and observation flags (P twice). The masked
    mean of a flag is 1, or 0 if the channel was never observed, so flags need no product.
    """

    features: int
    num_heads: int
    num_stacks: int = 1
    dropout: float = 0.0
    append_flags: bool = False

    @nn.compact
    def __call__(
        self, query_QK: Array, key_BMLK: Array, values_BMLP: Array, mask_BMLP: Array, *, train
    ) -> Array:
        """Embedded queries and keys, values, bool mask of the values -> [B, M, Q, features]."""
        stacks, width = key_BMLK.shape[1], key_BMLK.shape[-1]
        if width % self.num_heads:
            heads = f"{self.num_heads} heads"
            raise ValueError(f"embed_time: {heads} cannot split a time embedding of {width}")

        def project(x, name):
            init = torch_uniform(width)
            y = StackedDense(width, self.num_stacks, init, init, name=name)(x)
            return rearrange(y, "b m l (h c) -> b m l h c", h=self.num_heads)

        q = project(jnp.broadcast_to(query_QK, (1, stacks, *query_QK.shape)), "query")[0]
        k = project(key_BMLK, "key")
        scores = jnp.einsum("mqhc,bmlhc->bmhql", q, k) * (width / self.num_heads) ** -0.5
        drop = Dropout(self.dropout, deterministic=not train, name="drop")
        x = channel_attention(scores, values_BMLP, mask_BMLP, drop)
        if self.append_flags:
            flags = mask_BMLP.any(-2).astype(x.dtype)[:, :, None, None]
            x = jnp.concatenate([x, jnp.broadcast_to(flags, x.shape)], -1)
        x = rearrange(x, "b m q h p -> b m q (h p)")
        init = torch_uniform(x.shape[-1])
        return StackedDense(self.features, self.num_stacks, init, init, name="out")(x)
