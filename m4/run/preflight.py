"""Are the raw files there, and does all fit the data set? Asked before anything is built."""

import inspect
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import ml_collections

from m4 import config as configs
from m4 import local
from m4.config import program, rules
from m4.data import augment, data_sets, missing
from m4.data.batch import empty
from m4.data.buckets import ladder
from m4.errors import ConfigError, DataError
from m4.run.devices import make_mesh
from m4.run.method import method_of
from m4.specs import DataSpec
from m4.train.remat import layers
from m4.train.step import init_params
from m4.types import Method


def folders(config: ml_collections.ConfigDict) -> tuple[Path, Path]:
    """(root of the raw files, root of the built data sets)."""
    raw_dir = _chosen(config.data.raw_dir, "data.raw_dir", "M4_RAW_DIR", "raw")
    data_dir = _chosen(config.data.dir, "data.dir", "M4_DATA_DIR", "data")
    return local.folder(*raw_dir), local.folder(*data_dir, made=True)


def _chosen(given: str, field: str, variable: str, default: str) -> tuple[str, str]:
    """A path, and who gave it: the field, else the variable of the environment."""
    named = os.environ.get(variable)
    return (named, variable) if named and not given else (given or default, field)


def require(
    config: ml_collections.ConfigDict,
    source: str | None,
    *,
    files: bool = True,
    mesh: bool = False,
    spec: DataSpec | None = None,
) -> None:
    """Raises DataError if raw `files` are missing and ConfigError if something doesn't fit.

    That is options that the data set refuses, tasks and methods that are not for its schema, and a
    `mesh` that is not for the devices at hand.
    A data set that was built before needs no raw files; whether what is built fits is decided
    when it is opened. `spec` is the schema of one that cannot be asked any more.
    """
    spec = spec or schema(config)
    problems = rules.data_problems(config.to_dict(), spec)
    try:
        method = method_of(config, spec)
        if config.train.remat == "layer":
            _require_layers(method, spec)
    except ConfigError as error:
        problems += error.args
    try:
        ladder(spec, config.train.buckets)
    except ValueError as error:
        problems.append(f"train.{error}")
    for section in ("train", "eval"):
        try:
            missing.check(spec, config[section].missing.to_dict())
        except ValueError as error:
            problems.append(f"{section}.missing.{error}")
    try:
        augment.check(spec, config.train.augment.to_dict())
    except ValueError as error:
        problems.append(f"train.augment.{error}")
    if problems:
        raise ConfigError(*problems)
    if mesh:
        make_mesh(config, jax.devices())  # which, so called, says nothing of idle ones
    raw_dir, data_dir = folders(config)
    if not files or any(data_dir.glob(f"{_name(config)}/*/manifest.json")):
        return
    module = _module(config)
    absent = module.missing_files(raw_dir, **config.data.options.to_dict())
    if absent:
        said = [line for line in absent if " is missing" not in line]  # where one gets them
        absent = [line for line in absent if line not in said] or absent
        where = f"{_name(config)}: {module.WHERE}; then set M4_RAW_DIR or --config.data.raw_dir"
        if len(absent) > 3:
            absent[2:] = [f"and {len(absent) - 2} more files"]
        said = [line for line in said if line not in absent]
        raise DataError(where, _without_files(source), *said, *absent)  # the last is what is read


PLAIN = {"train.from": "", "train.until": 0, "train.precision": "float32", "train.accumulate": 1}
PLAIN |= {"train.ranking": 0, "optim.halve": False, "data.also_train": "none", "eval.missing": {}}


def unfollowed(
    config: ml_collections.ConfigDict | Mapping[str, Any], what: str, names: Iterable[str] = PLAIN
) -> list[str]:
    """A line for each of some fields that a configuration sets and `what` does not follow."""
    plain = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    found = []
    for path in names:
        section, _, name = path.partition(".")
        value = plain.get(section, {}).get(name, PLAIN[path])
        if value != PLAIN[path]:
            found.append(f"{path}={value!r}: {what} does not follow it; leave it out")
    return found


def _require_layers(method: Method, spec: DataSpec) -> None:
    """Raises ConfigError for a method of which `train.remat` finds no layer."""
    params = jax.eval_shape(lambda: init_params(method, empty(spec, 2), seed=0))
    if not layers(params):
        raise ConfigError(
            "train.remat='layer': this method has no numbered layers (time_0, layer_1) to compute"
            " again; 'dots' needs none"
        )


def schema(config: ml_collections.ConfigDict) -> DataSpec:
    """What the data set says of itself. Raises ConfigError if it refuses its options."""
    module, options = _module(config), config.data.options.to_dict()
    for name, parameter in inspect.signature(module.spec).parameters.items():
        value = options.get(name, parameter.default)
        word = name in ("modalities", "tasks") and isinstance(value, str)  # a letter is no name
        if word or (isinstance(parameter.default, tuple) and not isinstance(value, tuple)):
            raise ConfigError(
                f"data.options.{name}={value!r}: must be a tuple of values, {(value,)!r}"
            )
    try:
        return module.spec(**options)
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"data.options={options}: {error}") from error


def _name(config: ml_collections.ConfigDict) -> str:
    return config.data.name.rpartition(".")[2]


def _module(config: ml_collections.ConfigDict) -> ModuleType:
    return data_sets.find(config.data.name)


def _without_files(source: str | None) -> str:
    """The variants of the configuration file that run without any raw file."""
    path = (source or "").partition(":")[0]
    free = []
    for variant in program.variants(path) if path else ():
        try:
            config = configs.check(program.load_file(f"{path}:{variant}"), {}, path)
            options = config.data.options.to_dict()
            absent = _module(config).missing_files(folders(config)[0], **options)
        except ConfigError:  # one that is not whole without what the user has to say
            continue
        if not absent:
            free.append(f"--config={path}:{variant}")
    return "needs no files: " + (" or ".join(free) or "--config=configs/fusemoe_mimic.py:synthetic")
