"""The blend: the equal mean of the network and of boosting, as `m4.eval.averages` takes it.

It is fitted on nothing, and the network never sees what trees say: a network that reads their
scores trusts them, and loses with them where new patients differ from those of training. Of a label
or class that boosting could not be fitted to, since its training rows know one answer alone, the
blend is the network; out of fold each fold has training rows of its own.

Letters: N rows, C labels, classes or values.
"""

from collections.abc import Mapping

import numpy as np

from m4.eval import averages
from m4.eval.predictions import Predictions
from m4.specs import DataSpec, TaskSpec

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
        out[name] = np.array(reference_NC, np.float64)
        theirs_NC, own_NC = out[name][predictions.uid], own[predictions.full()]
        fold_N = np.zeros(len(own_NC)) if predictions.fold is None else predictions.fold
        for fold in np.unique(fold_N):
            rows = fold_N == fold
            out[name][predictions.uid[rows]] = _mean(task, own_NC[rows], theirs_NC[rows])
    return out


def _mean(task: TaskSpec, own_NC: np.ndarray, theirs_NC: np.ndarray) -> np.ndarray:
    """f64[N, C] of the predictions of one network and of boosting on the same training rows."""
    out_NC = np.array(own_NC, np.float64)
    if task.kind == "regression":
        return averages.mean_of(task, np.stack([out_NC, theirs_NC]))
    known_C = ~np.isin(theirs_NC, (0.0, 1.0)).all(axis=0)  # the others are what `fit_predict` says
    if not known_C.any():
        return out_NC
    both = out_NC[:, known_C], theirs_NC[:, known_C]
    share_N1 = 1.0
    if task.kind == "multiclass":  # what is said of classes that boosting never saw stays
        share_N1 = both[0].sum(axis=1, keepdims=True)
    out_NC[:, known_C] = share_N1 * averages.mean_of(task, np.stack(both))
    return out_NC
