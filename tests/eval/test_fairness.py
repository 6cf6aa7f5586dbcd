"""Groups and selective prediction on planted cohorts."""

import dataclasses
import re

import numpy as np
import pytest
from scipy.stats import binomtest

from m4.eval import bootstrap, coverage, fairness, reliance, selective
from m4.eval.predictions import LayerRouting
from m4.eval.report import coverage as coverage_page
from m4.eval.report import fairness as fairness_page
from m4.eval.report.parts import Run, Verdict

ALPHA = 0.1


def grouped(found, seed=0, unfair=0.0):
    """With a column that means nothing, and one whose second half is predicted worse."""
    rng, rows = np.random.default_rng(seed), len(found.uid)
    coin = np.array(["a", "b", "c"])[rng.integers(0, 3, rows)]
    ward = np.where(rng.random(rows) < 0.5, "east", "west")
    p_SNC = found.prediction["ihm"].copy()
    noise_N = np.where(ward == "west", unfair, 0.0) * rng.normal(size=rows)
    odds = np.log(p_SNC / (1 - p_SNC)) + noise_N[None, :, None]
    prediction = found.prediction | {"ihm": (1 / (1 + np.exp(-odds))).astype(np.float32)}
    return dataclasses.replace(found, groups={"coin": coin, "ward": ward}, prediction=prediction)


def sections(found, spec, draws=200, **options):
    options = {"alpha": ALPHA, "min_patients": 10, "seed": 0, "draws": draws} | options
    return reliance.sections(found, spec, None, **options)


def test_a_planted_gap_is_found_and_the_column_without_meaning_has_none(fabricate):
    spec, _, found = fabricate(rows=1500, seed=1, tasks=["ihm"])
    gaps = sections(grouped(found, unfair=6.0), spec)["groups"]["gaps"]["ihm"]
    by = {(gap["column"], gap["metric"]): gap for gap in gaps}
    ward = by["ward", "auroc"]
    assert (ward["more"], ward["less"]) == ("east", "west")
    assert ward["low"] > 0 and ward["p_holm"] < 0.01
    assert min(gap["p_holm"] for gap in gaps if gap["column"] == "coin") > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("unequal", [False, True])
def test_where_all_groups_are_alike_a_gap_is_seldom_found(fabricate, unequal):
    """Over 60 cohorts: Holm keeps the chance of any finding near 5 %."""
    found_any = []
    for seed in range(60):
        spec, _, found = fabricate(rows=250, seed=100 + seed, tasks=["ihm"])
        found = dataclasses.replace(
            sites(found, []) if unequal else grouped(found, seed),
            subsets=found.subsets[:1],
            counted=found.counted[:1],
            prediction={"ihm": found.prediction["ihm"][:1]},
        )
        draws = bootstrap.resample(found.patient, draws=150, seed=seed)
        judged = [*coverage.judge(found, spec, alpha=ALPHA)]
        section = fairness.section(found, spec, draws, judged, {}, 10)
        found_any.append(min(gap["p_holm"] for gap in section["gaps"]["ihm"]) <= 0.05)
    assert np.mean(found_any) <= 0.12  # 5 %, and three standard errors


def sites(found, small):
    """Three sites of 24 rows beside a large one, rows of `small` first."""
    site = np.full(len(found.uid), "large", "U6")
    rng = np.random.default_rng(0)
    rest = rng.permutation(np.setdiff1d(np.arange(len(found.uid)), small))
    for i, name in enumerate(("north", "south", "east")):
        site[[*small, *rest][24 * i : 24 * (i + 1)]] = name
    return dataclasses.replace(found, groups={"site": site})


def test_a_small_site_that_is_covered_whole_is_no_finding(fabricate):
    """All its draws are alike: they know nothing of chance, but Wilson's interval does."""
    spec, _, found = fabricate(rows=600, seed=6, tasks=["ihm"])
    (verdicts,) = judged = [*coverage.judge(found, spec, alpha=ALPHA)]
    died = verdicts.best.covered_N & (verdicts.sample.truth_N == 1)
    found = sites(found, verdicts.question.rows[died][:24])
    draws = bootstrap.resample(found.patient, draws=200)
    section = fairness.section(found, spec, draws, judged, {}, 10)
    rows = section["tasks"]["ihm"]["site"]["covered"]
    (north,) = [row for row in rows if row["category"] == "north"]
    assert (north["value"], north["low"], north["high"]) == (1, 0.84, 1) and "Wilson" in north[
        "note"
    ]
    (gap,) = [g for g in section["gaps"]["ihm"] if g["metric"] == "covered"]
    assert (gap["more"], gap["less"]) == ("north", "large") and gap["p_holm"] == 1
    assert gap["low"] < 0 < gap["value"] < gap["high"]


@pytest.mark.parametrize("share", [0.8, 0.9, 0.97])
@pytest.mark.parametrize("size", [20, 60])
def test_intervals_of_a_share_cover_it_where_all_are_covered_too(size, share):
    """Of 500 groups; a bootstrap alone has no interval for those with none or all."""
    rng, inside = np.random.default_rng(size), []
    for _ in range(500):
        hit = rng.random(size) < share
        value, drawn = hit.mean(), rng.binomial(size, hit.mean(), 400) / size
        row = fairness.Measured("c", "covered", "x", size, size, value, drawn).estimate()
        inside.append(row["low"] <= share <= row["high"])
        assert ("Wilson" in row.get("note", "")) == (value in (0, 1))
    assert np.mean(inside) >= 0.92


def test_a_gap_to_a_group_that_is_covered_whole_is_seldom_found_where_there_is_none():
    rng, found, planted = np.random.default_rng(0), [], []

    def group(size, share):
        hit = rng.random(size) < share
        drawn = rng.binomial(size, hit.mean(), 300) / size
        return fairness.Measured("c", "covered", f"{size}", size, size, float(hit.mean()), drawn)

    for least, into in ((0.95, found), (0.6, planted)):
        while len(into) < 150:
            a, b = group(30, 0.95 if least == 0.95 else 1.0), group(80, least)
            if a.alike and not b.alike:
                gap = fairness._gaps([a, b])
                into.append(gap[0]["p"] <= 0.05 and gap[0]["low"] > 0)
    assert np.mean(found) <= 0.05 and np.mean(planted) > 0.95


def test_shares_of_a_small_group_do_not_tell_of_a_few(fabricate):
    spec, _, found = fabricate(rows=600, seed=6, tasks=["ihm"])
    found = sites(found, [])
    section = sections(found, spec, draws=20)["groups"]
    lacks = {
        c["category"]: {*c["absent"].values()} for c in section["columns"]["site"]["categories"]
    }
    rows = section["tasks"]["ihm"]["site"]
    assert None in lacks["north"]
    absent = [row for row in rows["absent"] if row["value"] is not None]
    assert all(None not in lacks[row["category"]] for row in absent)
    (verdicts,) = coverage.judge(found, spec, alpha=ALPHA)
    own, died = verdicts.question.rows, verdicts.sample.truth_N == 1
    for row in rows["covered"]:
        here = (found.groups["site"][own] == row["category"]) & died
        missed = np.unique(found.patient[own][here & ~verdicts.best.covered_N])
        if row["value"] is None:
            assert len(missed) in range(1, 10) and row["note"] == "nearly all" and not row["low"]
        else:
            assert len(missed) not in range(1, 10) and row["value"] == round(row["value"], 2)
    for row in rows["auroc"]:
        here = (found.groups["site"][own] == row["category"]) & died
        few = len(np.unique(found.patient[own][here])) < 10
        assert few == ("rarer outcome" in row.get("note", "")) == (row["value"] is None)


@pytest.mark.parametrize("rare", [1, 2, 4])
def test_notes_of_a_group_do_not_tell_how_few_have_a_label(fabricate, rare):
    """In how many draws it is lost would: 0.37 of one patient, 0.14 of two."""
    spec, _, found = fabricate(rows=400, seed=2, tasks=["phe"])
    found = dataclasses.replace(
        found,
        patient=np.arange(400),
        groups={"sex": np.where(np.arange(400) < 200, "F", "M")},
        label_mask={"phe": np.ones((400, 3), bool)},
    )
    found.label["phe"][:] = (np.arange(400) % 2)[:, None]
    found.label["phe"][:200, 2] = np.arange(200) < rare
    section = sections(found, spec, draws=300)["groups"]
    (women,) = [
        row for row in section["tasks"]["phe"]["sex"]["auroc_macro"] if row["category"] == "F"
    ]
    assert women["value"] is not None and ("no interval" in women["note"]) == (rare == 1)
    noted = [row.get("note", "") for row in (women, *section["gaps"]["phe"])]
    assert not any(re.search(r"[\d.]+ ?%", note) for note in noted), noted


def test_points_of_the_curve_do_not_tell_of_a_few_patients(fabricate):
    spec, _, found = fabricate(rows=150, seed=7, tasks=["ihm"])
    (question,) = sections(found, spec, draws=20, min_patients=20)["selective"]["tasks"]["ihm"]
    rows = found.label_mask["ihm"][:, 0]
    p_N, y_N = found.prediction["ihm"][0, rows, 0], found.label["ihm"][rows, 0]
    sure_N, patient_N = np.maximum(p_N, 1 - p_N), found.patient[rows]
    cuts = [point["sure"] - 1e-5 for point in question["curve"]]
    assert 1 < len(cuts) < len(selective.SHARES)
    for low, high in zip(cuts[:-1], cuts[1:], strict=True):
        assert len(np.unique(patient_N[(sure_N >= low) & (sure_N < high)])) >= 20
    for k in (0, 1):
        last = -1.0
        for cut, point in zip(cuts, question["curve"], strict=True):
            if point["classes"][k] is not None:
                between = (sure_N >= last) & (sure_N < cut) & (y_N == k)
                assert len(np.unique(patient_N[between])) not in range(1, 20)
                last = cut


@pytest.mark.parametrize("bad, of, mood", [(1, 1, "bad"), (0, 1, "good"), (1, 20, "good")])
def test_a_verdict_on_few_cells_is_no_better_than_they_are(fabricate, bad, of, mood):
    spec, _, found = fabricate(rows=300, seed=8, tasks=["los"])
    document = {"min_patients": 10, "modalities": []} | sections(found, spec, draws=20)
    (question,) = document["conformal"]["tasks"]["los"]
    question["methods"][question["chosen"]]["outside"] = [bad, of]
    page = coverage_page.section(Run(None, None, None, document))
    assert [part.mood for part in page.parts if isinstance(part, Verdict)] == [mood]


def test_the_parts_of_the_section(fabricate):
    spec, _, found = fabricate(rows=500, seed=2)
    lost = np.tile([10.0, 1.0], (500, 1))
    found = grouped(found)
    lost[found.groups["ward"] == "west", 1] = 3.0
    layer = LayerRouting(None, np.ones(4), None, 0.2, None, None, lost)
    rare = found.groups["coin"].astype("U6")
    rare[:5], rare[5:300:2] = "seldom", ""
    groups = found.groups | {"coin": rare, "one": np.full(500, "x")}
    found = dataclasses.replace(found, routing={"moe": layer}, groups=groups)
    section = sections(found, spec, draws=20)["groups"]
    assert {*section["columns"]} == {"coin", "ward"}  # nothing to compare within `one`
    dropped = {c["category"]: c["dropped"]["moe"] for c in section["columns"]["ward"]["categories"]}
    assert dropped == {"east": 0.1, "west": 0.3}
    coin = section["columns"]["coin"]
    assert "seldom" not in [c["category"] for c in coin["categories"]]  # five patients
    assert coin["unknown"] % 10 == 0 and coin["unknown"] > 0
    here = found.groups["coin"] == "b"
    absent = next(c["absent"] for c in coin["categories"] if c["category"] == "b")
    assert absent["labs"] == round(1 - found.present[here, 1].mean(), 2)
    assert all(row["value"] for row in section["tasks"]["unit"]["ward"]["auroc_macro"])
    assert {*section["tasks"]["los"]["ward"]} == {"mae", "covered", "bias", "absent"}
    assert "set_size" in section["tasks"]["unit"]["ward"]
    kinds = {task.name: {"kind": task.kind} for task in spec.tasks}
    run = Run(None, None, None, {"groups": section, "tasks": kinds, "min_patients": 10})
    page = str(fairness_page.section(run))
    for name, kind in (("ihm", "binary"), ("los", "regression")):  # whom coverage is of
        (fold,) = [p for p in fairness_page.section(run).parts if f"{name} by ward" in str(p)]
        of_outcome = "with the outcome, covered by the set'" in str(fold)
        assert of_outcome == (kind == "binary") != ("covered by the set or interval" in str(fold))
    assert "n counts them alone" in page


def test_without_group_columns_there_is_no_section(fabricate):
    spec, _, found = fabricate(rows=200, seed=3, tasks=["ihm"])
    assert "groups" not in sections(found, spec, draws=20)


def test_answering_the_surest_first_is_right_more_often(fabricate):
    spec, _, found = fabricate(rows=800, seed=4, tasks=["ihm", "unit"])
    tasks = sections(found, spec, draws=100)["selective"]["tasks"]
    for questions in tasks.values():
        (question,) = questions
        curve, area = question["curve"], question["area"]
        assert curve[0]["share"] == 1 and curve[-1]["share"] == pytest.approx(0.5, abs=0.02)
        assert area["best"] < area["model"]["value"] < area["random"]
        assert curve[-1]["error"]["value"] < curve[0]["error"]["value"]
        assert curve[0]["error"]["value"] == pytest.approx(area["random"])
    ihm = tasks["ihm"][0]
    p_N = found.prediction["ihm"][0, found.label_mask["ihm"][:, 0], 0]
    y_N = found.label["ihm"][found.label_mask["ihm"][:, 0], 0]
    assert ihm["area"]["random"] == pytest.approx(np.mean((p_N > 0.5) != y_N), abs=1e-5)
    assert ihm["curve"][0]["brier"]["value"] == pytest.approx(np.mean((p_N - y_N) ** 2), abs=1e-5)


def test_the_area_does_not_depend_on_the_order_of_rows_that_are_equally_sure(fabricate):
    spec, _, found = fabricate(rows=300, seed=9, tasks=["ihm"])

    def area(digits, order=slice(None)):
        p_SNC = np.round(found.prediction["ihm"], digits)[:, order]
        own = {key: getattr(found, key)[order] for key in ("patient", "present")}
        some = dataclasses.replace(
            found,
            **own,
            counted=found.counted[:, order],
            prediction={"ihm": p_SNC},
            label={"ihm": found.label["ihm"][order]},
            label_mask={"ihm": found.label_mask["ihm"][order]},
        )
        judged = [*coverage.judge(some, spec, alpha=ALPHA)]
        draws = bootstrap.resample(some.patient, draws=30)
        document = selective.section(judged, draws, 10)["tasks"]["ihm"][0]["area"]
        known_n = some.label_mask["ihm"][:, 0]
        p_n, y_n = p_SNC[0, known_n, 0].astype(float), some.label["ihm"][known_n, 0]
        sure_n, wrong_n = np.maximum(p_n, 1 - p_n), (p_n > 0.5) != y_n
        together = np.mean([wrong_n[sure_n >= sure].mean() for sure in sure_n])
        assert document["model"]["value"] == pytest.approx(together, abs=1e-5)
        return document

    hit_N = (found.prediction["ihm"][0, :, 0] > 0.5) == (found.label["ihm"][:, 0] > 0)
    for order in (np.argsort(hit_N, kind="stable"), np.argsort(~hit_N, kind="stable")):
        assert area(1, order)["model"] == area(1)["model"]
    alike = area(-1)  # always 0: as good as any order
    assert alike["model"]["value"] == alike["random"] > 0
    area(7)


def test_a_share_of_none_or_all_has_an_interval(fabricate):
    """The error of 40 patients in whom nothing, or everything, went wrong: by SciPy's Wilson."""
    spec, _, found = fabricate(rows=120, seed=3, tasks=["ihm"])
    for right in (True, False):
        y_N = found.label["ihm"][:, 0] > 0
        p_N = np.where(y_N == right, 0.8, 0.2) + 0.1 * np.random.default_rng(0).random(120)
        some = dataclasses.replace(
            found,
            prediction={"ihm": np.tile(p_N, (len(found.subsets), 1))[..., None].astype("f4")},
            label_mask={"ihm": np.ones((120, 1), bool)},
        )
        judged = [*coverage.judge(some, spec, alpha=ALPHA)]
        draws = bootstrap.resample(some.patient, draws=30)
        question = selective.section(judged, draws, 10)["tasks"]["ihm"][0]
        patients = len(np.unique(some.patient))
        wrong = 0 if right else patients
        wilson = binomtest(wrong, patients).proportion_ci(method="wilson")
        error, brier = (question["curve"][0][key] for key in ("error", "brier"))
        assert error["value"] == (not right) and "Wilson" in error["note"]
        assert (error["low"], error["high"]) == pytest.approx((wilson.low, wilson.high), abs=1e-5)
        assert "note" not in brier and brier["low"] < brier["value"] < brier["high"]
        assert all(point["error"]["low"] < point["error"]["high"] for point in question["curve"])


@pytest.mark.parametrize("error", [0.01, 0.03, 0.1])
def test_intervals_of_an_error_share_cover_it_where_nobody_was_wrong_too(error, fabricate):
    """Of 300 sets of 40 patients; a bootstrap alone covers 1 % in 0.34 of them, 3 % in 0.69."""
    spec, _, found = fabricate(rows=40, seed=3, tasks=["ihm"])
    found = dataclasses.replace(
        found, patient=np.arange(40), label_mask={"ihm": np.ones((40, 1), bool)}
    )
    (verdicts,) = coverage.judge(found, spec, alpha=ALPHA)
    rng, inside, everybody = np.random.default_rng(1), [], np.ones(40, bool)
    draws = bootstrap.resample(found.patient, draws=200)
    mean = selective.Means(verdicts, draws, 10)
    for _ in range(300):
        row = mean.share((rng.random(40) < error).astype(float), everybody)
        inside.append(row["low"] <= error <= row["high"])
    print("held", np.mean(inside))
    assert np.mean(inside) >= 0.9


@pytest.mark.slow
def test_intervals_of_the_error_cover_it(fabricate):
    """Of 120 samples of a known population."""
    spec, _, whole = fabricate(rows=6000, seed=5, tasks=["ihm"], modalities=("vitals", "ecg"))
    truth = sections(whole, spec, draws=5)["selective"]["tasks"]["ihm"][0]["curve"]
    rng, inside = np.random.default_rng(0), []
    ids = np.unique(whole.patient)
    for seed in range(120):
        chosen = np.isin(whole.patient, rng.choice(ids, 250, replace=False))
        some = dataclasses.replace(
            whole,
            **{key: getattr(whole, key)[chosen] for key in ("uid", "patient", "present")},
            counted=whole.counted[:, chosen],
            prediction={"ihm": whole.prediction["ihm"][:, chosen]},
            label={"ihm": whole.label["ihm"][chosen]},
            label_mask={"ihm": whole.label_mask["ihm"][chosen]},
        )
        draws = bootstrap.resample(some.patient, draws=150, seed=seed)
        found = selective.section([*coverage.judge(some, spec, alpha=ALPHA)], draws, 10)
        error = found["tasks"]["ihm"][0]["curve"][0]["error"]
        inside.append(error["low"] <= truth[0]["error"]["value"] <= error["high"])
    assert np.mean(inside) >= 0.9
