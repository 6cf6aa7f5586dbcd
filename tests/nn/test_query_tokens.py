"""Time embedding, multi-time attention and imputation against numbers of the authors' code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m4.nn.encoders.series import SeriesStack, impute, impute_released
from m4.nn.time import (
    MultiTimeAttention,
    TimeEmbedding,
    carry_forward,
    channel_attention,
    frequency_init,
    query_times,
)


def det(shape, phase, scale):
    """The deterministic filler of the reference vectors: scale * sin(1.7 n + phase)."""
    n = np.arange(np.prod(shape))
    return (scale * np.sin(1.7 * n + phase)).reshape(shape).astype(np.float32)


def same(x):
    return x


def test_mtand_golden_vector():
    # Made with the authors' module in evaluation: 2 queries, 3 keys, 2 values and their 2 flags,
    # time width 4, 2 heads, output 3. Torch stores kernels (out, in), hence the transposes.
    def linear(i, fan_in, fan_out):
        return {
            "kernel": det((fan_out, fan_in), 0.3 + i, 0.5).T[None],
            "bias": det((fan_out,), 0.7 + i, 0.1)[None],
        }

    params = {"query": linear(0, 4, 4), "key": linear(1, 4, 4), "out": linear(2, 8, 3)}
    mask = np.array([[1, 0], [1, 1], [0, 1]], np.float32)[None, None]
    values = np.concatenate([det((1, 3, 2), 2.1, 1.0)[:, None] * mask, mask], -1)
    both = np.concatenate([mask, mask], -1) > 0
    query, key = det((1, 2, 4), 0.1, 1.0)[0], det((1, 3, 4), 1.3, 1.0)[:, None]
    expected = [[0.724279, 1.131298, 0.555410], [0.734749, 1.196352, 0.611517]]
    whole = MultiTimeAttention(features=3, num_heads=2)
    y = whole.apply({"params": params}, query, key, values, both, train=False)
    np.testing.assert_allclose(y[0, 0], expected, atol=1e-5)
    short = MultiTimeAttention(features=3, num_heads=2, append_flags=True)
    y = short.apply({"params": params}, query, key, values[..., :2], both[..., :2], train=False)
    np.testing.assert_allclose(y[0, 0], expected, atol=1e-5)


def test_channel_attention_is_a_softmax_per_channel():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2, 1, 2, 3, 5)).astype(np.float32)  # B M H Q L
    values = rng.normal(size=(2, 1, 5, 4)).astype(np.float32)
    mask = rng.random((2, 1, 5, 4)) < 0.5
    mask[0, 0, :, 1] = False
    values = values * mask
    masked = np.where(mask[:, :, None, None], scores[..., None], -10000.0)  # B M H Q L P
    weights = np.exp(masked - masked.max(-2, keepdims=True))
    weights = weights / weights.sum(-2, keepdims=True)
    expected = (weights * values[:, :, None, None]).sum(-2)  # B M H Q P
    expected = expected.transpose(0, 1, 3, 2, 4)
    got = channel_attention(scores, values, mask, same)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert not got[0, 0, :, :, 1].any()  # the channel that nobody observed


def test_channel_attention_ignores_scores_and_values_outside_the_mask():
    scores = np.zeros((1, 1, 1, 1, 3), np.float32)
    values = np.array([1.0, np.nan, 3.0], np.float32).reshape(1, 1, 3, 1)
    mask = np.array([True, False, True]).reshape(1, 1, 3, 1)
    scores[..., 1] = 1e30
    np.testing.assert_allclose(channel_attention(scores, values, mask, same).ravel(), [2.0])


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_channel_attention_hides_no_wrong_score_of_what_was_observed(wrong):
    scores = np.array([0.0, wrong], np.float32).reshape(1, 1, 1, 1, 2)
    values, mask = np.ones((1, 1, 2, 1), np.float32), np.ones((1, 1, 2, 1), bool)
    assert np.isnan(channel_attention(scores, values, mask, same)).all()
    mask[0, 0, 1] = False
    np.testing.assert_array_equal(channel_attention(scores, values, mask, same).ravel(), [1.0])


def test_channel_attention_of_nothing_has_zero_gradient():
    def total(scores):
        mask = jnp.zeros((1, 1, 3, 2), bool)
        return channel_attention(scores, jnp.ones((1, 1, 3, 2)), mask, same).sum()

    value, grad = jax.value_and_grad(total)(jnp.ones((1, 1, 1, 2, 3)))
    assert value == 0.0
    np.testing.assert_array_equal(grad, 0.0)


def test_time_embedding_is_linear_first_then_sines():
    module = TimeEmbedding(3)
    params = {"weight": jnp.array([2.0, 1.0, 3.0]), "bias": jnp.array([0.5, 0.0, 1.0])}
    # t = 0.5: 2 * 0.5 + 0.5 = 1.5; sin(0.5); sin(2.5)
    got = module.apply({"params": params}, jnp.array([0.5]))
    np.testing.assert_allclose(got[0], [1.5, np.sin(0.5), np.sin(2.5)], rtol=1e-6)


def test_query_times_include_both_ends():
    np.testing.assert_allclose(query_times(5), [0, 0.25, 0.5, 0.75, 1.0])


def test_frequencies_span_a_quarter_turn_to_the_grid():
    weight = frequency_init(8)(None, (5,))
    # geometric from pi/2 to 8 pi in 4 terms: each step multiplies by 16 ** (1/3)
    expected = [1.0, *(np.pi / 2 * 16 ** (np.arange(4) / 3))]
    np.testing.assert_allclose(weight, expected, rtol=1e-5)


GOLDEN_X = np.array([[1, 5], [2, 0], [0, 6], [3, 0]], np.float32)
GOLDEN_T = np.array([0.2, 1.1, 1.7, 3.5], np.float32)
GOLDEN_M = np.array([[1, 1], [1, 0], [0, 1], [1, 0]], bool)


def stack(values, observed, times, mask, *, bins):
    """One row, one modality; times given in bins."""
    return SeriesStack(
        values=jnp.asarray(values)[None, None],
        observed=jnp.asarray(observed)[None, None],
        times=jnp.asarray(times)[None, None] / bins,
        mask=jnp.asarray(mask)[None, None],
        present=jnp.ones((1, 1), bool),
    )


def test_released_imputation_golden_case():
    # The observed 2 of hour 1 is lost to the later row of the same hour; hour 2 has no row.
    series = stack(GOLDEN_X, GOLDEN_M, GOLDEN_T, np.ones(4, bool), bins=5)
    got = jnp.concatenate(impute_released(series, num_bins=5), -1)[0, 0]
    expected = [[1, 5, 1, 1], [1, 6, 1, 1], [0, 0, 0, 0], [3, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(got, expected)


def test_released_imputation_of_bin_0_reads_the_last_bin():
    # Rows at hours 4.5 and 0.5 (out of order, as the loop allows): the second row does not
    # observe the feature and takes the last bin's 7. Its flag stays 0.
    series = stack([[7.0], [0.0]], [[True], [False]], [4.5, 0.5], [True, True], bins=5)
    value, flag = impute_released(series, num_bins=5)
    np.testing.assert_array_equal(value[0, 0, :, 0], [7, 0, 0, 0, 7])
    np.testing.assert_array_equal(flag[0, 0, :, 0], [0, 0, 0, 0, 1])


def test_imputation_carries_the_last_observation_forward():
    # Same case by the paper's rule: hour 1 keeps 2 and 6, hours 2 to 4 carry on.
    series = stack(GOLDEN_X, GOLDEN_M, GOLDEN_T, np.ones(4, bool), bins=5)
    value, flag = impute(series, num_bins=5)
    np.testing.assert_array_equal(value[0, 0], [[1, 5], [2, 6], [2, 6], [3, 6], [3, 6]])
    np.testing.assert_array_equal(flag[0, 0], [[1, 1], [1, 1], [0, 0], [1, 0], [0, 0]])


def test_imputation_skips_masked_rows_and_starts_at_the_mean():
    values = jnp.array([[9.0], [4.0], [np.nan], [9.0]])
    observed = jnp.array([[True], [True], [True], [True]])
    times = jnp.array([0.1, 0.5, 0.6, 0.9])
    mask = jnp.array([False, True, False, False])
    value, flag = carry_forward(values, observed, times, mask, num_bins=4)
    np.testing.assert_array_equal(value[:, 0], [0, 0, 4, 4])
    np.testing.assert_array_equal(flag[:, 0], [0, 0, 1, 0])


def test_imputation_puts_late_rows_in_the_last_bin():
    # Windows longer than the grid: t = 1.3 windows counts in the last bin, not nowhere.
    value, flag = carry_forward(
        jnp.array([[5.0]]), jnp.ones((1, 1), bool), jnp.array([1.3]), jnp.ones(1, bool), num_bins=3
    )
    np.testing.assert_array_equal(value[:, 0], [0, 0, 5])
    np.testing.assert_array_equal(flag[:, 0], [0, 0, 1])


def test_heads_must_divide_the_time_embedding():
    module = MultiTimeAttention(features=3, num_heads=3)
    x = jnp.ones((1, 1, 2, 4))
    with pytest.raises(ValueError, match="3 heads cannot split a time embedding of 4"):
        module.init(jax.random.key(0), x[0, 0], x, x, x > 0, train=False)
