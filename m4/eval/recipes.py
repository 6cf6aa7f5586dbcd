"""The models behind the reference rows, each a function of one fitting problem.

Every recipe is fixed: nothing is searched on the data at hand. `boosting` was found by five-fold
cross-validation on set A of PhysioNet 2012 (docs/evaluation.md has the table of what was tried).

Letters: N training rows, T rows to predict, F features, K classes that were seen or 1 value,
M modalities, S signs of presence, Z meta-features of the stacker.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

SMALL: dict[str, Any] = {"max_leaf_nodes": 8, "l2_regularization": 10.0}
BOOSTING = SMALL | {"learning_rate": 0.03, "max_iter": 500}
FEATURES, LEAST = 0.1, 27  # share of the features that a node may split on, and how many at least
ONE_MODALITY = SMALL | {"learning_rate": 0.1, "max_iter": 60}
STACK_FOLDS, STACK_C = 3, 0.01
EPS = 1e-7


@dataclasses.dataclass(frozen=True)
class Problem:
    """Rows with a label, what it is, and the rows whose label is asked.

    `y_N` are classes 0 to K - 1, each of them seen, or values; `owner_N` are the patients.
    """

    x_NF: np.ndarray
    y_N: np.ndarray
    x_TF: np.ndarray
    classes: bool
    owner_N: np.ndarray
    modality_F: np.ndarray  # str, '' where it is not known
    presence_F: np.ndarray  # bool: says whether a modality is present
    seed: int

    @property
    def base_K(self) -> np.ndarray:
        """Log of the classes' shares, or the mean: what is said of those of whom nothing is."""
        if not self.classes:
            return np.array([self.y_N.mean()])
        return np.log(np.bincount(self.y_N) / len(self.y_N))


def boosting(problem: Problem) -> np.ndarray:
    """Gradient boosting by the fixed recipe, f64[T, K]."""
    share = max(FEATURES, min(1.0, LEAST / problem.x_NF.shape[1]))
    return _trees(problem, **BOOSTING, max_features=share)


def default_boosting(problem: Problem) -> np.ndarray:
    """Gradient boosting with scikit-learn's defaults, f64[T, K]."""
    return _trees(problem)


def linear(problem: Problem) -> np.ndarray:
    """Logistic or ridge regression on imputed, standardised features and indicators, f64[T, K]."""
    impute = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    return _linear(problem, make_pipeline(impute, StandardScaler(), _plain(problem)))


def presence(problem: Problem) -> np.ndarray:
    """The same on nothing but what was measured, f64[T, K]: no value, only whether it is there."""

    def seen(x_RF: np.ndarray) -> np.ndarray:
        return np.concatenate([~np.isnan(x_RF), x_RF[:, problem.presence_F] > 0], axis=1)

    train_NS, asked_TS = seen(problem.x_NF), seen(problem.x_TF)
    _, first = np.unique(train_NS, axis=1, return_index=True)  # features come and go in groups
    first.sort()
    own_NS, own_TS = train_NS[:, first].astype(float), asked_TS[:, first].astype(float)
    own = dataclasses.replace(problem, x_NF=own_NS, x_TF=own_TS)
    return _linear(own, make_pipeline(StandardScaler(), _plain(problem)))


def late(problem: Problem) -> np.ndarray:
    """Late fusion, f64[T, K]: boosting on each modality by itself, then a logistic stacker (ridge).

    The stacker is fitted on what the others' models say of each third of the training patients. It
    reads logits less those of the prevalence, hence 0 where a modality is absent.
    """
    folds = min(STACK_FOLDS, len(np.unique(problem.owner_N)))
    if folds < 2:
        return _constant(problem)
    train_NZ = None
    for fit, held in GroupKFold(folds).split(problem.x_NF, groups=problem.owner_N):
        part_Z = _each(problem, fit, problem.x_NF[held])
        train_NZ = np.zeros((len(problem.y_N), part_Z.shape[1])) if train_NZ is None else train_NZ
        train_NZ[held] = part_Z
    asked_TZ = _each(problem, np.arange(len(problem.y_N)), problem.x_TF)
    own = dataclasses.replace(problem, x_NF=train_NZ, x_TF=asked_TZ)
    if not problem.classes:
        return _linear(own, Ridge())
    return _linear(own, LogisticRegression(C=STACK_C, max_iter=1000))


def _each(problem: Problem, rows_n: np.ndarray, x_RF: np.ndarray) -> np.ndarray:
    """What every modality's model, fitted on some of the rows, says of others, f64[R, M * K]."""
    base_K, said = problem.base_K, []
    for columns_F, present_n, present_R in _modalities(problem, problem.x_NF[rows_n], x_RF):
        own_n = rows_n[present_n]
        said_RK = np.zeros((len(x_RF), len(base_K)))
        y_n = problem.y_N[own_n]
        complete = len(np.unique(y_n)) == len(base_K) if problem.classes else len(y_n) > 1
        if complete and present_R.any():
            x_nF, x_rF = problem.x_NF[np.ix_(own_n, columns_F)], x_RF[np.ix_(present_R, columns_F)]
            own = dataclasses.replace(problem, x_NF=x_nF, y_N=y_n, x_TF=x_rF)
            found = _trees(own, **ONE_MODALITY)
            found = np.log(np.clip(found, EPS, 1.0)) if problem.classes else found
            said_RK[present_R] = found - base_K
        # of two classes one says all
        said.append(said_RK[:, 1:] - said_RK[:, :1] if said_RK.shape[1] == 2 else said_RK)
    return np.concatenate(said, axis=1) if said else np.zeros((len(x_RF), 1))


def _modalities(problem: Problem, x_nF, x_RF) -> Iterator[tuple[np.ndarray, ...]]:
    """(its columns, rows that have it, bool, of either) of every modality with any value."""
    for name in dict.fromkeys(problem.modality_F):
        own_F = problem.modality_F == name
        values_F, flag_F = own_F & ~problem.presence_F, own_F & problem.presence_F
        if values_F.any():
            there = flag_F if flag_F.any() else None
            n, r = (
                np.ones(len(x), bool) if there is None else (x[:, there] > 0).any(axis=1)
                for x in (x_nF, x_RF)
            )
            yield np.flatnonzero(values_F), n, r


def _trees(problem: Problem, **settings: Any) -> np.ndarray:
    """Early stopping is off: scikit-learn's holds out rows, not patients."""
    x_NF, x_TF = _known(problem.x_NF, problem.x_TF)
    own: dict[str, Any] = {"early_stopping": False, "random_state": problem.seed, **settings}
    if problem.classes:
        model = HistGradientBoostingClassifier(**own).fit(x_NF, problem.y_N)
        return model.predict_proba(x_TF)
    return HistGradientBoostingRegressor(**own).fit(x_NF, problem.y_N).predict(x_TF)[:, None]


def _plain(problem: Problem) -> LogisticRegression | Ridge:
    return LogisticRegression(max_iter=1000) if problem.classes else Ridge()


def _linear(problem: Problem, model: Any) -> np.ndarray:
    x_NF, x_TF = _known(problem.x_NF, problem.x_TF)
    if not x_NF.shape[1]:
        return _constant(problem)
    fitted = model.fit(x_NF, problem.y_N)
    return fitted.predict_proba(x_TF) if problem.classes else fitted.predict(x_TF)[:, None]


def _constant(problem: Problem) -> np.ndarray:
    base_K = np.exp(problem.base_K) if problem.classes else problem.base_K
    return np.tile(base_K, (len(problem.x_TF), 1))


def _known(x_NF: np.ndarray, x_TF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features that no training row has become 0: nothing is learnt of them, and trees fail."""
    unseen_F = np.isnan(x_NF).all(axis=0)
    return np.where(unseen_F, 0.0, x_NF), np.where(unseen_F, 0.0, x_TF)
