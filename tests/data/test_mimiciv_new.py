"""New stays of MIMIC-IV's layout for a trained model: as in training, and with tables lacking."""

import shutil

import numpy as np
import pytest

from m4.data import apply, build, index, split
from m4.data import manifest as manifests
from m4.data.sets import mimiciv
from m4.data.store import Store
from m4.errors import DataError
from tests.data import mimiciv_toy as toy

TASKS = ("ihm48", "los", "phe")
OPTIONS = {"split_by": "stay", "modalities": toy.ALL, "tasks": TASKS, "steps": 8, "lab_steps": 4}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return toy.raw_folder(tmp_path_factory.mktemp("mimic"))


@pytest.fixture(scope="module")
def known(raw, tmp_path_factory):
    """What a model knows, and the rows that it was made of, by stay."""
    seed = next(seed for seed in range(500) if toy.all_splits(raw, seed))
    data = tmp_path_factory.mktemp("data")
    built = build.prepare("mimiciv", raw, data, seed=seed, options=OPTIONS)
    found = [rows(built, split) for split in ("train", "val", "test")]
    return apply.Trained(manifests.read(built), {}, OPTIONS), {
        k: r for part in found for k, r in part.items()
    }


def keys_of(folder, split):
    found = index.read(folder, split)
    assert found is not None
    return found.to_pylist()


def rows(folder, split):
    store, keys = Store(folder, split), keys_of(folder, split)
    found = store.read(np.arange(len(store)))
    return {
        key["record_id"]: {name: a[i] for name, a in found.items()} for i, key in enumerate(keys)
    }


def read(raw, known, target):
    target.mkdir()
    manifest = apply.write(target, raw, mimiciv, known[0])
    return rows(target, apply.SPLIT), manifest


def test_stays_are_read_as_in_training(raw, known, tmp_path):
    for place in (raw, raw / "mimiciv", raw / "mimiciv" / "2.2"):
        found, manifest = read(place, known, tmp_path / f"x{len(place.parts)}")
        assert {*found} == {*known[1]} == {11, 12, 31}
        for stay, row in found.items():
            for name, array in row.items():
                np.testing.assert_array_equal(array, known[1][stay][name], err_msg=name)
        assert manifest["normalisers"] == known[0].manifest["normalisers"]
        assert manifest["warnings"] == []
    keys = keys_of(tmp_path / f"x{len(raw.parts)}", apply.SPLIT)
    (first,) = [key for key in keys if key["record_id"] == 11]
    assert first["subject_id"] == 1 and str(first["prediction_time"]) == "2150-01-03 10:00:00"


def test_tables_may_be_lacking(raw, known, tmp_path):
    place = tmp_path / "raw"
    shutil.copytree(raw, place)
    for name in ("hosp/labevents", "hosp/diagnoses_icd"):
        (place / "mimiciv" / "2.2" / f"{name}.csv.gz").unlink()
    found, manifest = read(place, known, tmp_path / "x")
    assert manifest["warnings"] == [
        "labs: labevents.csv.gz is not there",
        "history: diagnoses_icd.csv.gz is not there",
        "phe: diagnoses_icd.csv.gz is not there",
    ]
    for stay, row in found.items():
        assert not row["labs/present"] and not row["y/phe/mask"].any()
        for name in ("vitals/values", "static/values", "medications/values", "y/los"):
            np.testing.assert_array_equal(row[name], known[1][stay][name], err_msg=name)
    for path in (place / "mimiciv" / "2.2").rglob("*.csv.gz"):
        if path.name.partition(".")[0] not in mimiciv.ALWAYS:
            path.unlink()
    with pytest.raises(DataError, match=r"vitals: chartevents\.csv\.gz is not there"):
        read(place, known, tmp_path / "y")
    (place / "mimiciv" / "2.2" / "hosp" / "patients.csv.gz").unlink()
    with pytest.raises(DataError, match=r"patients\.csv\.gz: missing"):
        read(place, known, tmp_path / "z")
    shutil.rmtree(place / "mimiciv")
    with pytest.raises(DataError, match="no hosp/ and icu/ in it"):
        read(place, known, tmp_path / "zz")


def test_a_build_and_a_model_keep_to_their_file_of_phenotypes(raw, tmp_path):
    path = tmp_path / "groups.csv"
    options = {"split_by": "stay", "modalities": ("static",), "tasks": ("phe",)}
    options |= {"window": "stay", "phenotype_file": str(path)}
    seeds = (seed for seed in range(500) if toy.all_splits(raw, seed))
    seed = next(s for s in seeds if split.assign(11, mimiciv.FRACTIONS, s) == "train")
    built, known = [], None
    for code in ("99592", "4019"):  # both of stay 11, whose label does not tell them apart
        path.write_text(f"icd_version,icd_code,phenotype\n9,{code},septicemia\n")
        for _ in range(2):
            built += [build.prepare("mimiciv", raw, tmp_path / "d", seed=seed, options=options)]
        known = known or (apply.Trained(manifests.read(built[0]), {}, options), {})
        assert (len({*built}), built[-1]) == (len(built) // 2, built[-2])
    assert str(path) in manifests.read(built[-1])["sources"]
    with pytest.raises(DataError, match=r"groups.csv: is not the file .* trained with"):
        read(raw, known, tmp_path / "x")
    path.write_text(path.read_text().replace("4019", "99592"))
    assert read(raw, known, tmp_path / "y")[0][11]["y/phe/mask"].all()
    place = tmp_path / "raw"
    shutil.copytree(raw, place)
    (place / "mimiciv/2.2/hosp/diagnoses_icd.csv.gz").unlink()
    with pytest.raises(DataError, match="phe: diagnoses_icd.csv.gz is not there") as caught:
        read(place, known, tmp_path / "z")
    assert "add a file of it" in str(caught.value)


def test_groups_of_diagnoses_are_those_of_training(raw, tmp_path):
    place = tmp_path / "raw"
    shutil.copytree(raw, place)
    text = "subject_id,hadm_id,drg_type,drg_code,description,drg_severity,drg_mortality\n"
    lines = [f"1,{hadm},HCFA,{code},x,," for hadm, code in ((101, 7), (102, 5), (301, 9))]
    (place / "mimiciv/2.2/hosp/drgcodes.csv").write_text(text + "\n".join(lines) + "\n")
    options = {"split_by": "stay", "modalities": ("vitals", "static"), "tasks": ("drg",)}
    options["window"] = "stay"
    seed = next(seed for seed in range(500) if toy.all_splits(place, seed))
    built = build.prepare("mimiciv", place, tmp_path / "data", seed=seed, options=options)
    known = apply.Trained(manifests.read(built), {}, options)
    classes = known.manifest["fitted"]["drg"]
    assert 1 <= len(classes) < 3 and classes == sorted(classes)
    (tmp_path / "x").mkdir()
    apply.write(tmp_path / "x", place, mimiciv, known)
    store = Store(tmp_path / "x", apply.SPLIT)
    found = store.columns(["y/drg", "y/drg/mask"])
    keys = [key["record_id"] for key in keys_of(tmp_path / "x", apply.SPLIT)]
    code_of = {11: "7", 12: "5", 31: "9"}
    for stay, label, mask in zip(keys, found["y/drg"], found["y/drg/mask"], strict=True):
        code = code_of.get(stay)
        assert bool(mask) == (code in classes)
        assert not mask or classes[int(label)] == code
