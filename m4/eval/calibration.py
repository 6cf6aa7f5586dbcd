"""Calibration: equal-mass reliability curve, expected calibration error, Brier decomposition.

Letters: N rows, K bins.
"""

import numpy as np

NUM_BINS = 10


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
