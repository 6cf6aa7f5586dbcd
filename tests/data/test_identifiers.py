"""Identifiers that pandas has written as 7.0, in the tables of MIMIC-IV and of EMBED."""

import gzip
import io
import json

import numpy as np
import pandas as pd
import pytest

from m4.data import csv_files, fake
from m4.data.cohort import patient_number
from m4.data.sets import adni, imaging, mimiciv
from m4.errors import DataError
from tests.data import mimiciv_toy

IDS = ("subject_id", "hadm_id", "stay_id", "itemid")


def same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        for a, b in zip(one[name], two[name], strict=True):
            assert a["patient"] == b["patient"] and a["inputs"].keys() == b["inputs"].keys()
            for modality, payload in a["inputs"].items():
                for key, array in payload.items():
                    np.testing.assert_array_equal(array, b["inputs"][modality][key])
            assert repr(a["targets"]) == repr(b["targets"])


def read(module, folder, **options):
    return {n: [*start()] for n, start in module.cohort(folder, seed=0, **options).splits.items()}


def test_mimic_iv_through_pandas_is_mimic_iv(tmp_path):
    mimiciv_toy.write(tmp_path / "a")
    mimiciv_toy.write(tmp_path / "b")
    expected = read(mimiciv, tmp_path / "a", split_by="stay")
    for path in (tmp_path / "b").rglob("*.csv.gz"):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        for name in {*IDS} & {*table.columns}:  # a column with an empty field becomes floats
            table[name] = table[name].map(lambda text: f"{text}.0" if text.isdigit() else text)
        path.write_bytes(gzip.compress(table.to_csv(index=False).encode()))
    same(read(mimiciv, tmp_path / "b", split_by="stay"), expected)
    assert sum(map(len, expected.values())) > 1


def test_embed_through_pandas_is_embed(tmp_path):
    pytest.importorskip("pydicom")
    for name in "ab":
        assert fake.main(["embed", str(tmp_path / name), "--patients=12"]) == 0
    expected = read(imaging, tmp_path / "a", layout="embed")
    for path in (tmp_path / "b").rglob("*.csv"):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        for name in {"empi_anon", "acc_anon"} & {*table.columns}:
            floats = path.name.lower().count("clinical")
            table[name] = table[name].map(lambda t, f=floats: f"{t}.0" if f else f" {t}")
        table.to_csv(path, index=False)
    found = read(imaging, tmp_path / "b", layout="embed")
    same(found, expected)
    assert any(e["targets"]["density"] is not None for part in found.values() for e in part)


def test_exams_of_embed_that_nobody_has_read_are_one_line(tmp_path):
    pytest.importorskip("pydicom")
    assert fake.main(["embed", str(tmp_path), "--patients=12"]) == 0
    (path,) = (p for p in tmp_path.rglob("*.csv") if "clinical" in p.name.lower())
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table["acc_anon"] = "A" + table["acc_anon"]
    table.to_csv(path, index=False)
    with pytest.raises(DataError, match="of the exams in .* none is there") as error:
        read(imaging, tmp_path, layout="embed")
    assert len(error.value.args) == 1


def test_subjects_of_adni_are_the_same_in_lists_and_tables(tmp_path):
    pytest.importorskip("h5py")
    assert fake.main(["adni", str(tmp_path), "--patients=40"]) == 0
    options = {"modalities": ("clinical", "biospecimen")}
    expected = read(adni, tmp_path, **options)
    number = {}
    for path in sorted(tmp_path.rglob("*.csv")):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        if "PTID" in table:
            numbers = [number.setdefault(who, len(number) + 1) for who in table["PTID"]]
            table["PTID"] = [f"{n}.0" if "label" in path.name else f"{n}" for n in numbers]
            table.to_csv(path, index=False)
    (path,) = tmp_path.rglob("PTID_splits.json")
    lists = json.loads(path.read_text())
    path.write_text(
        json.dumps({k: [number[w] for w in v if w in number] for k, v in lists.items()})
    )
    found = read(adni, tmp_path, **options)
    for name, part in expected.items():
        assert len(part) == len(found[name]) > 0
        for one, two in zip(part, found[name], strict=True):
            assert one["targets"] == two["targets"] and one["inputs"].keys() == two["inputs"].keys()
    (path,) = tmp_path.rglob("label.csv")
    table = pd.read_csv(path, dtype=str)
    table["PTID"] = "S" + table["PTID"]
    table.to_csv(path, index=False)
    with pytest.raises(DataError, match="none is there: written alike"):
        read(adni, tmp_path, **options)


@pytest.mark.parametrize("late", [False, True])
def test_whole_numbers_in_a_csv_file(tmp_path, monkeypatch, late):
    """Also from some place on, after batches that have been handed out."""
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 200)
    count = 300
    ids = [f"{i}.0" if i % 3 == 0 and (i > 200 or not late) else f"{i}" for i in range(count)]
    ids[250] = ""
    rows = [f"{one},{i},x {i}" for i, one in enumerate(ids)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["a,b,c", *rows, ""]))
    batches = [*csv_files.stream(path, {"a": "int", "c": "text", "b": "float"})]
    assert len(batches) > 5
    found = [row for batch in batches for row in batch.to_pylist()]
    expected = pd.read_csv(io.StringIO(path.read_text()))
    assert [r["a"] for r in found] == [None if pd.isna(v) else int(v) for v in expected["a"]]
    assert [r["b"] for r in found] == expected["b"].tolist()
    assert [r["c"] for r in found] == expected["c"].tolist()
    for wrong, says in (("7.5", "is not a whole number"), ("x7", "is not a whole number"),
                        (str(2**63), "is beyond 2")):  # fmt: skip
        path.write_text("\n".join(["a,b,c", *rows[:220], f"{wrong},1,y", *rows[220:], ""]))
        with pytest.raises(DataError, match=f"row 221: 'a' {says}") as error:
            [*csv_files.stream(path, {"a": "int"})]
        assert len(error.value.args) == 1


def test_patients_of_images_are_numbers_or_hashes():
    assert patient_number("7") == patient_number(" 7.0") == 7
    assert patient_number(str(2**62)) == 2**62
    assert patient_number("P7") == patient_number(" P7 ") > 2**32
    assert patient_number("007") not in (7, patient_number("07"))
    with pytest.raises(DataError, match="the identifier of a patient is beyond 2"):
        patient_number(str(2**64))
