"""Faults inside one method's step; `make reliability` tries all five methods."""

import numpy as np
import pytest

from tests.faults import nans


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M4_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        yield nans.Rig("m3h")


@pytest.mark.parametrize("place", nans.PLACES)
def test_a_fault_costs_its_step_or_is_reported(rig, place):
    assert rig.problem(place, np.nan) is None
    assert rig.problem(place, np.inf) is None


def test_a_step_without_a_fault_is_taken(rig):
    assert rig.problem("loss", 0.0) == "the state has changed"
