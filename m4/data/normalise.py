"""Feature scaling, fitted on observed values of the training split only.

The rule, per feature:

1. Take the 0.1 % and 99.9 % quantiles of the observed training values and clip to them.
2. Use log1p when no training value is negative, the clipped values have skewness > 1 ("highly
   skewed", Bulmer 1979) and log1p brings the skewness closer to 0.
3. z = (transform(x) - mean) / std, with mean and std of the clipped, transformed values.
4. Clip z to [low, high], the two quantiles in z units: the same winsorisation for every split.

Exceptions: a 0/1 feature stays as it is; a feature with a single value v becomes v / |v|; a feature
never seen in training becomes 0. `count` is the number of observed training values.

Letters: N values, f features.
"""

from typing import Any

import numpy as np

KINDS = ("series", "table", "signal")  # modality kinds that are scaled
QUANTILES = (0.001, 0.999)
MAX_SKEWNESS = 1.0
SAMPLE = 2**20  # values kept per feature; below that the statistics are exact
CHUNK = 2**16


class Sampler:
    """Observed values per feature in bounded memory; a uniform sample once there are too many."""

    def __init__(self, num_features: int, *, limit: int = SAMPLE, seed: int = 0):
        """`limit` bounds the kept values per feature."""
        self._limit = limit
        self._rng = np.random.default_rng(seed)
        self._pending: list[np.ndarray] = []
        self._num_pending = 0
        self._kept: list[list[np.ndarray]] = [[] for _ in range(num_features)]
        self._num_kept = np.zeros(num_features, np.int64)
        self._rate = np.ones(num_features)
        self.count = np.zeros(num_features, np.int64)

    def add(self, values_Nf: np.ndarray) -> None:
        """Take in rows; NaN means not observed."""
        self._pending.append(np.asarray(values_Nf, np.float32))
        self._num_pending += len(values_Nf)
        if self._num_pending >= CHUNK:
            self._flush()

    def values(self) -> list[np.ndarray]:
        """The kept values, one array per feature."""
        self._flush()
        return [np.concatenate([np.zeros(0, np.float32), *kept]) for kept in self._kept]

    def _flush(self) -> None:
        if not self._pending:
            return
        rows_Nf = np.concatenate(self._pending)
        self._pending, self._num_pending = [], 0
        for j, kept in enumerate(self._kept):
            new_N = rows_Nf[:, j]
            new_N = new_N[~np.isnan(new_N)]
            self.count[j] += len(new_N)
            if self._rate[j] < 1:
                new_N = new_N[self._rng.random(len(new_N)) < self._rate[j]]
            kept.append(new_N)
            self._num_kept[j] += len(new_N)
            while self._num_kept[j] > self._limit:
                all_N = np.concatenate(kept)
                kept[:] = [all_N[self._rng.random(len(all_N)) < 0.5]]
                self._num_kept[j] = len(kept[0])
                self._rate[j] /= 2


def fit(values_N: np.ndarray) -> dict[str, Any]:
    """Normaliser of one feature from its observed training values (see the module's rule)."""
    values_N = np.asarray(values_N, np.float64)
    if np.isin(values_N, (0, 1)).all():  # or there is none
        high = float(values_N.size > 0)
        return {"transform": "none", "mean": 0.0, "std": 1.0, "low": 0.0, "high": high}
    edges = np.quantile(values_N, QUANTILES)
    clipped_N = values_N.clip(*edges)
    transform = "none"
    skewness = _skewness(clipped_N)
    if values_N.min() >= 0 and skewness > MAX_SKEWNESS:
        logged_N = np.log1p(clipped_N)
        if abs(_skewness(logged_N)) < skewness:
            transform, clipped_N, edges = "log1p", logged_N, np.log1p(edges)
    mean, std = clipped_N.mean(), clipped_N.std()
    if std <= 1e-6 * max(abs(mean), 1e-6):
        mean, std = 0.0, max(abs(mean), 1e-6)
    low, high = (edges - mean) / std
    numbers = {"mean": float(mean), "std": float(std), "low": float(low), "high": float(high)}
    return {"transform": transform, **numbers}


class Normaliser:
    """The fitted scaling of one modality, applied to whole arrays."""

    def __init__(self, fitted: list[dict[str, Any]]):
        """`fitted`: one result of `fit` per feature."""
        self._log_f = np.array([f["transform"] == "log1p" for f in fitted])
        self._mean_f, self._std_f, self._low_f, self._high_f = (
            np.array([f[key] for f in fitted], np.float32) for key in ("mean", "std", "low", "high")
        )

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """float32 [..., f] in z units; NaN stays NaN."""
        z = values.astype(np.float32)  # a copy
        if self._log_f.any():
            z[..., self._log_f] = np.log1p(np.maximum(z[..., self._log_f], 0))
        z -= self._mean_f
        z /= self._std_f
        return np.clip(z, self._low_f, self._high_f, out=z)


def limits(fitted: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and largest values that are not clipped, f64[f] in the features' units.

    A little wider, so that rounding does not matter.
    """
    low_f, high_f = (
        np.array([f["mean"] + f[k] * f["std"] for f in fitted]) for k in ("low", "high")
    )
    log_f = np.array([f["transform"] == "log1p" for f in fitted])
    for edge_f in (low_f, high_f):
        np.expm1(edge_f, out=edge_f, where=log_f)
    slack_f = 1e-4 * np.maximum(np.abs(low_f), np.abs(high_f))
    return low_f - slack_f, high_f + slack_f


def _skewness(values_N: np.ndarray) -> float:
    centred_N = values_N - values_N.mean()
    std = centred_N.std()
    return float((centred_N**3).mean() / std**3) if std > 0 else 0.0
