"""Training from Python: what `--mode=train` does, and the model that it leaves."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from m4 import config as configs
from m4 import local, modes
from m4.api import handed
from m4.api.loaded import Model, as_text, by_frame, load
from m4.config import Flags, program
from m4.config.flags import FORCE
from m4.data.sets.declared import parse
from m4.errors import ConfigError
from m4.modes import train
from m4.run import origin, preflight, selection, trained
from m4.run.workspace import open_incomplete, prepare, same_run
from m4.train import retention

FRAMES = "frames"  # folder of a work directory


def fit(
    config: str | Path | Mapping[str, Any],
    *,
    workdir: str | Path | None = None,
    frames: Any = None,
    set: Mapping[str, Any] | None = None,  # noqa: A002 (as `--set` of the command)
    force: str | Sequence[str] = (),
    quiet: bool = False,
) -> Model:
    """Trains, or goes on with, a run; evaluates it, writes its report, and returns its model.

    Args:
      config: a shipped configuration, 'fusemoe_mimic:tiny'; a file, 'mine.py:variant' or
        'config.json'; or a mapping of sections, as in such a file.
      workdir: where everything is written; by default as the command's, runs/<config>.
      frames: a frame, or a mapping of frames by the names of the definition's files, instead of
        raw files, of a data set of MEDS files or tables. They are kept in the work directory.
      set: fields to replace, {"train.steps": 500, "method.moe.gate": "laplace"}.
      force: go on with a work directory although its 'config' or 'program' differs, or its 'best'
        step is lost: some of these words, in a list or, as after `--force=`, with commas between.
      quiet: print nothing.

    Raises a `m4.errors.UserError`, as the command prints: ConfigError, DataError, SaveError, ...
    """
    if not isinstance(config, str | Path | Mapping) and not hasattr(config, "to_dict"):
        kind = type(config).__name__
        raise ConfigError(f"config: must be a name, a file or a mapping, not {kind}")
    source = str(config) if isinstance(config, str | Path) else "the mapping"
    if isinstance(config, str | Path):
        json = source.endswith(".json")
        found = configs.read_json(Path(source)) if json else program.load_file(source)
        given: dict[str, Any] = {"config_json" if json else "config": source}
    else:
        found, given = config, {}
        if workdir is None:
            raise ConfigError("workdir: is missing; a mapping has no name to call one after")
    folder = (
        local.folder(str(workdir), "workdir", made=True) if workdir else configs.workdir_of(source)
    )
    overrides = as_text(set or {})
    if frames is not None:
        overrides |= {"data.raw_dir": str(folder / FRAMES)}
    checked = configs.check(found, overrides, source, say=print if not quiet else _silent)
    flags = Flags(workdir=folder, overrides=overrides, force=_forced(force), **given)
    with _owner_only(), contextlib.redirect_stdout(None) if quiet else contextlib.nullcontext():
        if frames is not None:
            _keep(folder, checked, flags, frames)
        modes.require(checked, flags)
        modes.run(checked, flags)
    return load(folder, trust_code=True)  # that code has just been run


def _forced(given: str | Sequence[str]) -> tuple[str, ...]:
    """What is forced, as the command reads it. Raises ConfigError for a word that it refuses."""
    words = given.split(",") if isinstance(given, str) else given
    forced = tuple(sorted({word.strip() for word in words if word.strip()}))
    if wrong := [word for word in forced if word not in FORCE]:
        raise ConfigError(f"force: {wrong[0]!r} is none of {', '.join(FORCE)}")
    return forced


def _silent(line: str) -> None:
    """Says nothing."""


def _keep(folder: Path, config: ml_collections.ConfigDict, flags: Flags, frames: Any) -> None:
    """Keeps frames as the raw files of a run, once nothing refuses them.

    Until then a run that is there keeps its own, and what is refused is removed.
    """
    new = folder / f"{FRAMES}.new"
    shutil.rmtree(new, ignore_errors=True)  # of a killed run
    staged = ml_collections.ConfigDict(config.to_dict())
    staged.data.raw_dir = str(new)
    try:
        place = _write(new, config, frames)
        with by_frame(place):
            modes.require(staged, flags)
            if not retention.complete(folder / "checkpoints/last"):
                origin.require(staged, preflight.schema(staged), folder)
            train.require_own(config, folder, force="config" in flags.force)
            data = prepare(staged)
        if any(folder.glob("checkpoints/*/*")) and (folder / "data.json").is_file():
            same_run({"data": trained.read(folder).manifest["fingerprint"]}, config, data, folder)
        selection.require_defined(staged, open_incomplete(staged, data, "val"))
        shutil.rmtree(folder / FRAMES, ignore_errors=True)
        new.rename(folder / FRAMES)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _write(root: Path, config: ml_collections.ConfigDict, frames: Any) -> Path:
    """Writes frames as the raw files of a configuration; returns the folder that they are in.

    Raises ConfigError if its data are no files.
    """
    module, options = trained.defined(config), config.data.options.to_dict()
    content = module.resolved(**options)
    definition = parse.parse(content, str(options.get("file", "")), meds=content.pop("meds"))
    place = root / definition.folder
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    handed.write(place, definition, frames, labelled=True)
    return place


@contextlib.contextmanager
def _owner_only() -> Iterator[None]:
    """What is derived from patients is for its owner only, as of the command."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
