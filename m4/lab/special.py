"""What experts do: what they know, if they are needed, when they settle, whether seeds agree.

Everything that chance alone brings is taken off: information has the mean of its permutation null
removed (adjusted mutual information), agreement that of the same seeds before their first step, an
ablation that of random experts which carry the same load.

Letters: R rows, M modalities, E experts, G groups, N tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from m4.eval import specialisation

DRAWS = 20  # of permutations and of random experts: only their mean counts
ALONE = 0.5  # share of an expert's tokens from which on it belongs to a modality
COLLAPSED = 0.5  # share of experts without work from which on a layer has collapsed
MAX_PATTERNS = 8


def information(
    by_row_RME: np.ndarray,
    present_RM: np.ndarray,
    patient_R: np.ndarray,
    cluster_RM: np.ndarray | None,
    rng: np.random.Generator,
) -> dict[str, float | None]:
    """Adjusted information of a token's expert with its modality, row's pattern and cluster.

    0 is chance and 1 says that the expert tells the group. That with the presence pattern is given
    the modality; clusters are counted over all modalities.
    """
    share_RME = specialisation.evened(by_row_RME.astype(np.float64), rng)
    null = specialisation.shuffled_modalities(share_RME, patient_R, rng, DRAWS)
    found = {"modality": specialisation.information(share_RME.sum(0), null)["share"]}
    patterns, pattern_R = np.unique(present_RM, axis=0, return_inverse=True)
    pattern_R = pattern_R.reshape(-1)
    common = np.argsort(-np.bincount(pattern_R, minlength=len(patterns)))[:MAX_PATTERNS]
    kept_R = np.isin(pattern_R, common)
    if len(common) > 1:
        group_R = np.searchsorted(np.sort(common), pattern_R[kept_R])
        counts = specialisation.shuffled_groups(
            share_RME[kept_R], group_R, patient_R[kept_R], rng, DRAWS
        )
        found["pattern"] = specialisation.information(next(counts), counts)["share"]
    if cluster_RM is not None:
        found["cluster"] = _of_tokens(share_RME, cluster_RM, rng)
    return found


def by_task(
    by_row_RME: np.ndarray, group_R: np.ndarray, patient_R: np.ndarray, rng: np.random.Generator
) -> float | None:
    """Adjusted information of a token's expert with a group of its row, given the modality."""
    share_RME = specialisation.evened(by_row_RME.astype(np.float64), rng)
    if len(np.unique(group_R)) < 2:
        return None
    counts = specialisation.shuffled_groups(share_RME, group_R, patient_R, rng, DRAWS)
    return specialisation.information(next(counts), counts)["share"]


def _of_tokens(share_RME, cluster_RM, rng) -> float | None:
    """Of (modality, cluster), with the labels of all tokens exchanged."""
    row, m, e = np.nonzero(share_RME)
    has_N, (_, modalities, experts) = share_RME.sum(2) > 0, share_RME.shape
    label_RM = cluster_RM * modalities + np.arange(modalities)
    token_RM = np.cumsum(has_N.ravel()).reshape(has_N.shape) - 1
    token, weight, label_N = token_RM[row, m], share_RME[row, m, e], label_RM[has_N]
    shape = int(label_RM.max()) + 1, experts

    def count(label_N) -> np.ndarray:
        return np.bincount(label_N[token] * experts + e, weight, np.prod(shape)).reshape(shape)

    null: Iterator[np.ndarray] = (count(rng.permutation(label_N)) for _ in range(DRAWS))
    return specialisation.information(count(label_N), null)["share"]


def saturation(selections: Sequence[np.ndarray]) -> list[float]:
    """Share of the last checkpoint's choices that each checkpoint has already, of [R, M, E]."""
    last = selections[-1]
    total = max(float(last.sum()), 1e-30)
    return [float(np.minimum(found, last).sum() / total) for found in selections]


def agreement(a_RME: np.ndarray, b_RME: np.ndarray) -> float:
    """How far two seeds send the same tokens to the same experts, up to the experts' names.

    Experts are matched so that most choices agree (Hungarian): it finds something in anything.
    """
    tokens_a, tokens_b = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (a_RME, b_RME))
    has = (tokens_a.sum(1) > 0) & (tokens_b.sum(1) > 0)
    return _matched(tokens_a[has], tokens_b[has])


def _matched(a_NE: np.ndarray, b_NE: np.ndarray) -> float:
    both_EE = a_NE.T @ b_NE
    rows, columns = linear_sum_assignment(-both_EE)
    same = np.minimum(a_NE[:, rows], b_NE[:, columns]).sum()
    return float(same / max(np.minimum(a_NE.sum(), b_NE.sum()), 1e-30))


def collapse(load_E: np.ndarray) -> dict[str, float | bool]:
    """How evenly the experts work, and whether half of them don't."""
    found = specialisation.balance(load_E)
    return found | {"collapsed": bool(found["dead"] >= COLLAPSED)}


def ablations(by_modality_ME: np.ndarray, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
    """Of every modality its experts, and random others that carry as much: bool[E] each.

    An expert belongs to the modality of most of its tokens. Random experts are those of the others,
    added in random order as long as they bring the load nearer to that of the modality's own.
    """
    load_E = by_modality_ME.sum(0)
    owned_ME = by_modality_ME > ALONE * np.maximum(load_E, 1e-30)
    out = []
    for m, own_E in enumerate(owned_ME):
        if not own_E.any() or own_E.all():
            continue
        random_E, left = np.zeros_like(own_E), load_E[own_E].sum()
        for e in rng.permutation(np.flatnonzero(~own_E)):
            if abs(left - load_E[e]) < left:
                random_E[e], left = True, left - load_E[e]
        out.append({"modality": np.array(m), "own": own_E, "random": random_E})
    return out


def necessity(
    score: Callable[..., float | None],
    intact: float | None,
    by_modality_ME: np.ndarray,
    names: Sequence[str],
    seed: int,
) -> dict[str, object]:
    """What interventions do to the metric; `score(ablated_E=, dropping=, shuffling=)`.

    {intact, without_first, shuffled, ablated: [{modality, experts, own, random}]}.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, object] = {
        "intact": intact,
        "without_first": score(dropping=1.0),
        "shuffled": score(shuffling=1.0),
    }
    groups: list[Mapping[str, object]] = []
    for group in ablations(by_modality_ME, rng):
        groups.append(
            {
                "modality": names[int(group["modality"])],
                "experts": int(group["own"].sum()),
                "random_experts": int(group["random"].sum()),
                "own": score(ablated_E=group["own"]),
                "random": score(ablated_E=group["random"]),
            }
        )
    return found | {"ablated": groups}


def sparse(selections: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Choices at several checkpoints, of which most are none, for a file."""
    checkpoint, row, modality, expert = np.nonzero(np.stack(selections))
    count = np.stack(selections)[checkpoint, row, modality, expert]
    return {
        "shape": np.array([len(selections), *selections[0].shape]),
        "at": np.stack([checkpoint, row, modality, expert]).astype(np.uint16),
        "count": count.astype(np.float32),
    }


def dense(found: Mapping[str, np.ndarray]) -> np.ndarray:
    """The inverse of `sparse`, f32[checkpoints, R, M, E]."""
    out = np.zeros(found["shape"], np.float32)
    out[tuple(found["at"])] = found["count"]
    return out
