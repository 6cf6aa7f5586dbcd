"""Affine maps and norms with one set of parameters per modality, and dropout.

Thirteen modalities as thirteen modules cost thirteen graphs to compile. Here their parameters
are stacked on a leading axis and one einsum serves all; a stack of 1 is shared by all.

Dropout's random numbers must cost less than what they are multiplied with. JAX's generator takes
20 ns per number on a CPU core, PyTorch's 2: with attention weights and hidden layers to drop from,
half of a training step. Dropout needs no cryptographic strength: here the generator makes two words
per call, and every element's number is a hash of its index and them.

Letters: B rows, M modalities, S stacks (M, or 1 when shared), i input, o output width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from m4.maths import lowbias32
from m4.types import Array

Initializer = nn.initializers.Initializer
LARGE = 2**16  # numbers in the input of an affine map from which the order of operands matters
HAT_EDGES = (-2.07, -1.38, -0.67, -0.21, 0.21, 0.67, 1.38)  # cut the normal evenly; one tail below


def lecun_init() -> Initializer:
    """Normal with variance 1 / fan-in, for stacked kernels [S, i, o]."""
    return nn.initializers.variance_scaling(
        1.0, "fan_in", "truncated_normal", in_axis=-2, out_axis=-1, batch_axis=(0,)
    )


def xavier_init(scheme: str = "uniform", *, outputs: int | None = None) -> Initializer:
    """Glorot init of stacked kernels; `outputs` overrides the fan-out (packed projections)."""

    def init(key, shape, dtype=jnp.float32):
        scale = 2.0 / (shape[-2] + (outputs or shape[-1]))
        if scheme == "normal":
            return scale**0.5 * jax.random.normal(key, shape, dtype)
        bound = (3 * scale) ** 0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class StackedDense(nn.Module):
    """y[b, m, ..., o] = x[b, m, ..., i] W[m] + b[m], with W shared where `num_stacks` is 1."""

    features: int
    num_stacks: int = 1
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = nn.initializers.zeros  # None: no bias

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, M, ..., i] -> [B, M, ..., features]; M must be `num_stacks` unless that is 1."""
        shape = (self.num_stacks, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init or lecun_init(), shape)
        x, kernel = jnp.asarray(x), jnp.asarray(kernel)  # vmap takes no NumPy array in a jit
        if self.num_stacks == 1:
            y = linear(x, kernel[0])
        elif x.size < LARGE:
            y = jnp.einsum("bm...i,mio->bm...o", x, kernel)
        else:
            y = jax.vmap(linear, in_axes=(1, 0), out_axes=1)(x, kernel)
        if self.bias_init is None:
            return y
        bias = self.param("bias", self.bias_init, (self.num_stacks, self.features))
        return y + expand(bias, y.ndim)


@jax.custom_vjp
def linear(x: Array, kernel_io: Array) -> Array:
    """[..., i] -> [..., o], with the order of operands that suits XLA:CPU, forwards and backwards.

    An einsum over stacks puts the kernel first, its gradient the outputs: either way a product is
    stored transposed and turned afterwards, at half the speed.
    """
    return jnp.matmul(x, kernel_io)


def _linear_forward(x, kernel_io):
    return linear(x, kernel_io), (x, kernel_io)


def _linear_backward(saved, dy):
    x, kernel_io = saved
    if x.shape[-1] <= dy.shape[-1]:  # XLA:CPU turns the first operand: the narrower is cheaper
        dkernel_io = jnp.einsum("...i,...o->io", x, dy)
    else:
        dkernel_io = jnp.einsum("...o,...i->oi", dy, x).T
    return jnp.matmul(dy, kernel_io.T).astype(x.dtype), dkernel_io.astype(kernel_io.dtype)


linear.defvjp(_linear_forward, _linear_backward)


class StackedLayerNorm(nn.Module):
    """Layer norm over the last dimension with one scale and bias per modality."""

    num_stacks: int = 1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, M, ..., D] -> the same shape."""
        shape = (self.num_stacks, x.shape[-1])
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        centred = x - x.mean(-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.epsilon)
        return normed * expand(scale, x.ndim) + expand(bias, x.ndim)


def expand(param_SD: Array, ndim: int) -> Array:
    """[S, D] -> [S, 1, ..., D], which broadcasts against [B, M, ..., D] of `ndim` dimensions."""
    stacks, width = param_SD.shape
    return param_SD.reshape(stacks, *(1,) * (ndim - 3), width)


def hats(x_BN: Array) -> Array:
    """[x, piecewise-linear encoding of x], [B, 7 N], for inputs in z units.

    Gorishniy, Rubachev and Babenko (NeurIPS 2022), section 3.1, with edges at quantiles of the
    normal distribution rather than of the data: nothing is fitted.
    """
    low, high = np.array(HAT_EDGES[:-1]), np.array(HAT_EDGES[1:])
    share_BNK = jnp.clip((x_BN[..., None] - low) / (high - low), 0.0, 1.0) - 0.5
    return jnp.concatenate([x_BN, share_BNK.reshape(*x_BN.shape[:-1], -1)], axis=-1)


class Dropout(nn.Module):
    """As `nn.Dropout`: zeros with probability `rate`, everything else over 1 - rate."""

    rate: float
    deterministic: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Any shape; draws from the rng stream 'dropout' unless `deterministic` or rate is 0."""
        if self.deterministic or self.rate == 0:
            return x
        if self.rate >= 1:
            return jnp.zeros_like(x)
        seed = jax.random.bits(self.make_rng("dropout"), (2,), jnp.uint32)
        keep = uniform_bits(seed, x.shape) >= np.uint32(round(self.rate * 2**32))
        return jnp.where(keep, x / (1.0 - self.rate), 0).astype(x.dtype)


def uniform_bits(seed: Array, shape: tuple[int, ...]) -> Array:
    """u32 of a shape, from two random words: a hash of every element's index.

    A bijection of 32 bits before and after the second word. Equal indices of two calls are
    independent as far as their seeds are.
    """
    index = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for dim in range(len(shape) - 1, -1, -1):
        step = jax.lax.broadcasted_iota(jnp.uint32, shape, dim)
        index += step * np.uint32(stride % 2**32)
        stride *= shape[dim]
    return lowbias32(lowbias32(index ^ seed[0]) + seed[1])
