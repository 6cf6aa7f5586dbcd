"""Invented images in the layouts of EMBED, RSNA 2022, VinDr-Mammo and GAMMA.

Letters: h rows, w columns.
"""

from pathlib import Path

import numpy as np

from m4.data.fake import fresh, write_table
from m4.data.sets.imaging.embed import CLINICAL_COLUMNS, METADATA_COLUMNS

HEIGHT, WIDTH = 64, 48
VIEWS = ("CC", "MLO")
SCANS = 8  # of 256 of an OCT volume
RSNA = (  # header lines
    "site_id patient_id image_id laterality view age cancer biopsy invasive BIRADS implant density"
    " machine_id difficult_negative_case"
)
VINDR = (
    "study_id series_id image_id laterality view_position height width breast_birads"
    " breast_density split"
)


def invent(folder: Path, *, patients: int, seed: int, layout: str) -> Path:
    """The files of one layout."""
    writer = {"embed": embed, "rsna": rsna, "vindr": vindr, "gamma": gamma}[layout]
    return writer(folder, patients=patients, seed=seed)


def breast(rng, *, side: str, density: int, suspicious: bool) -> np.ndarray:
    """uint16 [h, w]: a bright half disc at the chest wall, left for L; denser is brighter."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    inside = ((y - HEIGHT / 2) / (HEIGHT * 0.45)) ** 2 + (x / (WIDTH * 0.8)) ** 2 < 1
    image = inside * (800 + 500 * density + rng.normal(0, 80, (HEIGHT, WIDTH)))
    if suspicious:
        row, column = rng.integers(HEIGHT // 3, HEIGHT // 2), rng.integers(4, WIDTH // 3)
        image[row : row + 6, column : column + 6] += 1200
    image = image.clip(0, 4095).astype(np.uint16)
    return image if side == "L" else np.ascontiguousarray(image[:, ::-1])


def write_dicom(path: Path, image_hw: np.ndarray, *, inverted: bool = False, side: str = "L"):
    """An uncompressed 12-bit mammogram with a window; `inverted` stores it as MONOCHROME1."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import (
        DigitalMammographyXRayImageStorageForPresentation,
        ExplicitVRLittleEndian,
        generate_uid,
    )

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.Modality, data.ImageLaterality = "MG", side
    data.Rows, data.Columns = image_hw.shape
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    data.WindowCenter, data.WindowWidth = 2048, 4096
    stored = 4095 - image_hw if inverted else image_hw
    data.PixelData = stored.astype("<u2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def rsna(folder: Path, *, patients: int, seed: int) -> Path:
    """`rsna-breast-cancer-detection/`: train.csv and train_images/; some labels and views lack."""
    root, rng = fresh(folder / "rsna-breast-cancer-detection"), np.random.default_rng(seed)
    table: list[list] = [RSNA.split()]
    for patient in range(10_000, 10_000 + patients):
        density, side_cancer = int(rng.integers(4)), rng.random(2) < 0.2
        for side, cancer in zip("LR", side_cancer, strict=True):
            for view in VIEWS:
                if rng.random() < 0.1:
                    continue
                image = int(rng.integers(1, 2**31))
                pixels = breast(rng, side=side, density=density, suspicious=cancer)
                path = root / "train_images" / str(patient) / f"{image}.dcm"
                write_dicom(path, pixels, inverted=rng.random() < 0.3, side=side)
                birads = "" if patient % 2 else float(0 if cancer else 1 + patient % 4 // 2)
                grade = "" if patient % 4 == 3 else "ABCD"[density]
                row = [1 + patient % 2, patient, image, side, view, 60, int(cancer), int(cancer)]
                table.append([*row, 0, birads, 0, grade, 49, False])
    write_table(root / "train.csv", table)
    return root


def vindr(folder: Path, *, patients: int, seed: int) -> Path:
    """`vindr-mammo/`: one exam of four views per patient, every fifth in the test split."""
    root, rng = fresh(folder / "vindr-mammo"), np.random.default_rng(seed)
    table: list[list] = [VINDR.split()]
    for patient in range(patients):
        study, density = rng.bytes(16).hex(), int(rng.integers(4))
        for side in "LR":
            birads = int(rng.integers(1, 6))
            for view in VIEWS:
                image = rng.bytes(16).hex()
                pixels = breast(rng, side=side, density=density, suspicious=birads > 3)
                write_dicom(root / "images" / study / f"{image}.dicom", pixels, side=side)
                row = [study, rng.bytes(16).hex(), image, side, view, HEIGHT, WIDTH]
                row += [f"BI-RADS {birads}", f"DENSITY {'ABCD'[density]}"]
                table.append([*row, "test" if patient % 5 == 4 else "training"])
    write_table(root / "breast-level_annotations.csv", table)
    return root


def embed(folder: Path, *, patients: int, seed: int) -> Path:
    """`embed/`: two exams per patient a year apart; cancer is proven after some."""
    root, rng = fresh(folder / "embed"), np.random.default_rng(seed)
    images: list[list] = [[*METADATA_COLUMNS]]
    findings: list[list] = [[*CLINICAL_COLUMNS]]
    for patient in range(20_000, 20_000 + patients):
        density, cancer = int(rng.integers(4)), rng.random() < 0.3
        for year in (2014, 2015):
            exam = [patient, int(rng.integers(10**9)), f"{year}-03-01"]
            for side in "LR":
                sick = cancer and side == "L"
                proven = sick and year == 2015
                assessment = "S" if sick else "NBPA"[int(rng.integers(4))]
                severity = float(rng.integers(2)) if proven else ""
                when = f"{year}-04-01" if proven else ""
                findings.append([*exam, side, assessment, float(density + 1), severity, when])
                images += _embed_images(root, rng, exam, side, density, sick)
    write_table(root / "tables" / "EMBED_OpenData_metadata.csv", images)
    write_table(root / "tables" / "EMBED_OpenData_clinical.csv", findings)
    return root


def _embed_images(root, rng, exam, side, density, sick):
    for kind in ("cview", "2D"):
        for view in VIEWS:
            if rng.random() < 0.1:
                continue
            place = f"{exam[0]}/{exam[1]}/{rng.bytes(8).hex()}.dcm"
            pixels = breast(rng, side=side, density=density, suspicious=sick)
            write_dicom(root / "images" / "cohort_1" / place, pixels, side=side)
            path = f"/mnt/dicom/cohort_1/extracted-images/{place}"
            yield [*exam, kind, side, view, "", path]


def gamma(folder: Path, *, patients: int, seed: int) -> Path:
    """`gamma/`: a cup that grows with the grade, in the photograph and in its mask."""
    from openpyxl import Workbook
    from PIL import Image

    root, rng = fresh(folder / "gamma"), np.random.default_rng(seed)
    grading = root / "Glaucoma_grading" / "training"
    masks = root / "Disc_Cup_Segmentation" / "training" / "Disc_Cup_Mask"
    masks.mkdir(parents=True)
    book = Workbook()
    sheet = book.worksheets[0]
    sheet.append(["data", "non", "early", "mid_advanced"])
    y, x = np.mgrid[0:48, 0:64]
    distance = np.hypot(y - 24, x - 32)
    for number in range(1, patients + 1):
        name, grade = f"{number:04d}", int(rng.integers(3))
        scans = grading / "multi-modality_images" / name / name
        scans.mkdir(parents=True)
        cup, disc = distance < 4 + 3 * grade, distance < 14
        mask = np.where(cup, 0, np.where(disc, 128, 255)).astype(np.uint8)
        photo = np.stack([60 + 60 * disc + 100 * cup] * 3, -1) + rng.integers(0, 20, (48, 64, 3))
        Image.fromarray(photo.astype(np.uint8)).save(scans.parent / f"{name}.jpg")
        Image.fromarray(mask).save(masks / f"{name}.png")
        for scan in range(SCANS):
            layer = 200 * scan * (y > 20 + 4 * grade) // SCANS + rng.integers(0, 20, y.shape)
            Image.fromarray(layer.astype(np.uint8)).save(scans / f"{scan}_image.jpg")
        sheet.append([number, *(int(grade == g) for g in range(3))])
    book.save(grading / "glaucoma_grading_training_GT.xlsx")
    return root
