"""GAMMA (Wu et al., Medical Image Analysis 2023): colour fundus and OCT volume of an eye.

    gamma/Glaucoma_grading/training/glaucoma_grading_training_GT.xlsx     (or saved as .csv)
    gamma/Glaucoma_grading/training/multi-modality_images/<id>/<id>.jpg   fundus
    gamma/Glaucoma_grading/training/multi-modality_images/<id>/<id>/<k>_image.jpg  256 B-scans
    gamma/Disc_Cup_Segmentation/training/Disc_Cup_Mask/<id>.png           cup 0, disc 128, rest 255

The 100 pairs with public labels, in five folds by a keyed hash of the pair. 276 patients gave 300
pairs and are not named, so that both eyes of one may be in two folds.
"""

from pathlib import Path

from m4.data.cohort import patient_number
from m4.data.sets.imaging.exam import Exam, Picture, folder, home, rows
from m4.errors import DataError
from m4.specs import DataSpec

LICENCE = "terms of the GAMMA challenge; not to be redistributed"
FOLDERS = ("gamma*", "GAMMA*")
GRADING = "Glaucoma_grading/training"
TABLE = "glaucoma_grading_training_GT"
GRADES = ("non", "early", "mid_advanced")
MASKS = "Disc_Cup_Segmentation/training/Disc_Cup_Mask"


def missing_files(raw_dir: Path) -> list[str]:
    """One line per table or folder that is not there."""
    root = folder(raw_dir, FOLDERS, GRADING)
    if root is None:
        return [f"{raw_dir}: no gamma/{GRADING}"]
    missing = [] if _table(root) else [f"{root / GRADING / TABLE}.xlsx: missing (grades)"]
    for place in (f"{GRADING}/multi-modality_images", MASKS):
        if not (root / place).is_dir():
            missing.append(f"{root / place}: missing (images)")
    return missing


def load(raw_dir: Path, data: DataSpec, flow: list, *, record: str) -> tuple[list, list[Path]]:
    """Pairs in the order of the table, and the tables read."""
    root = home(raw_dir, FOLDERS, GRADING)
    path = _table(root)
    if path is None:
        raise DataError(f"{root / GRADING / TABLE}.xlsx: missing (grades)")
    exams, images = [], root / GRADING / "multi-modality_images"
    for line, row in enumerate(_rows(path), start=2):
        grades = [int(float(row[name] or 0)) for name in GRADES]
        name = f"{int(float(row['data'])):04d}"
        where = f"{path.name} line {line}"
        exams.append(
            Exam(
                patient_number(name),
                {
                    "fundus": Picture(images / name / f"{name}.jpg", "fundus", where),
                    "oct": Picture(images / name / name, "oct", where),
                },
                {"glaucoma": grades.index(1) if sum(grades) == 1 else None},
                split="fold",
                maps={"cup": Picture(root / MASKS / f"{name}.png", "cup", where)},
            )
        )
    flow.append(("pairs in the table", len(exams)))
    return exams, [path]


def _table(root: Path) -> Path | None:
    found = (root / GRADING / f"{TABLE}{ending}" for ending in (".csv", ".xlsx"))
    return next((path for path in found if path.is_file()), None)


def _rows(path: Path) -> list[dict[str, str]]:
    columns = ("data", *GRADES)
    if path.suffix == ".csv":
        return rows(path, columns)
    try:
        import openpyxl
    except ImportError:
        raise DataError(
            f"{path}: needs openpyxl (pip install 'm4-moe[images]') or a .csv"
        ) from None
    book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    try:
        header, *body = book.worksheets[0].iter_rows(values_only=True)
    finally:
        book.close()
    names = [str(name).strip() for name in header]
    if {*columns} - {*names}:
        raise DataError(f"{path}: needs the columns {', '.join(columns)}; it has {names}")
    cells = (dict(zip(names, line, strict=True)) for line in body if line[0] is not None)
    return [{name: str(row[name] or 0) for name in columns} for row in cells]
