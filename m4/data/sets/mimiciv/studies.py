"""X-rays and ECGs of a cohort: which lie in a stay's window, and what they hold.

A study without a date and a time of day has no hour: it is left out and counted in the flow.
See `linked.py` for the files. Letters: n stays, h rows, w columns.
"""

import datetime
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m4 import local
from m4.data import csv_files, pictures
from m4.data.sets.mimiciv import catalogue, linked, matches, release
from m4.data.sets.mimiciv.embeddings.folder import Embeddings
from m4.data.sets.mimiciv.stays import Finder, Stays
from m4.errors import DataError

FRONTAL = ("AP", "PA")
UNKNOWN = 29_999  # and more: what the machine could not measure


class Image(NamedTuple):
    """An X-ray of MIMIC-CXR-JPG."""

    dicom: str
    path: Path
    where: str  # table and line, for messages: file names carry identifiers


def read(name: str, root: Path, stays: Stays, flow: list, embeddings: dict) -> dict[int, Any]:
    """Row -> what its stay has of a modality: a payload, of `cxr_image` the last `Image`."""
    if name == "cxr_image":
        images = frontal(root, stays, flow, name)
        return {row: image for row, _, image in sorted(images, key=lambda r: r[:2])}
    if name == "ecg_measures":
        return _measures(root, stays, flow)
    if name not in embeddings:
        return {}
    if name == "cxr":
        images = frontal(root, stays, flow, name)
        keys = [(row, hour, image.dicom) for row, hour, image in images]
    else:
        placed = _placed(release.need(root, "record_list"), {"study_id": "text"}, stays, flow, name)
        keys = [(row, hour, record["study_id"]) for row, hour, record in placed]
    there, vectors = Embeddings(embeddings[name])([key for _, _, key in keys])
    matches.require_embedded(name, len(there), len(keys))
    flow.append((f"{name}: dropped, no embedding", len(keys) - len(there)))
    found: dict[int, list] = {}
    for i in np.argsort([keys[i][1] for i in there], kind="stable"):
        found.setdefault(keys[there[i]][0], []).append(i)
    return {
        row: {"values": vectors[own], "times": np.array([keys[there[i]][1] for i in own])}
        for row, own in found.items()
    }


def _measures(root: Path, stays: Stays, flow: list) -> dict[int, dict[str, np.ndarray]]:
    names = catalogue.ECG_MEASURES
    path = release.need(root, "machine_measurements")
    columns: dict[str, str] = dict.fromkeys(map(str, names), "float")
    placed = _placed(path, columns, stays, flow, "ecg_measures")
    found = {}
    for row, _, record in sorted(placed, key=lambda p: p[:2]):  # the last stands
        values = np.array([record[name] for name in names], float)
        found[row] = {"values": np.where(np.abs(values) >= UNKNOWN, np.nan, values)}
    return found


def _placed(
    path: Path, columns: dict[str, str], stays: Stays, flow: list, name: str
) -> Iterator[tuple[int, float, dict]]:
    """(row, hour, record) of the records of a table that lie in a stay's window.

    X-rays are told by their `StudyDate`; of them only the frontal ones count. The `line` of a
    record is that of the table.
    """
    ours, lost, kept, line = Finder(stays.life.subject, stays.life.intime), 0, 0, 2
    met = matches.Matches("subject_id", stays)
    columns = columns | {"subject_id": "int"}
    columns |= {} if "StudyDate" in columns else {"ecg_time": "text"}
    for batch in csv_files.stream(path, columns):
        records = batch.to_pylist()
        time = np.array([_seconds(record) for record in records], np.int64)
        subject = batch["subject_id"].fill_null(-1).to_numpy(zero_copy_only=False)
        met.add(subject)
        for i in np.flatnonzero(ours.known(subject) & (time <= csv_files.NEVER)):
            lost += records[i].get("ViewPosition", FRONTAL[0]).strip() in FRONTAL
        for i, row, hour in stays.place(batch["subject_id"], time):
            if records[i].get("ViewPosition", FRONTAL[0]).strip() in FRONTAL:
                kept += 1
                yield row, hour, records[i] | {"line": line + i}
        line += len(records)
    table = path.name.partition(".csv")[0]
    stays.joining.append(matches.line(name, table, "subject_id", met.check(path), kept))
    flow.append((f"{name}: left out, without a date and a time of day", lost))


def payload(image: Image) -> dict[str, np.ndarray] | None:
    """What an example holds of an X-ray, None if its file is not there."""
    if not image.path.exists():
        return None
    return {"values": np.repeat(grey_square(image)[None, ..., None], 3, axis=-1)}


def grey_square(image: Image) -> np.ndarray:
    """uint8 [h, w]: the central square of an X-ray, at the size of `catalogue.IMAGE`.

    Raises DataError for a file that cannot be decoded.
    """
    from PIL.Image import Resampling

    size = catalogue.IMAGE[1]
    try:
        with pictures.opened(image.path) as picture:
            picture.draft("L", (2 * size, 2 * size))  # decode at a fraction of the size
            side = min(picture.size)
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            square = picture.convert("L").crop((left, top, left + side, top + side))
            return np.asarray(square.resize((size, size), Resampling.BILINEAR))
    except DataError as error:
        raise DataError(f"{image.where}: its image has {error}") from None
    except Exception as error:  # a decoder may raise anything on a damaged file
        raise DataError(
            f"{image.where}: its image cannot be decoded ({type(error).__name__}); get it again"
        ) from None


def listed(root: Path, record: Mapping[str, Any], where: str) -> Image:
    """The image of a record of the metadata. Raises DataError for one that is no file's name."""
    subject, study, dicom = (record[name] for name in ("subject_id", "study_id", "dicom_id"))
    if not local.is_name(f"{dicom}.jpg"):
        raise DataError(f"{where}: dicom_id is no name of a file")
    folder = root / "files" / f"p{str(subject)[:2]}" / f"p{subject}" / f"s{study}"
    return Image(dicom, folder / f"{dicom}.jpg", where)


def frontal(root: Path, stays: Stays, flow: list, name: str) -> list[tuple[int, float, Image]]:
    """(row, hour, image) of the frontal images in a stay's window.

    `flow` takes how many have no time, under `name`.
    """
    columns = {"dicom_id": "text", "study_id": "int"}
    columns |= dict.fromkeys(("ViewPosition", "StudyDate", "StudyTime"), "text")
    table = release.need(root, linked.METADATA)
    return [
        (row, hour, listed(root, record, f"{table.name} line {record['line']}"))
        for row, hour, record in _placed(table, columns, stays, flow, name)
    ]


def _seconds(record: dict) -> int:
    """Seconds since 1970 when a study was made, or `csv_files.NEVER`.

    An ECG's '2180-05-06 21:30:14', an X-ray's '21800506' and '213014.531', whose zeros in front
    are lost: '1250.3' is twelve minutes past midnight.
    """
    if "ecg_time" in record:
        text = record["ecg_time"].strip()
    else:
        date = record["StudyDate"].strip().removesuffix(".0")
        clock = record["StudyTime"].strip().partition(".")[0]
        clock = clock.zfill(6) if clock.isdecimal() else ""
        text = f"{date[:4]}-{date[4:6]}-{date[6:]} {clock[:2]}:{clock[2:4]}:{clock[4:]}"
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        return csv_files.NEVER
    if len(text) < len("2180-05-06 21:30") or found.tzinfo:
        return csv_files.NEVER
    return (found - datetime.datetime(1970, 1, 1)) // datetime.timedelta(seconds=1)
