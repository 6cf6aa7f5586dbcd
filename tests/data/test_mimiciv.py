"""MIMIC-IV from raw files: every number of a handful of invented stays."""

import numpy as np
import pytest

from m4.data.build import prepare
from m4.data.sets import mimiciv
from m4.data.sets.mimiciv import catalogue, diagnoses, phenotypes
from m4.data.sets.mimiciv import static as static_facts
from m4.data.store import Store
from m4.errors import ConfigError
from tests.data.mimiciv_toy import ALL, all_splits, examples, patch, raw_folder


@pytest.fixture
def raw(tmp_path):
    return raw_folder(tmp_path)


def test_cohort_and_flow(raw):
    found, cohort = examples(raw)
    assert set(found) == {(1, 4.0), (1, 3.0), (3, 2.0)}  # exactly 48 h is in, 24 h is out
    flow = dict(cohort.flow)
    assert flow["ICU stays"] == 4
    assert flow["ICU stays of at least 48 h"] == 3
    assert flow["patients"] == 2
    assert cohort.notes == "MIMIC-IV 2.2"


def test_labels(raw):
    found, _ = examples(raw)
    targets = {key: e["targets"] for key, e in found.items()}
    assert [targets[k]["ihm48"] for k in ((1, 4.0), (1, 3.0), (3, 2.0))] == [0, 1, 0]
    # below 96 h and alive: 96 h is not below, the 72 h stay died, the 48 h stay counts
    assert [targets[k]["los_under_96h"] for k in ((1, 4.0), (1, 3.0), (3, 2.0))] == [0, 0, 1]
    phe = {k: None if t["phe"] is None else np.flatnonzero(t["phe"]) for k, t in targets.items()}
    assert [phenotypes.NAMES[j] for j in phe[1, 4.0]] == ["septicemia", "essential_hypertension"]
    assert [phenotypes.NAMES[j] for j in phe[1, 3.0]] == ["acute_renal_failure"]
    assert phe[3, 2.0] is None  # an admission without diagnoses has no label


def test_vitals(raw):
    """Rows at 1 h, 2 h, 48 h: nothing before 0 h, after 48 h, out of range or without number."""
    found, cohort = examples(raw)
    vitals = found[1, 4.0]["inputs"]["vitals"]
    column = {f: j for j, f in enumerate(cohort.spec.modality("vitals").features)}
    np.testing.assert_array_equal(vitals["times"], [1, 2, 48])
    values = vitals["values"]
    np.testing.assert_array_equal(values[:, column["heart_rate"]], [np.nan, 80, 90])  # first stands
    np.testing.assert_array_equal(values[:, column["systolic_bp"]], [118, np.nan, np.nan])
    # (98.6 - 32) / 1.8 = 37
    np.testing.assert_allclose(values[:, column["temperature"]], [np.nan, 37, np.nan], rtol=1e-6)
    assert np.isnan(values[:, column["spo2"]]).all()
    flow = dict(cohort.flow)
    assert flow["vitals: rows read"] == 14
    assert flow["vitals: dropped, out of range"] == 1
    assert flow["vitals: dropped, no number"] == 1
    assert flow["vitals: dropped, recorded after the window"] == 1
    assert flow["vitals: events kept"] == 7
    assert found[3, 2.0]["inputs"]["vitals"]["values"][0, column["temperature"]] == 38.5
    assert "vitals" not in found[1, 3.0]["inputs"]


@pytest.mark.parametrize("subject, value, count", [("3", 81, 1), ("99", 81, 1), ("", 80, 0)])
def test_an_event_of_another_patient_than_its_stays_is_dropped(raw, subject, value, count):
    row = "101,11,,2150-01-01 12:00:00,2150-01-01 12:05:00,220045,80,80"
    patch(raw, "icu/chartevents", f"1,{row}", f"{subject},{row}")
    found, cohort = examples(raw)
    column = cohort.spec.modality("vitals").features.index("heart_rate")
    assert found[1, 4.0]["inputs"]["vitals"]["values"][1, column] == value
    assert dict(cohort.flow)["vitals: dropped, of another patient than their stay's"] == count


def test_charted_keeps_what_was_stored_late(raw):
    found, _ = examples(raw, available="charted")
    np.testing.assert_array_equal(found[1, 4.0]["inputs"]["vitals"]["times"], [1, 2, 47.5, 48])


def test_labs_find_their_stay_without_an_admission_id(raw):
    found, _ = examples(raw)
    first, second = (found[1, days]["inputs"]["labs"] for days in (4.0, 3.0))
    np.testing.assert_array_equal(first["times"], [1])
    np.testing.assert_array_equal(second["times"], [2])
    assert first["values"][0, 0] == 4.5 and second["values"][0, 0] == 5.5
    assert second["values"][0, 3] == 2  # creatinine 9 lay between the stays
    assert "labs" not in found[3, 2.0]["inputs"]


@pytest.mark.parametrize("nameless", [("3,301,",), ("3,301,", "2,201,")])
def test_what_has_no_id_is_of_nobody(raw, nameless):
    """Rows without a stay are of no stay without an id, diagnoses of no such admission."""
    stay, hospital = "1,101,11,,2150-01-01 09:59", "1,101,2150"
    stranger = "9,999,,,2152-01-01 02:00:00,,220045,200,200,bpm,0"
    patch(raw, "icu/chartevents", stay, f"{stranger}\n{stay}")
    patch(raw, "hosp/diagnoses_icd", "1,102,1,N179", "9,,1,4019,9\n1,102,1,N179")
    earlier = "1,,2149-01-01 04:00:00,2149-01-08 00:00:00,,X,P,X,HOME,Medicare,0"
    patch(raw, "hosp/admissions", hospital, f"{earlier}\n{hospital}")
    for row in nameless:
        patch(raw, "icu/icustays", f"{row}{row[0]}1,", f"{row},")
    options = {"window": "stay", "tasks": ("phe",), "modalities": ("vitals", "history")}
    cohort = mimiciv.cohort(raw, seed=0, **options)
    examples = [e for start in cohort.splits.values() for e in start()]
    assert sorted(e["key"][2] for e in examples) == [11, 12, 21][: 4 - len(nameless)]
    assert not any(e["key"][2] == 11 and "history" in e["inputs"] for e in examples)
    flow = dict(cohort.flow)
    assert flow["ICU stays"] == 4
    assert flow["ICU stays with admission and patient record"] == len(examples)
    assert flow["records: ICU stay without an id, left out"] == len(nameless)
    assert flow["vitals: events kept"] == 10 - len(nameless) and flow["vitals: rows read"] == 15


def test_an_admission_of_no_length_is_not_in_its_own_history(raw):
    begin, end = "2150-01-01 04:00:00", "2150-01-08 00:00:00"
    patch(raw, "hosp/admissions", f"{begin},{end}", f"{begin},{begin}")
    patch(raw, "icu/icustays", "2150-01-01 10:00:00", begin)
    options = {"window": "stay", "tasks": ("phe",), "modalities": ("static", "history")}
    cohort = mimiciv.cohort(raw, seed=0, **options)
    found = {e["key"][2]: e["inputs"] for start in cohort.splits.values() for e in start()}
    assert "history" not in found[11] and len(found[12]["history"]["values"]) == 2


def test_static(raw):
    found, cohort = examples(raw)
    static = dict(
        zip(catalogue.STATIC, found[1, 4.0]["inputs"]["static"]["values"].tolist(), strict=True)
    )
    on = {name for name, value in static.items() if value == 1}
    assert static["age"] == 62  # 60 in 2148, so 62 in 2150
    groups = found[1, 4.0]["groups"]
    assert (groups["age_band"], groups["sex"] == "female") == ("50 to under 65", static["female"])
    assert {*groups} == {*catalogue.GROUPS} and groups["icu_type"]
    assert groups["race"] == ""  # a release without the column
    for said, race in (
        ("HISPANIC/LATINO - CUBAN", "hispanic"), ("WHITE - BRAZILIAN", "white"),
        ("BLACK/CAPE VERDEAN", "black"), ("ASIAN - ASIAN INDIAN", "asian"),
        ("AMERICAN INDIAN/ALASKA NATIVE", "other"), ("MULTIPLE RACE/ETHNICITY", "other"),
        ("UNABLE TO OBTAIN", ""), ("PATIENT DECLINED TO ANSWER", ""), ("UNKNOWN", ""),
    ):  # fmt: skip
        assert static_facts.race(said) == race
    assert static["hours_before_icu"] == 6
    assert on == {
        "female", "type_emergency", "from_emergency_room", "insurance_medicare", "unit_medical",
    }  # fmt: skip


def test_codes(raw):
    found, cohort = examples(raw, modalities=ALL)
    inputs = found[1, 4.0]["inputs"]

    def ids(*codes):
        return [diagnoses.hashed(code, catalogue.VOCAB) for code in codes]

    # distinct, by last time: 225158 at 1 h, 225798 at 2 h and again at 4 h; 221906 on day 3 is late
    assert inputs["medications"]["values"].tolist() == ids("225158", "225798")
    assert inputs["procedures"]["values"].tolist() == ids("225792")
    assert inputs["prescriptions"]["values"].tolist() == ids("heparin")  # aspirin before the ICU
    assert "history" not in inputs
    # codes of the first admission, never those of the admission itself
    assert found[1, 3.0]["inputs"]["history"]["values"].tolist() == ids("9:995", "9:401")


def test_whole_stay_window_is_for_phenotypes(raw):
    cohort = mimiciv.cohort(raw, seed=0, window="stay")
    found = [e for split in cohort.splits.values() for e in split()]
    assert len(found) == 4 and cohort.spec.task_names == ("phe",)
    times = [e["inputs"]["vitals"]["times"] for e in found if "vitals" in e["inputs"]]
    longest = max(times, key=len)  # also the row one second after 48 h and the one stored late
    np.testing.assert_allclose(longest, [1, 2, 47.5, 48, 48 + 1 / 3600], rtol=1e-6)
    with pytest.raises(ConfigError, match="ihm48"):
        mimiciv.spec(window="stay", tasks=("ihm48",))


def test_split_is_by_patient_or_by_stay(raw):
    """Over twelve seeds patient 1's stays 11 and 12 never, or sometimes, fall into two splits."""
    parted = {"subject": set(), "stay": set()}
    for unit in parted:
        for seed in range(12):
            splits = mimiciv.cohort(raw, seed=seed, split_by=unit).splits
            found = {e["targets"]["los"]: (s, e["patient"]) for s, f in splits.items() for e in f()}
            parted[unit].add(found[4.0][0] != found[3.0][0])
            assert [found[days][1] for days in (4.0, 3.0)] == (
                [1, 1] if unit == "subject" else [11, 12]  # the unit of split and of the bootstrap
            )
    assert parted == {"subject": {False}, "stay": {False, True}}


def test_future_values_change_nothing(raw):
    before, _ = examples(raw, modalities=ALL)
    patch(raw, "icu/chartevents", "10:00:01,,220045,91,91", "10:00:01,,220045,12,12")
    patch(raw, "icu/chartevents", "10:30:00,220045,99,99", "10:30:00,220045,13,13")
    patch(raw, "icu/inputevents", "14:00:00,221906", "14:00:00,225798")
    patch(raw, "hosp/diagnoses_icd", "1,102,1,N179,10", "1,102,1,A419,10")
    after, _ = examples(raw, modalities=ALL)
    for key, example in before.items():
        assert example["inputs"].keys() == after[key]["inputs"].keys()
        for name, payload in example["inputs"].items():
            for part, array in payload.items():
                np.testing.assert_array_equal(array, after[key]["inputs"][name][part])
    assert not np.array_equal(before[1, 3.0]["targets"]["phe"], after[1, 3.0]["targets"]["phe"])


def test_blocks_hold_the_same_examples(raw, monkeypatch):
    whole, _ = examples(raw, modalities=ALL)
    monkeypatch.setattr("m4.data.sets.mimiciv.examples.ROWS", 1)
    monkeypatch.setattr("m4.data.csv_files.BLOCK_BYTES", 400)
    single, _ = examples(raw, modalities=ALL)
    assert whole.keys() == single.keys()
    for key in whole:
        for name, payload in whole[key]["inputs"].items():
            for part, array in payload.items():
                np.testing.assert_array_equal(array, single[key]["inputs"][name][part])


def test_builds_a_store(raw, tmp_path):
    seed = next(s for s in range(200) if all_splits(raw, s))
    folder = prepare("mimiciv", raw, tmp_path / "out", seed=seed, options={"split_by": "stay"})
    store = Store(folder, "train")
    assert len(store) == 1 and store.read([0])["vitals/values"].shape == (1, 256, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": "24h"}, "window: '24h' is none of 48h, stay, hour, cxr"),
        ({"split_by": "hospital"}, "split_by"),
        ({"modalities": ("vitals", "eeg")}, r"\['eeg'\] not in vitals"),
        ({"tasks": ("mortality",)}, "ihm48"),
        ({"steps": 0}, "steps: 0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        mimiciv.spec(**options)


def test_all_wrong_options_at_once():
    with pytest.raises(ConfigError) as caught:
        mimiciv.spec(window="24h", vocab=0, available="now")
    assert len(caught.value.lines()) == 3
