"""A folder of vectors: written in parts that outlive an interruption, read by identifier.

vectors.npy   float16 [n, d]
ids.npy       int64 [n], sorted numbers of the identifiers
embed.json    encoder, revision, pooling and digests; written last
"""

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from m4 import atomic
from m4.data.cohort import patient_number, sha256
from m4.data.sets.mimiciv.embeddings.backends import Encode, Plan
from m4.errors import ConfigError, DataError

PART = 1024
FILE = "embed.json"
PARTS = ".parts"
Item = tuple[str, Callable[[], Any]]  # identifier, and what loads it


def write(out: Path, plan: Plan, stream: Iterator[Item], encode: Encode, batch_size: int) -> int:
    """Encode the items into `out`, going on where an earlier start stopped.

    Raises ConfigError if `out` is complete or was begun with another plan.
    """
    if (out / FILE).exists():
        raise ConfigError(f"embed: {out} is complete; choose another folder")
    parts, begun = out / PARTS, dataclasses.asdict(plan)
    parts.mkdir(parents=True, exist_ok=True, mode=0o700)
    out.chmod(0o700)
    note = parts / "plan.json"
    if note.exists() and json.loads(note.read_text()) != begun:
        raise ConfigError(f"embed: {out} was begun with other options: {note.read_text()}")
    note.write_text(json.dumps(begun))
    number = 0
    while chunk := [*itertools.islice(stream, PART)]:
        path = parts / f"{number:06d}.npz"
        if not path.exists():
            ids = [patient_number(identifier) for identifier, _ in chunk]
            batches = [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
            vectors = [encode([load() for _, load in batch]) for batch in batches]
            _save(path, ids=np.array(ids, np.int64), vectors=_finite(np.concatenate(vectors)))
        number += 1
    paths = sorted(parts.glob("*.npz"))[:number]
    if not paths:
        raise DataError(f"embed: no {plan.what} of a patient with an ICU stay")
    ids, vectors = _join(paths, out)
    facts = {**begun, "count": len(ids), "width": int(vectors.shape[1])}
    facts["sha256"] = sha256(out / "vectors.npy")
    (out / FILE).write_text(json.dumps(facts, indent=1) + "\n")  # last: now it is complete
    shutil.rmtree(parts)
    return len(ids)


def _join(paths: list[Path], out: Path) -> tuple[np.ndarray, np.ndarray]:
    """All parts as ids.npy and vectors.npy in the order of the ids, part by part in memory."""
    every = np.concatenate([_part(path)["ids"] for path in paths])
    ids, first = np.unique(every, return_index=True)
    target = np.full(len(every), -1)
    target[first] = np.arange(len(ids))
    width = _part(paths[0])["vectors"].shape[1]
    shape = (len(ids), width)
    vectors = np.lib.format.open_memmap(out / "vectors.npy", "w+", np.float16, shape)
    start = 0
    for path in paths:
        part = _part(path)["vectors"]
        place = target[start : start + len(part)]
        vectors[place[place >= 0]] = part[place >= 0]
        start += len(part)
    vectors.flush()
    np.save(out / "ids.npy", ids)
    return ids, vectors


def _part(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _finite(vectors: np.ndarray) -> np.ndarray:
    wrong = ~(np.abs(vectors) <= np.finfo(np.float16).max)
    if wrong.any():
        raise DataError(f"embed: the encoder gave {int(wrong.sum())} numbers beyond float16")
    return vectors.astype(np.float16)


def _save(path: Path, **arrays) -> None:
    with atomic.replaced(path) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)


def facts_of(embeddings: dict[str, str]) -> dict[str, dict]:
    """What `embed.json` says of a modality's vectors; their digests belong to the sources."""
    facts = {}
    for name, folder in embeddings.items():
        path = Path(folder).expanduser() / FILE
        try:
            facts[name] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: no embeddings ({error})") from None
    return facts


class Embeddings:
    """Vectors by identifier, from a folder with ids.npy (sorted numbers) and vectors.npy."""

    def __init__(self, folder):
        folder = Path(folder).expanduser()
        try:
            self.ids = np.load(folder / "ids.npy", allow_pickle=False)
            self.vectors = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{folder}: no embeddings ({error})") from None
        if self.vectors.shape[:1] != self.ids.shape or (np.diff(self.ids) <= 0).any():
            raise DataError(f"{folder}: ids.npy must be sorted and as long as vectors.npy")

    def __call__(self, identifiers) -> tuple[np.ndarray, np.ndarray]:
        """Positions of those that are there among `identifiers`, and their vectors."""
        wanted = np.array([patient_number(str(i)) for i in identifiers], np.int64)
        at = np.searchsorted(self.ids, wanted).clip(max=max(len(self.ids) - 1, 0))
        there = np.flatnonzero(self.ids[at] == wanted) if len(self.ids) else np.zeros(0, int)
        return there, np.asarray(self.vectors[at[there]], np.float16)
