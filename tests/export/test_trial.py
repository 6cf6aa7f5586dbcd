"""What a bundle predicts against the run's own program: how far apart is too far."""

import numpy as np

from m4.export import trial
from m4.specs import TaskSpec


def test_a_regression_is_compared_in_the_size_that_it_is_rounded_in():
    """Near 0, of a target in thousands, float32 cannot agree to 1e-5."""
    own_NC = np.array([[0.5], [2000]], np.float32)
    theirs_NC = np.array([[0.501], [2000.001]], np.float32)
    cost = TaskSpec("cost", "regression", loc=3000.0, scale=800.0)
    assert trial.apart(cost, own_NC, theirs_NC) < trial.CLOSE
    days = TaskSpec("days", "regression")
    assert trial.apart(days, own_NC, theirs_NC) > 1e-4
    assert trial.apart(cost, own_NC, own_NC * np.float32(np.nan)) == np.inf
