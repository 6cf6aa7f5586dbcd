"""Four small synthetic images per patient whose tasks need known subsets of them.

Image m is A_m z + B_m u_m plus noise: a factor z that all four share, and one of its own, u_m, each
painted as a fixed random pattern. The tasks, and the images each needs by construction:

| task | label | images |
|---|---|---|
| `density` | four levels of z | any one |
| `risk` | u of the first two images have the same sign | both of them, neither alone |
| `finding` | u of the third image above 0.5 | the third |
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m4.data import generated, split
from m4.data.cohort import Cohort, Example
from m4.data.option_checks import check
from m4.specs import About, DataSpec, ModalitySpec, TaskSpec

VERSION = "1"
LICENCE = "Apache-2.0; generated, no patients"
WHERE = "generated"
VIEWS = ("cview_cc", "cview_mlo", "ffdm_cc", "ffdm_mlo")
TITLES = ("First image", "Second image", "Third image", "Fourth image")
TASKS = (
    TaskSpec(
        "density",
        "multiclass",
        dim=4,
        title="Level",
        definition="Quarter of the factor that all four images show.",
    ),
    TaskSpec(
        "risk",
        "binary",
        title="Same sign",
        definition="The own factors of the first two images have the same sign.",
    ),
    TaskSpec(
        "finding",
        "binary",
        title="Finding",
        definition="The own factor of the third image is above 0.5.",
    ),
)
ABOUT = About(
    title="Synthetic images",
    source="Drawn by a random generator: fixed random patterns, weighted by factors, and noise.",
    setting="None; no patients.",
    period="None.",
    participants="As many invented patients as asked for.",
    use="To test methods and this software where it is known which images an answer needs.",
    not_for="Any statement about patients or mammograms.",
    limits="Images without shapes; presence is random.",
)
NEEDS = {"density": VIEWS, "risk": VIEWS[:2], "finding": VIEWS[2:3]}
FRACTIONS = {"train": 0.6, "val": 0.2, "test": 0.2}
LEVELS = (-0.6745, 0.0, 0.6745)  # quartiles of N(0, 1)


def spec(
    *,
    num_patients: int = 2000,
    size: int = 32,
    presence: float = 0.9,
    tasks: Sequence[str] = tuple(task.name for task in TASKS),
    fold: int = 0,
    num_folds: int = 0,
) -> DataSpec:
    """Four images [1, size, size, 3]. Raises ConfigError for values out of range.

    `fold` is which of `num_folds` is tested, 0 for the shares of `FRACTIONS`.
    """
    also = split.fold_problems(fold, num_folds)
    if num_patients < 10 or size < 4:
        also.append(f"data.options: num_patients={num_patients}, size={size} are too small")
    if not 0 < presence <= 1:
        also.append(f"data.options.presence: {presence} must be above 0 and at most 1")
    check(some=[("tasks", sorted(tasks), [task.name for task in TASKS])], also=also)
    return DataSpec(
        tuple(
            ModalitySpec(name, "image", (1, size, size, 3), title=title)
            for name, title in zip(VIEWS, TITLES, strict=True)
        ),
        tuple(task for task in TASKS if task.name in tasks),
        about=ABOUT,
    )


def missing_files(raw_dir, **options) -> list[str]:
    """Always empty: the images are generated."""
    return []


def cohort(raw_dir=None, *, seed: int, **options) -> Cohort:
    """Patients 0 to `num_patients` - 1, each a pure function of the seed and its number."""
    data = spec(**options)
    num_patients, presence = options.get("num_patients", 2000), options.get("presence", 0.9)
    size = options.get("size", 32)
    turn = {name: options.get(name, 0) for name in ("fold", "num_folds")}

    def examples(name: str) -> Iterator[Example]:
        for patient in range(num_patients):
            if split.part(patient, FRACTIONS, seed, **turn) == name:
                yield _example(data, patient, seed, size, presence)

    return Cohort(
        spec=data,
        splits={name: lambda name=name: examples(name) for name in FRACTIONS},
        sources={},
        licence=LICENCE,
        version=VERSION,
        notes="synthetic images; no patients",
    )


def new(
    folder: Path,
    resolved: Mapping[str, Any],
    vocabularies: Mapping[str, Sequence[str]],
    *,
    seed: int,
) -> Cohort:
    """Other patients than those of training, as the split 'new': see `m4.data.generated`."""
    del vocabularies
    may = ("num_patients", "presence")
    return generated.new(cohort, folder, resolved, trained=seed, may=may)


def labels(z: float, u_M: np.ndarray) -> dict[str, float]:
    """What the factors decide."""
    return {
        "density": int(np.searchsorted(LEVELS, z)),
        "risk": float((u_M[0] > 0) == (u_M[1] > 0)),
        "finding": float(u_M[2] > 0.5),
    }


def _example(data: DataSpec, patient: int, seed: int, size: int, presence: float) -> Example:
    rng = np.random.default_rng([seed, patient])
    z, u_M = rng.standard_normal(), rng.standard_normal(len(VIEWS))
    there_M = rng.random(len(VIEWS)) < presence
    if not there_M.any():
        there_M[rng.integers(len(VIEWS))] = True
    inputs = {}
    for m, name in enumerate(VIEWS):
        noise = rng.standard_normal((1, size, size, 3))
        if there_M[m]:
            shared, own = _patterns(m, size)
            image = z * shared + u_M[m] * own + 0.5 * noise
            inputs[name] = {"values": image.astype(np.float32)}
    found = labels(z, u_M)
    targets = {name: found[name] for name in data.task_names}
    return {"patient": patient, "inputs": inputs, "targets": targets}


def _patterns(m: int, size: int) -> np.ndarray:
    """A_m and B_m: blocks of size / 4 so that one patch shows a part of them, [2, s, s, 3]."""
    coarse = np.random.default_rng([2025, m]).standard_normal((2, 4, 4, 3))
    steps = -(-size // 4)
    return np.repeat(np.repeat(coarse, steps, 1), steps, 2)[:, :size, :size]
