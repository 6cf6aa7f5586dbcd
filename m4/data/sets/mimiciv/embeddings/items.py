"""The notes, X-rays and ECGs of MIMIC-IV that an encoder is shown, one after the other."""

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from m4 import local
from m4.data import wfdb
from m4.data.sets.mimiciv import linked, release, studies
from m4.data.sets.mimiciv.embeddings.backends import ECG
from m4.data.sets.mimiciv.embeddings.folder import Item
from m4.errors import DataError


def read(what: str, raw_dir: Path) -> Iterator[Item]:
    """The notes, X-rays ("cxr") or ECGs of all patients with an ICU stay, in a fixed order."""
    kind = linked.KIND[what]
    root = linked.find(raw_dir, kind)
    mimic = release.find_root(raw_dir, demo=False) or release.find_root(raw_dir, demo=True)
    if root is None or mimic is None:
        raise DataError(f"embed: {raw_dir} has no MIMIC-IV or no {linked.TITLE[kind]} folder")
    ours = {*release.read(mimic, "icustays", {"subject_id": "int"})["subject_id"].tolist()}
    return {"notes": _notes, "cxr": _images, "ecg": _ecgs}[what](root, ours)


def _notes(root: Path, ours: set[int]) -> Iterator[Item]:
    columns = {"note_id": "text", "subject_id": "int", "text": "text"}
    for name in ("note/radiology", "note/discharge"):
        for row in release.rows(root, name, columns) if release.table(root, name) else ():
            if row["subject_id"] in ours:
                yield row["note_id"], functools.partial(str, row["text"])


def _images(root: Path, ours: set[int]) -> Iterator[Item]:
    columns = {"dicom_id": "text", "subject_id": "int", "study_id": "int", "ViewPosition": "text"}
    table = release.need(root, linked.METADATA).name
    for line, row in enumerate(release.rows(root, linked.METADATA, columns), start=2):
        if row["subject_id"] in ours and row["ViewPosition"].strip() in studies.FRONTAL:
            image = studies.listed(root, row, f"{table} line {line}")
            if image.path.exists():
                yield image.dicom, functools.partial(_grey, image)


def _ecgs(root: Path, ours: set[int]) -> Iterator[Item]:
    columns = {"subject_id": "int", "study_id": "text", "path": "text"}
    table = release.need(root, "record_list").name
    for line, row in enumerate(release.rows(root, "record_list", columns), start=2):
        if row["subject_id"] not in ours:
            continue
        if (place := local.below(root, row["path"])) is None:
            raise DataError(f"{table} line {line}: path is no path below {root.name}")
        if (header := place.with_suffix(".hea")).exists():
            yield row["study_id"], functools.partial(wfdb.twelve_leads, header, **ECG)


def _grey(image: studies.Image) -> np.ndarray:
    """f32[h, w] in 0..1."""
    return studies.grey_square(image) / np.float32(255)
