"""`--mode=crossval`: one run per fold of patients, evaluated out of fold, all folds pooled.

Every fold is an ordinary run in `workdir/fold_<k>`; the same command resumes where it was stopped.
Each patient is tested once, by the model that never saw him. What judges each prediction by itself
(Brier score, calibration, errors) is computed on the pooled ones. What ranks patients (AUROC, C) is
computed within each fold, because scores of different networks are not comparable, and averaged
with the folds' numbers of events as weights. The bootstrap draws patients within folds;
references are fitted on the same folds. The data set needs the options `fold` and `num_folds`.

With `data.leave_out=site`, a group column, folds are its categories instead of chance: each site is
tested by a model of the others (`m4.data.leave_out`).
"""

import shutil
from pathlib import Path

import ml_collections
import numpy as np
import pyarrow as pa

from m4.config import Flags, code
from m4.data import index, leave_out
from m4.data.groups import UNKNOWN
from m4.errors import ConfigError
from m4.eval import table_one
from m4.eval.predictions import Predictions
from m4.eval.subsets import Subset
from m4.modes import eval as eval_mode
from m4.modes import train
from m4.modes.eval import Evaluation
from m4.run import meds_predictions as meds
from m4.run import members, selection
from m4.run.workspace import open_incomplete, open_split, owned, prepare
from m4.train import processes

NUM_FOLDS = 5
FOLD_DRAWS = 100  # of a fold's own report; the pooled one has all that were asked for


def run(config: ml_collections.ConfigDict, folder: Path, flags: Flags) -> None:
    """Trains and evaluates every fold, then all of them together. See `m4.main`."""
    options = code.data_options(config.data.name)
    if options is not None and not {"fold", "num_folds"} <= {*options}:
        raise ConfigError(
            f"data.name={config.data.name!r}: --mode=crossval needs a data set with the options"
            " fold and num_folds"
        )
    _require_room(folder)
    number = config.data.options.get("num_folds") or NUM_FOLDS
    with owned(folder):
        if processes.first():
            train.claim(config, folder, force="config" in flags.force)
        parts, keys = [], []
        folds = _folds(config, number)
        number = len(folds)
        if config.data.leave_out and (other := folder / f"fold_{number}").is_dir():
            raise ConfigError(
                f"{other}: is of a cross-validation of more folds than the {number} that there are"
                " now; choose another --workdir, or move it away"
            )
        built = [prepare(own) for own in folds]
        for k, own in enumerate(folds):  # all of them before the first is trained
            val = open_incomplete(own, built[k], "val")
            selection.require_defined(own, val, f"the validation split of fold {k}")
        for k, own in enumerate(folds):
            print(f"fold {k} of {number}", flush=True)
            parts.append(train.run(own, folder / f"fold_{k}", flags))
            keys.append(index.read(built[k], "test"))
        if not processes.first():
            return
        pooled = pool(parts)
        for name in ("run.json", "data.json"):
            shutil.copyfile(folder / "fold_0" / name, folder / name)
        spec = open_split(built[-1], "test", 1).spec
        print(f"{number} folds pooled", flush=True)
        places = [folder / f"fold_{k}" for k in range(number)]
        eval_mode.publish(config, spec, folder, pooled, split="crossval", places=places)
        if all(table is not None for table in keys):
            meds.write(folder, "crossval", pooled.found, spec, pa.concat_tables(keys))
            print(f"MEDS     {folder / meds.FOLDER / 'crossval'}")


def _require_room(folder: Path) -> None:
    """Raises ConfigError for a work directory that holds one run, or an ensemble."""
    if (folder / "checkpoints").is_dir() or (folder / members.FILE).exists():
        raise ConfigError(f"--workdir={folder}: holds a run; choose another for the folds")


def pool(parts: list[Evaluation]) -> Evaluation:
    """The folds' evaluations as one; only subsets that every fold has, no thresholds."""
    kept: list[Subset] = [
        subset
        for subset in parts[0].chosen
        if all(subset.keep in [s.keep for s in part.chosen] for part in parts)
    ]
    start = np.cumsum([0, *(part.num_rows for part in parts)])
    places = [[part.found.index(np.array(subset.keep)) for subset in kept] for part in parts]

    found = [part.found for part in parts]
    references, each = None, [part.references for part in parts if part.references is not None]
    if len(each) == len(parts):
        references = {
            name: {
                task: np.concatenate([reference[name][task] for reference in each])
                for task in first
                if all(task in reference[name] for reference in each)
            }
            for name, first in each[0].items()
        }
    aside = [part.calibration for part in parts if part.calibration is not None]
    return Evaluation(
        _joined(found, places, start),
        kept,
        {},
        references,
        int(start[-1]),
        {},
        {"all folds": _values([part.values["test"] for part in parts])} if parts[0].values else {},
        _joined(aside, places, np.zeros(len(aside), int)) if len(aside) == len(parts) else None,
    )


def _joined(found: list[Predictions], places: list[list[int]], start: np.ndarray) -> Predictions:
    """Predictions of each fold, of its subsets at `places`, one after the other."""

    def joined(pieces, axis=0):
        return np.concatenate(pieces, axis=axis)

    both, tasks = [*zip(found, places, strict=True)], [*found[0].prediction]
    tasks = [name for name in tasks if all(name in f.prediction for f in found)]
    return Predictions(
        subsets=found[0].subsets[places[0]],
        uid=joined([f.uid + first for f, first in zip(found, start, strict=False)]),
        patient=joined([f.patient for f in found]),
        present=joined([f.present for f in found]),
        prediction={t: joined([f.prediction[t][p] for f, p in both], axis=1) for t in tasks},
        label={task: joined([f.label[task] for f in found]) for task in tasks},
        label_mask={task: joined([f.label_mask[task] for f in found]) for task in tasks},
        counted=joined([f.counted[p] for f, p in both], axis=1),
        routing={},  # experts of different folds have nothing to do with each other
        fold=np.repeat(np.arange(len(found)), [len(f.uid) for f in found]),
        groups={name: joined([f.groups[name] for f in found]) for name in found[0].groups},
    )


def _values(parts: list[table_one.Values]) -> table_one.Values:
    """The test rows of every fold, one below the other."""
    names, values_NF, patient_N, groups = zip(*parts, strict=True)
    shared = {
        name: np.concatenate([own[name] for own in groups])
        for name in groups[0]
        if all(name in own for own in groups)
    }
    return table_one.Values(names[0], np.concatenate(values_NF), np.concatenate(patient_N), shared)


def _folds(config: ml_collections.ConfigDict, number: int) -> list[ml_collections.ConfigDict]:
    """The configuration of every fold.

    Raises ConfigError for a column to leave out of which fewer than two categories have
    `eval.min_patients` patients. People of the others, and of none, train in every fold.
    """
    column, category = leave_out.parse(config.data.leave_out)
    if category:
        raise ConfigError(
            f"data.leave_out={config.data.leave_out!r}: --mode=crossval leaves out every {column}"
            f" in turn; give data.leave_out={column}"
        )
    if not column:
        return [_fold(config, k, number) for k in range(number)]
    base = prepare(_fold(config, 0, number))
    patients: dict[str, set[int]] = {}
    for split in leave_out.SPLITS:
        store = open_split(base, split, 1)
        both = zip(store.groups()[column], store.columns(["patient"])["patient"], strict=True)
        for name, patient in both:
            patients.setdefault(str(name), set()).add(int(patient))
    least = config.eval.min_patients
    sites = sorted(n for n, found in patients.items() if n != UNKNOWN and len(found) >= least)
    if len(sites) < 2:
        raise ConfigError(
            f"data.leave_out={column!r}: fewer than two of its categories have {least} patients"
        )
    print(f"folds    {column}: {', '.join(sites)}")
    return [_fold(config, 0, number, left=f"{column}={name}") for name in sites]


def _fold(
    config: ml_collections.ConfigDict, fold: int, number: int, *, left: str = ""
) -> ml_collections.ConfigDict:
    own = config.copy_and_resolve_references()
    with own.unlocked(), own.ignore_type():
        own.data.options.fold, own.data.options.num_folds = fold, number
        own.data.leave_out = left
        own.eval.bootstrap = min(own.eval.bootstrap, FOLD_DRAWS)
    return own.lock()
