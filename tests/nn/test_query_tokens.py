"""Time embedding, multi-time attention and imputation against numbers of the authors' code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m4.nn.encoders.modalities import SeriesStack
from m4.nn.encoders.query_tokens import (
    UTDE,
    MultiTimeAttention,
    TimeEmbedding,
    channel_attention,
    frequency_init,
    impute,
)
from tests.nn.test_summary_statistics import one_feature


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


def channel_oracle(scores, values, mask, dy):
    """Value and gradients of a masked softmax per channel, in float64, all pairs at once."""
    scores, values, dy = (np.asarray(x, np.float64) for x in (scores, values, dy))
    mask = np.broadcast_to(mask, values.shape)[:, :, None, None]  # B M H Q L P
    masked = np.where(mask, scores[..., None], -np.inf)
    top = masked.max(-2, keepdims=True)
    power = np.exp(masked - np.where(np.isfinite(top), top, 0.0))
    total = power.sum(-2, keepdims=True)
    weights = np.divide(power, total, out=np.zeros_like(power), where=total > 0)
    values = np.where(mask, values[:, :, None, None], 0.0)
    y = (weights * values).sum(-2, keepdims=True)
    dy = dy.transpose(0, 1, 3, 2, 4)[..., None, :]
    dscores = (weights * dy * (values - y)).sum(-1)
    return y[..., 0, :].transpose(0, 1, 3, 2, 4), dscores, (weights * dy).sum((2, 3))


@pytest.mark.parametrize("channels", [4, 1], ids=["own_masks", "one_mask"])
@pytest.mark.parametrize("spread", [1, 10, 44, 88, 300, 1000, 1e6])
def test_channel_attention_is_exact_at_any_spread(spread, channels):
    rng = np.random.default_rng(0)
    scores = (rng.normal(size=(3, 2, 2, 5, 7)) * spread).astype(np.float32)
    values = rng.normal(size=(3, 2, 7, 4)).astype(np.float32)
    dy = rng.normal(size=(3, 2, 5, 2, 4)).astype(np.float32)
    mask = rng.random((3, 2, 7, channels)) < 0.4
    mask[0, 0] = False

    @jax.jit
    def run(scores, values, dy):
        y, vjp = jax.vjp(lambda s, v: channel_attention(s, v, mask, same), scores, values)
        return y, *vjp(dy)

    expected = channel_oracle(scores, values, mask, dy)
    for found, want in zip(run(scores, values, dy), expected, strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("gap", [1, 44, 63, 64, 65, 88, 104, 1000])
def test_channels_that_were_seen_at_different_times_do_not_meet(gap):
    # Each channel has one observation: its mean is that, and no score moves it.
    scores = jnp.array([0.0, -gap]).reshape(1, 1, 1, 1, 2)
    mask = np.array([[False, True], [True, False]])[None, None]
    weight = jnp.array([1.0, 2.0])

    def total(scores):
        y = channel_attention(scores, jnp.ones((1, 1, 2, 2)), mask, same)
        return (y * weight).sum(), y

    (_, y), grad = jax.value_and_grad(total, has_aux=True)(scores)
    np.testing.assert_array_equal(y.ravel(), [1.0, 1.0])
    np.testing.assert_array_equal(grad.ravel(), [0.0, 0.0])


def test_channel_attention_drops_from_the_numerator():
    rng = np.random.default_rng(0)
    scores = (rng.normal(size=(1, 1, 1, 2, 5)) * 100).astype(np.float32)
    values, keep = rng.normal(size=(1, 1, 5, 3)).astype(np.float32), np.array([0, 2, 2, 0, 2.0])
    mask = np.ones((1, 1, 5, 3), bool)
    dropped = channel_attention(scores, values, mask, lambda x: x * keep)
    weights = np.asarray(jax.nn.softmax(scores, -1)) * keep
    expected = np.einsum("bmhql,bmlp->bmqhp", weights, values)
    np.testing.assert_allclose(dropped, expected, rtol=1e-5, atol=1e-6)


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


def test_imputation_carries_the_last_observation_forward():
    # Same case by the paper's rule: hour 1 keeps 2 and 6, hours 2 to 4 carry on.
    series = stack(GOLDEN_X, GOLDEN_M, GOLDEN_T, np.ones(4, bool), bins=5)
    value, flag = impute(series, 5)
    np.testing.assert_array_equal(value[0, 0], [[1, 5], [2, 6], [2, 6], [3, 6], [3, 6]])
    np.testing.assert_array_equal(flag[0, 0], [[1, 1], [1, 1], [0, 0], [1, 0], [0, 0]])


def test_imputation_skips_masked_rows_and_starts_at_the_mean():
    values, mask = np.array([[9.0], [4.0], [np.nan], [9.0]]), [False, True, False, False]
    series = stack(values, np.ones((4, 1), bool), np.array([0.4, 2, 2.4, 3.6]), mask, bins=4)
    value, flag = impute(series, 4)
    np.testing.assert_array_equal(value[0, 0, :, 0], [0, 0, 4, 4])
    np.testing.assert_array_equal(flag[0, 0, :, 0], [0, 0, 1, 0])


def test_imputation_puts_late_rows_in_the_last_bin():
    # Windows longer than the grid: t = 1.3 windows counts in the last bin, not nowhere.
    series = stack([[5.0]], np.ones((1, 1), bool), np.array([3.9]), np.ones(1, bool), bins=3)
    value, flag = impute(series, 3)
    np.testing.assert_array_equal(value[0, 0, :, 0], [0, 0, 5])
    np.testing.assert_array_equal(flag[0, 0, :, 0], [0, 0, 1])


def test_heads_must_divide_the_time_embedding():
    module = MultiTimeAttention(features=3, num_heads=3)
    x = jnp.ones((1, 1, 2, 4))
    with pytest.raises(ValueError, match="3 heads cannot split a time embedding of 4"):
        module.init(jax.random.key(0), x[0, 0], x, x, x > 0, train=False)


@pytest.mark.parametrize("level", ["batch", "batch_seq", "batch_seq_feature"])
def test_utde_gate_mixes_both_encodings(level):
    # With the gate's output kernel 0 and its bias b, g = sigmoid(b) everywhere.
    rng = np.random.default_rng(0)
    series = one_feature(rng.normal(size=4), [0.5, 2, 4, 9])
    query, key = rng.normal(size=(3, 4)), rng.normal(size=(1, 1, 4, 4))
    module = UTDE(features=6, num_heads=2, num_stacks=1, level=level)
    params = jax.jit(lambda: module.init(jax.random.key(0), series, query, key, train=False))()
    params = params["params"]
    assert params["gate_out"]["kernel"].shape == (1, 6, 6 if level == "batch_seq_feature" else 1)
    run = jax.jit(lambda p: module.apply({"params": p}, series, query, key, train=False))

    def with_bias(bias):
        gate = {
            "kernel": jnp.zeros_like(params["gate_out"]["kernel"]),
            "bias": jnp.full_like(params["gate_out"]["bias"], bias),
        }
        return run({**params, "gate_out": gate})

    irregular, regular, half = with_bias(50.0), with_bias(-50.0), with_bias(0.0)
    assert np.abs(irregular - regular).max() > 1e-3
    np.testing.assert_allclose(half, (irregular + regular) / 2, atol=1e-6)


def test_modalities_of_a_stack_do_not_share_parameters_or_data():
    rng = np.random.default_rng(1)
    two = SeriesStack(
        values=rng.normal(size=(1, 2, 3, 2)).astype(np.float32),
        observed=np.ones((1, 2, 3, 2), bool),
        times=rng.uniform(size=(1, 2, 3)).astype(np.float32),
        mask=np.ones((1, 2, 3), bool),
        present=np.ones((1, 2), bool),
    )
    query, key = jnp.ones((3, 4)), jnp.asarray(rng.normal(size=(1, 2, 3, 4)))
    module = UTDE(features=4, num_heads=1, num_stacks=2)
    params = jax.jit(lambda: module.init(jax.random.key(0), two, query, key, train=False))()

    def first(params, series, key):
        alone = UTDE(features=4, num_heads=1, num_stacks=1)
        return alone.apply(
            jax.tree.map(lambda x: x[:1], params),
            jax.tree.map(lambda x: x[:, :1], series),
            query,
            key[:, :1],
            train=False,
        )

    both = module.apply(params, two, query, key, train=False)
    np.testing.assert_allclose(both[:, :1], first(params, two, key), atol=1e-6)
