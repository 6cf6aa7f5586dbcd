"""RSNA Screening Mammography Breast Cancer Detection (2022), the competition's training files.

    rsna-breast-cancer-detection/train.csv
    rsna-breast-cancer-detection/train_images/<patient_id>/<image_id>.dcm

A record is a breast: its first CC and first MLO image in the order of the table. Density and
BI-RADS are known for a part of the breasts only and are no label elsewhere.
"""

from pathlib import Path

from m4.data.sets.imaging.exam import DENSITIES, Exam, breasts

LICENCE = "rules of the competition RSNA Screening Mammography Breast Cancer Detection"
FOLDERS = ("rsna-breast-cancer-detection*", "rsna*")
TABLE = "train.csv"
NEEDS = {"train_images": "DICOM files"}
COLUMNS = ("patient_id", "image_id", "laterality", "view", "cancer", "BIRADS", "density")


def load(root: Path, flow: list, *, record: str) -> tuple[list[Exam], list[Path]]:
    """Breasts in the order of the table, and the tables read."""
    found = breasts(
        root / TABLE,
        COLUMNS,
        ("patient_id", "view", ""),
        place=lambda row: root / "train_images" / row["patient_id"] / f"{row['image_id']}.dcm",
        labels=lambda row: {
            "density": DENSITIES.get(row["density"]),
            "birads": {"0": 0, "1": 1, "2": 2}.get(row["BIRADS"]),
            "cancer": {"0": 0, "1": 1}.get(row["cancer"]),
        },
        flow=flow,
    )
    return found, [root / TABLE]
