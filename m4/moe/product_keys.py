"""Parameter-efficient expert retrieval: up to millions of single-neuron experts.

PEER (He, arXiv 2407.04153): the E = S * S experts are addressed by pairs of S sub-keys, so that
finding the best K costs S + K^2 scores instead of E. Expert e is one neuron,
v_e activation(<u_e, x>). In a configuration `moe.router=product_keys`, with `num_heads`,
`query_width` and `normalise` in `moe.router_options`; keys stand in the gate's place.

Letters: N tokens, D input and O output width, H heads, Q query width, S sub-keys, K experts per
head, A = H*K assignments of a token, E experts, M modalities.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from m4 import maths
from m4.evenness import evenness
from m4.maths import largest, softmax
from m4.moe.experts import Functions
from m4.moe.routers import Normalise
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
        raise ValueError(f"moe.top_k={k} must be in [1, {num_keys}], the sub-keys per side")
    halves = jnp.stack(jnp.split(query_NHQ.astype(jnp.float32), 2, axis=-1))
    scores_N2HS = jnp.einsum("anhq,asq->nahs", halves, keys_2SQ, precision="highest")
    index_N2HK = largest(scores_N2HS, k)
    best_N2HK = jnp.take_along_axis(scores_N2HS, index_N2HK, axis=-1)
    sums_NHKK = best_N2HK[:, 0, :, :, None] + best_N2HK[:, 1, :, None, :]
    sums_NHP = rearrange(sums_NHKK, "n h i j -> n h (i j)")
    pair_NHK = largest(sums_NHP, k)
    chosen_NHK = jnp.take_along_axis(sums_NHP, pair_NHK, axis=-1)
    first_NHK = jnp.take_along_axis(index_N2HK[:, 0], pair_NHK // k, axis=-1)
    second_NHK = jnp.take_along_axis(index_N2HK[:, 1], pair_NHK % k, axis=-1)
    if normalise == "none":
        weights_NHK = jnp.exp(chosen_NHK)
    elif normalise == "before" or (normalise == "auto" and k == 1):
        lse_NH1 = jax.nn.logsumexp(scores_N2HS, axis=-1, keepdims=True).sum(1)
        weights_NHK = jnp.exp(chosen_NHK - lse_NH1)
    else:
        weights_NHK = softmax(chosen_NHK)
    return first_NHK * num_keys + second_NHK, weights_NHK


def sub_keys(num_experts: int) -> int:
    """S = sqrt(E); raises ValueError unless the number of experts is a square."""
    if (num_keys := round(num_experts**0.5)) ** 2 != num_experts:
        raise ValueError(f"moe.num_experts={num_experts} must be a square, as {num_keys**2}")
    return num_keys


class ProductKeys(nn.Module):
    """y_n = sum over heads and their K experts e of g_ne v_e activation(<u_e, x_n>).

    Heads share experts and keys and have queries of their own. Departure: queries are
    layer-normalised where the paper uses batch normalisation, which would make a token's output
    depend on the batch.
    """

    num_experts: int  # a square
    top_k: int
    activation: str = "gelu"
    out: int | None = None  # output width; None: the input's
    num_modalities: int = 1
    num_heads: int = 8
    query_width: int = 64
    normalise: Normalise = "auto"

    @classmethod
    def of(
        cls,
        options: Any,
        losses: Sequence[str] = (),
        num_modalities: int = 1,
        out: int | None = None,
    ) -> "ProductKeys":
        """By the `MoEOptions` of a layer; raises ValueError for what cannot be."""
        if options.share != "joint":
            raise ValueError(
                "moe.share must be 'joint': product keys are the same for all modalities"
            )
        if losses:
            raise ValueError(
                f"losses: the router product_keys has none, and no {', '.join(losses)}"
            )
        for name, without in {"num_shared": 0, "output": None, "dtype": None}.items():
            if (value := getattr(options, name)) != without:
                raise ValueError(
                    f"moe.{name}={value!r}: the experts of product_keys do not have it"
                )
        return cls(
            options.num_experts,
            options.top_k,
            options.activation,
            out,
            num_modalities,
            **options.router_options,
        )

    @nn.compact
    def __call__(
        self, x_ND: Array, valid_N: Array, modality_N: Array | np.ndarray | None = None
    ) -> tuple[Array, MoeAux]:
        """Output [N, O], zero on invalid tokens, and stats without `by_row` (E may be millions).

        Raises ValueError unless the number of experts is a square.
        """
        num_keys, width = sub_keys(self.num_experts), x_ND.shape[-1]
        x_ND = jnp.where(valid_N[:, None], x_ND, 0)
        query = nn.DenseGeneral((self.num_heads, self.query_width), use_bias=False, name="query")
        query_NHQ = nn.LayerNorm(name="query_norm")(query(x_ND.astype(jnp.float32)))
        key_init = nn.initializers.normal(self.query_width**-0.5)
        keys_2SQ = self.param("keys", key_init, (2, num_keys, self.query_width // 2))
        found = product_keys(query_NHQ, keys_2SQ, k=self.top_k, normalise=self.normalise)
        experts_NA, weights_NA = (rearrange(a_NHK, "n h k -> n (h k)") for a_NHK in found)
        experts_NA = jnp.where(valid_N[:, None], experts_NA, self.num_experts)
        weights_NA = jnp.where(valid_N[:, None], weights_NA, 0.0)

        u_ED = self._neurons("u", width, width)
        v_EO = self._neurons("v", self.out or width, self.num_heads * self.top_k)
        activation = Functions.named(self.activation, None).activation
        u_NAD = u_ED.at[experts_NA].get(mode="fill", fill_value=0)
        hidden_NA = activation(jnp.einsum("nad,nd->na", u_NAD, x_ND))
        v_NAO = v_EO.at[experts_NA].get(mode="fill", fill_value=0)
        y_NO = jnp.einsum("na,nao->no", hidden_NA * weights_NA, v_NAO).astype(x_ND.dtype)
        modality_N = jnp.zeros(valid_N.shape, int) if modality_N is None else modality_N
        return y_NO, MoeAux({}, self._stats(experts_NA, weights_NA, valid_N, modality_N))

    def _neurons(self, name, width, fan_in) -> Array:
        """One vector per expert."""
        normal = nn.initializers.normal(fan_in**-0.5)
        init = nn.with_logical_partitioning(normal, ("expert", "embed"))
        return jnp.asarray(self.param(name, init, (self.num_experts, width)))

    def _stats(self, experts_NA, weights_NA, valid_N, modality_N):
        by_modality = jnp.zeros((self.num_modalities, self.num_experts))
        by_modality = by_modality.at[modality_N[:, None], experts_NA].add(1.0, mode="drop")
        weight_E = jnp.zeros(self.num_experts).at[experts_NA].add(weights_NA, mode="drop")
        count_E, num_valid = by_modality.sum(0), jnp.maximum(valid_N.sum(), 1)
        even = evenness(jnp.where(count_E.sum() > 0, count_E, 1.0))
        del even["gini"]  # it would sort all experts
        stats = even | {
            "load": count_E / jnp.maximum(count_E.sum(), 1.0),
            "importance": weight_E / jnp.maximum(weight_E.sum(), 1e-30),
            "entropy": maths.entropy(weights_NA / self.num_heads).sum() / num_valid,
            "dropped": jnp.zeros(()),
            "by_modality": by_modality,
        }
        return jax.lax.stop_gradient(stats)
