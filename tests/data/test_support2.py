"""SUPPORT2: reading by hand-made rows, splits, refusals, and the real file where it is."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from m4.data.sets import support2
from m4.errors import ConfigError, DataError

LEAKS = ("avtisst", "dnr", "dnrday", "slos", "charges", "totcst", "totmcst", "adlsc")
BLANK = dict.fromkeys((*support2.COLUMNS, *(c for g in support2.GROUPS.values() for c in g)), "")
ROW = BLANK | {
    "sno": "7", "age": " 62.5", "sex": "male", "race": "", "income": "$25-$50k", "edu": "11",
    "dzgroup": "Coma", "ca": "no", "num.co": "0", "diabetes": "0", "dementia": "1", "hday": "3",
    "hospdead": "1", "sfdm2": "SIP>=30", "slos": "5", "charges": "", "d.time": "40", "death": "1",
    "pafi": "388", "prg2m": "0.5",
}  # fmt: skip


def write(folder, rows):
    (folder / "support2").mkdir(exist_ok=True)
    with open(folder / "support2/support2.csv", "w", newline="") as handle:
        writer = csv.DictWriter(handle, [*BLANK])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def read(folder, **options):
    found = support2.cohort(folder, seed=0, **options)
    return {name: list(start()) for name, start in found.splits.items()}


def test_a_row_by_hand(tmp_path):
    (example,) = sum(read(write(tmp_path, [ROW])).values(), [])
    assert example["patient"] == 7
    tables = {k: np.array(v["values"]) for k, v in example["inputs"].items()}
    nan = np.nan
    expected = [62.5, 0, 11, 0, 0, 1, 0, *[nan] * 5]  # age, female, education, income, race
    np.testing.assert_array_equal(tables["demographics"], expected)
    disease = [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 0, 0, 3]
    np.testing.assert_array_equal(tables["disease"], disease)
    np.testing.assert_array_equal(tables["blood_gas"], [388, nan])
    assert np.isnan(tables["liver"]).all()
    assert "prognosis" not in tables
    assert example["targets"]["hospital_death"] == 1.0 and example["targets"]["function"] == 2
    assert example["targets"]["los"] == 5.0 and example["targets"]["charges"] is None
    assert example["targets"]["survival"] == [40.0, 1.0]


def test_outcomes_and_later_knowledge_are_no_inputs():
    used = {column for name in support2.GROUPS for column in support2.GROUPS[name]}
    assert not used & {*LEAKS, "hospdead", "death", "d.time", "sfdm2"}
    scores = {"sps", "aps", "surv2m", "surv6m", "prg2m", "prg6m"}
    default = {c for name in support2.DEFAULT for c in support2.GROUPS[name]}
    assert not default & scores and {*support2.GROUPS["prognosis"]} == scores


def test_every_patient_is_tested_once_over_the_folds(tmp_path):
    folder = write(tmp_path, [{**ROW, "sno": str(i)} for i in range(200)])
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
        ({"fold": 5}, "fold: 5 is not one of"),
        ({"val_fraction": 0.0}, "between 0 and 1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        support2.spec(**options)


def test_damaged_files_are_named_without_their_values(tmp_path):
    with pytest.raises(DataError, match="line 2: age is not a number") as error:
        read(write(tmp_path, [{**ROW, "age": "SECRET"}]))
    assert "SECRET" not in str(error.value)
    (tmp_path / "support2/support2.csv").write_text("sno,age\n1,50\n")
    with pytest.raises(DataError, match="no column"):
        read(tmp_path)
    assert support2.missing_files(tmp_path / "no") and not support2.missing_files(tmp_path)


@pytest.mark.skipif(not os.environ.get("M4_RAW_DIR"), reason="M4_RAW_DIR is not set")
def test_the_real_file():
    folder = Path(os.environ["M4_RAW_DIR"])
    if support2.missing_files(folder):
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
