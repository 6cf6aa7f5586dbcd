"""MIMIC-IV from raw files: a handful of invented stays whose every number is known."""

import gzip
import os
import subprocess
import sys

import numpy as np
import pytest

from m4.data import mimiciv
from m4.data.build import prepare
from m4.data.mimiciv import diagnoses, files, schema, stays
from m4.data.store import Store
from m4.errors import ConfigError, DataError

# Patient 1: stay 11 (4 days, survived), then stay 12 in a second admission (3 days, died).
# Patient 2: stay 21 (1 day, too short). Patient 3: stay 31 (exactly 48 h, survived).
TABLES = {
    "icu/icustays": """subject_id,hadm_id,stay_id,first_careunit,last_careunit,intime,outtime,los
1,101,11,Medical Intensive Care Unit (MICU),X,2150-01-01 10:00:00,2150-01-05 10:00:00,4.0
1,102,12,Coronary Care Unit (CCU),X,2150-03-01 00:00:00,2150-03-04 00:00:00,3.0
2,201,21,Trauma SICU (TSICU),X,2151-01-01 00:00:00,2151-01-02 00:00:00,1.0
3,301,31,Neuro Stepdown,X,2152-01-01 00:00:00,2152-01-03 00:00:00,2.0
""",
    "hosp/admissions": """subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,\
admit_provider_id,admission_location,discharge_location,insurance,hospital_expire_flag
1,101,2150-01-01 04:00:00,2150-01-08 00:00:00,,EW EMER.,P,EMERGENCY ROOM,HOME,Medicare,0
1,102,2150-02-28 00:00:00,2150-03-04 00:00:00,2150-03-04 00:00:00,URGENT,P,\
TRANSFER FROM HOSPITAL,DIED,Medicare,1
2,201,2151-01-01 00:00:00,2151-01-03 00:00:00,,ELECTIVE,P,PHYSICIAN REFERRAL,HOME,Other,0
3,301,2152-01-01 00:00:00,2152-01-04 00:00:00,,OBSERVATION ADMIT,P,PACU,HOME,Medicaid,0
""",
    "hosp/patients": """subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod
1,F,60,2148,2011 - 2013,
2,M,50,2151,2011 - 2013,
3,M,40,2152,2011 - 2013,
""",
    "icu/chartevents": """subject_id,hadm_id,stay_id,caregiver_id,charttime,storetime,itemid,value,\
valuenum,valueuom,warning
1,101,11,,2150-01-01 09:59:00,,220045,70,70,bpm,0
1,101,11,,2150-01-01 12:00:00,2150-01-01 12:05:00,220045,80,80,bpm,0
1,101,11,,2150-01-01 12:00:00,,220045,81,81,bpm,0
1,101,11,,2150-01-01 12:00:00,,223761,98.6,98.6,F,0
1,101,11,,2150-01-01 11:00:00,,220050,118,118,mmHg,0
1,101,11,,2150-01-01 11:00:00,,220179,121,121,mmHg,0
1,101,11,,2150-01-01 13:00:00,,220277,250,250,%,0
1,101,11,,2150-01-01 13:00:00,,999999,1,1,,0
1,101,11,,2150-01-01 13:30:00,,220045,text,,bpm,0
1,101,11,,2150-01-03 09:30:00,2150-01-03 10:30:00,220045,99,99,bpm,0
1,101,11,,2150-01-03 10:00:00,,220045,90,90,bpm,0
1,101,11,,2150-01-03 10:00:01,,220045,91,91,bpm,0
2,201,21,,2151-01-01 01:00:00,,220045,60,60,bpm,0
3,301,31,,2152-01-01 01:00:00,,223762,38.5,38.5,C,0
""",
    "hosp/labevents": """labevent_id,subject_id,hadm_id,specimen_id,itemid,order_provider_id,\
charttime,storetime,value,valuenum,valueuom,ref_range_lower,ref_range_upper,flag,priority,comments
1,1,,1,50971,,2150-01-01 11:00:00,2150-01-01 12:00:00,4.5,4.5,mEq/L,3,5,,ROUTINE,"two
lines"
2,1,102,2,50971,,2150-03-01 02:00:00,2150-03-01 03:00:00,5.5,5.5,mEq/L,3,5,,ROUTINE,
3,1,102,2,50912,,2150-03-01 02:00:00,2150-03-01 03:00:00,2,2,mg/dL,3,5,,ROUTINE,
4,1,,3,50912,,2150-02-01 02:00:00,2150-02-01 03:00:00,9,9,mg/dL,3,5,,ROUTINE,
""",
    "icu/inputevents": """subject_id,hadm_id,stay_id,caregiver_id,starttime,endtime,storetime,itemid
1,101,11,,2150-01-01 12:00:00,2150-01-01 13:00:00,2150-01-01 12:00:00,225798
1,101,11,,2150-01-01 11:00:00,2150-01-01 13:00:00,2150-01-01 12:00:00,225158
1,101,11,,2150-01-01 14:00:00,2150-01-01 15:00:00,2150-01-01 14:00:00,225798
1,101,11,,2150-01-04 14:00:00,2150-01-04 15:00:00,2150-01-04 14:00:00,221906
""",
    "icu/procedureevents": """subject_id,hadm_id,stay_id,starttime,endtime,storetime,itemid
1,101,11,2150-01-01 12:00:00,2150-01-01 13:00:00,2150-01-01 12:00:00.000,225792
""",
    "hosp/prescriptions": """subject_id,hadm_id,starttime,stoptime,drug_type,drug
1,101,2150-01-01 12:00:00,2150-01-01 13:00:00,MAIN,Heparin
1,101,2150-01-01 09:00:00,2150-01-01 13:00:00,MAIN,Aspirin
1,101,,2150-01-01 13:00:00,MAIN,Insulin
""",
    "hosp/diagnoses_icd": """subject_id,hadm_id,seq_num,icd_code,icd_version
1,101,1,99592,9
1,101,2,4019,9
1,102,1,N179,10
2,201,1,4019,9
""",
}
ALL = ("vitals", "labs", "static", "medications", "prescriptions", "procedures", "history")


@pytest.fixture
def raw(tmp_path):
    return write(tmp_path / "raw" / "mimiciv" / "2.2").parents[1]


def write(root, tables=TABLES, compress=True):
    for name, text in tables.items():
        path = root / f"{name}.csv{'.gz' if compress else ''}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt") if compress else open(path, "w") as handle:
            handle.write(text)
    return root


def patch(raw, name, old, new):
    path = raw / "mimiciv" / "2.2" / f"{name}.csv.gz"
    text = gzip.decompress(path.read_bytes()).decode()
    assert old in text
    path.write_bytes(gzip.compress(text.replace(old, new).encode()))


def examples(raw, **options):
    """Examples by (patient, days in the ICU), so that the split does not matter."""
    cohort = mimiciv.cohort(raw, seed=0, **options)
    found = [e for split in cohort.splits.values() for e in split()]
    return {(e["patient"], float(e["targets"].get("los", 0))): e for e in found}, cohort


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
    assert [schema.PHENOTYPES[j] for j in phe[1, 4.0]] == ["septicemia", "essential_hypertension"]
    assert [schema.PHENOTYPES[j] for j in phe[1, 3.0]] == ["acute_renal_failure"]
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


def test_static(raw):
    found, cohort = examples(raw)
    static = dict(
        zip(schema.STATIC, found[1, 4.0]["inputs"]["static"]["values"].tolist(), strict=True)
    )
    on = {name for name, value in static.items() if value == 1}
    assert static["age"] == 62  # 60 in 2148, so 62 in 2150
    assert static["hours_before_icu"] == 6
    assert on == {
        "female", "type_emergency", "from_emergency_room", "insurance_medicare", "unit_medical",
    }  # fmt: skip


def test_codes(raw):
    found, cohort = examples(raw, modalities=ALL)
    inputs = found[1, 4.0]["inputs"]

    def ids(*codes):
        return [diagnoses.hashed(code, schema.VOCAB) for code in codes]

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
    monkeypatch.setattr("m4.data.mimiciv.examples.ROWS", 1)
    monkeypatch.setattr("m4.data.mimiciv.files.BLOCK_BYTES", 400)
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


def all_splits(raw, seed):
    return len({stays.assign(s, mimiciv.FRACTIONS, seed) for s in (11, 12, 31)}) == 3


def test_layouts(tmp_path):
    """Folder names seen in the wild, plain csv, and the highest version wins."""
    assert files.find_root(tmp_path, demo=False) is None
    plain = write(tmp_path / "a", compress=False)  # hosp/ and icu/ directly under raw_dir
    assert files.find_root(plain, demo=False) == plain
    assert files.version(plain) == "unknown"
    (plain / "CHANGELOG.txt").write_text("# MIMIC-IV changelog\n\n## MIMIC-IV v3.1\n")
    assert files.version(plain) == "3.1"
    both = tmp_path / "b"
    write(both / "mimiciv" / "2.2")
    newer = write(both / "mimiciv" / "3.1")
    assert files.find_root(both, demo=False) == newer and files.version(newer) == "3.1"
    flat = write(tmp_path / "c" / "mimic-iv-2.0")
    assert files.find_root(tmp_path / "c", demo=False) == flat and files.version(flat) == "2.0"
    assert files.version(write(tmp_path / "e" / "mimiciv")) == "unknown"
    (tmp_path / "e" / "mimiciv" / "hosp" / "provider.csv.gz").touch()
    assert files.version(tmp_path / "e" / "mimiciv") == "2.2 or later"
    old = write(tmp_path / "d" / "mimiciv" / "latest")
    (old / "core").mkdir()
    assert files.version(old) == "1.x"
    (old / "hosp" / "admissions.csv.gz").rename(old / "core" / "admissions.csv.gz")
    assert mimiciv.missing_files(tmp_path / "d") == []


def test_demo_and_full_data_are_never_mixed_up(tmp_path):
    demo = write(tmp_path / "mimic-iv-demo-2.2")
    (line,) = mimiciv.missing_files(tmp_path)
    assert "no mimiciv/" in line and "is the demo" in line
    assert mimiciv.missing_files(tmp_path, demo=True) == []
    renamed = demo.rename(tmp_path / "mimiciv")
    (renamed / "demo_subject_id.csv").write_text("subject_id\n1\n")
    assert mimiciv.missing_files(tmp_path) != []
    assert mimiciv.missing_files(tmp_path, demo=True) == []


def test_missing_files_are_listed_one_a_line(raw):
    for name in ("icu/chartevents", "hosp/diagnoses_icd"):
        (raw / "mimiciv" / "2.2" / f"{name}.csv.gz").unlink()
    lines = mimiciv.missing_files(raw)
    assert len(lines) == 2
    assert "icu/chartevents.csv.gz" in lines[0] and "hosp/diagnoses_icd.csv.gz" in lines[1]
    assert mimiciv.missing_files(raw, modalities=("labs",), tasks=("ihm48",)) == []
    with pytest.raises(DataError, match="chartevents"):
        mimiciv.cohort(raw, seed=0)


def test_missing_files_needs_only_the_standard_library():
    code = (
        "import sys; from m4.data import mimiciv; mimiciv.spec(); mimiciv.missing_files('/no');"
        "print(sorted({'jax', 'numpy', 'pyarrow'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_truncated_file_is_one_clear_line(raw):
    path = raw / "mimiciv" / "2.2" / "icu" / "chartevents.csv.gz"
    path.write_bytes(path.read_bytes()[:-30])
    cohort = mimiciv.cohort(raw, seed=0)
    with pytest.raises(DataError) as caught:
        list(cohort.splits["train"]())
    (line,) = caught.value.lines()
    assert "chartevents.csv.gz: cut short or corrupt" in line and "\n" not in line


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("charttime,", "chart_time,", "charttime"),
        ("2150-01-01 12:00:00,2150-01-01 12:05:00,220045,80", "late,,220045,80", "malformed"),
        (",220045,90,90,bpm,0", ",220045", "malformed"),
    ],
)
def test_a_malformed_table_is_named_but_not_quoted(raw, old, new, message):
    patch(raw, "icu/chartevents", old, new)
    cohort = mimiciv.cohort(raw, seed=0)
    with pytest.raises(DataError, match=message) as caught:
        list(cohort.splits["train"]())
    text = "".join(caught.value.lines())
    assert "chartevents.csv.gz" in text
    assert "101" not in text.replace(str(raw), "") and "late" not in text.replace(str(raw), "")
    assert caught.value.__suppress_context__


def test_no_stay_left(raw):
    patch(raw, "hosp/patients", "\n1,", "\n901,")
    patch(raw, "hosp/patients", "\n3,", "\n903,")
    with pytest.raises(DataError, match="no ICU stay"):
        mimiciv.cohort(raw, seed=0)


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


def test_linked_data_that_is_not_there_is_one_line_each(raw):
    lines = mimiciv.missing_files(raw, modalities=("vitals", "notes", "cxr", "ecg_measures"))
    assert len(lines) == 4  # Note, CXR-JPG, ECG; embeddings of the X-rays
    assert "mimic-iv-note" in lines[0] and "embeddings.cxr" in lines[3]
    (raw / "mimiciv" / "2.2" / "demo_subject_id.csv").write_text("subject_id\n1\n")
    options = {"modalities": ("vitals", "notes", "cxr", "ecg_measures"), "demo": True}
    assert mimiciv.missing_files(raw, **options) == []  # the demo has none of them: absent
    _, cohort = examples(raw, **options)
    assert cohort.notes == "MIMIC-IV demo 2.2, no MIMIC-IV-Note, no MIMIC-CXR-JPG, no MIMIC-IV-ECG"
    assert cohort.spec.modality("notes").shape == (5, 768)
    for split in cohort.splits.values():
        assert all(e["inputs"].keys() <= {"vitals"} for e in split())


def test_an_interrupted_build_goes_on_with_the_tables_it_has_read(raw, tmp_path, monkeypatch):
    seed = next(s for s in range(200) if all_splits(raw, s))
    options = {"split_by": "stay"}
    whole = prepare("mimiciv", raw, tmp_path / "a", seed=seed, options=options)
    read = []
    stream = files.stream

    def counted(path, columns):
        read.append(path.name)
        yield from stream(path, columns)
        if path.name == "labevents.csv.gz" and read.count(path.name) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "stream", counted)
    with pytest.raises(KeyboardInterrupt):
        prepare("mimiciv", raw, tmp_path / "b", seed=seed, options=options)
    scratch = tmp_path / "b" / "mimiciv" / ".scratch"
    assert scratch.stat().st_mode & 0o077 == 0 or not any(p.is_file() for p in scratch.iterdir())
    folder = prepare("mimiciv", raw, tmp_path / "b", seed=seed, options=options)
    assert read.count("chartevents.csv.gz") == 1 and read.count("labevents.csv.gz") == 2
    assert not scratch.exists()
    for split in ("train", "val", "test"):
        first, second = (Store(f, split).read([0]) for f in (whole, folder))
        assert all(np.array_equal(first[key], second[key]) for key in first)
    assert Store(whole, "train").manifest["flow"] == Store(folder, "train").manifest["flow"]


PEAK = """
import re, sys
from m4.data import mimiciv
cohort = mimiciv.cohort(sys.argv[1], seed=0, modalities=("vitals",), tasks=("ihm48",))
print(sum(1 for split in cohort.splits.values() for _ in split()))
# Not ru_maxrss, which a process inherits from the one that started it.
print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) // 1024)
"""


def test_memory_does_not_grow_with_the_table(raw, tmp_path):
    """Peak memory over 50 MB and over 200 MB of chartevents, most of it other items."""
    path = raw / "mimiciv" / "2.2" / "icu" / "chartevents.csv.gz"
    head, *body = gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True)
    others = "".join(body) + "1,101,11,,2150-01-01 12:00:00,,226730,7,7,cm,0\n" * 200
    block = gzip.compress((others * 500).encode())  # 5 MB; gzip members may be concatenated
    peaks = []
    for copies in (10, 40):
        path.write_bytes(gzip.compress(head.encode()) + block * copies)
        run = subprocess.run(
            [sys.executable, "-c", PEAK, str(raw)],
            capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        rows, peak = map(int, run.stdout.split())
        assert rows == 3
        peaks.append(peak)
    assert peaks[1] < peaks[0] + 40, peaks
    assert peaks[1] < 400, peaks
