"""MIMIC-IV-Note, MIMIC-CXR-JPG and MIMIC-IV-ECG, joined to stays by patient and time.

| modality | file | content |
|---|---|---|
| `notes` | note/radiology | one vector per radiology report of the stay |
| `note_words` | note/radiology | hashed words of the reports, the last `WORDS` |
| `earlier_notes` | note/discharge | one vector per discharge summary of an *earlier* admission |
| `cxr` | metadata, embeddings | one vector per frontal image |
| `cxr_image` | metadata, files/ | the last frontal image, central square of the shorter side |
| `ecg` | record_list, embeddings | one vector per ECG |
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

from m4.data.cohort import patient_number
from m4.data.mimiciv import files, schema
from m4.data.mimiciv.diagnoses import hashed
from m4.data.mimiciv.stays import SECONDS, Stays
from m4.data.mimiciv.windows import Finder
from m4.errors import DataError

PLACES = {  # kind -> folders under the raw one, a file that is in it
    "note": (("mimic-iv-note*", "mimic-iv-note*/*", "mimiciv*/*", "mimiciv*"), "note/radiology"),
    "cxr": (("mimic-cxr-jpg*", "mimic-cxr-jpg*/*"), "mimic-cxr-2.0.0-metadata"),
    "ecg": (("mimic-iv-ecg*", "mimic-iv-ecg*/*"), "record_list"),
}
KIND = {
    "notes": "note",
    "note_words": "note",
    schema.EARLIER: "note",
    "cxr": "cxr",
    "cxr_image": "cxr",
    "ecg": "ecg",
    "ecg_measures": "ecg",
}
NOTES = {"notes": "radiology", "note_words": "radiology", schema.EARLIER: "discharge"}
TITLE = {"note": "MIMIC-IV-Note", "cxr": "MIMIC-CXR-JPG", "ecg": "MIMIC-IV-ECG"}
TABLES = {
    "cxr": ("mimic-cxr-2.0.0-metadata",),
    "cxr_image": ("mimic-cxr-2.0.0-metadata", "mimic-cxr-2.0.0-chexpert"),
    "ecg": ("record_list",),
    "ecg_measures": ("machine_measurements",),
}
FRONTAL = ("AP", "PA")
CXR_FILE = "mimic-cxr-2.0.0-"


def find(raw_dir, kind: str) -> Path | None:
    """The folder of one of the linked data sets, the last in the order of names."""
    patterns, holds = PLACES[kind]
    found = [place for pattern in patterns for place in sorted(Path(raw_dir).glob(pattern))]
    there = [p for p in found if any((p / f"{holds}{e}").is_file() for e in files.ENDINGS)]
    return there[-1] if there else None


def table(root: Path, name: str) -> Path | None:
    """The file of a table of a linked data set."""
    return next((p for e in files.ENDINGS if (p := root / f"{name}{e}").is_file()), None)


def missing(raw_dir, names, embeddings) -> list[str]:
    """One line per linked data set or embedding that a modality needs and is not there."""
    lines = []
    for kind in dict.fromkeys(KIND[name] for name in names if name in KIND):
        if find(raw_dir, kind) is None:
            used = ", ".join(name for name in names if KIND.get(name) == kind)
            pattern = PLACES[kind][0][0]
            lines.append(f"{raw_dir}: no {pattern} folder ({TITLE[kind]}), needed for {used}")
    for name in ("cxr", "ecg"):
        if name in names and name not in embeddings:
            lines.append(
                f"data.options.embeddings.{name}: not given; write them with `python -m m4.data"
                f" embed`, or leave {name} out of data.options.modalities"
            )
    return lines


def sources(raw_dir, names) -> tuple[list[Path], list[str]]:
    """Tables of the linked data sets that modalities are read from, and their versions."""
    found: dict[Path, None] = {}
    versions = []
    for kind in dict.fromkeys(KIND[name] for name in names if name in KIND):
        root = find(raw_dir, kind)
        if root is None:
            versions.append(f"no {TITLE[kind]}")
            continue
        versions.append(f"{TITLE[kind]} {files.version(root)}")
        for name in names:
            if KIND.get(name) == kind:
                wanted = (f"note/{NOTES[name]}",) if name in NOTES else TABLES[name]
                found |= dict.fromkeys(p for t in wanted if (p := table(root, t)))
    return [*found], versions


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


class Hashing:
    """Vectors of texts without any encoder, in the place of `Embeddings`."""

    def __init__(self, width: int):
        from sklearn.feature_extraction.text import HashingVectorizer

        self._encode = HashingVectorizer(n_features=width, ngram_range=(1, 2)).transform

    def __call__(self, texts) -> tuple[np.ndarray, np.ndarray]:
        """All positions, and their vectors."""
        if not len(texts):
            return np.zeros(0, int), np.zeros((0, 1), np.float16)
        return np.arange(len(texts)), self._encode(texts).toarray().astype(np.float16)


class Notes:
    """A record batch of radiology reports or discharge summaries -> events of the cohort."""

    def __init__(self, name: str, path: Path, data, stays: Stays, *, stored: bool, embeddings):
        self.name, self.path, self._stays, self._stored = name, path, stays, stored
        self.counts: Counter[str] = Counter()
        self._find = Finder(stays.subject, stays.intime)
        self.columns = {
            "note_id": "text",
            "subject_id": "int",
            "hadm_id": "int",
            "charttime": "time",
            "storetime": "time",
            "text": "text",
        }
        if name == "note_words":
            self._ids: dict[str, int] = {}
        else:
            width = data.modality(name).shape[-1]
            self._by_id = "notes" in embeddings
            self._encode = Embeddings(embeddings["notes"]) if self._by_id else Hashing(width)
        self.dtype = dtype(name, data)

    def __call__(self, batch):
        """The events of a batch, any order."""
        import pyarrow as pa

        self.counts["rows read"] += batch.num_rows
        subject = batch["subject_id"].fill_null(-1).to_numpy(zero_copy_only=False)
        ours = np.flatnonzero(self._find.known(subject))
        batch, subject = batch.take(pa.array(ours)), subject[ours]
        time = files.seconds(batch["charttime"])
        known = np.maximum(time, files.seconds(batch["storetime"])) if self._stored else time
        place = self._earlier if self.name == schema.EARLIER else self._during
        note, row = place(batch, subject, time, known)
        texts = batch["text"].take(pa.array(note)).to_pylist()
        if self.name == "note_words":
            kept, values, length = self._words(texts)
        else:
            ids = batch["note_id"].take(pa.array(note)).to_pylist()
            kept, values = self._encode(ids if self._by_id else texts)
            length = np.zeros(len(kept), int)
            self.counts["dropped, no embedding"] += len(note) - len(kept)
        events = np.zeros(len(kept), self.dtype)
        events["row"], events["length"] = row[kept], length
        events["time"] = (time[note] - self._stays.intime[row])[kept] / SECONDS
        if len(kept):
            events["value"] = values
        self.counts["notes kept"] += len(events)
        return events

    def _during(self, batch, subject, time, known):
        """Notes charted in a stay's window and available by its end, with their stays."""
        row = self._find(subject, time)
        begin, limit = self._stays.intime[row], self._stays.limit[row]
        inside = ((time - begin) / SECONDS >= 0) & ((time - begin) / SECONDS <= limit)
        late = (known - begin) / SECONDS > limit
        self.counts["dropped, recorded after the window"] += int((inside & late).sum())
        note = np.flatnonzero(inside & ~late)
        return note, row[note]

    def _earlier(self, batch, subject, time, known):
        """Summaries of other admissions available when a stay's admission began, with the stay."""
        hadm = batch["hadm_id"].fill_null(-1).to_numpy(zero_copy_only=False)
        pairs = [
            (i, row)
            for i, who in enumerate(subject)
            for row in self._find.rows(who)
            if known[i] > files.NEVER
            and hadm[i] != self._stays.hadm[row]
            and known[i] <= self._stays.admit[row]
        ]
        found = np.array(pairs, int).reshape(-1, 2)
        return found[:, 0], found[:, 1]

    def _words(self, texts):
        values = np.zeros((len(texts), schema.WORDS), np.int32)
        length = np.zeros(len(texts), int)
        for i, text in enumerate(texts):
            words = text.lower().split()[-schema.WORDS :]
            for word in {*words} - self._ids.keys():
                self._ids[word] = hashed(word, schema.WORD_VOCAB)
            length[i] = len(words)
            values[i, : len(words)] = [self._ids[word] for word in words]
        return np.flatnonzero(length), values[length > 0], length[length > 0]


def dtype(name: str, data) -> np.dtype:
    """Of the events of a modality of notes."""
    part = ("value", "f2", data.modality(name).shape[-1:])
    if name == "note_words":
        part = ("value", "i4", (schema.WORDS,))
    return np.dtype([("row", "i4"), ("time", "f4"), ("length", "i4"), part])


def payload(name: str, events: np.ndarray) -> dict[str, np.ndarray]:
    """The payload of one stay from its events."""
    events = events[np.argsort(events["time"], kind="stable")]
    if name == "note_words":
        words = [event["value"][: event["length"]] for event in events]
        return {"values": np.concatenate(words)}
    return {"values": events["value"].astype(np.float32), "times": events["time"]}


class Studies:
    """X-rays and ECGs of the cohort, in memory: row -> payload."""

    def __init__(self, raw_dir, data, stays: Stays, flow: list, *, embeddings):
        self._raw, self._data, self._stays, self._flow = raw_dir, data, stays, flow
        self._embeddings = embeddings
        self._found: dict[str, dict] = {}

    def __call__(self, name: str, row: int) -> dict[str, np.ndarray] | None:
        """The payload of a stay, or None."""
        if name not in self._found:
            self._found[name] = self._read(name) if find(self._raw, KIND[name]) else {}
            self._flow.append((f"{name}: stays with any", len(self._found[name])))
        found = self._found[name].get(row)
        return self._image(found) if found is not None and name == "cxr_image" else found

    def _read(self, name):
        root = find(self._raw, KIND[name])
        if KIND[name] == "cxr":
            rows = [r for r in frontal(root, self._stays) if r[1] <= self._stays.limit[r[0]]]
            if name == "cxr_image":
                return {row: path for row, _, _, path in sorted(rows, key=lambda r: r[:2])}
            keys = [(row, hour, dicom) for row, hour, dicom, _ in rows]
        elif name == "ecg_measures":
            return self._measures(root)
        else:
            columns = {"subject_id": "int", "study_id": "text", "ecg_time": "time"}
            keys = []
            for batch in files.stream(table(root, "record_list"), columns):
                found = place(self._stays, batch["subject_id"], files.seconds(batch["ecg_time"]))
                study = batch["study_id"].to_pylist()
                keys += [(row, hour, study[i]) for i, row, hour in found]
        return self._vectors(name, keys)

    def _vectors(self, name, keys):
        if name not in self._embeddings:
            return {}
        there, vectors = Embeddings(self._embeddings[name])([key for _, _, key in keys])
        self._flow.append((f"{name}: dropped, no embedding", len(keys) - len(there)))
        found: dict[int, list] = {}
        for i, vector in zip(there, vectors, strict=True):
            found.setdefault(keys[i][0], []).append((keys[i][1], vector))
        return {
            row: {
                "values": np.stack([v for _, v in sorted(items, key=lambda i: i[0])]),
                "times": np.sort([hour for hour, _ in items]),
            }
            for row, items in found.items()
        }

    def _measures(self, root):
        names = schema.ECG_MEASURES
        columns = {"subject_id": "int", "ecg_time": "time"} | dict.fromkeys(names, "float")
        last: dict[int, tuple] = {}
        for batch in files.stream(table(root, "machine_measurements"), columns):
            values = np.stack([batch[n].to_numpy(zero_copy_only=False) for n in names], axis=1)
            values = np.where(np.abs(values) >= 29_999, np.nan, values)  # the machine's "unknown"
            when = files.seconds(batch["ecg_time"])
            for i, row, hour in place(self._stays, batch["subject_id"], when):
                if hour >= last.get(row, (-1.0,))[0]:
                    last[row] = (hour, values[i])
        return {row: {"values": values} for row, (_, values) in last.items()}

    def _image(self, path: Path):
        from PIL import Image

        if not path.exists():
            return None
        size = schema.IMAGE[1]
        try:
            with Image.open(path) as picture:
                picture.draft("L", (2 * size, 2 * size))  # decode at a fraction of the size
                side = min(picture.size)
                left, top = (picture.width - side) // 2, (picture.height - side) // 2
                square = picture.convert("L").crop((left, top, left + side, top + side))
                grey = np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))
        except OSError:
            raise DataError(
                "cxr_image: an image of MIMIC-CXR-JPG cannot be decoded; get the files again"
            ) from None
        return {"values": np.repeat(grey[None, ..., None], 3, axis=-1)}


def place(stays: Stays, subject, time) -> list[tuple[int, int, float]]:
    """(position, row, hour) of the records that lie in a stay's window."""
    subject = subject.fill_null(-1).to_numpy(zero_copy_only=False)
    find_row = Finder(stays.subject, stays.intime)
    ours = np.flatnonzero(find_row.known(subject) & (time > files.NEVER))
    row = find_row(subject[ours], time[ours])
    hour = (time[ours] - stays.intime[row]) / SECONDS
    keep = (hour >= 0) & (hour <= stays.limit[row])
    return [*zip(ours[keep].tolist(), row[keep].tolist(), hour[keep].tolist(), strict=True)]


def frontal(root: Path, stays: Stays) -> list[tuple[int, float, str, Path]]:
    """(row, hour, dicom_id, file) of the frontal images in a stay's window."""
    columns = {
        "dicom_id": "text",
        "subject_id": "int",
        "study_id": "int",
        "ViewPosition": "text",
        "StudyDate": "text",
        "StudyTime": "text",
    }
    found = []
    for batch in files.stream(table(root, f"{CXR_FILE}metadata"), columns):
        rows = batch.to_pylist()
        time = np.array([study_seconds(r["StudyDate"], r["StudyTime"]) for r in rows], np.int64)
        for i, row, hour in place(stays, batch["subject_id"], time):
            if rows[i]["ViewPosition"].strip() in FRONTAL:
                who, study = str(rows[i]["subject_id"]), rows[i]["study_id"]
                path = root / "files" / f"p{who[:2]}" / f"p{who}" / f"s{study}"
                found.append((row, hour, rows[i]["dicom_id"], path / f"{rows[i]['dicom_id']}.jpg"))
    return found


def study_seconds(date: str, time: str) -> int:
    """Seconds since 1970 of '21800506', '213014.531'; `files.NEVER` for anything else."""
    clock = time.partition(".")[0].strip().zfill(6)
    try:
        text = f"{date[:4]}-{date[4:6]}-{date[6:8]}T{clock[:2]}:{clock[2:4]}:{clock[4:6]}"
        return int(np.datetime64(text, "s").astype(np.int64))
    except ValueError:
        return files.NEVER
