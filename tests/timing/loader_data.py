"""Records of one size for the loader's benchmark: noise, no patients.

"small": a series of 48 x 30 numbers with a mask of what was observed, a vector of 768, a label.
"image": the same and a stored uint8 image of 224 x 224 x 3.
"""

from collections.abc import Iterator

import numpy as np

from m4.data.cohort import Cohort, Example
from m4.specs import DataSpec, ModalitySpec, TaskSpec

VERSION = "1"
LICENCE = "Apache-2.0; generated, no patients"
WHERE = "generated"
STEPS, FEATURES, WIDTH, SIZE = 48, 30, 768, 224


def spec(*, rows: int = 2048, image: bool = False) -> DataSpec:
    """A series, a vector and, with `image`, an image; `rows` in the training split."""
    modalities = [
        ModalitySpec("series", "series", (STEPS, FEATURES)),
        ModalitySpec("note", "vectors", (1, WIDTH)),
    ]
    if image:
        modalities.append(ModalitySpec("image", "image", (1, SIZE, SIZE, 3), dtype="uint8"))
    return DataSpec(tuple(modalities), (TaskSpec("label", "binary"),))


def missing_files(raw_dir, **options) -> list[str]:
    """Always empty."""
    return []


def example(row: int, *, image: bool) -> Example:
    """Record `row`: every modality present, a tenth of the measurements."""
    rng = np.random.default_rng(row)
    values = rng.standard_normal((STEPS, FEATURES), np.float32)
    values[rng.random(values.shape) < 0.9] = np.nan
    inputs = {
        "series": {"values": values, "times": np.arange(STEPS, dtype=np.float32)},
        "note": {"values": rng.standard_normal((1, WIDTH), np.float32), "times": np.zeros(1)},
    }
    if image:
        inputs["image"] = {"values": rng.integers(0, 255, (1, SIZE, SIZE, 3), np.uint8)}
    return {"patient": row, "inputs": inputs, "targets": {"label": row % 2}}


def cohort(raw_dir=None, *, seed: int, rows: int = 2048, image: bool = False) -> Cohort:
    """`rows` training records and eight of each other split."""
    del raw_dir, seed

    def examples(first: int, count: int) -> Iterator[Example]:
        return (example(row, image=image) for row in range(first, first + count))

    return Cohort(
        spec=spec(rows=rows, image=image),
        splits={
            "train": lambda: examples(0, rows),
            "val": lambda: examples(rows, 8),
            "test": lambda: examples(rows + 8, 8),
        },
        sources={},
        licence=LICENCE,
        version=VERSION,
        notes="benchmark",
    )
