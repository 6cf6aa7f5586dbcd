"""Analyses of modalities and tasks on cases with known answers."""

import jax.numpy as jnp
import numpy as np
import pytest

from m4.eval import interplay


def joint(function):
    """P(x, z, y) of two fair bits and y = function(x, z)."""
    p = np.zeros((2, 2, 2))
    for x, z in np.ndindex(2, 2):
        p[x, z, function(x, z)] += 0.25
    return p


def test_xor_is_synergy():
    found = interplay.decompose(joint(lambda x, z: x ^ z))
    np.testing.assert_allclose(
        [found.redundant, *found.unique, found.synergy], [0, 0, 0, 1], atol=1e-3
    )


def test_and_shares_and_completes():
    found = interplay.decompose(joint(lambda x, z: x & z))
    expected = [0.311, 0, 0, 0.5]
    np.testing.assert_allclose([found.redundant, *found.unique, found.synergy], expected, atol=2e-3)


def test_copies_are_redundant_and_one_feature_is_unique():
    p = np.zeros((2, 2, 2))
    p[0, 0, 0] = p[1, 1, 1] = 0.5
    copied = interplay.decompose(p)
    np.testing.assert_allclose(copied.redundant, 1.0, atol=1e-3)
    first = interplay.decompose(joint(lambda x, z: x))
    np.testing.assert_allclose(first.unique, [1.0, 0.0], atol=1e-3)
    np.testing.assert_allclose([first.redundant, first.synergy], 0.0, atol=1e-3)


def test_many_tables_at_once_equal_one_at_a_time():
    tables = np.random.default_rng(0).random((3, 2, 3, 2))
    together = interplay.decompose(tables)
    for b, table in enumerate(tables):
        alone = interplay.decompose(table)
        np.testing.assert_allclose(together.synergy[b], alone.synergy, atol=1e-12)
        np.testing.assert_allclose([u[b] for u in together.unique], alone.unique, atol=1e-12)


def test_bits_of_noise_are_none_and_too_few_rows_are_refused():
    rng, parts, ps = np.random.default_rng(0), [], []
    for _ in range(20):
        x, z, y = rng.integers(0, 3, (3, 1500))  # 27 cells: 1,350 rows are needed
        found = interplay.partial_information(x, z, y, np.arange(1500), draws=39)
        parts.append([found["synergy"], *found["unique"], found["redundant"]])
        ps.append(found["p"])
    assert found["null"]["synergy"] > 0.003  # what a table of 27 cells shows by chance
    np.testing.assert_allclose(np.mean(parts, axis=0), 0, atol=2e-3)
    assert sum(p <= 0.1 for p in ps) <= 6  # binomial(20, 0.1): at most 6 with chance 0.998
    few = slice(0, 1349)
    assert interplay.partial_information(x[few], z[few], y[few], np.arange(1349)) is None


def test_labels_of_a_patient_move_together():
    rng, low = np.random.default_rng(1), 0
    for _ in range(30):  # features and labels are the same in all four rows of a patient
        x, z, y = np.repeat(rng.integers(0, 2, (3, 150)), 4, axis=1)
        found = interplay.partial_information(x, z, y, np.repeat(np.arange(150), 4), draws=39)
        low += found["p"] <= 0.05
    assert low <= 5  # binomial(30, 0.05): at most 5 with chance 0.997


def test_cells_that_underflow_count_as_empty():
    table = np.array([[0.5, 0.0], [1e-320, 0.5]])
    assert interplay.bits(table) == pytest.approx(1.0)
    tiny = np.array([[1.0, 0.0], [0.0, 1e-200]])  # its expected count is 1e-400, which is 0
    assert interplay.bits(tiny) == pytest.approx(0.0)


def test_utilisation_by_hand():
    share = np.array([[[1.0, 0.5], [0.0, 0.5]], [[1.0, 0.5], [0.0, 0.5]], [[0.0, 9.0], [1.0, 9.0]]])
    mean, even = interplay.utilisation(share, np.array([1.0, 1.0, 0.0]))
    np.testing.assert_allclose(mean, [[1.0, 0.5], [0.0, 0.5]])
    np.testing.assert_allclose(even, [0.0, 1.0])


def test_a_probe_finds_what_the_features_tell():
    rng = np.random.default_rng(0)
    y = np.arange(80) % 2
    good = np.stack([y + 0.01 * rng.normal(size=80), rng.normal(size=80)], 1)
    useless = np.zeros((80, 2))
    found = [interplay.probe(x, y).score(x, y) for x in (good, useless)]
    np.testing.assert_allclose(found, [1.0, 0.5], atol=1e-6)


def test_gradient_conflict_by_hand():
    def losses(w):
        return {"a": w[0] ** 2, "b": -3.0 * w[0], "c": w[1], "none": 0.0 * w[0]}

    found = interplay.gradient_conflict(losses, jnp.array([1.0, 2.0]))
    assert found[("a", "b")] == pytest.approx(-1.0)
    assert found[("a", "c")] == pytest.approx(0.0) == found[("a", "none")]
    assert len(found) == 6
