"""The table over seeds, by hand; what is finished is not run again."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from m4 import config as configs
from m4 import modes
from m4.errors import ConfigError, Preempted
from m4.modes import sweep
from m4.modes.sweep import SweepError, table
from m4.train import children

TOY = """
import ml_collections
def get_config():
    return ml_collections.ConfigDict(dict(
        data=dict(name='tests.toy_data'),
        method=dict(name='tests.toy:Toy'),
        optim=dict(lr=0.01),
        train=dict(steps=100, batch_size=16, select='death/auroc'),
        eval=dict(batch_size=16),
    ))
"""
AUROC = {("good", 0): 0.8, ("good", 1): 0.9, ("bad", 0): 0.6, ("bad", 1): 0.6}


def metrics(value, low=None, high=None):
    return {"auroc": {"value": value, "low": low, "high": high}}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Two configurations, and children that only write down their results."""
    for name in ("good", "bad"):
        (tmp_path / f"{name}.py").write_text(TOY)
    ran = []

    def child(command, **_):
        flags = configs.parse(command[3:])
        config = configs.load(flags)
        name, seed = flags.workdir.name.split("_s")
        ran.append(flags.workdir.name)
        if tmp_path.joinpath("code").exists():
            return subprocess.CompletedProcess(command, int((tmp_path / "code").read_text()))
        (flags.workdir / "results").mkdir(parents=True)
        (flags.workdir / "config.json").write_text(configs.to_json(config))
        value = AUROC[name, int(seed)]
        document = {
            "tasks": ["death"],
            "scores": [
                {"task": "death", "subset": "labs", "metrics": metrics(0.1)},
                {"task": "death", "subset": "full", "metrics": metrics(value, value - 0.05, 0.95)},
            ],
            "references": {"boosting": {"death": {"metrics": metrics(0.7 + 0.01 * int(seed))}}},
        }
        (flags.workdir / "results/test.json").write_text(json.dumps(document))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(children, "run", child)

    def sweep(*args):
        names = ",".join(str(tmp_path / f"{name}.py") for name in ("bad", "good"))
        own = [f"--config={names}", f"--workdir={tmp_path / 'out'}", "--metrics=auroc"]
        flags = configs.parse(["--mode=sweep", *own, *args])
        modes.run(None, flags)
        return (tmp_path / "out/table.md").read_text()

    return tmp_path, sweep, ran


def test_table_by_hand(place):
    # good: mean of 0.8 and 0.9 is 0.85, deviation sqrt(2 * 0.05^2) = 0.0707. Patients: 0.05 below,
    # (0.15 + 0.05) / 2 = 0.1 above. Seeds: t(1) = 12.706 times 0.0707 / sqrt(2) is 0.6353. In
    # squares 0.637 below, 0.643 above, but at most 1. boosting: 0.70 and 0.71, deviation 0.0071,
    # no interval.
    _, sweep, _ = place
    assert sweep("--seeds=0,1") == (
        "|  | seeds | death auroc |\n"
        "| --- | --- | --- |\n"
        "| good | 0, 1 | 0.850 ± 0.071 [0.213, 1.000] |\n"
        "| boosting | 0, 1 | 0.705 ± 0.007 |\n"
        "| bad | 0, 1 | 0.600 ± 0.000 [0.550, 0.950] |\n"
    )


def test_every_method_has_its_own_blend(tmp_path):
    points = {}
    for name, low in (("good", 0.8), ("bad", 0.6)):
        points[f"{name}.py", 0] = folder = tmp_path / name
        (folder / "results").mkdir(parents=True)
        own = {"metrics": metrics(low + 0.1), "delta": metrics(-0.1)}
        own["against"] = {"boosting": metrics(low - 0.6)}
        document = {
            "tasks": ["death"],
            "scores": [{"task": "death", "subset": "full", "metrics": metrics(low)}],
            "references": {"boosting": {"death": {"metrics": metrics(0.7)}}},
        }
        document["references"]["blend"] = {"death": own}
        (folder / "results/test.json").write_text(json.dumps(document))
    text = table(points, task="death", metrics=["auroc"])
    order = [line.split("|")[1].strip() for line in text.split("\n") if line.startswith("| ")]
    assert order[2:] == ["good + boosting", "good", "boosting", "bad + boosting", "bad"]
    assert "- good + boosting − boosting: 0.200\n" in text
    assert "- bad − bad + boosting: -0.100\n" in text


@pytest.mark.parametrize("second", ["print_a", "print_b"])
def test_references_of_other_data_have_rows_of_their_own(tmp_path, second):
    points = {}
    for name, data, low in (("a", "print_a", 0.8), ("b", second, 0.6)):
        points[f"{name}.py", 0] = folder = tmp_path / name
        (folder / "results").mkdir(parents=True)
        boosting = {"metrics": metrics(low - 0.1), "delta": metrics(0.1)}
        document = {
            "tasks": ["death"],
            "scores": [{"task": "death", "subset": "full", "metrics": metrics(low)}],
            "references": {"boosting": {"death": boosting}},
        }
        (folder / "results/test.json").write_text(json.dumps(document))
        (folder / "data.json").write_text(json.dumps({"fingerprint": data}))
        (folder / "config.json").write_text(json.dumps({"data": {"name": f"mylab.{name}"}}))
    text = table(points, task="death", metrics=["auroc"])
    rows = [line.split(" | ")[0] for line in text.split("\n") if line.startswith("| boosting")]
    values = dict(zip(rows, ("0.700", "0.500"), strict=False))
    if second == "print_a":
        assert rows == ["| boosting"] and "- b − boosting: 0.100" in text
    else:
        assert [*values] == ["| boosting, a print_a", "| boosting, b print_b"]
        assert all(f"{row} | 0 | {value}" in text for row, value in values.items())
        assert "- b − boosting, b print_b: 0.100" in text
    with pytest.raises(ConfigError, match="--metrics=auorc: auorc is no metric of death;.*auroc"):
        table(points, task="death", metrics=["auorc"])


def test_finished_points_are_not_run_again(place):
    _, sweep, ran = place
    sweep("--seeds=0")
    assert ran == ["bad_s0", "good_s0"]
    sweep("--seeds=0,1")
    assert ran[2:] == ["bad_s1", "good_s1"]
    with pytest.raises(ConfigError) as error:
        sweep("--seeds=0", "--config.optim.lr=0.02")
    assert any("optim.lr: 0.01 -> 0.02" in line for line in error.value.lines())


def test_a_point_that_fails_is_named_and_the_others_run(place):
    folder, sweep, ran = place
    sweep("--seeds=0")
    (folder / "code").write_text("5")
    with pytest.raises(SweepError, match="bad_s1: exit code 5"):
        sweep("--seeds=0,1")
    assert ran[2:] == ["bad_s1", "good_s1"]
    assert f"Not finished: {folder / 'out/bad_s1'}" in (folder / "out/table.md").read_text()
    (folder / "code").write_text("75")
    with pytest.raises(Preempted):
        sweep("--seeds=0,1")
    assert ran[4:] == ["bad_s1"]


SAVES = """
import pathlib, signal, sys, time
folder, told = pathlib.Path(sys.argv[1]), []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
(folder / "runs").touch()
while not told:
    time.sleep(0.01)
time.sleep(0.3)
(folder / "saved").write_text(str(len(told)))
sys.exit(75)
"""


def test_a_sweep_that_is_stopped_lets_its_point_save(tmp_path, monkeypatch):
    def stop():
        while not (tmp_path / "runs").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    (tmp_path / "toy.py").write_text(TOY)
    point = [sys.executable, "-c", SAVES, str(tmp_path)]
    monkeypatch.setattr(sweep, "command", lambda *_: point)
    threading.Thread(target=stop, daemon=True).start()
    flags = ["--mode=sweep", f"--config={tmp_path}/toy.py", f"--workdir={tmp_path}/out"]
    with pytest.raises(Preempted, match="the same command goes on"):
        modes.run(None, configs.parse(flags))
    assert (tmp_path / "saved").read_text() == "1"


def test_a_sweep_of_a_launcher_leaves_its_port_to_its_points(place, monkeypatch):
    _, sweep, ran = place
    monkeypatch.setenv("M4_COORDINATOR", "localhost:0")  # nobody can join there
    monkeypatch.setenv("M4_NUM_PROCESSES", "1")
    sweep("--seeds=0")
    assert ran == ["bad_s0", "good_s0"]
    monkeypatch.setenv("M4_NUM_PROCESSES", "2")
    with pytest.raises(ConfigError, match="--mode=sweep: is for one process"):
        sweep("--seeds=0")


def test_unknown_tasks_are_refused(place):
    _, sweep, _ = place
    with pytest.raises(ConfigError, match="tasks are death"):
        sweep("--seeds=0", "--task=deth")


def test_flags_of_another_mode_are_refused():
    with pytest.raises(ConfigError, match="--seeds: goes with --mode=sweep or ensemble or ref"):
        configs.parse(["--mode=tim", "--seeds=0"])
    with pytest.raises(ConfigError, match="--seeds=a: must be numbers"):
        modes.run(None, configs.parse(["--mode=sweep", "--seeds=a"]))
