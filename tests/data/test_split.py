from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m4.data.split import assign

THREE = {"train": 0.7, "val": 0.15, "test": 0.15}
PATIENTS = st.integers(0, 2**62)


@given(PATIENTS, st.integers(-(2**63), 2**63 - 1))
def test_same_patient_and_seed_give_the_same_split(patient, seed):
    assert assign(patient, THREE, seed) == assign(str(patient), THREE, seed)
    assert assign(patient, THREE, seed) in THREE


@given(st.lists(PATIENTS, max_size=20), st.lists(PATIENTS, max_size=20))
@settings(max_examples=30)
def test_adding_patients_moves_nobody(old, new):
    before = {patient: assign(patient, THREE, 0) for patient in old}
    after = {patient: assign(patient, THREE, 0) for patient in [*new, *old]}
    assert all(after[patient] == split for patient, split in before.items())


@given(PATIENTS)
def test_moving_a_border_moves_only_its_neighbours(patient):
    moved = {"train": 0.6, "val": 0.25, "test": 0.15}
    before, after = assign(patient, THREE, 0), assign(patient, moved, 0)
    assert before == after or (before, after) == ("train", "val")


def test_shares_are_met_and_seeds_differ():
    found = {seed: [assign(patient, THREE, seed) for patient in range(20_000)] for seed in (0, 1)}
    counts = Counter(found[0])
    for name, share in THREE.items():  # five binomial standard deviations
        assert abs(counts[name] - share * 20_000) < 5 * (share * (1 - share) * 20_000) ** 0.5
    agree = sum(a == b for a, b in zip(found[0], found[1], strict=True)) / 20_000
    assert abs(agree - (0.7**2 + 2 * 0.15**2)) < 0.02  # independent: sum of squared shares


def test_golden_assignments():
    # Written down once; a change would silently reshuffle every published split.
    assert [assign(patient, THREE, 0) for patient in range(8)] == [
        *("val", "val", "train", "train", "train", "train", "train", "test")
    ]


def test_extreme_shares():
    assert {assign(patient, {"a": 0.0, "b": 1.0}, 0) for patient in range(100)} == {"b"}
    with pytest.raises(ValueError, match="must be >= 0 and sum to 1"):
        assign(1, {"a": 0.5, "b": 0.4}, 0)
    with pytest.raises(ValueError, match="must be >= 0 and sum to 1"):
        assign(1, {"a": 1.5, "b": -0.5}, 0)
