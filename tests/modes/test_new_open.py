"""`--on` and `--mode=crossval` of data sets that have files of their own, as a user calls them."""

import csv
import json
import os
import re
import shutil
import stat

import numpy as np
import pyarrow.parquet as pq
import pytest

from m4.main import main
from tests import raw_files, toy
from tests.data import test_physionet2012


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run on PhysioNet 2012's layout in 'w'."""
    folder = tmp_path_factory.mktemp("open")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M4_RAW_DIR", str(folder / "raw"))
        patch.setenv("M4_DATA_DIR", str(folder / "data"))
        (folder / "raw").mkdir()
        raw_files.write_physionet2012(folder / "raw", np.random.default_rng(0))
        config = toy.config("physionet2012", "", "los_over_7d/auroc", choose="last")
        config = config.replace(
            "file=''", "tasks=('los', 'los_over_7d'), modalities=('vitals', 'demographics')"
        )
        (folder / "c.py").write_text(config.replace("baselines=False", "baselines='linear'"))
        assert main([f"--config={folder / 'c.py'}", f"--workdir={folder / 'w'}"]) == 0
        assert main([f"--workdir={folder / 'w'}", "--mode=predict"]) == 0
        yield folder


def by_subject(place, name):
    path = place / f"w/predictions/{name}-by-subject.csv"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    with open(path, newline="") as file:
        return {int(row["subject_id"]): row for row in csv.DictReader(file)}


def test_a_slice_of_set_b_is_predicted_as_in_the_test_split(place, capsys):
    raw, new = place / "raw/physionet2012", place / "winter"
    new.mkdir()
    shutil.copy(raw / "set-b.tar.gz", new / "set-winter.tar.gz")
    shutil.copy(raw / "Outcomes-b.txt", new / "Outcomes-winter.txt")
    assert main([f"--workdir={place / 'w'}", f"--on={new}"]) == 0
    printed = capsys.readouterr()
    assert "fitting references" in printed.out
    told = (printed.out + printed.err).replace(str(place), "")
    assert not re.findall(r"(?<![\d.,-])5[01]\d(?![\d.,])", told)  # RecordIDs
    found, test = by_subject(place, "winter"), by_subject(place, "test")
    assert {*found} == {*range(500, 520)} and found == test
    old, again = (
        json.loads((place / f"w/results/{name}.json").read_text()) for name in ("test", "winter")
    )
    assert [s["metrics"] for s in again["scores"]] == [
        s["metrics"] for s in old["scores"] if s["subset"] == again["scores"][0]["subset"]
    ]
    assert again["references"] == old["references"]
    again, old = (
        pq.read_table(place / f"w/predictions/meds/{name}/los.parquet").sort_by("subject_id")
        for name in ("winter", "test")
    )
    assert again.equals(old)


def test_a_plain_folder_without_outcomes(place, capsys):
    new = place / "plain"
    new.mkdir()
    (new / "777.txt").write_text(test_physionet2012.stay(777, ["01:30,HR,80", "07:30,HR,90"]))
    assert main([f"--workdir={place / 'w'}", f"--on={new}"]) == 0
    printed = capsys.readouterr().out
    assert "no Outcomes-<x>.txt, so no labels" in printed and "no labels, no scores" in printed
    (row,) = by_subject(place, "plain").values()
    assert 0 < float(row["los_over_7d"]) < 1 and row["los/label"] == ""
    assert not (place / "w/results/plain.json").exists()


def test_who_was_trained_on_is_told(place, capsys):
    assert main([f"--workdir={place / 'w'}", f"--on={place / 'raw'}"]) == 0
    assert "have the identifier of a training subject" in capsys.readouterr().out
    assert len(by_subject(place, "raw")) == 100


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"x.csv": "a"}, "where are the stays?"),
        ({"set-c/1.txt": "nonsense"}, "file 1: not a record of the challenge"),
        ({"5.txt": "Time,Parameter,Value\n00:00,HR,x\n"}, "a value is not a number"),
        (
            {"Outcomes-a.txt": "", "Outcomes-b.txt": "", "5.txt": "Time,Parameter,Value\n"},
            "2 files",
        ),
    ],
)
def test_folders_that_do_not_fit(place, capsys, tmp_path, files, says):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert main([f"--workdir={place / 'w'}", f"--on={tmp_path}"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("m4: data error: ") and says in line


def test_cross_validation_on_set_a_is_one_command(place):
    for path in (place / "raw/physionet2012").glob("*-b*"):
        path.rename(path.with_suffix(".away"))
    flags = [f"--config={place / 'c.py'}", f"--workdir={place / 'cv'}", "--mode=crossval"]
    assert main([*flags, "--config.data.options.num_folds=2"]) == 0
    rows = pq.read_table(place / "cv/predictions/meds/crossval/los.parquet")
    assert sorted(rows["subject_id"].to_pylist()) == [*range(100, 180)]
    results = json.loads((place / "cv/results/crossval.json").read_text())
    assert results["patients"] == 80 and results["folds"] == 2


def test_a_module_without_folds_is_refused(tmp_path, capsys):
    config = toy.config("tests.toy_data", "", "death/auroc").replace("file=''", "rows=64")
    (tmp_path / "c.py").write_text(config)
    assert (
        main([f"--config={tmp_path / 'c.py'}", f"--workdir={tmp_path / 'w'}", "--mode=crossval"])
        == 2
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert "'tests.toy_data': --mode=crossval needs a data set with the options fold" in line
