"""The search for the largest scores: the same choice as `jax.lax.top_k`, whatever it is shown."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m4.moe import selection


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
    for k in range(1, min(selection.MOST_ROUNDS, num_experts) + 1):
        found_NK = jax.jit(selection._in_two_stages, static_argnames="k")(scores_NE, k=k)
        np.testing.assert_array_equal(found_NK, jax.lax.top_k(scores_NE, k)[1])


def test_ties_across_and_within_blocks_go_to_the_lower_index():
    # 64 experts are 16 blocks of 4. The maximum 2 stands in blocks 1 (expert 6) and 9 (36, 38);
    # of three equal experts the first two win, though block 9 alone holds two of them.
    scores_NE = jnp.zeros((1, 64)).at[0, jnp.array([36, 38, 6])].set(2.0)
    assert selection._in_two_stages(scores_NE, k=2).tolist() == [[6, 36]]
    assert selection._in_two_stages(scores_NE, k=4).tolist() == [[6, 36, 38, 0]]


def test_a_row_of_forbidden_experts_still_names_different_ones():
    scores_NE = jnp.full((1, 64), -jnp.inf).at[0, 63].set(0.0)
    assert selection._in_two_stages(scores_NE, k=3).tolist() == [[63, 0, 1]]


def test_large_k_and_other_types_are_sorted():
    scores_NE = hostile(16, 40)
    for scores, k in ((scores_NE, 9), (scores_NE.astype(jnp.bfloat16), 2)):
        np.testing.assert_array_equal(selection.largest(scores, k), jax.lax.top_k(scores, k)[1])


def test_the_choice_is_the_same_under_vmap_and_has_no_gradient():
    scores_GNE = hostile(32, 96).reshape(4, 8, 96)
    found_GNK = jax.vmap(lambda s: selection.largest(s, 2))(scores_GNE)
    np.testing.assert_array_equal(found_GNK, jax.lax.top_k(scores_GNE, 2)[1])
    gradient = jax.grad(lambda s: selection.largest(s, 2).astype(jnp.float32).sum())(scores_GNE[0])
    assert not np.any(gradient)
