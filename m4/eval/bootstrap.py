"""Bias-corrected percentile bootstrap over patients, all draws at once.

Rows of one patient are drawn together, because they are not independent. Every score and every
difference of a split uses the same draws, so differences are paired. A rank score of drawn patients
is too good, because some are there twice: the percentiles move by twice the distance of the draws'
median from the value, on the normal scale (Efron, Canadian Journal of Statistics 1981). With few
patients a percentile interval is too short; it takes in more of the draws then (Hesterberg, The
American Statistician 2015: as a t interval is wider than a normal one).

Letters: P patients, N rows, B draws, b draws of one chunk, R draws of something else.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping

import numpy as np
from scipy.stats import norm, t

from m4.eval import metrics
from m4.eval.metrics import Value
from m4.specs import TaskSpec

CHUNK_CELLS = 1 << 20  # rows x draws held at once: 4 MiB of float32
MAX_UNDEFINED = 0.2


@dataclasses.dataclass(frozen=True)
class Draws:
    """B resamplings of the patients of a split."""

    count_PB: np.ndarray  # u16[P, B], how often a patient was drawn
    patient_N: np.ndarray  # i64[N], index of each row's patient

    @functools.cached_property
    def heaviest(self) -> float:
        """How many rows the largest draw has."""
        rows_P = np.bincount(self.patient_N, minlength=len(self.count_PB))
        return float((rows_P @ self.count_PB.astype(np.float64)).max(initial=0.0))

    def map(
        self,
        statistic: Callable[[np.ndarray], Mapping[str, np.ndarray]],
        rows_N: np.ndarray,
        dtype: type = np.float32,
    ) -> dict[str, np.ndarray]:
        """`statistic(weights [n, b]) -> name -> f64[b]` over all draws, for the rows chosen."""
        patients = self.patient_N[rows_N]
        step = max(64, CHUNK_CELLS // max(1, len(patients)))
        parts = [
            statistic(self.count_PB[:, start : start + step][patients].astype(dtype, copy=False))
            for start in range(0, self.count_PB.shape[1], step)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def resample(
    patient_N: np.ndarray, fold_N: np.ndarray | None = None, *, draws: int = 1000, seed: int = 0
) -> Draws:
    """Draw P of P patients with replacement, `draws` times; within each fold, if there are any."""
    ids, first_P, index_N = np.unique(patient_N, return_index=True, return_inverse=True)
    fold_P = np.zeros(len(ids)) if fold_N is None else fold_N[first_P]
    members = [np.flatnonzero(fold_P == fold) for fold in np.unique(fold_P)]
    rng, count_PB = np.random.default_rng(seed), np.empty((len(ids), draws), np.uint16)
    for b in range(draws):
        for own in members:
            count_PB[own, b] = np.bincount(rng.integers(0, len(own), len(own)), minlength=len(own))
    return Draws(count_PB, index_N.reshape(-1))


def score(
    task: TaskSpec,
    label_NL: np.ndarray,
    mask_NL: np.ndarray,
    prediction_NC: np.ndarray,
    draws: Draws,
    *,
    threshold: np.ndarray | None = None,
    fold_N: np.ndarray | None = None,
    names: Collection[str] | None = None,
) -> dict[str, np.ndarray]:
    """Every metric of the task (of `names`) under every draw, f64[B]; NaN where undefined."""
    rows_N = np.asarray(mask_NL.any(axis=1))
    args = task, label_NL[rows_N], mask_NL[rows_N], prediction_NC[rows_N]
    fold = None if fold_N is None else fold_N[rows_N]

    def statistic(weight_nb):
        return metrics.under(*args, weight_nb, threshold=threshold, fold_N=fold, names=names)

    # Half the memory, where every sum of weights of cells fits.
    short = draws.heaviest * mask_NL.shape[1] < 2**16 and task.kind != "survival"
    return draws.map(statistic, rows_N, np.uint16 if short else np.float32)


def interval(
    value: Value,
    values_B: np.ndarray,
    *,
    level: float = 0.95,
    units: int | None = None,
    lost: str = "undefined",
    smallest: int = 0,
) -> dict:
    """The value with its bias-corrected interval, as JSON: {value, low, high, note?}.

    `units` is the number of patients that the value rests on: of the rarer outcome, if it has two.
    No interval is given where the value is undefined or more than a fifth of the draws are; a
    smaller share of undefined draws is left out and noted, and `lost` says what they are. Where
    `units` are fewer than `smallest`, notes do not tell how many: one is lost in 37 % of the draws.
    """
    known = np.inf if units is None else units
    few = known < smallest
    notes = [value.note] if value.note else []
    defined = values_B[np.isfinite(values_B)]
    undefined = 1 - len(defined) / len(values_B)
    low = high = None
    if np.isfinite(value.value):
        if few and (undefined > MAX_UNDEFINED or known < 2):
            notes.append(f"no interval: it rests on fewer than {smallest} patients")
        elif undefined > MAX_UNDEFINED:
            notes.append(f"no interval: {lost} in {undefined:.0%} of the draws")
        elif known < 2:
            notes.append("no interval: it rests on one patient")
        else:
            tail = t.ppf((1 - level) / 2, np.inf if units is None else units - 1)
            tail *= 1.0 if units is None else np.sqrt(units / (units - 1))
            ends = norm.cdf(2 * _bias(value.value, defined) + np.array([tail, -tail]))
            low, high = np.quantile(defined, ends)
            if undefined:
                share = "some" if few else f"{undefined:.1%}"
                notes.append(f"{lost} in {share} of the draws, left out")
    out = {"value": number(value.value), "low": number(low), "high": number(high)}
    return out | ({"note": "; ".join(notes)} if notes else {})


def _bias(value: float, values_B: np.ndarray) -> float:
    """How far the value lies from the median of its draws, on the normal scale; ties count half."""
    near = 1e-9 * (abs(value) + np.ptp(values_B))
    below = np.mean(values_B < value - near) + np.mean(np.abs(values_B - value) <= near) / 2
    edge = 0.5 / len(values_B)
    return float(norm.ppf(np.clip(below, edge, 1 - edge)))


@dataclasses.dataclass(frozen=True)
class Sampled:
    """The error of a value that is the mean of a few draws of something else than patients."""

    error: float  # standard error of the mean
    freedom: int

    @classmethod
    def of(cls, values_R: np.ndarray) -> "Sampled | None":
        """Of independent draws, f64[R]; None for fewer than two."""
        if len(values_R) < 2:
            return None
        return cls(float(np.std(values_R, ddof=1) / np.sqrt(len(values_R))), len(values_R) - 1)

    def widen(self, estimate: dict) -> dict:
        """The estimate with the interval of patients and of this error, added in squares."""
        value, low, high = (estimate[key] for key in ("value", "low", "high"))
        if low is None:
            return estimate
        half = float(t.ppf(0.975, self.freedom)) * self.error
        low = value - np.hypot(max(value - low, 0.0), half)
        high = value + np.hypot(max(high - value, 0.0), half)
        return estimate | {"low": number(low), "high": number(high)}


def two_sided(
    value: float, values_B: np.ndarray, *, units: int, error: Sampled | None = None
) -> float:
    """P of a difference being 0, as wide as `interval`; `units` of at least 2 as there.

    With an `error` besides, of both (degrees of freedom by Welch and Satterthwaite).
    """
    spread, freedom = np.nanstd(values_B) * np.sqrt(units / (units - 1)), float(units - 1)
    if error is not None and error.error:
        both = np.hypot(spread, error.error)
        freedom = both**4 / (spread**4 / freedom + error.error**4 / error.freedom)
        spread = both
    return float(2 * t.sf(abs(value) / spread, freedom) if spread else value == 0)


def number(value: float | None) -> float | None:
    """A JSON number with six significant digits, None for what is not finite."""
    if value is None or not np.isfinite(value):
        return None
    return float(f"{value:.6g}")
