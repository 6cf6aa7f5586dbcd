"""The blend: the equal mean of the network and of boosting, as `m4.eval.averages` takes it.

It is fitted on nothing, and the network never sees what trees say: a network that reads their
scores trusts them, and loses with them where new patients differ from those of training.

Letters: C labels, classes or values.
"""

from collections.abc import Mapping

import numpy as np

from m4.eval import averages
from m4.eval.predictions import Predictions
from m4.specs import DataSpec

NAME, WITH = "blend", "boosting"


def row(
    predictions: Predictions, spec: DataSpec, references: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Task -> blend f64[rows of split, C] of the full input and of boosting; as references are.

    Rows that the network did not predict keep boosting's. Empty where boosting was not fitted.
    """
    out = {}
    for name, reference_NC in references.get(WITH, {}).items():
        task, own = spec.task(name), predictions.prediction.get(name)
        if own is None or task.kind not in averages.AVERAGED:
            continue
        both = own[predictions.full()], np.asarray(reference_NC)[predictions.uid]
        out[name] = np.array(reference_NC, np.float64)
        out[name][predictions.uid] = averages.mean_of(task, np.stack(both))
    return out
