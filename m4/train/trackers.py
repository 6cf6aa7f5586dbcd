"""Optional writers for experiment trackers: MLflow and Weights & Biases, `train.writers`.

Numbers go where the tracker's own environment variables say; where they say nothing, into the work
directory: nothing leaves this machine unasked. Only settings and scalars go, never rows, texts or
paths. A tracker that fails is given up with a warning; it never ends a run.
"""

import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m4 import atomic
from m4.errors import ConfigError
from m4.train.telemetry import Scalars, Writer

PACKAGES = {"mlflow": "mlflow", "wandb": "wandb"}  # writer -> what has to be installed
MAX_PARAM = 500  # characters of a setting that MLflow takes
PRIVATE = ("data.raw_dir", "data.dir", "data.options.file", "train.from", "text.file", "image.file")


def require(writers: Sequence[str]) -> None:
    """Raises ConfigError for a tracker that is asked for and not installed."""
    lacking = [w for w in writers if w in PACKAGES and not importlib.util.find_spec(PACKAGES[w])]
    if lacking:
        raise ConfigError(
            f"train.writers={tuple(writers)}: {', '.join(lacking)} is not installed;"
            f" pip install 'm4-moe[{','.join(lacking)}]'"
        )


def made(
    writers: Sequence[str], folder: Path, *, resume: int, settings: Mapping[str, Any]
) -> list[Writer]:
    """The trackers among `writers`, for a run in `folder` that goes on from step `resume`."""
    kinds = {"mlflow": MLflow, "wandb": WandB}
    public = {k: v for k, v in settings.items() if k not in PRIVATE and not _has_path(v)}
    return [
        kinds[name](folder, resume=resume, settings=public) for name in writers if name in kinds
    ]


def _has_path(value: Any) -> bool:
    """Whether a setting is a path, or holds one."""
    if isinstance(value, Mapping):
        return any(map(_has_path, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_path, value))
    return isinstance(value, Path) or (isinstance(value, str) and bool(re.search(r"[/\\]", value)))


class Tracker(Writer):
    """Calls of a tracker's client, until the first one that fails."""

    name = ""

    def __init__(self, folder: Path, *, resume: int, settings: Mapping[str, Any]):
        self._note = folder / self.name / "run_id"
        known = self._note.is_file() and resume > 0
        self._id = self._note.read_text(encoding="utf-8").strip() if known else ""
        self._failed = False
        self._try(lambda: self.start(folder, settings))
        if self._id and not self._failed:
            self._note.parent.mkdir(parents=True, exist_ok=True)
            atomic.write(self._note, self._id)

    def start(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Begins a run, or goes on with `self._id`, and says what its settings are."""
        raise NotImplementedError

    def _try(self, call: Callable[[], Any]) -> None:
        if self._failed:
            return
        try:
            call()
        except Exception as error:  # noqa: BLE001 (of foreign code, over a network)
            self._failed = True
            kind = type(error).__name__
            print(f"m4: warning: {self.name}: {kind}; the run goes on without it", flush=True)


class MLflow(Tracker):
    """A run of `MLFLOW_EXPERIMENT_NAME` (m4) at `MLFLOW_TRACKING_URI` (WORKDIR/mlflow)."""

    name = "mlflow"

    def start(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """By its client: its global state is left to whoever has some."""
        import mlflow
        import mlflow.entities

        self._entities: Any = mlflow.entities
        own = (folder / self.name).absolute().as_uri()
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # of its own files, from 3.x on
        client = mlflow.MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or own)
        self._client = client
        if self._id:
            client.update_run(self._id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "m4"
        known = client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else client.create_experiment(name)
        self._id = client.create_run(experiment, run_name=folder.name).info.run_id
        params = [self._entities.Param(k, str(v)[:MAX_PARAM]) for k, v in settings.items()]
        for first in range(0, len(params), 100):  # as many as a call takes
            client.log_batch(self._id, params=params[first : first + 100])

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """All of a step in one call; what is not finite is left out."""
        now = int(1000 * time.time())
        kept = {k: float(v) for k, v in scalars.items() if math.isfinite(v)}
        metrics = [self._entities.Metric(k, v, now, step) for k, v in kept.items()]
        self._try(lambda: self._client.log_batch(self._id, metrics=metrics))

    def close(self) -> None:
        """The run is finished."""
        self._try(lambda: self._client.set_terminated(self._id))


class WandB(Tracker):
    """A run of `WANDB_PROJECT` (m4), offline in the work directory unless `WANDB_MODE` differs."""

    name = "wandb"

    def start(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """A run of its own, whatever else the process has."""
        import wandb

        self._module: Any = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "m4",
            mode=os.environ.get("WANDB_MODE") or "offline",
            name=folder.name,
            dir=str(folder),
            config=dict(settings),
            id=self._id or None,
            resume="allow",
            # It would also send what is printed, the command line, host, user and repository.
            settings=wandb.Settings(
                console="off",
                disable_git=True,
                save_code=False,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        self._id = str(self._run.id)

    def write_scalars(self, step: int, scalars: Scalars) -> None:
        """All of a step in one call."""
        self._try(lambda: self._run.log(dict(scalars), step=step))

    def write_histograms(
        self, step: int, arrays: Mapping[str, np.ndarray], num_buckets: Any = None
    ) -> None:
        """Of 30 buckets unless told otherwise."""

        def log():
            counts = {k: np.histogram(v, num_buckets or 30) for k, v in arrays.items()}
            found = {k: self._module.Histogram(np_histogram=c) for k, c in counts.items()}
            self._run.log(found, step=step)

        self._try(log)

    def close(self) -> None:
        """The run is finished."""
        self._try(lambda: self._run.finish())
