"""Invented reports, X-rays and ECGs for the ICU stays of a MIMIC-IV folder, such as the demo.

The demo has no notes, images and ECGs. These have its subjects and times and nothing else of
them: words, pixels and numbers are drawn at random.
"""

import datetime
import itertools
from pathlib import Path

import numpy as np

from m4.data import wfdb
from m4.data.fake import fresh, write_table
from m4.data.sets.mimiciv import catalogue, release
from m4.errors import ConfigError

WORDS = ("no", "acute", "change", "in", "the", "lungs", "effusion", "edema", "line", "tube")
HOUR = datetime.timedelta(hours=1)


def invent(folder: Path, *, patients: int, seed: int) -> Path:
    """Note, CXR-JPG and ECG folders beside the MIMIC-IV files (or the demo) of `folder`."""
    root = release.find_root(folder, demo=True) or release.find_root(folder, demo=False)
    if root is None:
        raise ConfigError(f"fake: {folder} has no MIMIC-IV folder whose stays could be used")
    columns = {"subject_id": "int", "hadm_id": "int", "intime": "time", "outtime": "time"}
    stays = [*itertools.islice(release.rows(root, "icustays", columns), patients)]
    rng = np.random.default_rng(seed)
    write_notes(fresh(folder / "mimic-iv-note-2.2"), stays, rng)
    write_images(fresh(folder / "mimic-cxr-jpg-2.0.0"), stays, rng)
    write_ecgs(fresh(folder / "mimic-iv-ecg-1.0"), stays, rng)
    return folder


def write_notes(root: Path, stays: list[dict], rng) -> None:
    """Up to seven radiology reports per stay, and a discharge summary per admission."""
    header = ["note_id", "subject_id", "hadm_id", "note_type", "note_seq", "charttime"]
    header += ["storetime", "text"]
    radiology: list[list] = [header]
    discharge: dict[int, list] = {0: header}
    for stay in stays:
        who, hadm = stay["subject_id"], stay["hadm_id"]
        for k in range(rng.integers(0, 8)):
            when = stay["intime"] + rng.integers(1, 60) * HOUR
            text = "EXAMINATION:  CHEST\n\nFINDINGS: " + " ".join(rng.choice(WORDS, 30))
            note = f"{who}-RR-{len(radiology) - 1}"
            radiology.append([note, who, hadm, "RR", k, when, when + HOUR, text])
        end = stay["outtime"] + 24 * HOUR
        text = "Past Medical History:\n" + " ".join(rng.choice(WORDS, 60))
        discharge[hadm] = [f"{who}-DS-{hadm}", who, hadm, "DS", 1, end, end, text]
    write_table(root / "note" / "radiology.csv.gz", radiology)
    write_table(root / "note" / "discharge.csv.gz", discharge.values())


def write_images(root: Path, stays: list[dict], rng) -> None:
    """Studies of a frontal and a lateral image in two of three stays, with findings."""
    from PIL import Image

    header = "dicom_id subject_id study_id ViewPosition Rows Columns StudyDate StudyTime"
    images: list[list] = [header.split()]
    titles = [name.replace("_", " ").title() for name in catalogue.CHEXPERT]
    findings: list[list] = [["subject_id", "study_id", *titles]]
    for number, stay in enumerate(stays):
        for k in range(0 if number % 3 == 2 else rng.integers(1, 4)):
            who, study = stay["subject_id"], 50_000_000 + 10 * number + k
            when = stay["intime"] + rng.integers(5, 40) * HOUR
            place = root / "files" / f"p{str(who)[:2]}" / f"p{who}" / f"s{study}"
            place.mkdir(parents=True)
            for view in (("AP", "PA")[k % 2], "LATERAL"):
                dicom = "-".join(rng.bytes(4).hex() for _ in range(5))
                row = [dicom, who, study, view, 48, 40, f"{when:%Y%m%d}", f"{when:%H%M%S}.5"]
                images.append(row)
                pixels = rng.integers(0, 255, (48, 40)).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{dicom}.jpg")
            findings.append([who, study, *rng.choice(["", "0.0", "1.0", "-1.0"], len(titles))])
    write_table(root / "mimic-cxr-2.0.0-metadata.csv.gz", images)
    write_table(root / "mimic-cxr-2.0.0-chexpert.csv.gz", findings)


def write_ecgs(root: Path, stays: list[dict], rng) -> None:
    """An ECG in half of the stays: its waveform, record and machine's measurements."""
    records: list[list] = [["subject_id", "study_id", "file_name", "ecg_time", "path"]]
    header = ["subject_id", "study_id", "ecg_time", "report_0", *catalogue.ECG_MEASURES]
    measures: list[list] = [header]
    for number, stay in enumerate(stays[::2]):
        who, study = stay["subject_id"], 40_000_000 + number
        when = stay["intime"] + rng.integers(1, 30) * HOUR
        path = f"files/p{str(who)[:4]}/p{who}/s{study}/{study}"
        records.append([who, study, study, when, path])
        beats_CT = np.cumsum(rng.normal(0, 0.02, (len(wfdb.LEADS), 5000)), axis=1)
        wfdb.write(root / f"{path}.hea", beats_CT, rate=500, leads=wfdb.LEADS)
        values = rng.integers(0, 900, len(catalogue.ECG_MEASURES))
        measures.append([who, study, when, "Sinus rhythm", *values])
    write_table(root / "record_list.csv", records)
    write_table(root / "machine_measurements.csv", measures)
