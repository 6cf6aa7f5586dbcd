"""The synthetic cohort: determinism, rates, schema, and that the planted truth can be found."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from m4.data.sets import synthetic
from m4.data.sets.synthetic import factors as planted
from m4.data.sets.synthetic import triage, worth
from m4.errors import ConfigError

SMALL = {"num_patients": 400, "dims": {"notes": 8, "cxr": 8, "ecg": 8}}


def rows(cohort, *splits):
    return [e for s in splits or cohort.splits for e in cohort.splits[s]()]


def label(examples, task):
    return np.array(
        [np.nan if e["targets"][task] is None else e["targets"][task] for e in examples]
    )


def assert_same(a, b):
    assert a["patient"] == b["patient"]
    assert a["inputs"].keys() == b["inputs"].keys()
    for m in a["inputs"]:
        for key in a["inputs"][m]:
            np.testing.assert_array_equal(a["inputs"][m][key], b["inputs"][m][key])
    for t in a["targets"]:
        assert np.array_equal(
            np.asarray(a["targets"][t], float), np.asarray(b["targets"][t], float), equal_nan=True
        )


def test_needs_no_files():
    assert synthetic.missing_files(None) == []


def test_is_a_function_of_the_seed():
    first, again = (rows(synthetic.cohort(None, seed=3, **SMALL), "val") for _ in range(2))
    assert len(first) == len(again) > 20
    for a, b in zip(first, again, strict=True):
        assert_same(a, b)
    other = rows(synthetic.cohort(None, seed=4, **SMALL), "val")
    assert not np.array_equal(
        first[0]["inputs"]["vitals"]["times"], other[0]["inputs"]["vitals"]["times"]
    )


def test_a_split_restarts():
    cohort = synthetic.cohort(None, seed=0, **SMALL)
    for a, b in zip(cohort.splits["test"](), cohort.splits["test"](), strict=True):
        assert_same(a, b)


def test_leaving_a_modality_out_changes_nothing_else():
    whole = rows(synthetic.cohort(None, seed=0, **SMALL), "test")
    part = rows(synthetic.cohort(None, seed=0, modalities=("labs", "ecg"), **SMALL), "test")
    for a, b in zip(whole, part, strict=True):
        a["inputs"] = {m: a["inputs"][m] for m in ("labs", "ecg") if m in a["inputs"]}
        assert_same(a, b)


def test_splits_share_no_patient_though_patients_return():
    cohort = synthetic.cohort(None, seed=0, **SMALL)
    patients = {s: [e["patient"] for e in f()] for s, f in cohort.splits.items()}
    assert sum(map(len, patients.values())) == 440  # 400 patients + 40 second stays
    assert len(set().union(*patients.values())) == 400
    assert not set(patients["train"]) & set(patients["test"])
    assert not set(patients["train"]) & set(patients["val"])
    assert not set(patients["val"]) & set(patients["test"])


def test_payloads_fit_the_schema():
    cohort = synthetic.cohort(None, seed=0, **SMALL)
    for example in rows(cohort, "val"):
        for name, payload in example["inputs"].items():
            modality = cohort.spec.modality(name)
            values = payload["values"]
            if modality.kind == "codes":
                assert values.min() >= 0 and values.max() < modality.vocab
                assert (values < synthetic.GRADES).sum() == 1
                continue
            assert values.shape[-1] == modality.shape[-1] and values.dtype == np.float32
            if modality.timed:
                times = payload["times"]
                assert len(times) == len(values) >= 1
                assert (np.diff(times) >= 0).all() and times[0] >= 0 and times[-1] <= 48
            if modality.kind == "series":
                assert np.isfinite(values).any(axis=1).all()  # no row without a measurement
                assert np.isnan(values).any()
        assert len(example["targets"]["phe"]) == 25


def test_full_size_shapes():
    spec = synthetic.spec()
    assert spec.modality("notes").shape == (5, 768)
    assert spec.modality("cxr").shape == (5, 1024)
    assert spec.modality("ecg").shape == (5, 256)
    assert spec.task_names == ("ihm48", "los", "los_under_96h", "phe")


@pytest.mark.parametrize("missing", planted.MECHANISMS)
def test_presence_has_the_published_rates(missing):
    stays = synthetic._Stays(0, num_patients=10_000, missing=missing)
    for m, rate in {"notes": 0.912, "cxr": 0.250, "ecg": 0.520, "vitals": 1.0}.items():
        assert stays.present[m].mean() == pytest.approx(rate, abs=0.015)


def test_mechanisms_differ_in_what_absence_depends_on():
    z = planted.factors(np.random.default_rng(0), 20_000)
    read = planted.readouts(np.random.default_rng(1), z)
    there = {
        mech: planted.presence_bits(np.random.default_rng(2), z, read, mech, {})["cxr"]
        for mech in planted.MECHANISMS
    }
    gap = {
        (mech, f): z[f][bits].mean() - z[f][~bits].mean()
        for mech, bits in there.items()
        for f in ("severity", "image")
    }
    assert abs(gap["mcar", "severity"]) < 0.05 and abs(gap["mcar", "image"]) < 0.05
    assert gap["mar", "severity"] > 0.5 and abs(gap["mar", "image"]) < 0.05
    assert gap["mnar", "image"] > 0.5 and abs(gap["mnar", "severity"]) < 0.05


def test_presence_rates_can_be_set():
    stays = synthetic._Stays(0, num_patients=500, presence={"cxr": 1.0, "ecg": 0.0})
    assert stays.present["cxr"].all() and not stays.present["ecg"].any()


def test_labels():
    stays = synthetic._Stays(0, num_patients=10_000, label_missing=0.1)
    died, days = stays.labels["ihm48"], stays.labels["los"]
    assert died.mean() == pytest.approx(0.13, abs=0.01)
    assert days.min() > 2
    np.testing.assert_array_equal(stays.labels["los_under_96h"], (days < 4) & (died == 0))
    assert np.isnan(stays.labels["phe"]).mean() == pytest.approx(0.1, abs=0.01)
    assert (~stays.shown["ihm48"]).mean() == pytest.approx(0.1, abs=0.01)


def test_measurement_rate_differs_between_patients():
    counts = [
        len(e["inputs"]["vitals"]["times"]) for e in rows(synthetic.cohort(None, seed=0, **SMALL))
    ]
    assert 30 < np.median(counts) < 70
    assert np.var(counts) > 3 * np.mean(counts)  # far over-dispersed for one common Poisson rate


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"missing": "mxar"}, "missing: 'mxar' is none of mcar, mar, mnar"),
        ({"modalities": ("vitals", "eeg")}, "modalities: 'eeg'"),
        ({"num_patients": 3}, "num_patients: 3 must be at least 10"),
        ({"presence": {"cxr": 1.5}}, "presence.cxr: 1.5 must be between 0 and 1"),
        ({"dims": {"vitals": 3}}, "dims: 'vitals' is none of notes, cxr, ecg"),
        ({"vocab": 8}, "vocab: 8 must be at least 9"),
        ({"planted": "tests"}, "planted: 'tests' is none of worth, next_test"),
        ({"planted": "next_test", "missing": "mar"}, "missing: 'mar' is none of mcar"),
        ({"planted": "next_test", "modalities": ("notes",)}, "modalities: 'notes' is none of"),
        ({"planted": "next_test", "tasks": ("los",)}, "tasks: 'los' is none of ihm48, problem"),
        ({"tasks": ("problem",)}, "tasks: 'problem' is none of"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        synthetic.cohort(None, seed=0, **options)
    with pytest.raises(ConfigError, match=message):
        synthetic.truth(**options)


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="num_patient"):
        synthetic.spec(num_patient=100)


def test_the_test_that_tells_differs_between_patients():
    truth = triage.truth(n=3000)
    assert (truth["start"], {*truth["next"].values()}) == ("vitals", {"ecg", "cxr", "labs"})
    for problem, own in truth["gain"].items():
        best = truth["next"][problem]
        assert own.pop(best) > 0.2 and max(map(abs, own.values())) < 1e-12
    # the ideal answers are calibrated under every subset of the modalities
    _, died, _, answers = triage.bayes(n=3000)
    for p in answers.values():
        for low, high in ((0, 0.2), (0.2, 0.5), (0.5, 1)):
            some = (p >= low) & (p < high)
            if some.any():
                assert abs(died[some].mean() - p[some].mean()) < 2 / np.sqrt(some.sum())
    cohort = synthetic.cohort(None, seed=0, planted="next_test", **SMALL)
    assert cohort.spec.task_names == ("ihm48", "problem")
    examples = rows(cohort)
    assert 0.34 < np.nanmean(label(examples, "ihm48")) < 0.46
    lungs, rate = label(examples, "problem") == 1, cohort.spec.modality("vitals").features
    rate = [np.nanmean(e["inputs"]["vitals"]["values"][:, rate.index("spo2")]) for e in examples]
    assert np.mean(np.array(rate)[lungs]) < np.mean(np.array(rate)[~lungs]) - 2  # per cent
    here = {m: np.mean([m in e["inputs"] for e in examples]) for m in triage.MODALITIES}
    assert here.pop("vitals") == 1 and all(0.79 < share < 0.91 for share in here.values())


def test_posterior_of_a_redundant_factor():
    """organ = 0, readouts 1.0 and 0.6 with variance 0.16: (1/.16 + .6/.16) / (1 + 2/.16) = .741."""
    z = {"organ": np.zeros(1)}
    read = {"labs": {"organ": np.array([1.0])}, "medications": {"organ": np.array([0.6])}}
    there = {"labs": np.array([True]), "medications": np.array([True])}
    mean, variance = worth.posterior("organ", z, read, there, ("labs", "medications"), "mcar")
    assert mean[0] == pytest.approx(10 / 13.5)
    assert variance[0] == pytest.approx(1 / 13.5)


def test_auroc_counts_ties_half():
    y, score = np.array([1, 0, 1, 0, 0]), np.array([0.9, 0.9, 0.3, 0.1, 0.5])
    # pairs: .9 vs (.9, .1, .5) = .5 + 1 + 1; .3 vs (.9, .1, .5) = 0 + 1 + 0; 3.5 / 6
    assert worth.auroc(y, score) == pytest.approx(3.5 / 6)
    assert worth.auroc(y, np.ones(5)) == 0.5


def test_truth_states_the_plan():
    found = synthetic.truth()
    drop, alone = found["leave_one_out"]["ihm48"], found["only_one"]["ihm48"]
    assert 0.85 < found["full"]["ihm48"] < 0.92
    assert drop["static"] == 0 and alone["static"] == pytest.approx(0.5)
    assert found["noise"] == ("static",)
    # redundant: each alone is worth something, taking one away almost nothing, both a lot
    assert drop["labs"] < 0.01 and drop["medications"] < 0.01
    assert alone["labs"] > 0.57 and alone["medications"] > 0.57
    rest = tuple(m for m in planted.MODALITIES if m not in ("labs", "medications"))
    both = found["full"]["ihm48"] - synthetic.truth(modalities=rest)["full"]["ihm48"]
    assert both > 2 * (drop["labs"] + drop["medications"])
    order = [m for tier in found["tiers"]["ihm48"] for m in tier]
    assert order[:4] == ["vitals", "notes", "ecg", "cxr"] and order[-1] == "static"
    assert found["tiers"]["ihm48"][:3] == (("vitals",), ("notes",), ("ecg",))


def test_synergy_is_planted_in_the_log_odds():
    """(+,+) against the mean of the other three: both 3.9, one alone -1.3, none -1.3."""
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], float)
    z = {f: np.zeros(4) for f in planted.FACTORS}
    z |= {"notes_sign": signs[:, 0], "ecg_sign": signs[:, 1]}
    np.testing.assert_allclose(
        planted.effect(planted.EFFECTS["ihm48"], z), [3.9, -1.3, -1.3, -1.3], atol=1e-12
    )


@pytest.fixture(scope="module")
def aggregates():
    """Per-stay simple statistics; embeddings projected on their true directions."""
    dims = {"notes": 32, "cxr": 32, "ecg": 32}
    cohort = synthetic.cohort(None, seed=0, num_patients=6000, rows_per_hour=0.5, dims=dims)
    table, died = {}, {}
    for part, splits in (("train", ("train",)), ("test", ("val", "test"))):
        examples = rows(cohort, *splits)
        table[part] = {m: np.array([aggregate(e, m) for e in examples]) for m in planted.MODALITIES}
        died[part] = label(examples, "ihm48")
    return table, died


def aggregate(example, m):
    width = {"vitals": 10, "labs": 22, "static": 17, "medications": 1}.get(m, 32)
    if m not in example["inputs"]:
        return np.full(width, np.nan)
    values = example["inputs"][m]["values"]
    if m == "medications":
        return values[values < synthetic.GRADES]
    if m == "static":
        return values
    count = np.maximum(np.isfinite(values).sum(0), 1e-9)
    return np.where(count >= 1, np.nansum(values, 0) / count, np.nan)


def auroc(aggregates, modalities):
    table, died = aggregates
    x = {part: np.concatenate([table[part][m] for m in modalities], 1) for part in table}
    known = {part: ~np.isnan(died[part]) for part in died}
    model = HistGradientBoostingClassifier(
        max_iter=120, learning_rate=0.06, max_leaf_nodes=8, random_state=0
    ).fit(x["train"][known["train"]], died["train"][known["train"]])
    score = model.predict_proba(x["test"][known["test"]])[:, 1]
    return roc_auc_score(died["test"][known["test"]], score)


def test_boosting_recovers_the_planted_ranking(aggregates):
    planted_drop = synthetic.truth()["leave_one_out"]["ihm48"]
    everything = planted.MODALITIES
    full = auroc(aggregates, everything)
    assert 0.8 < full < synthetic.truth()["full"]["ihm48"] + 0.02
    drop = {
        m: full - auroc(aggregates, [k for k in everything if k != m])
        for m in ("vitals", "notes", "ecg", "labs", "static")
    }
    assert drop["vitals"] > drop["notes"] > drop["ecg"] > max(drop["labs"], drop["static"], 0)
    for m, found in drop.items():
        assert found == pytest.approx(planted_drop[m], abs=0.03)


def test_graded_code_steps_are_equally_likely():
    edges = [norm.ppf(q / 8, scale=np.hypot(1, 0.4)) for q in range(1, 8)]
    signal = np.random.default_rng(0).normal(scale=np.hypot(1, 0.4), size=2000)
    grades = [synthetic._codes(np.random.default_rng(0), 16, s) for s in signal]
    grades = [int(g["values"][g["values"] < 8][0]) for g in grades]
    np.testing.assert_array_equal(grades, np.searchsorted(edges, signal))
