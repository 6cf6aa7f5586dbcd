"""Patients who neither train nor choose: a split of their own, through what a run calls."""

import numpy as np

from m4.data import build, set_aside
from m4.data.sets import synthetic
from m4.data.store import Store
from tests.data.toy_cohort import build_into, example, make_cohort

SMALL = {"num_patients": 60, "steps": 4, "lab_steps": 2, "modalities": ("labs", "static")}


def test_a_share_of_the_training_patients_is_a_split_of_its_own(tmp_path):
    options = {"options": SMALL, "seed": 3}
    plain = build.prepare("synthetic", tmp_path, tmp_path / "data", **options)
    apart = build.prepare("synthetic", tmp_path, tmp_path / "data", calibration=0.3, **options)
    assert plain != apart
    assert build.prepare("synthetic", tmp_path, tmp_path / "data", **options) == plain
    patients = {
        (folder, split): set(Store(folder, split).columns(["patient"])["patient"].tolist())
        for folder, splits in ((plain, ("train", "val", "test")), (apart, SPLITS))
        for split in splits
    }
    train, aside = patients[apart, "train"], patients[apart, "calibration"]
    assert train and aside and not train & aside
    assert train | aside == patients[plain, "train"]
    for split in ("val", "test"):
        assert patients[plain, split] == patients[apart, split]
    assert {*Store(apart, "calibration").groups()} == {*synthetic.spec(**SMALL).groups}


SPLITS = ("train", "calibration", "val", "test")


def test_nothing_is_fitted_on_who_is_set_aside(tmp_path):
    """The records of the calibration split may say anything: normalisers stay as they are."""
    before = set_aside.set_aside(make_cohort(), 0.4, seed=0)
    chosen = {e["patient"] for e in before.splits["calibration"]()}
    assert 0 < len(chosen) < 40

    def strange(number):
        found = example(number)
        if found["patient"] in chosen and "static" in found["inputs"]:
            found["inputs"]["static"] = {"values": [1e6, 1e6]}
        return found

    after = set_aside.set_aside(make_cohort(strange), 0.4, seed=0)
    stores = [
        Store(build_into(tmp_path / name, made), "train")
        for name, made in (("before", before), ("after", after))
    ]
    assert stores[0].manifest["normalisers"] == stores[1].manifest["normalisers"]
    rows = [store.read(range(len(store))) for store in stores]
    np.testing.assert_equal(*rows)


def test_who_is_set_aside_does_not_hang_on_how_the_splits_were_made():
    """The hash is another one: a share of 0.1 of a training split is a tenth of it."""
    cohort = synthetic.cohort(seed=0, **{**SMALL, "num_patients": 3000})
    rows = range(2000)
    made = {n: (lambda: ({"patient": i} for i in rows)) for n in ("train", "val", "test")}
    cohort.splits = made
    split = set_aside.set_aside(cohort, 0.1, seed=0).splits
    assert 150 < len([*split["calibration"]()]) < 250
