"""Summary statistics of irregular series, by hand."""

import numpy as np

from m4.nn.encoders.modalities import STATISTICS, stack_series, summary_statistics
from m4.types import Stream


def one_feature(values, hours, observed=None):
    """One row, one modality, one feature; a window of 10 hours."""
    values = np.array(values, np.float32)
    observed = np.ones(len(values), bool) if observed is None else np.array(observed)
    stream = Stream(
        values=values[None, :, None],
        mask=np.ones((1, len(values)), bool),
        present=np.ones(1, bool),
        times=np.array([hours], np.float32),
        observed=observed[None, :, None],
    )
    return stack_series([stream], hours=10.0)


def test_statistics_by_hand():
    # Observed 1, 5, 3 at hours 0, 2, 4 of 10; the 9 at hour 6 is not observed.
    got = summary_statistics(one_feature([1, 5, 3, 9], [0, 2, 4, 6], [1, 1, 1, 0]))[0, 0, 0]
    want = {
        "last": 3.0,
        "first": 1.0,
        "mean": 3.0,
        "min": 1.0,
        "max": 5.0,
        "std": np.sqrt((4 + 4 + 0) / 3),
        # offsets -.2, 0, .2; centred -2, 2, 0: covariance .4 / 3, variance .08 / 3
        "slope": (0.4 / 3) / (0.08 / 3 + 0.01),
        "count": np.log(4) / 3,
        "since_last": 0.6,
        "observed": 1.0,
    }
    np.testing.assert_allclose(got, [want[name] for name in STATISTICS], rtol=1e-5)


def test_statistics_of_a_feature_never_observed():
    got = summary_statistics(one_feature([np.nan, np.inf], [0, 2], [0, 0]))[0, 0, 0]
    want = dict.fromkeys(STATISTICS, 0.0) | {"since_last": 1.0}
    np.testing.assert_array_equal(got, [want[name] for name in STATISTICS])
