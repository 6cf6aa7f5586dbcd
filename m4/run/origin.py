"""`train.from`: the parameters to begin with, from another work directory or an import.

Arrays are found by their names. The modalities must be those of before; of the tasks, those that
were there under the same name with the same meaning keep what belongs to them, and all others
begin anew. What was taken, and what was not, is printed.
"""

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from m4 import config as configs
from m4 import sharding
from m4.data import manifest as manifests
from m4.data.batch import empty
from m4.errors import CheckpointError, ConfigError
from m4.run import trained
from m4.run.method import make_method
from m4.run.setup import Setup
from m4.specs import DataSpec, TaskSpec
from m4.train import digest, processes, retention, verify
from m4.train.step import State, init_params

SHOWN = 4  # names of arrays in a line
BEST = "checkpoints/best"


def folder_of(config: ml_collections.ConfigDict) -> Path | None:
    """The folder that `train.from` names."""
    return Path(config.train["from"]).expanduser() if config.train["from"] else None


def require(config: ml_collections.ConfigDict, spec: DataSpec, own: Path) -> None:
    """Refuses, before data are built, what a run in the folder `own` cannot begin from.

    Raises ConfigError, CheckpointError without a checkpoint, DataError without data.json.
    """
    folder = folder_of(config)
    if folder is None:
        return
    if not folder.is_dir():
        raise ConfigError(f"train.from={folder}: no such folder; give a work directory")
    if folder.resolve() == own.resolve():
        raise ConfigError(f"train.from={folder}: is this run's own; choose another --workdir")
    if (folder / "fold_0").is_dir() and not (folder / "checkpoints").is_dir():
        raise ConfigError(f"train.from={folder}: holds a model per fold; choose {folder}/fold_0")
    if not retention.complete(folder / BEST):
        raise CheckpointError(f"{folder / BEST}: holds no checkpoint to begin from")
    _require_modalities(folder, manifests.spec_from(trained.read(folder).manifest["schema"]), spec)


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
    same = [task.name for task in setup.spec.tasks if _meaning(task) in map(_meaning, before.tasks)]
    old, fresh = digest.named(found["params"]), digest.named(state.params)
    shapes = functools.partial(_shapes, config)
    free = shapes(_renamed(setup.spec, same)).keys()
    stacked = {} if before.task_names == setup.spec.task_names else _stacked(shapes, setup.spec)
    taken, wrong = {}, []
    for name in fresh.keys() & old.keys() & free:
        value, like = old[name], fresh[name]
        if name in stacked:
            value = _by_task(value, like, stacked[name], before, setup.spec, same)
        if (value.shape, value.dtype) == (like.shape, like.dtype):
            taken[name] = value
        else:
            wrong.append(f"{name} is {_words(value)} there, {_words(like)} here")
    then = configs.completed(configs.read_json(folder / "config.json"), str(folder))["method"]
    changes = [f"method.{line}" for line in configs.diff(then, config.method.to_dict())]
    if wrong or not taken:
        wrong = sorted(wrong) or ["nothing in it has a name that this method's arrays have"]
        lines = [f"train.from={folder}: {line}" for line in wrong[:SHOWN]]
        raise ConfigError(*lines, *(f"differs: {line}" for line in changes[:SHOWN]))
    if processes.first():
        print(f"from     {folder}, step {note['step']}: {len(taken)} of {len(fresh)} arrays")
        _say("anew", fresh.keys() - taken.keys())
        _say("left", old.keys() - taken.keys())
        print(*(f"differs  {line}\n" for line in changes), sep="", end="")
        if known.manifest["normalisers"] != manifests.read(setup.data)["normalisers"]:
            print("differs  means and deviations that values are scaled by: those of these data")
    values = jax.tree_util.tree_map_with_path(functools.partial(_placed, taken), state.params)
    average = None if state.ema is None else jax.tree.map(jnp.copy, values)
    return dataclasses.replace(state, params=values, ema=average)


def _require_modalities(folder: Path, before: DataSpec, now: DataSpec) -> None:
    """Raises ConfigError unless inputs are as they were, but for lengths and counts of tokens."""

    def plain(spec):
        return [dataclasses.replace(m.cut(1), vocab=None) for m in spec.modalities]

    if before.modality_names != now.modality_names:
        there, here = (", ".join(spec.modality_names) for spec in (before, now))
        raise ConfigError(f"train.from={folder}: modalities are {there} there, {here} here")
    for old, new in zip(plain(before), plain(now), strict=True):
        if old != new:
            fields = [f for f, x in vars(old).items() if x != getattr(new, f)]
            raise ConfigError(
                f"train.from={folder}: modality {new.name} has another {' and '.join(fields)} there"
            )


def _newest(folder: Path) -> tuple[Any, dict[str, Any]]:
    """(arrays on the host, note) of the newest sound step."""
    arrays, problems = verify.Arrays(), []
    for step in reversed(retention.complete(folder / BEST)):
        path = folder / BEST / str(step)
        found, note, problem = arrays.read(path)
        if problem is None:
            return found, note
        problems.append(f"{path}: {problem}")
    raise CheckpointError(f"{folder}: no sound checkpoint to begin from", *problems)


def _meaning(task: TaskSpec) -> tuple:
    return task.name, task.kind, task.dim, task.labels, task.transform


def _renamed(spec: DataSpec, same: Iterable[str]) -> DataSpec:
    """The schema with other names for the tasks that are not the `same`."""
    tasks = [t if t.name in same else dataclasses.replace(t, name=f"{t.name}_") for t in spec.tasks]
    return dataclasses.replace(spec, tasks=tuple(tasks))


def _shapes(config: ml_collections.ConfigDict, spec: DataSpec) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter of the method for a schema."""
    method = make_method(config.method.to_dict(), spec, text=config.text, image=config.image)
    init = functools.partial(init_params, method, seed=0)
    params = sharding.unbox(jax.eval_shape(init, empty(spec, 2)))
    return {name: x.shape for name, x in digest.named(params).items()}


def _stacked(shapes, spec: DataSpec) -> dict[str, int]:
    """The axis over tasks of every parameter that has one: that which grows by one with them."""
    more = dataclasses.replace(spec.tasks[0], name=f"{spec.tasks[0].name}_")
    now, then = shapes(spec), shapes(dataclasses.replace(spec, tasks=(*spec.tasks, more)))
    return {
        name: int(np.argmax(np.not_equal(shape, then[name])))
        for name, shape in now.items()
        if then.get(name, shape) != shape
    }


def _by_task(old, like, axis: int, before: DataSpec, now: DataSpec, same) -> np.ndarray:
    """`like` with the parts of the `same` tasks from `old`, wherever they stand in it."""
    if old.ndim != like.ndim or old.shape[axis] != len(before.tasks):
        return old
    new, old = (np.moveaxis(np.array(x), axis, 0) for x in (like, old))
    if new.shape[1:] == old.shape[1:]:
        for name in same:
            new[now.task_names.index(name)] = old[before.task_names.index(name)]
    return np.moveaxis(new, 0, axis)


def _placed(taken, path, like):
    """An array where the fresh one is; a copy, because steps give their state away."""
    value = taken.get(jax.tree_util.keystr(path, simple=True, separator="."))
    if value is None:
        return like
    put = jax.make_array_from_callback(like.shape, like.sharding, lambda index: value[index])
    return jnp.copy(put)


def _say(what: str, names: Iterable[str]) -> None:
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    if names:
        print(f"{what}     {', '.join(names[:SHOWN])}{more}")


def _words(x: Any) -> str:
    return f"{x.dtype}{list(x.shape)}"
