"""Layouts of the published image cohorts of M4oE: EMBED, RSNA, VinDr-Mammo and GAMMA.

Schemas and label rules only: their images cannot be redistributed and are not read yet, so a run
ends at once and says so. A lab's own module with these schemas works as any data set does.

| layout | images | tasks |
|---|---|---|
| `embed` | synthetic 2-D and full-field, CC and MLO | density, BI-RADS group, cancer in a year |
| `rsna` | CC, MLO of one breast | density, BI-RADS 0 / 1 / 2 |
| `vindr` | CC, MLO of one breast | density, BI-RADS 1 to 5 |
| `gamma` | fundus; three slices of an OCT volume | glaucoma grade, optic cup |
"""

from pathlib import Path

from m4.data.cohort import Cohort
from m4.errors import ConfigError, DataError
from m4.specs import DataSpec, ModalitySpec, TaskSpec

VERSION = "1"
LICENCE = "as granted by each cohort's owner"
WHERE = "each cohort's owner grants access"
SIZE = 224
DENSITY = TaskSpec("density", "multiclass", dim=4, labels=("A", "B", "C", "D"))
LAYOUTS: dict[str, tuple[tuple[str, ...], tuple[TaskSpec, ...]]] = {
    "embed": (
        ("cview_cc", "cview_mlo", "ffdm_cc", "ffdm_mlo"),
        (
            DENSITY,
            TaskSpec("birads", "multiclass", dim=3, labels=("negative", "benign", "suspicious")),
            TaskSpec("risk_1y", "binary"),
        ),
    ),
    "rsna": (("cc", "mlo"), (DENSITY, TaskSpec("birads", "multiclass", dim=3))),
    "vindr": (("cc", "mlo"), (DENSITY, TaskSpec("birads", "multiclass", dim=5))),
    "gamma": (
        ("fundus", "oct"),
        (
            TaskSpec("glaucoma", "multiclass", dim=3),
            TaskSpec("cup", "segmentation", needs=("fundus",)),
        ),
    ),
}
BIRADS = {"N": 0, "B": 1, "P": 1, "S": 2, "M": 2, "K": 2}  # A: more images needed, so no label


def spec(*, layout: str = "embed") -> DataSpec:
    """The schema of a layout. Raises ConfigError for an unknown one."""
    if layout not in LAYOUTS:
        raise ConfigError(f"data.options.layout: {layout!r} is none of {', '.join(LAYOUTS)}")
    names, tasks = LAYOUTS[layout]
    return DataSpec(
        tuple(ModalitySpec(name, "image", (1, SIZE, SIZE, 3), dtype="uint8") for name in names),
        tasks,
    )


def missing_files(raw_dir: Path | str, *, layout: str = "embed") -> list[str]:
    """Raises DataError: nothing reads these images yet, whatever lies in `raw_dir`."""
    raise DataError(
        f"{layout}: its images are not read yet; try --config=configs/m4oe_views.py, which has the"
        " layout of EMBED, or write a data set module with this schema (docs/data.md)"
    )


def cohort(raw_dir: Path | str, *, seed: int, layout: str = "embed") -> Cohort:
    """Raises DataError, as `missing_files` does."""
    missing_files(raw_dir, layout=layout)
    raise AssertionError  # missing_files never returns


def embed_labels(
    density: int, assessment: str, years_to_cancer: float, years_seen: float, *, horizon: float = 1
) -> dict[str, int | None]:
    """Labels of one EMBED exam; None where there is none.

    Args:
      density: BI-RADS density, 1 (A) to 4 (D); 5 is a male patient.
      assessment: one of N B P S M K, or A (further images needed), which is no label.
      years_to_cancer: from the exam to a proven cancer, infinite if there is none.
      years_seen: follow-up without cancer. The release counts a patient who was lost before the
        horizon as free of cancer; here that is no label.
      horizon: of the risk, in years.
    """
    risk = int(years_to_cancer <= horizon)
    return {
        "density": density - 1 if 1 <= density <= 4 else None,
        "birads": BIRADS.get(assessment),
        "risk_1y": risk if risk or years_seen >= horizon else None,
    }
