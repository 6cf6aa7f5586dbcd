"""Which rows of which table are events of which modality.

Letters: e events, f features.
"""

import dataclasses
from collections import Counter

import numpy as np

from m4.data import csv_files
from m4.data.sets.mimiciv import benchmark, features, haim_blocks
from m4.data.sets.mimiciv.diagnoses import hashed
from m4.data.sets.mimiciv.matches import Matches
from m4.data.sets.mimiciv.stays import Finder, Stays
from m4.specs import DataSpec

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
    value: str = ""  # column with the number; "" for a bag of codes


CHART = Source("chartevents", "stay_id", "charttime", "storetime", "itemid", "int", "valuenum")
LAB = Source("labevents", "subject_id", "charttime", "storetime", "itemid", "int", "valuenum")
GIVEN = Source("inputevents", "stay_id", "starttime", "storetime", "itemid", "int")
DONE = dataclasses.replace(GIVEN, table="procedureevents")
SOURCES = {
    "vitals": (CHART,),
    "labs": (LAB,),
    "fusemoe": (CHART, LAB),
    "medications": (GIVEN,),
    "procedures": (DONE,),
    "prescriptions": (Source("prescriptions", "subject_id", "starttime", "", "drug", "text"),),
    "benchmark": (CHART, LAB),
    "flexcare": (CHART, LAB),
    "haim_chart": (CHART,),
    "haim_labs": (LAB,),
    "haim_procedures": (dataclasses.replace(DONE, value="value"),),
}


GRIDS = ("benchmark", "flexcare")


def measured(data: DataSpec, name: str) -> tuple[features.Feature, ...]:
    """The features of a modality of numbers; none for a bag of codes."""
    if name in features.SERIES:
        kept = data.modality(name).features
        return tuple(f for f in features.features(name) if f.name in kept)
    return haim_blocks.SIGNALS.get(name, benchmark.FEATURES if name in GRIDS else ())


class Selector:
    """A record batch of one table -> events of the cohort; counts what it drops."""

    def __init__(self, name, source: Source, data: DataSpec, stays: Stays, *, stored: bool):
        self.name, self.source, self.stays = name, source, stays
        self.counts: Counter[str] = Counter()
        self.matches = Matches(source.key, stays)
        self._stored = stored and bool(source.stored)
        self._features = measured(data, name)
        self.columns = {source.key: "int", source.time: "time", source.code: source.kind}
        self.columns["subject_id"] = "int"  # a stay's events say so, too
        if self._stored:
            self.columns[source.stored] = "time"
        if self._features:
            self.columns[source.value] = "float"
            # by item: feature index, -1 if it is not wanted
            size = max(item for f in self._features for item in f.items) + 1
            self._feature = np.full(size, -1, np.int32)
            for j, feature in enumerate(self._features):
                self._feature[list(feature.items)] = j
        else:
            self._vocab, self._ids = data.modality(name).vocab or 1, {}
        keys = stays.life.stay if source.key == "stay_id" else stays.life.subject
        self._find = Finder(keys, stays.life.intime)

    def __call__(self, batch):
        """`EVENT`s of a batch, any order."""
        self.counts["rows read"] += batch.num_rows
        if self._features:  # early and cheap: most rows of chartevents are other items
            item = batch[self.source.code].fill_null(0).to_numpy(zero_copy_only=False)
            wanted = np.flatnonzero((item >= 0) & (item < len(self._feature)))
            batch = batch.take(wanted[self._feature[item[wanted]] >= 0])
        key = batch[self.source.key].fill_null(-1).to_numpy(zero_copy_only=False)
        self.matches.add(key)
        ours = np.flatnonzero(self._find.known(key))
        batch = batch.take(ours)
        time = csv_files.seconds(batch[self.source.time])
        row = self._find(key[ours], time)
        known = csv_files.seconds(batch[self.source.stored], up=True) if self._stored else time
        keep = self.stays.inside(row, time, known, self.counts if self._stored else None)
        keep &= self._of_its_patient(batch, row)
        events = np.zeros(len(row), EVENT)
        events["row"], events["time"] = row, self.stays.life.hour_of(row, time)
        if self._features:
            keep &= self._measure(batch, events, keep)
        else:
            codes = batch[self.source.code].to_pylist()
            for code in {*codes} - self._ids.keys():
                self._ids[code] = hashed(str(code), self._vocab)
            events["feature"] = [self._ids[code] for code in codes]
        self.counts["events kept"] += int(keep.sum())
        return events[keep]

    def _of_its_patient(self, batch, row):
        """False for events of a stay that name another patient than the stay does."""
        if self.source.key != "stay_id":
            return True
        subject = batch["subject_id"].to_numpy(zero_copy_only=False)
        other = ~np.isnan(subject) & (subject != self.stays.life.subject[row])
        self.counts["dropped, of another patient than their stay's"] += int(other.sum())
        return ~other

    def _measure(self, batch, events, keep):
        """Fill feature and value; False for values that are missing or implausible."""
        item = batch[self.source.code].to_numpy(zero_copy_only=False)
        value = batch[self.source.value].to_numpy(zero_copy_only=False)
        feature, there = self._feature[item], ~np.isnan(value)
        value, plausible = features.in_units(self._features, feature, item, value)
        self.counts["dropped, no number"] += int((keep & ~there).sum())
        self.counts["dropped, out of range"] += int((keep & there & ~plausible).sum())
        events["feature"], events["value"] = feature, np.where(plausible, value, 0)
        return plausible
