"""Bits flipped in a built data set: its rows must come back as they were, or not at all.

Survived: reading every row ended in an error for people, or gave every row bit for bit. Rows are
read as records and as mapped files; each kind of file is hit as often as any other.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from m4.data import build
from m4.data.manifest import FILE, RECORDS
from m4.data.store import Store
from m4.errors import UserError
from tests.faults.flips import flip
from tests.faults.harness import Bench, Outcome

NAME = "tests.faults.faulty"  # every kind of modality and task, and no fault
SPLIT = "train"


def bits(bench: Bench) -> Outcome:
    """One bit of one file."""
    rng = random.Random(bench.seed)
    folder = build.prepare(NAME, "", bench.work / "built")
    right = [*_read(folder)]
    kinds = _kinds(folder)
    count, refused, bad = bench.number(60, 1000), 0, []
    for number in range(count):
        path = rng.choice(kinds[number % len(kinds)])
        before = path.read_bytes()
        flip(path, rng)
        try:
            if [*_read(folder)] != right:
                bad.append(f"wrong rows from {path.name}")
        except UserError:
            refused += 1
        except Exception as error:  # noqa: BLE001 (whatever a damaged file ends in)
            bad.append(f"{type(error).__name__} from {path.name}")
        path.write_bytes(before)
    harmless = count - refused - len(bad)
    note = f"{refused} refused, {harmless} harmless"
    note += f"; lost: {', '.join(sorted({*bad}))}" if bad else ""
    return Outcome(count, count - len(bad), len(bad), note)


def _read(folder: Path) -> Iterator[dict[str, bytes]]:
    for limit in (2**30, 0):
        store = Store(folder, SPLIT, ram_limit=limit)
        rows = store.read(np.arange(len(store)))
        yield {key: array.tobytes() for key, array in rows.items()}


def _kinds(folder: Path) -> list[list[Path]]:
    """Files by kind, of those that a run reads; `_read` has written the mapped rows."""
    records = folder / "records"
    return [
        [folder / FILE],
        [*records.rglob(f"*-{SPLIT}{RECORDS}*")],
        sorted(records.rglob("*.json")),  # what a record looks like
        sorted((folder / "rows").rglob("*.npy")),
    ]
