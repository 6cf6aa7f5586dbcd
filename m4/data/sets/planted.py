"""What is planted in the synthetic cohort, and what each modality is therefore worth.

`m4.data.sets.synthetic` tells the story and makes the streams; here are the factors, how modalities
report them and tasks depend on them, and `truth`, the answer that an evaluation should find.
Shapes: n stays; posterior means and variances are f64[n].
"""

import functools

import numpy as np

from m4.data.sets.mimiciv import schema

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
# What presence depends on under MNAR; under MAR it is the severity that the vitals show.
DRIVERS = {"notes": "context", "cxr": "image", "ecg": "ecg_sign"}
TIE = 0.01  # leave-one-out differences below this are a tie


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
        for j in range(len(schema.PHENOTYPES))
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


def truth(*, modalities=MODALITIES, missing="mcar", presence=None, n=20_000):
    """What an ideal model reaches with all modalities, without one, and with one alone.

    Derived by construction, not by fitting: given its readouts and which modalities are there, a
    stay's factors have a known posterior (normal with precision 1 + sum of readout precisions; for
    a sign, mean tanh(sum of readout / variance)). The expected log-odds under it, shrunk by its
    variance as in logistic-normal integrals, is the Bayes score up to that approximation. It is
    evaluated on `n` fresh stays (Monte Carlo error of a difference about 0.001). The figures are
    ceilings: a model reads a readout only through sampling noise of the streams and must learn from
    finitely many patients.

    Args:
      modalities: as given to the cohort.
      missing: as given to the cohort.
      presence: as given to the cohort.
      n: stays to evaluate on.

    Returns:
      A dict with
        'full': task -> metric with every modality (AUROC; `phe` macro AUROC; `los` R2 of
          log1p(days));
        'leave_one_out': task -> modality -> loss of metric when the modality is taken away;
        'only_one': task -> modality -> metric with that modality alone;
        'tiers': task -> modalities from most to least missed, as tuples of ties: neighbours
          within `TIE` of each other share a tuple;
        'redundant', 'synergistic': the planted pairs; 'noise': modalities that carry nothing.
    """
    rng = np.random.default_rng(20240205)
    z = factors(rng, n)
    read = readouts(rng, z)
    there = presence_bits(rng, z, read, missing, presence or {})
    y = labels(rng, z)

    def metrics(kept):
        score = _bayes_scores(z, read, there, kept, missing)
        phe = [_auroc(y["phe"][:, j], p) for j, p in enumerate(score["phe"])]
        return {
            "ihm48": float(_auroc(y["ihm48"], score["ihm48"])),
            "los": _r2(np.log1p(y["los"]), score["los"]),
            "los_under_96h": float(_auroc(y["los_under_96h"], score["los_under_96h"])),
            "phe": float(np.mean(phe)),
        }

    full = metrics(modalities)
    without = {m: metrics([k for k in modalities if k != m]) for m in modalities}
    alone = {m: metrics([m]) for m in modalities}
    drops = {t: {m: full[t] - without[m][t] for m in modalities} for t in full}
    return {
        "full": full,
        "leave_one_out": drops,
        "only_one": {t: {m: alone[m][t] for m in modalities} for t in full},
        "tiers": {t: _tiers(drops[t]) for t in full},
        "redundant": ("labs", "medications"),
        "synergistic": ("notes", "ecg"),
        "noise": tuple(m for m in modalities if not READOUT[m]),
    }


def _bayes_scores(z, read, there, kept, missing):
    """Score per task given the readouts of `kept` modalities; `phe`: a list of 25."""
    post = {f: _posterior(f, z, read, there, kept, missing) for f in FACTORS}
    scores = {}
    offsets = label_offsets()
    scores["ihm48"] = dying = _expected(EFFECTS["ihm48"], post, offsets[0])
    mean, variance = _moments(EFFECTS["los"], post)
    scores["los"] = mean
    scores["los_under_96h"] = (1 - dying) * sigmoid(-1.7 * mean / np.sqrt(variance + LOS_NOISE**2))
    scores["phe"] = [
        _expected(effects, post, offset)
        for (effects, _), offset in zip(phenotypes(), offsets[1:], strict=True)
    ]
    return scores


def _posterior(factor, z, read, there, kept, missing):
    """Mean and variance of a factor given what `kept` modalities report."""
    n = len(z[factor])
    total, precision = np.zeros(n), np.zeros(n)
    for m in kept:
        if factor in READOUT[m]:
            weight = there[m] / READOUT[m][factor] ** 2
            total, precision = total + weight * read[m][factor], precision + weight
    if factor in SIGNS:
        mean, variance = np.tanh(total), 1 - np.tanh(total) ** 2
    else:
        mean, variance = total / (1 + precision), 1 / (1 + precision)
    for m in kept:
        if missing == "mnar" and DRIVERS.get(m) == factor:  # absence itself tells
            absent = z[factor][~there[m]]
            mean = np.where(there[m], mean, absent.mean())
            variance = np.where(there[m], variance, absent.var())
    return mean, variance


def _moments(effects, post):
    """Mean and variance of the summed effects; factors are independent."""
    total, spread = 0.0, 0.0
    for names, weight in effects.items():
        names = (names,) if isinstance(names, str) else names
        means = np.prod([post[f][0] for f in names], axis=0)
        squares = np.prod([post[f][0] ** 2 + post[f][1] for f in names], axis=0)
        total, spread = total + weight * means, spread + weight**2 * (squares - means**2)
    return total, spread


def _expected(effects, post, offset):
    """E[sigmoid(effects + offset)] by MacKay's approximation."""
    mean, variance = _moments(effects, post)
    return sigmoid((mean + offset) / np.sqrt(1 + np.pi * variance / 8))


def _auroc(y, score):
    """Mann-Whitney statistic with ties counted half."""
    from scipy.stats import rankdata

    positive = y > 0
    n1, n0 = positive.sum(), (~positive).sum()
    return (rankdata(score)[positive].mean() - (n1 + 1) / 2) / n0


def _r2(y, score):
    if np.std(score) < 1e-12:
        return 0.0
    return float(np.corrcoef(y, score)[0, 1] ** 2)


def _tiers(drops):
    tiers, last = [], np.inf
    for m, drop in sorted(drops.items(), key=lambda item: -item[1]):
        tiers = [*tiers[:-1], (*tiers[-1], m)] if last - drop < TIE else [*tiers, (m,)]
        last = drop
    return tuple(tiers)
