"""`--mode=ensemble`: several models in one work directory, whose logits are averaged.

    python -m m4.main --mode=ensemble --config=c.py --seeds=0,1,2 --workdir=runs/three
    python -m m4.main --mode=ensemble --members=runs/a,runs/b --workdir=runs/both
    python -m m4.main --mode=ensemble --members=runs/crossval --workdir=runs/folds

With `--seeds` every member is an ordinary run in `member_<k>`, of one split of the patients: that
of the configuration's own seed, or of `data.seed`. The programs are compiled once, since a seed is
an input of them. The same command goes on where it was stopped, and trains nothing twice.

With `--members` finished runs are copied: their best step, and what it takes to read data. They
must be of the same data and schema; method and settings may differ. A cross-validation stands for
its folds, an ensemble for its members.

Then all of them are evaluated together, as `--mode=eval` does: `results/test.json` has the scores
of the average, and its section `ensemble` what it gains (`m4.eval.gain`). Folds have seen each
other's test patients: of them the results are those out of fold.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import ml_collections

from m4 import atomic, local, seal
from m4 import config as configs
from m4.config import Flags, trust
from m4.data import manifest as manifests
from m4.errors import ConfigError
from m4.eval import damage
from m4.modes import eval as eval_mode
from m4.modes import report, train
from m4.run import members, refitted, trained
from m4.run.workspace import owned, split_seed
from m4.train import processes, retention, verify

SEEDS = "0,1,2"
DRAWS = 100  # of a member's own report; the ensemble's has all that were asked for
KEPT = ("config.json", "data.json", "vocabulary.json", "run.json", "metrics.jsonl")
SHOWN = ("run.json", "data.json", "vocabulary.json")  # of the first member, for the whole


def run(config: ml_collections.ConfigDict | None, folder: Path, flags: Flags) -> None:
    """Trains or joins the members, then evaluates them together. See `m4.main`."""
    given = flags.options
    if {"seeds", "members"} <= {*given}:
        raise ConfigError("--members: joins finished runs; --seeds trains new ones: give one")
    if config is None:
        config = join(folder, given["members"].split(","), flags)
    else:
        members_of(config, folder, numbers(given.get("seeds", SEEDS)), flags)
    if members.kind_of(folder) == "folds" or config.data.also_train == "all":
        if processes.first() and any((folder / "results").glob("*.json")):
            report.build(folder)
        return
    eval_mode.run(config, folder, flags)


def numbers(text: str) -> list[int]:
    """Seeds from the command line. Raises ConfigError for what is none."""
    seeds = text.split(",")
    if not all(seed.isdecimal() and int(seed) < 2**31 for seed in seeds):
        raise ConfigError(f"--seeds={text}: must be numbers, as 0,1,2")
    found = [*map(int, seeds)]
    if len({*found}) < len(found):
        raise ConfigError(f"--seeds={text}: names a seed twice")
    return found


def members_of(
    config: ml_collections.ConfigDict,
    folder: Path,
    seeds: Sequence[int],
    flags: Flags,
    *,
    fit=train.run,
) -> None:
    """Trains a member per seed with `fit`, as far as it is not there yet, and lists them."""
    _require_room(folder)
    listed = members.read(folder, final=False)["members"] if _listed(folder) else []
    known = [member["seed"] for member in listed]
    if known and known != [*seeds]:
        raise ConfigError(
            f"--workdir={folder}: holds an ensemble of the seeds {','.join(map(str, known))};"
            " choose another --workdir"
        )
    with owned(folder):
        if processes.first():
            train.claim(config, folder, force="config" in flags.force)
        places = [folder / f"member_{k}" for k in range(len(seeds))]
        for place, seed in zip(places, seeds, strict=True):
            own = _member(config, seed)
            if not _done(own, place):
                print(f"{place.name}: seed {seed}", flush=True)
                fit(own, place, flags)
        if processes.first():
            _list(folder, "seeds", places)


def join(folder: Path, names: Sequence[str], flags: Flags) -> ml_collections.ConfigDict:
    """Copies finished runs into `folder` and lists them; returns the ensemble's configuration."""
    _require_room(folder)
    given = [local.folder(name, "--members") for name in names]
    found = [place for name in given for place in _runs(name)]
    folds = [*map(members.kind_of, filter(_several, given))] == ["folds"] and len(given) == 1
    kind = "folds" if folds else "runs"
    digests = [members.told(place)["digest"] for place in found]
    if len({*digests}) < len(digests):
        raise ConfigError(f"--members={','.join(names)}: names a model twice")
    for place in found:
        if not flags.trust_code:
            trust.require(place, configs.read_json(place / "config.json"), {})
    _require_same_data(found)
    with owned(folder):
        if _listed(folder):
            if [member["digest"] for member in members.read(folder)["members"]] != digests:
                raise ConfigError(
                    f"--workdir={folder}: holds an ensemble of other models; choose another"
                    " --workdir"
                )
        else:
            places = [folder / f"member_{k}" for k in range(len(found))]
            for source, place in zip(found, places, strict=True):
                _copy(source, place)
            if folds or _whole(found[0]):
                with_folds(given, folder)
            _list(folder, kind, places)
        plain = configs.read_json(found[0] / "config.json")
        # Members are evaluated in short: how the whole is to be, stands where they were made.
        plain["eval"] = configs.read_json(given[0] / "config.json")["eval"]
        config = configs.check(plain, flags.overrides, str(found[0] / "config.json"), say=print)
        atomic.write(folder / "config.json", configs.to_json(config))
        trust.mark(folder, config.to_dict())
    return config


def with_folds(given: Sequence[Path], folder: Path) -> None:
    """Copies the scores out of fold, what to expect of these models, if all have the same."""
    name = "results/crossval.json"
    texts = {
        seal.text_of(place, name, damage.again(name)) if (place / name).is_file() else ""
        for place in given
    }
    if len(texts) == 1 and (text := texts.pop()):
        (folder / "results").mkdir(exist_ok=True)
        seal.write(folder, name, text)


def _whole(place: Path) -> bool:
    """Whether a run was trained on all rows, and has no test split."""
    return configs.stored(place / "config.json")["data"].get("also_train") == "all"


def _member(config: ml_collections.ConfigDict, seed: int) -> ml_collections.ConfigDict:
    """The configuration of one member: its seed, the ensemble's split, a short evaluation."""
    own = config.copy_and_resolve_references()
    with own.unlocked(), own.ignore_type():
        own.data.seed, own.seed = split_seed(config), seed
        own.eval.bootstrap = min(own.eval.bootstrap, DRAWS)
        own.eval.baselines = own.eval.subsets = False
    return own.lock()


def _done(config: ml_collections.ConfigDict, place: Path) -> bool:
    """Whether a member was trained to its end and evaluated with this configuration."""
    path = place / "config.json"
    if not any((place / "results").glob("*.json")) or not path.is_file():
        return False
    whole = bool(retention.complete(place / "checkpoints/best"))
    same = whole and not configs.diff(configs.stored(path), config.to_dict())
    return same and members.finished(place)  # its configuration is replaced before it is trained on


def _list(folder: Path, kind: str, places: Sequence[Path]) -> None:
    """Writes what makes the folder an ensemble, the list last."""
    for name in SHOWN:
        if (places[0] / name).is_file():
            with atomic.replaced(folder / name) as partial:
                shutil.copyfile(places[0] / name, partial)
    cuts = {_cuts(place) for place in places}
    if len(cuts) == 1 and (text := cuts.pop()):
        seal.write(folder, refitted.FILE, text)
    known = members.read(folder, final=False)["members"] if _listed(folder) else None
    if known != [members.told(place) for place in places]:  # none yet, or trained on since
        members.write(folder, kind, places)


def _cuts(place: Path) -> str:
    """The cuts that a refit has from its cross-validation, as written; "" of other runs.

    Those of a refit of several seeds stand beside its members.
    """
    beside = [place.parent] if _listed(place.parent) else []
    for folder in (place, *beside):
        if (folder / refitted.FILE).is_file():
            return refitted.text(folder)
    return ""


def _runs(folder: Path) -> list[Path]:
    """The finished runs that a work directory stands for. ConfigError where there is none."""
    if not (folder / "config.json").is_file():
        raise ConfigError(f"--members: {folder} holds no run (no config.json)")
    found = [*members.folders(folder)] or [folder]
    for place in found:
        ready = any((place / "results").glob("*.json")) or _several(folder)
        if not ready or not retention.complete(place / "checkpoints/best"):
            raise ConfigError(f"--members: {place} is not finished; --mode=train goes on with it")
    return found


def _require_same_data(found: Sequence[Path]) -> None:
    """Raises ConfigError unless all runs read the same files into the same schema."""
    known = {str(place): trained.read(place).manifest for place in found}
    members.require_same({n: manifests.spec_from(m["schema"]) for n, m in known.items()})
    held_in = {
        n: configs.stored(Path(n) / "config.json")["data"].get("also_train", "none") for n in known
    }
    if len({*held_in.values()}) > 1:
        whole = next(name for name, which in held_in.items() if which != "none")
        raise ConfigError(
            f"{whole}: was trained on rows that others are tested or judged on; join refits with"
            " refits, and runs that hold rows out with such runs"
        )
    (first, one), *others = known.items()
    for name, other in others:
        same_files = one["sources"] == other["sources"]
        invented = not one["sources"] and one["fingerprint"] != other["fingerprint"]
        wrong = [key for key in ("name", "version") if one[key] != other[key]]
        if wrong or not same_files or invented:
            what = wrong[0] if wrong else "files" if not same_files else "seed or options"
            raise ConfigError(f"{name}: was trained on other data than {first} (another {what})")


def _copy(source: Path, place: Path) -> None:
    """A run's best step and what it takes to read data; complete, or not there."""
    partial = place.with_name(f"{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(place, ignore_errors=True)  # of a killed command: it is in no list yet
    partial.mkdir(mode=0o700)
    for name in KEPT:
        if (source / name).is_file():
            shutil.copyfile(source / name, partial / name)
    if text := _cuts(source):
        seal.write(partial, refitted.FILE, text)
    step = verify.best_step(source)
    shutil.copytree(
        source / f"checkpoints/best/{step}", partial / f"checkpoints/best/{step}", symlinks=True
    )
    trust.mark(partial, configs.read_json(partial / "config.json"))
    partial.rename(place)


def _require_room(folder: Path) -> None:
    """Raises ConfigError for a work directory that holds a run of another kind."""
    if (folder / "checkpoints").is_dir() or (folder / "fold_0").is_dir():
        raise ConfigError(f"--workdir={folder}: holds a run; choose another for the ensemble")


def _listed(folder: Path) -> bool:
    return (folder / members.FILE).exists()


def _several(folder: Path) -> bool:
    return _listed(folder) or trained.per_fold(folder)
