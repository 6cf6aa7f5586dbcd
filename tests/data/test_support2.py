"""SUPPORT2, a shipped definition: hand-made rows, splits, refusals, the real file where it is."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from m4.data.data_sets import find
from m4.data.sets.declared import definition
from m4.errors import ConfigError, DataError

SET, CONTENT = find("support2"), definition.load("support2")
OUTCOMES = ("hospdead", "sfdm2", "slos", "charges", "d.time", "death")
LEAKS = ("avtisst", "dnr", "dnrday", "slos", "charges", "totcst", "totmcst", "adlsc")
GROUPS = {name: [*m["features"]] for name, m in CONTENT["modalities"].items()}  # columns
COLUMNS = ("sno", *OUTCOMES, *(column for group in GROUPS.values() for column in group))
BLANK = dict.fromkeys(COLUMNS, "")
ROW = BLANK | {
    "sno": "7", "age": " 62.5", "sex": "male", "race": "", "income": "$25-$50k", "edu": "11",
    "dzgroup": "Coma", "ca": "no", "num.co": "0", "diabetes": "0", "dementia": "1", "hday": "3",
    "hospdead": "1", "sfdm2": "SIP>=30", "slos": "5", "charges": "", "d.time": "40", "death": "1",
    "pafi": "388", "prg2m": "0.5",
}  # fmt: skip

OTHER = ROW | {"sno": "8", "charges": "1000"}  # a label of which no row knows anything is refused


def write(folder, rows):
    (folder / "support2").mkdir(exist_ok=True)
    with open(folder / "support2/support2.csv", "w", newline="") as handle:
        writer = csv.DictWriter(handle, [*BLANK])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def read(folder, **options):
    found = SET.cohort(folder, seed=0, **options)
    return {name: list(start()) for name, start in found.splits.items()}


def test_a_row_by_hand(tmp_path):
    found = sum(read(write(tmp_path, [ROW, OTHER])).values(), [])
    (example,) = (e for e in found if e["patient"] == 7)
    tables = {k: np.array(v["values"]) for k, v in example["inputs"].items()}
    nan = np.nan
    expected = [62.5, 0, 11, 0, 0, 1, 0, *[nan] * 5]  # age, female, education, income, race
    np.testing.assert_array_equal(tables["demographics"], expected)
    disease = [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0, 3]
    np.testing.assert_array_equal(tables["disease"], disease)
    np.testing.assert_array_equal(tables["blood_gas"], [388, nan])
    assert "liver" not in tables  # nothing of it is known
    assert "prognosis" not in tables
    assert example["targets"]["hospital_death"] == 1.0 and example["targets"]["function"] == 2
    assert example["targets"]["los"] == 5.0 and example["targets"]["charges"] is None
    assert [*example["targets"]["survival"]] == [40.0, 1.0]


def test_what_has_to_be_asked_for(tmp_path):
    options = {"modalities": ("vitals", "prognosis"), "tasks": ("hospital_death", "phenotype")}
    spec = SET.spec(**options)
    assert spec.modality_names == ("vitals", "prognosis")
    assert [(t.name, t.kind, t.dim) for t in spec.tasks][1] == ("phenotype", "cluster", 5)
    (example,) = sum(read(write(tmp_path, [ROW]), **options).values(), [])
    np.testing.assert_array_equal(
        example["inputs"]["prognosis"]["values"], [*[np.nan] * 4, 0.5, np.nan]
    )
    assert example["targets"]["phenotype"] is None and example["targets"]["hospital_death"] == 1
    assert SET.missing_files(tmp_path, **options) == []


def test_outcomes_and_later_knowledge_are_no_inputs():
    used = {column for group in GROUPS.values() for column in group}
    assert not used & {*LEAKS, *OUTCOMES}
    scores = {"sps", "aps", "surv2m", "surv6m", "prg2m", "prg6m"}
    default = {column for name in SET.spec().modality_names for column in GROUPS[name]}
    assert not default & scores and {*GROUPS["prognosis"]} == scores
    assert not {*SET.spec().task_names} & {"phenotype"}


def test_every_patient_is_tested_once_over_the_folds(tmp_path):
    folder = write(tmp_path, [{**OTHER, "sno": str(i)} for i in range(200)])
    tested = []
    for fold in range(5):
        splits = read(folder, fold=fold)
        ids = {name: {e["patient"] for e in found} for name, found in splits.items()}
        assert sum(map(len, ids.values())) == 200 and len(set.union(*ids.values())) == 200
        assert ids["val"] and len(ids["val"]) < len(ids["train"])
        tested += sorted(ids["test"])
    assert sorted(tested) == list(range(200))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tasks": ("death",)}, "death"),
        ({"modalities": ("scores",)}, "scores"),
        ({"fold": 5}, "splits.fold: must be below num_folds=5"),
        ({"val_fraction": 0.0}, "splits.val_fraction: must be a number above 0"),
        ({"val_fraction": 1.0}, "splits.val_fraction: must be below 1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        SET.spec(**options)


def test_damaged_files_are_named_without_their_values(tmp_path):
    with pytest.raises(DataError, match="row 1: 'age' is not a number") as error:
        read(write(tmp_path, [{**OTHER, "age": "SECRET"}]))
    assert "SECRET" not in str(error.value)
    with pytest.raises(DataError, match="row 2: a second label of task hospital_death"):
        read(write(tmp_path, [OTHER, OTHER]))
    (tmp_path / "support2/support2.csv").write_text("sno,age\n1,50\n")
    with pytest.raises(DataError, match="has no column"):
        read(tmp_path)
    assert SET.missing_files(tmp_path / "no") and not SET.missing_files(tmp_path)


@pytest.mark.skipif(not os.environ.get("M4_RAW_DIR"), reason="M4_RAW_DIR is not set")
def test_the_real_file():
    folder = Path(os.environ["M4_RAW_DIR"])
    if SET.missing_files(folder):
        pytest.skip("no SUPPORT2 in M4_RAW_DIR")
    splits = read(folder)
    every = sum(splits.values(), [])
    assert len(every) == 9105
    deaths = sum(e["targets"]["hospital_death"] for e in every)
    assert deaths == 2360
    assert sum(e["targets"]["function"] is None for e in every) == 1400
    assert sum(e["targets"]["charges"] is None for e in every) == 172
    share = len(splits["test"]) / 9105
    assert 0.18 < share < 0.22
