"""A model of all rows after cross-validation: whom it trains on, how long, what is said of it."""

import json
import shutil

import numpy as np
import pytest

import m4
from m4 import config as configs
from m4.data import index
from m4.data.store import Store
from m4.errors import CheckpointError, ConfigError
from m4.modes import refit, train
from m4.run import members, trained
from m4.train import verify
from tests import toy
from tests.data import meds_folder as mf
from tests.modes import hospital, own_test
from tests.modes.test_ensemble import run

OWN = """
import ml_collections
def get_config():
    return ml_collections.ConfigDict(dict(
        data=dict(name='tests.modes.own_test', options=dict(num_folds=2)),
        method=dict(name='tests.toy:Toy', width=4),
        optim=dict(lr=0.01),
        train=dict(steps=3, batch_size=8, log_every=1, eval_every=1, save_every=3,
                   select='death/auroc', choose='best'),
        eval=dict(batch_size=16, bootstrap=20, subsets=False, baselines=False),
    ))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A cross-validation in 'cv' and what is trained on all of it."""
    folder = tmp_path_factory.mktemp("refit")
    hospital.write(folder, "new", hospital.everyone())
    file = mf.write(folder, hospital.everyone(), definition=hospital.DEFINITION)
    text = toy.config("meds", file, "death/auroc", choose="last", bootstrap=20)
    (folder / "c.py").write_text(text)
    folds = "--config.data.options.num_folds=2"
    run(folder, f"config={folder / 'c.py'}", "mode=crossval", f"workdir={folder / 'cv'}", folds)
    run(folder, "mode=refit", f"workdir={folder / 'cv'}")
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The same of a data set with a test split of its own, and best steps."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "c.py").write_text(OWN)
    run(folder, f"config={folder / 'c.py'}", "mode=crossval", f"workdir={folder / 'cv'}")
    run(folder, "mode=refit", f"workdir={folder / 'cv'}")
    return folder


def test_everybody_trains_and_everything_is_fitted_on_them(place):
    work = place / "cv/refit"
    found = trained.read(work)
    data = place / "data/meds" / found.manifest["fingerprint"]
    assert found.manifest["splits"].keys() == {"train"}
    keys = index.read(data, "train")
    assert keys is not None
    wanted = hospital.everyone()["labels/death/0.parquet"]
    assert sorted(keys["subject_id"].to_pylist()) == sorted(wanted["subject_id"].to_pylist())
    folds = [trained.read(place / f"cv/fold_{k}") for k in range(2)]
    (count, *parts) = (
        [f["count"] for f in one.manifest["normalisers"]["vitals"]] for one in (found, *folds)
    )
    assert all(all(np.less(part, count)) for part in parts)
    for name, tokens in found.vocabularies.items():  # counted on all of them
        assert {*tokens} >= {t for fold in folds for t in fold.vocabularies[name]}


def test_steps_are_those_of_the_folds_and_the_last_is_taken(place, own):
    config = json.loads((place / "cv/refit/config.json").read_text())
    assert (config["train"]["steps"], config["train"]["until"]) == (2, 0)
    assert verify.newest_note(place / "cv/refit/checkpoints/best")["step"] == 2
    steps = refit.best_steps([own / "cv/fold_0", own / "cv/fold_1"])
    config = json.loads((own / "cv/refit/config.json").read_text())
    median = round(float(np.median(steps)))
    assert (config["train"]["steps"], config["train"]["until"]) == (3, median)  # one schedule
    note = verify.newest_note(own / "cv/refit/checkpoints/best")
    assert (note["step"], note["value"]) == (median, None)
    told = json.loads((own / "cv/refit/refit.json").read_text())
    assert (told["steps"], told["step"], told["rows"]) == (steps, median, own_test.ROWS)


def test_the_report_says_what_to_expect(place):
    work = place / "cv/refit"
    expected, found = (
        json.loads((folder / "results/crossval.json").read_text())
        for folder in (place / "cv", work)
    )
    assert found == expected and not (work / "results/test.json").exists()
    page = (work / "report.html").read_text()
    assert "Trained on all rows" in page and "nobody was held out" in page
    for mode in ("eval", "predict"):
        with pytest.raises(CheckpointError, match="trained on all rows, so nobody is left"):
            run(place, f"mode={mode}", f"workdir={work}")
    chosen = json.loads((work / "refit.json").read_text())["thresholds"]["death"]
    run(place, f"on={place / 'new'}", f"workdir={work}")
    card = json.loads((work / "results/new.json").read_text())["tasks"]["death"]
    np.testing.assert_allclose(card["threshold"], chosen, rtol=1e-5)  # chosen out of fold
    assert len(m4.load(work).predict(place / "new")) == 90


def test_a_test_split_of_its_own_stays_untouched_and_is_tested(own, monkeypatch):
    work = own / "cv/refit"
    found = json.loads((work / "data.json").read_text())
    assert {k: split["rows"] for k, split in found["splits"].items()} == {"train": 60, "test": 20}
    built = own / "data/own_test" / found["fingerprint"]
    patients = {s: {*Store(built, s).columns(["patient"])["patient"]} for s in ("train", "test")}
    assert patients == {"train": {*range(60)}, "test": {*range(60, 80)}}
    results = json.loads((work / "results/test.json").read_text())
    assert results["rows"] == 20 and results["tasks"]["death"]["threshold"]
    before = members.told(work), (work / "refit.json").read_text()
    leaves = verify.meta(work / f"checkpoints/best/{before[0]['step']}")["leaves"]
    monkeypatch.setitem(own_test.LABELS, "sign", -1.0)
    monkeypatch.setattr(own_test, "VERSION", "2")
    poisoned = own / "poisoned"
    shutil.copytree(own / "cv", poisoned)
    shutil.rmtree(poisoned / "refit")
    config = configs.read_json(poisoned / "config.json")
    assert config["data"]["name"] == "tests.modes.own_test"
    monkeypatch.setattr(own_test, "VERSION", "1")
    shutil.rmtree(built)
    run(own, "mode=refit", f"workdir={poisoned}")
    again = members.told(poisoned / "refit")
    assert verify.meta(poisoned / f"refit/checkpoints/best/{again['step']}")["leaves"] == leaves
    assert (poisoned / "refit/refit.json").read_text() == before[1]
    other = json.loads((poisoned / "refit/results/test.json").read_text())
    assert other["scores"] != results["scores"]


def test_refits_are_joined_with_refits_and_keep_their_cuts(own, place):
    work, fold = own / "cv/refit", own / "cv/fold_0"
    for pair in ((work, fold), (fold, work)):
        names = ",".join(map(str, pair))
        with pytest.raises(ConfigError, match="refit: was trained on rows that others"):
            run(own, "mode=ensemble", f"members={names}", f"workdir={own / 'mixed'}")
    assert not (own / "mixed").exists()
    joined = own / "joined"
    run(own, "mode=ensemble", f"members={work}", f"workdir={joined}")
    assert (joined / "refit.json").read_text() == (work / "refit.json").read_text()
    told = [json.loads((f / "results/test.json").read_text())["tasks"] for f in (work, joined)]
    assert told[0]["death"]["threshold"] == told[1]["death"]["threshold"] is not None
    everybody = place / "everybody"  # no row is left to test it on
    run(place, "mode=ensemble", f"members={place / 'cv/refit'}", f"workdir={everybody}")
    assert (everybody / "results/crossval.json").is_file() and (everybody / "report.html").is_file()


@pytest.mark.slow
def test_seeds_make_an_ensemble_that_goes_on(own):
    work = own / "several"
    shutil.copytree(own / "cv", work, ignore=shutil.ignore_patterns("refit"))
    run(own, "mode=refit", "seeds=0,1", f"workdir={work}")
    found = members.read(work / "refit")
    assert found["kind"] == "seeds" and len({m["data"] for m in found["members"]}) == 1
    document = json.loads((work / "refit/results/test.json").read_text())
    assert document["ensemble"]["members"] == 2
    run(own, "mode=refit", "seeds=0,1", f"workdir={work}")
    for place in members.folders(work / "refit"):
        assert len(json.loads((place / "run.json").read_text())["starts"]) == 1
    with pytest.raises(ConfigError, match="holds an ensemble already; move it away"):
        run(own, "mode=refit", f"workdir={work}")


def test_what_is_no_cross_validation_is_refused(place, own, tmp_path):
    with pytest.raises(CheckpointError, match="holds no cross-validation"):
        run(place, "mode=refit", f"workdir={place / 'cv/fold_0'}")
    work = tmp_path / "cv"
    shutil.copytree(place / "cv", work, ignore=shutil.ignore_patterns("refit"))
    shutil.rmtree(work / "fold_1/results")
    with pytest.raises(CheckpointError, match="fold_1: is not finished"):
        run(place, "mode=refit", f"workdir={work}")
    with pytest.raises(ConfigError, match="optim.lr: 0.01 -> 0.5"):
        run(own, "mode=refit", f"workdir={own / 'cv'}", "--config.optim.lr=0.5")


def test_what_folds_said_before_they_were_trained_on_is_not_believed(place, tmp_path, monkeypatch):
    work = tmp_path / "cv"
    shutil.copytree(place / "cv", work)
    told = work / "refit/refit.json"
    before, fit = json.loads(told.read_text()), train.run
    on = ("--config.train.steps=4", "force=config")
    again = (f"config={place / 'c.py'}", "mode=crossval", f"workdir={work}")
    again += ("--config.data.options.num_folds=2", *on)

    def stops(config, folder, flags, **more):
        if folder.name == "fold_1":
            raise KeyboardInterrupt
        return fit(config, folder, flags, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "run", stops)
        run(place, *again)
    assert (work / "results/crossval.json").is_file()
    with pytest.raises(CheckpointError, match="not of the folds as they are now; --mode=crossval"):
        run(place, "mode=refit", f"workdir={work}")
    run(place, *again)
    with pytest.raises(ConfigError, match="refit: holds a run with another configuration"):
        run(place, "mode=refit", f"workdir={work}")
    assert json.loads(told.read_text()) == before  # cuts are those of what was trained
    run(place, "mode=refit", f"workdir={work}", "force=config")
    found = json.loads(told.read_text())
    assert (found["steps"], found["step"]) == ([4, 4], 4)
    document = json.loads((work / "results/crossval.json").read_text())
    assert found["parameters"] == document["parameters"] != before["parameters"]
    full = {s["task"]: s["metrics"] for s in document["scores"] if s["subset"] == "full"}
    assert found["expected"]["death"]["auroc"] == full["death"]["auroc"]


def test_a_fold_that_is_trained_on_is_not_finished(place, tmp_path):
    fold = tmp_path / "cv/fold_1"
    shutil.copytree(place / "cv", tmp_path / "cv", ignore=shutil.ignore_patterns("refit"))
    path = fold / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"train": config["train"] | {"steps": 4}}))  # and killed
    with pytest.raises(CheckpointError, match="fold_1: is not finished; --mode=crossval goes on"):
        run(place, "mode=refit", f"workdir={tmp_path / 'cv'}")
    shutil.rmtree(fold / "checkpoints/last")  # nothing tells of it, as in a copy of the best step
    assert members.finished(fold)
    text = (fold / "results/test.json").read_text()
    other = json.loads(text) | {"parameters": ["1 of_before"]}
    (fold / "results/test.json").write_text(json.dumps(other))
    assert not members.finished(fold)
    del other["parameters"]  # of an older version
    (fold / "results/test.json").write_text(json.dumps(other))
    assert members.finished(fold)
