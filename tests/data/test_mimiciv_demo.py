"""MIMIC-IV on the open demo: everything recomputed here from the csv files, without pyarrow."""

import csv
import gzip
import os
from collections import defaultdict
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from m4.data.build import prepare
from m4.data.sets import mimiciv
from m4.data.sets.mimiciv import features, phenotypes
from m4.data.store import Store

ALL = ("vitals", "labs", "static", "medications", "prescriptions", "procedures", "history")


@pytest.fixture(scope="module")
def raw():
    folder = os.environ.get("M4_RAW_DIR")
    if not folder or not (Path(folder) / "mimic-iv-demo-2.2").is_dir():
        pytest.skip("M4_RAW_DIR does not point at a folder with mimic-iv-demo-2.2/")
    return Path(folder)


def rows(raw, name):
    with gzip.open(raw / "mimic-iv-demo-2.2" / f"{name}.csv.gz", "rt", newline="") as handle:
        yield from csv.DictReader(handle)


def when(text):
    return datetime.fromisoformat(text) if text else None


def hours(later, earlier):
    return (later - earlier).total_seconds() / 3600


@pytest.fixture(scope="module")
def built(raw):
    cohort = mimiciv.cohort(raw, seed=0, demo=True, modalities=ALL)
    return cohort, {name: list(start()) for name, start in cohort.splits.items()}


@pytest.fixture(scope="module")
def by_stay(raw):
    """(stay row of icustays, admission row, example)."""
    admissions = {a["hadm_id"]: a for a in rows(raw, "hosp/admissions")}
    stays = {int(stay["stay_id"]): stay for stay in rows(raw, "icu/icustays")}
    cohort = mimiciv.cohort(raw, seed=0, demo=True, modalities=ALL, split_by="stay")
    found = [(stays[e["patient"]], e) for start in cohort.splits.values() for e in start()]
    return [(stay, admissions[stay["hadm_id"]], example) for stay, example in found]


def test_counts_agree_with_the_files(raw, built):
    cohort, found = built
    stays = list(rows(raw, "icu/icustays"))
    long = [s for s in stays if hours(when(s["outtime"]), when(s["intime"])) >= 48]
    assert len(list(rows(raw, "hosp/patients"))) == 100
    flow = dict(cohort.flow)
    assert flow["ICU stays"] == len(stays) == 140
    assert flow["ICU stays of at least 48 h"] == len(long) == sum(map(len, found.values()))
    assert flow["patients"] == len({s["subject_id"] for s in long})
    assert flow["vitals: rows read"] == sum(1 for _ in rows(raw, "icu/chartevents"))
    assert flow["labs: rows read"] == sum(1 for _ in rows(raw, "hosp/labevents"))
    assert cohort.notes == "MIMIC-IV demo 2.2"
    assert all(
        (raw / file).stat().st_size == source["bytes"] for file, source in cohort.sources.items()
    )


def test_splits_share_no_patient(built):
    patients = [{e["patient"] for e in found} for found in built[1].values()]
    assert sum(map(len, patients)) == len(set().union(*patients))


def test_labels_of_every_stay(raw, by_stay):
    diagnoses = defaultdict(set)
    mapping = phenotypes.builtin()
    for row in rows(raw, "hosp/diagnoses_icd"):
        diagnoses[row["hadm_id"]] |= {*mapping(int(row["icd_version"]), row["icd_code"])}
    assert len(by_stay) == 74
    for stay, admission, example in by_stay:
        died = admission["hospital_expire_flag"] == "1"
        death = when(admission["deathtime"]) or datetime.max
        length = hours(min(when(stay["outtime"]), death), when(stay["intime"]))  # death ends it
        targets = example["targets"]
        assert targets["ihm48"] == died
        assert targets["los"] == pytest.approx(length / 24)
        assert targets["los_under_96h"] == (length < 96 and not died)
        assert {*np.flatnonzero(targets["phe"])} == diagnoses[stay["hadm_id"]]


def test_every_phenotype_but_the_rare_occurs_under_both_code_versions(raw):
    mapping, seen = phenotypes.builtin(), {9: set(), 10: set()}
    for row in rows(raw, "hosp/diagnoses_icd"):
        version = int(row["icd_version"])
        seen[version] |= {*mapping(version, row["icd_code"])}
    assert len(seen[9]) == len(seen[10]) == 25


def series(raw, table, features, by_stay, *, key):
    """Stay -> {time: {feature: value}} with plain loops."""
    column = {item: (j, f) for j, f in enumerate(features) for item in f.items}
    wanted, index = {str(item) for item in column}, defaultdict(list)
    for stay, _, _ in by_stay:
        index[stay[key]].append((stay["stay_id"], when(stay["intime"])))
    found = defaultdict(dict)
    for row in rows(raw, table):
        if row["itemid"] not in wanted or row[key] not in index or not row["valuenum"]:
            continue
        j, feature = column[int(row["itemid"])]
        value = float(row["valuenum"])
        if int(row["itemid"]) in feature.fahrenheit:
            value = (value - 32) / 1.8
        if not feature.low <= value <= feature.high:
            continue
        for stay_id, intime in index[row[key]]:
            time, stored = hours(when(row["charttime"]), intime), when(row["storetime"])
            if 0 <= time <= 48 and (stored is None or hours(stored, intime) <= 48):
                found[stay_id].setdefault(round(time, 4), {}).setdefault(j, value)
    return found


@pytest.mark.parametrize(
    ("name", "table", "features", "key"),
    [
        ("vitals", "icu/chartevents", features.VITALS, "stay_id"),
        ("labs", "hosp/labevents", features.LABS, "subject_id"),
    ],
)
def test_series_of_every_stay(raw, by_stay, name, table, features, key):
    expected = series(raw, table, features, by_stay, key=key)
    for stay, _, example in by_stay:
        rows_of_stay = expected[stay["stay_id"]]
        payload = example["inputs"][name]
        times = sorted(rows_of_stay)
        np.testing.assert_allclose(payload["times"], times, atol=2e-4)
        values = np.full((len(times), len(features)), np.nan)
        for i, time in enumerate(times):
            for j, value in rows_of_stay[time].items():
                values[i, j] = value
        np.testing.assert_allclose(payload["values"], values, rtol=1e-6)


def test_nothing_lies_outside_the_window(by_stay):
    for _, _, example in by_stay:
        for name in ("vitals", "labs"):
            times = example["inputs"][name]["times"]
            assert times.min() >= 0 and times.max() <= 48


def test_items_are_what_their_feature_says(raw):
    """Labels of the dictionaries for every item of the schema; laboratory items are of blood."""
    labels = {row["itemid"]: row["label"].lower() for row in rows(raw, "icu/d_items")}
    words = {
        "heart_rate": "heart rate", "systolic_bp": "systolic", "diastolic_bp": "diastolic",
        "mean_bp": "mean", "respiratory_rate": "respiratory rate", "spo2": "saturation",
        "temperature": "temperature", "gcs_verbal": "verbal", "gcs_eye": "eye",
        "gcs_motor": "motor",
    }  # fmt: skip
    for feature in features.VITALS:
        for item in feature.items:
            assert words[feature.name] in labels[str(item)]
            assert ("fahrenheit" in labels[str(item)]) == (item in feature.fahrenheit)
    american = {
        "haemoglobin": "hemoglobin", "haematocrit": "hematocrit", "platelets": "platelet count",
        "white_cells": "w", "red_cells": "red blood cells", "urea_nitrogen": "urea nitrogen",
        "anion_gap": "anion gap",
    }  # fmt: skip
    labs = {row["itemid"]: row for row in rows(raw, "hosp/d_labitems")}
    for feature in features.LABS:
        for item in feature.items:
            row = labs[str(item)]
            assert row["label"].lower().startswith(american.get(feature.name, feature.name))
            assert row["fluid"] == "Blood"


def test_history_holds_earlier_admissions_only(raw, by_stay):
    ended = {a["hadm_id"]: when(a["dischtime"]) for a in rows(raw, "hosp/admissions")}
    coded = defaultdict(set)
    for row in rows(raw, "hosp/diagnoses_icd"):
        coded[row["subject_id"]].add(row["hadm_id"])
    with_history = 0
    for stay, admission, example in by_stay:
        begin = when(admission["admittime"])
        earlier = [h for h in coded[stay["subject_id"]] if ended[h] <= begin]
        assert ("history" in example["inputs"]) == bool(earlier)
        with_history += bool(earlier)
    assert with_history > 10


def test_trains_from_a_store(raw, tmp_path):
    folder = prepare("mimiciv", raw, tmp_path, seed=0, options={"demo": True})
    train, test = Store(folder, "train"), Store(folder, "test")
    assert len(train) > len(test) > 0
    batch = train.read(np.arange(len(train)))
    observed = batch["vitals/observed"]
    assert np.abs(batch["vitals/values"][observed].mean()) < 0.2  # normalised on train
    flow = dict(train.manifest["flow"])
    assert flow["ICU stays"] == 140 and flow["vitals: events kept"] > 10_000
