"""MIMIC-IV-Note, CXR-JPG and ECG joined to stays; tasks; HAIM's and FlexCare's features."""

import csv
import gzip
import json
import os
import shutil
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from m4.data import __main__ as data_main
from m4.data import csv_files, fake
from m4.data.cohort import patient_number
from m4.data.sets import mimiciv
from m4.data.sets.mimiciv import benchmark, catalogue, diseases, haim_blocks, labels, life
from m4.data.sets.mimiciv.diagnoses import hashed
from m4.data.sets.mimiciv.embeddings import items
from m4.errors import ConfigError, DataError
from tests.data import mimiciv_toy as toy

# Stay 11 (patient 1, admission 101) begins 2150-01-01 10:00, stay 12 (102) 2150-03-01 00:00,
# stay 31 (patient 3) 2152-01-01 00:00.
NOTES = """note_id,subject_id,hadm_id,note_type,note_seq,charttime,storetime,text
1-RR-1,1,101,RR,1,2150-01-01 12:00:00,2150-01-01 13:00:00,"No effusion.
Heart size normal."
1-RR-2,1,101,RR,2,2150-01-03 09:00:00,2150-01-03 12:00:00,reported too late
1-RR-3,1,101,RR,3,2150-01-01 09:00:00,2150-01-01 09:30:00,before the stay
1-RR-4,1,,RR,4,2150-01-02 10:00:00,,effusion resolved
9-RR-1,9,901,RR,1,2150-01-01 12:00:00,2150-01-01 13:00:00,of a stranger
"""
SUMMARIES = """note_id,subject_id,hadm_id,note_type,note_seq,charttime,storetime,text
1-DS-1,1,101,DS,1,2150-01-08 00:00:00,2150-01-09 00:00:00,first admission
1-DS-2,1,102,DS,1,2150-03-04 00:00:00,2150-03-04 00:00:00,second admission
"""
IMAGES = """dicom_id,subject_id,study_id,ViewPosition,StudyDate,StudyTime
a,1,500,AP,21500101,160000.25
b,1,500,LATERAL,21500101,160000.25
c,1,501,PA,21500102,40000.0
d,1,502,AP,21500104,100000
e,3,503,AP,21520101,030000
"""
FINDINGS = "subject_id,study_id," + ",".join(
    name.replace("_", " ").title() for name in catalogue.CHEXPERT
)


@pytest.fixture
def raw(tmp_path):
    root = toy.write(tmp_path / "raw" / "mimiciv" / "2.2").parents[1]
    for name, text in (
        ("mimic-iv-note/2.2/note/radiology", NOTES),
        ("mimic-iv-note/2.2/note/discharge", SUMMARIES),
        ("mimic-cxr-jpg/2.0.0/mimic-cxr-2.0.0-metadata", IMAGES),
        ("mimic-cxr-jpg/2.0.0/mimic-cxr-2.0.0-chexpert", f"{FINDINGS}\n"
         f"1,500,1.0,0.0,-1.0{',' * 11}\n1,501,0.0,{',' * 12}1.0\n1,502{',1.0' * 14}\n"),
    ):  # fmt: skip
        path = root / f"{name}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()))
    ecg = root / "mimic-iv-ecg-1.0"
    ecg.mkdir()
    names = ",".join(catalogue.ECG_MEASURES)
    (ecg / "machine_measurements.csv").write_text(
        f"subject_id,study_id,ecg_time,{names}\n"
        "1,70,2150-01-01 11:00:00,800,1,2,3,4,5,6,7,8\n"
        "1,71,2150-01-02 11:00:00,700,1,2,3,4,5,6,7,29999\n"
        "1,72,2150-01-04 11:00:00,600,1,2,3,4,5,6,7,8\n"
    )
    (ecg / "record_list.csv").write_text(
        "subject_id,study_id,file_name,ecg_time,path\n1,70,70,2150-01-01 11:00:00,files/x/70\n"
        "1,71,71,2150-01-02 11:00:00,files/x/71\n"
    )
    return root


def test_notes_count_when_stored_and_only_of_the_stay(raw):
    found, cohort = toy.examples(raw, modalities=("notes", "note_words", "earlier_notes"))
    first = found[1, 4.0]["inputs"]
    np.testing.assert_array_equal(first["notes"]["times"], [2, 24])
    vectors = first["notes"]["values"]
    assert vectors.shape == (2, 768)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    assert vectors[0] @ vectors[1] > 0.05  # both speak of an effusion
    words = ["no", "effusion.", "heart", "size", "normal.", "effusion", "resolved"]
    expected = [hashed(word, catalogue.WORD_VOCAB) for word in words]
    assert first["note_words"]["values"].tolist() == expected
    assert "earlier_notes" not in first  # its own summary is written at discharge
    later = found[1, 3.0]["inputs"]["earlier_notes"]
    hours = (datetime(2150, 1, 8) - datetime(2150, 3, 1)).total_seconds() / 3600
    np.testing.assert_array_equal(later["times"], [hours])
    assert not found[3, 2.0]["inputs"]
    flow = dict(cohort.flow)
    assert flow["notes: rows read"] == 5 and flow["notes: notes kept"] == 2
    assert flow["notes: dropped, recorded after the window"] == 1
    assert cohort.notes == "MIMIC-IV 2.2, MIMIC-IV-Note 2.2"
    found, _ = toy.examples(raw, modalities=("notes",), available="charted")
    np.testing.assert_array_equal(found[1, 4.0]["inputs"]["notes"]["times"], [2, 24, 47])


def embeddings(folder, table):
    folder.mkdir()
    ids = {patient_number(key): np.full(3, value) for key, value in table.items()}
    np.save(folder / "ids.npy", np.array(sorted(ids)))
    np.save(folder / "vectors.npy", np.array([ids[i] for i in sorted(ids)], np.float16))
    facts = {"encoder": "models/bert", "backend": "onnx", "revision": "1f", "pooling": "cls"}
    facts |= {"count": len(ids), "width": 3, "sha256": "0"}
    (folder / "embed.json").write_text(json.dumps(facts))
    return str(folder)


def test_embeddings_are_found_by_identifier(raw, tmp_path):
    where = {
        "notes": embeddings(tmp_path / "n", {"1-RR-1": 5, "1-RR-9": 6}),
        "cxr": embeddings(tmp_path / "c", {"a": 1, "b": 2, "c": 3, "d": 4}),
        "ecg": embeddings(tmp_path / "e", {"71": 8, "70": 7}),
    }
    options = {"modalities": tuple(where), "embeddings": where, "dims": dict.fromkeys(where, 3)}
    assert mimiciv.missing_files(raw, **options) == []
    found, cohort = toy.examples(raw, **options)
    inputs = found[1, 4.0]["inputs"]
    assert inputs["notes"]["values"].tolist() == [[5, 5, 5]]
    assert inputs["cxr"]["values"][:, 0].tolist() == [1, 3]  # frontal, within 48 h, by time
    np.testing.assert_allclose(inputs["cxr"]["times"], [6, 18])
    assert inputs["ecg"]["values"][:, 0].tolist() == [7, 8]
    assert dict(cohort.flow)["notes: dropped, no embedding"] == 1
    assert "notes by bert revision 1f pooling cls" in cohort.notes
    assert cohort.sources["embeddings of ecg"] == {"bytes": 12, "sha256": "0"}
    np.save(tmp_path / "n" / "ids.npy", np.array([3, 1]))
    with pytest.raises(DataError, match="ids.npy must be sorted"):
        toy.examples(raw, **options)


@pytest.mark.parametrize(
    ("date", "time", "hour"),
    [
        ("21500101", "213014.531", 11.504),
        ("21500102", "1250.375", 14.2139),  # 00:12:50, its zeros lost
        ("21500102.0", "0.0", 14.0),  # midnight is a time
        ("21500102", "", None),  # no time is not midnight
        ("21500102", " ", None),
        ("21500102", "nan", None),
        ("21500102", "256000", None),
        ("", "213014", None),
        ("2150", "213014", None),
    ],
)
def test_an_image_without_a_time_has_no_hour(raw, date, time, hour, tmp_path):
    path = raw / "mimic-cxr-jpg/2.0.0/mimic-cxr-2.0.0-metadata.csv.gz"
    rows = (
        f"dicom_id,subject_id,study_id,ViewPosition,StudyDate,StudyTime\na,1,500,AP,{date},{time}"
    )
    path.write_bytes(gzip.compress(f"{rows}\nb,1,501,LATERAL,{date},{time}\n".encode()))
    options = {"embeddings": {"cxr": embeddings(tmp_path / "c", {"a": 1, "b": 2})}}
    found, cohort = toy.examples(raw, modalities=("static", "cxr"), **options)
    there = [e["inputs"]["cxr"] for e in found.values() if "cxr" in e["inputs"]]
    assert dict(cohort.flow)["cxr: left out, without a date and a time of day"] == (hour is None)
    if hour is None:
        assert not there
    else:
        np.testing.assert_allclose(there[0]["times"], [hour], atol=1e-3)


@pytest.mark.parametrize("time", ["", "2150-01-02", "2150-01-02 00:00:00+02:00", "soon"])
def test_an_ecg_without_a_time_has_no_hour(raw, time):
    path = raw / "mimic-iv-ecg-1.0/machine_measurements.csv"
    path.write_text(path.read_text().replace("2150-01-02 11:00:00", time))
    found, cohort = toy.examples(raw, modalities=("static", "ecg_measures"))
    measures = found[1, 4.0]["inputs"]["ecg_measures"]["values"]
    assert measures[0] == 800  # not the 700 of the second one
    assert dict(cohort.flow)["ecg_measures: left out, without a date and a time of day"] == 1


def test_the_last_image_and_ecg_before_the_end(raw):
    from PIL import Image

    place = raw / "mimic-cxr-jpg/2.0.0/files/p1/p1/s501"
    place.mkdir(parents=True)
    picture = np.zeros((300, 400), np.uint8)
    picture[:, 50:350] = 200  # the central square
    Image.fromarray(picture).save(place / "c.jpg", quality=95)
    found, cohort = toy.examples(raw, modalities=("static", "cxr_image", "ecg_measures"))
    image = found[1, 4.0]["inputs"]["cxr_image"]["values"]
    assert image.shape == (1, 224, 224, 3) and image.dtype == np.uint8
    assert abs(float(image.mean()) - 200) < 1.5
    assert "cxr_image" not in found[3, 2.0]["inputs"]  # its file is not there
    measures = found[1, 4.0]["inputs"]["ecg_measures"]["values"]
    np.testing.assert_array_equal(measures, [700, 1, 2, 3, 4, 5, 6, 7, np.nan])
    assert dict(cohort.flow)["cxr_image: stays with any"] == 2
    for content in (b"broken", b"P2 4 4 255\nJOHN DOE 1953\n"):
        (place / "c.jpg").write_bytes(content)
        with pytest.raises(DataError, match="metadata.csv.gz line 4: .* cannot be dec") as error:
            toy.examples(raw, modalities=("static", "cxr_image"))
        assert "p1" not in str(error.value) and "JOHN" not in str(error.value)
    (place / "c.jpg").unlink()
    os.mkfifo(place / "c.jpg")
    with pytest.raises(DataError, match="line 4: its image cannot be decoded"):
        toy.examples(raw, modalities=("static", "cxr_image"))


@pytest.mark.parametrize("who", ["/home/me/photo", "../../../../../photo", "a\\b", "z" * 300])
def test_an_image_that_leads_elsewhere_is_refused(raw, who):
    path = raw / "mimic-cxr-jpg/2.0.0/mimic-cxr-2.0.0-metadata.csv.gz"
    path.write_bytes(gzip.compress(IMAGES.replace("\nc,", f"\n{who},").encode()))
    said = "mimic-cxr-2.0.0-metadata.csv.gz line 4: dicom_id is no name of a file"
    with pytest.raises(DataError, match=said):
        toy.examples(raw, modalities=("static", "cxr_image"))
    with pytest.raises(DataError, match=said):
        [*items.read("cxr", raw)]


@pytest.mark.parametrize("who", ["/home/me/70", "../../70", "", "z" * 300])
def test_a_waveform_that_leads_elsewhere_is_refused(raw, who, tmp_path, capsys):
    path = raw / "mimic-iv-ecg-1.0/record_list.csv"
    path.write_text(path.read_text().replace("files/x/71", who))
    assert data_main.main(["embed", "ecg", str(raw), str(tmp_path / "o"), "--backend=bands"]) == 3
    said = capsys.readouterr().err
    assert "record_list.csv line 3: path is no path below mimic-iv-ecg-1.0" in said
    assert len(said.splitlines()) == 1


def test_windows_that_end_at_an_image(raw):
    tasks = ("chexpert", "los_after_cxr", "mortality_48h", "los_under_48h", "disposition")
    options = {"window": "cxr", "modalities": ("vitals", "static"), "tasks": tasks}
    seen = set()
    for seed in range(12):
        cohort = mimiciv.cohort(raw, seed=seed, **options)
        (stay,) = [e for start in cohort.splits.values() for e in start()]  # patient 3's is early
        hours = float(stay["targets"]["los_after_cxr"])
        # images at 6 h, 18 h and 72 h of stay 11; discharged 2150-01-08 00:00, 158 h after intime
        assert hours in (152, 140, 86)
        seen.add(hours)
        findings = stay["targets"]["chexpert"]
        known = {152: {0: 1, 1: 0}, 140: {0: 0, 13: 1}, 86: dict.fromkeys(range(14), 1)}[hours]
        assert {int(k): findings[k] for k in np.flatnonzero(~np.isnan(findings))} == known
        times = stay["inputs"]["vitals"]["times"]
        assert times.max() <= 158 - hours
        assert stay["targets"]["mortality_48h"] == 0 and stay["targets"]["los_under_48h"] == 0
        assert stay["targets"]["disposition"] == 0
    assert len(seen) == 3
    shutil.rmtree(raw / "mimic-cxr-jpg")
    (line,) = mimiciv.missing_files(raw, **options)
    assert "mimic-cxr-jpg" in line


def test_windows_that_end_at_an_hour(raw):
    cohort = mimiciv.cohort(raw, seed=3, window="hour", modalities=("vitals", "static"))
    assert cohort.spec.task_names == ("decompensation", "los_remaining")
    assert dict(cohort.flow)["ICU stays of at least 5 h"] == 4
    found = [e for start in cohort.splits.values() for e in start()]
    assert len(found) == 4
    again = mimiciv.cohort(raw, seed=3, window="hour", modalities=("vitals", "static"))
    for one, other in zip(
        found, [e for s in again.splits.values() for e in s()], strict=True
    ):  # the same hour every time
        assert one["targets"] == other["targets"]


def arrays(**columns):
    return {name: np.array(values) for name, values in columns.items()}


H = 3600


def test_labels_by_hand():
    never = csv_files.NEVER
    # four stays from hour 0: 100 h survived; 60 h, died at 70 h in hospital; died in the ICU at
    # 30 h of 40; 30 h, unknown.
    nan = np.nan
    columns = arrays(
        intime=[0] * 4,
        outtime=[100 * H, 60 * H, 40 * H, 30 * H],
        died=[0, 1, 1, nan],
        dead_from=[(5 + 20) * 24.0 * H, 70 * H, 30 * H, 30 * H],  # a date of death: the whole day
        dead_by=[(5 + 21) * 24 * H, 70 * H, 30 * H, np.inf],
        discharge=[120 * H, 70 * H, 30 * H, never],
        admit=[0, 0, 0, 0],
        subject=[1, 2, 3, 4],
        stay=[1, 2, 3, 4],
        hadm=[1, 2, 3, 4],
    )
    places = np.array(["REHAB", "DIED", "HOSPICE", "AGAINST ADVICE"])
    stays = life.Life(**columns, facts={"discharge_location": places})
    at = np.full(4, 25.0)
    expected = {
        "ihm48": [0, 1, 1, nan],
        "los_under_96h": [0, 0, 0, nan],
        "decompensation": [0, 0, 1, nan],  # 45 h and 5 h to death
        "los": [100 / 24, 60 / 24, 30 / 24, 30 / 24],  # ends at death
        "los_remaining": [3, 1, 0, 0],  # 75, 35, 5 and 5 h: days 3.1, 1.5, 0.2, 0.2
        "los_after_cxr": [95, 45, 5, nan],
        "mortality_48h": [0, 1, 1, nan],
        "los_under_48h": [0, 0, 0, nan],
        "disposition": [2, 3, 3, 4],
        "mortality_1y": [1, nan, nan, nan],
    }
    for name, value in expected.items():
        found = labels.simple(name, stays, at)
        np.testing.assert_array_equal(found, value, err_msg=name)
    with pytest.raises(KeyError):
        labels.simple("phe", stays, at)
    # 1: dead 20 days after discharge; 2: died after the ICU; 3: in it; 4: unknown
    ids = [1, 2, 3, 4]
    everyone = arrays(subject_id=ids, hadm_id=ids, admittime=[0] * 4, dischtime=[0] * 4)
    np.testing.assert_array_equal(labels.readmission(stays, everyone), [1, 1, nan, nan])
    stays.dead_from[0] = stays.dead_by[0] = np.inf
    np.testing.assert_array_equal(labels.readmission(stays, everyone), [0, 1, nan, nan])
    back = arrays(
        subject_id=[1, 1, 2, 3, 4],
        hadm_id=[1, 11, 2, 3, 4],
        admittime=[0, 120 * H + 29 * 24 * H, 0, 0, 0],
        dischtime=[120 * H, 120 * H + 31 * 24 * H, 0, 0, 0],
    )
    np.testing.assert_array_equal(labels.readmission(stays, back), [1, 1, nan, nan])
    back["admittime"][1] += 24 * H + 1  # thirty days are over
    assert labels.readmission(stays, back)[0] == 0
    back["admittime"][1] = 110 * H  # begins before the discharge and outlasts it
    assert np.isnan(labels.readmission(stays, back)[0])


def test_diseases_by_prefix():
    assert len(diseases.NAMES) == 40 and len(diseases.DEPARTMENTS) == 16
    names = diseases.NAMES
    cases = {
        (10, "I50.9"): ["heart_failure"], (9, "42731"): ["atrial_fibrillation"],
        (10, "J15.9"): ["pneumonia"], (9, "486"): ["pneumonia"], (9, "487"): [],
        (9, "25002"): ["type_2_diabetes"], (9, "25001"): [], (10, "K922"): ["gi_bleed"],
        (10, "K923"): [], (9, "038"): ["sepsis"], (10, "038"): [], (9, "40"): [],
    }  # fmt: skip
    for (version, code), expected in cases.items():
        assert [names[j] for j in diseases.groups(version, code)] == expected, code


def test_haim_statistics_by_hand():
    # 2, 6, 4, 4: differences 4, -2, 0; one peak; slope over 0..3: sum(n - 1.5)(x) / 5
    found = dict(
        zip(haim_blocks.STATISTICS, haim_blocks.statistics(np.array([2.0, 6, 4, 4])), strict=True)
    )
    slope = (-1.5 * 2 - 0.5 * 6 + 0.5 * 4 + 1.5 * 4) / 5
    assert found == {
        "max": 6, "min": 2, "mean": 4, "variance": 2, "mean_difference": 2 / 3,
        "mean_abs_difference": 2, "max_abs_difference": 4, "sum_abs_difference": 6,
        "last_minus_first": 2, "peaks": 1, "slope": pytest.approx(slope),
    }  # fmt: skip
    assert haim_blocks.statistics(np.array([3.0])).tolist() == [3, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0]
    widths = [len(haim_blocks.columns(name)) for name in catalogue.HAIM]
    assert widths == [99, 242, 110, 6]
    block = haim_blocks.block(np.array([1, 1]), np.array([3.0, 5.0]), 2)
    assert np.isnan(block[:11]).all() and block[11 + 8] == 2  # last minus first


def test_haim_and_benchmark_of_a_stay(raw):
    toy.patch(raw, "hosp/admissions", "insurance,", "insurance,language,marital_status,race,")
    for payer in ("Medicare", "Other", "Medicaid"):
        toy.patch(raw, "hosp/admissions", f",{payer},", f",{payer},ENGLISH,SINGLE,WHITE,")
    names = (*catalogue.HAIM[:1], "haim_labs", "haim_demographics", "benchmark", "flexcare")
    found, cohort = toy.examples(raw, modalities=names)
    inputs = found[1, 4.0]["inputs"]
    assert found[1, 4.0]["groups"]["race"] == "white"
    column = dict(zip(cohort.spec.modality("haim_chart").features, range(99), strict=True))
    chart = inputs["haim_chart"]["values"]  # heart rate 80, 81 (at the same time) and 90
    assert chart[column["heart_rate_max"]] == 90 and chart[column["heart_rate_min"]] == 80
    assert np.isnan(chart[column["spo2_max"]])
    assert inputs["haim_demographics"]["values"][0] == 62
    seventeen = inputs["benchmark"]
    rate = benchmark.NAMES.index("heart_rate")
    np.testing.assert_array_equal(seventeen["values"][:, rate], [np.nan, 80, 90])
    grid = inputs["flexcare"]
    assert grid["values"].shape == (48, 76) and grid["times"].tolist() == [*range(1, 49)]
    rate, (mean, deviation) = benchmark.COLUMNS.index("heart_rate"), benchmark.SCALE["heart_rate"]
    assert cohort.spec.modality("flexcare").kind == "vectors"
    # normal until the value at 2 h, which is in the second bin; the last of two at one time
    rates = grid["values"][[0, 1, 2, 46, 47], rate] * deviation + mean
    np.testing.assert_allclose(rates, [86, 81, 81, 81, 90], rtol=1e-6)
    assert grid["values"][:, benchmark.COLUMNS.index("heart_rate_observed")].sum() == 2


def test_flexcare_grid_against_the_released_numbers():
    rows = [
        (0.2, "heart_rate", 90.0),
        (0.2, "gcs_eye", "To Speech"),
        (0.9, "heart_rate", 100.0),
        (2.5, "oxygen_saturation", 97.0),
        (3.0, "temperature", 37.2),
        (3.5, "ph", 7.3),
    ]
    grid = benchmark.discretise(rows, hours=4.0)
    assert grid.shape == (4, 76)
    marked = [(np.flatnonzero(row) + 59).tolist() for row in grid[:, 59:]]
    assert marked == [[62, 67], [], [70, 73], [75]]  # 3.0 h falls into the third bin
    scaled = [benchmark.COLUMNS.index(name) for name in benchmark.SCALE]
    assert scaled == [2, 3, *range(49, 59)]  # as in the release's normaliser
    z = grid.astype(np.float64)
    for c, (mean, std) in zip(scaled, benchmark.SCALE.values(), strict=True):
        z[:, c] = (z[:, c] - mean) / std
    assert z.sum() == pytest.approx(23.389356, abs=1e-5)  # what the authors' code gives
    assert [len(benchmark.discretise([], hours=h)) for h in (30.5, 48.0)] == [31, 48]


def test_the_thirty_variables_of_fusemoe():
    spec = mimiciv.spec(variables="fusemoe")
    assert sum(spec.modality(name).shape[1] for name in ("vitals", "labs")) == 30
    (one,) = mimiciv.spec(modalities=("fusemoe",)).modalities  # as the authors' model reads them
    assert one.kind == "series" and one.features == sum(
        (m.features for m in spec.modalities[:2]), ()
    )
    with pytest.raises(ConfigError, match="variables"):
        mimiciv.spec(variables="all")


# --- the demo -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = os.environ.get("M4_RAW_DIR")
    if not folder or not (Path(folder) / "mimic-iv-demo-2.2").is_dir():
        pytest.skip("M4_RAW_DIR does not point at a folder with mimic-iv-demo-2.2/")
    raw = tmp_path_factory.mktemp("demo")
    (raw / "mimic-iv-demo-2.2").symlink_to(Path(folder) / "mimic-iv-demo-2.2")
    fake.write("mimic-linked", raw, patients=200)
    return raw


def test_invented_notes_images_and_ecgs_join_the_demo(demo):
    names = ("static", "notes", "earlier_notes", "cxr_image", "ecg_measures")
    cohort = mimiciv.cohort(demo, seed=0, demo=True, window="stay", modalities=names)
    found = [e for start in cohort.splits.values() for e in start()]
    assert len(found) == 140
    share = {name: np.mean([name in e["inputs"] for e in found]) for name in names}
    assert share["static"] == 1 and 0.7 < share["notes"] < 0.95
    assert 0.4 < share["cxr_image"] < 0.75 and 0.3 < share["ecg_measures"] < 0.7
    assert 0.02 < share["earlier_notes"] < 0.3  # second admissions
    with gzip.open(demo / "mimic-iv-note-2.2/note/radiology.csv.gz", "rt", newline="") as file:
        reports = sum(1 for _ in csv.DictReader(file))
    flow = dict(cohort.flow)
    assert flow["notes: rows read"] == reports and flow["notes: notes kept"] <= reports


def test_every_task_of_the_demo(demo):
    for window, (default, others) in catalogue.WINDOWS.items():
        cohort = mimiciv.cohort(
            demo, seed=0, demo=True, window=window, modalities=("static",), tasks=default + others
        )
        found = [e for start in cohort.splits.values() for e in start()]
        for task in cohort.spec.tasks:
            known = [e["targets"][task.name] for e in found if e["targets"][task.name] is not None]
            assert len(known) > 0.4 * len(found), (window, task.name)
            if task.kind in ("binary", "multiclass"):
                assert {*map(int, np.ravel(known))} <= {*range(max(task.dim, 2))}


def test_mimic_linked_needs_stays(tmp_path):
    with pytest.raises(ConfigError, match="no MIMIC-IV folder"):
        fake.write("mimic-linked", tmp_path)
    shutil.rmtree(tmp_path)
