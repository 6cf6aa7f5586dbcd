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
from m4.data.sets.imaging.exam import Exam, Picture, Row, disagreeing, rows
from m4.errors import DataError

LICENCE = "terms of the GAMMA challenge; not to be redistributed"
FOLDERS = ("gamma*", "GAMMA*")
TABLE = "Glaucoma_grading/training"
NEW = (TABLE,)
GRADES = ("non", "early", "mid_advanced")
FILE = f"{TABLE}/glaucoma_grading_training_GT"
IMAGES = f"{TABLE}/multi-modality_images"
MASKS = "Disc_Cup_Segmentation/training/Disc_Cup_Mask"
NEEDS = {f"{FILE}.[cx][sl]*": "grades, .xlsx or .csv", IMAGES: "images", MASKS: "images"}


def load(
    root: Path, flow: list, *, record: str, new: bool = False
) -> tuple[list[Exam], list[Path]]:
    """Pairs in the order of the table, and the tables read; `new` ones may lack labels.

    Without a table they are those that have a folder of images.
    """
    del record
    paths = [path for end in (".csv", ".xlsx") if (path := root / f"{FILE}{end}").is_file()]
    if not paths and new:
        names = sorted(p.name for p in (root / IMAGES).glob("*") if p.name.isdecimal())
        return [_pair(root, name, None, f"{IMAGES} folder {k}") for k, name in enumerate(names)], []
    path = paths[0]
    table, exams = _rows(path), {}
    for line, row in enumerate(table, start=2):
        for name in row:
            cell = row[name] or ("" if name == "data" else "0")
            row[name] = _whole(cell, f"{path}: line {line}: {name}")
    twice = disagreeing(table, ("data",), GRADES)
    for line, row in enumerate(table, start=2):
        where = f"{path.name} line {line}"
        grades, number = [int(row[name]) for name in GRADES], int(row["data"])
        name = f"{number:04d}"
        known = sum(grades) == max(grades) == 1 and (row["data"],) not in twice
        grade = grades.index(1) if known else None
        exams.setdefault(name, _pair(root, name, grade, where))
    none = sum(exam.targets["glaucoma"] is None for exam in exams.values())
    flow += [("pairs in the table", len(table)), ("pairs", len(exams))]
    flow += [("pairs with no grade or with two, no label", none)]
    return [*exams.values()], [path]


def _pair(root: Path, name: str, grade: int | None, where: str) -> Exam:
    """The pair `name`, four digits, of an eye."""
    return Exam(
        patient_number(str(int(name))),
        {
            "fundus": Picture(root / IMAGES / name / f"{name}.jpg", "fundus", where),
            "oct": Picture(root / IMAGES / name / name, "oct", where),
        },
        {"glaucoma": grade},
        split="fold",
        key=(name, None, name),
        maps={"cup": Picture(root / MASKS / f"{name}.png", "cup", where)},
    )


def _whole(cell: str, where: str) -> str:
    """A whole number from 0 on in one form: 1 for 1.0 and 0001."""
    try:
        value = float(cell)
    except ValueError:
        raise DataError(f"{where} is no number") from None
    if not (value >= 0 and value.is_integer()):
        raise DataError(f"{where} is no whole number from 0 on")
    return str(int(value))


def _rows(path: Path) -> list[Row]:
    columns = ("data", *GRADES)
    if path.suffix == ".csv":
        return rows(path, columns)
    try:
        import openpyxl
    except ImportError:
        raise DataError(
            f"{path}: needs openpyxl (pip install 'm4-moe[images]') or a .csv"
        ) from None
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            header, *body = book.worksheets[0].iter_rows(values_only=True)
        finally:
            book.close()
    except Exception as error:  # zip, XML, keys: openpyxl raises what its parsers do
        reason = type(error).__name__
        raise DataError(f"{path}: empty, or no readable workbook ({reason})") from None
    names = [str(name).strip() for name in header]
    if {*columns} - {*names}:
        raise DataError(f"{path}: needs the columns {', '.join(columns)}; it has {names}")
    cells = (dict(zip(names, line, strict=True)) for line in body if line[0] is not None)
    return [{name: str(row[name] or 0) for name in columns} for row in cells]
