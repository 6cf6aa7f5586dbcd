import numpy as np
import pytest

from m4.data.normalise import Normaliser, Sampler, fit, limits


def z(values, fitted):
    return Normaliser([fitted])(np.array(values, np.float32)[:, None])[:, 0]


def test_symmetric_feature_is_standardised():
    # quantiles of 0..1000 at 0.1 % and 99.9 % are 1 and 999; both ends are clipped by one unit
    fitted = fit(np.arange(1001.0))
    clipped = np.arange(1001.0).clip(1, 999)
    assert fitted["transform"] == "none"
    assert fitted["mean"] == pytest.approx(500)
    assert fitted["std"] == pytest.approx(clipped.std())
    assert z([500, 999, 5000, -5000], fitted) == pytest.approx(
        np.array([0, 499, 499, -499]) / clipped.std(), rel=1e-5
    )


def test_skewed_non_negative_feature_is_logged():
    values = np.exp(np.random.default_rng(0).normal(3, 1, 5000))
    fitted = fit(values)
    assert fitted["transform"] == "log1p"
    scaled = z(values, fitted)
    assert abs(scaled.mean()) < 1e-5 and abs(scaled.std() - 1) < 1e-5
    assert z([-1.0], fitted) == pytest.approx(z([0.0], fitted))  # not NaN


def test_limits_are_where_clipping_begins():
    skewed = np.exp(np.random.default_rng(0).normal(3, 1, 5000))
    low, high = limits([fit(np.arange(1001.0)), fit(skewed), fit(np.full(9, -4.0))])
    ends = np.quantile(skewed, (0.001, 0.999))
    assert low == pytest.approx(np.array([1, ends[0], -4]), abs=0.2)
    assert high == pytest.approx(np.array([999, ends[1], -4]), rel=2e-4)


def test_skewed_feature_with_a_negative_value_is_not_logged():
    values = np.exp(np.random.default_rng(0).normal(3, 1, 5000))
    assert fit(np.append(values, -0.1))["transform"] == "none"


def test_one_outlier_does_not_decide():
    # Skewness of the raw values is about 70; after winsorising it is 0.
    assert fit(np.append(np.tile(np.arange(100.0), 100), 1e6))["transform"] == "none"


@pytest.mark.parametrize(
    ("train", "given", "expected"),
    [
        ([0.0, 1, 1, 0], [0, 1, 7], [0, 1, 1]),  # indicator: kept, clipped
        ([1.0, 1, 1], [1, 0], [1, 0]),  # always 1, the mechanical ventilation flag
        ([5.0, 5, 5], [5, 5], [1, 1]),  # constant
        ([-5.0, -5], [-5, 3], [-1, -1]),
        ([0.0, 0], [0, 3], [0, 1]),
        ([], [12.0, -3], [0, 0]),  # never seen
    ],
)
def test_special_features(train, given, expected):
    assert z(given, fit(np.array(train))) == pytest.approx(np.array(expected, float))


def test_nan_stays_and_the_argument_is_not_changed():
    values = np.array([[1.0, np.nan], [3.0, 4.0]], np.float32)
    before = values.copy()
    fitted = [fit(np.array([1.0, 2, 3])), fit(np.array([0.0, 4, 9]))]
    scaled = Normaliser(fitted)(values)
    assert np.isnan(scaled).tolist() == [[False, True], [False, False]]
    np.testing.assert_array_equal(values, before)


def test_sampler_is_exact_below_its_limit():
    rows = np.random.default_rng(0).normal(size=(100_000, 2)).astype(np.float32)
    rows[::3, 1] = np.nan
    sampler = Sampler(2)
    for part in np.array_split(rows, 7):
        sampler.add(part)
    first, second = sampler.values()
    np.testing.assert_array_equal(first, rows[:, 0])
    np.testing.assert_array_equal(second, rows[~np.isnan(rows[:, 1]), 1])
    assert sampler.count.tolist() == [100_000, len(second)]


def test_sampler_is_bounded_and_even():
    sampler = Sampler(1, limit=4000)
    for start in range(0, 1_000_000, 10_000):
        sampler.add(np.arange(start, start + 10_000, dtype=np.float32)[:, None])
    (kept,) = sampler.values()
    assert 1500 < len(kept) <= 4000 and sampler.count[0] == 1_000_000
    # uniform over the stream: standard error of the mean is 1e6 / sqrt(12 * 1500) = 7,454
    assert abs(kept.mean() - 500_000) < 5 * 7454
