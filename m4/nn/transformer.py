"""Pre-norm residual blocks on stacks of modalities; the mixture of experts is injected.

Letters: B rows, M modalities, T tokens of a modality, D model width, F hidden width.
"""

from collections.abc import Callable

import flax.linen as nn

from m4.nn.attention import SelfAttention
from m4.nn.dense import StackedDense, StackedLayerNorm, uniform_init
from m4.nn.dropout import Dropout
from m4.types import Array


class MLP(nn.Module):
    """W2 drop(act(W1 x)) per modality or shared, PyTorch's default initialisation."""

    hidden: int
    num_stacks: int = 1
    dropout: float = 0.0
    activation: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, M, ..., D] -> the same shape."""
        up, down = uniform_init(x.shape[-1]), uniform_init(self.hidden)
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
