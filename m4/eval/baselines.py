"""Reference rows: gradient boosting and a linear model on per-patient aggregates.

Protocol, the same for both: fitted on the training split alone, with scikit-learn's defaults and
no tuning, one model per task and label, rows without that label left out. The validation split is
not used, because nothing is selected; the method under test uses it to select a checkpoint.

- boosting: `HistGradientBoosting*`, which handles missing values itself. Early stopping is off:
  its default holds out rows, not patients.
- linear: `LogisticRegression` or `Ridge` on median-imputed, standardised features with an
  indicator for every feature that is missing somewhere in training.

A regression target is fitted on the task's transform and mapped back, and predictions are clipped
to the range of the training labels, without which one outlying feature could send exp to infinity.

Letters: N training rows, T test rows, F features, C labels, classes or values, L label columns.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from m4.specs import DataSpec, TaskSpec

NAMES = ("boosting", "linear")
FITTED_KINDS = ("binary", "multilabel", "multiclass", "regression")


# Threads of boosting spin while they wait: on shared cores they took 3.5 times the time of one.
@threadpool_limits.wrap(limits=1)
def fit_predict(
    spec: DataSpec,
    x_NF: np.ndarray,
    labels: Mapping[str, tuple[np.ndarray, np.ndarray]],
    x_TF: np.ndarray,
    *,
    seed: int = 0,
) -> dict[str, dict[str, np.ndarray]]:
    """Reference name -> task -> predictions f64[T, C], in the order of `x_TF`.

    `labels` holds per task the training labels [N, L] and their mask [N] or [N, L]; `x_NF` and
    `x_TF` have NaN where nothing was measured. Tasks without any training label are left out, and
    so are kinds that scikit-learn has no model for.
    """
    out: dict[str, dict[str, np.ndarray]] = {name: {} for name in NAMES}
    for task in spec.tasks:
        if task.name not in labels or task.kind not in FITTED_KINDS:
            continue
        label, mask = labels[task.name]
        label_NL = np.asarray(label, np.float64).reshape(len(label), -1)
        mask_NL = np.broadcast_to(np.asarray(mask).reshape(len(mask), -1) > 0, label_NL.shape)
        if mask_NL.any():
            for name in NAMES:
                out[name][task.name] = _task(name, task, x_NF, label_NL, mask_NL, x_TF, seed)
    return out


def _task(name: str, task: TaskSpec, x_NF, label_NL, mask_NL, x_TF, seed: int) -> np.ndarray:
    if task.kind == "multiclass":
        known = mask_NL[:, 0]
        return _classes(name, x_NF[known], label_NL[known, 0].astype(int), x_TF, task.dim, seed)
    columns = []
    for c in range(task.dim):
        known = mask_NL[:, c]
        if task.kind == "regression":
            columns.append(_value(name, task, x_NF[known], label_NL[known, c], x_TF, seed))
        else:
            y = (label_NL[known, c] > 0).astype(int)
            columns.append(_classes(name, x_NF[known], y, x_TF, 2, seed)[:, 1])
    return np.stack(columns, axis=1)


def _classes(name: str, x_NF, y_N, x_TF, num_classes: int, seed: int) -> np.ndarray:
    """Class probabilities f64[T, classes]; a class never seen in training gets 0."""
    out = np.zeros((len(x_TF), num_classes))
    seen = np.unique(y_N)
    if len(seen) < 2:  # nothing to fit: the prevalence is all there is
        out[:, seen] = 1.0
        return out
    models = {"boosting": HistGradientBoostingClassifier, "linear": LogisticRegression}
    model, x_TF = _fitted(name, models[name], x_NF, y_N, x_TF, seed)
    out[:, seen] = model.predict_proba(x_TF)
    return out


def _value(name: str, task: TaskSpec, x_NF, y_N, x_TF, seed: int) -> np.ndarray:
    log = task.transform == "log1p"
    target_N = np.log1p(np.maximum(y_N, 0)) if log else y_N
    models = {"boosting": HistGradientBoostingRegressor, "linear": Ridge}
    model, x_TF = _fitted(name, models[name], x_NF, target_N, x_TF, seed)
    out = np.clip(model.predict(x_TF), target_N.min(), target_N.max())
    return np.expm1(out) if log else out


def _fitted(name: str, kind: Any, x_NF, y_N, x_TF, seed: int) -> tuple[Any, np.ndarray]:
    """The fitted model and the test features it takes.

    Features that no training row has become 0 everywhere: scikit-learn's boosting fails on them
    (1.9), and nothing could be learnt from them.
    """
    unseen_F = np.isnan(x_NF).all(axis=0)
    x_NF, x_TF = (np.where(unseen_F, 0.0, x) for x in (x_NF, x_TF))
    if name == "boosting":
        return kind(early_stopping=False, random_state=seed).fit(x_NF, y_N), x_TF
    impute = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    linear = kind(max_iter=1000) if kind is LogisticRegression else kind()
    return make_pipeline(impute, StandardScaler(), linear).fit(x_NF, y_N), x_TF
