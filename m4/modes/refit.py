"""`--mode=refit`: after `--mode=crossval`, a training on all the rows that were tested in turns.

    python -m m4.main --mode=crossval --config=c.py --workdir=runs/cv
    python -m m4.main --mode=refit --workdir=runs/cv
    python -m m4.main --mode=refit --workdir=runs/cv --seeds=0,1,2      # an ensemble of them

`runs/cv/refit` is then a work directory like others. Nobody is held out: scales and vocabularies
are fitted on all of these rows. Settings are those of the cross-validation; so is the number of
steps. Where its runs took their last step (`train.choose=last`), that is the last one here; where
they chose their best, it is the median of the folds' best steps, on the same schedule of rates. It
is not scaled by the rows: an update is what the settings were chosen for. The last step is taken.

No row is left to test it on, so its results are those out of fold, which is what to expect; a data
set with a test split that no fold has, as PhysioNet 2012 has set B, keeps that untouched, and is
tested on it. Cuts that are chosen in validation elsewhere are chosen out of fold here.
"""

import functools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from m4 import config as configs
from m4 import seal
from m4.config import Flags
from m4.data import data_sets, held_in
from m4.data.batch import empty
from m4.data.store import Store
from m4.errors import CheckpointError, ConfigError
from m4.eval import averages, damage, operating, results
from m4.eval.report import words
from m4.modes import ensemble, report, train
from m4.modes import eval as eval_mode
from m4.run import beside, members, refitted, trained
from m4.run.devices import make_mesh
from m4.run.setup import Setup, context, make_model
from m4.run.workspace import owned, prepare, split_seed, use_cache
from m4.train import processes, verify

FOLDER, RESULTS = "refit", "results/crossval.json"
TRAINED_BY = ("method", "optim", "train", "seed")  # what folds have of their cross-validation


def run(config: ml_collections.ConfigDict, folder: Path, flags: Flags) -> None:
    """Trains on all rows, in `folder/refit`. See `m4.main`."""
    if not trained.per_fold(folder):
        raise CheckpointError(f"{folder}: holds no cross-validation; --mode=crossval makes one")
    folds, place = members.folders(folder), folder / FOLDER
    if not (folder / "results/crossval.json").is_file():
        raise CheckpointError(f"{folder}: is not finished; --mode=crossval goes on with it")
    seeds = flags.options.get("seeds")
    with owned(folder):
        train.require_own(config, folder, force=False)
        _require_of_folds(config, folder, folds)
        use_cache(folder)
        own, rows = settings(config, folds)
        train.require_own(own, place, force="config" in flags.force)  # before its cuts are replaced
        place.mkdir(mode=0o700, exist_ok=True)
        if processes.first():
            told = _told(config, own, folder, rows)
            if not refitted.says(place, told):
                refitted.write(place, told, _out_of_fold(config, folder))
                _pass_on(place)
        _train(own, place, flags, ensemble.numbers(seeds) if seeds else None)


def _require_of_folds(config, folder: Path, folds: Sequence[Path]) -> None:
    """Raises CheckpointError if the scores out of fold are of an earlier state of the folds.

    A cross-validation that goes on with other settings, and is stopped, leaves those of before.
    """
    found = json.loads(seal.text_of(folder, RESULTS, damage.again(RESULTS)))
    goes_on = "--mode=crossval goes on with it"
    if not beside.is_of(found, folder, folds):
        raise CheckpointError(f"{folder / RESULTS}: is not of the folds as they are now; {goes_on}")
    for place in folds:
        both = configs.stored(place / "config.json"), config.to_dict()
        changes = configs.diff(*({key: one[key] for key in TRAINED_BY} for one in both))
        changes = [line for line in changes if "(absent)" not in line]  # versions add fields
        if changes:
            raise CheckpointError(f"{place}: is not trained with {changes[0]} yet; {goes_on}")


def settings(
    config: ml_collections.ConfigDict, folds: Sequence[Path]
) -> tuple[ml_collections.ConfigDict, int]:
    """The configuration of a run on all rows of a cross-validation's folds, and their number.

    Builds the data. Raises ConfigError if they are not the rows of the folds.
    """
    module, found = data_sets.find(config.data.name), []
    tested = trained.read(folds[0]).manifest["splits"].values()
    known = sum(split["rows"] for split in tested)
    for which in ("all",) if hasattr(module, "everyone") else ("val", "all"):
        own = _on_all(config, folds, module, which)
        found.append(Store(prepare(own), "train").manifest["splits"]["train"]["rows"])
        if found[-1] == known:
            return own, known
    raise ConfigError(
        f"--mode=refit: {found[-1]} rows would be trained on, but the folds have {known}; were they"
        " trained on other raw files?"
    )


def _on_all(config, folds: Sequence[Path], module, which: str) -> ml_collections.ConfigDict:
    """The cross-validation's configuration with `data.also_train`, and its steps."""
    own = config.copy_and_resolve_references()
    options = held_in.options_for(module, config.data.options.to_dict(), which)
    with own.unlocked(), own.ignore_type():
        own.data.options, own.data.leave_out = ml_collections.ConfigDict(options), ""
        own.data.seed, own.data.calibration, own.data.also_train = split_seed(config), 0.0, which
        if config.train.choose == "best":
            own.train.until = round(statistics.median(best_steps(folds)))
        own.train.choose, own.train.eval_every = "last", own.train.steps
    return own.lock()


def best_steps(folds: Sequence[Path]) -> list[int]:
    """The step of each fold that was evaluated."""
    return [*map(verify.best_step, folds)]


def _told(config, own, folder: Path, rows: int) -> dict[str, Any]:
    """What `refit.json` says beside the cuts."""
    found = json.loads(seal.text_of(folder, RESULTS, damage.again(RESULTS)))
    expected = {
        task: {name: words.scores(found, task).get(name) for name in card["headline"]}
        for task, card in found["tasks"].items()
    }
    steps = best_steps(members.folders(folder))
    return {
        "folds": len(steps),
        "parameters": beside.parameters(folder),
        "steps": steps,
        "choose": config.train.choose,
        "step": own.train.until or own.train.steps,
        "rows": rows,
        "expected": {t: {n: e for n, e in card.items() if e} for t, card in expected.items()},
    }


def _out_of_fold(config: ml_collections.ConfigDict, folder: Path) -> refitted.Cuts:
    """Thresholds and cuts by what every fold says of its own test rows."""
    mesh, compiled, found, spec = make_mesh(config), members.Programs(), [], None
    for place, own in members.configs_of(config, folder):
        store = Store(prepare(own), "test")
        spec, rows = store.spec, own.eval.batch_size
        model = make_model(own, store.folder, spec, empty(spec, rows), mesh)
        params = eval_mode.best_params(own, model, place, say=_silent)
        whole = np.ones((1, len(spec.modalities)), bool)
        with context(mesh):
            predict = functools.partial(compiled.of(own, model), params)
            found.append(eval_mode.sweep(own, model, store, predict, whole))
    pooled = averages.beside(found)
    assert spec is not None, "a cross-validation has folds"
    return results.thresholds(pooled, spec), operating.choose(pooled, spec)


def _train(own, place: Path, flags: Flags, seeds: Sequence[int] | None) -> None:
    """One run in `place`, or one per seed, averaged."""
    fit = functools.partial(train.run, finish=functools.partial(_finish, place))
    if (place / members.FILE).exists() != (seeds is not None) and any(
        (place / name).exists() for name in (members.FILE, "checkpoints")
    ):
        there = "an ensemble" if seeds is None else "one model"
        raise ConfigError(f"{place}: holds {there} already; move it away to train it anew")
    if seeds is None:
        fit(own, place, flags)
        return
    ensemble.members_of(own, place, seeds, flags, fit=fit)
    if own.data.also_train == "all":
        _expect(place, place)
    else:
        eval_mode.run(own, place, flags)


def _finish(root: Path, config, setup: Setup, place: Path, predict) -> None:
    """What follows training: a test where there is one, else the scores out of fold."""
    if config.data.also_train != "all":
        eval_mode.finish(config, setup, place, predict)
    elif processes.first():
        _expect(root, place)


def _pass_on(root: Path) -> None:
    """Gives members of a refit of several seeds what the whole says anew, as `_expect` does."""
    for path in root.glob(f"member_*/{refitted.FILE}"):
        seal.write(path.parent, refitted.FILE, refitted.text(root))
        if (path.parent / RESULTS).is_file():
            text = seal.text_of(root.parent, RESULTS, damage.again(RESULTS))
            seal.write(path.parent, RESULTS, text)


def _expect(root: Path, place: Path) -> None:
    """Puts the cross-validation's results into `place`, which has none of its own."""
    text = seal.text_of(root.parent, RESULTS, damage.again(RESULTS))
    (place / "results").mkdir(mode=0o700, exist_ok=True)
    seal.write(place, RESULTS, text)
    if root != place:
        seal.write(place, refitted.FILE, refitted.text(root))
    step = verify.newest_note(place / "checkpoints/best").get("step")
    said = f"step {step}, " if step else ""
    print(f"refit    {said}all rows; what to expect of it are the scores out of fold:", flush=True)
    words.print_table(json.loads(text))
    report.build(place)


def _silent(line: str) -> None:
    """Says nothing."""
