import numpy as np
import pytest

from m4.eval.subsets import choose, describe, matrix, patterns

NAMES = ("a", "b", "c", "d", "e")


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_all_subsets_up_to_four(count):
    subsets = choose(NAMES[:count], np.ones((3, count), bool), np.arange(3))
    keep_SM = matrix(subsets)
    assert len(subsets) == len(np.unique(keep_SM, axis=0)) == 2**count - 1
    assert subsets[0].label == "full" and keep_SM[0].all() and keep_SM.any(axis=1).all()
    assert len({s.label for s in subsets}) == len(subsets)


def test_labels_of_three():
    labels = [s.label for s in choose(NAMES[:3], np.ones((1, 3), bool), np.zeros(1))]
    assert labels == ["full", "without a", "without b", "without c", "only a", "only b", "only c"]


def test_above_four_natural_patterns_with_enough_patients():
    often = np.tile([True, True, True, False, False], (12, 1))
    seldom = np.tile([True, True, False, True, False], (12, 1))
    single = np.tile([False, False, True, False, False], (12, 1))
    present = np.concatenate([often, seldom, single])
    patient = np.r_[np.arange(12), np.full(12, 99), 200 + np.arange(12)]  # seldom: one patient
    subsets = choose(NAMES, present, patient, min_patients=10)
    assert len(subsets) == 1 + 5 + 5 + 1
    assert subsets[-1].label == "pattern a + b + c" and subsets[-1].kind == "pattern"


def test_patterns_count_patients_not_rows():
    present = np.array([[True, False]] * 3 + [[True, True]] * 2)
    assert patterns(present, np.array([1, 1, 1, 2, 3])) == [((True, True), 2), ((True, False), 1)]


def test_descriptions_are_short():
    six = tuple("abcdef")
    assert describe(six, (True,) * 6) == "all"
    assert describe(six, (True, False, True, True, True, False)) == "all but b, f"
    assert describe(six, (True, False, False, True, True, False)) == "a + d + e"
    assert describe(("a", "b"), (True, False)) == "a"
    assert describe(("a", "b"), (False, False)) == "nothing"
