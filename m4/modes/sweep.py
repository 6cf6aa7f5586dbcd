"""`--mode=sweep`: configurations over several seeds, their test results in one table.

    python -m m4.main --mode=sweep                # PhysioNet 2012, five methods, three seeds
    python -m m4.main --mode=sweep --config=a.py,b.py --seeds=0,1 --task=los --metrics=mae,r2
    python -m m4.main --mode=sweep --config=configs/own.py --methods=all      # on the same data

With `--how=crossval` every point is a cross-validation, and the table has its scores out of fold.

With `--methods` every configuration is run with each of them: in the configuration that is shipped
for it on the same data, or by its name on top (`CONFIG@METHOD`).

Every point (configuration, seed) is a process of its own in a folder of its own, one after the
other; overrides hold for all of them. A sweep that is stopped waits until its point has saved. The
same command goes on from there: finished points are skipped, others resume. `table.md` is written
after every point, so that an unfinished sweep has one, too.

A score's interval is over seeds and patients (`m4.eval.over_seeds`). So are those of differences to
the references, paired in every point. Below stand the hours of all points by their logs and the
commit that trained them. `docs/site/tables.py` makes every table of docs/results.md this way.
"""

import contextlib
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from m4 import atomic, seal
from m4 import config as configs
from m4.config import Flags, code, hints, program, rules
from m4.errors import ConfigError, Preempted, UserError
from m4.eval import blend, over_seeds
from m4.run import hours
from m4.specs import LOWER_IS_BETTER
from m4.train import children

AGAIN = "the same command runs it again"
RESULTS = {"train": "results/test.json", "crossval": "results/crossval.json"}  # by `--how`
METHODS = ("fusemoe", "flexmoe", "flexcare", "m3h", "m4oe")
CONFIGS = ",".join(f"configs/{method}_physionet2012.py" for method in METHODS)


class SweepError(UserError):
    """Some points did not finish; the others are in the table."""

    exit_code = 1


def run(config: ml_collections.ConfigDict | None, folder: Path, flags: Flags) -> None:
    """Runs what is missing and writes `table.md`. See `m4.main`.

    Raises ConfigError for a folder with another configuration and in one of several processes,
    SweepError for points that failed, Preempted when told to stop, after the point that ran.
    """
    del config  # each point has its own
    if "M4_COORDINATOR" in os.environ and os.environ.get("M4_NUM_PROCESSES") != "1":
        raise ConfigError(
            "--mode=sweep: is for one process (M4_NUM_PROCESSES=1); start the points of several by"
            " themselves, as --mode=train with a --config.seed and a --workdir each"
        )
    given = flags.options
    seeds = given.get("seeds", "0,1,2").split(",")
    if not all(seed.isdecimal() for seed in seeds):
        raise ConfigError(f"--seeds={given['seeds']}: must be numbers, as 0,1,2")
    task, metrics = given.get("task", "death"), given.get("metrics", "auroc,auprc").split(",")
    how = given.get("how", "train")
    if how not in RESULTS:
        raise ConfigError(f"--how={how}: must be one of {', '.join(RESULTS)}")
    points = {
        (c, int(seed)): folder / f"{_stem(c)}_s{seed}"
        for c in asked(flags.config, given.get("methods"))
        for seed in seeds
    }
    failed = []
    for (name, seed), point in points.items():
        if not finished(point, name, seed, flags.overrides, how):
            args = command(name, seed, point, flags.overrides, how)
            code = children.run(args).returncode
            if code == Preempted.exit_code:
                raise Preempted(f"{point}: stopped; the same command goes on")
            failed += [f"{point}: exit code {code}"] if code else []
        text = table(points, task=task, metrics=metrics, how=how)
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write(folder / "table.md", text)
    print(text)
    if failed:
        raise SweepError(*failed)


def asked(config: str | None, methods: str | None) -> Sequence[str]:
    """Configurations of the points, `CONFIG@METHOD` where a method is put on top of one.

    Raises ConfigError for a method that there isn't.
    """
    if methods is None:
        return (config or CONFIGS).split(",")
    names = code.method_names() if methods == "all" else tuple(methods.split(","))
    for name in names:
        if problem := rules.FIELDS["method.name"].problem(name):
            raise ConfigError(f"--methods={name}: {problem}; or all")
    found: list[str] = []
    for base in (config or CONFIGS.split(",")[0]).split(","):
        path, _, variant = base.partition(":")
        for name in names:
            if name in program.variants(path):
                found.append(f"{path}:{name}")
                continue
            own = hints.twin(base, name, program.shipped())
            has = bool(own) and (not variant or variant in program.variants(own[0]))
            found.append(":".join(filter(None, (own[0], variant))) if has else f"{base}@{name}")
    return [*dict.fromkeys(found)]


def command(
    config: str, seed: int, folder: Path, overrides: Mapping[str, str], how: str = "train"
) -> list[str]:
    """What trains one point."""
    config, _, method = config.partition("@")
    args = [f"--config={config}", f"--config.seed={seed}", f"--workdir={folder}"]
    args += [f"--config.method.name={method}"] if method else []
    args += [f"--config.{path}={value}" for path, value in overrides.items()]
    args += [] if how == "train" else [f"--mode={how}"]
    return [sys.executable, "-m", "m4.main", *args]


def finished(
    folder: Path, config: str, seed: int, overrides: Mapping[str, str], how: str = "train"
) -> bool:
    """Whether the point has its test results. ConfigError if they are another configuration's."""
    if not (folder / RESULTS[how]).exists():
        return False
    seal.text_of(folder, RESULTS[how], f"delete it, and {AGAIN}")
    flags = configs.parse(command(config, seed, folder, overrides)[3:])
    changes = configs.diff(configs.stored(folder / "config.json"), configs.load(flags).to_dict())
    if changes:
        raise ConfigError(f"{folder}: holds a run of another configuration", *changes)
    return True


def table(
    points: dict[tuple[str, int], Path],
    *,
    task: str,
    metrics: Sequence[str],
    how: str = "train",
) -> str:
    """Markdown: mean, standard deviation and interval over seeds, references, differences."""
    rows: dict[str, dict[int, dict[str, Any]]] = {}
    deltas: dict[str, dict[int, dict[str, Any]]] = {}
    of_data = _named_data(points)
    for (config, seed), folder in points.items():
        path = folder / RESULTS[how]
        if not path.exists():
            continue
        found = json.loads(seal.text_of(folder, RESULTS[how], f"delete it, and {AGAIN}"))
        rows.setdefault(_stem(config), {})[seed] = _scores(found, task)
        for name, tasks in (found["references"] or {}).items():
            own, stem = tasks.get(task, {}), _stem(config)
            blended = name == blend.NAME  # every method has its own
            row = f"{stem} + {blend.WITH}" if blended else f"{name}{of_data[config]}"
            rows.setdefault(row, {}).setdefault(seed, own.get("metrics", {}))
            deltas.setdefault(f"{stem} − {row}", {})[seed] = own.get("delta", {})
            for other, delta in own.get("against", {}).items() if blended else ():
                deltas.setdefault(f"{row} − {other}{of_data[config]}", {})[seed] = delta
    _require_metrics(rows, metrics, task)
    first = metrics[0]
    sign = 1 if first in LOWER_IS_BETTER else -1
    order = sorted(rows, key=lambda name: sign * _mean(rows[name], first))
    head = ["", "seeds", *(f"{task} {metric}" for metric in metrics)]
    lines = [head, ["---"] * len(head)]
    for name in order:
        seeds = ", ".join(map(str, sorted(rows[name])))
        lines.append([name, seeds, *(_cell(rows[name], metric) for metric in metrics)])
    done = [folder for folder in points.values() if (folder / RESULTS[how]).exists()]
    missing = [str(folder) for folder in points.values() if folder not in done]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    for metric in metrics:
        compared = {name: runs for name, runs in deltas.items() if _values(runs, metric)}
        paired = [f"- {name}: {_cell(runs, metric)}" for name, runs in compared.items()]
        if paired:
            text += f"\nPaired differences, {task} {metric}:\n\n" + "\n".join(paired) + "\n"
    text += _made(done)
    return text + (f"\nNot finished: {', '.join(missing)}\n" if missing else "")


def _named_data(points: Mapping[tuple[str, int], Path]) -> dict[str, str]:
    """Configuration -> ", <data>" for its references' rows; "" where the data of all are alike.

    References are of the data: of others they are other rows. A seed may have a split of its own,
    so data are alike if those of every shared seed are.
    """
    groups: list[dict[int, str]] = []
    place: dict[str, int] = {}
    for config in dict.fromkeys(config for config, _ in points):
        own = {}
        for (other, seed), folder in points.items():
            with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
                if other == config:
                    own[seed] = str(seal.load(folder / "data.json")["fingerprint"])
        alike = [all(g.get(s, f) == f for s, f in own.items()) for g in groups]
        place[config] = alike.index(True) if any(alike) else len(groups)
        groups += [] if any(alike) else [{}]
        groups[place[config]] |= own
    if len(groups) < 2:
        return dict.fromkeys(place, "")
    return {config: f", {_data_name(points, config, groups[g])}" for config, g in place.items()}


def _data_name(points: Mapping[tuple[str, int], Path], config: str, prints: Mapping) -> str:
    """The data set of a configuration's points, and which state of it."""
    name, which = "data", min(prints.values(), default="unknown")[:8]
    for (other, _), folder in points.items():
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            if other == config:
                name = seal.load(folder / "config.json")["data"]["name"].rpartition(".")[2]
                break
    return f"{name} {which}"


def _require_metrics(rows: Mapping[str, Any], metrics: Sequence[str], task: str) -> None:
    """Raises ConfigError for metrics that no finished point has."""
    known = dict.fromkeys(m for runs in rows.values() for scores in runs.values() for m in scores)
    unknown = [metric for metric in metrics if metric not in known]
    if known and unknown:
        raise ConfigError(
            f"--metrics={','.join(metrics)}: {', '.join(unknown)} is no metric of {task};"
            f" metrics are {', '.join(known)}"
        )


def _made(points: Sequence[Path]) -> str:
    """Hours and commits of the runs, as far as they are known."""
    commits = set()
    for point in points:
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            commits.add(seal.load(point / "run.json")["git"])
    took = hours.of(run for p in points for run in sorted(p.glob("fold_*")) or [p])
    known = [f"{took:.2f} hours by the logs, without compiling"] if took is not None else []
    named = sorted(filter(None, commits))
    known += [f"commit{'s' * (len(named) > 1)} {', '.join(named)}"] if named else []
    return f"\n{len(points)} runs; {'; '.join(known)}.\n" if known else ""


def _scores(found: dict[str, Any], task: str) -> dict[str, Any]:
    for score in found["scores"]:
        if (score["task"], score["subset"]) == (task, "full"):
            return score["metrics"]
    raise ConfigError(f"--task={task}: tasks are {', '.join(found['tasks'])}")


def _values(runs: dict[int, dict[str, Any]], metric: str) -> list[float]:
    found = [run.get(metric, {}).get("value") for _, run in sorted(runs.items())]
    return [value for value in found if value is not None]


def _mean(runs, metric):
    return statistics.fmean(_values(runs, metric) or [0.0])


def _cell(runs: dict[int, dict[str, Any]], metric: str) -> str:
    """`0.857 ± 0.001 [0.834, 0.880]`; the deviation needs two seeds."""
    values = _values(runs, metric)
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    known = [run[metric] for run in runs.values() if run.get(metric, {}).get("value") is not None]
    found = over_seeds.interval(known, metric)
    span = f" [{found[0]:.3f}, {found[1]:.3f}]" if found else ""
    return f"{statistics.fmean(values):.3f}{deviation}{span}"


def _stem(config: str) -> str:
    config, _, method = config.partition("@")
    path, _, variant = config.partition(":")
    return "-".join(filter(None, (Path(path).stem, variant, method.replace(":", "."))))
