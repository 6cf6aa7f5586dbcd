"""`--on=DIR`: predictions of new raw files of the kind that the model was trained on.

Of any data set (`m4.data.apply`), and the work directory is all that is needed. Every prediction
point of DIR is scored by the best step; the new data are transformed with what was fitted on the
training split, and fit nothing. Written are, as for the test split, `predictions/<name>.parquet`
and `predictions/meds/<name>/`, with the name of DIR (and a mark of its path where another folder
of that name was predicted before), and

    predictions/<name>-by-subject.csv   a row per record, with the identifiers of DIR and the labels
    predictions/<name>.json   what was read, counted and dropped, by which step of which model
    results/<name>.json       scores, if any label is known, beside those of references that are
                              fitted on the training rows, while these are there

Records of a data set whose examples have no identifiers go by their row and by the number of the
patient that the data set gives them.

The records are kept in `.new/` of the work directory only while the command runs.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_collections
import pyarrow as pa

from m4 import cells, seal
from m4.api import loaded
from m4.config import Flags
from m4.data import apply, index
from m4.data import manifest as manifests
from m4.data.store import Store
from m4.eval import results
from m4.eval.predictions import Predictions
from m4.eval.report import words
from m4.modes import predict as predict_mode
from m4.run import beside, members, trained
from m4.run import own_predictions as own
from m4.run.workspace import NEW, owned, use_cache
from m4.train import early, processes

LONGEST = 120  # bytes of a name
TAKEN = ("train", "val", "test", "calibration", "crossval")  # of the data trained on


def run(config: ml_collections.ConfigDict, folder: Path, flags: Flags) -> None:
    """Writes the predictions. See `m4.main`."""
    new = Path(flags.on or "")
    name = free_name(folder, new)
    model = loaded.Model(config, folder, say=functools.partial(print, flush=True))
    with owned(folder):
        use_cache(folder)
        with _records(model, folder, new) as asked:
            found = model.answer(asked)
            if processes.first():
                known = beside.of(folder, config, model.spec)
                more = known.columns(found)
                predict_mode.write(folder, name, found, model.spec, asked.keys, more)
                if asked.keys is None:
                    path = own.write(folder, name, found, model.spec, _numbers(asked.store), more)
                    print(f"by row and patient, with labels: {path}")
                for line in known.said(more):
                    print(line)
                _count(folder, new, name, asked.manifest, len(found.uid))
                if line := members.seen_again(config, folder, asked.keys):
                    print(f"warning  {line}")
                _score(model, folder, name, found, asked)


def _numbers(store: Store) -> pa.Table:
    """What tells records apart that have no identifiers."""
    patient_N = store.columns(["patient"])["patient"]
    return pa.table({"row": pa.array(range(len(store)), pa.int64()), "patient": patient_N})


def name_of(new: Path) -> str:
    """What the files are called: the folder's name, never that of a split."""
    name = re.sub(r"[^\w.-]", "_", new.resolve().name).strip(".") or "new"
    if len(name.encode()) > LONGEST:  # a folder's name may be longer than a file's with an ending
        name = f"{name.encode()[:LONGEST].decode(errors='ignore')}-{_place(new)[:8]}"
    return f"{name}-new" if name in TAKEN else name


def free_name(folder: Path, new: Path) -> str:
    """`name_of`, with a mark of the path if that name is taken by another folder's predictions."""
    name = name_of(new)
    with contextlib.suppress(OSError, ValueError, AttributeError):
        known = seal.load(folder / "predictions" / f"{name}.json")
        if known.get("place", (own := _place(new))) != own:
            return f"{name}-{own[:8]}"
    return name


def _place(new: Path) -> str:
    """What tells folders of one name apart, and says nothing of where they are."""
    return hashlib.sha256(os.fsencode(new.resolve())).hexdigest()


@contextlib.contextmanager
def _records(model: loaded.Model, folder: Path, new: Path) -> Iterator[loaded.Asked]:
    """The new data's records, whose folder is removed afterwards; all processes see the same."""
    place = folder / NEW / trained.read(folder).manifest["fingerprint"]
    first = processes.first()

    def remove() -> None:
        if first:
            shutil.rmtree(folder / NEW, ignore_errors=True)

    try:
        with early.farewell(remove):
            if first:
                place.mkdir(mode=0o700, parents=True)
                model.read(new, place)
            processes.barrier("new records")
            yield loaded.Asked(place, Store(place, apply.SPLIT), index.read(place, apply.SPLIT))
            processes.barrier("new records read")
    finally:
        remove()


def _count(folder: Path, new: Path, name: str, manifest: dict[str, Any], rows: int) -> None:
    """Says which points have no row, and writes down what was read."""
    read = manifest["splits"][apply.SPLIT]
    dropped = read["rows"] - rows
    if dropped:
        count = cells.count(dropped, manifests.SMALLEST)
        print(f"no row for {count} points with nothing to predict from")
    document = {
        "trained_on": {k: manifest[k] for k in ("name", "version", "fingerprint")},
        "place": _place(new),
        "sources": manifest["sources"],
        "flow": [*manifest["flow"], ["points with nothing to predict from", dropped]],
        "points": read["rows"],
        "predicted": rows,
        "present": read["present"],
        "features": manifest["features"][apply.SPLIT],
        "joining": manifest["joining"],
    }
    seal.write(folder, f"predictions/{name}.json", json.dumps(document, indent=1) + "\n")


def _score(
    model: loaded.Model, folder: Path, name: str, found: Predictions, asked: loaded.Asked
) -> None:
    """Results like those of the test split, of the tasks of which labels are known."""
    if not any(mask.any() for mask in found.label_mask.values()):
        print("no labels, no scores")
    elif (document := model.scores(found, name, model.references(asked))) is not None:
        print(f"scores   {results.write(document, folder)}")
        words.print_table(document)
