"""What each modality and each pair is worth: Shapley values and interactions with intervals.

Of the game of `m4.eval.games` (log loss first: AUROC saturates, so its pairs look redundant). The
Shapley value of a modality is what it adds when it joins, averaged over all orders; all of them sum
to what the full input is worth above knowing nothing. The interaction of a pair (Grabisch &
Roubens, Int. J. Game Theory 1999) is how much more they add together than apart, averaged likewise:
above 0 they are synergistic, below 0 redundant. `alone` is the value of order 1 beside the pairs
(k-SII of order 2, Bord & von Luxburg, AISTATS 2023): `alone` and pairs sum to the same total.

All are linear maps of a subset's values, so one product serves rows, groups and draws. Where not
every subset was swept, Shapley values are means over random orders, whose error is in the intervals
and p, too, and there are no pairs.

Letters: as `m4.eval.games`; K pairs of modalities.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from m4 import cells
from m4.eval import bootstrap, games, holm, metrics, scorer, subsets
from m4.eval.bootstrap import Draws, number
from m4.eval.games import Game

MIN_PAIRS = 10  # of random orders, below which nothing is said of chance
MAX_CATEGORIES = 12  # of a group column, the largest
RANK_DRAWS = 200  # of the primary metric, whose draws cannot be had by one product
RANK_CELLS = 400_000_000  # subsets x rows x outputs x draws up to which it has them


def shapley_map(keep_SM: np.ndarray, orders: Sequence[tuple[int, ...]] = ()) -> np.ndarray | None:
    """Values of subsets -> Shapley values, f64[M, S]; None if there are too few subsets for it.

    Over `orders`, which pass these subsets alone; without any exact where all subsets are there,
    else over those of `subsets.orders`.
    """
    count = keep_SM.shape[1]
    place = {tuple(map(bool, keep)): s for s, keep in enumerate(keep_SM)}
    if not orders and len(place) == 2**count:
        map_MS = np.zeros((count, len(keep_SM)))
        for keep, s in place.items():
            size = sum(keep)
            for m in range(count):
                other = size - keep[m]  # modalities that were there before
                weight = 1 / (count * math.comb(count - 1, other))
                map_MS[m, s] = weight if keep[m] else -weight
        return map_MS
    orders = orders or subsets.orders(keep_SM)
    return pair_maps(keep_SM, orders).mean(axis=0) if orders else None


def pair_maps(keep_SM: np.ndarray, orders: Sequence[tuple[int, ...]]) -> np.ndarray:
    """`shapley_map` over each order and the next one, its reverse, alone: f64[R, M, S]."""
    place = {tuple(map(bool, keep)): s for s, keep in enumerate(keep_SM)}
    map_RMS = np.zeros((len(orders) // 2, keep_SM.shape[1], len(keep_SM)))
    for i, order in enumerate(orders):
        passed = [place[keep] for keep in subsets.prefixes(order)]
        for m, before, after in zip(order, passed[:-1], passed[1:], strict=True):
            map_RMS[i // 2, m, after] += 0.5
            map_RMS[i // 2, m, before] -= 0.5
    return map_RMS


def interaction_map(keep_SM: np.ndarray) -> np.ndarray | None:
    """Values of all subsets -> pairwise Shapley interactions, f64[K, S] in the order of `pairs`."""
    count = keep_SM.shape[1]
    if len(keep_SM) != 2**count or count < 2:
        return None
    map_KS = np.zeros((math.comb(count, 2), len(keep_SM)))
    for s, keep in enumerate(keep_SM):
        size = int(keep.sum())
        for k, (a, b) in enumerate(pairs(count)):
            other = size - int(keep[a]) - int(keep[b])
            weight = 1 / ((count - 1) * math.comb(count - 2, other))
            map_KS[k, s] = weight if keep[a] == keep[b] else -weight
    return map_KS


def pairs(count: int) -> list[tuple[int, int]]:
    """All pairs of `count` modalities."""
    return list(itertools.combinations(range(count), 2))


def describe(game: Game) -> dict[str, Any] | None:
    """The section of one task, JSON; None where the swept subsets are too few.

    {unit, exact, subsets, orders, nothing, total: E, modalities: [{modality, shapley: E,
    if_present: E, alone: E?}], pairs: [{pair: [a, b], interaction: E}], primary: {metric,
    modalities: [{modality, shapley: E}]}, groups: {column: [{category, patients, modalities}]},
    combinations: [{keep: [name], worth: E}]}. An E has `p`, of pairs `p_holm`, too.
    """
    if not game.complete and not game.orders:
        return None
    worth, together_KS = _Worth(game), interaction_map(game.keep_SM)
    everyone = worth.means()
    have = [worth.means(game.present_nM[:, m])[m] for m in range(len(game.names))]
    gained_n = game.value_Sn[game.predictions.full()] - game.value_Sn[-1]
    out: dict[str, Any] = {
        "unit": game.unit,
        "exact": game.complete,
        "subsets": len(game.keep_SM) - 1,
        "orders": None if game.complete else len(game.orders),
        "nothing": game.means(game.value_Sn[[-1]])[0]["value"],
        "total": game.means(gained_n[None])[0],
        "modalities": [
            {"modality": name, "shapley": value, "if_present": own}
            for name, value, own in zip(game.names, everyone, have, strict=True)
        ],
        "pairs": [],
        "primary": _primary(game, worth),
        "groups": _groups(game, worth),
    }
    if together_KS is not None:
        _add_pairs(out, game, worth.value_Mn, together_KS @ game.value_Sn)
    if not game.complete and out["orders"] < 2 * MIN_PAIRS:
        _without_intervals(out)
    out["combinations"] = [
        {"keep": [*itertools.compress(game.names, keep_M)], "worth": mean}
        for keep_M, mean in zip(game.keep_SM, game.means(game.value_Sn), strict=True)
    ]
    return out


class _Worth:
    """Shapley values of a game, by row and as means with the error of sampled orders.

    An order and its reverse are one draw: the two are as unlike as can be, so their mean varies
    less, and the spread between pairs is what is unknown of them.
    """

    def __init__(self, game: Game):
        self._game, self._map_RMS = game, None
        if game.orders:
            self._map_RMS = pair_maps(game.keep_SM, game.orders)
        map_MS = shapley_map(game.keep_SM, game.orders)
        assert map_MS is not None, "too few subsets"
        self.map_MS = map_MS
        self.value_Mn = map_MS @ game.value_Sn

    def means(self, some_n: np.ndarray | None = None) -> list[dict[str, Any]]:
        """Of every modality over (some) rows."""
        chosen_n = np.ones(len(self._game.row_n), bool) if some_n is None else some_n
        total = max(self._game.weight_n[chosen_n].sum(), 1.0)
        pairs_MR = self.pairs(self._game.value_Sn[:, chosen_n].sum(axis=1) / total)
        return self._game.means(self.value_Mn, some_n, pairs_QR=pairs_MR)

    def pairs(self, value_S: np.ndarray) -> np.ndarray | None:
        """What each pair of orders makes of the subsets' values, f64[M, R]; None if all are in."""
        return None if self._map_RMS is None else (self._map_RMS @ value_S).T


def _without_intervals(out: dict[str, Any]) -> None:
    """Takes intervals and p from Shapley values: they know nothing of the few orders' error."""
    rows = [*out["modalities"], *((out["primary"] or {}).get("modalities", []))]
    rows += [row for own in out["groups"].values() for group in own for row in group["modalities"]]
    for row in rows:
        for key in {"shapley", "if_present"} & {*row}:
            note = f"no interval: fewer than {2 * MIN_PAIRS} random orders"
            row[key] = {"value": row[key]["value"], "low": None, "high": None, "note": note}


def by_row(game: Game) -> np.ndarray | None:
    """What each modality adds to the log probability of what came true, f64[n, M], by row.

    Each row's sum to what its full input is worth above knowing nothing; a mean over known labels.
    """
    map_MS = shapley_map(game.keep_SM, game.orders) if game.complete or game.orders else None
    return None if map_MS is None else (map_MS @ game.value_Sn / game.weight_n).T


def _add_pairs(out: dict[str, Any], game: Game, value_Mn, together_Kn) -> None:
    """Interactions with Holm's adjusted p, and what each modality is worth beside its pairs."""
    both = pairs(len(game.names))
    alone_Mn = value_Mn.copy()
    for (a, b), together_n in zip(both, together_Kn, strict=True):
        alone_Mn[[a, b]] -= together_n / 2
    for row, alone in zip(out["modalities"], game.means(alone_Mn), strict=True):
        row["alone"] = alone
    found = game.means(together_Kn)
    holm.add(found)
    out["pairs"] = [
        {"pair": [game.names[a], game.names[b]], "interaction": value}
        for (a, b), value in zip(both, found, strict=True)
    ]


def _groups(game: Game, worth: _Worth) -> dict[str, list]:
    """Shapley values within each category of each group column; small categories are left out."""
    out = {}
    for column, category_N in game.predictions.groups.items():
        category_n, rows = category_N[game.row_n], []
        for category in np.unique(category_n[category_n != ""]):
            own_n = category_n == category
            if (patients := game.patients(own_n)) < game.min_patients:
                continue
            values = zip(game.names, worth.means(own_n), strict=True)
            found = [{"modality": name, "shapley": value} for name, value in values]
            count = cells.tens(patients)
            rows.append({"category": str(category), "patients": count, "modalities": found})
        rows.sort(key=lambda row: -row["patients"])
        if rows:
            out[column] = rows[:MAX_CATEGORIES]
    return out


def _primary(game: Game, worth: _Worth) -> dict[str, Any] | None:
    """Shapley values of the primary metric, of fewer draws; of the value alone if they cost much.

    None where it is the game itself.
    """
    name, task, rows = metrics.PRIMARY[game.task.kind], game.task, game.row_n
    if task.kind == "regression":
        return None
    fold = game.predictions.fold
    fold = None if fold is None else fold[rows]
    number_B = min(RANK_DRAWS, game.draws.count_PB.shape[1])
    few = Draws(game.draws.count_PB[:, :number_B], game.draws.patient_N[rows])
    cells = len(game.keep_SM) * len(rows) * task.dim * number_B
    value_S, value_SB = [], []
    for s in range(len(game.keep_SM)):
        args = task, game.label_nL, game.known_nL, game.answer(s)
        value_S.append(metrics.score(*args, fold_N=fold, names=[name])[name].value)
        if cells <= RANK_CELLS:
            value_SB.append(bootstrap.score(*args, few, fold_N=fold, names=[name])[name])
    value_M = worth.map_MS @ np.array(value_S)
    enough = game.patients(np.ones(len(rows), bool)) >= game.min_patients
    if not enough:
        value_M = np.full(len(value_M), np.nan)
    found = [{"value": number(value), "low": None, "high": None} for value in value_M]
    if enough and value_SB:
        # A mean over labels or classes is as unsure as the rarest of them.
        cells_nL = game.label_nL, game.known_nL
        units = scorer.rests_on(task, *cells_nL, game.patient_n, [name])[name]
        pairs_MR = worth.pairs(np.array(value_S))
        pairs_MR = [None] * len(value_M) if pairs_MR is None else pairs_MR
        drawn = zip(value_M, worth.map_MS @ np.stack(value_SB), pairs_MR, strict=True)
        few = {"smallest": game.min_patients}
        found = [games.estimate(float(v), draws_B, units, r, **few) for v, draws_B, r in drawn]
    named = zip(game.names, found, strict=True)
    return {"metric": name, "modalities": [{"modality": m, "shapley": e} for m, e in named]}
