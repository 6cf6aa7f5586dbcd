"""What is measured of experts, on routings whose truth is known."""

import numpy as np
import pytest

from m4.lab import interventions, special

R, M, C = 600, 4, 4
RNG = np.random.default_rng(0)
CLUSTER = RNG.integers(C, size=(R, M))
PRESENT = RNG.random((R, M)) > 0.25


def routing(expert_RM, experts):
    by_row = np.zeros((R, M, experts), np.float32)
    np.put_along_axis(by_row, np.asarray(expert_RM)[..., None], 1.0, axis=2)
    return by_row * PRESENT[..., None]


def told(expert_RM, experts):
    rng = np.random.default_rng(1)
    return special.information(routing(expert_RM, experts), PRESENT, np.arange(R), CLUSTER, rng)


def test_an_oracle_tells_everything_and_chance_nothing():
    of_modality = np.broadcast_to(np.arange(M), (R, M))
    cluster = of_modality * C + CLUSTER
    found = told(cluster, 16)
    assert found["cluster"] == pytest.approx(1, abs=0.01)
    assert found["modality"] == pytest.approx(1, abs=0.01)
    assert found["pattern"] == pytest.approx(0, abs=0.02)
    found = told(of_modality, 16)
    assert found["modality"] == pytest.approx(1, abs=0.01)
    assert found["cluster"] == pytest.approx(0.5, abs=0.02)
    random = np.random.default_rng(2).integers(16, size=(R, M))
    assert all(abs(value) < 0.02 for value in told(random, 16).values())


def test_seeds_agree_up_to_the_names_of_experts():
    expert = RNG.integers(8, size=(R, M))
    a, b = routing(expert, 8), routing(np.random.default_rng(3).permutation(8)[expert], 8)
    assert special.agreement(a, b) == 1.0
    other = routing(np.random.default_rng(4).integers(8, size=(R, M)), 8)
    assert 0.12 < special.agreement(a, other) < 0.25


def test_saturation_ends_at_one():
    chosen = [routing(RNG.integers(8, size=(R, M)), 8) for _ in range(3)]
    found = special.saturation([*chosen, chosen[-1]])
    assert found[2:] == [1.0, 1.0] and found[0] == pytest.approx(1 / 8, abs=0.03)
    kept = special.dense(special.sparse(chosen))
    assert np.array_equal(kept, np.stack(chosen))


def test_random_experts_carry_what_a_modality_s_own_do():
    load = np.zeros((2, 16))
    load[0, :4], load[1, 4:] = 30, 10
    groups = special.ablations(load, np.random.default_rng(0))
    assert [group["own"].sum() for group in groups] == [4, 12]
    for group in groups:
        own, random = (load.sum(0)[group[name]].sum() for name in ("own", "random"))
        assert abs(own - random) <= 15
        assert not (group["own"] & group["random"]).any()


def test_a_collapsed_layer_is_called_so():
    assert special.collapse(np.array([100.0, 1, 0, 0]))["collapsed"]
    assert not special.collapse(np.full(4, 5.0))["collapsed"]


@pytest.mark.slow
def test_chance_is_none_at_4096_experts_either():
    """Of as many rows as a run keeps the routing of: fewer assignments than experts."""
    rng, rows, experts = np.random.default_rng(0), 1220, 4096
    cluster, present = rng.integers(C, size=(rows, M)), rng.random((rows, M)) > 0.25
    group, share = np.arange(M) * C + cluster, experts // (M * C)
    known = group * share + rng.integers(share, size=(rows, M))
    for expert_RM, value in ((known, 1.0), (rng.integers(experts, size=(rows, M)), 0.0)):
        by_row = np.zeros((rows, M, experts), np.float32)
        np.put_along_axis(by_row, expert_RM[..., None], 1.0, axis=2)
        args = by_row * present[..., None], present, np.arange(rows), cluster
        found = special.information(*args, np.random.default_rng(1))
        assert found["modality"] == pytest.approx(value, abs=0.02)
        assert found["cluster"] == pytest.approx(value, abs=0.02)


def test_experts_of_one_layer_are_not_taken_from_another():
    whole = {name: np.zeros(shape) for name, shape in {
        "layer_0.gate_ablated": (4,), "layer_0.gate_dropping": (),
        "layer_1.gate_ablated": (4,), "layer_1.gate_dropping": (), "head": (2,),
    }.items()}  # fmt: skip
    own, trained = np.array([1.0, 0, 0, 1]), {"head": np.ones(2)}

    def under(layer, **change):
        return dict(zip(whole, interventions.leaves(whole, trained, layer, change), strict=True))

    found = under("layer_0", ablated_E=own)
    np.testing.assert_array_equal(found["layer_0.gate_ablated"], own)
    assert not found["layer_1.gate_ablated"].any() and found["head"].all()
    assert under("", ablated_E=own)["layer_1.gate_ablated"].any()
    assert under("layer_0", dropping=1.0)["layer_1.gate_dropping"] == 1  # of every layer
    stacked = {"loop.gate_ablated": np.zeros((2, 4))}
    assert not any(interventions.ablates(name, "layer_0") for name in stacked)
