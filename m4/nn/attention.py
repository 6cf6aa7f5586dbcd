"""Masked attention on stacks of modalities, and pooling by attention.

Letters: B rows, M modalities, Q queries, L keys, H heads, c width of a head, D model width,
T tasks.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from m4.nn.dense import Initializer, StackedDense, xavier_init
from m4.nn.dropout import Dropout
from m4.types import Array


def masked_softmax(scores: Array, mask: Array) -> Array:
    """Softmax over the last dimension among `mask`; all zeros (not NaN) where nothing is kept."""
    scores = jnp.where(mask, scores.astype(jnp.float32), -jnp.inf)
    # The result does not depend on it. Its gradient compares recomputed scores with their maximum:
    # where rounding differs that is 0 / 0.
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - jnp.where(jnp.isfinite(top), top, 0.0))
    return weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-30)


def attend(
    q_BMQHc: Array, k_BMLHc: Array, v_BMLHc: Array, mask_BML: Array, drop, bias_QL=None
) -> Array:
    """Scaled dot-product attention; `drop` is applied to the attention weights.

    `bias_QL` is added to the scores; -inf in it forbids a pair.
    """
    scores_BMHQL = jnp.einsum("bmqhc,bmlhc->bmhql", q_BMQHc, k_BMLHc) * q_BMQHc.shape[-1] ** -0.5
    kept_BMHQL = mask_BML[:, :, None, None]
    if bias_QL is not None:  # -inf is masked, not added: it would make a NaN gradient
        open_QL = bias_QL > -jnp.inf
        scores_BMHQL = scores_BMHQL + jnp.where(open_QL, bias_QL, 0.0)
        kept_BMHQL = kept_BMHQL & open_QL
    weights_BMHQL = drop(masked_softmax(scores_BMHQL, kept_BMHQL))
    return jnp.einsum("bmhql,bmlhc->bmqhc", weights_BMHQL.astype(v_BMLHc.dtype), v_BMLHc)


class SelfAttention(nn.Module):
    """Multi-head self-attention within each modality, parameters per modality or shared.

    Initialised as in PyTorch: Xavier-uniform with the three input projections as one matrix,
    zero biases. `kernel_init` replaces all of it; without `qkv_bias_init` the input projections
    have no bias.
    """

    num_heads: int
    num_stacks: int = 1
    dropout: float = 0.0
    kernel_init: Initializer | None = None  # None: Xavier-uniform
    qkv_bias_init: Initializer | None = nn.initializers.zeros
    bias_init: Initializer = nn.initializers.zeros  # of the output map

    @nn.compact
    def __call__(
        self, x_BMTD: Array, mask_BMT: Array, *, train: bool, bias_TT: Array | None = None
    ) -> Array:
        """[B, M, T, D] -> [B, M, T, D]; keys outside the mask are never read.

        `bias_TT` is added to the scores of every head; -inf in it forbids a pair.
        """
        width, init = x_BMTD.shape[-1], self.kernel_init or xavier_init()
        qkv = StackedDense(3 * width, self.num_stacks, init, self.qkv_bias_init, name="qkv")
        packed = qkv(x_BMTD)
        q, k, v = rearrange(packed, "b m t (n h c) -> n b m t h c", n=3, h=self.num_heads)
        drop = Dropout(self.dropout, deterministic=not train, name="drop")
        y_BMTD = rearrange(attend(q, k, v, mask_BMT, drop, bias_TT), "b m t h c -> b m t (h c)")
        return StackedDense(width, self.num_stacks, init, self.bias_init, name="out")(y_BMTD)


class AttentionPool(nn.Module):
    """One learned query per task over a masked set of tokens."""

    num_queries: int
    num_heads: int = 4

    @nn.compact
    def __call__(self, x_BMD: Array, mask_BM: Array) -> Array:
        """[B, M, D] -> [B, num_queries, D]; zeros where the mask is empty."""
        width = x_BMD.shape[-1]
        query = self.param("query", nn.initializers.normal(width**-0.5), (self.num_queries, width))
        k_BMHc, v_BMHc = rearrange(
            nn.Dense(2 * width, name="key_value")(x_BMD),
            "b m (n h c) -> n b m h c",
            n=2,
            h=self.num_heads,
        )
        q_THc = rearrange(query, "t (h c) -> t h c", h=self.num_heads)
        scores_BHTM = jnp.einsum("thc,bmhc->bhtm", q_THc, k_BMHc)
        weights_BHTM = masked_softmax(scores_BHTM, mask_BM[:, None, None])
        return rearrange(
            jnp.einsum("bhtm,bmhc->bthc", weights_BHTM, v_BMHc), "b t h c -> b t (h c)"
        )
