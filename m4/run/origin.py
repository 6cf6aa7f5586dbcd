"""`train.from`: the parameters to begin with, from another work directory or an import.

Arrays are found by their names. The modalities must be those of before; of the tasks, those that
were there under the same name with the same meaning keep what belongs to them, and all others
begin anew. What was taken, and what was not, is printed.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from m4 import config as configs
from m4 import seal, sharding
from m4.data import build, data_sets
from m4.data import manifest as manifests
from m4.data.batch import empty
from m4.errors import CheckpointError, ConfigError
from m4.run import trained
from m4.run.method import method_of
from m4.run.setup import Setup
from m4.run.workspace import split_seed
from m4.specs import DataSpec, TaskSpec, wordless
from m4.train import digest, processes, retention, verify
from m4.train.step import State, init_params

SHOWN = 4  # names of arrays in a line
BEST = "checkpoints/best"
WHO_IS_ASIDE = ("name", "version", "seed", "calibration", "options")  # of a manifest
NOT_BY_TASK = (0, ())  # axis and tasks of an array without a row per task
Arrays = dict[str, Any]  # by name


def folder_of(config: ml_collections.ConfigDict) -> Path | None:
    """The folder that `train.from` names. Raises ConfigError for the home of nobody."""
    name = config.train["from"]
    try:
        return Path(name).expanduser() if name else None
    except RuntimeError:
        raise ConfigError(f"train.from={name}: no such user; give a work directory") from None


def require(config: ml_collections.ConfigDict, spec: DataSpec, own: Path) -> None:
    """Refuses, before data are built, what a run in the folder `own` cannot begin from.

    Raises ConfigError, also for a damaged config.json; CheckpointError without a checkpoint,
    DataError without data.json.
    """
    folder = folder_of(config)
    if folder is None:
        return
    try:
        there, reason = folder.is_dir(), "no such folder"
    except OSError as error:  # a name that is too long, a folder above that may not be read
        there, reason = False, error.strerror
    if not there:
        raise ConfigError(f"train.from={folder}: {reason}; give a work directory")
    if folder.resolve() == own.resolve():
        raise ConfigError(f"train.from={folder}: is this run's own; choose another --workdir")
    if trained.per_fold(folder):
        raise ConfigError(f"train.from={folder}: holds a model per fold; choose {folder}/fold_0")
    if not retention.complete(folder / BEST):
        raise CheckpointError(f"{folder / BEST}: holds no checkpoint to begin from")
    _method_of(folder)
    manifest = trained.read(folder).manifest
    _require_modalities(folder, manifests.spec_from(manifest["schema"]), spec)
    if config.data.calibration:
        _require_aside(config, folder, manifest)


def begin(config: ml_collections.ConfigDict, setup: Setup, state: State) -> State:
    """A fresh state with the parameters that `train.from` has for it.

    Raises ConfigError for another vocabulary, for an array of another shape, and if there is
    nothing to take; CheckpointError if no checkpoint is sound.
    """
    folder = folder_of(config)
    if folder is None:
        return state
    known = trained.read(folder)
    before = manifests.spec_from(known.manifest["schema"])
    _require_modalities(folder, before, setup.spec)
    if known.vocabularies != trained.vocabulary(setup.data):
        raise ConfigError(f"train.from={folder}: its token ids stand for other words than here")
    found, note = _newest(folder)
    old, fresh = digest.named(found["params"]), digest.named(state.params)
    taken, partly, wrong = _taken(config, old, fresh, before, setup.spec)
    changes = [
        f"method.{line}" for line in configs.diff(_method_of(folder), config.method.to_dict())
    ]
    if wrong or not taken:
        wrong = sorted(wrong) or ["nothing in it has a name that this method's arrays have"]
        lines = [f"train.from={folder}: {line}" for line in wrong[:SHOWN]]
        raise ConfigError(*lines, *(f"differs: {line}" for line in changes[:SHOWN]))
    if processes.first():
        print(f"from     {folder}, step {note['step']}: {len(taken)} of {len(fresh)} arrays")
        _say("anew", [*(fresh.keys() - taken.keys()), *partly])
        _say("left", old.keys() - taken.keys())
        changes += _scales(before, setup.spec)
        print(*(f"differs  {line}\n" for line in changes), sep="", end="")
        if known.manifest["normalisers"] != manifests.read(setup.data)["normalisers"]:
            print("differs  means and deviations that values are scaled by: those of these data")
    values = jax.tree_util.tree_map_with_path(functools.partial(_placed, taken), state.params)
    average = None if state.ema is None else jax.tree.map(jnp.copy, values)
    return dataclasses.replace(state, params=values, ema=average)


def _taken(
    config, old: Arrays, fresh: Arrays, before: DataSpec, now: DataSpec
) -> tuple[Arrays, list[str], list[str]]:
    """(arrays to begin with, those that are fresh for some tasks, those of another shape)."""
    same = [task.name for task in now.tasks if _meaning(task) in map(_meaning, before.tasks)]
    shapes = functools.partial(_shapes, config)
    free = shapes(_renamed(now, same)).keys()
    there, here = {}, {}
    if [*map(_meaning, before.tasks)] != [*map(_meaning, now.tasks)]:
        here = _stacked(shapes, now)
        with contextlib.suppress(ConfigError, ValueError):  # tasks that this method cannot take
            there = _stacked(shapes, before)
    taken, partly, wrong = {}, [], []
    for name in fresh.keys() & old.keys() & free:
        value, like = old[name], fresh[name]
        if name in there or name in here:
            axis, tasks = here.get(name, NOT_BY_TASK)
            from_axis, rows = there.get(name, NOT_BY_TASK)
            kept = [task for task in tasks if task in same and task in rows]
            if not kept or axis != from_axis or np.shape(value)[axis : axis + 1] != (len(rows),):
                continue
            places = [tasks.index(task) for task in kept], [rows.index(task) for task in kept]
            value = _by_task(value, like, axis, *places)
            left = [task for task in tasks if task not in kept]
            partly += [f"{name} ({_few(left)})"] if left else []
        if (value.shape, value.dtype) == (like.shape, like.dtype):
            taken[name] = value
        else:
            wrong.append(f"{name} is {_words(value)} there, {_words(like)} here")
    return taken, partly, wrong


def _method_of(folder: Path) -> dict[str, Any]:
    """The section `method` of its configuration. Raises ConfigError without one."""
    found = configs.stored(folder / "config.json").get("method")
    if not isinstance(found, dict):
        raise ConfigError(f"train.from={folder}: its config.json has no section 'method'")
    return found


def _require_modalities(folder: Path, before: DataSpec, now: DataSpec) -> None:
    """Raises ConfigError unless inputs are as before, but for words, lengths, counts of tokens."""

    def plain(spec):
        return [dataclasses.replace(m.cut(1), vocab=None) for m in wordless(spec).modalities]

    if before.modality_names != now.modality_names:
        there, here = (", ".join(spec.modality_names) for spec in (before, now))
        raise ConfigError(f"train.from={folder}: modalities are {there} there, {here} here")
    for old, new in zip(plain(before), plain(now), strict=True):
        if old != new:
            fields = [f for f, x in vars(old).items() if x != getattr(new, f)]
            raise ConfigError(
                f"train.from={folder}: modality {new.name} has another {' and '.join(fields)} there"
            )


def _require_aside(
    config: ml_collections.ConfigDict, folder: Path, then: Mapping[str, Any]
) -> None:
    """Raises ConfigError unless whom `data.calibration` sets aside was set aside there, too.

    Other tasks on the same data are fine: a task moves nobody to another split.
    """
    share = f"train.from={folder}: with data.calibration={config.data.calibration}"
    if "imported" in verify.newest_note(folder / BEST):
        raise ConfigError(
            f"{share} nobody set aside may have trained it, but whom an import was trained on is"
            " not known; give data.calibration=0"
        )
    name, options = config.data.name, config.data.options.to_dict()
    own = {"seed": split_seed(config), "options": options, "calibration": config.data.calibration}
    now = build.identity_of(data_sets.find(name), name, **own)

    def aside(manifest: Mapping[str, Any], key: str) -> Any:
        if key != "options":
            return manifest.get(key)
        return {name: x for name, x in manifest["options"].items() if name != "tasks"}

    if differs := [key for key in WHO_IS_ASIDE if aside(then, key) != aside(now, key)]:
        raise ConfigError(
            f"{share} patients set aside here may have trained it (data of another"
            f" {' and '.join(differs)} there); train it with the same data, seed and"
            " data.calibration, or give data.calibration=0"
        )


def _newest(folder: Path) -> tuple[Any, dict[str, Any]]:
    """(arrays on the host, note) of the newest sound step."""
    arrays, problems = verify.Arrays(), []
    for step in reversed(retention.complete(folder / BEST)):
        path = folder / BEST / str(step)
        found, note, problem = arrays.read(path)
        if problem is None:
            digest = verify.meta(path)[seal.KEY]
            if (why := verify.disowned(folder, step, digest)) and processes.first():
                print(f"m4: warning: train.from={folder}: begins from step {step}, {why}")
            return found, note
        problems.append(f"{path}: {problem}")
    raise CheckpointError(f"{folder}: no sound checkpoint to begin from", *problems)


def _meaning(task: TaskSpec) -> tuple:
    return task.name, task.kind, task.dim, task.labels, task.transform


def _scales(before: DataSpec, now: DataSpec) -> list[str]:
    """Regression tasks whose head is taken and speaks of another scale than here."""
    lines = []
    for task in now.tasks:
        for then in before.tasks:
            if _meaning(then) == _meaning(task) and (then.loc, then.scale) != (
                task.loc,
                task.scale,
            ):
                shifts = f"loc {then.loc:.4g} -> {task.loc:.4g}"
                lines.append(f"{task.name}: {shifts}, scale {then.scale:.4g} -> {task.scale:.4g}")
    return lines


def _renamed(spec: DataSpec, same: Iterable[str]) -> DataSpec:
    """The schema with other names for the tasks that are not the `same`."""
    end = _ending(spec)
    tasks = [t if t.name in same else dataclasses.replace(t, name=t.name + end) for t in spec.tasks]
    return dataclasses.replace(spec, tasks=tuple(tasks))


def _ending(spec: DataSpec) -> str:
    """What makes another name of a task's that no task has."""
    return "_" * (1 + max(map(len, spec.task_names)))


def _shapes(config: ml_collections.ConfigDict, spec: DataSpec) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of the method for a schema."""
    method = method_of(config, spec)
    init = functools.partial(init_params, method, seed=0)
    params = sharding.unbox(jax.eval_shape(init, empty(spec, 2)))
    return {name: x.shape for name, x in digest.named(params).items()}


def _stacked(shapes, spec: DataSpec) -> dict[str, tuple[int, tuple[str, ...]]]:
    """(axis, tasks in order) of every parameter that grows with tasks like some of the schema's.

    One that does not have a row for each of these tasks along one axis is `NOT_BY_TASK`.
    """
    now, grown, found = shapes(spec), {}, {}
    for task in spec.tasks:
        # Shapes may depend on all of a task but its scale; tasks alike are looked at once.
        more = dataclasses.replace(task, name=f"more{_ending(spec)}", loc=0.0, scale=1.0)
        if more not in grown:
            grown[more] = shapes(dataclasses.replace(spec, tasks=(*spec.tasks, more)))
        for name, shape in now.items():
            if grown[more].get(name, shape) != shape:
                found.setdefault(name, []).append((task.name, grown[more][name]))
    stacked = {}
    for name, grows in found.items():
        tasks, larger = zip(*grows, strict=True)
        axes = [
            axis
            for axis, size in enumerate(now[name])
            if size == len(tasks)
            and {(*now[name][:axis], size + 1, *now[name][axis + 1 :])} == set(larger)
        ]
        stacked[name] = (axes[0], tasks) if axes else NOT_BY_TASK
    return stacked


def _by_task(old, like, axis: int, to: list[int], of: list[int]) -> np.ndarray:
    """`like` with the rows `of` from `old` in the places `to`; `old` if other axes differ."""
    new, rows = (np.moveaxis(np.array(x), axis, 0) for x in (like, old))
    if new.shape[1:] != rows.shape[1:]:
        return old
    new[to] = rows[of]
    return np.moveaxis(new, 0, axis)


def _placed(taken, path, like):
    """An array where the fresh one is; a copy, because steps give their state away."""
    value = taken.get(jax.tree_util.keystr(path, simple=True, separator="."))
    if value is None:
        return like
    put = jax.make_array_from_callback(like.shape, like.sharding, lambda index: value[index])
    return jnp.copy(put)


def _say(what: str, names: Iterable[str]) -> None:
    if names := sorted(names):
        print(f"{what}     {_few(names)}")


def _few(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _words(x: Any) -> str:
    return f"{x.dtype}{list(x.shape)}"
