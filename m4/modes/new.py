"""`--on=DIR`: predictions of new raw files of the kind that the model was trained on.

The work directory is all that is needed. Every prediction point of DIR is scored by the best step;
the new data are transformed with what was fitted on the training split, and fit nothing. Written
are, as for the test split, `predictions/<name>.parquet` and `predictions/meds/<name>/`, with the
name of DIR, and

    predictions/<name>.json   what was read, counted and dropped, by which step of which model
    results/<name>.json       scores, if any label is known

The records are kept in `.new/` of the work directory only while the command runs.
"""

import contextlib
import dataclasses
import functools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m4 import atomic, cells
from m4.config import Flags
from m4.data import apply, index
from m4.data import manifest as manifests
from m4.data.loader import eval_batches
from m4.data.store import Store
from m4.errors import DataError
from m4.eval import results, subsets
from m4.eval.predictions import Predictions
from m4.eval.report import words
from m4.modes import eval as eval_mode
from m4.modes import predict as predict_mode
from m4.run import programs, trained
from m4.run.devices import make_mesh
from m4.run.setup import Model, context, make_model
from m4.run.workspace import owned, use_cache
from m4.specs import DataSpec
from m4.train import processes

SCRATCH = ".new"
TAKEN = ("train", "val", "test", "crossval")  # names that belong to the data trained on


def run(config: ml_collections.ConfigDict, folder: Path, flags: Flags) -> None:
    """Writes the predictions. See `m4.main`."""
    new = Path(flags.on or "")
    name = name_of(new)
    with owned(folder):
        use_cache(folder)
        with _records(config, folder, new) as data:
            store = Store(data, apply.SPLIT)
            model, found = _predict(config, folder, store, data)
            if processes.first():
                keys = index.read(data, apply.SPLIT)
                predict_mode.write(folder, name, found, model.spec, keys)
                _count(folder, name, store.manifest, len(found.uid))
                if any(mask.any() for mask in found.label_mask.values()):
                    _warn_of_trained(config, store.manifest, keys)
                    _score(config, folder, name, found, model.spec)
                else:
                    print("no labels, no scores")


def name_of(new: Path) -> str:
    """What the files are called: the folder's name, never that of a split."""
    name = re.sub(r"[^\w.-]", "_", new.resolve().name).strip(".") or "new"
    return f"{name}-new" if name in TAKEN else name


@contextlib.contextmanager
def _records(config: ml_collections.ConfigDict, folder: Path, new: Path) -> Iterator[Path]:
    """The folder of the new data's records, which is removed afterwards.

    It is called as that of the training data: to the checkpoints it is the same data set.
    """
    remembered = trained.read(folder)
    target = folder / SCRATCH / remembered.manifest["fingerprint"]
    try:
        if processes.first():
            shutil.rmtree(folder / SCRATCH, ignore_errors=True)  # of a killed run
            target.mkdir(mode=0o700, parents=True)
            module = trained.module_of(config)
            manifest = apply.write(target, new, module, remembered, progress=_progress)
            print("joining", *manifest["joining"], sep="\n")
            print("cohort", *manifests.flow_lines(manifest), sep="\n", flush=True)
            for line in apply.warnings(manifest, remembered):
                print(f"warning  {line}", flush=True)
            if {*manifest["splits"][apply.SPLIT]["patterns"]} == {"0"}:
                raise DataError(f"{new}: no record has anything to predict from")
        processes.barrier("new records")
        yield target
        processes.barrier("new records read")
    finally:
        if processes.first():
            shutil.rmtree(folder / SCRATCH, ignore_errors=True)


def _progress(split: str, rows: int) -> None:
    print(f"reading {split}: {rows} records", flush=True)


def _predict(
    config: ml_collections.ConfigDict, folder: Path, store: Store, data: Path
) -> tuple[Model, Predictions]:
    mesh = make_mesh(config)
    first = next(eval_batches(store, config.eval.batch_size))
    model = make_model(config, data, store.spec, first, mesh)
    params = eval_mode.best_params(config, model, folder)
    whole = np.ones((1, len(model.spec.modalities)), bool)
    with context(mesh):
        predict = functools.partial(programs.compile_predict(model, config.eval.batch_size), params)
        return model, eval_mode.sweep(config, model, store, predict, whole)


def _count(folder: Path, name: str, manifest: dict[str, Any], rows: int) -> None:
    """Says which points have no row, and writes down what was read."""
    new = manifest["splits"][apply.SPLIT]
    dropped = new["rows"] - rows
    if dropped:
        count = cells.count(dropped, manifests.SMALLEST)
        print(f"no row for {count} points with nothing to predict from")
    document = {
        "trained_on": {k: manifest[k] for k in ("name", "version", "fingerprint")},
        "sources": manifest["sources"],
        "flow": [*manifest["flow"], ["points with nothing to predict from", dropped]],
        "points": new["rows"],
        "predicted": rows,
        "present": new["present"],
        "features": manifest["features"][apply.SPLIT],
        "joining": manifest["joining"],
    }
    path = folder / "predictions" / f"{name}.json"
    atomic.write(path, json.dumps(document, indent=1) + "\n")


def _warn_of_trained(config, manifest: dict[str, Any], keys: pa.Table) -> None:
    """Says how many records are of training subjects, if those can still be looked up."""
    old = index.read(trained.built(config, manifest["fingerprint"]), "train")
    if old is not None:
        known = pc.unique(old["subject_id"].cast(pa.string()))
        again = pc.sum(pc.is_in(keys["subject_id"].cast(pa.string()), value_set=known)).as_py()
        if again:
            count = cells.count(again, manifests.SMALLEST)
            print(
                f"warning  {count} of {len(keys):,} records have the identifier of a training"
                " subject: if it is the same person, scores flatter the model"
            )


def _score(config, folder: Path, name: str, found: Predictions, spec: DataSpec) -> None:
    """Results like those of the test split, of the tasks of which labels are known."""
    known = {
        task: values for task, values in found.prediction.items() if found.label_mask[task].any()
    }
    full = subsets.Subset("full", "full", (True,) * len(spec.modalities))
    document = results.compose(
        dataclasses.replace(found, prediction=known),
        spec,
        [full],
        split=name,
        draws=config.eval.bootstrap,
        seed=config.seed,
        min_patients=config.eval.min_patients,
        thresholds=_thresholds(folder, spec),
    )
    print(f"scores   {results.write(document, folder)}")
    words.print_table(document)


def _thresholds(folder: Path, spec: DataSpec) -> dict[str, np.ndarray]:
    """The cuts chosen on the validation split, as far as the test split's results tell them."""
    try:
        cards = json.loads((folder / "results/test.json").read_text())["tasks"]
        known = [task for task in spec.tasks if task.name in cards]
        cuts = {task: np.array(cards[task.name]["threshold"], float) for task in known}
    except (OSError, ValueError, TypeError, LookupError):
        return {}
    return {t.name: c for t, c in cuts.items() if c.shape == (t.dim,) and np.isfinite(c).all()}
