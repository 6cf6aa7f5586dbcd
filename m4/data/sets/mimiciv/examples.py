"""Event tables -> payloads, in bounded memory.

One pass over each table keeps the events of the cohort inside their stay's window and appends
them to temporary files, one per modality and block of `ROWS` consecutive stays. An example is then
put together from its block's files. Memory follows the block, not the table.

Letters: e events, t rows (distinct times), f features.
"""

import hashlib
import json
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from m4 import atomic
from m4.data import csv_files
from m4.data.sets.mimiciv import benchmark, catalogue, haim_blocks, linked, release, studies
from m4.data.sets.mimiciv.diagnoses import last_distinct
from m4.data.sets.mimiciv.linked import NOTES
from m4.data.sets.mimiciv.selector import EVENT, SOURCES, Selector, measured
from m4.data.sets.mimiciv.stays import Stays
from m4.specs import DataSpec

ROWS = 512


class Examples:
    """Examples of a cohort; event tables are read when the first one is asked for.

    With a `scratch` folder, the events of every table that was read to its end stay there until
    every split has been: a second attempt at a build that was interrupted takes them up again.
    """

    def __init__(
        self,
        root: Path,
        data: DataSpec,
        stays: Stays,
        flow: list[tuple[str, int]],
        *,
        available: str,
        raw_dir: Path,
        embeddings: dict[str, str],
        scratch: Path | None = None,
    ):
        self._root, self._data, self._stays, self._flow = root, data, stays, flow
        self._stored = available == "stored"
        self._raw_dir, self._embeddings, self._scratch = raw_dir, embeddings, scratch
        self._studies = studies.Studies(raw_dir, data, stays, flow, embeddings=embeddings)
        self._folder: Path | None = None
        # blocks of at most ROWS stays of one split
        start = np.searchsorted(stays.split, stays.split)
        block = stays.split * (len(stays) // ROWS + 1) + (np.arange(len(stays)) - start) // ROWS
        _, self._block = np.unique(block, return_inverse=True)

    def split(self, name: str) -> Iterator[dict]:
        """The examples of one split, stay by stay."""
        if self._folder is None:
            self._spill()
        spilled = [m for m in self._data.modality_names if m in SOURCES or m in NOTES]
        rows = np.flatnonzero(self._stays.split == self._stays.splits.index(name))
        for block in np.unique(self._block[rows]):
            events = {m: self._load(m, block) for m in spilled}
            for row in rows[self._block[rows] == block]:
                yield self._example(int(row), events)

    def _spill(self):
        """One pass over each table for all modalities that come from it."""
        if self._scratch:
            folder = self._scratch / self._key()
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        else:
            folder = Path(tempfile.mkdtemp(prefix="m4-mimiciv-"))  # mode 0700
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)  # also at exit
        for path, selectors in self._tables().items():
            done = folder / f"{path.name.partition('.')[0]}.done"
            if not done.exists():
                for selector in selectors:
                    for part in folder.glob(f"{selector.name}-{path.name.partition('.')[0]}-*"):
                        part.unlink()  # of an attempt that was interrupted
                self._read(path, selectors, folder)
                counts = [[s.name, dict(s.counts)] for s in selectors]
                atomic.write(done, json.dumps(counts))
            for name, counts in json.loads(done.read_text()):
                self._flow.extend((f"{name}: {step}", number) for step, number in counts.items())
        self._folder = folder

    def _read(self, path, selectors, folder):
        columns = {name: kind for s in selectors for name, kind in s.columns.items()}
        for batch in csv_files.stream(path, columns):
            for selector in selectors:
                self._append(folder, f"{selector.name}-{path.name.partition('.')[0]}",
                             selector(batch))  # fmt: skip

    def _tables(self) -> dict[Path, list]:
        """File -> what is selected from it."""
        found: dict[Path, list] = {}
        for name in self._data.modality_names:
            for source in SOURCES.get(name, ()):
                path = release.need(self._root, source.table)
                selector = Selector(name, source, self._data, self._stays, stored=self._stored)
                found.setdefault(path, []).append(selector)
            root = linked.find(self._raw_dir, "note") if name in NOTES else None
            if root:
                path = linked.need(root, f"note/{NOTES[name]}")
                selector = linked.Notes(
                    name,
                    path,
                    self._data,
                    self._stays,
                    stored=self._stored,
                    embeddings=self._embeddings,
                )
                found.setdefault(path, []).append(selector)
        return found

    def _key(self) -> str:
        """Of the events: which stays and windows, which modalities, from which files."""
        digest = hashlib.blake2b(digest_size=8)
        digest.update(repr((self._data, self._stored, self._embeddings)).encode())
        for array in (self._stays.life.stay, self._stays.limit, self._stays.split):
            digest.update(np.ascontiguousarray(array).tobytes())
        for path in self._tables():
            status = path.stat()
            digest.update(f"{path}:{status.st_size}:{status.st_mtime_ns}".encode())
        return digest.hexdigest()

    def _append(self, folder, name, events):
        blocks = self._block[events["row"]]
        order = np.argsort(blocks, kind="stable")
        for part in np.split(events[order], np.flatnonzero(np.diff(blocks[order])) + 1):
            if len(part):
                with open(folder / f"{name}-{self._block[part['row'][0]]}", "ab") as handle:
                    part.tofile(handle)

    def _load(self, name, block):
        """Row -> events of one block, in file order."""
        dtype = EVENT if name in SOURCES else linked.dtype(name, self._data)
        assert self._folder is not None  # events are spilled first
        paths = sorted(self._folder.glob(f"{name}-*-{block}"))
        if not paths:
            return {}
        events = np.concatenate([np.fromfile(path, dtype) for path in paths])
        events = events[np.argsort(events["row"], kind="stable")]
        parts = np.split(events, np.flatnonzero(np.diff(events["row"])) + 1)
        return {int(part["row"][0]): part for part in parts}

    def _example(self, row, events):
        inputs = {}
        for name in self._data.modality_names:
            payload = self._payload(name, row, events.get(name, {}).get(row))
            if payload is not None:
                inputs[name] = payload
        targets = {}
        for task, value in self._stays.targets.items():
            targets[task] = None if np.isnan(value[row]).all() else value[row]
        return {"patient": int(self._stays.unit[row]), "inputs": inputs, "targets": targets}

    def _payload(self, name, row, events):
        """What an example holds of a modality, None if nothing."""
        stays = self._stays
        if name == "static":
            return {"values": stays.static[row]}
        if name == "haim_demographics":
            return {"values": np.asarray(stays.demographics)[row]}
        if name == "history":
            return {"values": stays.history[row]} if len(stays.history[row]) else None
        if name in linked.KIND and name not in NOTES:
            return self._studies(name, row)
        if events is None:
            return None
        if name in NOTES:
            return linked.payload(name, events)
        if name == "flexcare":
            hours = min(float(stays.limit[row]), self._data.hours)
            num_bins = self._data.modality(name).length
            return benchmark.grid(events, hours=hours, num_bins=num_bins)
        features = measured(self._data, name)
        if name in catalogue.HAIM:
            columns = events["feature"], events["time"], events["value"]
            return {"values": haim_blocks.block(*columns, len(features))}
        if features:
            return pivot(events, len(features))
        events = events[np.argsort(events["time"], kind="stable")]
        return {"values": last_distinct(events["feature"])}


def pivot(events, num_features):
    """Events of one stay -> {'values' [t, f], 'times' [t]}; the first value at a time stands."""
    times, at = np.unique(events["time"], return_inverse=True)
    values = np.full((len(times), num_features), np.nan, np.float32)
    cells = at * num_features + events["feature"]
    cells, first = np.unique(cells, return_index=True)
    values.flat[cells] = events["value"][first]
    return {"values": values, "times": times}
