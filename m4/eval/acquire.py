"""Which test next: what each absent modality is expected to tell about each patient.

A value model per modality, gradient boosting on what is predicted so far (every output of every
task) and on which modalities that rests, learns how much the answer moves when the modality comes:
the divergence of the richer answer from the poorer one, in nats, which needs no label. It is fitted
on one half of the patients and asked about the other, and the other way round. Whether its advice
is worth anything is tried on modalities that are there but hidden: everybody begins with the one
that most have, and a budget pays for one test more for some of them, half unless it is given.

| arm | who is tested, with what |
|---|---|
| random | anybody, any |
| static | anybody, the one that is worth most per cost to the other half |
| entropy | the most uncertain, the same |
| value | whose best expected gain per cost is largest, that test |
| bound | the same by the true gain: peeks at the outcome, nobody can be better |

All arms spend the same; advice beyond the trial is given only where something is expected.

Letters: as `m4.eval.games`; F features, s states.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits

from m4 import cells
from m4.eval.bootstrap import number
from m4.eval.games import Game
from m4.eval.metrics import EPS
from m4.eval.predictions import Predictions

ARMS = ("random", "static", "entropy", "value", "bound")
STATES = 4  # of each row, that the value model learns from: the start and random others
MAX_OUTPUTS = 32  # of all tasks, that it sees
BUDGET = 0.5  # of a test of mean cost for everybody, unless another is given
MIN_PATIENTS = 40  # to learn from in each half


class Advice(NamedTuple):
    """Expected gains of modalities in nats, NaN where a modality is there already or unlearnt."""

    start_nM: np.ndarray  # for a patient of whom the start alone is known, as the models say
    # For the patient as he is, of what he lacks; no divergence is below 0, a sum of trees may be.
    next_nM: np.ndarray


def describe(
    game: Game, costs: Mapping[str, float] | None = None, *, budget: float = 0.0, seed: int = 0
) -> dict[str, Any] | None:
    """The section of one task, JSON; None for regressions, or with too few subsets or patients.

    {start, budget, costs, arms: [{arm, gain: E}], against: [{arm, difference: E}], next:
    [{modality, patients}]}: gains in nats a patient over the start; differences are value - arm;
    `next` says for how many patients an absent modality is expected to tell most per cost.

    `costs` are of modalities, 1 where none is given; `budget` is what may be spent a patient, in
    the same unit, 0 for `BUDGET` of a test of mean cost.
    """
    half_n = _halves(game, seed)
    if not _possible(game, half_n) or game.units(np.ones(len(half_n), bool)) is None:
        return None
    start, price_M = _start(game), prices(game.names, costs)
    budget = budget or BUDGET * float(price_M[np.arange(len(price_M)) != start].mean())
    given = advise(game, start, half_n, seed=seed)
    gain_An = np.stack([*_arms(game, start, half_n, given, price_M, budget, seed).values()])
    others = ARMS[:3]
    less_An = gain_An[3] - gain_An[:3]
    both = zip(ARMS, game.means(gain_An, weighted=False), strict=True)
    against = zip(others, game.means(less_An, weighted=False), strict=True)
    return {
        "start": game.names[start],
        "budget": number(budget),
        "costs": dict(zip(game.names, price_M.tolist(), strict=True)),
        "arms": [{"arm": name, "gain": gain} for name, gain in both],
        "against": [{"arm": name, "difference": gain} for name, gain in against],
        "next": _next(game, best(given.next_nM, price_M)),
    }


def by_row(
    game: Game, costs: Mapping[str, float] | None = None, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray] | None:
    """Expected gain of each modality that a row lacks, in nats, and which comes next.

    f64[n, M], NaN where it is there or nothing is known of it, and i64[n], as `best` has it.
    None where `describe` says nothing for want of a value model.
    """
    half_n = _halves(game, seed)
    if not _possible(game, half_n):
        return None
    gain_nM = advise(game, _start(game), half_n, seed=seed).next_nM
    return gain_nM, best(gain_nM, prices(game.names, costs))


def best(gain_nM: np.ndarray, price_M: np.ndarray) -> np.ndarray:
    """Which modality has the largest gain per cost, i64[n]; -1 where none is expected to tell."""
    worth_nM = np.where(gain_nM > 0, gain_nM / price_M, 0.0)
    return np.where(worth_nM.any(axis=1), worth_nM.argmax(axis=1), -1)


def prices(names: Sequence[str], costs: Mapping[str, float] | None) -> np.ndarray:
    """What each modality costs, f64[M]."""
    return np.array([float((costs or {}).get(name, 1.0)) for name in names])


def _per_cost(gain_nM: np.ndarray, price_M: np.ndarray) -> np.ndarray:
    """What decides in the trial: gains per cost; of losses, too, the cheap come first."""
    return np.where(gain_nM > 0, gain_nM / price_M, gain_nM * price_M)


class Adviser(NamedTuple):
    """Value models of one task, for people who are not in the table that they were fitted on."""

    names: tuple[str, ...]  # of the modalities
    outputs: tuple[str, ...]  # tasks whose predictions the models look at, in their order
    models: tuple[HistGradientBoostingRegressor | None, ...]  # of each modality; None: unlearnt
    price_M: np.ndarray

    def advise(self, found: Predictions) -> tuple[np.ndarray, np.ndarray]:
        """As `by_row`, of everybody in predictions from the full input."""
        row_N = np.arange(len(found.uid))
        s_N = np.full(len(row_N), found.full())
        seen_NF = _features(found, self.outputs, row_N, s_N, found.present)
        gain_NM = np.full(found.present.shape, np.nan)
        for m, model in enumerate(self.models):
            ask_N = ~found.present[:, m]
            if model is not None and ask_N.any():
                gain_NM[ask_N, m] = model.predict(seen_NF[ask_N])
        gain_NM = np.maximum(gain_NM, 0)
        return gain_NM, best(gain_NM, self.price_M)


@threadpool_limits.wrap(limits=1)  # as `advise`
def adviser(
    game: Game, costs: Mapping[str, float] | None = None, *, seed: int = 0
) -> Adviser | None:
    """What the whole table teaches. None where `describe` says nothing for want of a value model.

    Its advice is for others: of the table's own people it has seen the richer answers (`by_row`).
    """
    if not _possible(game, _halves(game, seed)):
        return None
    states = _States(game, _start(game), seed)
    models = []
    for m in range(len(game.names)):
        x_sF, y_s, _ = states.lesson(m)
        models.append(_fitted(x_sF, y_s) if len(y_s) >= MIN_PATIENTS else None)
    outputs = tuple(game.predictions.prediction)
    return Adviser(game.names, outputs, tuple(models), prices(game.names, costs))


def _possible(game: Game, half_n: np.ndarray) -> bool:
    """Whether there is something to choose, and enough patients to learn from."""
    if game.task.kind not in ("binary", "multiclass") or not game.complete or len(game.names) < 3:
        return False
    return all(game.patients(half_n == h) >= MIN_PATIENTS for h in (0, 1))


def _start(game: Game) -> int:
    """The modality that most have."""
    return int(np.argmax(game.present_nM.mean(axis=0)))


@threadpool_limits.wrap(limits=1)  # of trees so small, threads on busy cores take 20 times as long
def advise(game: Game, start: int, half_n: np.ndarray, *, seed: int = 0) -> Advice:
    """Out-of-half expected gains of every modality, f64[n, M], at the start and as patients are."""
    states = _States(game, start, seed)
    out = np.full((2, *game.present_nM.shape), np.nan)
    asked = states.kept_snM[0], game.present_nM
    told = [states.seen(kept_nM) for kept_nM in asked]
    for m in range(len(game.names)):
        x_sF, y_s, row_s = states.lesson(m)
        half_s = half_n[row_s]
        for h in (0, 1):
            if (half_s != h).sum() < MIN_PATIENTS:
                continue
            model = _fitted(x_sF[half_s != h], y_s[half_s != h])
            for out_nM, told_nF, kept_nM in zip(out, told, asked, strict=True):
                ask_n = (half_n == h) & ~kept_nM[:, m]
                if ask_n.any():
                    out_nM[ask_n, m] = model.predict(told_nF[ask_n])
    return Advice(out[0], np.maximum(out[1], 0))


class _States:
    """States of what is known of each row, from which value models learn."""

    def __init__(self, game: Game, start: int, seed: int):
        rng = np.random.default_rng(seed)
        only = np.arange(len(game.names)) == start
        self.kept_snM = np.repeat((only & game.present_nM)[None], STATES, axis=0)
        self.kept_snM[1:] |= game.present_nM & (rng.random(self.kept_snM[1:].shape) < 0.5)
        self._game, self._row_n = game, np.arange(len(game.row_n))
        self._answer_SnC = np.stack([game.answer(s) for s in range(len(game.keep_SM))])
        code_S = _code(game.keep_SM)
        self._order_S = np.argsort(code_S)
        self._sorted_S = code_S[self._order_S]
        self._seen = [self.seen(kept_nM) for kept_nM in self.kept_snM]

    def seen(self, kept_nM: np.ndarray) -> np.ndarray:
        """Features of every row in a state, f64[n, F]."""
        game = self._game
        outputs = tuple(game.predictions.prediction)
        return _features(game.predictions, outputs, game.row_n, self._at(kept_nM), kept_nM)

    def lesson(self, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features [s, F] before modality m comes, how the answer moves [s], and whose it is [s].

        Of the rows and states in which it is hidden.
        """
        game, x, y, row = self._game, [], [], []
        for kept_nM, seen_nF in zip(self.kept_snM, self._seen, strict=True):
            new_n = game.present_nM[:, m] & ~kept_nM[:, m]
            richer_nM = kept_nM | (np.arange(len(game.names)) == m)
            places = (self._at(k) for k in (kept_nM, richer_nM))
            poor_nC, rich_nC = (self._answer_SnC[place_n, self._row_n] for place_n in places)
            x.append(seen_nF[new_n])
            y.append(_moved(game, rich_nC, poor_nC)[new_n])
            row.append(self._row_n[new_n])
        return np.concatenate(x), np.concatenate(y), np.concatenate(row)

    def _at(self, kept_nM: np.ndarray) -> np.ndarray:
        """Which subset each row has kept."""
        return self._order_S[np.searchsorted(self._sorted_S, _code(kept_nM))]


def _fitted(x_sF: np.ndarray, y_s: np.ndarray) -> HistGradientBoostingRegressor:
    model = HistGradientBoostingRegressor(max_iter=60, min_samples_leaf=20, random_state=0)
    return model.fit(x_sF, y_s)


def _halves(game: Game, seed: int) -> np.ndarray:
    """Which half each row's patient belongs to, 0 or 1."""
    ids, index_n = np.unique(game.patient_n, return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(ids)) % 2)[index_n.reshape(-1)]


def _code(keep_SM: np.ndarray) -> np.ndarray:
    return keep_SM @ (1 << np.arange(keep_SM.shape[1]))


def _features(
    predictions: Predictions, outputs: Sequence[str], row_n, s_n, kept_nM: np.ndarray
) -> np.ndarray:
    """What is known before a test: predictions of all tasks, and what they rest on, f64[n, F].

    Of rows `row_n` under the subsets `s_n`; one more than there are subsets stands for nothing.
    """
    found, nothing_n = [kept_nM.astype(np.float64)], s_n == len(predictions.subsets)
    for answer_SNC in (predictions.prediction[name] for name in outputs):
        picked_nC = answer_SNC[np.where(nothing_n, 0, s_n), row_n].astype(np.float64)
        found.append(np.where(nothing_n[:, None], np.nan, picked_nC))
    return np.concatenate(found, axis=1)[:, : kept_nM.shape[1] + MAX_OUTPUTS]


def _moved(game: Game, rich_nC: np.ndarray, poor_nC: np.ndarray) -> np.ndarray:
    """Divergence of the richer answer from the poorer one: its expected gain, f64[n]."""
    rich_nC, poor_nC = (np.clip(_whole(game, p), EPS, 1) for p in (rich_nC, poor_nC))
    return (rich_nC * np.log(rich_nC / poor_nC)).sum(axis=1)


def _whole(game: Game, p_nC: np.ndarray) -> np.ndarray:
    return np.concatenate([1 - p_nC, p_nC], axis=1) if game.task.kind == "binary" else p_nC


def _arms(
    game: Game, start: int, half_n, given: Advice, price_M, budget: float, seed: int
) -> dict[str, Any]:
    """What every row gains under each arm, in nats; `budget` is a row's share of all."""
    rng, place = np.random.default_rng(seed), game.place()
    only = np.arange(len(game.names)) == start
    begun_n = game.value_Sn[place[tuple(map(bool, only))]]
    gain_nM = np.full(game.present_nM.shape, -np.inf)
    for m in range(len(game.names)):
        if m != start:
            with_m = only | (np.arange(len(game.names)) == m)
            own_n = game.value_Sn[place[tuple(map(bool, with_m))]] - begun_n
            gain_nM[:, m] = np.where(game.present_nM[:, m], own_n, -np.inf)
    can_nM = np.isfinite(gain_nM)
    static_nM = np.full(gain_nM.shape, -np.inf)
    for h in (0, 1):
        other_n1 = (half_n != h)[:, None] & can_nM
        mean_M = np.where(other_n1, gain_nM, 0).sum(0) / np.maximum(other_n1.sum(0), 1)
        static_nM[half_n == h] = _per_cost(mean_M, price_M)
    p_nC = np.clip(_whole(game, game.answer(place[tuple(map(bool, only))])), EPS, 1)
    anybody_n, unsure_n = rng.random(len(half_n)), -(p_nC * np.log(p_nC)).sum(axis=1)
    asked = {
        "random": (rng.random(gain_nM.shape), anybody_n),
        "static": (static_nM, anybody_n),
        "entropy": (static_nM, unsure_n),
        "value": (_per_cost(np.nan_to_num(given.start_nM, nan=-np.inf), price_M), None),
        "bound": (_per_cost(gain_nM, price_M), None),
    }
    whole = budget * len(half_n)
    return {
        arm: _spent(gain_nM, np.where(can_nM, score_nM, -np.inf), first_n, price_M, whole)
        for arm, (score_nM, first_n) in asked.items()
    }


def _spent(gain_nM, score_nM, first_n, price_M, budget: float) -> np.ndarray:
    """What rows gain if the first of them, by `first_n` or score, get their best test, f64[n]."""
    best_n, able_n = score_nM.argmax(axis=1), np.isfinite(score_nM).any(axis=1)
    rank_n = score_nM.max(axis=1) if first_n is None else first_n
    order_n = np.argsort(-np.where(able_n, rank_n, -np.inf), kind="stable")
    spent_n = np.cumsum(np.where(able_n, price_M[best_n], 0)[order_n])
    tested_n = np.zeros(len(best_n), bool)
    tested_n[order_n[spent_n <= budget]] = True
    found_n = np.take_along_axis(gain_nM, best_n[:, None], axis=1)[:, 0]
    return np.where(tested_n & able_n, found_n, 0.0)


def _next(game: Game, best_n: np.ndarray) -> list[dict[str, Any]]:
    """Of the patients who lack something, for how many each modality should come next."""
    rows = []
    for m, name in enumerate(game.names):
        patients = game.patients(best_n == m)
        if patients:
            rows.append({"modality": name, "patients": cells.shown(patients, game.min_patients)})
    return rows
