"""A data set module outside the tree with the modalities that the releases have, for tests."""

import numpy as np

from m4.data import split
from m4.data.cohort import Cohort
from m4.specs import DataSpec, ModalitySpec, TaskSpec

VERSION, LICENCE, WHERE = "1", "Apache-2.0", "generated"
FRACTIONS = {"train": 0.6, "val": 0.2, "test": 0.2}
SPECS = {
    "tables": (
        (ModalitySpec("genomic", "table", (7,)), ModalitySpec("clinical", "table", (5,))),
        (TaskSpec("diagnosis", "multiclass", dim=3),),
    ),
    "care": (
        (
            ModalitySpec("ehr", "vectors", (4, 6)),
            ModalitySpec("cxr", "image", (1, 8, 8, 3)),
            ModalitySpec("note", "vectors", (3, 5)),
        ),
        (TaskSpec("ihm48", "binary"), TaskSpec("los", "multiclass", dim=3)),
    ),
    "tasks": (
        (ModalitySpec("labs", "table", (3,)), ModalitySpec("vitals", "table", (2,))),
        (TaskSpec("death", "binary"), TaskSpec("los", "regression")),
    ),
    "text": (
        (ModalitySpec("labs", "table", (3,)), ModalitySpec("note", "text", (9,), vocab=11)),
        (TaskSpec("death", "binary"),),
    ),
}


def spec(*, kind, rows=60):
    return DataSpec(*SPECS[kind])


def missing_files(raw_dir, *, kind, rows=60):
    return []


def cohort(raw_dir, *, seed, kind, rows=60):
    def examples(name):
        for row in range(rows):
            if split.assign(row, FRACTIONS, seed) == name:
                yield example(spec(kind=kind), row)

    return Cohort(
        spec=spec(kind=kind),
        splits={name: lambda name=name: examples(name) for name in FRACTIONS},
        sources={},
        licence=LICENCE,
        version=VERSION,
    )


def example(data, row):
    rng = np.random.default_rng(row)
    inputs = {}
    for m in data.modalities:
        values = rng.normal(size=m.shape).astype(np.float32)
        if m.kind == "text":
            values = rng.integers(1, m.vocab, 1 + row % m.length)
        inputs[m.name] = {"values": values}
        if m.kind == "vectors":
            inputs[m.name]["times"] = np.arange(m.length, dtype=np.float32)
    labels = {t.name: int(rng.integers(0, max(t.dim, 2))) for t in data.tasks}
    return {"patient": row, "inputs": inputs, "targets": labels}
