"""Event tables -> payloads, in bounded memory.

One pass over each table keeps the events of the cohort inside their stay's window and appends
them to temporary files, one per modality and block of `ROWS` consecutive stays. An example is then
put together from its block's files. Memory follows the block, not the table.

Letters: e events, t rows (distinct times), f features.
"""

import dataclasses
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from m4.data.mimiciv import files, schema
from m4.data.mimiciv.stays import SECONDS, Stays, hashed, last_distinct
from m4.specs import DataSpec

ROWS = 512
EVENT = np.dtype([("row", "i4"), ("feature", "i4"), ("time", "f4"), ("value", "f4")])


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a modality's events come from. `key` "stay_id" is exact, "subject_id" needs times."""

    table: str
    key: str
    time: str
    stored: str  # column with the time of recording, "" if the table has none
    code: str  # item or code column
    kind: str  # of that column


SOURCES = {
    "vitals": Source("chartevents", "stay_id", "charttime", "storetime", "itemid", "int"),
    "labs": Source("labevents", "subject_id", "charttime", "storetime", "itemid", "int"),
    "medications": Source("inputevents", "stay_id", "starttime", "storetime", "itemid", "int"),
    "procedures": Source("procedureevents", "stay_id", "starttime", "storetime", "itemid", "int"),
    "prescriptions": Source("prescriptions", "subject_id", "starttime", "", "drug", "text"),
}
FEATURES = {"vitals": schema.VITALS, "labs": schema.LABS}


class Examples:
    """Examples of a cohort; event tables are read when the first one is asked for."""

    def __init__(
        self,
        root: Path,
        data: DataSpec,
        stays: Stays,
        flow: list[tuple[str, int]],
        *,
        available: str,
    ):
        self._root, self._data, self._stays, self._flow = root, data, stays, flow
        self._stored = available == "stored"
        self._temporary = None
        # blocks of at most ROWS stays of one split
        start = np.searchsorted(stays.split, stays.split)
        block = stays.split * (len(stays) // ROWS + 1) + (np.arange(len(stays)) - start) // ROWS
        _, self._block = np.unique(block, return_inverse=True)

    def split(self, name: str) -> Iterator[dict]:
        """The examples of one split, stay by stay."""
        if self._temporary is None:
            self._spill()
        rows = np.flatnonzero(self._stays.split == self._stays.splits.index(name))
        for block in np.unique(self._block[rows]):
            payloads = {m: self._load(m, block) for m in self._data.modality_names if m in SOURCES}
            for row in rows[self._block[rows] == block]:
                yield self._example(row, payloads)

    def _spill(self):
        folder = Path(tempfile.mkdtemp(prefix="m4-mimiciv-"))  # mode 0700
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)  # also at exit
        for name in self._data.modality_names:
            if name in SOURCES:
                selector = _Selector(name, self._data, self._stays, stored=self._stored)
                source = SOURCES[name]
                for batch in files.stream(files.table(self._root, source.table), selector.columns):
                    events = selector(batch)
                    self._append(folder, name, events)
                counts = selector.counts
                self._flow.extend((f"{name}: {step}", int(counts[step])) for step in counts)
        self._temporary = folder

    def _append(self, folder, name, events):
        blocks = self._block[events["row"]]
        order = np.argsort(blocks, kind="stable")
        for part in np.split(events[order], np.flatnonzero(np.diff(blocks[order])) + 1):
            if len(part):
                with open(folder / f"{name}-{self._block[part['row'][0]]}", "ab") as handle:
                    part.tofile(handle)

    def _load(self, name, block):
        """Row -> events of one block, in file order."""
        path = self._temporary / f"{name}-{block}"
        if not path.exists():
            return {}
        events = np.fromfile(path, EVENT)
        events = events[np.argsort(events["row"], kind="stable")]
        parts = np.split(events, np.flatnonzero(np.diff(events["row"])) + 1)
        return {int(part["row"][0]): part for part in parts}

    def _example(self, row, payloads):
        inputs = {}
        for name in self._data.modality_names:
            events = payloads.get(name, {}).get(int(row))
            if name == "static":
                inputs[name] = {"values": self._stays.static[row]}
            elif name == "history" and len(self._stays.history[row]):
                inputs[name] = {"values": self._stays.history[row]}
            elif events is not None and name in FEATURES:
                inputs[name] = pivot(events, len(FEATURES[name]))
            elif events is not None:
                events = events[np.argsort(events["time"], kind="stable")]
                inputs[name] = {"values": last_distinct(events["feature"])}
        targets = {}
        for task, value in self._stays.targets.items():
            targets[task] = None if np.isnan(value[row]).all() else value[row]
        return {"patient": int(self._stays.unit[row]), "inputs": inputs, "targets": targets}


def pivot(events, num_features):
    """Events of one stay -> {'values' [t, f], 'times' [t]}; the first value at a time stands."""
    times, at = np.unique(events["time"], return_inverse=True)
    values = np.full((len(times), num_features), np.nan, np.float32)
    cells = at * num_features + events["feature"]
    cells, first = np.unique(cells, return_index=True)
    values.flat[cells] = events["value"][first]
    return {"values": values, "times": times}


class _Selector:
    """A record batch of one table -> events of the cohort; counts what it drops."""

    def __init__(self, name, data, stays, *, stored):
        self.source, self.stays = SOURCES[name], stays
        self.counts = Counter()
        self._stored = stored and bool(self.source.stored)
        self._features = FEATURES.get(name)
        source = self.source
        self.columns = {source.key: "int", source.time: "time", source.code: source.kind}
        if self._stored:
            self.columns[source.stored] = "time"
        if self._features:
            self.columns["valuenum"] = "float"
            self._items()
        else:
            self._vocab, self._ids = data.modality(name).vocab, {}
        self._rank()

    def _items(self):
        """Tables by item: feature index (-1: not wanted), whether in Fahrenheit."""
        size = max(item for f in self._features for item in f.items) + 1
        self._feature = np.full(size, -1, np.int32)
        self._fahrenheit = np.zeros(size, bool)
        for j, feature in enumerate(self._features):
            self._feature[list(feature.items)] = j
            self._fahrenheit[list(feature.fahrenheit)] = True
        self._low = np.array([f.low for f in self._features])
        self._high = np.array([f.high for f in self._features])

    def _rank(self):
        """Stays in the order of (key, intime), to find the one an event belongs to."""
        keys = self.stays.stay if self.source.key == "stay_id" else self.stays.subject
        self._order = np.lexsort((self.stays.intime, keys))
        self._keys, self._begins = keys[self._order], self.stays.intime[self._order]

    def __call__(self, batch):
        import pyarrow as pa

        self.counts["rows read"] += batch.num_rows
        if self._features:  # early and cheap: most rows of chartevents are other items
            item = batch[self.source.code].fill_null(0).to_numpy(zero_copy_only=False)
            inside = (item >= 0) & (item < len(self._feature))
            wanted = np.flatnonzero(self._feature[np.where(inside, item, 0)] >= 0)
            wanted = wanted[inside[wanted]]
            batch = batch.take(pa.array(wanted))
        key = batch[self.source.key].fill_null(-1).to_numpy(zero_copy_only=False)
        at = np.minimum(np.searchsorted(self._keys, key), len(self._keys) - 1)
        ours = np.flatnonzero(self._keys[at] == key)
        batch, key = batch.take(pa.array(ours)), key[ours]
        time = files.seconds(batch[self.source.time])
        row = self._row(key, time)
        hours = (time - self.stays.intime[row]) / SECONDS
        keep = (hours >= 0) & (hours <= self.stays.limit[row])
        if self._stored:
            stored = files.seconds(batch[self.source.stored])  # unknown counts as early
            late = (stored - self.stays.intime[row]) / SECONDS > self.stays.limit[row]
            self.counts["dropped, recorded after the window"] += int((keep & late).sum())
            keep &= ~late
        events = np.zeros(len(row), EVENT)
        events["row"], events["time"] = row, hours
        if self._features:
            keep &= self._measure(batch, events, keep)
        else:
            events["feature"] = self._code(batch[self.source.code])
        self.counts["events kept"] += int(keep.sum())
        return events[keep]

    def _row(self, key, time):
        """The stay of an event: of this key, the last one that began by then (else the first)."""
        low, high = (np.searchsorted(self._keys, key, side) for side in ("left", "right"))
        at = low.copy()
        for step in range(1, int((high - low).max(initial=1))):
            later = low + step
            ok = later < high
            ok[ok] &= self._begins[later[ok]] <= time[ok]
            at = np.where(ok, later, at)
        return self._order[at]

    def _measure(self, batch, events, keep):
        """Fill feature and value; False for values that are missing or implausible."""
        item = batch[self.source.code].to_numpy(zero_copy_only=False)
        value = batch["valuenum"].to_numpy(zero_copy_only=False).astype(float)
        value = np.where(self._fahrenheit[item], (value - 32) / 1.8, value)
        feature = self._feature[item]
        there = ~np.isnan(value)
        plausible = (value >= self._low[feature]) & (value <= self._high[feature])
        self.counts["dropped, no number"] += int((keep & ~there).sum())
        self.counts["dropped, out of range"] += int((keep & there & ~plausible).sum())
        events["feature"], events["value"] = feature, np.where(plausible, value, 0)
        return plausible

    def _code(self, column):
        codes = column.to_pylist()
        for code in {*codes} - self._ids.keys():
            self._ids[code] = hashed(str(code), self._vocab)
        return np.array([self._ids[code] for code in codes], np.int32)
