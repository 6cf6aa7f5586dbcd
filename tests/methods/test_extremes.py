"""Kernels of the methods with exponentials, logarithms and quotients, at scores from 1 to 1,000.

Value and gradient in float32 must be finite and those of the plain formula in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m4.methods.flexcare.covariance import covariance_of_all
from m4.methods.fusemoe.released import FLOOR, lifted_softmax, log_mixture
from m4.methods.m4oe import information, objective
from m4.nn import segmentation
from m4.types import Target
from tests.moe.test_extremes import compare, log_softmax, normal, rounding

SIZES = [1, 30, 1000]
B, T, E, P = 2, 4, 3, 2
MASK, MODALITY = np.ones((B, T), bool), np.array([0, 0, 1, 1])


def log_joint(x):
    return log_softmax(x.reshape(B, -1)).reshape(x.shape)


def lse(x, dims):
    return jax.nn.logsumexp(x, dims, keepdims=True)


def plain_information(log_p, a, b):
    """Sum of p log(p t / (p_a p_b)): p_a is the sum over dimension a, t that over both."""
    ratio = log_p + lse(log_p, (a, b)) - lse(log_p, a) - lse(log_p, b)
    return jnp.sum(jnp.exp(log_p) * ratio, tuple(range(1, log_p.ndim)))


@pytest.mark.parametrize("size", SIZES)
def test_information(size):
    def plain_released(x):
        return plain_information(lse(log_joint(x), 2)[:, :, 0], 1, 2)

    def plain_paper(x):
        log_p = lse(log_joint(x).reshape(B, 2, 2, E, P), 2)[:, :, 0]
        return plain_information(log_p, 1, 2)

    def paper(x):
        return information.conditional_information(information.log_joint(x, MASK, MODALITY, 2))

    logits = normal(B, T, E, P) * size
    released = lambda x: information.released_information(x, MASK)  # noqa: E731
    compare(released, plain_released, logits, tolerance=5 * rounding(size))
    compare(paper, plain_paper, logits, tolerance=5 * rounding(size))


def test_information_of_near_independence_does_not_cancel():
    """A millionth of a nat is left of terms that are a hundred thousand times larger."""
    logits = normal(B, T, E, P) * np.float32(3e-3)
    with jax.enable_x64(True):
        p = np.exp(np.asarray(log_joint(jnp.asarray(logits, jnp.float64)))).sum(2)
    outer = p.sum(1, keepdims=True) * p.sum(2, keepdims=True)
    want = np.sum(p * np.log(p / outer), (1, 2))
    assert (want < 1e-5).all()
    np.testing.assert_allclose(information.released_information(logits, MASK), want, rtol=1e-3)


@pytest.mark.parametrize("size", SIZES)
def test_focal_loss(size):
    label, weight, rows = np.array([0, 2, 1]), jnp.float32([0.5, 1.0, 2.0]), np.arange(3)

    def plain(x):
        log = log_softmax(x)[rows, label]
        return -((1 - jax.lax.stop_gradient(jnp.exp(log))) ** 2) * weight[label] * log

    def kernel(x):
        return objective.focal(x, Target(label, np.ones(3, np.float32)), weight, 2.0)[0]

    compare(kernel, plain, normal(3, 3) * size, tolerance=rounding(size))


@pytest.mark.parametrize("size", SIZES)
def test_maps(size):
    target = (normal(2, 3, 3, 1, seed=1) > 0).astype(np.float32)

    def plain(x):
        p, flat = 0.5 * (1 + jnp.tanh(x / 2)), (1, 2, 3)
        cross = jnp.mean(jnp.logaddexp(0.0, x) - x * target, flat)
        both = 2 * jnp.sum(p * target, flat) + 1
        return cross + 1 - both / (jnp.sum(p, flat) + target.sum(flat) + 1)

    def kernel(x):
        return segmentation.loss(x, target)

    compare(kernel, plain, normal(2, 3, 3, 1) * np.float32(size), tolerance=rounding(size))


@pytest.mark.parametrize("size", SIZES)
def test_covariance(size):
    def plain(z):
        z = z - z.mean(-1, keepdims=True)
        c = jnp.einsum("bkcd,bked->bkce", z, z) / 4
        return jnp.sum(jnp.where(np.eye(3, dtype=bool), 0.0, c**2)) / 2 / 4

    compare(
        lambda z: covariance_of_all(z, np.ones(2, bool)), plain, normal(2, 1, 3, 5) * size
    )  # fmt: skip


@pytest.mark.parametrize("size", [1, 30, 80])
def test_log_of_a_mixture_of_softmax(size):
    """FuseMoE's experts as released, as far below 1 as float32 goes in PyTorch."""
    logits = normal(B, 5) * size
    logits = np.maximum(logits, logits.max(-1, keepdims=True) - 100)

    def plain(x):
        return log_softmax(x)

    compare(lambda x: log_mixture(lifted_softmax(x)), plain, logits, tolerance=rounding(size))


def test_what_float32_rounds_to_0_is_the_floor_with_no_gradient():
    logits = np.float32([[0.0, -1000.0], [1000.0, 0.0]])
    y, vjp = jax.vjp(lambda x: log_mixture(lifted_softmax(x)), logits)
    np.testing.assert_allclose(y, [[0.0, np.log(FLOOR)]] * 2, rtol=1e-6)
    assert np.isfinite(vjp(jnp.ones_like(y))[0]).all()
