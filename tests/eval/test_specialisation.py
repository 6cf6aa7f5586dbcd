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
    own = np.diag([50.0, 50])
    assert specialisation.mutual_information(own) == pytest.approx(np.log(2))
    assert specialisation.mutual_information(np.full((2, 2), 25.0)) == pytest.approx(0)
    # given the modality: 100 of 150 in a table that tells, 50 in one that does not
    both = np.stack([own, np.full((2, 2), 12.5)])
    assert specialisation.mutual_information(both) == pytest.approx(np.log(2) * 2 / 3)
    # the expert tells the modality and nothing else, and so does the pattern: 0 given it
    mechanical = np.array([[[10.0, 0], [0, 0]], [[0, 20.0], [0, 30]]])
    assert specialisation.mutual_information(mechanical) == pytest.approx(0, abs=1e-12)
    assert specialisation.mutual_information(mechanical.sum(0)) > 0.1


@pytest.mark.parametrize("experts", [64, 256, 4096])
def test_the_share_is_free_of_the_bias_of_many_experts(experts):
    # 500 rows of 4 modalities; plug-in bias is about 3 (E - 1) / 4000, half a nat of 4096 experts
    rng = np.random.default_rng(0)
    own = np.arange(4) * (experts // 4)
    for chance, low, high in ((0.0, -0.05, 0.05), (0.5, 0.2, 0.5), (1.0, 0.999, 1.0)):
        told = rng.random((500, 4)) < chance
        expert = np.where(told, own + rng.integers(experts // 4, size=(500, 4)), 0)
        expert = np.where(told, expert, rng.integers(experts, size=(500, 4)))
        counts = np.zeros((500, 4, experts), np.float32)
        np.put_along_axis(counts, expert[:, :, None], 1.0, axis=2)
        null = specialisation.shuffled_modalities(counts, np.arange(500), rng, 40)
        out = specialisation.information(counts.sum(0, dtype=float), null)
        assert low <= out["share"] <= high, (chance, out)


def by_row(rng, rows=200, experts=8, specialised=False):
    """Bursts of twelve tokens that share an expert: tokens of a row are not independent."""
    out = np.zeros((rows, 3, experts), np.float32)
    for r in range(rows):
        for m in range(3):
            out[r, m, m if specialised else rng.integers(experts)] = 12
    present = rng.random((rows, 3)) < 0.8
    return out * present[:, :, None]


def test_permutation_null_holds_its_level_for_dependent_tokens():
    rng, ps, excess = np.random.default_rng(1), [], []
    for _ in range(40):
        counts = by_row(rng, rows=60)
        null = specialisation.shuffled_modalities(counts, np.arange(60), rng, 99)
        out = specialisation.information(counts.sum(0, dtype=float), null)
        ps.append(out["p"])
        excess.append((out["excess"], out["plugin"]))
    # uniform p: 40 draws below .1 are binomial(40, .1), mean 4, at most 10 with p = .998
    assert sum(p <= 0.1 for p in ps) <= 10
    mean_excess, mean_plugin = np.mean(excess, axis=0)
    assert abs(mean_excess) < 0.1 * mean_plugin


def test_specialised_experts_are_found():
    rng = np.random.default_rng(2)
    counts = by_row(rng, specialised=True)
    null = specialisation.shuffled_modalities(counts, np.arange(200), rng, 99)
    out = specialisation.information(counts.sum(0, dtype=float), null)
    assert out["p"] == 0.01 and out["share"] > 0.8


def test_shuffling_moves_only_present_modalities_within_a_row():
    counts, rng = np.array([[[5.0], [7.0], [0.0]]]), np.random.default_rng(0)
    seen = {
        tuple(c[:, 0]) for c in specialisation.shuffled_modalities(counts, np.zeros(1), rng, 40)
    }
    assert seen == {(5.0, 7.0, 0.0), (7.0, 5.0, 0.0)}
    # two rows of one patient move together: 5 and 1 never part
    twice, patient = np.concatenate([counts, [[[1.0], [2.0], [0.0]]]]), np.zeros(2)
    seen = {tuple(c[:, 0]) for c in specialisation.shuffled_modalities(twice, patient, rng, 40)}
    assert seen == {(6.0, 9.0, 0.0), (9.0, 6.0, 0.0)}


def test_shuffled_groups_move_between_patients_and_keep_the_margins():
    rng = np.random.default_rng(0)
    rows, group, patient = rng.random((30, 2, 4)), np.arange(30) // 2 % 3, np.arange(30) // 2
    true, *others = specialisation.shuffled_groups(rows, group, patient, rng, 5)
    np.testing.assert_allclose(true[0, 1], rows[group == 1, 0].sum(0))
    assert len(others) == 5
    for counts in others:
        np.testing.assert_allclose(counts.sum(1), rows.sum(0))
        assert not np.allclose(counts, true)


def test_labels_go_to_patients_with_about_as_many_rows_in_whole_and_evenly():
    size_P = np.array([1] * 6 + [4, 4, 6] + [9] * 5)  # two of four and one of six rows: too few
    owner = np.repeat(np.arange(14), size_P)
    exchange, rng = specialisation.Exchange(owner), np.random.default_rng(0)
    assert [len(own) for own in exchange.alike] == [6, 8]
    for _ in range(20):
        rows = exchange.permuted(rng)
        for patient in range(14):
            (giver,) = np.unique(owner[rows[owner == patient]])
            assert (giver < 6) == (patient < 6)
            many, times = np.unique(rows[owner == patient], return_counts=True)
            assert len(many) == min(size_P[patient], size_P[giver])
            assert (np.diff(rows[owner == patient]) >= 0).all() and np.ptp(times) <= 1


def test_every_modality_of_a_row_counts_as_much():
    rng = np.random.default_rng(0)
    counts = np.zeros((2, 3, 4))
    counts[0, 0], counts[0, 1] = [40, 6, 2, 1], [0, 0, 1, 0]  # 49 tokens and one
    counts[1, 1], counts[1, 2] = [2, 0, 0, 1], [3, 3, 0, 0]
    for _ in range(20):
        even = specialisation.evened(counts, rng)
        np.testing.assert_allclose(even.sum(2), [[1, 1, 0], [0, 1, 1]])
        assert even[0].max() == 1 and (even[0, 1] == [0, 0, 1, 0]).all()
        assert (even[1, 1] == np.array([2, 0, 0, 1]) / 3).all()
        assert set(np.unique(even[1, 2] * 3).round(9)) <= {0, 1, 2, 3}
    soft = counts / 3
    np.testing.assert_allclose(specialisation.evened(soft, rng)[0, 0], np.array([40, 6, 2, 1]) / 49)


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


def test_groups_are_exchanged_alike_for_all_modalities_where_some_are_missing():
    # Each patient has experts of his own, in six modalities; a tenth of them is missing. Known bad:
    # an exchange per modality finds the outcome that does not matter in a fifth of the cases.
    rng, ps = np.random.default_rng(0), []
    for _ in range(150):
        own_RE = rng.dirichlet(np.full(8, 0.5), 150)
        routed = np.stack([rng.multinomial(4, e) for e in own_RE])[:, None].repeat(6, 1)
        routed = routed * (rng.random((150, 6)) >= 0.1)[:, :, None]
        group_R = (rng.random(150) < 0.4).astype(int)
        shares = specialisation.evened(routed.astype(float), rng)
        counts = specialisation.shuffled_groups(shares, group_R, np.arange(150), rng, 99)
        ps.append(specialisation.information(next(counts), counts)["p"])
    assert np.mean(np.array(ps) <= 0.05) <= 0.1


def test_nothing_routed_tells_nothing():
    found = specialisation.information(np.zeros((2, 4)), iter([np.zeros((2, 4))] * 99))
    assert set(found.values()) == {None}  # known bad: p = 0.01
