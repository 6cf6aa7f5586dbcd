"""What is planted in the synthetic cohort: factors, what reports them, and what depends on them.

Shapes: n stays.
"""

import functools

import numpy as np

from m4.data.sets.mimiciv import phenotypes as real

MODALITIES = ("vitals", "labs", "static", "medications", "notes", "cxr", "ecg")
FACTORS = ("severity", "context", "organ", "image", "notes_sign", "ecg_sign")
SIGNS = ("notes_sign", "ecg_sign")  # +1 or -1 with equal odds; the others are standard normal
# Standard deviation of the readout noise of each factor in each modality.
READOUT = {
    "vitals": {"severity": 0.4},
    "labs": {"organ": 0.4},
    "static": {},
    "medications": {"organ": 0.4},
    "notes": {"context": 0.4, "notes_sign": 0.3},
    "cxr": {"image": 0.3},
    "ecg": {"ecg_sign": 0.3},
}
# Log-odds per unit of factor; for `los` the change of log(days beyond 2).
EFFECTS = {
    "ihm48": {
        "severity": 2.7,
        "context": 0.6,
        "organ": 1.3,
        "image": 1.9,
        # together: both signs positive raises the log-odds by 5.2, one alone does nothing
        "notes_sign": 1.3,
        "ecg_sign": 1.3,
        ("notes_sign", "ecg_sign"): 1.3,
    },
    "los": {"organ": 0.5, "severity": 0.3, "context": 0.3, "image": 0.5},
}
DEATH_RATE = 0.13
LOS_NOISE = 0.6
PRESENCE = {"labs": 0.985, "medications": 0.95, "notes": 0.912, "cxr": 0.25, "ecg": 0.52}
MECHANISMS = ("mcar", "mar", "mnar")
# Kind of ICU -> log-odds against a medical one: per unit of severity, and with an ECG.
ICU_TYPES = {"medical": (0.0, 0.0), "surgical": (-0.9, 0.0), "cardiac": (0.0, 1.2)}
# What presence depends on under MNAR; under MAR it is the severity that the vitals show.
DRIVERS = {"notes": "context", "cxr": "image", "ecg": "ecg_sign"}


def factors(rng, n):
    """Factor name -> f64[n]."""
    z = rng.standard_normal((n, len(FACTORS)))
    return {f: np.sign(z[:, k]) if f in SIGNS else z[:, k] for k, f in enumerate(FACTORS)}


def readouts(rng, z):
    """Modality -> factor -> what the modality reports of it, f64[n]."""
    n = len(z["severity"])
    return {
        m: {f: z[f] + sigma * rng.standard_normal(n) for f, sigma in carried.items()}
        for m, carried in READOUT.items()
    }


def presence_bits(rng, z, read, missing, rates):
    """Modality -> bool[n]; every mechanism keeps the rates."""
    present = {}
    for m in MODALITIES:
        rate = (PRESENCE | dict(rates)).get(m, 1.0)
        probability = np.full(len(z["severity"]), rate)
        if missing != "mcar" and m in DRIVERS and 0 < rate < 1:
            spread = READOUT["vitals"]["severity"] if missing == "mar" else 0.0
            driver = read["vitals"]["severity"] if missing == "mar" else z[DRIVERS[m]]
            everyone = population()["severity" if missing == "mar" else DRIVERS[m]]
            everyone = everyone * np.hypot(1, spread)
            probability = sigmoid(driver + intercept(everyone, rate))
        present[m] = rng.random(len(probability)) < probability
    return present


def icu_types(rng, z, present):
    """The kind of ICU, str[n]: surgical for the healthier, cardiac with an ECG."""
    odds = [a * z["severity"] + b * present["ecg"] for a, b in ICU_TYPES.values()]
    chosen = np.argmax(odds + rng.gumbel(size=(len(odds), len(present["ecg"]))), axis=0)
    return np.array([*ICU_TYPES])[chosen]


def labels(rng, z):
    """Task name -> f64[n] (`phe`: f64[n, 25]); `los` in days, at least 2."""
    n = len(z["severity"])
    offsets = label_offsets()
    died = rng.random(n) < sigmoid(effect(EFFECTS["ihm48"], z) + offsets[0])
    days = 2 + 2 * np.exp(effect(EFFECTS["los"], z) + LOS_NOISE * rng.standard_normal(n))
    phe = [
        rng.random(n) < sigmoid(effect(effects, z) + offset)
        for (effects, _), offset in zip(phenotypes(), offsets[1:], strict=True)
    ]
    return {
        "ihm48": died.astype(np.float64),
        "los": days,
        "los_under_96h": ((days < 4) & ~died).astype(np.float64),
        "phe": np.stack(phe, axis=1).astype(np.float64),
    }


def phenotypes():
    """(effects, prevalence) of the 25 phenotypes: one strong factor each, one weak, in turn."""
    k = len(FACTORS)
    return [
        ({FACTORS[j % k]: 1.6, FACTORS[(j + 1 + j // k) % k]: 0.6}, 0.4 * 0.9**j + 0.05)
        for j in range(len(real.NAMES))
    ]


@functools.cache
def population():
    """Factors of a fixed large sample, on which intercepts are solved for."""
    return factors(np.random.default_rng(1), 20_000)


@functools.cache
def label_offsets():
    """Intercepts of death and of the 25 phenotypes that give the wanted prevalences."""
    asked = [(EFFECTS["ihm48"], DEATH_RATE), *phenotypes()]
    return [intercept(effect(effects, population()), rate) for effects, rate in asked]


def effect(effects, z):
    """Weighted sum of factors and of products of factors, f64[n]."""
    return sum(
        weight * np.prod([z[f] for f in ((names,) if isinstance(names, str) else names)], axis=0)
        for names, weight in effects.items()
    )


def intercept(logit, rate):
    """The b for which sigmoid(logit + b) has mean `rate`, by bisection."""
    low, high = -20.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if sigmoid(logit + middle).mean() < rate else (low, middle)
    return middle


def sigmoid(x):
    """Logistic function; arguments here are far from overflow."""
    return 1 / (1 + np.exp(-x))
