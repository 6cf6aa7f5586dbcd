"""What each modality of the synthetic cohort is worth: the answer that an evaluation should find.

Shapes: n stays; posterior means and variances are f64[n].
"""

import itertools

import numpy as np

from m4.data.sets.synthetic.factors import (
    DRIVERS,
    EFFECTS,
    FACTORS,
    LOS_NOISE,
    MODALITIES,
    READOUT,
    SIGNS,
    factors,
    label_offsets,
    labels,
    phenotypes,
    presence_bits,
    readouts,
    sigmoid,
)

TIE = 0.01  # leave-one-out differences below this are a tie


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
        phe = [auroc(y["phe"][:, j], p) for j, p in enumerate(score["phe"])]
        return {
            "ihm48": float(auroc(y["ihm48"], score["ihm48"])),
            "los": _r2(np.log1p(y["los"]), score["los"]),
            "los_under_96h": float(auroc(y["los_under_96h"], score["los_under_96h"])),
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


def bayes(*, modalities=MODALITIES, missing="mcar", presence=None, n=20_000, seed=20240205):
    """Ideal answers to `ihm48` of `n` fresh stays under every subset of the modalities.

    As for `truth`, of which this is the game: what each modality and pair is worth follows from it.

    Returns:
      (present bool[n, M], died bool[n], {kept bool tuple of M: chance of death f64[n]}), the
      subsets in no order, the empty one among them.
    """
    rng = np.random.default_rng(seed)
    z = factors(rng, n)
    read = readouts(rng, z)
    there = presence_bits(rng, z, read, missing, presence or {})
    died = labels(rng, z)["ihm48"] > 0
    answers = {}
    for keep in itertools.product((False, True), repeat=len(modalities)):
        kept = [*itertools.compress(modalities, keep)]
        post = {f: posterior(f, z, read, there, kept, missing) for f in FACTORS}
        answers[keep] = _expected(EFFECTS["ihm48"], post, label_offsets()[0])
    return np.stack([there[m] for m in modalities], axis=-1), died, answers


def _bayes_scores(z, read, there, kept, missing):
    """Score per task given the readouts of `kept` modalities; `phe`: a list of 25."""
    post = {f: posterior(f, z, read, there, kept, missing) for f in FACTORS}
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


def posterior(factor, z, read, there, kept, missing):
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


def auroc(y, score):
    """Mann-Whitney statistic with ties counted half."""
    positive = y > 0
    n1, n0 = positive.sum(), (~positive).sum()
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    return (rank[positive].mean() - (n1 + 1) / 2) / n0


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
