"""What a work directory remembers of its training data, so that it can read new data without them.

data.json         their manifest: schema, options (a definition's whole content), normalisers
vocabulary.json   tokens by id of every modality whose ids were counted; absent without such
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from m4 import atomic, seal
from m4 import config as configs
from m4.data import data_sets, normalise
from m4.data import manifest as manifests
from m4.data.apply import Trained
from m4.data.cohort import sha256
from m4.errors import ConfigError, DataError
from m4.run import preflight
from m4.specs import DataSpec

MANIFEST, VOCABULARY = "data.json", "vocabulary.json"
# Where files are and who is in which split: it says nothing of how a subject's files are read.
ELSEWHERE = ("name", "licence", "where", "folder", "splits", "fold", "num_folds", "val_fraction")
MOST = 3  # changed fields that are named


def keep(data: Path, folder: Path) -> None:
    """Remembers a built data set. With checkpoints of another one, that one stays remembered."""
    known = _json(folder / MANIFEST)
    foreign = known is not None and known.get("fingerprint") != data.name
    if foreign and any(folder.glob("checkpoints/*/*")):
        return  # whoever opens the checkpoints will refuse
    for source, name in (("vocabulary.json", VOCABULARY), ("manifest.json", MANIFEST)):
        if (data / source).is_file():
            with atomic.replaced(folder / name) as partial:
                shutil.copyfile(data / source, partial)
        else:
            (folder / name).unlink(missing_ok=True)


def read(folder: Path, options: Mapping[str, Any] | None = None) -> Trained:
    """What is remembered, of folds by the first, with the data set's options now.

    Raises DataError if it is absent or damaged.
    """
    folder = folder / "fold_0" if per_fold(folder) else folder
    again = "the command that trained writes it again"
    manifest, path = _json(folder / MANIFEST), folder / VOCABULARY
    if manifest is None or not seal.intact(manifest) or not _whole(manifest):
        raise DataError(f"{folder / MANIFEST}: no manifest of the training data; {again}")
    wanted = manifest["files"].get("vocabulary.json")
    words = {} if wanted is None else _json(path)
    if words is None or not all(
        isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)
        for tokens in words.values()
    ):
        raise DataError(f"{path}: no vocabulary of the training data; {again}")
    if wanted is not None and sha256(path) != wanted:
        raise DataError(f"{path}: is not the vocabulary of the training data; {again}")
    return Trained(manifest, words, dict(options or {}))


def vocabulary(data: Path) -> dict[str, Any]:
    """The tokens of a built data set, {} without any."""
    return _json(data / VOCABULARY) or {}


def _whole(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest has what is asked of it here; the store asks for more."""
    try:
        spec, train = manifests.spec_from(manifest["schema"]), manifest["splits"]["train"]
        numbers = [train["rows"], *(train["present"][name] for name in spec.modality_names)]
        scaled = {m.name: m.shape[-1] for m in spec.modalities if m.kind in normalise.KINDS}
        sizes = {name: len(features) for name, features in manifest["normalisers"].items()}
        fitted = [f for features in manifest["normalisers"].values() for f in features]
        numbers += [f["count"] for f in fitted if isinstance(f["feature"], str)]
        texts = (manifest["fingerprint"], manifest["version"])
        return (
            sizes == scaled
            and all(isinstance(n, int) for n in numbers)
            and all(isinstance(text, str) for text in texts)
            and texts[0].isalnum()
            and all(isinstance(manifest[key], dict) for key in ("options", "declared", "files"))
        )
    except (LookupError, TypeError, ValueError, AttributeError):
        return False


def built(config: ml_collections.ConfigDict, fingerprint: str) -> Path:
    """Where the training data were built; they need not be there any more."""
    return preflight.folders(config)[1] / config.data.name.rpartition(".")[2] / fingerprint


def schema(config: ml_collections.ConfigDict, folder: Path) -> DataSpec:
    """What the data set says of itself or, if its definition is gone, what a run remembers of it.

    A path that is relative to another folder is no reason to refuse what was trained with it.
    """
    try:
        return preflight.schema(config)
    except ConfigError:
        if redefined(config, folder) or not (known := _remembered(folder)):
            raise
        return manifests.spec_from(known["schema"])


def found(config: ml_collections.ConfigDict, folder: Path) -> Path | None:
    """The data that a run was trained on where they were built, None if they are not there."""
    known = _remembered(folder)
    there = built(config, known["fingerprint"]) if known else None
    return there if there and (there / manifests.FILE).is_file() else None


@contextlib.contextmanager
def told_where(config: ml_collections.ConfigDict, folder: Path) -> Iterator[None]:
    """What is missing to build a run's data again is told with where they were looked for."""
    try:
        yield
    except (ConfigError, DataError) as error:
        if isinstance(error, ConfigError) and not str(error).startswith("data."):
            raise
        known = _remembered(folder)
        if not known or redefined(config, folder) or found(config, folder):
            raise
        there = built(config, known["fingerprint"])
        how = "data.dir" if config.data.dir else "M4_DATA_DIR or data.dir"
        raise type(error)(
            *error.args,
            f"{folder}: the data trained on are not in {there}; run this in the folder in which it"
            f" was trained, or set {how} to where they were built",
        ) from error


def redefined(config: ml_collections.ConfigDict, folder: Path) -> bool:
    """Whether a command says otherwise than the run what its data set is."""
    then = configs.stored(folder / "config.json")["data"]
    now = config.data.to_dict()
    return any(then.get(key) != now[key] for key in ("name", "options"))


def _remembered(folder: Path) -> Mapping[str, Any]:
    """The manifest that is remembered; {} where none is, as whoever opens the run will tell."""
    try:
        return read(folder).manifest
    except DataError:
        return {}


def per_fold(folder: Path) -> bool:
    """Whether a work directory is a cross-validation's, which has one model per fold."""
    return (folder / "fold_0").is_dir() and not (folder / "checkpoints").is_dir()


def require(config: ml_collections.ConfigDict, folder: Path, new: Path) -> None:
    """Refuses what can be refused without reading the new data.

    Raises:
      DataError: no such folder, nothing remembered.
      ConfigError: a data set that reads otherwise by now.
    """
    if not os.path.isdir(new):
        raise DataError(f"--on={new}: no such folder")
    module = data_sets.find(config.data.name)
    manifest = read(folder).manifest
    then, now = manifest["version"], module.VERSION
    if then != now:
        raise ConfigError(
            f"data.name={config.data.name!r}: reads files as version {now} by now, the model was"
            f" trained with version {then}; train again"
        )
    options = config.data.options.to_dict()
    changes = changed(module, options, manifest["options"])
    if changes:
        more = f" and {len(changes) - MOST} more" if len(changes) > MOST else ""
        raise ConfigError(
            f"data.options={options}: changed since training: {'; '.join(changes[:MOST])}{more};"
            " restore it, or train again"
        )


def defined(config: ml_collections.ConfigDict) -> Any:
    """The data set's module, of which a definition says what its files are called.

    Raises ConfigError for a data set that has none, and so takes no frames.
    """
    module = data_sets.find(config.data.name)
    if not hasattr(module, "read_definition"):
        raise ConfigError(
            f"frames: data.name={config.data.name!r} reads files of its own layout only, so give a"
            " folder of them; 'meds' and 'tables' take frames"
        )
    return module


def changed(module: Any, options: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """Fields of the resolved options that differ from those at training.

    A definition that is not there any more is remembered, so nothing is.
    """
    try:
        resolved = json.loads(json.dumps(getattr(module, "resolved", dict)(**options)))
    except ConfigError:
        return []
    elsewhere = (*ELSEWHERE, *getattr(module, "ELSEWHERE", ()))

    def read(content):
        return {k: v for k, v in content.items() if k not in elsewhere}

    return configs.diff(read(then), read(resolved), harmless=())


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = seal.load(path)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
