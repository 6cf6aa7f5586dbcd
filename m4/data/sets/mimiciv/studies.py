"""X-rays and ECGs of a cohort: which lie in a stay's window, and what they hold.

See `linked.py` for the files. Letters: n stays, h rows, w columns.
"""

from pathlib import Path

import numpy as np

from m4.data import csv_files
from m4.data.sets.mimiciv import catalogue, linked, release
from m4.data.sets.mimiciv.embeddings.folder import Embeddings
from m4.data.sets.mimiciv.stays import Stays
from m4.errors import DataError

FRONTAL = ("AP", "PA")


class Studies:
    """X-rays and ECGs of the cohort, in memory: row -> payload."""

    def __init__(self, raw_dir, data, stays: Stays, flow: list, *, embeddings):
        self._raw, self._data, self._stays, self._flow = raw_dir, data, stays, flow
        self._embeddings = embeddings
        self._found: dict[str, dict] = {}

    def __call__(self, name: str, row: int) -> dict[str, np.ndarray] | None:
        """The payload of a stay, or None."""
        if name not in self._found:
            root = linked.find(self._raw, linked.KIND[name])
            self._found[name] = self._read(name, root) if root else {}
            self._flow.append((f"{name}: stays with any", len(self._found[name])))
        found = self._found[name].get(row)
        return self._image(found) if found is not None and name == "cxr_image" else found

    def _read(self, name: str, root: Path) -> dict:
        if linked.KIND[name] == "cxr":
            rows = [r for r in frontal(root, self._stays) if r[1] <= self._stays.limit[r[0]]]
            if name == "cxr_image":
                return {row: path for row, _, _, path in sorted(rows, key=lambda r: r[:2])}
            keys = [(row, hour, dicom) for row, hour, dicom, _ in rows]
        elif name == "ecg_measures":
            return self._measures(root)
        else:
            columns = {"subject_id": "int", "study_id": "text", "ecg_time": "time"}
            keys = []
            for batch in csv_files.stream(release.need(root, "record_list"), columns):
                found = self._stays.place(batch["subject_id"], csv_files.seconds(batch["ecg_time"]))
                study = batch["study_id"].to_pylist()
                keys += [(row, hour, study[i]) for i, row, hour in found]
        return self._vectors(name, keys)

    def _vectors(self, name, keys):
        if name not in self._embeddings:
            return {}
        there, vectors = Embeddings(self._embeddings[name])([key for _, _, key in keys])
        self._flow.append((f"{name}: dropped, no embedding", len(keys) - len(there)))
        found: dict[int, list] = {}
        for i in np.argsort([keys[i][1] for i in there], kind="stable"):
            found.setdefault(keys[there[i]][0], []).append(i)
        return {
            row: {"values": vectors[own], "times": np.array([keys[there[i]][1] for i in own])}
            for row, own in found.items()
        }

    def _measures(self, root):
        names = catalogue.ECG_MEASURES
        columns = {"subject_id": "int", "ecg_time": "time"} | dict.fromkeys(names, "float")
        last: dict[int, tuple] = {}
        for batch in csv_files.stream(release.need(root, "machine_measurements"), columns):
            values = np.stack([batch[n].to_numpy(zero_copy_only=False) for n in names], axis=1)
            values = np.where(np.abs(values) >= 29_999, np.nan, values)  # the machine's "unknown"
            when = csv_files.seconds(batch["ecg_time"])
            for i, row, hour in self._stays.place(batch["subject_id"], when):
                if hour >= last.get(row, (-1.0,))[0]:
                    last[row] = (hour, values[i])
        return {row: {"values": values} for row, (_, values) in last.items()}

    def _image(self, path: Path):
        if not path.exists():
            return None
        return {"values": np.repeat(grey_square(path)[None, ..., None], 3, axis=-1)}


def grey_square(path: Path) -> np.ndarray:
    """uint8 [h, w]: the central square of an image file, at the size of `catalogue.IMAGE`.

    Raises DataError for a damaged file, without its name: it holds the patient's number.
    """
    from PIL import Image

    size = catalogue.IMAGE[1]
    try:
        with Image.open(path) as picture:
            picture.draft("L", (2 * size, 2 * size))  # decode at a fraction of the size
            side = min(picture.size)
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            square = picture.convert("L").crop((left, top, left + side, top + side))
            return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))
    except OSError:
        raise DataError(
            "cxr_image: an image of MIMIC-CXR-JPG cannot be decoded; get the files again"
        ) from None


def image_path(root: Path, subject: int, study: int, dicom: str) -> Path:
    """Where MIMIC-CXR-JPG keeps an image."""
    return root / "files" / f"p{str(subject)[:2]}" / f"p{subject}" / f"s{study}" / f"{dicom}.jpg"


def frontal(root: Path, stays: Stays) -> list[tuple[int, float, str, Path]]:
    """(row, hour, dicom_id, file) of the frontal images in a stay's window."""
    columns = {"dicom_id": "text", "subject_id": "int", "study_id": "int"}
    columns |= dict.fromkeys(("ViewPosition", "StudyDate", "StudyTime"), "text")
    found = []
    for batch in csv_files.stream(release.need(root, linked.METADATA), columns):
        rows = batch.to_pylist()
        time = np.array([study_seconds(r["StudyDate"], r["StudyTime"]) for r in rows], np.int64)
        for i, row, hour in stays.place(batch["subject_id"], time):
            if rows[i]["ViewPosition"].strip() in FRONTAL:
                dicom = rows[i]["dicom_id"]
                path = image_path(root, rows[i]["subject_id"], rows[i]["study_id"], dicom)
                found.append((row, hour, dicom, path))
    return found


def study_seconds(date: str, time: str) -> int:
    """Seconds since 1970 of '21800506', '213014.531'; `csv_files.NEVER` for anything else."""
    clock = time.partition(".")[0].strip().zfill(6)
    try:
        text = f"{date[:4]}-{date[4:6]}-{date[6:8]}T{clock[:2]}:{clock[2:4]}:{clock[4:6]}"
        return int(np.datetime64(text, "s").astype(np.int64))
    except ValueError:
        return csv_files.NEVER
