"""Whether knowing more helps: for how many patients a modality makes the right answer less likely.

A modality joins every subset of what a patient has besides; an addition hurts if it lowers the log
probability of what came true by more than `NOTICED`. Even a perfect model is often unlucky, so
beside each share stands the one that a calibrated model with the same answers would show: the mean,
over the outcomes, of whether the addition would hurt, by the probability that the richer answer
gives them. Above it (`excess`) the model is misled, not unlucky.

Letters: as `m4.eval.games`.
"""

from typing import Any

import numpy as np

from m4 import cells
from m4.eval.games import Game, worth

NOTICED = 0.01  # nats: 1 % in the probability of what came true
MAX_CLASSES = 16  # outcomes over which an expectation is taken


def describe(game: Game) -> dict[str, Any] | None:
    """The section of one task, JSON; None for a regression, or without enough subsets.

    {noticed, exact, modalities: [{modality, patients, last, expected, excess, any, gain}]}, all but
    the first two estimates: `last` is the share of patients whom it hurts as the last addition to
    all else they have, `any` the share of all additions that hurt, `gain` their mean in nats.
    """
    if game.task.kind == "regression":
        return None
    place, rows = game.place(), []
    for m, name in enumerate(game.names):
        has_n = game.present_nM[:, m]
        found = {tuple(keep): s for keep, s in place.items() if keep[m]}
        joins = [(s, place[less]) for keep, s in found.items() if (less := _less(keep, m)) in place]
        if not game.complete or not has_n.any() or not joins:
            continue
        rows.append({"modality": name, **_of(game, m, joins)})
    if not rows:
        return None
    return {"noticed": NOTICED, "modalities": rows}


def _less(keep: tuple[bool, ...], m: int) -> tuple[bool, ...]:
    return (*keep[:m], False, *keep[m + 1 :])


def _of(game: Game, m: int, joins: list[tuple[int, int]]) -> dict[str, Any]:
    has_n, full = game.present_nM[:, m], game.predictions.full()
    gain_An = np.stack([game.value_Sn[s] - game.value_Sn[less] for s, less in joins])
    gain_An /= game.weight_n
    last = next(a for a, (s, _) in enumerate(joins) if s == full)
    hurt_n = (gain_An[last] < -NOTICED).astype(np.float64)
    expected_n = _expected(game, *joins[last])
    quantities = [hurt_n, (gain_An < -NOTICED).mean(axis=0), gain_An.mean(axis=0)]
    keys = ["last", "any", "gain"]
    if expected_n is not None:
        quantities += [expected_n, hurt_n - expected_n]
        keys += ["expected", "excess"]
    found = game.means(np.stack(quantities), has_n, weighted=False)
    patients = game.patients(has_n)
    return {
        "patients": cells.shown(patients, game.min_patients),
        **dict(zip(keys, found, strict=True)),
    }


def _expected(game: Game, more: int, less: int) -> np.ndarray | None:
    """How likely the addition hurts each row, if the richer answer is calibrated, f64[n]."""
    task, richer_nC, poorer_nC = game.task, game.answer(more), game.answer(less)
    count = richer_nC.shape[1]
    if task.kind == "multiclass" and count <= MAX_CLASSES:
        known_n1 = np.ones((len(richer_nC), 1), bool)
        outcomes = [(np.full((len(richer_nC), 1), float(c)), richer_nC[:, c]) for c in range(count)]
    elif task.kind == "binary":
        known_n1 = np.ones((len(richer_nC), 1), bool)
        p_n = richer_nC[:, 0]
        outcomes = [(np.ones((len(p_n), 1)), p_n), (np.zeros((len(p_n), 1)), 1 - p_n)]
    else:  # the outcomes of several labels are too many
        return None
    expected_n = np.zeros(len(richer_nC))
    for label_n1, chance_n in outcomes:
        gain_n = worth(task, label_n1, known_n1, richer_nC)
        gain_n = gain_n - worth(task, label_n1, known_n1, poorer_nC)
        expected_n += chance_n * (gain_n < -NOTICED)
    return expected_n
