"""MLflow and Weights & Biases, by stand-ins of their clients: no network, nothing installed."""

import sys
import types

import numpy as np
import pytest

from m4 import config as configs
from m4.errors import ConfigError
from m4.train import trackers

SETTINGS = {"seed": 3, "method.name": "concat", "data.raw_dir": "/where/patients/are"}
SETTINGS |= {"data.options.embeddings": {"notes": "/where/notes/are"}, "data.dir": ""}


class Client:
    """What the tests see of MLflow's client."""

    calls: list = []
    fails = False

    def __init__(self, tracking_uri):
        self.calls.append(("uri", tracking_uri))

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        self.calls.append(("experiment", name))
        return "7"

    def create_run(self, experiment, run_name):
        self.calls.append(("run", experiment, run_name))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="abc"))

    def update_run(self, run, status):
        self.calls.append(("again", run, status))

    def log_batch(self, run, metrics=(), params=()):
        if self.fails:
            raise ConnectionError("secret host")
        self.calls.append(("batch", run, [*metrics], [*params]))

    def set_terminated(self, run):
        self.calls.append(("end", run))


class Run:
    """A run of Weights & Biases."""

    id = "xyz"

    def __init__(self, **given):
        self.given, self.logged, self.done = given, [], False

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.done = True


@pytest.fixture
def modules(monkeypatch):
    """Both packages, as if they were installed."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    mlflow, entities, wandb = map(types.ModuleType, ("mlflow", "mlflow.entities", "wandb"))
    Client.calls, Client.fails, runs = [], False, []
    mlflow.MlflowClient = Client
    entities.Metric = lambda key, value, timestamp, step: (key, value, step)
    entities.Param = lambda key, value: (key, value)
    wandb.init = lambda **given: runs.append(Run(**given)) or runs[-1]
    wandb.Settings = lambda **given: given
    wandb.Histogram = lambda np_histogram: [*np_histogram[0]]
    mlflow.entities = entities
    for module in (mlflow, entities, wandb):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return runs


def made(folder, *names, resume=0):
    return trackers.made(names, folder, resume=resume, settings=SETTINGS)


def test_mlflow_gets_numbers_and_settings_but_no_paths(modules, tmp_path):
    (writer,) = made(tmp_path / "run", "tensorboard", "mlflow")
    writer.write_scalars(5, {"train/loss": np.float32(0.5), "val/x": float("nan")})
    writer.write_texts(5, {"note": "of a patient"})
    writer.close()
    uri = (tmp_path / "run/mlflow").as_uri()
    params = [("seed", "3"), ("method.name", "concat")]
    assert Client.calls == [
        ("uri", uri),
        ("experiment", "m4"),
        ("run", "7", "run"),
        ("batch", "abc", [], params),
        ("batch", "abc", [("train/loss", 0.5, 5)], []),
        ("end", "abc"),
    ]
    made(tmp_path / "run", "mlflow", resume=5)
    assert Client.calls[-1] == ("again", "abc", "RUNNING")


def test_wandb_stays_offline_unless_told_otherwise(modules, tmp_path, monkeypatch):
    (writer,) = made(tmp_path / "run", "wandb")
    writer.write_scalars(5, {"train/loss": 0.5})
    writer.write_histograms(6, {"load": np.arange(4.0)}, num_buckets=2)
    writer.close()
    (run,) = modules
    assert run.given["mode"] == "offline" and run.given["project"] == "m4"
    assert run.given["config"] == {"seed": 3, "method.name": "concat"}
    assert run.given["settings"]["x_disable_meta"] and run.given["settings"]["console"] == "off"
    assert run.given["dir"] == str(tmp_path / "run") and run.given["id"] is None
    assert run.logged == [(5, {"train/loss": 0.5}), (6, {"load": [2, 2]})] and run.done
    monkeypatch.setenv("WANDB_MODE", "online")
    made(tmp_path / "run", "wandb", resume=6)
    assert modules[1].given["mode"] == "online" and modules[1].given["id"] == "xyz"


def test_a_tracker_that_fails_ends_no_run(modules, tmp_path, capsys):
    (writer,) = made(tmp_path, "mlflow")
    Client.fails = True
    for step in (1, 2):
        writer.write_scalars(step, {"x": 1.0})
    writer.close()
    said = capsys.readouterr().out.splitlines()
    assert said == ["m4: warning: mlflow: ConnectionError; the run goes on without it"]
    assert Client.calls[-1][0] == "batch"  # given up: not even ended


def test_what_is_not_installed_or_unknown_is_refused(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    trackers.require(("tensorboard",))
    with pytest.raises(ConfigError, match=r"mlflow, wandb is not installed; pip install"):
        trackers.require(("tensorboard", "mlflow", "wandb"))
    given = ["--config=configs/fusemoe_mimic.py:tiny", "--config.train.writers=('mlfow',)"]
    with pytest.raises(ConfigError, match="train.writers='mlfow': must be of .*did you mean mlfl"):
        configs.load(configs.parse(given))
