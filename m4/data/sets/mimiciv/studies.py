"""X-rays and ECGs of a cohort: which lie in a stay's window, and what they hold.

See `linked.py` for the files. Letters: n stays, h rows, w columns.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from m4.data import csv_files
from m4.data.sets.mimiciv import catalogue, linked, release
from m4.data.sets.mimiciv.embeddings.folder import Embeddings
from m4.data.sets.mimiciv.stays import Stays
from m4.errors import DataError

FRONTAL = ("AP", "PA")
UNKNOWN = 29_999  # and more: what the machine could not measure


def read(name: str, root: Path, stays: Stays, flow: list, embeddings: dict) -> dict[int, Any]:
    """Row -> what its stay has of a modality: a payload, of `cxr_image` the file of the last."""
    if name == "cxr_image":
        return {row: path for row, _, _, path in sorted(frontal(root, stays), key=lambda r: r[:2])}
    if name == "ecg_measures":
        return _measures(root, stays)
    if name not in embeddings:
        return {}
    keys = [image[:3] for image in frontal(root, stays)] if name == "cxr" else _ecgs(root, stays)
    there, vectors = Embeddings(embeddings[name])([key for _, _, key in keys])
    flow.append((f"{name}: dropped, no embedding", len(keys) - len(there)))
    found: dict[int, list] = {}
    for i in np.argsort([keys[i][1] for i in there], kind="stable"):
        found.setdefault(keys[there[i]][0], []).append(i)
    return {
        row: {"values": vectors[own], "times": np.array([keys[there[i]][1] for i in own])}
        for row, own in found.items()
    }


def _ecgs(root: Path, stays: Stays) -> list[tuple[int, float, str]]:
    columns = {"subject_id": "int", "study_id": "text", "ecg_time": "time"}
    placed = _placed(release.need(root, "record_list"), columns, stays)
    return [(row, hour, record["study_id"]) for row, hour, record in placed]


def _measures(root: Path, stays: Stays) -> dict[int, dict[str, np.ndarray]]:
    names = catalogue.ECG_MEASURES
    columns = {"subject_id": "int", "ecg_time": "time"} | dict.fromkeys(names, "float")
    placed = _placed(release.need(root, "machine_measurements"), columns, stays)
    found = {}
    for row, _, record in sorted(placed, key=lambda p: p[:2]):  # the last stands
        values = np.array([record[name] for name in names], float)
        found[row] = {"values": np.where(np.abs(values) >= UNKNOWN, np.nan, values)}
    return found


def _placed(path: Path, columns: dict[str, str], stays: Stays) -> Iterator[tuple[int, float, dict]]:
    """(row, hour, record) of the records of a table that lie in a stay's window."""
    for batch in csv_files.stream(path, columns):
        records = batch.to_pylist()
        if "ecg_time" in columns:
            time = csv_files.seconds(batch["ecg_time"])
        else:
            time = np.array([study_seconds(r["StudyDate"], r["StudyTime"]) for r in records], int)
        for i, row, hour in stays.place(batch["subject_id"], time):
            yield row, hour, records[i]


def image(path: Path) -> dict[str, np.ndarray] | None:
    """The payload of an X-ray, None if its file is not there."""
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
    for row, hour, image in _placed(release.need(root, linked.METADATA), columns, stays):
        if image["ViewPosition"].strip() in FRONTAL:
            path = image_path(root, image["subject_id"], image["study_id"], image["dicom_id"])
            found.append((row, hour, image["dicom_id"], path))
    return found


def study_seconds(date: str, time: str) -> int:
    """Seconds since 1970 of '21800506', '213014.531'; `csv_files.NEVER` for anything else."""
    clock = time.partition(".")[0].strip().zfill(6)
    try:
        text = f"{date[:4]}-{date[4:6]}-{date[6:8]}T{clock[:2]}:{clock[2:4]}:{clock[4:6]}"
        return int(np.datetime64(text, "s").astype(np.int64))
    except ValueError:
        return csv_files.NEVER
