"""Finished runs of `m4.main` against each other, paired by seeds and by patients.

Runs whose configurations differ in the seed alone are one arm; the first run's arm is the
reference. Every run predicts its test split once more, with its best step. All must be about the
same patients with the same labels, and trained on the same files, else the difference would be one
of patients or of data. With one seed an arm the interval is over patients alone.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from m4 import config as configs
from m4.config import trust
from m4.config.plain import read_json
from m4.errors import ConfigError, DataError, UserError, printable
from m4.eval import damage
from m4.eval.scorer import Scorer
from m4.lab import paired, verdict
from m4.lab.paired import Kept
from m4.modes import eval as eval_mode
from m4.run.setup import context
from m4.run.workspace import open_incomplete, owned
from m4.specs import LOWER_IS_BETTER, METRICS, TaskSpec

SHOWN = 6  # changed fields of an arm
SAME = ("seed", "data.raw_dir", "data.dir", "eval.*", "mesh.*", "train.log_every")
SAME += ("train.save_every", "train.watchdog", "train.writers")


@dataclasses.dataclass(frozen=True)
class Arm:
    """Runs that differ in their seeds alone."""

    config: ml_collections.ConfigDict
    runs: dict[int, Path]  # by seed

    @property
    def name(self) -> str:
        """Its first seed's folder."""
        return printable(str(self.runs[min(self.runs)]))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What runs of several arms say of each other; the first arm is the reference."""

    metric: str
    arms: Sequence[Arm]
    seeds: Sequence[int]  # that all arms have
    patients: int | None
    values: Sequence[Sequence[float]]  # of the metric, by arm and seed
    told: verdict.Compared  # of all arms but the first
    margin: float | None
    reason: str
    left: Sequence[str]  # what was left out, in lines

    @property
    def over(self) -> str:
        """What the intervals are over, and on what they rest."""
        number = f"{len(self.seeds)} seeds" if len(self.seeds) > 1 else "one seed"
        both = "both" if len(self.seeds) > 1 else "patients alone: other seeds may differ by more"
        return f"{number}, {self.patients or 'changing'} patients; 95 % intervals over {both}"

    def changes(self, i: int) -> list[str]:
        """Fields in which an arm differs from the reference."""
        found = _changes(self.arms[0].config, self.arms[i].config)
        return sorted(found, key=lambda line: not line.startswith("method.name:"))

    def said(self, i: int) -> str:
        """An arm's difference and the verdict on it."""
        return _said(self.told, i - 1, self.margin)

    def lines(self) -> list[str]:
        """The comparison as text."""
        means = [float(np.mean(own)) for own in self.values]
        text = [f"{self.metric}, {self.over}, p after Holm"]
        text.append(f"  {self.arms[0].name}: {means[0]:.4f}, the reference")
        for i in range(1, len(self.arms)):
            text.append(f"  {self.arms[i].name}: {means[i]:.4f}, {self.said(i)}")
            text += [f"    {line}" for line in self.changes(i)[:SHOWN]]
        margin = f"margin {self.margin:g}: {self.reason}" if self.margin else ""
        return [*text, *self.left, margin or "no margin: equivalence unasked"]


def run(
    folders: Sequence[Path], *, metric: str = "", margin: float | None = None, reason: str = ""
) -> Comparison:
    """The comparison; folders without a finished run are left out.

    Raises ConfigError for fewer than two runs, a margin without a reason, arms without a common
    seed or an unknown metric; DataError for runs on different patients or files.
    """
    if margin is not None and (not 0 < margin < math.inf or len(reason.split()) < 3):
        raise ConfigError("--margin: must be a number above 0 and have a --reason, in a sentence")
    done = [f for f in folders if _finished(f)]
    left = [printable(f"{f}: left out, holds no finished run") for f in folders if f not in done]
    if len(done) < 2:
        raise ConfigError(*left, "compare: give two or more work directories of finished runs")
    lacking = {json.dumps(_config(f).eval.missing.to_dict(), sort_keys=True) for f in done}
    if len(lacking) > 1:
        raise ConfigError(
            "compare: the runs were evaluated with different eval.missing: a difference would be"
            " that of their data; evaluate them alike"
        )
    arms = _arms(done)
    _require_same_files(done)
    seeds = sorted(set.intersection(*({*arm.runs} for arm in arms)))
    if len(arms) < 2 or not seeds:
        raise ConfigError(
            f"compare: {len(arms)} different configurations with {len(seeds)} seeds in common;"
            " it takes two with one, better three (--config.seed=0, 1, ...)"
        )
    lone = sorted({seed for arm in arms for seed in arm.runs} - {*seeds})
    left += [f"seeds {', '.join(map(str, lone))}: left out, not every arm has them"] if lone else []
    left += [printable(f"{f}: {line}") for f in done for line in damage.lines(f)]
    metric = metric or arms[0].config.train.select
    told, patients, values = _judged(arms, seeds, metric, margin)
    return Comparison(metric, arms, seeds, patients, values, told, margin, reason, left)


def _arms(folders: Sequence[Path]) -> list[Arm]:
    arms: list[Arm] = []
    for folder in folders:
        config = _config(folder)
        alike = [arm for arm in arms if not _changes(arm.config, config)]
        if not alike:
            arms.append(Arm(config, {}))
        own = (alike or arms[-1:])[0].runs
        if config.seed in own:
            raise ConfigError(f"{folder}: the same configuration and seed as {own[config.seed]}")
        own[config.seed] = folder
    return arms


def _judged(
    arms: Sequence[Arm], seeds: Sequence[int], metric: str, margin: float | None
) -> tuple[verdict.Compared, int | None, list[list[float]]]:
    """The verdicts, the number of patients and the values by arm and seed."""
    runs: dict[str, list[Kept]] = {}
    values, task = [], None
    names = [str(a) for a in range(len(arms))]  # folders may be printed alike
    for name, arm in zip(names, arms, strict=True):
        told = [_predicted(arm.runs[seed], metric) for seed in seeds]
        runs[name], task = [kept for kept, _, _ in told], told[0][2]
        values.append([value for _, value, _ in told])
    assert task is not None
    for i, seed in enumerate(seeds):
        for name, arm in zip(names[1:], arms[1:], strict=True):
            if not runs[name][i].same_rows(runs[names[0]][i]):
                first = arms[0].runs[seed]
                raise DataError(f"{arm.runs[seed]}: tests other patients or labels than {first}")
    short = metric.rpartition("/")[2]
    spread, patients = paired.patients_sd(runs, names[0], task, short)
    compared = verdict.compare(
        np.array(values[1:]) - np.array(values[0]),
        margin=margin or 1e-300,
        lower_is_better=short in LOWER_IS_BETTER,
        patients_sd_A=np.array([spread[name] for name in names[1:]]),
        num_patients=patients,
        one_seed=True,
    )
    return compared, patients, values


def _finished(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "results/test.json").is_file()


def _require_same_files(folders: Sequence[Path]) -> None:
    """Raises DataError where a run was trained on other raw files than the first, by digest."""
    first, *others = ((folder, _sources(folder)) for folder in folders)
    for folder, found in others:
        both = first[1].keys() & found.keys()
        other = sorted(name for name in both if first[1][name] != found[name])
        if other or (first[1] and found and not both):
            names = ", ".join(other[:3] or sorted(found)[:3])
            raise DataError(
                f"{folder}: was trained on other data than {first[0]}: {names} were replaced;"
                " a difference would be theirs"
            )


def _sources(folder: Path) -> Mapping[str, str]:
    """Digests of the raw files that a run was trained on; none where it doesn't say."""
    try:
        return {k: v["sha256"] for k, v in read_json(folder / "data.json")["sources"].items()}
    except (UserError, KeyError, TypeError, AttributeError):
        return {}


def _said(told: verdict.Compared, i: int, margin: float | None) -> str:
    """One arm's difference and the verdict on it; without a margin nothing is equivalent."""
    said = str(told.verdict[i]) if margin or told.verdict[i] != "equivalent" else "open"
    said = verdict.in_words(said, bool(margin) and bool(told.within[i]))
    interval = f"[{told.low[i]:+.4f}, {told.high[i]:+.4f}], p {told.p[i]:.3g}"
    return f"{told.value[i]:+.4f} {interval}: {said}; could find {told.smallest[i]:.4f}"


def _config(folder: Path) -> ml_collections.ConfigDict:
    path = folder / "config.json"
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
    value = Scorer(found, setup.spec, task).point(0, (short,))[short].value
    arrays = found.prediction[name][0], found.label[name], found.scored(setup.spec, task, 0)
    return Kept(found.uid, found.patient, *arrays), value, task
