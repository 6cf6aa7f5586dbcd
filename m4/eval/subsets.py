"""Which modality subsets a sweep evaluates, and what they are called.

`eval.subsets` says how many:

| value | subsets |
|---|---|
| false | the full one |
| true, auto | those that a reader asks about (`choose`) |
| all | besides, every other: up to 2^10; of more modalities as sample:1024 |
| sample:K | besides, about K more: every one that random orders of the modalities pass (`orders`) |

Letters: S subsets, N rows, M modalities.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Literal

import numpy as np

ALL_UP_TO = 4
EXACT_UP_TO = 10  # modalities of which all subsets are swept if asked for
BUDGET = 2**EXACT_UP_TO
Kind = Literal["full", "without", "only", "pattern", "other", "more"]


@dataclasses.dataclass(frozen=True)
class Subset:
    """A set of modalities that are kept; all others are masked."""

    label: str
    kind: Kind
    keep: tuple[bool, ...]  # bool[M]


def choose(
    names: tuple[str, ...],
    present_NM: np.ndarray,
    patient_N: np.ndarray,
    *,
    min_patients: int = 10,
    how: bool | str = True,
    seed: int = 0,
) -> list[Subset]:
    """The subsets worth evaluating, the full one first, none twice; `how` is `eval.subsets`.

    Up to four modalities: all 2^M - 1. Above: full, leave-one-out, only-one, and every natural
    presence pattern that at least `min_patients` patients have. After those come the subsets of
    kind 'more', which serve analyses of all of them together and have no scores of their own;
    `seed` is that of the random orders that pass them, if not all are there.
    """
    count = len(names)
    if not how:
        return [_named(names, (True,) * count)]
    keeps = [(True,) * count]
    keeps += [tuple(i != m for i in range(count)) for m in range(count)]
    keeps += [tuple(i == m for i in range(count)) for m in range(count)]
    if count <= ALL_UP_TO:
        keeps += sorted(itertools.product((False, True), repeat=count), key=lambda k: -sum(k))
    else:
        keeps += [keep for keep, n in patterns(present_NM, patient_N) if n >= min_patients]
    found = [_named(names, keep) for keep in dict.fromkeys(keeps) if any(keep)]
    budget = _budget(how)
    known = {subset.keep for subset in found}
    more = [keep for keep in every(count, budget, seed) if keep not in known] if budget else []
    return found + [Subset(describe(names, keep), "more", keep) for keep in more]


def every(count: int, budget: int = BUDGET, seed: int = 0) -> list[tuple[bool, ...]]:
    """All subsets but the empty one, the large first; above `budget` those that `orders` pass."""
    if 2**count <= budget:
        keeps = set(itertools.product((False, True), repeat=count))
    else:
        keeps = {(True,) * count}
        for order in drawn(count, seed):
            passed = keeps.union(*(prefixes(one) for one in (order, order[::-1])))
            if len(passed) > budget and len(keeps) > 1:
                break
            keeps = passed
    return sorted((keep for keep in keeps if any(keep)), key=lambda k: (-sum(k), k))


def orders(keep_SM: np.ndarray, seed: int = 0) -> list[tuple[int, ...]]:
    """The random orders of the modalities, each with its reverse, that pass only these subsets.

    `seed` is that of `choose`: other orders pass other subsets.

    The effect of a modality when it joins, averaged over them, is an unbiased estimate of its
    Shapley value (Mitchell et al., JMLR 2022: pairs of reversed orders have the smaller variance).
    """
    known, found = {tuple(map(bool, keep)) for keep in keep_SM}, []
    for order in itertools.islice(drawn(keep_SM.shape[1], seed), len(known)):
        pair = order, order[::-1]
        if not all(keep in known for one in pair for keep in prefixes(one) if any(keep)):
            break
        found += pair
    return found


def prefixes(order: tuple[int, ...]) -> list[tuple[bool, ...]]:
    """The subsets that an order passes, from the empty one to the full one."""
    return [tuple(m in order[:n] for m in range(len(order))) for n in range(len(order) + 1)]


def drawn(count: int, seed: int = 0) -> Iterator[tuple[int, ...]]:
    """Random orders of the modalities, without end."""
    rng = np.random.default_rng(seed)
    while True:
        yield tuple(rng.permutation(count).tolist())


def _budget(how: bool | str) -> int:
    """How many subsets a setting of `eval.subsets` is for, 0 for those of `choose` alone."""
    if how in (True, "auto"):
        return 0
    return BUDGET if how == "all" else int(str(how).removeprefix("sample:"))


def matrix(subsets: list[Subset]) -> np.ndarray:
    """The subsets as bool[S, M], what `sweep` takes."""
    return np.array([subset.keep for subset in subsets], bool)


def patterns(present_NM: np.ndarray, patient_N: np.ndarray) -> list[tuple[tuple[bool, ...], int]]:
    """Natural presence patterns with their number of patients, the most frequent first."""
    rows, inverse_N = np.unique(np.asarray(present_NM, bool), axis=0, return_inverse=True)
    counted = [
        (tuple(map(bool, row)), len(np.unique(patient_N[inverse_N.reshape(-1) == i])))
        for i, row in enumerate(rows)
    ]
    return sorted(counted, key=lambda item: (-item[1], item[0]))


def describe(names: tuple[str, ...], keep: tuple[bool, ...]) -> str:
    """The kept modalities: 'vitals + labs', 'all', or 'all but ecg' where that is shorter."""
    gone = [name for name, k in zip(names, keep, strict=True) if not k]
    if not gone:
        return "all"
    if len(gone) <= 2 and len(names) > 5:
        return f"all but {', '.join(gone)}"
    return " + ".join(itertools.compress(names, keep)) or "nothing"


def _named(names: tuple[str, ...], keep: tuple[bool, ...]) -> Subset:
    count = len(names)
    if all(keep):
        return Subset("full", "full", keep)
    if sum(keep) == 1:
        return Subset(f"only {names[keep.index(True)]}", "only", keep)
    if sum(keep) == count - 1:
        return Subset(f"without {names[keep.index(False)]}", "without", keep)
    if count <= ALL_UP_TO:
        return Subset(describe(names, keep), "other", keep)
    return Subset(f"pattern {describe(names, keep)}", "pattern", keep)
