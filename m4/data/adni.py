"""ADNI, diagnosis from image, genome, clinical tables and biospecimens: schema only, no builder.

The Alzheimer's Disease Neuroimaging Initiative gives its files to approved researchers
(https://adni.loni.usc.edu); their layout changes with the date of the download, the widths of
the tables with it. Until m4 can read them, a run ends with that message. The schema is that of
Flex-MoE (Yun et al., NeurIPS 2024): a T1 volume of 91 x 109 x 91 voxels, variants, clinical
tables and biospecimens, and a diagnosis of three classes that never changes over the visits.
"""

from pathlib import Path

from m4.data.cohort import Cohort
from m4.errors import DataError
from m4.specs import DataSpec, ModalitySpec, TaskSpec

VERSION = "0"
LICENCE = "ADNI Data Use Agreement"
WHERE = "ADNI needs an approved application, https://adni.loni.usc.edu"
DIAGNOSES = ("normal", "impaired", "dementia")


def spec(
    *,
    volume: tuple[int, ...] = (91, 109, 91, 1),
    variants: int = 1024,
    clinical: int = 256,
    biospecimen: int = 16,
) -> DataSpec:
    """Image, genomic, clinical, biospecimen, in Flex-MoE's order.

    Args:
      volume: slices, rows, columns and channels of the image.
      variants: genotypes after pruning. This and the widths of the tables are not published.
      clinical: columns of the clinical tables after encoding.
      biospecimen: columns of the biospecimen tables after encoding.
    """
    return DataSpec(
        (
            ModalitySpec("image", "image", tuple(volume)),
            ModalitySpec("genomic", "table", (variants,)),
            ModalitySpec("clinical", "table", (clinical,)),
            ModalitySpec("biospecimen", "table", (biospecimen,)),
        ),
        (TaskSpec("diagnosis", "multiclass", dim=3, labels=DIAGNOSES),),
    )


def missing_files(raw_dir: Path, **options) -> list[str]:
    """One line that says that there is no builder."""
    del raw_dir, options
    return ["adni: m4 cannot read ADNI's files yet; build records with a data set module of yours"]


def cohort(raw_dir: Path, *, seed: int, **options) -> Cohort:
    """Raises DataError."""
    del seed
    raise DataError(*missing_files(raw_dir, **options))
