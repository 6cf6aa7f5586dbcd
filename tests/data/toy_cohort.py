"""A small cohort with every modality kind and every task kind that can be stored."""

import numpy as np

from m4.data import build
from m4.data.cohort import Cohort
from m4.specs import DataSpec, ModalitySpec, TaskSpec

SPEC = DataSpec(
    modalities=(
        ModalitySpec("vitals", "series", (4, 2), ("hr", "lactate")),
        ModalitySpec("note", "vectors", (2, 3)),
        ModalitySpec("static", "table", (2,), ("age", "sex")),
        ModalitySpec("icd", "codes", (3,), dtype="int32", vocab=5),
        ModalitySpec("words", "text", (3,), dtype="int32", vocab=7),
        ModalitySpec("xray", "image", (1, 2, 2, 1), dtype="uint8"),
        ModalitySpec("ecg", "signal", (5, 1)),
    ),
    tasks=(
        TaskSpec("death", "binary"),
        TaskSpec("los", "regression", transform="log1p"),
        TaskSpec("pheno", "multilabel", dim=3),
        TaskSpec("unit", "multiclass", dim=4),
    ),
    hours=24.0,
)


def example(patient):
    """Ragged, with every modality absent for some patients and every label missing for some."""
    rng = np.random.default_rng(patient)
    n = 1 + patient % 6  # more than 4 rows: cut
    vitals = rng.normal(80, 10, (n, 2))
    vitals[:, 1] = np.exp(vitals[:, 1] / 10 - 8)
    vitals[rng.random((n, 2)) < 0.3] = np.nan
    inputs = {
        "vitals": {"values": vitals, "times": np.sort(rng.uniform(0, 24, n))},
        "note": {
            "values": rng.normal(size=(1 + patient % 2, 3)),
            "times": np.arange(1 + patient % 2),
        },
        "static": {"values": [rng.normal(60, 15), float(patient % 2)]},
        "icd": {"values": rng.integers(0, 5, 1 + patient % 3)},
        "words": {"values": rng.integers(0, 7, 1 + patient % 3)},
        "xray": {"values": rng.integers(0, 255, (1, 2, 2, 1))},
        "ecg": {"values": rng.normal(3, 2, (5, 1))},
    }
    for m, name in enumerate([*inputs]):
        if (patient + m) % 5 == 0 or patient % 11 == 10:
            del inputs[name]
    targets = {
        "death": float(patient % 2),
        "los": None if patient % 4 == 0 else float(patient % 9),
        "pheno": np.where(rng.random(3) < 0.3, np.nan, rng.integers(0, 2, 3)),
        "unit": None if patient % 5 == 1 else patient % 4,
    }
    return {"patient": 1000 + patient, "inputs": inputs, "targets": targets}


def make_cohort(make=example, sizes=(("train", 40), ("val", 11), ("test", 9))):
    first, splits = 0, {}
    for name, size in sizes:
        numbers = range(first, first + size)
        splits[name] = lambda numbers=numbers: (make(i) for i in numbers)
        first += size
    return Cohort(spec=SPEC, splits=splits, sources={}, licence="CC0", version="1", notes="toy")


def build_into(folder, cohort):
    folder.mkdir(exist_ok=True)
    manifest = build.write(folder, cohort)
    build.manifests.write(folder, {"format": build.manifests.FORMAT, "name": "toy", **manifest})
    return folder
