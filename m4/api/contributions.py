"""What each modality adds to each prediction: Shapley values of the modalities of one patient.

A game whose players are the modalities and whose value is the model's prediction when the others
were never recorded; their values sum to the prediction less that of a patient of whom nothing is
known. An absent modality adds 0.

Letters: S subsets, N rows, M modalities, C labels, classes or values.
"""

import itertools
import math

import numpy as np

EXACT_UP_TO = 8  # modalities, 256 subsets
PERMUTATIONS = 64  # beyond that, each with its reverse


def subsets(count: int, *, seed: int = 0) -> np.ndarray:
    """The subsets that `shapley` needs, bool[S, M], the full one first and the empty one last."""
    if count <= EXACT_UP_TO:
        every = itertools.product((True, False), repeat=count)
        return np.array([*every], bool)
    prefixes = {keep for order in _orders(count, seed) for keep in _prefixes(order)}
    return np.array(sorted(prefixes, key=sum, reverse=True), bool)


def shapley(prediction_SNC: np.ndarray, subsets_SM: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """f64[N, M, C]: exact for up to `EXACT_UP_TO` modalities, else over random orders of them.

    Either way they sum over M to the prediction of the full less that of the empty subset.
    """
    count, value_SNC = subsets_SM.shape[1], prediction_SNC.astype(np.float64)
    place = {tuple(map(bool, keep)): s for s, keep in enumerate(subsets_SM)}
    total_MNC = np.zeros((count, *value_SNC.shape[1:]))
    if count <= EXACT_UP_TO:
        for keep, s in place.items():
            for m in (m for m in range(count) if not keep[m]):
                weight = math.factorial(sum(keep)) * math.factorial(count - sum(keep) - 1)
                joined = (*keep[:m], True, *keep[m + 1 :])
                gain_NC = value_SNC[place[joined]] - value_SNC[s]
                total_MNC[m] += weight / math.factorial(count) * gain_NC
        return np.moveaxis(total_MNC, 0, 1)
    orders = _orders(count, seed)
    for order in orders:
        path = [value_SNC[place[keep]] for keep in _prefixes(order)]
        for m, before, after in zip(order, path[:-1], path[1:], strict=True):
            total_MNC[m] += after - before
    return np.moveaxis(total_MNC / len(orders), 0, 1)


def _orders(count: int, seed: int) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    found = [tuple(rng.permutation(count).tolist()) for _ in range(PERMUTATIONS)]
    return [order for one in found for order in (one, one[::-1])]


def _prefixes(order: tuple[int, ...]) -> list[tuple[bool, ...]]:
    return [tuple(m in order[:n] for m in range(len(order))) for n in range(len(order) + 1)]
