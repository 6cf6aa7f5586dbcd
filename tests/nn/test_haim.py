"""HAIM's statistics: by hand, against NumPy and SciPy on the compressed signal, and its quirk."""

import jax
import numpy as np
import pytest
from scipy.signal import find_peaks

from m4.methods.m3h import haim
from m4.nn.encoders.modalities import SeriesStack, Vectors
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from tests import properties


def stack(values, observed):
    values = np.asarray(values, np.float32)
    mask = np.ones(values.shape[:3], bool)
    times = np.zeros(values.shape[:3], np.float32)
    present = np.ones(values.shape[:2], bool)
    return SeriesStack(np.where(observed, values, 0), np.asarray(observed), times, mask, present)


def by_numpy(x):
    """The eleven statistics of one signal without holes."""
    d = np.diff(x)
    if not len(d):
        d = np.zeros(1)
    slope = np.polyfit(np.arange(len(x)), x, 1)[0] if len(x) > 1 else 0.0
    return [
        x.max(), x.min(), x.mean(), x.var(), d.mean(), np.abs(d).mean(), np.abs(d).max(),
        np.abs(d).sum(), x[-1] - x[0], len(find_peaks(x)[0]), slope,
    ]  # fmt: skip


def test_statistics_by_hand():
    # Signal 1, 3, 2 (one hole). Differences 2, -1. Mean 2, variance 2/3, one peak, slope 1/2.
    x, seen = [[[[1], [9], [3], [2]]]], [[[[True], [False], [True], [True]]]]
    found = haim.statistics(stack(x, seen), zero_row=False)[0, 0, 0]
    expected = [3, 1, 2, 2 / 3, 0.5, 1.5, 2, 3, 1, 1, 0.5]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_released_statistics_with_an_appended_zero():
    # 1, 3, 2, 0: minimum 0, last - first = -first, differences 2, -1, -2, slope -0.4.
    x, seen = [[[[1], [9], [3], [2]]]], [[[[True], [False], [True], [True]]]]
    found = haim.statistics(stack(x, seen), zero_row=True)[0, 0, 0]
    expected = [3, 0, 1.5, 1.25, -1 / 3, 5 / 3, 2, 5, -1, 1, -0.4]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("zero_row", [False, True])
def test_statistics_agree_with_numpy_and_scipy(zero_row):
    rng = np.random.default_rng(0)
    values = rng.integers(-3, 4, (5, 1, 12, 4)).astype(np.float32)  # small integers: plateaus
    observed = rng.random(values.shape) < 0.7
    observed[0, :, :, 0] = False
    observed[1, :, :, 0] = np.arange(12) == 4
    found = haim.statistics(stack(values, observed), zero_row=zero_row)
    for b, f in np.ndindex(5, 4):
        signal = values[b, 0, :, f][observed[b, 0, :, f]].astype(np.float64)
        if not len(signal):
            assert not np.any(found[b, 0, f])
            continue
        signal = np.append(signal, 0.0) if zero_row else signal
        np.testing.assert_allclose(found[b, 0, f], by_numpy(signal), rtol=1e-4, atol=1e-5)


def test_sizes_of_the_published_features():
    # 9 chart signals, 22 laboratory values and 10 procedures; 6 demographics, 3 notes, 4 images.
    series = (9 + 22 + 10) * len(haim.STATISTICS)
    assert [n * len(haim.STATISTICS) for n in (9, 22, 10)] == [99, 242, 110]
    assert 6 + series + 3 * 768 + 2 * (1024 + 18) == 4845


def test_embeddings_are_weighted_by_hour_as_released():
    # Hours 0, 1, 3 of values 8, 2, 6: (2 + 18) / 4; the one at hour 0 does not count.
    values = np.array([[[8.0], [2.0], [6.0]], [[8.0], [0.0], [0.0]]], np.float32)
    mask = np.array([[True, True, True], [True, False, False]])
    times = np.array([[0.0, 1.0, 3.0], [0.0, 0.0, 0.0]], np.float32) / 48
    x = Vectors(values, mask, times)
    np.testing.assert_allclose(haim.mean(x, weight="hour"), [[5.0], [0.0]], rtol=1e-6)
    np.testing.assert_allclose(haim.mean(x, weight="equal"), [[16 / 3], [8.0]], rtol=1e-6)


def test_images_are_weighted_by_the_time_since_the_first_as_released():
    # Hours 10, 11, 13 of 8, 2, 6: weights 0, 1, 3. A single image counts for nothing, nor do none.
    values = np.array([[[8.0], [2.0], [6.0]], [[8.0], [0.0], [0.0]], [[0.0], [0.0], [0.0]]])
    mask = np.array([[True, True, True], [True, False, False], [False] * 3])
    times = np.array([[10.0, 11.0, 13.0], [9.0, 0.0, 0.0], [0.0] * 3], np.float32) / 48
    x = Vectors(values.astype(np.float32), mask, times)
    found = haim.mean(x, weight="since_first")
    np.testing.assert_allclose(found, [[5.0], [0.0], [0.0]], rtol=1e-5)


def test_only_notes_are_weighted_by_hour():
    spec = DataSpec(
        (ModalitySpec("notes", "vectors", (2, 3)), ModalitySpec("cxr", "vectors", (2, 3))),
        (TaskSpec("death", "binary"),),
    )
    batch = properties.random_batch(spec, keep=1.0)
    encoder = haim.HaimVectors(spec, 4, by_hour=True)
    params = jax.jit(lambda: encoder.init(jax.random.key(0), batch, train=False))()
    run = jax.jit(lambda b: encoder.apply(params, b, train=False))
    both = {n: s.replace(times=s.times + s.mask * 5.0) for n, s in batch.inputs.items()}
    moved = np.abs(run(batch.replace(inputs=both)) - run(batch)).max((0, 2))
    assert moved[0] > 1e-3 and moved[1] < 1e-5  # later by 5 hours: notes weigh otherwise
