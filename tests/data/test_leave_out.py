"""Sites left out in turn: whose people test a model of the others."""

import json
import shutil

import numpy as np
import pytest

from m4.data import build
from m4.data.cohort import Cohort
from m4.data.leave_out import leave_out
from m4.data.split import assign
from m4.data.store import Store
from m4.errors import ConfigError
from m4.run import members
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from tests.modes.test_ensemble import run

VERSION, LICENCE, WHERE = "1", "Apache-2.0", "generated"
SITES, PATIENTS = ("north", "south", "east", ""), 90
SHARES = {"train": 0.7, "val": 0.2, "test": 0.1}
CONFIG = """
import ml_collections
def get_config():
    return ml_collections.ConfigDict(dict(
        data=dict(name='tests.data.test_leave_out', options=dict()),
        method=dict(name='tests.toy:Toy', width=4), optim=dict(lr=0.01),
        train=dict(steps=2, batch_size=8, log_every=1, eval_every=2, save_every=2,
                   select='death/auroc', choose='last'),
        eval=dict(batch_size=16, bootstrap=5, subsets=False, baselines=False),
    ))
"""


def site(patient, stay):
    """Patient 1 went from the north to the south; five people of the east are too few."""
    if patient == 1:
        return ("north", "south")[stay]
    return "east" if 2 <= patient < 7 else SITES[(0, 1, 3)[patient % 3]]


def spec(*, fold=0, num_folds=0):
    del fold, num_folds
    table = ModalitySpec("static", "table", (4,))
    return DataSpec(
        (table,), (TaskSpec("death", "binary"), TaskSpec("los", "regression")), groups=("site",)
    )


def missing_files(raw_dir, **options):
    return []


def cohort(raw_dir, *, seed, fold=0, num_folds=0):
    def examples(name):
        for patient in range(PATIENTS):
            for stay in range(2):
                if assign(patient, SHARES, seed) == name:
                    x = np.random.default_rng((patient, stay)).normal(size=4)
                    found = {"patient": patient, "inputs": {"static": {"values": x}}}
                    found |= {"targets": {"death": float(x[0] > 0), "los": x[1]}}
                    yield found | {"groups": {"site": site(patient, stay)}}

    splits = {name: (lambda name=name: examples(name)) for name in SHARES}
    return Cohort(spec(), splits, {}, LICENCE, VERSION)


def test_nobody_of_the_site_trains_and_the_others_keep_their_part():
    whole = cohort(None, seed=0)
    found = leave_out(whole, "site=north")
    rows = {name: [*start()] for name, start in found.splits.items()}
    people = {name: {e["patient"] for e in some} for name, some in rows.items()}
    assert {e["groups"]["site"] for e in rows["test"]} == {"north"}
    everyone = [e for start in whole.splits.values() for e in start()]
    assert len(rows["test"]) == sum(e["groups"]["site"] == "north" for e in everyone)
    assert 1 in people["test"]  # with one of his two stays; the other is nowhere
    assert not people["test"] & (people["train"] | people["val"])
    assert not people["train"] & people["val"]
    before = {name: {e["patient"] for e in start()} for name, start in whole.splits.items()}
    assert people["val"] == before["val"] - people["test"]
    assert people["train"] == (before["train"] | before["test"]) - people["test"]


def test_every_site_is_tested_by_a_model_of_the_others(tmp_path, capsys):
    (tmp_path / "c.py").write_text(CONFIG)
    c, work = f"config={tmp_path / 'c.py'}", tmp_path / "cv"
    run(tmp_path, c, "mode=crossval", f"workdir={work}", "--config.data.leave_out=site")
    assert "folds    site: north, south" in capsys.readouterr().out  # east has too few people
    rows = json.loads((work / "results/crossval.json").read_text())["rows"]
    assert "Left out of training: site." in (work / "report.html").read_text()
    stays = [site(p, s) for p in range(PATIENTS) for s in range(2)]
    assert rows == stays.count("north") + stays.count("south")
    assert len(members.folders(work)) == 2
    for place, name in zip(members.folders(work), ("north", "south"), strict=True):
        data = json.loads((place / "data.json").read_text())
        assert data["leave_out"] == f"site={name}"
        store = Store(tmp_path / "data/test_leave_out" / data["fingerprint"], "test")
        assert {*store.groups()["site"]} == {name}
    # A third site, of a cross-validation that asked for fewer people, is none of these folds.
    shutil.copytree(work / "fold_1", work / "fold_2")
    assert [place.name for place in members.folders(work)] == ["fold_0", "fold_1"]
    with pytest.raises(ConfigError, match="fold_2: is of a cross-validation of more folds than"):
        run(tmp_path, c, "mode=crossval", f"workdir={work}", "--config.data.leave_out=site")


@pytest.mark.parametrize("held", ["checkpoints", "members.json"])
def test_folds_never_lie_in_the_folder_of_a_run(tmp_path, held):
    (tmp_path / "c.py").write_text(CONFIG)
    work = tmp_path / "w"
    (work / held).mkdir(parents=True)
    for name in ("run.json", "data.json", "config.json"):
        (work / name).write_text("{}")
    with pytest.raises(ConfigError, match="holds a run; choose another for the folds"):
        run(tmp_path, f"config={tmp_path / 'c.py'}", "mode=crossval", f"workdir={work}")
    assert {(work / name).read_text() for name in ("run.json", "data.json")} == {"{}"}
    assert not (work / "fold_0").exists()


@pytest.mark.parametrize("mode", ["train", "check", "ensemble"])
def test_a_column_alone_is_refused_before_anything_is_read_or_written(tmp_path, mode):
    (tmp_path / "c.py").write_text(CONFIG)
    args = f"config={tmp_path / 'c.py'}", f"mode={mode}", f"workdir={tmp_path / 'w'}"
    with pytest.raises(ConfigError, match="data.leave_out=site=NAME, or --mode=crossval"):
        run(tmp_path, *args, "--config.data.leave_out=site")
    assert [path.name for path in tmp_path.iterdir()] == ["c.py"]
    with pytest.raises(ConfigError, match="names no category"):  # of whoever builds without a mode
        build.prepare("tests.data.test_leave_out", tmp_path, tmp_path, leave_out="site=")


@pytest.mark.parametrize(
    ("left", "says"),
    [
        ("ward", "data.leave_out='ward': group columns are site"),
        ("site=north", "leaves out every site in turn; give data.leave_out=site"),
    ],
)
def test_what_cannot_be_left_out_is_refused(tmp_path, left, says):
    (tmp_path / "c.py").write_text(CONFIG)
    args = f"config={tmp_path / 'c.py'}", "mode=crossval", f"workdir={tmp_path / 'cv'}"
    with pytest.raises(ConfigError, match=says):
        run(tmp_path, *args, f"--config.data.leave_out={left}")


def test_a_site_that_nobody_is_of_is_named_with_those_that_there_are(tmp_path):
    (tmp_path / "c.py").write_text(CONFIG)
    args = f"config={tmp_path / 'c.py'}", "mode=train", f"workdir={tmp_path / 'w'}"
    says = "no record's site is 'Nowhere'; there are 'east', 'north', 'south'"
    with pytest.raises(ConfigError, match=says):
        run(tmp_path, *args, "--config.data.leave_out=site=Nowhere")
