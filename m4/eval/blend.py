"""The blend: the equal mean of the network and of boosting, on one footing, fitted on nothing.

| kind | mean of |
|---|---|
| binary, multilabel | logits |
| multiclass | log probabilities, renormalised |
| regression | predictions on the scale of the task's transform |

The network never sees what trees say: a network that reads their scores trusts them, and loses with
them where new patients differ from those of training. A mean has nothing that could be fitted.

Letters: N rows, C labels, classes or values.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import expit, logit, logsumexp

from m4.eval.predictions import Predictions
from m4.specs import DataSpec, TaskSpec

NAME, WITH = "blend", "boosting"
EPS = 1e-7  # probabilities stay this far from 0 and 1
MEANT = ("binary", "multilabel", "multiclass", "regression")  # kinds that have such a mean


def mean(task: TaskSpec, predictions: Sequence[np.ndarray]) -> np.ndarray:
    """The equal mean f64[N, C] of predictions [N, C] of a task, see the table above.

    Raises ValueError for a kind that has none.
    """
    each = [np.asarray(p_NC, np.float64) for p_NC in predictions]
    if task.kind == "regression":
        log = task.transform == "log1p"
        scale = [np.log1p(np.maximum(value_NC, 0.0)) for value_NC in each] if log else each
        return np.expm1(np.mean(scale, axis=0)) if log else np.mean(scale, axis=0)
    if task.kind not in MEANT:
        raise ValueError(f"task {task.name}: kind {task.kind!r} has no mean of predictions")
    if task.kind == "multiclass":
        log_NC = np.mean([np.log(np.clip(p_NC, EPS, 1.0)) for p_NC in each], axis=0)
        return np.exp(log_NC - logsumexp(log_NC, axis=1, keepdims=True))
    return expit(np.mean([logit(np.clip(p_NC, EPS, 1 - EPS)) for p_NC in each], axis=0))


def row(
    predictions: Predictions, spec: DataSpec, references: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Task -> blend f64[rows of split, C] of the full input and of boosting; as references are.

    Rows that the network did not predict keep boosting's. Empty where boosting was not fitted.
    """
    out = {}
    for name, reference_NC in references.get(WITH, {}).items():
        task, own = spec.task(name), predictions.prediction.get(name)
        if own is None or task.kind not in MEANT:
            continue
        both = own[predictions.full()], np.asarray(reference_NC)[predictions.uid]
        out[name] = np.array(reference_NC, np.float64)
        out[name][predictions.uid] = mean(task, both)
    return out
