"""Invented pairs of fundus photograph and OCT volume: GAMMA."""

from pathlib import Path

import numpy as np

from m4.data.fake import fresh

SCANS = 8  # of 256


def gamma(folder: Path, *, patients: int, seed: int) -> Path:
    """`gamma/`: a cup that grows with the grade, in the photograph and in its mask."""
    from openpyxl import Workbook
    from PIL import Image

    root, rng = fresh(folder / "gamma"), np.random.default_rng(seed)
    grading = root / "Glaucoma_grading" / "training"
    masks = root / "Disc_Cup_Segmentation" / "training" / "Disc_Cup_Mask"
    masks.mkdir(parents=True)
    book = Workbook()
    book.active.append(["data", "non", "early", "mid_advanced"])
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
        book.active.append([number, *(int(grade == g) for g in range(3))])
    book.save(grading / "glaucoma_grading_training_GT.xlsx")
    return root
