"""Finished runs of `m4.main` against each other, paired by seeds and by patients.

Runs whose configurations differ in the seed alone are one arm; the first run's arm is the
reference. Every run predicts its test split once more, with its best step. All must be about the
same patients with the same labels, else the difference would be one of patients.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from m4 import config as configs
from m4.config import trust
from m4.config.plain import read_json
from m4.errors import ConfigError, DataError
from m4.eval.scorer import Scorer
from m4.lab import paired, verdict
from m4.lab.paired import Kept
from m4.modes import eval as eval_mode
from m4.run.setup import context
from m4.run.workspace import open_incomplete, owned
from m4.specs import LOWER_IS_BETTER, METRICS, TaskSpec

SHOWN = 6  # changed fields of an arm
SAME = ("seed", "data.raw_dir", "data.dir", "eval.*", "mesh.*", "train.*_every", "train.watchdog")


def run(
    folders: Sequence[Path], *, metric: str = "", margin: float | None = None, reason: str = ""
) -> list[str]:
    """The comparison as lines of text.

    Raises ConfigError for fewer than two runs, a margin without a reason, runs of one seed each
    or an unknown metric; DataError for runs on different patients.
    """
    if len(folders) < 2:
        raise ConfigError("compare: give two or more work directories of finished runs")
    if margin is not None and (not 0 < margin < math.inf or len(reason.split()) < 3):
        raise ConfigError("--margin: must be a number above 0 and have a --reason, in a sentence")
    found = [_config(folder) for folder in folders]
    metric = metric or found[0].train.select
    arms: list[dict[int, Path]] = []
    heads: list[ml_collections.ConfigDict] = []
    for folder, config in zip(folders, found, strict=True):
        alike = [i for i, head in enumerate(heads) if not _changes(head, config)]
        if not alike:
            heads, arms = [*heads, config], [*arms, {}]
        own = arms[alike[0] if alike else -1]
        if config.seed in own:
            raise ConfigError(f"{folder}: the same configuration and seed as {own[config.seed]}")
        own[config.seed] = folder
    seeds = sorted(set.intersection(*({*arm} for arm in arms)))
    if len(arms) < 2 or len(seeds) < 2:
        raise ConfigError(
            f"compare: {len(arms)} different configurations with {len(seeds)} seeds in common;"
            " it takes two of each (--config.seed=0, 1, ...)"
        )
    names = [str(arm[seeds[0]]) for arm in arms]
    runs, values, task = {}, [], None
    for name, arm in zip(names, arms, strict=True):
        told = [_predicted(arm[seed], metric) for seed in seeds]
        runs[name], task = [kept for kept, _, _ in told], told[0][2]
        values.append([value for _, value, _ in told])
    assert task is not None
    for i, seed in enumerate(seeds):
        for arm in arms[1:]:
            if not runs[str(arm[seeds[0]])][i].same_rows(runs[names[0]][i]):
                raise DataError(f"{arm[seed]}: tests other patients or labels than {arms[0][seed]}")
    short = metric.rpartition("/")[2]
    spread, patients = paired.patients_sd(runs, names[0], task, short)
    told = verdict.compare(
        np.array(values[1:]) - np.array(values[0]),
        margin=margin or 1e-300,
        lower_is_better=short in LOWER_IS_BETTER,
        patients_sd_A=np.array([spread[name] for name in names[1:]]),
        num_patients=patients,
    )
    means = [float(np.mean(own)) for own in values]
    head = f"{metric}, {len(seeds)} seeds, {patients or 'changing'} patients; 95 % intervals over"
    text = [f"{head} both, p after Holm", f"  {names[0]}: {means[0]:.4f}, the reference"]
    for i, name in enumerate(names[1:]):
        text.append(f"  {name}: {means[i + 1]:.4f}, {_said(told, i, margin)}")
        text += [f"    {line}" for line in _changes(heads[0], heads[i + 1])[:SHOWN]]
    lone = sorted({seed for arm in arms for seed in arm} - {*seeds})
    text += [f"seeds {', '.join(map(str, lone))}: left out, not every arm has them"] if lone else []
    return [*text, f"margin {margin:g}: {reason}" if margin else "no margin: equivalence unasked"]


def _said(told: verdict.Compared, i: int, margin: float | None) -> str:
    """One arm's difference and the verdict on it; without a margin nothing is equivalent."""
    said = str(told.verdict[i]) if margin or told.verdict[i] != "equivalent" else "open"
    within = ", within the margin" if margin and told.within[i] else ""
    interval = f"[{told.low[i]:+.4f}, {told.high[i]:+.4f}], p {told.p[i]:.3g}"
    return f"{told.value[i]:+.4f} {interval}: {said}{within}; could find {told.smallest[i]:.4f}"


def _config(folder: Path) -> ml_collections.ConfigDict:
    path = folder / "config.json"
    if not path.is_file() or not (folder / "results/test.json").is_file():
        raise DataError(f"{folder}: holds no finished run of m4.main")
    trust.require(folder, read_json(path), {})
    return ml_collections.ConfigDict(configs.stored(path)).lock()


def _changes(a: ml_collections.ConfigDict, b: ml_collections.ConfigDict) -> list[str]:
    return configs.diff(a.to_dict(), b.to_dict(), harmless=SAME)


def _predicted(folder: Path, metric: str) -> tuple[Kept, float, TaskSpec]:
    """Predictions of the task that a metric belongs to, its value, and the task."""
    config, (name, _, short) = _config(folder), metric.rpartition("/")
    with owned(folder):
        setup, predict = eval_mode.restore(config, folder)
        known: dict[str, Any] = {task.name: task for task in setup.spec.tasks}
        if name not in known or short not in METRICS.get(known[name].kind, ()):
            raise ConfigError(f"--metric={metric}: must be of {', '.join(known)}, as task/metric")
        with context(setup.mesh):
            found = eval_mode.sweep(
                config,
                setup,
                open_incomplete(config, setup.data, "test"),
                predict,
                np.ones((1, len(setup.spec.modalities)), bool),
            )
    task = known[name]
    value = Scorer(found, setup.spec, task).point(0)[short].value
    arrays = found.prediction[name][0], found.label[name], found.scored(setup.spec, task, 0)
    return Kept(found.uid, found.patient, *arrays), value, task
