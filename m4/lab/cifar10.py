"""CIFAR-10 (Krizhevsky 2009), of files that the user brings, for gates of vision models.

The binary version: RAW/cifar-10-batches-bin with data_batch_1.bin ... data_batch_5.bin and
test_batch.bin. A record is a byte of the class and 3 x 32 x 32 bytes of pixels, planes of red,
green and blue. The last tenth of the training files is for validation.
"""

from pathlib import Path

import numpy as np

from m4.data.cohort import Cohort, checksums
from m4.errors import DataError
from m4.specs import DataSpec, ModalitySpec, TaskSpec

VERSION = "1"
SEEDED = False
LICENCE = "none is stated; cite Krizhevsky 2009"
WHERE = (
    "download and unpack https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz, which holds"
    " cifar-10-batches-bin"
)
FOLDER = "cifar-10-batches-bin"
TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST = "test_batch.bin"
CLASSES, PIXELS = 10, 3 * 32 * 32


def spec() -> DataSpec:
    """Modality `image`, uint8 [1, 32, 32, 3], and task `label` of ten classes."""
    image = ModalitySpec("image", "image", (1, 32, 32, 3), dtype="uint8")
    return DataSpec((image,), (TaskSpec("label", "multiclass", dim=CLASSES),))


def missing_files(raw_dir: Path | str) -> list[str]:
    """One line per file that is not there."""
    paths = [Path(raw_dir) / FOLDER / name for name in (*TRAIN, TEST)]
    return [f"{path} is missing" for path in paths if not path.is_file()]


def cohort(raw_dir: Path | str, *, seed: int) -> Cohort:
    """The pictures in the order of the files; `seed` changes nothing.

    Raises DataError, while iterating, for a file that is cut short or names other classes.
    """
    folder = Path(raw_dir) / FOLDER
    parts = {"train": (TRAIN, 0.0, 0.9), "val": (TRAIN, 0.9, 1.0), "test": ((TEST,), 0.0, 1.0)}

    def examples(split: str):
        names, low, high = parts[split]
        number = 0
        for name in names:
            label_N, image_N1hwc = read(folder / name)
            first, last = (round(len(label_N) * share) for share in (low, high))
            for i in range(first, last):
                row = {"values": image_N1hwc[i]}
                at = number + i + (len(names) == 1) * 10**6  # of the test file: other pictures
                yield {"patient": at, "inputs": {"image": row}, "targets": {"label": label_N[i]}}
            number += len(label_N)

    return Cohort(
        spec=spec(),
        splits={name: lambda name=name: examples(name) for name in parts},
        sources=checksums(Path(raw_dir), [folder / name for name in (*TRAIN, TEST)]),
        licence=LICENCE,
        version=VERSION,
        notes="CIFAR-10; no patients, a row is a picture",
    )


def read(path: Path) -> tuple[list[int], np.ndarray]:
    """(classes, uint8 [N, 1, 32, 32, 3]) of a file. Raises DataError for what is none."""
    try:
        found = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if not len(found) or len(found) % (1 + PIXELS):
        raise DataError(f"{path}: {len(found)} bytes are no records of {1 + PIXELS}")
    rows = found.reshape(-1, 1 + PIXELS)
    if rows[:, 0].max() >= CLASSES:
        raise DataError(f"{path}: class {rows[:, 0].max()}, CIFAR-10 has 0 to {CLASSES - 1}")
    planes = rows[:, 1:].reshape(-1, 1, 3, 32, 32)
    return rows[:, 0].tolist(), np.ascontiguousarray(planes.transpose(0, 1, 3, 4, 2))
