"""A work directory with several models, whose logits are averaged: an ensemble, or folds.

    members.json      {schema, kind, members: [{folder, seed, step, digest, data, method}], sha256}
    member_0/, ...    work directories of runs, with at least config.json, data.json (and
                      vocabulary.json) and checkpoints/best
    config.json, data.json, run.json    the first member's, but for how the ensemble is evaluated

`kind` is 'seeds' where members differ in the seed alone, 'folds' where each was trained without
another fold of the patients, 'runs' else. A cross-validation has the folders fold_0, ... instead,
and no members.json: on new data it is an ensemble as it is.
"""

import contextlib
import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m4 import cells, seal, task_losses
from m4 import config as configs
from m4.config import trust
from m4.data import index
from m4.data import manifest as manifests
from m4.data.cohort import sha256
from m4.data.store import Store
from m4.errors import CheckpointError, ConfigError
from m4.eval import damage
from m4.run import programs, trained
from m4.run.setup import Model
from m4.specs import DataSpec, wordless
from m4.train import retention, verify

FILE, SCHEMA = "members.json", 1
KINDS = ("seeds", "folds", "runs")
NAME = re.compile(r"member_\d+")
AGAIN = "--mode=ensemble makes it, in another --workdir"


@dataclasses.dataclass(frozen=True)
class Member:
    """One model of several, and its `(batch, keep_M) -> (tasks, stats)`."""

    config: ml_collections.ConfigDict
    model: Model
    predict: Callable[..., Any]


class Several:
    """The models of an ensemble, in the place of one model's compiled function."""

    def __init__(self, members: Sequence[Member]):
        """The first member's data are those that an evaluation opens."""
        self.members = tuple(members)
        self._stores: dict[tuple[str, str], Store] = {}

    @property
    def alike(self) -> bool:
        """Whether all were trained on the same built data."""
        return len({member.model.data.name for member in self.members}) == 1

    def stores(self, store: Store) -> list[Store]:
        """The same rows as every member reads them: scaled by what its training rows say.

        Raises ConfigError for rows that were changed, unless all members read them alike.
        """
        if self.alike:
            return [store] * len(self.members)
        if type(store) is not Store:
            raise ConfigError(
                "the members of this ensemble were trained on different rows; what lacks more or is"
                " measured otherwise takes members of one split, as --mode=ensemble --seeds trains"
            )
        return [self._store(member, store) for member in self.members]

    def _store(self, member: Member, like: Store) -> Store:
        if member.model.data.name == like.folder.name:
            return like
        key = member.model.data.name, like.split
        if key not in self._stores:
            self._stores[key] = Store(member.model.data, like.split)
        return self._stores[key]


class Programs:
    """Compiled predictions; what differs in the seed or the rows trained on shares one."""

    def __init__(self):
        """None yet."""
        self._made: list[tuple[Any, Any]] = []

    def of(self, config: ml_collections.ConfigDict, model: Model) -> Callable[..., Any]:
        """The function for a model's parameters: `programs.compile_predict`."""
        parts = {key: config[key].to_dict() for key in ("method", "text", "image")}
        train = [config.train[name] for name in ("precision", "buckets", "compile", "steps")]
        spec, rows = _unfitted(model.spec), config.eval.batch_size
        key = parts, spec, train, config.optim.shard, rows, model.efforts, model.mesh
        for known, made in self._made:
            if known == key:
                return made.given(task_losses.scaling(model.spec))
        self._made.append((key, programs.compile_predict(model, rows)))
        return self._made[-1][1]


def folders(folder: Path) -> tuple[Path, ...]:
    """The members' work directories; none for a run of one model.

    Raises CheckpointError if the list is damaged or one of them is not there.
    """
    try:
        listed = (folder / FILE).exists()
    except OSError:  # a name that is too long, say: whoever makes the folder tells
        return ()
    if not listed:
        return _folds(folder) if trained.per_fold(folder) else ()
    return tuple(folder / member["folder"] for member in read(folder)["members"])


def read(folder: Path, *, final: bool = True) -> dict[str, Any]:
    """`members.json`. Raises CheckpointError as `folders` does.

    Before all members are `final` their best steps may be others than those that are listed.
    """
    path = folder / FILE
    found: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = seal.load(path)
    if not seal.intact(found) or not _sound(found):
        raise CheckpointError(f"{path}: is damaged; {AGAIN}")
    for member in found["members"]:
        place = folder / member["folder"]
        if place.is_symlink() or not (place / "config.json").is_file():
            raise CheckpointError(f"{place}: the member is gone; {AGAIN}")
        if final and _digest(place, member["step"]) != member["digest"]:
            raise CheckpointError(
                f"{place}: step {member['step']} is gone or not the one that the ensemble was made"
                f" of; {AGAIN}"
            )
    return found


def _digest(place: Path, step: int) -> str | None:
    """Of the note of a best step, which vouches for its arrays; None without it, or a newer one."""
    if retention.complete(place / "checkpoints/best")[-1:] != [step]:
        return None
    with contextlib.suppress(OSError):
        return sha256(place / f"checkpoints/best/{step}/meta/metadata")
    return None


def write(folder: Path, kind: str, found: Sequence[Path]) -> None:
    """Writes `members.json` of these folders in `folder`."""
    document = {"schema": SCHEMA, "kind": kind, "members": [told(place) for place in found]}
    seal.write(folder, FILE, json.dumps(seal.sealed(document), indent=1) + "\n")


def told(place: Path) -> dict[str, Any]:
    """What `members.json` says of a work directory. CheckpointError without a best step."""
    config = configs.stored(place / "config.json")
    step = verify.best_step(place)
    return {
        "folder": place.name,
        "seed": config["seed"],
        "step": step,
        "digest": _digest(place, step),
        "data": trained.read(place).manifest["fingerprint"],
        "method": config["method"]["name"],
    }


def kind_of(folder: Path) -> str:
    """One of `KINDS`."""
    return read(folder)["kind"] if (folder / FILE).exists() else "folds"


def configs_of(
    config: ml_collections.ConfigDict, folder: Path
) -> list[tuple[Path, ml_collections.ConfigDict]]:
    """Every member's folder and configuration.

    How is evaluated, on which devices and where files are is taken from `config`, that of the
    ensemble. Raises ConfigError for one that names code outside m4 that `config` does not name.
    """
    found = []
    for place in folders(folder):
        path = place / "config.json"
        plain = configs.read_json(path)
        known = set(trust.foreign(config.to_dict()).values())
        if not set(trust.foreign(plain).values()) <= known:
            trust.require(place, plain, {})
        own = configs.check(plain, {}, str(path))
        with own.unlocked(), own.ignore_type():
            own.eval, own.mesh = config.eval, config.mesh
            own.data.raw_dir, own.data.dir = config.data.raw_dir, config.data.dir
        found.append((place, own.lock()))
    return found


def finished(place: Path) -> bool:
    """Whether a run was trained to its last step, and its results are of what it trained.

    One that has results already may be trained on since. What says nothing of it is believed: a
    copy without states, results of an older version.
    """
    last, train = place / "checkpoints/last", configs.stored(place / "config.json").get("train")
    if (steps := retention.complete(last)) and isinstance(train, dict) and train.get("steps"):
        wanted = min(train.get("until") or train["steps"], train["steps"])
        progress = verify.newest_note(last).get("progress") or {}
        if min(steps[-1], progress.get("evaluated", steps[-1])) < wanted:
            return False
    with contextlib.suppress(OSError, ValueError, AttributeError):
        told, now = seal.load(place / "results/test.json").get("parameters"), damage.best(place)
        return told is None or now is None or told == [now]
    return True


def require_same(specs: Mapping[str, DataSpec]) -> None:
    """Raises ConfigError unless the schemas, by whose they are, ask the same of the same inputs."""
    (first, one), *others = specs.items()
    for name, other in others:
        for part in ("modalities", "tasks"):
            own, theirs = (getattr(_unfitted(spec), part) for spec in (one, other))
            if own != theirs:
                pairs = itertools.zip_longest(own, theirs)
                wrong = next(b or a for a, b in pairs if a != b)
                raise ConfigError(
                    f"{name}: its {part} are not those of {first} ({wrong.name} differs); an"
                    " ensemble is of models of the same data"
                )


def require_unseen(folder: Path, data: Sequence[Path], split: str = "test") -> None:
    """Raises CheckpointError if a member saw, in training or validation, whom others are tested on.

    `data` are the folders of every member's built data.
    """
    if len({place.name for place in data}) == 1:
        return
    tested = _patients(data[0], split)
    for place, own in zip(folders(folder), data, strict=True):
        manifest = Store(own, split).manifest
        for other in {*manifest["splits"]} - {split}:
            if np.isin(_patients(own, other), tested).any():
                raise CheckpointError(
                    f"{folder}: {place.name} has seen patients whom the first member is tested on,"
                    " so there is no test of them together; --on=DIR predicts new data by all of"
                    " them"
                )


def refuse_own_test(folder: Path) -> None:
    """Raises CheckpointError for folds, each of which has seen the others' test patients."""
    if kind_of(folder) == "folds":
        raise CheckpointError(
            f"{folder}: its folds have seen each other's test patients; results/crossval.json has"
            " the scores out of fold, and --on=DIR predicts new data by all folds"
        )


def _folds(folder: Path) -> tuple[Path, ...]:
    """The folds of a cross-validation. CheckpointError unless all of them are finished."""
    if not (folder / "fold_0/config.json").is_file():
        raise CheckpointError(f"{folder / 'fold_0'}: is not finished; --mode=crossval goes on")
    found: list[Path] = []
    for k in range(_number(folder, len([*folder.glob("fold_*")]))):
        found.append(folder / f"fold_{k}")
        if not (found[-1] / "results/test.json").is_file() or not finished(found[-1]):
            raise CheckpointError(f"{found[-1]}: is not finished; --mode=crossval goes on with it")
    return tuple(found)


def _number(folder: Path, there: int) -> int:
    """How many folds a cross-validation has, by its first fold's configuration; `there` are some.

    Raises CheckpointError for a folder that says nonsense.
    """
    path, number = folder / "fold_0/config.json", None
    data = configs.read_json(path).get("data")
    if isinstance(data, dict) and data.get("leave_out"):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            number = seal.load(folder / "results/crossval.json")["folds"]
        # More are of an earlier cross-validation, with categories that are too small by now.
        return number if type(number) is int and 0 < number < there else there
    if isinstance(data, dict) and isinstance(data.get("options", {}), dict):
        number = data.get("options", {}).get("num_folds") or there
    if type(number) is not int or number < 1:
        raise CheckpointError(f"{path}: data.options.num_folds is no number of folds")
    return number


def _sound(found: Mapping[str, Any]) -> bool:
    try:
        names = [member["folder"] for member in found["members"]]
        return (
            found["schema"] == SCHEMA
            and found["kind"] in KINDS
            and len(names) == len(set(names)) > 0
            and all(NAME.fullmatch(name) for name in names)
            and all({"step", "digest"} <= {*member} for member in found["members"])
        )
    except (TypeError, KeyError):
        return False


def _unfitted(spec: DataSpec) -> DataSpec:
    """The schema less words, weights, and what was fitted to training rows."""
    spec, unit = wordless(spec), {"loc": 0.0, "scale": 1.0, "weight": 1.0}
    return dataclasses.replace(
        spec, tasks=tuple(dataclasses.replace(task, **unit) for task in spec.tasks)
    )


def _patients(data: Path, split: str) -> np.ndarray:
    return Store(data, split).columns(["patient"])["patient"]


def seen_again(config: ml_collections.ConfigDict, folder: Path, keys: pa.Table | None) -> str:
    """Says how many records are of subjects whom a model, or one of several, has seen; else ''.

    As far as those can still be looked up; a validation split chose steps and cuts.
    """
    known: set[str] = set()
    for place in (folders(folder) or (folder,)) if keys is not None else ():
        built = trained.built(config, trained.read(place).manifest["fingerprint"])
        for split in ("train", "val"):
            if (old := index.read(built, split)) is not None:
                known |= {*pc.unique(old["subject_id"].cast(pa.string())).to_pylist()}
    if keys is None or not known:
        return ""
    seen = pa.array(sorted(known), pa.string())
    again = pc.sum(pc.is_in(keys["subject_id"].cast(pa.string()), value_set=seen)).as_py()
    if not again:
        return ""
    return (
        f"{cells.count(again, manifests.SMALLEST)} of {len(keys):,} records have the identifier of"
        " a training subject: if it is the same person, scores flatter the model"
    )
