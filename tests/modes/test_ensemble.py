"""Ensembles as work directories: trained, joined, of folds; by hand, resumed, refused."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.special import expit, logit

import m4
from m4 import config as configs
from m4 import modes
from m4.errors import CheckpointError, ConfigError
from m4.modes import ensemble, train
from m4.run import members
from tests import toy
from tests.data import meds_folder as mf
from tests.modes import hospital

FOLDS = ("--config.data.options.num_folds=2",)


def run(place, *args):
    """Runs a command on the hospital; raises its error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M4_RAW_DIR", str(place))
        patch.setenv("M4_DATA_DIR", str(place / "data"))
        flags = configs.parse([f"--{arg}" if not arg.startswith("-") else arg for arg in args])
        bare = "members" in flags.options or flags.mode == "report"
        config = None if bare else configs.load(flags)
        modes.require(config, flags)
        modes.run(config, flags)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An ensemble of two seeds in 'w', two folds in 'cv', and a folder of new data, 'new'."""
    folder = tmp_path_factory.mktemp("ensemble")
    hospital.write(folder, "new", hospital.only(hospital.everyone(), lambda s: s > 40))
    file = mf.write(folder, hospital.everyone(), definition=hospital.DEFINITION)
    text = toy.config("meds", file, "death/auroc", choose="last", bootstrap=20)
    (folder / "c.py").write_text(text)
    c = f"config={folder / 'c.py'}"
    run(folder, c, "mode=ensemble", "seeds=0,1", f"workdir={folder / 'w'}")
    run(folder, c, "mode=crossval", f"workdir={folder / 'cv'}", *FOLDS)
    return folder


def predicted(work, name="test"):
    """Task -> predictions in the order of rows, as they were written."""
    table = pq.read_table(work / f"predictions/{name}.parquet")
    return {task: table[task].to_numpy() for task in ("death", "los")}


def mean_of(each):
    """The ensemble's predictions by hand."""
    death, los = (np.array([one[task] for one in each], float) for task in ("death", "los"))
    return {"death": expit(logit(death).mean(0)), "los": np.expm1(np.log1p(los).mean(0))}


def assert_close(found, wanted):
    for task, value in wanted.items():
        np.testing.assert_allclose(found[task], value, rtol=2e-6, atol=1e-6)


def document(work, name="test"):
    return json.loads((work / f"results/{name}.json").read_text())


def test_all_ways_to_predict_are_the_mean_of_logits(place):
    w = place / "w"
    new = f"on={place / 'new'}"
    for work in (w, *members.folders(w)):
        run(place, "mode=predict", f"workdir={work}")
        run(place, new, f"workdir={work}")
    for name in ("test", "new"):
        each = [predicted(work, name) for work in members.folders(w)]
        assert not np.allclose(each[0]["death"], each[1]["death"], rtol=1e-3)  # two seeds
        assert_close(predicted(w, name), mean_of(each))
    table = m4.load(w).predict(place / "new")
    assert_close({task: table[task].to_numpy() for task in ("death", "los")}, predicted(w, "new"))
    scored = {s["task"]: s["metrics"] for s in document(w)["scores"] if s["subset"] == "full"}
    told = document(w)["ensemble"]
    assert told["members"] == 2 and told["kind"] == "seeds" and told["hours"] > 0
    for task, metric in (("death", "auroc"), ("los", "mae")):
        e = told["tasks"][task][metric]
        each = [document(work)["scores"] for work in members.folders(w)]
        each = [{s["task"]: s["metrics"] for s in scores}[task][metric]["value"] for scores in each]
        assert e["each"] == each
        assert e["ensemble"]["value"] == scored[task][metric]["value"]
        gain = e["ensemble"]["value"] - np.mean(each)
        np.testing.assert_allclose(e["gain"]["value"], gain, atol=1e-5)
        assert e["gain"]["low"] <= e["gain"]["value"] <= e["gain"]["high"]
    assert "What the ensemble gains" in (w / "report.html").read_text()


def test_members_have_one_split_and_are_trained_once(place, capsys):
    w = place / "w"
    listed = members.read(w)["members"]
    assert listed[0]["data"] == listed[1]["data"] and [m["seed"] for m in listed] == [0, 1]
    work = place / "killed"  # after the first member
    shutil.copytree(w, work)
    (work / "members.json").unlink()
    shutil.rmtree(work / "member_1")
    again = ("mode=ensemble", "seeds=0,1", f"workdir={work}", f"config={place / 'c.py'}")
    run(place, *again)
    for member in members.folders(work):
        assert len(json.loads((member / "run.json").read_text())["starts"]) == 1
    assert members.read(work)["members"][0] == listed[0]
    assert document(work)["scores"] == document(w)["scores"]
    capsys.readouterr()
    run(place, *again)
    assert "seed 1" not in capsys.readouterr().out
    with pytest.raises(ConfigError, match="ensemble of the seeds 0,1; choose another"):
        run(place, *again[:1], "seeds=0,1,2", *again[2:])
    with pytest.raises(ConfigError, match="optim.lr: 0.01 -> 0.5"):
        run(place, *again, "--config.optim.lr=0.5")
    with pytest.raises(ConfigError, match="holds several models; choose another --workdir"):
        run(place, "mode=train", *again[2:])


@pytest.mark.parametrize("killed", ["before its first step", "before it was tested"])
def test_a_member_that_was_killed_while_it_was_trained_on_goes_on(place, tmp_path, killed):
    work = tmp_path / "w"
    shutil.copytree(place / "w", work)
    on = ("--config.train.steps=4", "force=config")
    again = ("mode=ensemble", "seeds=0,1", f"workdir={work}", f"config={place / 'c.py'}", *on)
    member = work / "member_1"
    old = (member / "results/test.json").read_bytes()

    def stops(config, folder, flags, **more):
        if folder != member:
            return fit(config, folder, flags, **more)
        if killed == "before it was tested":
            fit(config, folder, flags, finish=lambda *args: None)
        train.claim(config, folder, force=True)
        raise KeyboardInterrupt

    fit = train.run
    with pytest.raises(KeyboardInterrupt):
        given = configs.parse([f"--{arg}" if not arg.startswith("-") else arg for arg in again])
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("M4_RAW_DIR", str(place))
            patch.setenv("M4_DATA_DIR", str(place / "data"))
            ensemble.members_of(configs.load(given), work, [0, 1], given, fit=stops)
    assert (member / "results/test.json").read_bytes() == old
    run(place, *again)
    assert [m["step"] for m in members.read(work)["members"]] == [4, 4]
    assert document(member)["parameters"] == document(work)["parameters"][1:]


def test_of_one_it_is_the_member_exactly(place):
    one, member = place / "one", place / "w/member_0"
    run(place, "mode=ensemble", f"members={member}", f"workdir={one}")
    assert document(one) == document(member)
    for work in (one, member):
        run(place, "mode=predict", f"workdir={work}")
    for task, value in predicted(member).items():
        np.testing.assert_array_equal(predicted(one)[task], value)


def test_folds_predict_new_data_and_never_their_own(place, capsys):
    cv, new = place / "cv", f"on={place / 'new'}"
    for work in (cv, cv / "fold_0", cv / "fold_1"):
        run(place, new, f"workdir={work}")
    each = [predicted(cv / f"fold_{k}", "new") for k in range(2)]
    assert_close(predicted(cv, "new"), mean_of(each))
    data = {m4.load(cv / f"fold_{k}")._known.manifest["fingerprint"] for k in range(2)}
    assert len(data) == 2  # and each reads the new records with its own scales
    capsys.readouterr()
    run(place, new, f"workdir={cv}")  # whom the first fold tested, the second was trained on
    asked = len(predicted(cv, "new")["death"])
    says = f"warning  {asked} of {asked} records have the identifier of a training subject"
    assert says in capsys.readouterr().out
    assert not (cv / ".new").exists()
    for mode in ("eval", "predict", "stress"):
        with pytest.raises(CheckpointError, match="seen each other's test patients"):
            run(place, f"mode={mode}", f"workdir={cv}")
    with pytest.raises(CheckpointError, match="seen each other's test patients"):
        m4.load(cv).predict()
    both = place / "folds"
    run(place, "mode=ensemble", f"members={cv}", f"workdir={both}")
    assert members.read(both)["kind"] == "folds"
    run(place, new, f"workdir={both}")
    assert_close(predicted(both, "new"), predicted(cv, "new"))
    assert document(both, "crossval") == document(cv, "crossval")
    whole = configs.read_json(cv / "config.json")
    (cv / "config.json").write_text(json.dumps(whole | {"eval": whole["eval"] | {"alpha": 0.2}}))
    again = place / "again"
    run(place, "mode=ensemble", f"members={cv}", f"workdir={again}")
    assert configs.read_json(again / "config.json")["eval"]["alpha"] == 0.2  # not a fold's own
    mixed = f"members={cv / 'fold_0'},{cv / 'fold_1'}"  # the same, not told that they are folds
    with pytest.raises(CheckpointError, match="member_1 has seen patients whom the first member"):
        run(place, "mode=ensemble", mixed, f"workdir={place / 'mixed'}")


def test_what_does_not_fit_is_refused_in_a_line(place, tmp_path):
    w = place / "w"
    a, b = (f"{w}/member_{k}" for k in range(2))
    new = f"workdir={tmp_path / 'e'}"
    for names, message in (
        (f"{a},{a}", "names a model twice"),
        (f"{a},{tmp_path}/none", "none holds no run"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(place, "mode=ensemble", f"members={names}", new)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(b, unfinished)
    shutil.rmtree(unfinished / "results")
    with pytest.raises(ConfigError, match="unfinished is not finished"):
        run(place, "mode=ensemble", f"members={a},{unfinished}", new)
    assert not (tmp_path / "e").exists()
    for flags, message in (
        (("seeds=0,0",), "names a seed twice"),
        (("seeds=a",), "must be numbers"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(place, "mode=ensemble", *flags, f"config={place / 'c.py'}", new)


def test_folds_that_are_not_all_there_are_no_ensemble(place, tmp_path):
    shutil.copytree(place / "cv", tmp_path / "cv")
    shutil.rmtree(tmp_path / "cv/fold_1")  # stopped between two folds
    with pytest.raises(CheckpointError, match="fold_1: is not finished"):
        members.folders(tmp_path / "cv")


def test_damage_is_one_line(place, tmp_path):
    work = tmp_path / "w"
    shutil.copytree(place / "w", work)
    whole = (work / "members.json").read_text()
    for text in ("", "[]", "null", whole[:-9], whole.replace('"seed": 1', '"seed": 2')):
        (work / "members.json").write_text(text)
        with pytest.raises(CheckpointError, match="members.json: is damaged"):
            members.folders(work)
    outside = json.loads(whole)
    outside["members"][0]["folder"] = "../w"
    (work / "members.json").write_text(json.dumps(members.seal.sealed(outside)))
    with pytest.raises(CheckpointError, match="is damaged"):
        members.folders(work)
    (work / "members.json").write_text(whole)
    shutil.rmtree(work / "member_1")
    with pytest.raises(CheckpointError, match="member_1: the member is gone"):
        m4.load(work)
