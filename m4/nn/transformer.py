"""Masked attention, MLPs and pre-norm residual blocks on stacks of modalities.

Letters: B rows, M modalities, T tokens of a modality, Q queries, L keys, H heads, c width of a
head, D model width, F hidden width.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from m4.maths import softmax, torch_uniform
from m4.nn.layers import Dropout, Initializer, StackedDense, StackedLayerNorm, xavier_init
from m4.types import Array


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
    weights_BMHQL = drop(softmax(scores_BMHQL, kept_BMHQL))
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


class MLP(nn.Module):
    """W2 drop(act(W1 x)) per modality or shared, PyTorch's default initialisation."""

    hidden: int
    num_stacks: int = 1
    dropout: float = 0.0
    activation: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, M, ..., D] -> the same shape."""
        up, down = torch_uniform(x.shape[-1]), torch_uniform(self.hidden)
        h = StackedDense(self.hidden, self.num_stacks, up, up, name="up")(x)
        h = Dropout(self.dropout, deterministic=not train, name="drop")(self.activation(h))
        return StackedDense(x.shape[-1], self.num_stacks, down, down, name="down")(h)


class AttentionBlock(nn.Module):
    """x + drop(self-attention(layer norm(x))) within each modality."""

    num_heads: int
    num_stacks: int = 1
    dropout: float = 0.0
    epsilon: float = 1e-5  # of the layer norm

    @nn.compact
    def __call__(self, x_BMTD: Array, mask_BMT: Array, *, train: bool) -> Array:
        """[B, M, T, D], bool[B, M, T] -> [B, M, T, D]."""
        y = StackedLayerNorm(self.num_stacks, self.epsilon, name="norm")(x_BMTD)
        y = SelfAttention(self.num_heads, self.num_stacks, self.dropout, name="attention")(
            y, mask_BMT, train=train
        )
        return x_BMTD + Dropout(self.dropout, deterministic=not train, name="drop")(y)


class MLPBlock(nn.Module):
    """x + drop(MLP(layer norm(x)))."""

    hidden: int
    num_stacks: int = 1
    dropout: float = 0.0
    activation: Callable[[Array], Array] = nn.relu
    epsilon: float = 1e-5  # of the layer norm

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, M, ..., D] -> the same shape."""
        y = StackedLayerNorm(self.num_stacks, self.epsilon, name="norm")(x)
        y = MLP(self.hidden, self.num_stacks, self.dropout, self.activation, name="mlp")(
            y, train=train
        )
        return x + Dropout(self.dropout, deterministic=not train, name="drop")(y)
