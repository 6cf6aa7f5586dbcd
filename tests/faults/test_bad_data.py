"""Every broken record of the catalogue ends in one line; the same data without a fault builds."""

import pytest

from m4.data import build
from m4.data.store import Store
from tests.faults import bad_data, catalogue, faulty

CASES = [*bad_data.cases()]


@pytest.fixture(scope="module", autouse=True)
def imported():
    """What is imported on first use isn't part of a case's time."""
    import m4.modes.check  # noqa: F401


def test_there_are_enough():
    assert len(CASES) == len({case.name for case in CASES}) >= 200


@pytest.mark.parametrize("first", range(10))
def test_each_is_refused_as_it_should(first):
    lost = catalogue.count(CASES[first::10])[1]
    assert lost == {}


def test_without_a_fault_the_same_data_builds(tmp_path):
    folder = build.prepare("tests.faults.faulty", "", tmp_path)
    assert {split: len(Store(folder, split)) for split in faulty.ROWS} == faulty.ROWS
