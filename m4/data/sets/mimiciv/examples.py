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
        raw_dir: Path,
        data: DataSpec,
        stays: Stays,
        flow: list[tuple[str, int]],
        *,
        available: str,
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
            self._folder = self._spill()
        spilled = [m for m in self._data.modality_names if m in SOURCES or _is_note(m)]
        rows = np.flatnonzero(self._stays.split == self._stays.splits.index(name))
        for block in np.unique(self._block[rows]):
            events = {m: self._load(self._folder, m, block) for m in spilled}
            for row in rows[self._block[rows] == block]:
                yield self._example(int(row), events)

    def _spill(self) -> Path:
        """One pass over each table for all modalities that come from it."""
        tables = self._tables()
        if self._scratch:
            folder = self._scratch / self._key(tables)
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        else:
            folder = Path(tempfile.mkdtemp(prefix="m4-mimiciv-"))  # mode 0700
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)  # also at exit
        for path, selectors in tables.items():
            table = path.name.partition(".")[0]
            done = folder / f"{table}.done"
            if not done.exists():
                for part in folder.glob(f"*-{table}-*"):
                    part.unlink()  # of an attempt that was interrupted
                columns = {name: kind for s in selectors for name, kind in s.columns.items()}
                for batch in csv_files.stream(path, columns):
                    for selector in selectors:
                        self._append(folder / f"{selector.name}-{table}", selector(batch))
                atomic.write(done, json.dumps([[s.name, dict(s.counts)] for s in selectors]))
            for name, counts in json.loads(done.read_text()):
                self._flow.extend((f"{name}: {step}", number) for step, number in counts.items())
        return folder

    def _tables(self) -> dict[Path, list]:
        """File -> what is selected from it."""
        found: dict[Path, list] = {}
        for name in self._data.modality_names:
            for source in SOURCES.get(name, ()):
                selector = Selector(name, source, self._data, self._stays, stored=self._stored)
                found.setdefault(release.need(self._root, source.table), []).append(selector)
            root = linked.find(self._raw_dir, "note") if _is_note(name) else None
            if root:
                about = {"stored": self._stored, "embeddings": self._embeddings}
                selector = linked.Notes(name, self._data, self._stays, **about)
                path = release.need(root, linked.TABLES[name][1])
                found.setdefault(path, []).append(selector)
        return found

    def _key(self, tables) -> str:
        """Of the events: which stays and windows, which modalities, from which files."""
        digest = hashlib.blake2b(digest_size=8)
        digest.update(repr((self._data, self._stored, self._embeddings)).encode())
        for array in (self._stays.life.stay, self._stays.limit, self._stays.split):
            digest.update(np.ascontiguousarray(array).tobytes())
        for path in tables:
            status = path.stat()
            digest.update(f"{path}:{status.st_size}:{status.st_mtime_ns}".encode())
        return digest.hexdigest()

    def _append(self, path: Path, events: np.ndarray) -> None:
        """Add events to their blocks' files, `path` followed by the block's number."""
        blocks = self._block[events["row"]]
        for block in np.unique(blocks):
            with open(f"{path}-{block}", "ab") as handle:
                events[blocks == block].tofile(handle)

    def _load(self, folder: Path, name: str, block: int) -> dict[int, np.ndarray]:
        """Row -> events of one block, in file order."""
        dtype = EVENT if name in SOURCES else linked.dtype(name, self._data)
        paths = sorted(folder.glob(f"{name}-*-{block}"))
        events = np.concatenate([np.zeros(0, dtype), *(np.fromfile(p, dtype) for p in paths)])
        events = events[np.argsort(events["row"], kind="stable")]
        rows, first = np.unique(events["row"], return_index=True)
        return dict(zip(rows.tolist(), np.split(events, first[1:]), strict=len(rows) > 0))

    def _example(self, row, events):
        names = self._data.modality_names
        found = {m: self._payload(m, row, events.get(m, {}).get(row)) for m in names}
        targets = {task: value[row] for task, value in self._stays.targets.items()}
        return {
            "patient": int(self._stays.unit[row]),
            "inputs": {name: payload for name, payload in found.items() if payload is not None},
            "targets": {
                t: None if np.isnan(label).all() else label for t, label in targets.items()
            },
        }

    def _payload(self, name, row, events):
        """What an example holds of a modality, None if nothing."""
        stays = self._stays
        if name == "static":
            return {"values": stays.static[row]}
        if name == "haim_demographics":
            return {"values": np.asarray(stays.demographics)[row]}
        if name == "history":
            return {"values": stays.history[row]} if len(stays.history[row]) else None
        if name in linked.KIND and not _is_note(name):
            return self._studies(name, row)
        if events is None:
            return None
        if _is_note(name):
            return linked.payload(name, events)
        num_features = len(measured(self._data, name))
        if num_features and name not in (*catalogue.HAIM, "flexcare"):
            return pivot(events, num_features)
        events = events[np.argsort(events["time"], kind="stable")]
        if name == "flexcare":
            hours = min(float(stays.limit[row]), self._data.hours)
            return benchmark.grid(events, hours=hours, num_bins=self._data.modality(name).length)
        if num_features:
            return {"values": haim_blocks.block(events["feature"], events["value"], num_features)}
        return {"values": last_distinct(events["feature"])}


def _is_note(name: str) -> bool:
    return linked.KIND.get(name) == "note"


def pivot(events, num_features):
    """Events of one stay -> {'values' [t, f], 'times' [t]}; the first value at a time stands."""
    times, at = np.unique(events["time"], return_inverse=True)
    values = np.full((len(times), num_features), np.nan, np.float32)
    cells = at * num_features + events["feature"]
    cells, first = np.unique(cells, return_index=True)
    values.flat[cells] = events["value"][first]
    return {"values": values, "times": times}
