"""RSNA Screening Mammography Breast Cancer Detection (2022), the competition's training files.

    rsna-breast-cancer-detection/train.csv
    rsna-breast-cancer-detection/train_images/<patient_id>/<image_id>.dcm

A record is a breast: its first CC and first MLO image in the order of the table. Density and
BI-RADS are known for a part of the breasts only and are no label elsewhere. New breasts are those
of `train.csv` or of the competition's `test.csv` and `test_images/`.
"""

from pathlib import Path

from m4.data.sets.imaging.exam import DENSITIES, Exam, age_band, breasts

LICENCE = "rules of the competition RSNA Screening Mammography Breast Cancer Detection"
FOLDERS = ("rsna-breast-cancer-detection*", "rsna*")
TABLE = "train.csv"
NEW = (TABLE, "test.csv")
NEEDS = {"train_images": "DICOM files"}
LABELS = ("cancer", "BIRADS", "density")
GROUPS = {"age_band": "age", "site": "site_id"}  # group column -> column of the table, if there
COLUMNS = ("patient_id", "image_id", "laterality", "view", *LABELS, *GROUPS.values())


def load(
    root: Path, flow: list, *, record: str, new: bool = False
) -> tuple[list[Exam], list[Path]]:
    """Breasts in the order of the table, and the tables read; `new` ones may lack labels."""
    del record
    table = next((t for t in NEW if new and (root / t).exists()), TABLE)
    folder = root / table.replace(".csv", "_images")
    found = breasts(
        root / table,
        COLUMNS,
        ("patient_id", "view", ""),
        place=lambda row: folder / row["patient_id"] / f"{row['image_id']}.dcm",
        labels=lambda row: {
            "density": DENSITIES.get(row["density"]),
            "birads": {"0": 0, "1": 1, "2": 2}.get(row["BIRADS"]),
            "cancer": {"0": 0, "1": 1}.get(row["cancer"]),
        },
        flow=flow,
        optional=(*GROUPS.values(), *(LABELS if new else ())),
        groups=lambda row: {"age_band": age_band(row["age"]), "site": row["site_id"]},
    )
    return found, [root / table]
