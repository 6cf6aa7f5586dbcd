"""A cohort of which the best next test differs between patients: `planted="next_test"`.

Everybody has one of three problems, with equal odds, and three organs in a state of their own,
which is standard normal. The vitals say how severe things are and which problem it is. Of the state
of an organ its own test alone tells, and only that of the organ with the problem matters for death:

    log-odds of death = SEVERITY * severity + STATE * state of the problem's organ + constant

So the vitals say which test is worth doing, and the other two tell nothing. Who does the best test
first gains what a fixed order of tests gains a third of the time.

Shapes: n stays, f columns, K nodes of a quadrature.
"""

import functools
import itertools

import numpy as np

from m4.data.sets.synthetic.factors import intercept, sigmoid
from m4.specs import TaskSpec

MODALITIES = ("vitals", "labs", "cxr", "ecg")
TESTS = {"heart": "ecg", "lung": "cxr", "kidney": "labs"}  # problem -> what tells of that organ
TASKS = ("ihm48", "problem")
PROBLEM = TaskSpec(
    "problem",
    "multiclass",
    dim=len(TESTS),
    labels=tuple(TESTS),
    title="Which organ has the problem",
    definition="Drawn with equal odds; the vitals show it.",
)
FACTORS = ("severity", *TESTS)
SEVERITY, STATE = 1.0, 5.0  # log-odds of death per unit
DEATH_RATE = 0.4
# Standard deviation of the readout noise of each factor in each modality.
READOUT = {"vitals": {"severity": 0.4}} | {test: {organ: 0.3} for organ, test in TESTS.items()}
PRESENCE = {"labs": 0.85, "cxr": 0.85, "ecg": 0.85}
# Problem -> what it adds to columns of the vitals, in their standard deviations.
SHIFTS = {
    "heart": {"heart_rate": 1.5, "systolic_bp": -1.5, "mean_bp": -1.5},
    "lung": {"respiratory_rate": 1.5, "spo2": -1.5},
    "kidney": {"diastolic_bp": 1.5, "temperature": 1.5, "mean_bp": 1.5},
}
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(32)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def factors(rng, n):
    """Factor name -> f64[n], and 'problem' -> i64[n], the place in `TESTS`."""
    z = rng.standard_normal((n, len(FACTORS)))
    return dict(zip(FACTORS, z.T, strict=True)) | {"problem": rng.integers(len(TESTS), size=n)}


def readouts(rng, z):
    """Modality -> factor -> what the modality reports of it, f64[n]."""
    n = len(z["severity"])
    return {
        m: {f: z[f] + sigma * rng.standard_normal(n) for f, sigma in carried.items()}
        for m, carried in READOUT.items()
    }


def presence_bits(rng, z, rates):
    """Modality -> bool[n], at random."""
    rates = PRESENCE | dict(rates)
    return {m: rng.random(len(z["severity"])) < rates.get(m, 1.0) for m in MODALITIES}


def shift(problem, columns):
    """What a problem adds to columns of the vitals, f64[f], in their standard deviations."""
    own = SHIFTS[[*TESTS][problem]]
    return np.array([own.get(name, 0.0) for name in columns])


def labels(rng, z):
    """Task name -> f64[n]; `problem` is its place in `TESTS`."""
    died = rng.random(len(z["severity"])) < sigmoid(_log_odds(z) + _constant())
    return {"ihm48": died.astype(np.float64), "problem": z["problem"]}


def _log_odds(z):
    own = np.choose(z["problem"], [z[organ] for organ in TESTS])
    return SEVERITY * z["severity"] + STATE * own


@functools.cache
def _constant():
    """The intercept that gives `DEATH_RATE`, of a fixed large sample."""
    return intercept(_log_odds(factors(np.random.default_rng(1), 20_000)), DEATH_RATE)


def bayes(*, presence=None, n=20_000, seed=20240205):
    """Ideal answers to `ihm48` of `n` fresh stays under every subset of the modalities.

    Exact, by quadrature: with vitals the problem is known and of the others only its test counts;
    without, the chance is the mean over the problems.

    Returns:
      (present bool[n, M], died bool[n], problem i64[n], {kept bool tuple of M: chance of death
      f64[n]}), the empty subset among them.
    """
    rng = np.random.default_rng(seed)
    z = factors(rng, n)
    read = readouts(rng, z)
    there = presence_bits(rng, z, presence or {})
    died = labels(rng, z)["ihm48"] > 0
    answers = {}
    for keep in itertools.product((False, True), repeat=len(MODALITIES)):
        kept = [*itertools.compress(MODALITIES, keep)]
        p_3n = np.stack([_chance(read, there, kept, organ) for organ in TESTS])
        known_n = there["vitals"] & ("vitals" in kept)
        answers[keep] = np.where(known_n, np.choose(z["problem"], p_3n), p_3n.mean(axis=0))
    return np.stack([there[m] for m in MODALITIES], axis=-1), died, z["problem"], answers


def _chance(read, there, kept, organ):
    """Chance of death if `organ` has the problem, f64[n]."""
    mean, variance = _constant(), 0.0
    for factor, weight, m in (("severity", SEVERITY, "vitals"), (organ, STATE, TESTS[organ])):
        spread = READOUT[m][factor] ** 2
        told = there[m] & (m in kept)
        mean = mean + weight * np.where(told, read[m][factor] / (1 + spread), 0.0)
        variance = variance + weight**2 * np.where(told, spread / (1 + spread), 1.0)
    return sigmoid(mean[:, None] + np.sqrt(variance)[:, None] * NODES) @ WEIGHTS


def truth(*, presence=None, n=20_000):
    """What the vitals advise and what each test is worth after them, by construction.

    Returns:
      A dict with 'start': what everybody has; 'next': problem -> the test that tells; 'gain':
      problem -> test -> nats a patient of the log probability of what came true, over the vitals
      alone, among those who have the test.
    """
    present, died, problem, answers = bayes(presence=presence, n=n)

    def worth(*names):
        p = answers[tuple(m in names for m in MODALITIES)]
        return np.log(np.where(died, p, 1 - p))

    gain = {}
    for k, organ in enumerate(TESTS):
        gain[organ] = {}
        for test in TESTS.values():
            own = (problem == k) & present[:, MODALITIES.index(test)]
            more = worth("vitals", test) - worth("vitals")
            gain[organ][test] = float(more[own].mean()) if own.any() else float("nan")
    return {"start": "vitals", "next": dict(TESTS), "gain": gain}
