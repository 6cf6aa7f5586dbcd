"""The rival of the loader: torch's DataLoader. Runs as a script with torch, without m4.

What the published releases do: a map-style data set that holds its records as a list of arrays in
memory, pads and masks one record per call, and leaves stacking to the default collation in worker
processes. Batches arrive as CPU tensors, shuffled, epoch after epoch.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.timing.worker_process import serve  # noqa: E402 (importable only by path)

STEPS, FEATURES, WIDTH, SIZE = 48, 30, 768, 224


class Records(Dataset):
    """Records of the sizes of `loader_data`, made once and kept."""

    def __init__(self, rows: int, image: bool):
        rng = np.random.default_rng(0)
        self._records = []
        for row in range(rows):
            values = rng.standard_normal((STEPS, FEATURES), np.float32)
            values[rng.random(values.shape) < 0.9] = np.nan
            record = {"values": values, "note": rng.standard_normal((1, WIDTH), np.float32)}
            if image:
                record["image"] = rng.integers(0, 255, (1, SIZE, SIZE, 3), np.uint8)
            self._records.append((record, row))

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        record, row = self._records[index]
        observed = ~np.isnan(record["values"])
        found = {
            "values": np.where(observed, record["values"], 0),
            "observed": observed,
            "mask": np.ones(STEPS, bool),
            "times": np.arange(STEPS, dtype=np.float32),
            "note": record["note"],
            "note_mask": np.ones(1, bool),
            "label": np.float32(row % 2),
        }
        if "image" in record:
            found["image"] = record["image"]
        return found


def setup(case):
    """One variant: take `case['steps']` batches from an endless stream."""
    torch.set_num_threads(1)
    data = Records(case["rows"], case["image"])
    loader = DataLoader(
        data,
        case["batch_size"],
        shuffle=True,
        drop_last=True,
        num_workers=case["workers"],
        persistent_workers=True,
        prefetch_factor=4,
    )

    def endless():
        while True:
            yield from loader

    stream = endless()

    def run():
        for _ in range(case["steps"]):
            next(stream)

    return {"torch": run}, {"version": torch.__version__}


if __name__ == "__main__":
    serve(setup)
