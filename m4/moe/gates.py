"""Gates: how well every expert suits every token.

A gate maps tokens to log-affinities: with s = exp(gate(x)) >= 0, a router keeps the largest and
weighs the kept by s / sum(s), by s over the sum of all, or by s itself. So a softmax gate is its
logits, a sigmoid gate its log-sigmoid, a distance gate minus the distance.

Arguments annotated with an initialiser are learned (see `m4.moe.route`); keyword arguments
are options or inputs of the layer. Initialisers depend on D alone, never on E: for tokens of
unit variance the scores of any number of experts have the same spread, of order 1 unless said.
Everything is float32 at the highest matmul precision, since distances come in the matmul form
and lose their digits in bfloat16. No (N, D, E) array is ever made.

Letters: N tokens, D width, E experts, R rank, Q width of the query token.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from m4.maths import murmur3
from m4.types import Array


def _per_width(scale):
    """Normal entries of standard deviation scale / sqrt(D), D being the last but one dimension."""

    def init(key, shape, dtype=jnp.float32):
        return scale / shape[-2] ** 0.5 * jax.random.normal(key, shape, dtype)

    return init


Projection = Annotated[Array, _per_width(1.0)]
Centre = Annotated[Array, nn.initializers.normal(1.0)]
Zeros = Annotated[Array, nn.initializers.zeros]


# --- inner products ---------------------------------------------------------------------------


def linear(x_ND: Array, w_DE: Projection) -> Array:
    """<x, w_e>: the softmax gate (Shazeer et al. 2017, arXiv 1701.06538; FuseMoE eq. 1)."""
    return _matmul(x_ND, w_DE)


def noisy_linear(
    x_ND: Array, w_DE: Projection, noise_DE: Zeros, *, key: Array | None = None
) -> Array:
    """<x, w_e> + softplus(<x, n_e>) eps in training (Shazeer et al. 2017, eq. 4).

    For routers other than `noisy_top_k`, which draws this noise itself and estimates the load.
    """
    logits_NE = _matmul(x_ND, w_DE)
    if key is None:
        return logits_NE
    sigma_NE = jax.nn.softplus(_matmul(x_ND, noise_DE))
    return logits_NE + sigma_NE * jax.random.normal(key, logits_NE.shape, logits_NE.dtype)


def dense_to_sparse(
    x_ND: Array, w_DE: Projection, *, temperature: float | Array = 1.0, key: Array | None = None
) -> Array:
    """(<x, w_e> + Gumbel noise in training) / temperature (EvoMoE, arXiv 2112.14397).

    The caller anneals `temperature` from soft to sharp over training. Departure: the number of
    experts stays the router's K, where EvoMoE keeps all above a threshold (a dynamic shape).
    """
    logits_NE = _matmul(x_ND, w_DE)
    if key is not None:
        logits_NE = logits_NE + jax.random.gumbel(key, logits_NE.shape, logits_NE.dtype)
    return logits_NE / temperature


def sigmoid(x_ND: Array, w_DE: Projection, bias_E: Zeros) -> Array:
    """Log-sigmoid of <x, w_e> + b_e (arXiv 2405.13997; normalised over the kept: DeepSeek-V3)."""
    return jax.nn.log_sigmoid(_matmul(x_ND, w_DE) + bias_E)


def sqrt_softplus(x_ND: Array, w_DE: Projection) -> Array:
    """Log of sqrt(softplus(<x, w_e>)): an unbounded, slowly growing affinity (MaxText's option)."""
    z_NE = _matmul(x_ND, w_DE)
    low_NE = z_NE < -15.0  # there softplus(z) = exp(z) in float32, which would underflow
    softplus_NE = jax.nn.softplus(jnp.where(low_NE, 0.0, z_NE))
    return 0.5 * jnp.where(low_NE, z_NE, jnp.log(softplus_NE))


def relu(x_ND: Array, w_DE: Projection) -> Array:
    """Log of max(<x, w_e>, 0); experts at or below 0 are off, -inf (ReMoE, arXiv 2412.14711).

    Use with normalise='none' for ReMoE's weights; its sparsity comes from a penalty on them,
    ours is bounded by K as well.
    """
    z_NE = _matmul(x_ND, w_DE)
    off_NE = z_NE <= 0.0  # not true of NaN, which must not become an expert that is off
    return jnp.where(off_NE, -jnp.inf, jnp.log(jnp.where(off_NE, 1.0, z_NE)))


def task_additive(x_ND: Array, w_DE: Projection, query_QE: Zeros, *, query_NQ: Array) -> Array:
    """<x, w_e> + <q, v_e> with the token's task (or modality) embedding q (FlexCare).

    `query_NQ` is an input of the layer. The release starts both matrices at zero.
    """
    return _matmul(x_ND, w_DE) + _matmul(query_NQ, query_QE)


# --- angles -----------------------------------------------------------------------------------


def cosine(
    x_ND: Array,
    project_DR: Projection,
    key_RE: Projection,
    log_tau: Annotated[Array, nn.initializers.constant(-1.0)],
) -> Array:
    """<P x, k_e> / (|P x| |k_e| tau), tau learned and at least 0.01 (X-MoE, arXiv 2204.09179).

    X-MoE sets R = E / 2 and starts tau at 0.07; here R is a field of the layer and tau starts at
    exp(-1), so that the spread at R = 8 is 1.
    """
    low_NR = _matmul(x_ND, project_DR)
    norms_NE = _norm(low_NR, -1) * _norm(key_RE, 0)
    return _matmul(low_NR, key_RE) / norms_NE * jnp.exp(-jnp.maximum(log_tau, jnp.log(0.01)))


def perturbed_cosine(
    x_ND: Array, w_DE: Centre, log_tau: Zeros, *, offset_x: float = 0.1, offset_w: float = 0.1
) -> Array:
    """<x, w_e> / ((|x| + offset_x) (|w_e| + offset_w) tau) (arXiv 2405.14131), tau learned.

    The offsets restore polynomial rates of estimation. With both 0 this is Soft-MoE's score with
    scale 1 / tau = 1 (arXiv 2308.00951). Its spread is 1 / sqrt(D).
    """
    norms_NE = (_norm(x_ND, -1) + offset_x) * (_norm(w_DE, 0) + offset_w)
    return _matmul(x_ND, w_DE) / norms_NE * jnp.exp(-log_tau)


# --- distances --------------------------------------------------------------------------------


def laplace(x_ND: Array, centre_DE: Centre) -> Array:
    """-|x - w_e| (FuseMoE eq. 2; as in its release without the bias of its theory).

    With unit-variance centres a token of unit variance is sqrt(2 D) +- 0.9 away from them.
    """
    return -_sqrt(_squared_distance(x_ND, centre_DE))


def gaussian(x_ND: Array, centre_DE: Annotated[Array, _per_width(0.5)]) -> Array:
    """-|x - w_e|^2 (FuseMoE's release; Xu, Jordan and Hinton 1994).

    Equal, up to a shift per token, to a linear gate with weights 2 w_e and bias -|w_e|^2.
    """
    return -_squared_distance(x_ND, centre_DE)


def student_t(x_ND: Array, centre_DE: Centre, *, nu: float = 1.0) -> Array:
    """-(nu + 1) / 2 log(1 + |x - w_e|^2 / nu): heavy tails; spread of order 1 / sqrt(D)."""
    return -(nu + 1.0) / 2.0 * jnp.log1p(_squared_distance(x_ND, centre_DE) / nu)


def polynomial(x_ND: Array, centre_DE: Centre, *, power: float = 2.0) -> Array:
    """-log(1 + |x - w_e|^power), that is s = 1 / (1 + distance^power); spread as `student_t`."""
    squared_NE = _squared_distance(x_ND, centre_DE)
    zero_NE = squared_NE <= 0.0
    safe_NE = jnp.where(zero_NE, 1.0, squared_NE)
    # log(1 + exp(log d^power)), since d^power itself overflows
    return jnp.where(zero_NE, 0.0, -jax.nn.softplus(power / 2.0 * jnp.log(safe_NE)))


def euclidean_sigmoid(x_ND: Array, centre_DE: Centre, bias_E: Zeros, log_tau: Zeros) -> Array:
    """Log-sigmoid of (b_e + sqrt(2 D) - |x - w_e|) / tau, tau learned (after arXiv 2602.01466).

    sqrt(2 D) is the typical distance at the start, where half of the experts are open.
    """
    distance_NE = _sqrt(_squared_distance(x_ND, centre_DE))
    typical = (2.0 * x_ND.shape[-1]) ** 0.5
    return jax.nn.log_sigmoid((bias_E + typical - distance_NE) * jnp.exp(-log_tau))


# --- quadratic forms --------------------------------------------------------------------------


def quadratic_monomial(x_ND: Array, u_RDE: Projection, v_RDE: Projection, bias_E: Zeros) -> Array:
    """Quadratic form x' A_e x + c_e with A_e = R^-1/2 sum_r u_re v_re' (arXiv 2410.11222).

    R = D can represent every A_e.
    """

    @jax.checkpoint  # else the backward pass keeps 2 R arrays of the size of the scores
    def add(total_NE, uv_DE):
        return total_NE + _matmul(x_ND, uv_DE[0]) * _matmul(x_ND, uv_DE[1]), None

    rank, _, num_experts = u_RDE.shape
    zeros_NE = jnp.zeros((x_ND.shape[0], num_experts), x_ND.dtype)
    return jax.lax.scan(add, zeros_NE, (u_RDE, v_RDE))[0] / rank**0.5 + bias_E


def quadratic(
    x_ND: Array, u_RDE: Projection, v_RDE: Projection, w_DE: Projection, bias_E: Zeros
) -> Array:
    """The full quadratic polynomial, x' A_e x + <x, w_e> + c_e (arXiv 2410.11222)."""
    return quadratic_monomial(x_ND, u_RDE, v_RDE, bias_E) + _matmul(x_ND, w_DE)


# --- gates to compare with: `hash` and `uniform` know nothing, `fixed_random` learns nothing ----


def hash(x_ND: Array, *, num_experts: int) -> Array:
    """A score in [0, 1] that is as good as random, of the token's content alone.

    After hash layers (arXiv 2106.04426), whose key is the word. Two tokens that differ have
    independent scores, whatever they have in common: the experts learn nothing of modality, place
    or patient. It is a steep triangular wave along fixed directions rather than a hash of bits,
    which the last digit of a sum in another order would change altogether. So tokens must vary
    within what is compared by a tenth of their size or more. No gradient.
    """
    x_ND = jax.lax.stop_gradient(x_ND)
    width, rank = x_ND.shape[-1], 8
    mix_DR, wave_RE = _fixed(width, rank), 8.0 * _fixed(rank, num_experts)
    start_E = _fixed(1, num_experts)[0]  # so that a token of zeros goes anywhere, too
    cycles_NE = _matmul(_matmul(x_ND, mix_DR) * (3.0 / width) ** 0.5, wave_RE) + start_E
    return jnp.abs(2.0 * (cycles_NE - jnp.floor(cycles_NE)) - 1.0)


def uniform(x_ND: Array, *, num_experts: int) -> Array:
    """Any experts at nearly equal weights: the choice is that of `hash`, scores differ by 1e-3.

    By less, and ties after a router's softmax in float32 would go by place and index.
    """
    return 1e-3 * hash(x_ND, num_experts=num_experts)


def hash_modality(x_ND: Array, *, num_experts: int, modality_N: Array, slot_N: Array) -> Array:
    """A fixed random score in [0, 1) per (modality, position in the row, expert).

    Not a null gate: it knows modality and place, and nothing else. With a token a modality it is an
    `oracle` at every number of experts.
    """
    token_N = (modality_N.astype(jnp.uint32) << 20) ^ slot_N.astype(jnp.uint32)
    bits_NE = murmur3(murmur3(token_N)[:, None] ^ jnp.arange(num_experts, dtype=jnp.uint32))
    return (bits_NE >> 8).astype(x_ND.dtype) / 2**24


def fixed_random(x_ND: Array, w_DE: Projection) -> Array:
    """<x, w_e> / |w_e| with weights that are never trained (not even by weight decay)."""
    w_DE = jax.lax.stop_gradient(w_DE)
    return _matmul(x_ND, w_DE) / _norm(w_DE, 0)


def oracle(x_ND: Array, *, num_experts: int, modality_N: Array, num_modalities: int) -> Array:
    """Each modality has its own block of experts, equally weighted; all others are forbidden."""
    expert_E = jnp.arange(num_experts)
    owner_E = expert_E * num_modalities // num_experts
    if num_experts < num_modalities:
        owner_E, modality_N = expert_E, modality_N % num_experts
    return jnp.where(modality_N[:, None] == owner_E, 0.0, -jnp.inf).astype(x_ND.dtype)


# --- arithmetic -------------------------------------------------------------------------------


def _matmul(x_ND, w_DE):
    return jnp.matmul(x_ND, w_DE, precision=jax.lax.Precision.HIGHEST)


def _fixed(rows, columns):
    """The same numbers in [-1, 1) every time, f32[rows, columns]."""
    row_R1 = jnp.arange(rows, dtype=jnp.uint32)[:, None]
    column_C = jnp.arange(columns, dtype=jnp.uint32)
    bits_RC = murmur3(murmur3(row_R1 + np.uint32(0x9E3779B9)) ^ column_C)
    return (bits_RC >> 8).astype(jnp.float32) / 2**23 - 1.0


def _norm(x, dim):
    """Euclidean norm, at least 1e-6, with gradient 0 below that."""
    return jnp.sqrt(jnp.maximum(jnp.sum(x**2, dim, keepdims=True), 1e-12))


def _squared_distance(x_ND, w_DE):
    """|x|^2 - 2 <x, w> + |w|^2, less the rounding error of this sum and at least 0.

    So a token on its centre is at distance 0 exactly, and no gradient is divided by noise.
    """
    shrink = 1.0 - 4.0 * jnp.finfo(x_ND.dtype).eps
    # Scaled before they meet: every operation saved here is one on all of [N, E].
    norm_N = shrink * jnp.einsum("nd,nd->n", x_ND, x_ND, precision="highest")
    norm_E = shrink * jnp.sum(w_DE**2, 0)
    # Fused with the product, XLA:CPU sums the squares more slowly.
    norm_N, norm_E = jax.lax.optimization_barrier((norm_N, norm_E))
    return jnp.maximum(norm_N[:, None] + norm_E - _matmul(x_ND, 2.0 * w_DE), 0.0)


@jax.custom_jvp
def _sqrt(squared):
    """Square root with gradient 0 at 0, a subgradient of the norm there."""
    return jnp.sqrt(squared)


@_sqrt.defjvp
def _sqrt_jvp(primals, tangents):
    root = jnp.sqrt(primals[0])
    safe = jnp.where(root > 0.0, root, 1.0)
    return root, tangents[0] * jnp.where(root > 0.0, 0.5 / safe, 0.0)
