"""Event tables -> payloads, in bounded memory.

One pass over each table keeps the events of the cohort inside their stay's window and appends
them to temporary files, one per modality and block of `ROWS` consecutive stays. An example is then
put together from its block's files. Memory follows the block, not the table.

Letters: e events, t rows (distinct times), f features.
"""

import dataclasses
import hashlib
import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from m4 import atomic, seal
from m4.data import csv_files, temporary
from m4.data.sets.mimiciv import (
    benchmark,
    catalogue,
    haim_blocks,
    linked,
    matches,
    release,
    static,
    studies,
)
from m4.data.sets.mimiciv.diagnoses import last_distinct
from m4.data.sets.mimiciv.selector import EVENT, SOURCES, Selector, measured
from m4.data.sets.mimiciv.stays import Stays
from m4.errors import DataError
from m4.specs import DataSpec

ROWS = 512
VERSION = 3  # of what a scratch folder holds


@dataclasses.dataclass
class Examples:
    """Examples of a cohort; event tables are read when the first one is asked for.

    With a `scratch` folder, the events of every table that was read to its end are kept there
    (`m4.data.temporary`): a second attempt at a build that was interrupted takes them up again.
    """

    root: Path
    raw_dir: Path
    data: DataSpec
    stays: Stays
    flow: list[tuple[str, int]]
    stored: bool  # an event counts from when it was stored
    embeddings: dict[str, str]
    scratch: Path | None = None

    def __post_init__(self):
        self._folder: Path | None = None
        self._sizes: dict[str, dict[str, int]] = {}  # table -> its files of events -> bytes
        self._studies: dict[str, dict[int, Any]] = {}  # of each modality of X-rays and ECGs
        # blocks of at most ROWS stays of one split
        split = self.stays.split
        place = np.arange(len(split)) - np.searchsorted(split, split)
        _, self._block = np.unique([split, place // ROWS], axis=1, return_inverse=True)

    def split(self, name: str) -> Iterator[dict]:
        """The examples of one split, stay by stay."""
        folder = self._spilled()
        spilled = [m for m in self.data.modality_names if m in SOURCES or _is_note(m)]
        rows = np.flatnonzero(self.stays.split == self.stays.splits.index(name))
        for block in np.unique(self._block[rows]):
            events = {m: self._load(folder, m, block) for m in spilled}
            for row in rows[self._block[rows] == block]:
                yield self._example(int(row), events)

    def joining(self) -> list[str]:
        """How every table matches the cohort, a line each; reads all of them.

        Raises DataError for one that is of (nearly) nobody in the release.
        """
        self._spilled()
        for name in self.data.modality_names:
            if name in linked.KIND and not _is_note(name):
                self._study(name)
        return self.stays.joining

    def _spilled(self) -> Path:
        if self._folder is None:
            self._folder = self._spill()
        return self._folder

    def _spill(self) -> Path:
        """One pass over each table for all modalities that come from it."""
        tables = self._tables()
        if self.scratch:
            folder = self.scratch / f"{temporary.KEPT}{self._key(tables)}"
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        else:
            folder = temporary.somewhere()
            weakref.finalize(self, temporary.remove, folder)  # also at exit
        for path, selectors in tables.items():
            table = path.name.partition(".")[0]
            found = _done(folder, table)
            if found is None:
                for part in folder.glob(f"*-{table}-*"):
                    part.unlink()  # of an attempt that was interrupted
                columns = {name: kind for s in selectors for name, kind in s.columns.items()}
                for batch in csv_files.stream(path, columns):
                    for selector in selectors:
                        self._append(folder / f"{selector.name}-{table}", selector(batch))
                met = [(s.name, s.matches.key, s.matches.check(path), s.counts) for s in selectors]
                text = json.dumps({"met": met, "sizes": _sizes(folder, table)})
                atomic.write(folder / f"{table}.done", text)
                found = json.loads(text)
            self._sizes[table] = found["sizes"]
            for name, key, met, counts in found["met"]:
                self.flow.extend((f"{name}: {step}", number) for step, number in counts.items())
                kept = counts.get("notes kept", 0) + counts.get("events kept", 0)
                if "dropped, no embedding" in counts:
                    matches.require_embedded(name, kept, kept + counts["dropped, no embedding"])
                self.stays.joining.append(matches.line(name, table, key, met, kept))
        return folder

    def _tables(self) -> dict[Path, list]:
        """File -> what is selected from it."""
        found: dict[Path, list] = {}
        for name in self.data.modality_names:
            for source in SOURCES.get(name, ()):
                selector = Selector(name, source, self.data, self.stays, stored=self.stored)
                found.setdefault(release.need(self.root, source.table), []).append(selector)
            root = linked.find(self.raw_dir, "note") if _is_note(name) else None
            if root:
                about = {"stored": self.stored, "embeddings": self.embeddings}
                selector = linked.Notes(name, self.data, self.stays, **about)
                path = release.need(root, linked.TABLES[name][1])
                found.setdefault(path, []).append(selector)
        return found

    def _key(self, tables) -> str:
        """Of the events: whose stays from when to when, which modalities, from which files."""
        digest = hashlib.blake2b(digest_size=8)
        digest.update(repr((VERSION, self.data, self.stored, self.embeddings)).encode())
        stays, life = self.stays, self.stays.life
        for array in (life.stay, life.subject, life.intime, stays.limit, stays.split):
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
        """Row -> events of one block, in file order. Raises DataError if not all are there."""
        dtype = EVENT if name in SOURCES else linked.dtype(name, self.data)
        parts = [np.zeros(0, dtype)]
        for table, sizes in sorted(self._sizes.items()):
            path = folder / f"{name}-{table}-{block}"
            if size := sizes.get(path.name):
                if not path.is_file() or path.stat().st_size != size:
                    raise DataError(f"{path}: was removed or cut while it was needed; start again")
                parts.append(np.fromfile(path, dtype))
        events = np.concatenate(parts)
        events = events[np.argsort(events["row"], kind="stable")]
        rows, first = np.unique(events["row"], return_index=True)
        return dict(zip(rows.tolist(), np.split(events, first[1:]), strict=len(rows) > 0))

    def _example(self, row, events):
        names = self.data.modality_names
        found = {m: self._payload(m, row, events.get(m, {}).get(row)) for m in names}
        targets = {task: value[row] for task, value in self.stays.targets.items()}
        life, seconds = self.stays.life, round(float(self.stays.limit[row]) * 3600)
        when = (int(life.intime[row]) + seconds) * 1_000_000
        return {
            "patient": int(self.stays.unit[row]),
            "key": (int(life.subject[row]), when, int(life.stay[row])),
            "groups": static.groups(self.stays.life, float(self.stays.static[row, 0]), row),
            "inputs": {name: payload for name, payload in found.items() if payload is not None},
            "targets": {
                t: None if np.isnan(label).all() else label for t, label in targets.items()
            },
        }

    def _study(self, name) -> dict[int, Any]:
        if name not in self._studies:
            root = linked.find(self.raw_dir, linked.KIND[name])
            about = self.stays, self.flow, self.embeddings
            found = self._studies[name] = studies.read(name, root, *about) if root else {}
            if name == "cxr_image":
                paths = [image.path for image in found.values()]
                self.stays.joining += matches.require_there(name, paths, Path.exists)
            self.flow.append((f"{name}: stays with any", len(self._studies[name])))
        return self._studies[name]

    def _payload(self, name, row, events):
        """What an example holds of a modality, None if nothing."""
        stays = self.stays
        if name == "static":
            return {"values": stays.static[row]}
        if name == "haim_demographics":
            return {"values": np.asarray(stays.demographics)[row]}
        if name == "history":
            return {"values": stays.history[row]} if len(stays.history[row]) else None
        if name in linked.KIND and not _is_note(name):
            study = self._study(name).get(row)
            return studies.payload(study) if study and name == "cxr_image" else study
        if events is None:
            return None
        if _is_note(name):
            return linked.payload(name, events)
        num_features = len(measured(self.data, name))
        if num_features and name not in (*catalogue.HAIM, "flexcare"):
            return pivot(events, num_features)
        events = events[np.argsort(events["time"], kind="stable")]
        if name == "flexcare":
            hours = min(float(stays.limit[row]), self.data.hours)
            return benchmark.grid(events, hours=hours, num_bins=self.data.modality(name).length)
        if num_features:
            return {"values": haim_blocks.block(events["feature"], events["value"], num_features)}
        return {"values": last_distinct(events["feature"])}


def _done(folder: Path, table: str) -> dict[str, Any] | None:
    """What is known of a table that an earlier attempt has read, if all of its files are there."""
    try:
        found = seal.load(folder / f"{table}.done")
        whole = all((folder / n).stat().st_size == size for n, size in found["sizes"].items())
        return found if whole and isinstance(found["met"], list) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _sizes(folder: Path, table: str) -> dict[str, int]:
    """The files of a table's events, which are on the disk from now on, and their bytes."""
    sizes = {}
    for path in sorted(folder.glob(f"*-{table}-*")):
        atomic.to_disk(path)
        sizes[path.name] = path.stat().st_size
    return sizes


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
