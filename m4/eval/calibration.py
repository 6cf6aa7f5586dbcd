"""Calibration: equal-mass reliability curve, calibration errors, Brier decomposition.

The plug-in error (`ece`) is above 0 for a perfect model, too, and a bootstrap doubles that excess:
it has no interval, but a `band` of what a perfectly calibrated model would show. `error` is the
debiased one and has an interval (after Sun et al., arXiv 2408.08998).

Letters: N rows, K bins, P patients, B draws.
"""

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2, ncx2, norm

NUM_BINS = 10
NO_INTERVAL = "no interval: a bin rests on one patient, or all patients' gaps are alike"
LARGE = 1e6  # of chi^2 over its unit: from here on its root is normal, and SciPy's tails end in NaN


def bin_index(predicted_N: np.ndarray, num_bins: int = NUM_BINS) -> np.ndarray:
    """Equal-mass bin of every prediction, i64[N] in [0, num_bins).

    Edges are the quantiles of the predictions; equal predictions share a bin, so bins may be
    empty. Equal mass, not equal width: with rare events nearly all predictions fall into the
    first equal-width bin (Nixon et al., 2019).
    """
    edges = np.quantile(predicted_N, np.linspace(0, 1, num_bins + 1)[1:-1])
    return np.searchsorted(edges, predicted_N, side="left")


def ece(label_N: np.ndarray, predicted_N: np.ndarray, num_bins: int = NUM_BINS) -> float:
    """Expected calibration error: sum over bins of n_b / n * |mean label - mean prediction|."""
    gap_K = np.bincount(
        bin_index(predicted_N, num_bins), weights=label_N - predicted_N, minlength=num_bins
    )
    return float(np.abs(gap_K).sum() / len(label_N))


def band(
    label_N: np.ndarray,
    predicted_N: np.ndarray,
    patient_N: np.ndarray,
    *,
    draws: int = 400,
    seed: int = 0,
    num_bins: int = NUM_BINS,
) -> tuple[float, float]:
    """The middle 95 % of `ece` of a perfectly calibrated model that predicts the same.

    Labels are drawn from the predictions where each patient has one row. Rows of one patient are
    alike in a way that the predictions do not tell; then the bins' gaps are normal with the
    covariance that the patients show, about 0.
    """
    rng = np.random.default_rng(seed)
    if len(np.unique(patient_N)) == len(patient_N):
        label_BN = rng.random((draws, len(predicted_N))) < predicted_N
        hot_NK = np.eye(num_bins)[bin_index(predicted_N, num_bins)]
        gap_BK = (label_BN - predicted_N) @ hot_NK / len(predicted_N)
    else:
        _, root_K, cov_KK, alone = _gaps(label_N, predicted_N, patient_N, num_bins)
        if alone:
            return float("nan"), float("nan")
        gap_BK = rng.multivariate_normal(np.zeros(num_bins), cov_KK, draws, method="svd") * root_K
    low, high = np.percentile(np.abs(gap_BK).sum(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _gaps(label_N, predicted_N, patient_N, num_bins):
    """Bins' mean gaps times the root of their share, s f64[K], that root, and the covariance of s.

    Over patients. The last says that a bin rests on one patient: chance cannot be told there.
    """
    index_N, gap_N = bin_index(predicted_N, num_bins), label_N - predicted_N
    _, owner_N = np.unique(patient_N, return_inverse=True)
    n_K = np.bincount(index_N, minlength=num_bins)
    _, first = np.unique(owner_N * num_bins + index_N, return_index=True)
    patients_K = np.bincount(index_N[first], minlength=num_bins)
    mean_K = np.bincount(index_N, weights=gap_N, minlength=num_bins) / np.maximum(n_K, 1)
    e_PK = np.zeros((owner_N.max() + 1, num_bins))
    np.add.at(e_PK, (owner_N, index_N), gap_N - mean_K[index_N])
    e_PK *= np.sqrt(patients_K / (np.maximum(patients_K, 2) - 1) / np.maximum(n_K, 1))
    root_K = np.sqrt(n_K / len(label_N))
    return root_K * mean_K, root_K, e_PK.T @ e_PK / len(label_N), bool((patients_K == 1).any())


def error(
    label_N: np.ndarray, predicted_N: np.ndarray, patient_N: np.ndarray, num_bins: int = NUM_BINS
) -> tuple[float, float, float]:
    """Root of the bins' mean squared gap, less what chance adds to it, and its 95 % interval.

    With s_k = sqrt(n_k / n) gap_k and V its covariance over patients, |s|^2 - tr V estimates the
    square without bias (below 0 it counts as 0). |s|^2 lies about like a multiple of a noncentral
    chi^2 with the same mean, tr V + square, and variance, 2 tr(V^2) + 4 s'Vs. The interval inverts
    that. Its lower end is above 0 where calibration is refuted at 5 %.
    """
    s_K, _, cov_KK, alone = _gaps(label_N, predicted_N, patient_N, num_bins)
    square, trace = s_K @ s_K, np.trace(cov_KK)
    noise, true = np.square(cov_KK).sum(), max(square - trace, 0.0)
    along = max(s_K @ cov_KK @ s_K - noise, 0.0)  # the variance in the direction of the gaps
    if alone or noise <= 1e-30 * square**2:  # or all gaps are equal: nothing to judge by
        nothing = float("nan") if square else 0.0
        return float(np.sqrt(true)), nothing, nothing
    unit = (noise + 2 * along) / (trace + 2 * true)
    freedom = trace / unit

    def end(tail: float) -> float:
        """The square of which this share of samples would lie below ours."""
        ratio = square / unit

        def excess(centre):
            return ncx2.cdf(ratio, freedom, centre) - tail

        if chi2.cdf(ratio, freedom) <= tail:
            return 0.0
        if ratio > LARGE:
            return unit * max((np.sqrt(ratio) - norm.ppf(tail)) ** 2 - freedom, 0.0)
        most = ratio + 10 * np.sqrt(ratio + freedom) + 100
        return unit * brentq(excess, 0.0, most)

    low = end(0.975) or end(0.95)
    return float(np.sqrt(true)), float(np.sqrt(low)), float(np.sqrt(end(0.025)))


def reliability(
    label_N: np.ndarray,
    predicted_N: np.ndarray,
    patient_N: np.ndarray,
    *,
    num_bins: int = NUM_BINS,
    min_patients: int = 10,
) -> list[dict]:
    """The reliability curve: per bin the mean prediction, the observed rate and its 95 % interval.

    The interval is Wilson's, with the bin's number of patients (not rows) as sample size. Bins of
    fewer than `min_patients` patients are left out.
    """
    index_N, curve = bin_index(predicted_N, num_bins), []
    for k in range(num_bins):
        inside = index_N == k
        patients = len(np.unique(patient_N[inside]))
        if patients >= min_patients:
            rate, mean = float(label_N[inside].mean()), float(predicted_N[inside].mean())
            low, high = wilson(rate, patients)
            curve.append({"predicted": mean, "observed": rate, "low": low, "high": high})
    return curve


def wilson(rate: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion."""
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return float(centre - half), float(centre + half)


def brier_parts(
    label_N: np.ndarray, predicted_N: np.ndarray, num_bins: int = NUM_BINS
) -> dict[str, float]:
    """Murphy's decomposition: Brier = reliability - resolution + uncertainty (+ within bins).

    `within` is what binning leaves over; the four parts add up to the Brier score exactly.
    """
    index_N, n = bin_index(predicted_N, num_bins), len(label_N)
    n_K = np.bincount(index_N, minlength=num_bins)
    safe_K = np.maximum(n_K, 1)
    label_K = np.bincount(index_N, weights=label_N, minlength=num_bins) / safe_K
    mean_K = np.bincount(index_N, weights=predicted_N, minlength=num_bins) / safe_K
    base = float(label_N.mean())
    parts = {
        "reliability": float(np.sum(n_K * (mean_K - label_K) ** 2) / n),
        "resolution": float(np.sum(n_K * (label_K - base) ** 2) / n),
        "uncertainty": base * (1 - base),
    }
    brier = float(np.mean((predicted_N - label_N) ** 2))
    within = brier - parts["reliability"] + parts["resolution"] - parts["uncertainty"]
    return parts | {"within": within}
