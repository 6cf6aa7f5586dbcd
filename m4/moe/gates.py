"""Gates: how well every expert suits every token.

A gate maps tokens to log-affinities: with s = exp(gate(x)) >= 0, a router keeps the largest
entries and weighs them by s / sum(s), by softmax over all, or by s itself. A softmax gate is
therefore its logits, a sigmoid gate its log-sigmoid, a distance gate minus the distance.

Arguments annotated with an initialiser are learned (see `m4.moe.declare`). Initialisers
depend on D alone, so that the spread of the scores does not depend on the number of experts.
All arithmetic is float32 at the highest matmul precision: distances come from the matmul form
and would lose their digits in bfloat16; no (N, D, E) array is ever made.

Letters: N tokens, D width, E experts.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
from flax import linen as nn

from m4.types import Array

Projection = Annotated[Array, nn.initializers.variance_scaling(1.0, "fan_in", "normal")]
Centre = Annotated[Array, nn.initializers.normal(1.0)]


def _gaussian_init(key, shape, dtype=jnp.float32):
    """Centres of scale 1 / (2 sqrt(D)): the scores of unit-variance tokens spread by 1."""
    return jax.random.normal(key, shape, dtype) / (2.0 * jnp.sqrt(shape[-2]))


def linear(x_ND: Array, w_DE: Projection) -> Array:
    """Inner product <x, w_e>; the softmax gate (Shazeer et al. 2017; FuseMoE eq. 1)."""
    return _matmul(x_ND, w_DE)


def laplace(x_ND: Array, centre_DE: Centre) -> Array:
    """Minus the distance, -|x - w_e| (FuseMoE eq. 2, without the theory's bias, as released).

    Unit-variance centres: tokens of unit variance then lie sqrt(2 D) +- 0.9 from them.
    """
    return -_sqrt(_squared_distance(x_ND, centre_DE))


def gaussian(x_ND: Array, centre_DE: Annotated[Array, _gaussian_init]) -> Array:
    """Minus the squared distance, -|x - w_e|^2 (FuseMoE; Xu, Jordan and Hinton 1994).

    Equal to a linear gate with weights 2 w_e and bias -|w_e|^2 up to a shift per token.
    """
    return -_squared_distance(x_ND, centre_DE)


def _matmul(x_ND, w_DE):
    return jnp.matmul(x_ND, w_DE, precision=jax.lax.Precision.HIGHEST)


def _squared_distance(x_ND, w_DE):
    """|x|^2 - 2 <x, w> + |w|^2; what is below the rounding error of this sum counts as 0."""
    norms_NE = jnp.sum(x_ND**2, -1, keepdims=True) + jnp.sum(w_DE**2, 0)
    squared_NE = norms_NE - 2.0 * _matmul(x_ND, w_DE)
    rounding_NE = 4.0 * jnp.finfo(squared_NE.dtype).eps * norms_NE
    return jnp.where(squared_NE > rounding_NE, squared_NE, 0.0)


def _sqrt(squared):
    """Square root with gradient 0 at 0, where a norm has subgradient 0."""
    safe = jnp.where(squared > 0.0, squared, 1.0)
    return jnp.where(squared > 0.0, jnp.sqrt(safe), 0.0)
