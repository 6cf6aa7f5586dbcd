"""Which test next, on a cohort whose best test differs between patients."""

import dataclasses

import numpy as np

from m4.eval import acquire, bootstrap, games, subsets, table
from m4.eval.predictions import Predictions
from m4.specs import DataSpec, ModalitySpec, TaskSpec

NAMES = ("triage", "image", "blood")
SPEC = DataSpec(
    modalities=tuple(ModalitySpec(m, "table", (1,)) for m in NAMES),
    tasks=(TaskSpec("died", "binary"),),
)
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(24)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def planted(n, *, differs=True, seed=0):
    """Ideal answers: the image decides about those whom triage finds ill, blood about the others.

    Otherwise the image decides about all of them.
    """
    rng = np.random.default_rng(seed)
    x, a, b = rng.standard_normal((3, n))
    ill = (x > 0) if differs else np.ones(n, bool)
    died = rng.random(n) < sigmoid(1.5 * x + 3 * np.where(ill, a, b))
    present_NM = rng.random((n, 3)) < [1.0, 0.9, 0.9]
    chosen = subsets.choose(NAMES, present_NM, np.arange(n), how="all")
    p = []
    for keep in subsets.matrix(chosen):
        seen_NM = keep & present_NM
        base = 1.5 * np.where(seen_NM[:, 0], x, 0)  # without triage no answer is ideal, nor asked
        known = np.where(ill, seen_NM[:, 1], seen_NM[:, 2])
        exact = sigmoid(base + 3 * np.where(ill, a, b))
        blurred = sigmoid(base[:, None] + 3 * NODES) @ WEIGHTS
        p.append(np.where(known, exact, blurred))
    keep_SM = subsets.matrix(chosen)
    found = Predictions(
        subsets=keep_SM,
        uid=np.arange(n),
        patient=np.arange(n),
        present=present_NM,
        prediction={"died": np.stack(p)[..., None]},
        label={"died": died[:, None].astype(float)},
        label_mask={"died": np.ones((n, 1), bool)},
        counted=(keep_SM[:, None] & present_NM).any(-1),
        routing={},
    )
    draws = bootstrap.resample(found.patient, draws=200)
    return games.play(found, SPEC, SPEC.tasks[0], draws, min_patients=10)


def test_advice_beats_chance_order_and_doubt_where_patients_differ():
    found = acquire.describe(planted(1500))
    assert found["start"] == "triage"
    gain = {row["arm"]: row["gain"]["value"] for row in found["arms"]}
    assert gain["bound"] > gain["value"] > gain["static"]
    for row in found["against"]:
        assert row["difference"]["low"] > 0, row
    assert {row["modality"] for row in found["next"]} == {"image", "blood"}


def test_people_who_are_not_in_the_table_are_advised_by_it():
    game, others = planted(1500), planted(800, seed=1).predictions
    adviser = acquire.adviser(game)
    full = [others.full()]
    answers = {"died": others.prediction["died"][full]}
    whole = dataclasses.replace(others, subsets=others.subsets[full], prediction=answers)
    gain_NM, next_N = adviser.advise(whole)
    assert (np.isnan(gain_NM) == (others.present | [True, False, False])).all()
    both_N = ~others.present[:, 1:].any(axis=1)
    ill_N = others.prediction["died"][others.full(), :, 0] > 0.5  # of triage alone: x above 0
    assert both_N.sum() > 5
    right_N = next_N == np.where(ill_N, 1, 2)
    assert right_N[both_N].mean() > 0.8
    assert (next_N[others.present.all(axis=1)] == -1).all()
    assert acquire.adviser(planted(60)) is None


def test_a_fixed_order_is_not_beaten_where_patients_are_alike():
    found = acquire.describe(planted(1500, differs=False))
    row = {row["arm"]: row["difference"] for row in found["against"]}
    assert row["random"]["low"] > 0
    assert abs(row["entropy"]["value"]) < 0.05


def test_costs_decide_too():
    game = planted(600)
    asked = {}
    for price in (0.2, 50.0):
        found = acquire.describe(game, {"blood": price})
        assert found["costs"] == {"triage": 1.0, "image": 1.0, "blood": price}
        asked[price] = {row["modality"]: row["patients"] or 0 for row in found["next"]}
    # who lacks both is told the cheaper one
    assert asked[0.2]["blood"] >= asked[50.0]["blood"]
    assert asked[0.2]["image"] <= asked[50.0]["image"]


def test_too_few_patients_get_no_advice():
    assert acquire.describe(planted(60)) is None


def test_the_budget_is_what_may_be_spent_a_patient():
    game = planted(600)
    half, same, all_of_them = (acquire.describe(game, budget=b) for b in (0.0, 0.5, 50.0))
    assert half == same and half["budget"] == 0.5
    dear = acquire.describe(game, {"image": 20.0, "blood": 40.0})
    assert dear["budget"] == 15.0  # half of their mean
    gain = [
        {row["arm"]: row["gain"]["value"] for row in found["arms"]} for found in (half, all_of_them)
    ]
    assert gain[1]["value"] > gain[0]["value"] > 0
    nothing = acquire.describe(game, budget=1e-9)
    assert {row["gain"]["value"] for row in nothing["arms"]} == {0.0}


def test_nobody_is_sent_where_nothing_is_expected():
    gain_nM = np.array(
        [[-0.2, -0.1, np.nan], [-0.2, 0.0, np.nan], [0.1, 0.2, np.nan], [np.nan] * 3]
    )
    assert acquire.best(gain_nM, np.array([1.0, 50.0, 1.0])).tolist() == [-1, -1, 0, -1]
    game = planted(600)
    gain_nM, next_n = acquire.by_row(game, {"blood": 1e9}) or ()
    assert (gain_nM[~np.isnan(gain_nM)] >= 0).all() and (gain_nM == 0).any()
    assert (next_n[~(gain_nM > 0).any(axis=1)] == -1).all()


def test_every_patient_who_lacks_something_is_told_what_comes_next(tmp_path):
    game = planted(900)
    found, lacks_NM = game.predictions, ~game.predictions.present
    told = table.next_tests(found, SPEC, found.patient)
    assert told.column_names == ["row", "patient", *(f"gain/died/{m}" for m in NAMES), "next/died"]
    gains = []
    for m, name in enumerate(NAMES):
        gain_N = told[f"gain/died/{name}"].to_numpy(zero_copy_only=False)
        assert (
            np.isnan(gain_N) | (lacks_NM[:, m] & (gain_N >= 0))
        ).all()  # nothing of what is there
        gains.append(np.nan_to_num(gain_N))
    expected_NM = np.stack(gains, axis=1) > 0
    next_N = np.array(told["next/died"].to_pylist(), object)
    only_N = lacks_NM.sum(axis=1) == 1
    for m, name in ((1, "image"), (2, "blood")):
        alone_N = only_N & lacks_NM[:, m]
        assert (next_N[alone_N & expected_NM[:, m]] == name).all()
        assert (next_N[alone_N & ~expected_NM[:, m]] == None).all()  # noqa: E711
        assert expected_NM[alone_N, m].mean() > 0.5
    assert (next_N[~lacks_NM.any(axis=1)] == None).all()  # noqa: E711
    counts = {row["modality"]: row["patients"] for row in acquire.describe(game)["next"]}
    for name, count in counts.items():
        assert count == round(int((next_N == name).sum()), -1)
    dear = table.next_tests(found, SPEC, found.patient, {"blood": 1e6})
    both_N = lacks_NM[:, 1] & lacks_NM[:, 2]
    dear_N = np.array(dear["next/died"].to_pylist(), object)
    assert {*dear_N[both_N & expected_NM[:, 1]]} == {"image"}
    assert {*dear_N[both_N & ~expected_NM[:, 1]]} <= {"blood", None}
    few = planted(60).predictions
    assert table.next_tests(few, SPEC, few.patient).column_names == ["row", "patient"]
