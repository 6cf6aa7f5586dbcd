"""Continuous time: embedding, multi-time attention (mTAND), imputation on a grid.

Times are hours divided by the length of the window, so queries lie in [0, 1].

Letters: B rows, M modalities, L observations, Q query points, H heads, c width of a head,
P value channels, f features, K time-embedding width, D model width.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from m4.nn.layers import Initializer, StackedDense, uniform_init
from m4.types import Array


def query_times(num: int) -> Array:
    """`num` equally spaced query points from 0 to 1 inclusive."""
    return jnp.linspace(0.0, 1.0, num)


def time_features(times: Array, weight_K: Array, bias_K: Array) -> Array:
    """[...] -> [..., K]: one linear coordinate first, then K - 1 sines of affine maps."""
    affine = times[..., None] * weight_K + bias_K
    return jnp.concatenate([affine[..., :1], jnp.sin(affine[..., 1:])], axis=-1)


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
    """phi(t), shared by all modalities and by the queries (section 2.1 of the mTAND paper)."""

    features: int
    weight_init: Initializer = uniform_init(1)

    @nn.compact
    def __call__(self, times: Array) -> Array:
        """[...] in windows -> [..., features]."""
        weight_K = self.param("weight", self.weight_init, (self.features,))
        bias_K = self.param("bias", uniform_init(1), (self.features,))
        return time_features(times, weight_K, bias_K)


def channel_attention(scores_BMHQL: Array, values_BMLP: Array, mask_BMLP: Array, drop) -> Array:
    """Softmax over L separately for every value channel, without a tensor of H x Q x L x P.

    Numerator sum_l e^s m v and denominator sum_l e^s m are two matrix products. Equal to
    masking scores by -10000 wherever a channel has an observation; 0 where it has none.
    `drop` acts on the numerator only, shared by the channels (the authors draw one mask per
    channel). Returns [B, M, Q, H, P].
    """
    any_BMHQL = mask_BMLP.any(-1)[:, :, None, None]
    scores_BMHQL = jnp.where(any_BMHQL, scores_BMHQL.astype(jnp.float32), -jnp.inf)
    top = jax.lax.stop_gradient(scores_BMHQL.max(-1, keepdims=True))
    exp_BMHQL = jnp.exp(scores_BMHQL - jnp.where(jnp.isfinite(top), top, 0.0))
    kept_BMLP = mask_BMLP.astype(jnp.float32)
    den = jnp.einsum("bmhql,bmlp->bmhqp", exp_BMHQL, kept_BMLP)
    num = jnp.einsum("bmhql,bmlp->bmhqp", drop(exp_BMHQL), jnp.where(mask_BMLP, values_BMLP, 0.0))
    none = den <= 0  # not true of NaN, which must not become 0
    mean = jnp.where(none, 0.0, num / jnp.where(none, 1.0, den))
    return rearrange(mean, "b m h q p -> b m q h p")


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
            raise ValueError(f"{self.num_heads} heads cannot split a time embedding of {width}")

        def project(x, name):
            init = uniform_init(width)
            y = StackedDense(width, self.num_stacks, init, init, name=name)(x)
            return rearrange(y, "b m l (h c) -> b m l h c", h=self.num_heads)

        q = project(jnp.broadcast_to(query_QK, (1, stacks, *query_QK.shape)), "query")[0]
        k = project(key_BMLK, "key")
        scores = jnp.einsum("mqhc,bmlhc->bmhql", q, k) * (width / self.num_heads) ** -0.5
        drop = nn.Dropout(self.dropout, deterministic=not train, name="drop")
        x = channel_attention(scores, values_BMLP, mask_BMLP, drop)
        if self.append_flags:
            flags = mask_BMLP.any(-2).astype(x.dtype)[:, :, None, None]
            x = jnp.concatenate([x, jnp.broadcast_to(flags, x.shape)], -1)
        x = rearrange(x, "b m q h p -> b m q (h p)")
        init = uniform_init(x.shape[-1])
        return StackedDense(self.features, self.num_stacks, init, init, name="out")(x)


def carry_forward(
    values: Array, observed: Array, times: Array, mask: Array, *, num_bins: int
) -> tuple[Array, Array]:
    """Last observed value at the end of each bin, else 0 (the mean of z-scored values).

    `values`, `observed` [..., L, f]; `times` (windows), `mask` [..., L]; rows in time order.
    The last bin takes everything later. Returns values and flags "observed within the bin",
    both [..., num_bins, f]. FuseMoE appendix E.1.
    """
    length = values.shape[-2]
    position = jnp.arange(length)
    bin_index = jnp.clip(jnp.floor(times * num_bins), 0, num_bins - 1).astype(jnp.int32)
    observed = observed & mask[..., None]
    last = jax.lax.cummax(
        jnp.where(observed, position[:, None], -1), axis=observed.ndim - 2
    )  # [..., L, f]: row of the newest observation up to here
    bins = jnp.arange(num_bins)[:, None]
    until = jnp.where(mask[..., None, :] & (bin_index[..., None, :] <= bins), position, -1).max(-1)
    row = jnp.take_along_axis(last, jnp.maximum(until, 0)[..., None], axis=-2)
    seen = (until[..., None] >= 0) & (row >= 0)
    safe = jnp.where(observed, values, 0.0)
    value = jnp.where(seen, jnp.take_along_axis(safe, jnp.maximum(row, 0), axis=-2), 0.0)
    row_bin = jnp.take_along_axis(bin_index, jnp.maximum(row, 0).reshape(*row.shape[:-2], -1), -1)
    flag = seen & (row_bin.reshape(row.shape) == bins)
    return value, flag.astype(values.dtype)
