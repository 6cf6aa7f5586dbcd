"""Formulas by hand; the search for the largest scores: as `jax.lax.top_k`, whatever it is shown."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m4 import maths
from m4.evenness import evenness


def hostile(num_tokens, num_experts, seed=0):
    """Rows of continuous scores, ties, mostly -inf, all equal, signed zeros, infinities, NaN."""
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((num_tokens, num_experts)).astype(np.float32)
    scores[1::8] = np.round(scores[1::8])
    scores[2::8] = np.where(rng.random(scores[2::8].shape) < 0.95, -np.inf, scores[2::8])
    scores[3::8] = rng.choice(np.float32([-np.inf, 0.0, 1.0]))
    scores[4::8] = np.where(scores[4::8] > 0, 0.0, -0.0)
    scores[5::8] = np.sign(scores[5::8]) * np.inf
    scores[6::8] = np.where(rng.random(scores[6::8].shape) < 0.1, np.nan, scores[6::8])
    scores[7::8] *= np.finfo(np.float32).tiny  # subnormal
    return jnp.asarray(scores)


# Around the sizes at which the search changes: rows, blocks of 2 to 16, a padded last block.
@pytest.mark.parametrize("num_experts", [1, 2, 5, 16, 17, 33, 64, 100, 256, 272, 1000])
def test_the_search_in_rounds_chooses_what_top_k_chooses(num_experts):
    scores_NE = hostile(64, num_experts)
    for k in range(1, min(maths.MOST_ROUNDS, num_experts) + 1):
        found_NK = jax.jit(maths._in_two_stages, static_argnames="k")(scores_NE, k=k)
        np.testing.assert_array_equal(found_NK, jax.lax.top_k(scores_NE, k)[1])


def test_ties_across_and_within_blocks_go_to_the_lower_index():
    # 64 experts are 16 blocks of 4. The maximum 2 stands in blocks 1 (expert 6) and 9 (36, 38);
    # of three equal experts the first two win, though block 9 alone holds two of them.
    scores_NE = jnp.zeros((1, 64)).at[0, jnp.array([36, 38, 6])].set(2.0)
    assert maths._in_two_stages(scores_NE, k=2).tolist() == [[6, 36]]
    assert maths._in_two_stages(scores_NE, k=4).tolist() == [[6, 36, 38, 0]]


def test_a_row_of_forbidden_experts_still_names_different_ones():
    scores_NE = jnp.full((1, 64), -jnp.inf).at[0, 63].set(0.0)
    assert maths._in_two_stages(scores_NE, k=3).tolist() == [[63, 0, 1]]


def test_large_k_and_other_types_are_sorted():
    scores_NE = hostile(16, 40)
    for scores, k in ((scores_NE, 9), (scores_NE.astype(jnp.bfloat16), 2)):
        np.testing.assert_array_equal(maths.largest(scores, k), jax.lax.top_k(scores, k)[1])


def test_the_choice_is_the_same_under_vmap_and_has_no_gradient():
    scores_GNE = hostile(32, 96).reshape(4, 8, 96)
    found_GNK = jax.vmap(lambda s: maths.largest(s, 2))(scores_GNE)
    np.testing.assert_array_equal(found_GNK, jax.lax.top_k(scores_GNE, 2)[1])
    gradient = jax.grad(lambda s: maths.largest(s, 2).astype(jnp.float32).sum())(scores_GNE[0])
    assert not np.any(gradient)


def test_softmax_knows_what_is_masked():
    """exp(0), exp(log 3) of 4; masked, forbidden and empty rows give 0 and gradient 0."""
    scores = jnp.array([[0.0, np.log(3.0), 7.0], [1.0, -jnp.inf, -jnp.inf], [-jnp.inf] * 3])
    mask = jnp.array([[True, True, False], [True, True, True], [True, True, True]])
    want = [[0.25, 0.75, 0], [1, 0, 0], [0, 0, 0]]
    np.testing.assert_allclose(maths.softmax(scores, mask), want, rtol=1e-6)
    np.testing.assert_allclose(maths.softmax(scores.T, mask.T, axis=0).T, want, rtol=1e-6)
    grad = jax.grad(lambda s: (maths.softmax(s, mask) ** 2).sum())(scores)
    assert np.isfinite(grad).all() and grad[0, 2] == 0 and not grad[2].any()
    assert maths.softmax(jnp.zeros(2, jnp.bfloat16)).dtype == jnp.float32
    assert np.isnan(maths.softmax(jnp.array([jnp.nan, 1.0]))).all()  # must reach the loss


@pytest.mark.parametrize("kind", [np.float64, jnp.float32])
def test_balance_by_hand(kind):
    """Counts 3, 2, 1, 0: mean 1.5, sd sqrt(1.25); Gini = sum (2i - 5) x_i / (4 * 6) = 10 / 24."""
    array = np.array if kind is np.float64 else jnp.array
    found = evenness(array([3.0, 2.0, 1.0, 0.0]))
    shares = np.array([1 / 2, 1 / 3, 1 / 6])
    want = {
        "cv": np.sqrt(1.25) / 1.5,
        "max_vio": 1.0,
        "min_vio": 1.0,
        "gini": 10 / 24,
        "dead": 0.25,
        "effective": np.exp(-np.sum(shares * np.log(shares))),
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(want, rel=1e-5)
    even = {name: round(float(value), 5) for name, value in evenness(array([5.0] * 8)).items()}
    assert even == {"cv": 0, "max_vio": 0, "min_vio": 0, "gini": 0, "dead": 0, "effective": 8}


def test_gelu_and_entropy():
    x = np.linspace(-4, 4, 9, dtype=np.float32)
    np.testing.assert_allclose(maths.gelu(x), jax.nn.gelu(x, approximate=False), atol=1e-6)
    assert maths.entropy(jnp.array([0.5, 0.5, 0.0])) == pytest.approx(np.log(2))
    grad = jax.grad(lambda p: maths.entropy(p))(jnp.array([0.5, 0.5, 0.0]))
    np.testing.assert_allclose(grad, [np.log(2) - 1, np.log(2) - 1, 0], rtol=1e-6)


def test_hashes():
    """Published test values: fmix32(1), and lowbias32 of 1 by hand in Python's integers."""
    assert int(maths.murmur3(jnp.uint32(1))) == 0x514E28B7
    word = 1 * 0x7FEB352D & 0xFFFFFFFF
    word = (word ^ word >> 15) * 0x846CA68B & 0xFFFFFFFF
    assert int(maths.lowbias32(jnp.uint32(1))) == word ^ word >> 16


def test_torch_uniform():
    """Bounds 1 / sqrt(fan-in): 0.1 for a [100, 7] kernel, given or read from its shape."""
    key = jax.random.key(0)
    for init in (maths.torch_uniform(), maths.torch_uniform(100)):
        drawn = np.abs(init(key, (100, 7)))
        assert 0.098 < drawn.max() <= 0.1 and drawn.mean() == pytest.approx(0.05, rel=0.1)
