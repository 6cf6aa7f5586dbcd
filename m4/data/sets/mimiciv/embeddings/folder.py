"""A folder of vectors: written in parts that outlive an interruption, read by identifier.

vectors.npy   float16 [n, d]
ids.npy       int64 [n], sorted numbers of the identifiers
embed.json    encoder, revision, pooling and digests; written last
"""

import dataclasses
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from m4 import atomic, seal
from m4.data import foreign
from m4.data.cohort import patient_number, sha256
from m4.data.sets.mimiciv.embeddings.backends import Encode, Plan
from m4.errors import ConfigError, DataError

PART = 1024
FILE = "embed.json"
PARTS = ".parts"
Item = tuple[str, Callable[[], Any]]  # identifier, and what loads it


def _begun(note: Path) -> Any:
    """What an earlier start wrote, None if that is damaged."""
    try:
        return seal.load(note)
    except (OSError, ValueError):
        return None


def write(out: Path, plan: Plan, stream: Iterator[Item], encode: Encode, batch_size: int) -> int:
    """Encode the items into `out`, going on where an earlier start stopped.

    Raises ConfigError if `out` is complete or was begun with another plan.
    """
    if (out / FILE).exists():
        raise ConfigError(f"embed: {out} is complete; choose another folder")
    parts, begun = out / PARTS, dataclasses.asdict(plan)
    for folder in (out, parts):  # one that is there keeps its mode
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    note = parts / "plan.json"
    if note.exists() and _begun(note) != begun:
        raise ConfigError(f"embed: {out} was begun with other options, which are in {note}")
    atomic.write(note, json.dumps(begun))
    number, began = 0, time.monotonic()
    while chunk := [*itertools.islice(stream, PART)]:
        path = parts / f"{number:06d}.npz"
        if not path.exists():
            ids = np.array([patient_number(identifier) for identifier, _ in chunk], np.int64)
            batches = [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
            vectors = np.concatenate([encode([load() for _, load in batch]) for batch in batches])
            wrong = int((~(np.abs(vectors) <= np.finfo(np.float16).max)).sum())
            if wrong:
                raise DataError(f"embed: the encoder gave {wrong} numbers beyond float16")
            with atomic.replaced(path) as partial, open(partial, "wb") as file:
                np.savez(file, ids=ids, vectors=vectors.astype(np.float16))
        number += 1
        speed = PART * number / (time.monotonic() - began)
        print(
            f"embed {plan.what}: {PART * (number - 1) + len(chunk):,} items, {speed:,.0f}/s",
            flush=True,
        )
    paths = sorted(parts.glob("*.npz"))[:number]
    if not paths:
        raise DataError(f"embed: no {plan.what} of a patient with an ICU stay")
    ids, vectors = _join(paths, out)
    facts = {**begun, "count": len(ids), "width": int(vectors.shape[1])}
    facts["sha256"] = sha256(out / "vectors.npy")
    atomic.write(out / FILE, json.dumps(facts, indent=1) + "\n")  # last: now it is complete
    shutil.rmtree(parts)
    return len(ids)


def _join(paths: list[Path], out: Path) -> tuple[np.ndarray, np.ndarray]:
    """All parts as ids.npy and vectors.npy in the order of the ids, part by part in memory."""
    every = [_part(path, "ids") for path in paths]
    ids = np.unique(np.concatenate(every))
    shape = (len(ids), _part(paths[0], "vectors").shape[1])
    with atomic.replaced(out / "vectors.npy") as partial:
        vectors = np.lib.format.open_memmap(partial, "w+", np.float16, shape)
        with open(partial, "r+b") as file:  # a disk that is full would end the process otherwise
            os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)
        for path, own in reversed([*zip(paths, every, strict=True)]):  # the first of an id stays
            vectors[np.searchsorted(ids, own[::-1])] = _part(path, "vectors")[::-1]
        vectors.flush()
    with atomic.replaced(out / "ids.npy") as partial, open(partial, "wb") as file:
        np.save(file, ids)
    return ids, vectors


def _part(path: Path, name: str) -> np.ndarray:
    found = foreign.members(path, (name,))
    if name not in found:
        raise DataError(f"{path}: has no array {name}; delete it to have it made again")
    return found[name]


def facts_of(embeddings: dict[str, str]) -> dict[str, dict]:
    """What `embed.json` says of a modality's vectors; their digests belong to the sources."""
    facts = {}
    for name, folder in embeddings.items():
        path = Path(folder).expanduser() / FILE
        try:
            facts[name] = seal.load(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: no embeddings ({error})") from None
    return facts


class Embeddings:
    """Vectors by identifier, from a folder with ids.npy (sorted numbers) and vectors.npy."""

    def __init__(self, folder):
        folder = Path(folder).expanduser()
        try:
            ids = foreign.array(folder / "ids.npy")
            self.ids = np.array(foreign.numbers(ids, np.int64, where=f"{folder / 'ids.npy'}"))
            self.vectors = foreign.array(folder / "vectors.npy")
        except DataError as error:
            raise DataError(f"{folder}: no embeddings ({error})") from None
        if self.vectors.shape[:1] != self.ids.shape or (self.ids[1:] <= self.ids[:-1]).any():
            raise DataError(f"{folder}: ids.npy must be sorted and as long as vectors.npy")
        self._where = f"{folder / 'vectors.npy'}"

    def __call__(self, identifiers) -> tuple[np.ndarray, np.ndarray]:
        """Positions of those that are there among `identifiers`, and their vectors."""
        wanted = np.array([patient_number(str(i)) for i in identifiers], np.int64)
        at = np.searchsorted(self.ids, wanted).clip(max=max(len(self.ids) - 1, 0))
        there = np.flatnonzero(self.ids[at] == wanted) if len(self.ids) else np.zeros(0, int)
        return there, foreign.numbers(self.vectors[at[there]], np.float16, where=self._where)
