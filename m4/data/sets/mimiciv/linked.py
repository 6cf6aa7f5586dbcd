"""MIMIC-IV-Note, MIMIC-CXR-JPG and MIMIC-IV-ECG, joined to stays by patient and time.

| modality | file | content |
|---|---|---|
| `notes` | note/radiology | one vector per radiology report of the stay |
| `note_words` | note/radiology | hashed words of the reports, the last `NOTE_WORDS` |
| `earlier_notes` | note/discharge | one vector per discharge summary of an *earlier* admission |
| `cxr` | metadata, embeddings | one vector per frontal image |
| `cxr_image` | metadata, files/ | the last frontal image, central square of the shorter side |
| `ecg` | record_list, embeddings of files/ | one vector per ECG |
| `ecg_measures` | machine_measurements | nine intervals and axes of the last ECG |

A report counts from the later of its chart and store times (`available="charted"`: chart time). A
discharge summary is written when an admission ends, so that of the stay's own admission is never
read. Images and ECGs count from when they were taken.

Vectors come from a folder that `python -m m4.data embed` wrote (`embeddings={"notes": FOLDER}`).
Notes have a fallback that needs no encoder: signed hashed counts of words and pairs of words,
unit length.

Letters: n stays, d width of a vector.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from m4.data import csv_files
from m4.data.sets.mimiciv import catalogue, release
from m4.data.sets.mimiciv.diagnoses import hashed
from m4.data.sets.mimiciv.embeddings.backends import Hashing
from m4.data.sets.mimiciv.embeddings.folder import Embeddings
from m4.data.sets.mimiciv.matches import Matches
from m4.data.sets.mimiciv.stays import Finder, Stays
from m4.errors import DataError

METADATA, FINDINGS = "mimic-cxr-2.0.0-metadata", "mimic-cxr-2.0.0-chexpert"
TABLES = {  # modality -> the linked data set, and its tables
    "notes": ("note", "note/radiology"),
    "note_words": ("note", "note/radiology"),
    catalogue.EARLIER: ("note", "note/discharge"),
    "cxr": ("cxr", METADATA),
    "cxr_image": ("cxr", METADATA, FINDINGS),
    "ecg": ("ecg", "record_list"),
    "ecg_measures": ("ecg", "machine_measurements"),
}
KIND = {name: kind for name, (kind, *_) in TABLES.items()}
PLACES = {  # kind -> folders under the raw one, a file that is in it
    "note": (("mimic-iv-note*", "mimic-iv-note*/*", "mimiciv*/*", "mimiciv*"), "note/radiology"),
    "cxr": (("mimic-cxr-jpg*", "mimic-cxr-jpg*/*"), METADATA),
    "ecg": (("mimic-iv-ecg*", "mimic-iv-ecg*/*"), "record_list"),
}
TITLE = {"note": "MIMIC-IV-Note", "cxr": "MIMIC-CXR-JPG", "ecg": "MIMIC-IV-ECG"}


def find(raw_dir, kind: str) -> Path | None:
    """The folder of one of the linked data sets, the last in the order of names."""
    patterns, holds = PLACES[kind]
    found = [place for pattern in patterns for place in sorted(Path(raw_dir).glob(pattern))]
    return next((place for place in reversed(found) if release.table(place, holds)), None)


def home(raw_dir, kind: str) -> Path:
    """The folder of one of the linked data sets. Raises DataError if there is none."""
    found = find(raw_dir, kind)
    if found is None:
        raise DataError(_absent(raw_dir, kind))
    return found


def _absent(raw_dir, kind: str) -> str:
    return f"{raw_dir}: no {PLACES[kind][0][0]} folder ({TITLE[kind]})"


def missing(raw_dir, names, embeddings) -> list[str]:
    """One line per linked data set or embedding that a modality needs and is not there."""
    lines = []
    for kind in dict.fromkeys(KIND[name] for name in names):
        if find(raw_dir, kind) is None:
            used = ", ".join(name for name in names if KIND[name] == kind)
            lines.append(f"{_absent(raw_dir, kind)}, needed for {used}")
    return lines + [
        f"data.options.embeddings.{name}: not given; write them with `python -m m4.data embed`, or "
        f"leave {name} out of data.options.modalities"
        for name in ("cxr", "ecg")
        if name in names and name not in embeddings
    ]


def sources(raw_dir, names) -> tuple[list[Path], list[str]]:
    """Tables of the linked data sets that modalities are read from, and their versions."""
    found, versions = [], []
    for kind in dict.fromkeys(KIND[name] for name in names):
        root = find(raw_dir, kind)
        versions.append(f"{TITLE[kind]} {release.version(root)}" if root else f"no {TITLE[kind]}")
        wanted = [t for name in names if KIND[name] == kind for t in TABLES[name][1:]]
        found += [release.table(root, table) for table in wanted if root]
    return [*dict.fromkeys(filter(None, found))], versions


class Notes:
    """A record batch of radiology reports or discharge summaries -> events of the cohort."""

    def __init__(self, name: str, data, stays: Stays, *, stored: bool, embeddings):
        self.name, self._stays, self._stored = name, stays, stored
        self.counts: Counter[str] = Counter()
        self.matches = Matches("subject_id", stays)
        self._find = Finder(stays.life.subject, stays.life.intime)
        self.columns = {"note_id": "text", "subject_id": "int", "hadm_id": "int"}
        self.columns |= {"charttime": "time", "storetime": "time", "text": "text"}
        self._ids: dict[str, int] = {}  # of words
        self._by_id = "notes" in embeddings
        if name != "note_words":
            width = data.modality(name).shape[-1]
            self._encode = Embeddings(embeddings["notes"]) if self._by_id else Hashing(width)
        self.dtype = dtype(name, data)

    def __call__(self, batch):
        """The events of a batch, any order."""
        self.counts["rows read"] += batch.num_rows
        subject = batch["subject_id"].fill_null(-1).to_numpy(zero_copy_only=False)
        self.matches.add(subject)
        ours = np.flatnonzero(self._find.known(subject))
        batch, subject = batch.take(ours), subject[ours]
        time = csv_files.seconds(batch["charttime"])
        known = (
            np.maximum(time, csv_files.seconds(batch["storetime"], up=True))
            if self._stored
            else time
        )
        place = self._earlier if self.name == catalogue.EARLIER else self._during
        note, row = place(batch, subject, time, known)
        texts = batch["text"].take(note).to_pylist()
        if self.name == "note_words":
            kept, values, length = self._words(texts)
        else:
            ids = batch["note_id"].take(note).to_pylist()
            kept, values = self._encode(ids if self._by_id else texts)
            length = np.zeros(len(kept), int)
            self.counts["dropped, no embedding"] += len(note) - len(kept)
        events = np.zeros(len(kept), self.dtype)
        events["row"], events["length"] = row[kept], length
        events["time"] = self._stays.life.hour_of(row, time[note])[kept]
        events["value"] = values if len(kept) else 0
        self.counts["notes kept"] += len(events)
        return events

    def _during(self, batch, subject, time, known):
        """Notes charted in a stay's window and available by its end, with their stays."""
        row = self._find(subject, time)
        note = np.flatnonzero(self._stays.inside(row, time, known, self.counts))
        return note, row[note]

    def _earlier(self, batch, subject, time, known):
        """Summaries of other admissions available when a stay's admission began, with the stay."""
        hadm = batch["hadm_id"].fill_null(-1).to_numpy(zero_copy_only=False)
        pairs = [
            (i, row)
            for i, who in enumerate(subject)
            for row in self._find.rows(who)
            if known[i] > csv_files.NEVER
            and hadm[i] != self._stays.life.hadm[row]
            and known[i] <= self._stays.life.admit[row]
        ]
        found = np.array(pairs, int).reshape(-1, 2)
        return found[:, 0], found[:, 1]

    def _words(self, texts):
        values = np.zeros((len(texts), catalogue.NOTE_WORDS), np.int32)
        length = np.zeros(len(texts), int)
        for i, text in enumerate(texts):
            words = text.lower().split()[-catalogue.NOTE_WORDS :]
            for word in {*words} - self._ids.keys():
                self._ids[word] = hashed(word, catalogue.WORD_VOCAB)
            length[i] = len(words)
            values[i, : len(words)] = [self._ids[word] for word in words]
        return np.flatnonzero(length), values[length > 0], length[length > 0]


def dtype(name: str, data) -> np.dtype:
    """Of the events of a modality of notes."""
    shape, kind = data.modality(name).shape[-1:], "i4" if name == "note_words" else "f2"
    return np.dtype([("row", "i4"), ("time", "f4"), ("length", "i4"), ("value", kind, shape)])


def payload(name: str, events: np.ndarray) -> dict[str, np.ndarray]:
    """The payload of one stay from its events."""
    events = events[np.argsort(events["time"], kind="stable")]
    if name == "note_words":
        words = [event["value"][: event["length"]] for event in events]
        return {"values": np.concatenate(words)}
    return {"values": events["value"].astype(np.float32), "times": events["time"]}
