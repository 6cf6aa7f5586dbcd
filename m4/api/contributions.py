"""What each modality adds to each prediction: Shapley values of the modalities of one patient.

A game whose players are the modalities and whose value is the model's prediction when the others
were never recorded; their values sum to the prediction less that of a patient of whom nothing is
known. An absent modality adds 0.

Letters: S subsets, N rows, M modalities, C labels, classes or values.
"""

import itertools

import numpy as np

from m4.eval.attribution import shapley_map
from m4.eval.subsets import drawn, prefixes

EXACT_UP_TO = 8  # modalities, 256 subsets
PERMUTATIONS = 64  # beyond that, each with its reverse


def subsets(count: int, *, seed: int = 0) -> np.ndarray:
    """The subsets that `shapley` needs, bool[S, M], the full one first and the empty one last."""
    if count <= EXACT_UP_TO:
        every = itertools.product((True, False), repeat=count)
        return np.array([*every], bool)
    passed = {keep for order in _orders(count, seed) for keep in prefixes(order)}
    return np.array(sorted(passed, key=sum, reverse=True), bool)


def shapley(prediction_SNC: np.ndarray, subsets_SM: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """f64[N, M, C]: exact for up to `EXACT_UP_TO` modalities, else over random orders of them.

    Either way they sum over M to the prediction of the full less that of the empty subset.
    """
    count = subsets_SM.shape[1]
    map_MS = shapley_map(subsets_SM, () if count <= EXACT_UP_TO else _orders(count, seed))
    if map_MS is None:
        raise ValueError("these are not the subsets of `subsets`")
    return np.einsum("ms,snc->nmc", map_MS, prediction_SNC.astype(np.float64))


def _orders(count: int, seed: int) -> list[tuple[int, ...]]:
    some = itertools.islice(drawn(count, seed), PERMUTATIONS)
    return [order for one in some for order in (one, one[::-1])]
