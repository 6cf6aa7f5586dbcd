"""Dense parts: the piecewise-linear encoding by hand, affine maps against einsums."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m4.nn import layers
from m4.nn.layers import HAT_EDGES, StackedDense, hats


def test_hats_by_hand():
    # 0 lies above the segments that end at -1.38, -0.67 and -0.21 (share 1), in the middle of
    # (-0.21, 0.21) (share 1/2) and below the others (share 0); a half is taken off each.
    # 1.38 is above all; -1.025 is half way between -1.38 and -0.67.
    x_BN = jnp.array([[0.0, 1.38], [-1.025, -9.0]])
    zero = [0.5, 0.5, 0.5, 0.0, -0.5, -0.5]
    half = [0.5, 0.0, -0.5, -0.5, -0.5, -0.5]
    expected = [[0.0, 1.38, *zero, *[0.5] * 6], [-1.025, -9.0, *half, *[-0.5] * 6]]
    np.testing.assert_allclose(hats(x_BN), expected, atol=1e-6)


def test_hats_cut_the_normal_into_equal_shares():
    inner = jax.scipy.stats.norm.cdf(jnp.array(HAT_EDGES[1:]))
    np.testing.assert_allclose(inner, (np.arange(6) + 0.5) / 6, atol=0.002)


def test_heads_that_cannot_split_the_width_are_refused():
    x_BMTD, mask_BMT = jnp.ones((2, 1, 3, 16)), jnp.ones((2, 1, 3), bool)
    with pytest.raises(ValueError, match="5 heads cannot split a width of 16"):
        layers.SelfAttention(5).init(jax.random.key(0), x_BMTD, mask_BMT, train=False)


@pytest.mark.parametrize(("stacks", "formula"), [(1, "...i,io->...o"), (3, "bmti,mio->bmto")])
@pytest.mark.parametrize("width", [2, 7])  # narrower and wider than the input
def test_affine_maps_and_gradients_are_those_of_an_einsum(stacks, formula, width, monkeypatch):
    monkeypatch.setattr(layers, "LARGE", 0)  # the order of operands of large inputs
    keys = jax.random.split(jax.random.key(0), 3)
    x_BMTi = jax.random.normal(keys[0], (2, 3, 5, 4))
    kernel = jax.random.normal(keys[1], (stacks, 4, width))
    dy_BMTo = jax.random.normal(keys[2], (2, 3, 5, width))
    dense = StackedDense(width, stacks, bias_init=None)

    def expected(x, kernel):
        return jnp.einsum(formula, x, kernel[0] if stacks == 1 else kernel)

    found = lambda x, kernel: dense.apply({"params": {"kernel": kernel}}, x)  # noqa: E731
    values, vjp = jax.vjp(found, x_BMTi, kernel)
    expected_values, expected_vjp = jax.vjp(expected, x_BMTi, kernel)
    chex.assert_trees_all_close(values, expected_values, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(vjp(dy_BMTo), expected_vjp(dy_BMTo), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_gradients_have_the_dtypes_of_what_they_are_of(dtypes):
    dense = StackedDense(3, bias_init=None)
    x, kernel = (
        jnp.ones(shape, t) for shape, t in zip([(2, 1, 4), (1, 4, 3)], dtypes, strict=True)
    )
    run = lambda x, kernel: dense.apply({"params": {"kernel": kernel}}, x).sum()  # noqa: E731
    assert [g.dtype for g in jax.grad(run, (0, 1))(x, kernel)] == list(dtypes)
