import numpy as np
import pytest

from m4.eval import specialisation
from m4.specs import TaskSpec


def test_balance_by_hand():
    out = specialisation.balance(np.array([4.0, 2, 2, 0]))
    # mean 2, variance (4 + 0 + 0 + 4) / 4 = 2
    assert out["cv"] == pytest.approx(np.sqrt(2) / 2)
    assert (out["max_vio"], out["min_vio"]) == (1.0, 1.0)
    # |differences| over ordered pairs: 2 * (2 + 2 + 4 + 0 + 2 + 2) = 24; / (2 * 16 * 2)
    assert out["gini"] == pytest.approx(24 / 64)
    assert out["dead"] == 0.25
    h = 0.5 * np.log(2) + 2 * 0.25 * np.log(4)
    assert out["effective"] == pytest.approx(np.exp(h))
    assert out["entropy"] == pytest.approx(h / np.log(4))


def test_balance_at_the_ends():
    even = specialisation.balance(np.full(8, 3.0))
    assert even["effective"] == pytest.approx(8) and even["entropy"] == pytest.approx(1)
    assert all(even[name] == pytest.approx(0) for name in ("cv", "max_vio", "gini", "dead"))
    collapsed = specialisation.balance(np.eye(8)[0])
    assert collapsed["effective"] == pytest.approx(1) and collapsed["dead"] == 7 / 8
    assert collapsed["gini"] == pytest.approx(7 / 8) and collapsed["max_vio"] == 7
    assert all(np.isnan(value) for value in specialisation.balance(np.zeros(4)).values())


def test_mutual_information_by_hand():
    # each modality has its own expert: I = H = ln 2
    plain, corrected = specialisation.mutual_information(np.diag([50.0, 50]))
    assert plain == pytest.approx(np.log(2))
    # cells: 2 groups + 2 experts - 2 joint - 1 = 1, over 2 * 100
    assert corrected == pytest.approx(np.log(2) + 1 / 200)
    plain, corrected = specialisation.mutual_information(np.full((2, 2), 25.0))
    # independent: 2 + 2 - 4 - 1 = -1
    assert plain == pytest.approx(0) and corrected == pytest.approx(-1 / 200)


def test_corrections_remove_the_bias_of_independent_routing():
    # plug-in bias is about (E - 1)(G - 1) / 2N = 63 * 3 / (2 * 2000) = .047 nat
    rng, plain, corrected = np.random.default_rng(0), [], []
    for _ in range(50):
        counts = rng.multinomial(2000, np.full(256, 1 / 256)).reshape(4, 64)
        a, b = specialisation.mutual_information(counts)
        plain.append(a)
        corrected.append(b)
    assert np.mean(plain) == pytest.approx(63 * 3 / 4000, rel=0.1)
    assert abs(np.mean(corrected)) < 0.1 * np.mean(plain)


def by_row(rng, rows=200, experts=8, specialised=False):
    """Bursts of twelve tokens that share an expert: tokens of a row are not independent."""
    out = np.zeros((rows, 3, experts), np.float32)
    for r in range(rows):
        for m in range(3):
            out[r, m, m if specialised else rng.integers(experts)] = 12
    present = rng.random((rows, 3)) < 0.8
    return out * present[:, :, None], present


def test_permutation_null_holds_its_level_for_dependent_tokens():
    rng, ps, excess = np.random.default_rng(1), [], []
    for _ in range(40):
        counts, present = by_row(rng, rows=60)
        null = specialisation.shuffled_modalities(counts, present, rng, 99)
        out = specialisation.information(counts.sum(0, dtype=float), null)
        ps.append(out["p"])
        excess.append((out["excess"], out["plugin"]))
    # uniform p: 40 draws below .1 are binomial(40, .1), mean 4, at most 10 with p = .998
    assert sum(p <= 0.1 for p in ps) <= 10
    mean_excess, mean_plugin = np.mean(excess, axis=0)
    assert abs(mean_excess) < 0.1 * mean_plugin


def test_specialised_experts_are_found():
    rng = np.random.default_rng(2)
    counts, present = by_row(rng, specialised=True)
    null = specialisation.shuffled_modalities(counts, present, rng, 99)
    out = specialisation.information(counts.sum(0, dtype=float), null)
    assert out["p"] == 0.01 and out["share"] > 0.8


def test_shuffling_moves_only_present_modalities_within_a_row():
    counts = np.array([[[5.0], [7.0], [0.0]]])
    present = np.array([[True, True, False]])
    seen = {
        tuple(c[:, 0])
        for c in specialisation.shuffled_modalities(counts, present, np.random.default_rng(0), 40)
    }
    assert seen == {(5.0, 7.0, 0.0), (7.0, 5.0, 0.0)}


def test_shuffled_rows_keep_the_margins():
    rng = np.random.default_rng(0)
    rows, group = rng.random((30, 4)), np.arange(30) % 3
    for counts in specialisation.shuffled_rows(rows, group, rng, 5):
        np.testing.assert_allclose(counts.sum(0), rows.sum(0))


def test_outcome_groups():
    mask = np.array([[True], [True], [True], [False]])
    y = np.array([[0.0], [1], [1], [0]])
    binary = specialisation.outcome_groups(TaskSpec("ihm", "binary", labels=("no", "yes")), y, mask)
    assert [(name, rows.tolist()) for name, rows in binary] == [
        ("ihm: no", [True, False, False, False]),
        ("ihm: yes", [False, True, True, False]),
    ]
    los = specialisation.outcome_groups(TaskSpec("los", "regression"), y * 3, mask)
    assert [name for name, _ in los] == ["los ≤ 3", "los > 3"]


def test_describe_layers(fabricate):
    spec, _, predictions = fabricate()
    out = specialisation.describe(predictions, spec)["layer_0"]
    assert out["num_experts"] == 8 and out["rows"] == 400 and out["experts"] == list(range(8))
    for group in out["heat"].values():
        for row in group:
            assert sum(row["share"]) == pytest.approx(1, abs=1e-3)
    assert [row["label"] for row in out["heat"]["modality"]] == list(spec.modality_names)
    assert out["information"]["modality"]["p"] == pytest.approx(1 / 201, abs=1e-6)
    assert out["information"]["ihm"]["p"] > 0.01  # made independent of the outcome
    assert "phe" in out["heat"] and "phe" not in out["information"]  # its groups overlap
    assert out["router_entropy"] == pytest.approx(1.4 / np.log(8), rel=1e-5)


def test_small_groups_are_left_out(fabricate):
    spec, _, predictions = fabricate()
    predictions.label["unit"][:] = np.where(np.arange(400)[:, None] < 5, 2.0, 0.0)
    predictions.label_mask["unit"][:] = True
    heat = specialisation.describe(predictions, spec)["layer_0"]["heat"]
    assert [row["label"] for row in heat["unit"]] == ["unit = 0"]
