"""Parameter-efficient expert retrieval: up to millions of single-neuron experts.

PEER (He, arXiv 2407.04153): the E = S * S experts are addressed by pairs of S sub-keys, so that
finding the best K costs S + K^2 scores instead of E. Expert e is one neuron,
v_e activation(<u_e, x>).

Letters: N tokens, D input and O output width, H heads, Q query width, S sub-keys, K experts per
head, E experts, M modalities.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from m4.maths import softmax
from m4.moe.losses import entropy_of
from m4.moe.selection import Normalise
from m4.moe.stats import load_stats
from m4.resolve import resolve
from m4.types import Array, MoeAux


def product_keys(
    query_NHQ: Array, keys_2SQ: Array, *, k: int, normalise: Normalise = "auto"
) -> tuple[Array, Array]:
    """The K best of S * S experts and their weights, both [N, H, K].

    The score of expert i * S + j is <q_1, c_i> + <q_2, c'_j>, with q_1 and q_2 the halves of the
    query; `keys_2SQ` is [2, S, Q / 2]. The K best pairs are among the K best of each side, so
    the result is exact. Weights as in `m4.moe.routers`; a softmax over all E factorises into
    the softmaxes of the two sides.

    Raises ValueError if K exceeds S.
    """
    num_keys = keys_2SQ.shape[1]
    if not 1 <= k <= num_keys:
        raise ValueError(f"k={k} must be in [1, {num_keys}], the number of sub-keys per side")
    halves = jnp.stack(jnp.split(query_NHQ.astype(jnp.float32), 2, axis=-1))
    scores_2NHS = jnp.einsum("anhq,asq->anhs", halves, keys_2SQ, precision="highest")
    best_2NHK, index_2NHK = jax.lax.top_k(scores_2NHS, k)
    sums_NHKK = best_2NHK[0][..., :, None] + best_2NHK[1][..., None, :]
    sums_NHP = rearrange(sums_NHKK, "n h i j -> n h (i j)")
    chosen_NHK, pair_NHK = jax.lax.top_k(sums_NHP, k)
    first_NHK = jnp.take_along_axis(index_2NHK[0], pair_NHK // k, axis=-1)
    second_NHK = jnp.take_along_axis(index_2NHK[1], pair_NHK % k, axis=-1)
    if normalise == "none":
        weights_NHK = jnp.exp(chosen_NHK)
    elif normalise == "before" or (normalise == "auto" and k == 1):
        lse_NH1 = jax.nn.logsumexp(scores_2NHS, axis=-1, keepdims=True).sum(0)
        weights_NHK = jnp.exp(chosen_NHK - lse_NH1)
    else:
        weights_NHK = softmax(chosen_NHK)
    return first_NHK * num_keys + second_NHK, weights_NHK


class PEER(nn.Module):
    """y_n = sum over heads and their K experts e of g_ne v_e activation(<u_e, x_n>).

    Called as `m4.moe.layer.MoE`. Heads share experts and keys and have queries of their own.
    Departure: queries are layer-normalised where the paper uses batch normalisation, which
    would make a token's output depend on the batch.
    """

    num_experts: int  # a square
    top_k: int
    num_heads: int = 8
    out: int | None = None  # output width; None: the input's
    query_width: int = 64
    activation: str = "gelu"
    normalise: Normalise = "auto"
    num_modalities: int = 1

    @nn.compact
    def __call__(
        self,
        x_ND: Array,
        *,
        valid_N: Array,
        modality_N: Array | None = None,
        train: bool,
        **_: Any,
    ) -> tuple[Array, MoeAux]:
        """Output [N, O], zero on invalid tokens, and stats without `by_row` (E may be millions).

        Raises ValueError unless the number of experts is a square.
        """
        num_keys = round(self.num_experts**0.5)
        if num_keys**2 != self.num_experts:
            raise ValueError(f"num_experts={self.num_experts} must be a square, as {num_keys**2}")
        x_ND = jnp.where(valid_N[:, None], x_ND, 0)
        query = nn.DenseGeneral((self.num_heads, self.query_width), use_bias=False, name="query")
        query_NHQ = nn.LayerNorm(name="query_norm")(query(x_ND.astype(jnp.float32)))
        key_init = nn.initializers.normal(self.query_width**-0.5)
        keys_2SQ = self.param("keys", key_init, (2, num_keys, self.query_width // 2))
        experts_NHK, weights_NHK = product_keys(
            query_NHQ, keys_2SQ, k=self.top_k, normalise=self.normalise
        )
        experts_NA = rearrange(experts_NHK, "n h k -> n (h k)")
        weights_NA = rearrange(weights_NHK, "n h k -> n (h k)")
        experts_NA = jnp.where(valid_N[:, None], experts_NA, self.num_experts)
        weights_NA = jnp.where(valid_N[:, None], weights_NA, 0.0)

        down_ED = self._expert("u", x_ND.shape[-1], x_ND.shape[-1])
        up_EO = self._expert("v", self.out or x_ND.shape[-1], self.num_heads * self.top_k)
        u_NAD = down_ED.at[experts_NA].get(mode="fill", fill_value=0)
        hidden_NA = resolve(self.activation, "m4.moe.experts")(
            jnp.einsum("nad,nd->na", u_NAD, x_ND)
        )
        v_NAO = up_EO.at[experts_NA].get(mode="fill", fill_value=0)
        y_NO = jnp.einsum("na,nao->no", hidden_NA * weights_NA, v_NAO).astype(x_ND.dtype)
        stats = self._stats(experts_NA, weights_NA, valid_N, modality_N)
        return y_NO, MoeAux({}, jax.lax.stop_gradient(stats))

    def _expert(self, name, width, fan_in):
        """One vector per expert."""
        init = nn.with_logical_partitioning(
            nn.initializers.normal(fan_in**-0.5), ("expert", "embed")
        )
        return self.param(name, init, (self.num_experts, width))

    def _stats(self, experts_NA, weights_NA, valid_N, modality_N):
        if modality_N is None:
            modality_N = jnp.zeros(valid_N.shape, jnp.int32)
        by_modality = jnp.zeros((self.num_modalities, self.num_experts))
        by_modality = by_modality.at[modality_N[:, None], experts_NA].add(1.0, mode="drop")
        weight_E = jnp.zeros(self.num_experts).at[experts_NA].add(weights_NA, mode="drop")
        entropy_N = entropy_of(weights_NA / self.num_heads)
        balance = load_stats(by_modality.sum(0))
        del balance["gini"]  # it would sort all experts
        return balance | {
            "load": by_modality.sum(0) / jnp.maximum(by_modality.sum(), 1.0),
            "importance": weight_E / jnp.maximum(weight_E.sum(), 1e-30),
            "entropy": entropy_N.sum() / jnp.maximum(valid_N.sum(), 1),
            "dropped": jnp.zeros(()),
            "by_modality": by_modality,
        }
