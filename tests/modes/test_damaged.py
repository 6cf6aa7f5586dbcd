"""Files that numbers are read from, changed by accident: refused or said by whoever reads them."""

import json
import os
import shutil

import pytest

from m4 import seal
from m4.api import loaded
from m4.data import manifest as manifests
from m4.errors import CheckpointError, DataError
from m4.eval.report import page
from m4.modes import sweep
from m4.run import members, refitted, trained
from tests import toy
from tests.data import meds_folder as mf
from tests.modes import hospital
from tests.modes.test_ensemble import FOLDS, run

DEEP = "[" * 200_000
WRONG = 0.1234567


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two runs that differ in the seed, 'a' and 'b'; a cross-validation 'cv'; both joined, 'e'."""
    folder = tmp_path_factory.mktemp("damaged")
    hospital.write(folder, "new", hospital.everyone())
    file = mf.write(folder, hospital.everyone(), definition=hospital.DEFINITION)
    (folder / "c.py").write_text(toy.config("meds", file, "death/auroc", bootstrap=20))
    c = f"config={folder / 'c.py'}"
    for seed, name in enumerate("ab"):
        own = (f"--config.seed={seed}", "--config.data.seed=0")
        run(folder, c, f"workdir={folder / name}", *own)
    run(folder, c, "mode=crossval", f"workdir={folder / 'cv'}", *FOLDS)
    both = f"members={folder / 'a'},{folder / 'b'}"
    run(folder, "mode=ensemble", both, f"workdir={folder / 'e'}")
    return folder


@pytest.fixture
def copy(place, tmp_path):
    """A copy of all of it."""
    shutil.copytree(place, tmp_path / "runs", symlinks=True)
    return tmp_path / "runs"


def damage(path, task, metric):
    """Another value of a metric in a document of results."""
    found = json.loads(path.read_text())
    for score in found["scores"]:
        if score["task"] == task:
            score["metrics"][metric]["value"] = WRONG
    found["tasks"][task]["threshold"] = [0.99]
    path.write_text(json.dumps(found))


def test_a_refit_passes_no_damaged_scores_on(copy):
    damage(copy / "cv/results/crossval.json", "death", "auroc")
    with pytest.raises(DataError, match="--mode=crossval writes it again"):
        run(copy, "mode=refit", f"workdir={copy / 'cv'}")
    assert not (copy / "cv/refit/refit.json").exists()
    with pytest.raises(DataError, match=r"crossval\.json: differs"):
        run(copy, "mode=ensemble", f"members={copy / 'cv'}", f"workdir={copy / 'folds'}")


def test_a_damaged_refit_is_written_again(copy):
    run(copy, "mode=refit", f"workdir={copy / 'cv'}")
    path = copy / "cv/refit/refit.json"
    was = path.read_text()
    path.write_text(was.replace('"folds": 2', '"folds": 3'))
    with pytest.raises(DataError, match="--mode=refit writes it again"):
        refitted.cuts(path.parent)
    run(copy, "mode=refit", f"workdir={copy / 'cv'}")
    assert path.read_text() == was and refitted.cuts(path.parent)


def test_a_member_that_was_replaced_is_refused(copy):
    best = copy / "e/member_0/checkpoints/best"
    shutil.rmtree(best)
    shutil.copytree(copy / "e/member_1/checkpoints/best", best)
    for mode in ("eval", "predict", "check"):
        with pytest.raises(CheckpointError, match="member_0: step .* is gone or not the one"):
            run(copy, f"mode={mode}", f"workdir={copy / 'e'}")


def test_a_run_whose_best_step_is_anothers_is_no_member(copy):
    shutil.rmtree(copy / "a/checkpoints/best")
    shutil.copytree(copy / "b/checkpoints/best", copy / "a/checkpoints/best")
    with pytest.raises(CheckpointError, match="not the one that this run saved"):
        both = f"members={copy / 'a'},{copy / 'b'}"
        run(copy, "mode=ensemble", both, f"workdir={copy / 'other'}")


@pytest.mark.parametrize("folds", ["abc", [3], 2.0, -1, 10**8])
def test_a_foreign_number_of_folds_is_refused_at_once(copy, folds):
    path = copy / "cv/fold_0/config.json"
    config = json.loads(path.read_text())
    config["data"]["options"]["num_folds"] = folds
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        members.folders(copy / "cv")
    path.write_text(json.dumps(config | {"data": []}))
    with pytest.raises(CheckpointError):
        members.folders(copy / "cv")


def test_a_sweep_tables_no_damaged_results(copy, monkeypatch):
    path = copy / "a/results/test.json"
    table = {"task": "death", "metrics": ["auroc"]}
    assert "| a | 0 |" in sweep.table({("a.py", 0): copy / "a"}, **table)
    for text in (path.read_text()[:-9], "[]", DEEP):
        path.write_text(text)
        with pytest.raises(DataError, match="the same command runs it again"):
            sweep.table({("a.py", 0): copy / "a"}, **table)
    shutil.copy(copy / "b/results/test.json", path)
    with pytest.raises(DataError, match="differs from its seal"):
        sweep.table({("a.py", 0): copy / "a"}, **table)


def test_cuts_of_damaged_results_are_none(copy):
    spec = manifests.spec_from(trained.read(copy / "a").manifest["schema"])
    assert "death" in loaded._thresholds(copy / "a", spec, {})
    damage(copy / "a/results/test.json", "death", "auroc")
    assert loaded._thresholds(copy / "a", spec, {}) == {}


def seeds_of(folder):
    return page.render(folder).count(">seed ")


def test_neighbours_neither_stop_nor_change_a_report(copy):
    for name in ("a", "b"):
        config = json.loads((copy / name / "config.json").read_text())
        config["data"]["seed"] = None
        (copy / name / "config.json").write_text(json.dumps(config))
    assert seeds_of(copy / "a") == 2
    damage(copy / "b/results/test.json", "death", "auroc")
    assert seeds_of(copy / "a") == 0
    evil = [copy / f"evil{k}" for k in range(4)]
    for one in evil:
        one.mkdir()
    os.mkfifo(evil[0] / "config.json")
    (evil[1] / "config.json").symlink_to("/dev/zero")
    (evil[2] / "config.json").write_text(DEEP)
    shutil.copytree(copy / "b", evil[3], dirs_exist_ok=True)
    results = json.loads((evil[3] / "results/test.json").read_text())
    seal.write(evil[3], "results/test.json", json.dumps({"schema": 1, "tasks": results["tasks"]}))
    assert seeds_of(copy / "a") == 0


def test_facts_and_settings_that_changed_are_said(copy):
    assert "has changed since" not in page.render(copy / "a")
    data = json.loads((copy / "a/data.json").read_text())
    data["splits"]["train"]["rows"] = 99_899
    (copy / "a/data.json").write_text(json.dumps(data))
    config = json.loads((copy / "a/config.json").read_text())
    config["optim"]["lr"] = WRONG
    (copy / "a/config.json").write_text(json.dumps(config))
    run = (copy / "a/run.json").read_text()
    (copy / "a/run.json").write_text(run.replace('"parameters": ', '"parameters": 9'))
    text = page.render(copy / "a")
    assert "run.json has changed since" in text
    assert "99,899" not in text and "data.json has changed since" in text
    assert "config.json: optim is not what the newest checkpoint was trained with" in text


def test_an_emptied_log_is_not_called_a_run_without_training(copy):
    (copy / "a/metrics.jsonl").write_text("")
    text = page.render(copy / "a")
    assert "lines are damaged or missing" in text and "or it was lost" in text


@pytest.mark.parametrize("name", ["config", "run", "data", "seals", "results/more"])
def test_a_document_without_end_is_no_bug_of_a_report(copy, name):
    (copy / f"a/{name}.json").write_text(DEEP)
    assert "<html" in page.render(copy / "a")


def test_a_list_of_seals_that_is_damaged_vouches_for_nothing(copy):
    path = copy / "cv/seals.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DataError, match=r"seals\.json: is damaged"):
        run(copy, "mode=refit", f"workdir={copy / 'cv'}")


def test_an_ensemble_that_is_trained_on_is_listed_anew(copy):
    c = f"config={copy / 'c.py'}"
    own = (c, "mode=ensemble", "seeds=0,1", f"workdir={copy / 'two'}")
    run(copy, *own)
    before = members.read(copy / "two")["members"]
    run(copy, *own, "--config.train.steps=40", "force=config")
    after = members.read(copy / "two")["members"]
    assert [m["digest"] for m in before] != [m["digest"] for m in after]
    run(copy, "mode=eval", f"workdir={copy / 'two'}")


def test_fields_that_a_newer_version_adds_are_no_other_settings(copy):
    config = json.loads((copy / "a/config.json").read_text())
    config["optim"]["of_a_newer_version"] = 1
    (copy / "a/config.json").write_text(json.dumps(config))
    assert "newest checkpoint was trained with" not in page.render(copy / "a")
