"""Is one arm better than another, by how much, and could these seeds have told?

Differences are paired: both arms saw the same seeds and, where there are patients, the same
patients. Student's t throughout; with patients the variance of the mean difference is the seeds'
part plus the patients' part (a paired bootstrap's), with Welch and Satterthwaite's degrees of
freedom. Superiority is two-sided, equivalence two one-sided tests (TOST, Schuirmann 1987) at a
margin that was written down before; both are corrected for the arms of a family (Holm 1979).

Letters: S seeds, A arms of a family; leading dimensions are free.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.stats import nct, t

from m4.eval import holm

ALPHA, POWER = 0.05, 0.8


@dataclasses.dataclass(frozen=True)
class Compared:
    """Arms of a family against their reference; arrays are [..., A].

    `value` is arm - reference, in the metric's unit; `low` and `high` its 95 % interval, not
    corrected; `p` and `p_equal` are corrected by Holm. `smallest` is the difference that these
    seeds would have found in 4 of 5 studies. `verdict` is 'better', 'worse', 'equivalent' or
    'open'; `within` says whether the difference lies within the margin (TOST), which can be true
    of a better and of a worse one.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    p_equal: np.ndarray
    smallest: np.ndarray
    within: np.ndarray
    verdict: np.ndarray


def compare(
    difference_AS: np.ndarray,
    *,
    margin: float,
    lower_is_better: bool,
    patients_sd_A: np.ndarray | float = 0.0,
    num_patients: int | None = None,
    one_seed: bool = False,
    planned: int = 0,
) -> Compared:
    """The verdict on every arm of a family, from its differences to the reference by seed.

    Args:
      difference_AS: arm - reference, [..., A, S], at least two seeds.
      margin: differences of less than this do not matter; above 0.
      lower_is_better: of the metric.
      patients_sd_A: standard deviation of the mean difference over draws of patients.
      num_patients: how many patients that rests on.
      one_seed: a single seed will do: the interval is over patients alone, and says so little.
      planned: arms of the family, also those that are not there yet: Holm corrects for all.

    Raises ValueError for fewer than two seeds or a margin that is none.
    """
    difference_AS = np.asarray(difference_AS, np.float64)
    num = difference_AS.shape[-1]
    if num < 2 and not (one_seed and num_patients) or not margin > 0:
        raise ValueError(f"{num} seeds and a margin of {margin}: give at least two, and above 0")
    value = difference_AS.mean(-1)
    seeds = difference_AS.var(-1, ddof=min(num - 1, 1)) / num  # 0 of a single one
    patients = np.square(patients_sd_A)
    se, df = np.sqrt(seeds + patients), _freedom(seeds, patients, num, num_patients)
    half = t.ppf(1 - ALPHA / 2, df) * se
    arms = max(planned, difference_AS.shape[-2])
    p = _holm(_tail(-np.abs(value), se, df, double=True), arms)
    p_equal = _holm(np.maximum(_tail(value - margin, se, df), _tail(-value - margin, se, df)), arms)
    worst = ALPHA / arms  # the strictest of Holm's steps
    good = value < 0 if lower_is_better else value > 0
    sure, within = p <= ALPHA, p_equal <= ALPHA
    verdict = np.select(
        [sure & good, sure, within], ["better", "worse", "equivalent"], default="open"
    )
    each = [detectable(round(float(x), 1), worst) for x in np.ravel(df)]  # rounded: few differ
    smallest = se * np.reshape(each, df.shape)
    return Compared(value, value - half, value + half, p, p_equal, smallest, within, verdict)


def in_words(said: str, within: bool) -> str:
    """A verdict, and that the difference does not matter all the same."""
    return said + ", within the margin" * (within and said != "equivalent")


def _holm(p_A: np.ndarray, arms: int) -> np.ndarray:
    """Corrected for so many arms; of those without a p nothing is known, so theirs is 1."""
    more = np.ones((*p_A.shape[:-1], arms - p_A.shape[-1]))
    return holm.adjusted(np.concatenate([p_A, more], -1))[..., : p_A.shape[-1]]


@functools.cache
def detectable(df: float, alpha: float = ALPHA) -> float:
    """The difference, in standard errors, that a t test finds with a chance of 4 in 5."""
    if not np.isfinite(df):
        return float("nan")
    critical = float(t.ppf(1 - alpha / 2, df))

    def missed(difference: float) -> float:
        # NaN where it is too small for scipy, as with two seeds at far differences
        return float(np.nan_to_num(nct.cdf(critical, df, difference))) - (1 - POWER)

    return float(brentq(missed, 0.0, 20 * critical))  # pyright: ignore[reportArgumentType]


def _freedom(seeds: Any, patients: Any, num: int, num_patients: int | None) -> np.ndarray:
    """Degrees of freedom of the sum of two variances of a mean."""
    others = (num_patients or np.inf) - 1
    total = np.asarray(seeds + patients)
    parts = np.asarray(seeds**2 / max(num - 1, 1) + patients**2 / others)
    found = np.divide(total**2, parts, out=np.full(total.shape, float(num - 1)), where=parts > 0)
    return np.maximum(found, 1.0)


def _tail(value: np.ndarray, se: np.ndarray, df: np.ndarray, *, double: bool = False) -> np.ndarray:
    """P(T <= value / se), twice that if `double`; without any spread 0 or 1, of no number 1."""
    ratio = np.divide(value, se, out=np.zeros_like(value), where=se > 0)
    p = t.cdf(ratio, df) * (2 if double else 1)
    known = np.isfinite(se) & np.isfinite(value)
    return np.where(known, np.where(se > 0, p, np.where(value < 0, 0.0, 1.0)), 1.0)
