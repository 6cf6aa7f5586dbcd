"""VinDr-Mammo 1.0.0 (Nguyen et al., Sci Data 2023): 5,000 exams of four views.

    vindr-mammo/breast-level_annotations.csv
    vindr-mammo/images/<study_id>/<image_id>.dicom

A record is a breast of an exam; the labels are the table's, of the breast. The owner's split is
kept: 1,000 exams are the test split, 15 % of the other 4,000 the validation split. Patients are
not named: an exam stands for one.
"""

from pathlib import Path

from m4.data.sets.imaging.exam import DENSITIES, Exam, Row, breasts

LICENCE = "PhysioNet Restricted Health Data License 1.5.0"
FOLDERS = ("vindr-mammo*", "vindr-mammo*/*", "vindr*")
TABLE = "breast-level_annotations.csv"
NEW = (TABLE,)
NEEDS = {"images": "DICOM files"}
LABELS = ("breast_birads", "breast_density", "split")
COLUMNS = ("study_id", "image_id", "laterality", "view_position", *LABELS)


def load(
    root: Path, flow: list, *, record: str, new: bool = False
) -> tuple[list[Exam], list[Path]]:
    """Breasts in the order of the table, and the tables read; `new` ones may lack labels."""
    del record
    found = breasts(
        root / TABLE,
        COLUMNS,
        ("study_id", "view_position", "" if new else "split"),
        place=lambda row: root / "images" / row["study_id"] / f"{row['image_id']}.dicom",
        labels=_labels,
        flow=flow,
        optional=LABELS if new else (),
    )
    return found, [root / TABLE]


def _labels(row: Row) -> dict[str, int | None]:
    birads = row["breast_birads"].removeprefix("BI-RADS").strip()
    density = row["breast_density"].removeprefix("DENSITY").strip()
    return {
        "density": DENSITIES.get(density),
        "birads": {str(k + 1): k for k in range(5)}.get(birads),
    }
