"""Do the tables of MIMIC-IV belong together, and does the release know of deaths outside?"""

import gzip

import numpy as np
import pytest

from m4.data import build
from m4.data.sets import mimiciv
from m4.data.sets.mimiciv import life
from m4.errors import DataError
from tests.data import mimiciv_toy as toy
from tests.data import test_mimiciv_life as lives

STAY = {"admit": 0, "in": 1, "out": 91, "end": 95, "death": None, "dod": None, "flag": 0}
NOTES = "note_id,subject_id,hadm_id,note_type,note_seq,charttime,storetime,text\n"
IMAGES = "dicom_id,subject_id,study_id,ViewPosition,StudyDate,StudyTime\n"
ECGS = "subject_id,study_id,ecg_time,rr_interval,p_onset,p_end,qrs_onset,qrs_end,t_end,p_axis,qrs_axis,t_axis\n"  # noqa: E501


def unnamed(tmp_path, stays):
    """A release whose folder, files and papers do not say which it is."""
    raw = lives.write(tmp_path, stays)
    (raw / "mimiciv/2.2").rename(raw / "mimiciv/mine")
    return raw


@pytest.mark.parametrize(
    ("dod", "trusted"),
    [(95, False), (95 + 24, False), (95 + 30 * 24, True), (95 - 9000, True), (None, False)],
)
def test_an_unnamed_release_is_judged_by_its_deaths(tmp_path, dod, trusted):
    """A date of death is outside where it lies more than a day from every end of a stay."""
    raw = unnamed(tmp_path, [{**STAY, "dod": dod}, *[STAY] * 9])
    options = {"modalities": ("static",), "tasks": ("ihm48", "mortality_1y")}
    if trusted:
        mimiciv.cohort(raw, seed=0, **options)
        return
    with pytest.raises(DataError, match="mortality_1y needs deaths outside the hospital") as caught:
        mimiciv.cohort(raw, seed=0, **options)
    assert len(caught.value.args) == 1
    mimiciv.cohort(raw, seed=0, modalities=("static",), tasks=("ihm48",))


@pytest.mark.parametrize(("hours", "label"), [(0.2, 1), (5.9, 1), (6.1, None), (500, None)])
def test_minutes_after_a_death_no_clock_is_sure(tmp_path, hours, label):
    dead = {**STAY, "death": 95, "flag": 1}
    raw = lives.write(tmp_path, [dead, STAY])
    with open(raw / "mimiciv/2.2/hosp/admissions.csv", "a") as file:
        times = f"{lives.when(95 + hours)},{lives.when(95 + hours + 20)},"
        file.write(f"1,101,{times},URGENT,PACU,,Other,0\n")
    table, _, _, counts = life.read(raw / "mimiciv" / "2.2")
    np.testing.assert_array_equal(table.died, [np.nan if label is None else label, 0])
    assert counts["admitted after death"] == (label is None)


@pytest.fixture
def raw(tmp_path):
    return toy.write(tmp_path / "raw" / "mimiciv" / "2.2").parents[1]


def linked(raw, subject):
    """One report, X-ray and ECG of stay 11, said to be of `subject`."""
    for path, text in {
        "mimic-iv-note/2.2/note/radiology": f"{NOTES}n,{subject},101,RR,1,2150-01-01 12:00:00,,a\n",
        "mimic-cxr-jpg/2.0.0/mimic-cxr-2.0.0-metadata":
            f"{IMAGES}a,{subject},500,AP,21500101,160000\n",
        "mimic-iv-ecg-1.0/machine_measurements":
            f"{ECGS}{subject},70,2150-01-01 11:00:00,{','.join('123456789')}\n",
        "mimic-iv-ecg-1.0/record_list": "subject_id,study_id,file_name,ecg_time,path\n",
    }.items():  # fmt: skip
        place = raw / f"{path}.csv.gz"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(gzip.compress(text.encode()))


@pytest.mark.parametrize("name", ["notes", "note_words", "ecg_measures", "cxr_image"])
def test_studies_of_strangers_are_refused_before_a_record_is_made(raw, name):
    linked(raw, 99)
    cohort = mimiciv.cohort(raw, seed=0, modalities=("static", name))
    with pytest.raises(DataError, match="none of its patients .subject_id. is in the tables"):
        build.joining(cohort)


def test_how_studies_match_is_told(raw):
    linked(raw, 1)
    names = ("static", "vitals", "notes", "ecg_measures")
    cohort = mimiciv.cohort(raw, seed=0, modalities=names)
    said = build.joining(cohort)
    assert [line.split(": ")[:2] for line in said] == [
        ["vitals", "chartevents"], ["notes", "radiology"], ["ecg_measures", "machine_measurements"],
    ]  # fmt: skip
    assert all("records, of" in line and "in time" in line for line in said)
    found = [e for start in cohort.splits.values() for e in start()]
    assert sum("notes" in e["inputs"] for e in found) == 1


def test_charts_of_another_release_are_refused(raw):
    path = raw / "mimiciv/2.2/icu/chartevents.csv.gz"
    text = gzip.decompress(path.read_bytes()).decode().replace(",11,", ",911,")
    path.write_bytes(gzip.compress(text.replace(",31,", ",931,").replace(",21,", ",921,").encode()))
    cohort = mimiciv.cohort(raw, seed=0, modalities=("static", "vitals"))
    with pytest.raises(DataError, match="none of its ICU stays .stay_id. is in the tables"):
        build.joining(cohort)


def test_images_that_are_listed_but_not_there(raw):
    linked(raw, 1)
    cohort = mimiciv.cohort(raw, seed=0, modalities=("static", "cxr_image"))
    with pytest.raises(DataError, match="cxr_image: not one of the images"):
        build.joining(cohort)


@pytest.mark.parametrize("table", ["icu/icustays", "hosp/patients", "icu/chartevents"])
def test_ids_with_leading_zeros_are_not_guessed(raw, table):
    path = raw / f"mimiciv/2.2/{table}.csv.gz"
    text = gzip.decompress(path.read_bytes()).decode()
    path.write_bytes(
        gzip.compress(text.replace("\n1,", "\n001,").replace(",11,", ",011,").encode())
    )
    with pytest.raises(DataError, match="leading zeros: whether 007 is 7 is not guessed") as error:
        build.joining(mimiciv.cohort(raw, seed=0, modalities=("static", "vitals")))
    assert len(error.value.args) == 1
