"""PTB-XL on invented files: labels, folds, leads, what is refused."""

import csv
from pathlib import Path

import numpy as np
import pytest

from m4.data import build, wfdb
from m4.data import manifest as manifests
from m4.data.sets import ptbxl
from m4.data.store import Store
from m4.errors import ConfigError, DataError


@pytest.fixture
def root(tmp_path):
    ptbxl.invent(tmp_path, patients=40, seed=0)
    return tmp_path


def rows(root, **options):
    found = ptbxl.cohort(root, **options)
    return {name: [*start()] for name, start in found.splits.items()}, found


def edit(root, change):
    """Applies `change` to the first row of the database."""
    path = root / ptbxl.FOLDER / ptbxl.DATABASE
    with open(path, newline="") as file:
        table = [*csv.DictReader(file)]
    change(table[0])
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [*table[0]])
        writer.writeheader()
        writer.writerows(table)


def test_published_folds_leads_and_labels(root):
    found, cohort = rows(root)
    assert {name: len(part) for name, part in found.items()} == {"train": 30, "val": 3, "test": 3}
    assert cohort.flow == [("records", 40), ("with a diagnostic class", 36)]
    example = found["train"][0]
    assert [*example["inputs"]] == [*ptbxl.LEADS] and example["targets"]["superclass"].sum() == 1
    value_CT, _, _ = wfdb.read(root / ptbxl.FOLDER / "records100/00000/00001_lr.hea")
    np.testing.assert_array_equal(example["inputs"]["lead_II"]["values"][:, 0], value_CT[1])


def test_every_class_of_a_record_counts_and_so_does_one_lead(root):
    codes = "{'XMI': 0.0, 'SR': 0.0, 'XHYP': 15.0}"
    edit(root, lambda row: row.update(scp_codes=codes, report="Sinus rhythm, normal"))
    found, _ = rows(root, modalities=("lead_V2", "report"))
    assert found["train"][0]["targets"]["superclass"].tolist() == [0, 1, 0, 0, 1]
    assert [*found["train"][0]["inputs"]] == ["lead_V2", "report"]
    assert len(found["train"][0]["inputs"]["report"]["values"]) == 3


def test_new_records_are_all_asked_with_a_diagnosis_or_without(root):
    before, _ = rows(root)
    found = [*ptbxl.new(root, {}, {}).splits["new"]()]
    assert [example["key"] for example in found] == [(number, None) for number in range(1, 41)]
    assert sum(bool(example["targets"]) for example in found) == 36  # the others have none
    own = {e["patient"]: e["inputs"]["lead_I"]["values"] for e in before["test"]}
    same = {e["patient"]: e["inputs"]["lead_I"]["values"] for e in found}
    assert all(np.array_equal(same[patient], value) for patient, value in own.items())
    (root / ptbxl.FOLDER / ptbxl.STATEMENTS).unlink()
    table = [*csv.DictReader((root / ptbxl.FOLDER / ptbxl.DATABASE).read_text().splitlines())]
    kept = ("ecg_id", "patient_id", "filename_lr")
    lines = [",".join(kept), *(",".join(row[name] for name in kept) for row in table)]
    (root / ptbxl.FOLDER / ptbxl.DATABASE).write_text("\n".join(lines) + "\n")
    bare = [*ptbxl.new(root, {}, {}).splits["new"]()]
    assert len(bare) == 40 and not any(example["targets"] for example in bare)


@pytest.mark.parametrize("num_folds", [2, 5, 10])
def test_turned_folds_test_each_once(num_folds):
    tested = []
    for fold in range(num_folds):
        where = {own: ptbxl.part(own, fold, num_folds) for own in range(1, 11)}
        tested += [own for own, name in where.items() if name == "test"]
        assert [*where.values()].count("val") == 1
    assert sorted(tested) == [*range(1, 11)]
    assert [ptbxl.part(own, 0, 0) for own in range(1, 11)] == ["train"] * 8 + ["val", "test"]
    assert ptbxl.part(9, 9, 10) == "val"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda row: row.update(strat_fold="11"), "line 2: strat_fold is none of 1 to 10"),
        (lambda row: row.update(filename_lr="../../x"), "line 2: filename_lr is no path below"),
        (lambda row: row.update(filename_lr="/etc/x"), "line 2: filename_lr is no path below"),
        (lambda row: row.update(filename_lr="no_such"), "no_such.hea: ecg: a waveform is damaged"),
    ],
)
def test_wrong_tables_are_refused(root, change, said):
    edit(root, change)
    with pytest.raises(DataError, match=said):
        rows(root)


def test_a_build_is_renewed_when_a_header_changes(root, tmp_path):
    first = build.prepare("ptbxl", root, tmp_path / "d")
    assert build.prepare("ptbxl", root, tmp_path / "d") == first
    path = root / ptbxl.FOLDER / "records100/00000/00001_lr.hea"
    path.write_text(path.read_text().replace("200.0(0)", "100.0(0)"))
    second = build.prepare("ptbxl", root, tmp_path / "d")
    assert second != first and len(manifests.read(second)["sources"]) == 2 + 36
    found = [Store(folder, "train").read([0])["lead_I/values"][0, :5] for folder in (first, second)]
    assert not np.allclose(*found)


def test_a_release_folder_is_found(root):
    old = root / ptbxl.FOLDER
    new = root / "moved" / ptbxl.FOLDER / "1.0.3"
    new.parent.mkdir(parents=True)
    old.rename(new)
    assert ptbxl.missing_files(root / "moved") == []
    assert len(ptbxl.missing_files(Path("/none"))) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rate": 250}, "data.options.rate: '250' is none of 100, 500"),
        ({"num_folds": 3}, "data.options.num_folds: '3' is none of 0, 2, 5, 10"),
        ({"fold": 5, "num_folds": 5}, "data.options.fold: 5 is of no fold"),
        ({"modalities": ("lead_X",)}, "not in lead_I"),
    ],
)
def test_refused_options(options, said):
    with pytest.raises(ConfigError, match=said):
        ptbxl.spec(**options)
