"""Where a run lives: its locked folder, cache and built data, and whose checkpoints it holds."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections

from m4 import config as configs
from m4.data import build, missing, shift, temporary
from m4.data import manifest as manifests
from m4.data.store import Store
from m4.errors import CheckpointError, ConfigError, UserError
from m4.remote import mirror, places
from m4.run import agreement, cache, preflight, progress, trained
from m4.run.method import require_fit
from m4.train import early, lease, processes, workdir

NEW = ".new"  # in a work directory: records of `--on`, while its owner has it


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Holds a work directory; of several processes the first does it for all.

    What killed ones left there of patients' records goes.
    """
    with contextlib.ExitStack() as stack:
        if processes.first():
            stack.enter_context(workdir.locked(folder))
            stack.enter_context(_held(folder))
            shutil.rmtree(folder / NEW, ignore_errors=True)
            temporary.sweep(folder, temporary.BESIDE, unsigned=False)
        processes.agree({})  # for minutes, if another host may have it: no barrier waits as long
        if not processes.first():
            mirror.pull(folder)
        yield


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Holds the place in a bucket that a folder stands for, if it does, and keeps both alike."""
    there = mirror.of(folder)
    if there is None:
        yield
        return
    with lease.held(there.url):
        there.pull()  # what is there now, when nobody else can change it any more
        try:
            yield
        except BaseException:
            with contextlib.suppress(UserError):  # what has failed before counts
                there.push()
            raise
        there.push()


@contextlib.contextmanager
def lent(folder: Path | None = None) -> Iterator[Path]:
    """A folder for what is of patients, gone afterwards, also if the command is told to stop.

    It lies in `folder`, if that can be written by its owner alone, see `temporary.somewhere`.
    """
    place = temporary.somewhere(folder)
    try:
        with early.farewell(lambda: temporary.remove(place)):
            yield place
    finally:
        temporary.remove(place)


def let_go(folder: Path) -> None:
    """Gives up what this process holds, for one that is about to end without a farewell."""
    workdir.let_go(folder)
    if url := places.url_of(folder):
        lease.let_go(url)


def use_cache(folder: Path) -> None:
    """Keeps compiled programs where `m4.run.cache` says, unless JAX was told otherwise."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        kept = cache.programs(folder)
        if processes.first():
            cache.trim(kept)
        jax.config.update("jax_compilation_cache_dir", str(kept))


def split_seed(config: ml_collections.ConfigDict) -> int:
    """The seed that says who is in which split: `data.seed`, or that of all else."""
    own = config.data.get("seed")
    return config.seed if own is None else own


def prepare(config: ml_collections.ConfigDict) -> Path:
    """The folder of the built data set, building it if need be.

    Raises ConfigError before that for what the method refuses.
    """
    raw_dir, data_dir = preflight.folders(config)
    require_fit(config, preflight.schema(config))

    def report(manifest: dict[str, Any]) -> None:
        print("cohort", *manifests.flow_lines(manifest), sep="\n")
        print(
            *(f"warning  {line}\n" for line in shift.of_build(manifest)), sep="", end="", flush=True
        )

    folder = build.prepare(
        config.data.name,
        raw_dir,
        data_dir,
        seed=split_seed(config),
        options=config.data.options.to_dict(),
        calibration=config.data.calibration,
        also_train=config.data.get("also_train", "none"),
        leave_out=config.data.get("leave_out", ""),
        progress=progress.Building(config.data.name),
        say=lambda lines: print("joining", *lines, sep="\n", flush=True),
        report=report,
    )
    if processes.several():
        processes.agree(agreement.of_data(folder))
    return folder


def trained_on(config: ml_collections.ConfigDict, folder: Path) -> Path:
    """The data that a work directory's run was trained on, built again if they are gone.

    A definition that is not there any more, as its path is relative to another folder, is not
    needed for what is built.
    """
    with trained.told_where(config, folder):
        try:
            return prepare(config)
        except ConfigError:
            there = trained.found(config, folder)
            if there is None or trained.redefined(config, folder):
                raise
            manifests.read(there)  # whole
            return there


def open_split(data: Path, split: str, batch_size: int) -> Store:
    """A split that can fill at least one batch."""
    store = Store(data, split)
    if len(store) < (batch_size if split == "train" else 1):
        remedy = f"; --config.train.batch_size={len(store)} or less" if len(store) else ""
        raise ConfigError(
            f"train.batch_size={batch_size}: the {split} split has only {len(store)} rows{remedy}"
        )
    return store


def require_test(data: Path, folder: Path) -> None:
    """Raises CheckpointError for data of which nobody is held out."""
    if "test" not in manifests.unchecked(data)["splits"]:
        raise CheckpointError(
            f"{folder}: was trained on all rows, so nobody is left to test it on; what to expect of"
            " it are the scores out of fold in results/crossval.json, and --on=DIR predicts and"
            " scores new data"
        )


def validation(config: ml_collections.ConfigDict, data: Path) -> Store | None:
    """The validation split, None where it trains (`data.also_train`)."""
    if config.data.get("also_train", "none") != "none":
        return None
    return open_incomplete(config, data, "val")


def open_incomplete(config: ml_collections.ConfigDict, data: Path, split: str) -> Store:
    """A split without what `train.missing` or, of the others, `eval.missing` takes from it."""
    name = "train" if split == "train" else "eval"
    store = open_split(data, split, config[name].batch_size)
    try:
        return missing.incomplete(store, config[name].missing.to_dict(), split_seed(config))
    except ValueError as error:
        raise ConfigError(f"{name}.missing.{error}") from error


def same_run(
    note: Mapping[str, Any],
    config: ml_collections.ConfigDict,
    data: Path,
    folder: Path,
    *,
    sections: tuple[str, ...] = ("",),
) -> None:
    """Raises CheckpointError if a checkpoint's note names other data or another configuration.

    Of the configuration only fields that begin with one of `sections` count; weights that were
    imported have none.
    """
    if note.get("data") != data.name:
        raise CheckpointError(
            f"{folder}: trained on data {note.get('data')}, but {data.name} is given now;"
            " choose another --workdir"
        )
    now = config.to_dict()
    then = configs.completed(note["config"], str(folder)) if "config" in note else now
    changes = [c for c in configs.diff(then, now) if c.startswith(sections)]
    if changes:
        raise CheckpointError(
            f"{folder}: trained with another configuration; choose another --workdir, or"
            " --force=config to go on with this one:",
            *changes,
        )
