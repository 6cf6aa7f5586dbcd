"""Sets and intervals against crepes, against what is promised, and through what a user calls."""

import dataclasses

import numpy as np
import pytest

from m4.eval import conformal, coverage, nested, reliance
from m4.eval.conformal import Sample
from m4.eval.questions import ask

ALPHA = 0.1


def planted(rng, rows, modalities=3, visits=1):
    """A sample whose classes and patterns differ in how well they are told apart."""
    rates = np.linspace(0.5, 0.9, modalities)
    patient_N = np.repeat(np.arange(rows // visits), visits)
    present_NM = (rng.random((rows // visits, modalities)) < rates)[patient_N]
    present_NM[~present_NM.any(axis=1), 0] = True
    truth_N = (rng.random(rows) < 0.25).astype(int)
    skill_N = 0.4 + present_NM.sum(axis=1)
    odds_N = skill_N * (2 * truth_N - 1) * 0.8 - 1 + rng.normal(size=rows)
    odds_N += rng.normal(size=rows // visits)[patient_N] * (visits > 1)
    p_N = 1 / (1 + np.exp(-odds_N))
    return Sample(np.stack([p_N, 1 - p_N], axis=1), truth_N, present_NM, patient_N)


def whole(sample, test):
    return [(sample, np.ones(len(test.truth_N), bool))]


@pytest.mark.parametrize("method", conformal.METHODS)
def test_sets_are_those_of_crepes(method):
    crepes = pytest.importorskip("crepes")
    rng = np.random.default_rng(0)
    sample, test = planted(rng, 3000, modalities=2), planted(rng, 400, modalities=2)
    found = conformal.judge(test, whole(sample, test), method, ALPHA)

    def bins(part):
        return part.present_NM @ [1, 2]

    by_pattern, by_class = conformal.METHODS[method]
    kinds = (0, 1) if by_class else (None,)
    sets = np.zeros(test.score_NK.shape, bool)
    for kind in kinds:
        own = slice(None) if kind is None else sample.truth_N == kind
        oracle = crepes.ConformalClassifier()
        labels = {"bins": bins(sample)[own]} if by_pattern else {}
        oracle.fit(sample.own_N[own], **labels)
        asked = {"bins": bins(test)} if by_pattern else {}
        here = oracle.predict_set(test.score_NK, confidence=1 - ALPHA, smoothing=False, **asked)
        columns = slice(None) if kind is None else kind
        sets[:, columns] = here[:, columns] > 0
    np.testing.assert_array_equal(found.inside_NK, sets)


def test_intervals_reach_as_far_as_those_of_crepes():
    crepes = pytest.importorskip("crepes")
    rng = np.random.default_rng(1)
    residual, patients = rng.normal(size=500) ** 2, np.arange(500)
    oracle = crepes.ConformalRegressor().fit(residual)
    wide = oracle.predict_int(np.zeros(1), confidence=0.9)[0]
    assert conformal.threshold(residual, patients, 0.1) == (wide[1], 500)


def test_each_pattern_and_class_lies_in_its_band_in_95_of_100_sets():
    """Beta-binomial bands, over 500 simulated sets."""
    rng, inside = np.random.default_rng(2), {}
    for _ in range(500):
        sample, test = planted(rng, 500, modalities=2), planted(rng, 250, modalities=2)
        judged = conformal.judge(test, whole(sample, test), "pattern_class", ALPHA)
        for key, mask in by_cell(test).items():
            alone = judged.patients_N[mask], judged.cell_N[mask]
            low, high = coverage.chance(*alone, np.ones(mask.sum()), ALPHA)
            inside.setdefault(key, []).append(low <= judged.covered_N[mask].mean() <= high)
    assert len(inside) == 6
    assert min(np.mean(found) for found in inside.values()) >= 0.95


def test_cross_fitted_cells_are_no_further_from_the_promise_than_the_band():
    rng, inside = np.random.default_rng(3), []
    for seed in range(60):
        test = planted(rng, 600, modalities=2)
        parts = conformal.parts(test.patient_N, None, folds=5, seed=seed)
        pairs = [(test.rows(others), served) for others, served in parts]
        judged = conformal.judge(test, pairs, "pattern_class", ALPHA)
        for mask in by_cell(test).values():
            alone = judged.patients_N[mask], judged.cell_N[mask]
            low, high = coverage.chance(*alone, np.ones(mask.sum()), ALPHA)
            inside.append(low <= judged.covered_N[mask].mean() <= high)
    assert np.mean(inside) >= 0.95


def by_cell(test):
    """Rows of each presence pattern and class."""
    key_N = 2 * (test.present_NM @ (1 << np.arange(test.present_NM.shape[1]))) + test.truth_N
    return {key: key_N == key for key in np.unique(key_N)}


def test_the_band_of_another_promise_is_left():
    """The same sets judged as if they had promised 95 %: most bands notice."""
    rng = np.random.default_rng(3)
    left = []
    for _ in range(40):
        sample, test = planted(rng, 2000), planted(rng, 1000)
        judged = conformal.judge(test, whole(sample, test), "pooled", ALPHA)
        weights = np.ones(len(test.truth_N))
        low, _ = coverage.chance(judged.patients_N, judged.cell_N, weights, 0.05)
        left.append(judged.covered_N.mean() < low)
    assert np.mean(left) > 0.9


def test_one_threshold_for_all_forsakes_the_rare_class_and_classes_of_their_own_do_not():
    rng = np.random.default_rng(4)
    sample, test = planted(rng, 4000), planted(rng, 4000)
    rare = test.truth_N == 1
    found = {m: conformal.judge(test, whole(sample, test), m, ALPHA) for m in conformal.METHODS}
    assert found["pooled"].covered_N.mean() == pytest.approx(0.9, abs=0.02)
    assert found["pooled"].covered_N[rare].mean() < 0.8
    assert found["pattern_class"].covered_N[rare].mean() == pytest.approx(0.9, abs=0.03)


def test_patients_with_many_rows_do_not_count_more():
    """With 8 alike rows a patient the promise holds for patients, and a row is no new evidence."""
    rng = np.random.default_rng(5)
    covered = []
    for _ in range(200):
        sample, test = planted(rng, 320, visits=8), planted(rng, 320, visits=8)
        value, patients = conformal.threshold(sample.own_N, sample.patient_N, ALPHA)
        assert patients == 40
        covered.append((test.own_N <= value).mean())
    assert np.mean(covered) >= 0.89
    once = conformal.threshold(np.arange(30.0), np.arange(30), ALPHA)
    again = conformal.threshold(np.repeat(np.arange(30.0), 4), np.repeat(np.arange(30), 4), ALPHA)
    assert once == again == (27.0, 30)


def test_too_few_patients_leave_everything_inside():
    assert conformal.threshold(np.arange(5.0), np.arange(5), ALPHA) == (np.inf, 5)


def test_rare_patterns_back_off_to_coarser_ones():
    rng = np.random.default_rng(6)
    sample = planted(rng, 400, modalities=8)
    rule = conformal.fit(sample, alpha=ALPHA, by_pattern=True, by_class=True, smallest=20)
    _, patients, cell = rule.cells(sample.present_NM)
    assert patients.min() >= 20 and 1 < len(np.unique(cell)) < 200
    nobody = np.zeros((1, 8), bool)  # a pattern that was never seen
    assert np.isfinite(rule.cells(nobody)[0]).all()


def test_nested_masks_equal_the_plain_loop(fabricate):
    spec, _, found = fabricate(rows=260, seed=7)
    found = swept_everywhere(found)
    task = spec.task("ihm")
    (question,) = ask(found, spec, task)
    (pair, *_) = conformal.parts(found.patient[question.rows], None, folds=5, seed=0)
    sample = question.sample(found)
    plain = conformal.judge(sample, [(sample.rows(pair[0]), pair[1])], "pattern_class", ALPHA)
    masked = (
        nested.Masked(found, question, None),
        [(nested.Masked(found, question, pair[0]), pair[1])],
    )
    judged = nested.judge(*masked, ALPHA, plain, seed=0)
    p_SN = found.prediction["ihm"][:, question.rows, 0].astype(float)
    patient, truth = found.patient[question.rows], question.truth_N
    present = found.present[question.rows]
    for t in np.flatnonzero(pair[1])[:20]:
        for kind in (0, 1):
            others, less = {}, 0.0
            for c in np.flatnonzero(pair[0] & (truth == kind)):
                both = present[t] & present[c]
                if both.any():
                    s = found.index(both)
                    score = [p_SN[s, i] if kind == 0 else 1 - p_SN[s, i] for i in (c, t)]
                    others.setdefault(patient[c], []).append(score[0] < score[1])
            less = sum(np.mean(x) for x in others.values())
            assert judged.inside_NK[t, kind] == (less < 0.9 * (len(others) + 1) - 1e-9)


def swept_everywhere(found):
    """The fabricated predictions, which are of all subsets of four modalities."""
    assert len(found.subsets) == 15
    return found


@pytest.mark.parametrize("apart", [False, True])
def test_the_section_of_the_results(fabricate, apart):
    spec, _, found = fabricate(rows=500, seed=8)
    others = fabricate(rows=500, seed=9, patient_offset=10_000)[2] if apart else None
    section = sections(found, spec, others)["conformal"]
    assert section["calibrated"] == ("calibration" if apart else "cross-fitted")
    assert {*section["tasks"]} == {"ihm", "phe", "unit", "los"}
    for task, questions in section["tasks"].items():
        for question in questions:
            every = question["methods"][question["chosen"]]["all"]
            assert every["coverage"]["value"] == pytest.approx(0.9, abs=0.06), task
            assert every["patients"] % 10 == 0
            shown = [
                cell
                for judged in question["methods"].values()
                for part in ("classes", "patterns", "cells")
                for cell in judged.get(part, [])
            ]
            for cell in [every, *shown]:  # none tells of few patients, by many digits or a rest
                share, band = cell["coverage"]["value"], cell["coverage"]["band"]
                assert all(round(x, 2) == x for x in (share or 0.0, *band))
                rest = 1.0 if share in (None, 0.0, 1.0) else min(share, 1 - share)
                assert (rest + 0.005) * (cell["patients"] + 5) >= 10
                assert (share is None) == ("note" in cell["coverage"])
            assert any(cell["coverage"]["value"] is None for cell in shown)
    assert [q["label"] for q in section["tasks"]["phe"]] != []
    width = section["tasks"]["los"][0]["methods"]["pattern"]["all"]["size"]
    assert 0 < width < 20


def test_nobody_is_judged_by_a_threshold_that_knows_him(fabricate):
    spec, _, found = fabricate(rows=300, seed=10)
    seen = np.zeros(300, int)
    for calibration, served in conformal.parts(found.patient, None, folds=5, seed=0):
        assert not {*found.patient[calibration]} & {*found.patient[served]}
        seen += served
    assert (seen == 1).all()
    fold = np.arange(300) % 2
    fold = np.array([min(fold[found.patient == p]) for p in found.patient])  # a patient has one
    for calibration, served in conformal.parts(found.patient, fold, folds=5, seed=0):
        assert len(np.unique(fold[calibration | served])) == 1  # and each network its own


def test_small_cells_and_too_few_patients_are_left_out(fabricate):
    spec, _, found = fabricate(rows=120, seed=11)
    few = dataclasses.replace(found, patient=found.patient % 8)
    assert "conformal" not in sections(few, spec)
    for questions in sections(found, spec, min_patients=25)["conformal"]["tasks"].values():
        for method in questions[0]["methods"].values():
            for cell in (*method["classes"], *method.get("patterns", []), *method.get("cells", [])):
                assert cell["patients"] >= 20  # 25 and more, rounded to tens


def sections(found, spec, calibration=None, min_patients=10):
    options = {"alpha": ALPHA, "min_patients": min_patients, "seed": 0, "draws": 20}
    return reliance.sections(found, spec, calibration, **options)
