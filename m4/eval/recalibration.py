"""Calibration as two numbers: slope and intercept of a regression of outcomes on predictions.

Of a perfect model the slope is 1 and the intercept 0. A slope below 1 says that predictions are too
extreme, as those of an overfitted model are; the intercept, fitted with the slope at 1, says
whether they are too low (above 0) or too high on the whole (Van Calster et al., Journal of Clinical
Epidemiology 2016). Intervals are of the patient-clustered sandwich covariance with t quantiles.

Letters: n rows, k coefficients.
"""

from typing import Any

import numpy as np
from scipy.special import expit
from scipy.stats import t

from m4.eval.bootstrap import number

EDGE = 1e-7  # nearer to 0 or 1 a predicted probability counts as this far from it
STEPS, CLOSE = 50, 1e-9
NONE = {"value": None, "low": None, "high": None}


def logistic(y_n: np.ndarray, p_n: np.ndarray, patient_n: np.ndarray) -> dict[str, Any]:
    """{slope, intercept} of logit P(y) on logit p, each {value, low, high, note?}."""
    p_n = np.clip(np.asarray(p_n, np.float64), EDGE, 1 - EDGE)
    logit_n, y_n = np.log(p_n) - np.log1p(-p_n), np.asarray(y_n, np.float64)
    owner_n = np.unique(patient_n, return_inverse=True)[1].reshape(-1)
    sides = [len(np.unique(owner_n[side])) for side in (y_n > 0, y_n == 0)]
    units, ones_n = min(sides), np.ones_like(logit_n)
    if units < 2:
        return {"slope": {**NONE, "note": "fewer than two patients with an outcome"}} | {
            "intercept": dict(NONE)
        }
    slope = _fit(np.stack([ones_n, logit_n], 1), 0 * logit_n, y_n, owner_n, units)[1]
    return {"slope": slope, "intercept": _fit(ones_n[:, None], logit_n, y_n, owner_n, units)[0]}


def linear(y_n: np.ndarray, p_n: np.ndarray, patient_n: np.ndarray) -> dict[str, Any]:
    """{slope, intercept} of y on p, in the unit of y; the intercept is the mean of y - p."""
    owner_n = np.unique(patient_n, return_inverse=True)[1].reshape(-1)
    units, ones_n = int(owner_n.max()) + 1, np.ones(len(y_n))
    if units < 3 or np.ptp(p_n) == 0:
        return {"slope": {**NONE, "note": "all predictions are alike"}, "intercept": dict(NONE)}
    both = []
    for x_nk, target_n in ((np.stack([ones_n, p_n], 1), y_n), (ones_n[:, None], y_n - p_n)):
        beta, *_ = np.linalg.lstsq(x_nk, target_n, rcond=None)
        rest_n = target_n - x_nk @ beta
        both.append(_intervals(beta, x_nk.T @ x_nk, x_nk * rest_n[:, None], owner_n, units))
    return {"slope": both[0][1], "intercept": both[1][0]}


def _fit(x_nk, offset_n, y_n, owner_n, units: int) -> list[dict]:
    """Coefficients of a logistic regression by Newton's method, with intervals."""
    beta_k = np.zeros(x_nk.shape[1])
    for _ in range(STEPS):
        p_n = expit(x_nk @ beta_k + offset_n)
        hessian = (x_nk * (p_n * (1 - p_n))[:, None]).T @ x_nk
        if np.linalg.cond(hessian) > 1e12:
            break
        step = np.linalg.solve(hessian, x_nk.T @ (y_n - p_n))
        step *= min(1.0, 2.0 / (np.abs(step).max() + 1e-12))
        beta_k = beta_k + step
        if np.abs(step).max() < CLOSE:
            return _intervals(beta_k, hessian, x_nk * (y_n - p_n)[:, None], owner_n, units)
    note = "no estimate: the predictions are alike, or part the outcomes perfectly"
    return [{**NONE, "note": note}] * len(beta_k)


def _intervals(beta_k, hessian, score_nk, owner_n, units: int) -> list[dict]:
    """Student intervals by the sandwich covariance; scores are summed within patients first."""
    num = int(owner_n.max()) + 1
    score_Pk = np.zeros((num, len(beta_k)))
    np.add.at(score_Pk, owner_n, score_nk)
    bread = np.linalg.inv(hessian)
    cov = bread @ (score_Pk.T @ score_Pk) @ bread * num / max(num - 1, 1)
    half_k = t.ppf(0.975, max(units - 1, 1)) * np.sqrt(np.diag(cov))
    return [
        {"value": number(b), "low": number(b - half), "high": number(b + half)}
        for b, half in zip(beta_k, half_k, strict=True)
    ]
