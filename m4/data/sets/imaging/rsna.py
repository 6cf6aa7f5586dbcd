"""RSNA Screening Mammography Breast Cancer Detection (2022), the competition's training files.

    rsna-breast-cancer-detection/train.csv
    rsna-breast-cancer-detection/train_images/<patient_id>/<image_id>.dcm

A record is a breast: its first CC and first MLO image in the order of the table. Density and
BI-RADS are known for a part of the breasts only and are no label elsewhere.
"""

from pathlib import Path

from m4.data.cohort import patient_number
from m4.data.sets.imaging.exam import DENSITIES, Exam, Picture, folder, home, rows
from m4.specs import DataSpec

LICENCE = "rules of the competition RSNA Screening Mammography Breast Cancer Detection"
FOLDERS = ("rsna-breast-cancer-detection*", "rsna*")
TABLE = "train.csv"
COLUMNS = ("patient_id", "image_id", "laterality", "view", "cancer", "BIRADS", "density")
VIEWS = {"CC": "cc", "MLO": "mlo"}


def missing_files(raw_dir: Path) -> list[str]:
    """One line per table or folder that is not there."""
    root = folder(raw_dir, FOLDERS, TABLE)
    if root is None:
        return [f"{raw_dir}: no rsna-breast-cancer-detection/{TABLE}"]
    images = root / "train_images"
    return [] if images.is_dir() else [f"{images}: missing (DICOM files)"]


def load(raw_dir: Path, data: DataSpec, flow: list, *, record: str) -> tuple[list, list[Path]]:
    """Breasts in the order of the table, and the tables read."""
    root = home(raw_dir, FOLDERS, TABLE)
    exams: dict[tuple[str, str], Exam] = {}
    table = rows(root / TABLE, COLUMNS)
    for line, row in enumerate(table, start=2):
        key = (row["patient_id"], row["laterality"])
        if key not in exams:
            exams[key] = Exam(patient_number(row["patient_id"]), {}, _labels(row))
        exam, view = exams[key], VIEWS.get(row["view"])
        for task, value in _labels(row).items():
            if exam.targets[task] is None or task == "cancer" and value:
                exam.targets[task] = value
        if view and view not in exam.pictures:
            path = root / "train_images" / row["patient_id"] / f"{row['image_id']}.dcm"
            exam.pictures[view] = Picture(path, "mammogram", f"{TABLE} line {line}")
    flow += [("images in the table", len(table)), ("breasts", len(exams))]
    kept = [exam for exam in exams.values() if exam.pictures]
    flow.append(("breasts with a CC or MLO image", len(kept)))
    return kept, [root / TABLE]


def _labels(row: dict[str, str]) -> dict[str, int | None]:
    birads, cancer = (row[name].removesuffix(".0") for name in ("BIRADS", "cancer"))
    return {
        "density": DENSITIES.get(row["density"]),
        "birads": {"0": 0, "1": 1, "2": 2}.get(birads),
        "cancer": {"0": 0, "1": 1}.get(cancer),
    }
