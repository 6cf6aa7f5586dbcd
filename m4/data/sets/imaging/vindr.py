"""VinDr-Mammo 1.0.0 (Nguyen et al., Sci Data 2023): 5,000 exams of four views.

    vindr-mammo/breast-level_annotations.csv
    vindr-mammo/images/<study_id>/<image_id>.dicom

A record is a breast of an exam; the labels are the table's, of the breast. The owner's split is
kept: 1,000 exams are the test split, 15 % of the other 4,000 the validation split. Patients are
not named: an exam stands for one.
"""

from pathlib import Path

from m4.data.cohort import patient_number
from m4.data.sets.imaging.exam import DENSITIES, Exam, Picture, folder, home, rows
from m4.specs import DataSpec

LICENCE = "PhysioNet Restricted Health Data License 1.5.0"
FOLDERS = ("vindr-mammo*", "vindr-mammo*/*", "vindr*")
TABLE = "breast-level_annotations.csv"
COLUMNS = (
    "study_id", "image_id", "laterality", "view_position", "breast_birads", "breast_density",
    "split",
)  # fmt: skip
VIEWS = {"CC": "cc", "MLO": "mlo"}


def missing_files(raw_dir: Path) -> list[str]:
    """One line per table or folder that is not there."""
    root = folder(raw_dir, FOLDERS, TABLE)
    if root is None:
        return [f"{raw_dir}: no vindr-mammo/{TABLE}"]
    return [] if (root / "images").is_dir() else [f"{root / 'images'}: missing (DICOM files)"]


def load(raw_dir: Path, data: DataSpec, flow: list, *, record: str) -> tuple[list, list[Path]]:
    """Breasts in the order of the table, and the tables read."""
    root = home(raw_dir, FOLDERS, TABLE)
    exams: dict[tuple[str, str], Exam] = {}
    table = rows(root / TABLE, COLUMNS)
    for line, row in enumerate(table, start=2):
        key = (row["study_id"], row["laterality"])
        if key not in exams:
            birads = row["breast_birads"].removeprefix("BI-RADS").strip()
            density = row["breast_density"].removeprefix("DENSITY").strip()
            exams[key] = Exam(
                patient_number(row["study_id"]),
                {},
                {
                    "density": DENSITIES.get(density),
                    "birads": {str(k + 1): k for k in range(5)}.get(birads),
                },
                split="test" if row["split"] == "test" else "train",
            )
        view = VIEWS.get(row["view_position"])
        if view and view not in exams[key].pictures:
            path = root / "images" / row["study_id"] / f"{row['image_id']}.dicom"
            exams[key].pictures[view] = Picture(path, "mammogram", f"{TABLE} line {line}")
    studies = len({study for study, _ in exams})
    flow += [("images in the table", len(table)), ("exams", studies), ("breasts", len(exams))]
    kept = [exam for exam in exams.values() if exam.pictures]
    flow.append(("breasts with a CC or MLO image", len(kept)))
    return kept, [root / TABLE]
