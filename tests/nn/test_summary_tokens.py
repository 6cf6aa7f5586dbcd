"""UTDE and the summary statistics of irregular series, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m4.nn.encoders.series import STATISTICS, UTDE, SeriesStack, stack_series, summary_statistics
from m4.types import Stream


def one_feature(values, hours, observed=None):
    """One row, one modality, one feature; a window of 10 hours."""
    values = np.array(values, np.float32)
    observed = np.ones(len(values), bool) if observed is None else np.array(observed)
    stream = Stream(
        values=values[None, :, None],
        mask=np.ones((1, len(values)), bool),
        present=np.ones(1, bool),
        times=np.array([hours], np.float32),
        observed=observed[None, :, None],
    )
    return stack_series([stream], hours=10.0)


def test_statistics_by_hand():
    # Observed 1, 5, 3 at hours 0, 2, 4 of 10; the 9 at hour 6 is not observed.
    got = summary_statistics(one_feature([1, 5, 3, 9], [0, 2, 4, 6], [1, 1, 1, 0]))[0, 0, 0]
    want = {
        "last": 3.0,
        "first": 1.0,
        "mean": 3.0,
        "min": 1.0,
        "max": 5.0,
        "std": np.sqrt((4 + 4 + 0) / 3),
        # offsets -.2, 0, .2; centred -2, 2, 0: covariance .4 / 3, variance .08 / 3
        "slope": (0.4 / 3) / (0.08 / 3 + 0.01),
        "count": np.log(4) / 3,
        "since_last": 0.6,
        "observed": 1.0,
    }
    np.testing.assert_allclose(got, [want[name] for name in STATISTICS], rtol=1e-5)


def test_statistics_of_a_feature_never_observed():
    got = summary_statistics(one_feature([np.nan, np.inf], [0, 2], [0, 0]))[0, 0, 0]
    want = dict.fromkeys(STATISTICS, 0.0) | {"since_last": 1.0}
    np.testing.assert_array_equal(got, [want[name] for name in STATISTICS])


def test_stacking_pads_length_and_width_and_cleans():
    def stream(steps, width, present):
        return Stream(
            values=np.full((1, steps, width), np.nan, np.float32),
            mask=np.ones((1, steps), bool),
            present=np.array([present]),
            times=np.full((1, steps), 24.0, np.float32),
            observed=np.zeros((1, steps, width), bool),
        )

    stack = stack_series([stream(2, 3, True), stream(4, 1, False)], hours=48.0)
    assert stack.values.shape == (1, 2, 4, 3)
    assert not stack.values.any() and not stack.observed.any()
    np.testing.assert_array_equal(stack.mask[0], [[1, 1, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(stack.times[0], [[0.5, 0.5, 0, 0], [0, 0, 0, 0]])


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


def test_unknown_level_is_refused():
    series = one_feature([1.0], [0.0])
    with pytest.raises(ValueError, match="level 'row' is not one of"):
        UTDE(6, 2, 1, level="row").init(
            jax.random.key(0), series, jnp.ones((2, 4)), jnp.ones((1, 1, 1, 4)), train=False
        )


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
