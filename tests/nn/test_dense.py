"""Dense parts: the piecewise-linear encoding by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from m4.nn.dense import HAT_EDGES, hats


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
