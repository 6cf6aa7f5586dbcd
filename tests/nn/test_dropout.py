"""Our dropout: rate, scale, gradient, independence of neighbours, calls and devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m4.maths import uniform_bits
from m4.nn.layers import Dropout

SHAPE = (64, 50, 40)  # 128,000 numbers: a share has a standard error of at most 0.0014


def drop(x, seed=0, rate=0.25):
    return Dropout(rate, deterministic=False).apply({}, x, rngs={"dropout": jax.random.key(seed)})


def mask(seed, rate=0.25):
    return np.asarray(drop(jnp.ones(SHAPE), seed, rate)) > 0


def test_kept_values_are_scaled():
    x = np.arange(1, 9, dtype=np.float32).reshape(2, 4)
    y = np.asarray(drop(x))
    np.testing.assert_allclose(y[y > 0], x[y > 0] / 0.75, rtol=1e-6)
    assert drop(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_no_noise_in_evaluation_and_without_a_rate():
    x = np.ones((3, 2), np.float32)
    for module in (Dropout(0.5, deterministic=True), Dropout(0.0, deterministic=False)):
        np.testing.assert_array_equal(module.apply({}, x), x)
    everything = Dropout(1.0, deterministic=False).apply({}, x)
    np.testing.assert_array_equal(everything, 0 * x)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_share_of_every_row_and_column(rate):
    kept = mask(0, rate)
    for dims, count in (((0, 1, 2), 1), ((1, 2), 64), ((0, 2), 50), ((0, 1), 40)):
        error = np.sqrt(rate * (1 - rate) * count / kept.size)
        assert np.abs(kept.mean(dims) - (1 - rate)).max() < 4.5 * error, dims


def test_neighbours_and_calls_are_independent():
    one, two = mask(0), mask(1)
    pairs = [(one, two)] + [(one, np.roll(one, 1, dim)) for dim in range(3)]
    pairs += [(one, np.roll(two, 1, 2)), (one[:32], one[32:])]
    for a, b in pairs:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4.5 / np.sqrt(a.size)


def test_bits_are_uniform():
    bits = np.asarray(uniform_bits(jnp.array([3, 5], jnp.uint32), SHAPE)).ravel()
    assert len(np.unique(bits)) == bits.size  # a bijection of the index
    count = np.bincount(bits >> 24, minlength=256)
    chi = np.square(count - bits.size / 256).sum() / (bits.size / 256)
    assert abs(chi - 255) < 4.5 * np.sqrt(2 * 255)
    for bit in range(32):
        assert abs(((bits >> bit) & 1).mean() - 0.5) < 4.5 * 0.5 / np.sqrt(bits.size)


def test_gradient_has_the_same_mask():
    x = jnp.ones(SHAPE)
    grad = jax.grad(lambda x: drop(x).sum())(x)
    np.testing.assert_array_equal(grad, drop(x))


def test_a_rate_next_to_one_and_dimensions_from_the_end():
    assert drop(jnp.ones(SHAPE), rate=1 - 1e-11).max() >= 0  # known bad: OverflowError
    y = Dropout(0.5, deterministic=False, shared=(-1,)).apply(
        {}, jnp.ones(SHAPE), rngs={"dropout": jax.random.key(0)}
    )
    assert (y == y[..., :1]).all() and len(np.unique(y)) == 2
