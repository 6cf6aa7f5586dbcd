"""Modalities and tasks of the MIMIC-IV cohort; shared with its synthetic twin.

Standard library only, so that a configuration can be checked without loading arrays. `Feature`
says which raw items a column merges, the range outside which a value is discarded as an
artefact, and how the item's unit becomes the column's.
"""

import dataclasses

from m4.errors import ConfigError
from m4.specs import DataSpec, ModalitySpec, TaskSpec

HOURS = 48.0
PHENOTYPES = (
    "septicemia",
    "diabetes_without_complication",
    "diabetes_with_complications",
    "lipid_disorders",
    "fluid_electrolyte_disorders",
    "essential_hypertension",
    "hypertension_with_complications",
    "acute_myocardial_infarction",
    "coronary_atherosclerosis",
    "conduction_disorders",
    "cardiac_dysrhythmias",
    "congestive_heart_failure",
    "acute_cerebrovascular_disease",
    "pneumonia",
    "copd_bronchiectasis",
    "pleurisy_pneumothorax_collapse",
    "respiratory_failure",
    "other_lower_respiratory",
    "other_upper_respiratory",
    "other_liver_diseases",
    "gastrointestinal_haemorrhage",
    "acute_renal_failure",
    "chronic_kidney_disease",
    "surgical_complications",
    "shock",
)


@dataclasses.dataclass(frozen=True)
class Feature:
    """One column of a series. `fahrenheit` lists items to convert to degrees Celsius."""

    name: str
    items: tuple[int, ...]
    low: float
    high: float
    fahrenheit: tuple[int, ...] = ()


# Non-invasive and arterial pressures are merged; items are of icu/chartevents.
VITALS = (
    Feature("heart_rate", (220045,), 10, 300),
    Feature("systolic_bp", (220179, 220050, 225309), 20, 320),
    Feature("diastolic_bp", (220180, 220051, 225310), 5, 250),
    Feature("mean_bp", (220181, 220052, 225312), 10, 280),
    Feature("respiratory_rate", (220210, 224690), 1, 100),
    Feature("spo2", (220277,), 20, 100),
    Feature("temperature", (223762, 223761), 25, 45, fahrenheit=(223761,)),
    Feature("gcs_verbal", (223900,), 1, 5),
    Feature("gcs_eye", (220739,), 1, 4),
    Feature("gcs_motor", (223901,), 1, 6),
)
# Items are of hosp/labevents, blood only; whole-blood analysers and the two white-cell items are
# merged with the laboratory's.
LABS = (
    Feature("potassium", (50971, 50822), 0.5, 15),
    Feature("sodium", (50983, 50824), 80, 220),
    Feature("chloride", (50902, 50806), 50, 180),
    Feature("creatinine", (50912,), 0, 60),
    Feature("urea_nitrogen", (51006,), 0, 400),
    Feature("bicarbonate", (50882,), 0, 80),
    Feature("anion_gap", (50868,), -20, 80),
    Feature("haemoglobin", (51222, 50811), 0, 30),
    Feature("haematocrit", (51221, 50810), 0, 80),
    Feature("magnesium", (50960,), 0, 20),
    Feature("platelets", (51265,), 0, 3000),
    Feature("phosphate", (50970,), 0, 30),
    Feature("white_cells", (51301, 51300), 0, 1000),
    Feature("calcium", (50893,), 0, 30),
    Feature("mch", (51248,), 5, 80),
    Feature("red_cells", (51279,), 0, 12),
    Feature("mchc", (51249,), 10, 60),
    Feature("mcv", (51250,), 30, 180),
    Feature("rdw", (51277,), 5, 60),
    Feature("neutrophils", (51256,), 0, 100),
    Feature("vancomycin", (51009,), 0, 200),
    Feature("glucose", (50931, 50809), 0, 2500),
)
# Known when the patient reaches the ICU. Insurance and the admission's own route are written at
# registration; language, race and marital status are left out on purpose.
ADMISSION_TYPES = ("emergency", "urgent", "elective", "observation")
ADMISSION_LOCATIONS = ("emergency_room", "transfer", "referral", "procedure")
INSURANCES = ("medicare", "medicaid")
CARE_UNITS = ("medical", "surgical", "cardiac", "neuro")
STATIC = (
    "age",
    "female",
    "hours_before_icu",
    *(f"type_{name}" for name in ADMISSION_TYPES),
    *(f"from_{name}" for name in ADMISSION_LOCATIONS),
    *(f"insurance_{name}" for name in INSURANCES),
    *(f"unit_{name}" for name in CARE_UNITS),
)
CODES = ("medications", "prescriptions", "procedures", "history")
VECTORS = {"notes": 768, "cxr": 1024, "ecg": 256}
EARLIER = "earlier_notes"  # discharge summaries of admissions that had ended; as wide as `notes`
MAX_VECTORS = 5
MAX_CODES = 64
VOCAB = 1024
WORDS, WORD_VOCAB = 512, 8192  # of `note_words`
IMAGE = (1, 224, 224, 3)
ECG_MEASURES = (
    "rr_interval",
    "p_onset",
    "p_end",
    "qrs_onset",
    "qrs_end",
    "t_end",
    "p_axis",
    "qrs_axis",
    "t_axis",
)
# What other files than hosp/ and icu/ give; see `linked.py`.
LINKED = (*VECTORS, EARLIER, "note_words", "cxr_image", "ecg_measures")
# Published sets of variables; see `benchmark.py` and `haim.py`.
HAIM = ("haim_chart", "haim_labs", "haim_procedures", "haim_demographics")
MODALITIES = ("vitals", "labs", "static", *CODES, *LINKED, "benchmark", "flexcare", *HAIM)
TASKS = ("ihm48", "los", "los_under_96h", "phe")
FUSEMOE_DROPS = ("temperature", "glucose")  # of the 32 variables; its 30 are without these
# By window of input: tasks asked for by default, and others that make sense.
WINDOWS = {
    "48h": (TASKS, ("readmission", "mortality_1y", "diseases", "disposition", "drg")),
    "stay": (("phe",), ("readmission", "mortality_1y", "diseases", "disposition", "drg")),
    "hour": (("decompensation", "los_remaining"), ()),
    "cxr": (
        ("diseases", "los_after_cxr", "mortality_48h", "disposition"),
        ("chexpert", "los_under_48h", "phe"),
    ),
}
DISPOSITIONS = ("home", "home_health", "facility", "hospice_or_died", "other")
CHEXPERT = (
    "atelectasis",
    "cardiomegaly",
    "consolidation",
    "edema",
    "enlarged_cardiomediastinum",
    "fracture",
    "lung_lesion",
    "lung_opacity",
    "no_finding",
    "pleural_effusion",
    "pleural_other",
    "pneumonia",
    "pneumothorax",
    "support_devices",
)
DAYS = ("0", "1", "2", "3", "4", "5", "6", "7", "8-13", "14+")  # bins of `los_remaining`
DRG_CLASSES = 769


def features(name: str, variables: str = "m4") -> tuple[Feature, ...]:
    """The columns of "vitals" or "labs"; `variables` "fusemoe" leaves its 30 of the 32."""
    every = VITALS if name == "vitals" else LABS
    return tuple(f for f in every if variables == "m4" or f.name not in FUSEMOE_DROPS)


def modality(
    name: str,
    *,
    steps: int = 256,
    dim: int | None = None,
    vocab: int = VOCAB,
    variables: str = "m4",
):
    """The ModalitySpec called `name`; `steps` rows of a series, `dim` features of a vector."""
    if name in ("vitals", "labs"):
        names = tuple(f.name for f in features(name, variables))
        return ModalitySpec(name, "series", (steps, len(names)), features=names)
    if name == "static":
        return ModalitySpec(name, "table", (len(STATIC),), features=STATIC)
    if name in CODES:
        return ModalitySpec(name, "codes", (MAX_CODES,), dtype="int32", vocab=vocab)
    if name in VECTORS or name == EARLIER:
        width = dim or VECTORS.get(name, VECTORS["notes"])
        return ModalitySpec(name, "vectors", (MAX_VECTORS, width))
    if name == "note_words":
        return ModalitySpec(name, "text", (WORDS,), dtype="int32", vocab=WORD_VOCAB)
    if name == "cxr_image":
        return ModalitySpec(name, "image", IMAGE, dtype="uint8")
    if name == "ecg_measures":
        return ModalitySpec(name, "table", (len(ECG_MEASURES),), features=ECG_MEASURES)
    if name in ("benchmark", "flexcare"):
        from m4.data.sets.mimiciv import benchmark

        names = benchmark.NAMES if name == "benchmark" else benchmark.COLUMNS
        steps = steps if name == "benchmark" else int(HOURS)
        return ModalitySpec(name, "series", (steps, len(names)), features=names)
    if name in HAIM:
        from m4.data.sets.mimiciv import haim

        names = haim.columns(name)
        return ModalitySpec(name, "table", (len(names),), features=names)
    raise ConfigError(f"data.options.modalities: {name!r} is none of {', '.join(MODALITIES)}")


def task(name: str) -> TaskSpec:
    """The TaskSpec called `name`; what each means is said in `labels.py`."""
    if name in BINARY:
        return TaskSpec(name, "binary")
    if name in ("los", "los_after_cxr"):
        return TaskSpec(name, "regression", transform="log1p")
    if name == "phe":
        return TaskSpec(name, "multilabel", dim=len(PHENOTYPES), labels=PHENOTYPES)
    if name == "chexpert":
        return TaskSpec(name, "multilabel", dim=len(CHEXPERT), labels=CHEXPERT)
    if name == "diseases":
        from m4.data.sets.mimiciv import diseases

        return TaskSpec(name, "multilabel", dim=len(diseases.NAMES), labels=diseases.NAMES)
    if name == "los_remaining":
        return TaskSpec(name, "multiclass", dim=len(DAYS), labels=DAYS)
    if name == "disposition":
        return TaskSpec(name, "multiclass", dim=len(DISPOSITIONS), labels=DISPOSITIONS)
    if name == "drg":
        return TaskSpec(name, "multiclass", dim=DRG_CLASSES)
    raise ConfigError(f"data.options.tasks: {name!r} is none of {', '.join(ALL_TASKS)}")


ALL_TASKS = tuple(dict.fromkeys(name for both in WINDOWS.values() for name in both[0] + both[1]))
BINARY = (
    "ihm48",
    "los_under_96h",
    "readmission",
    "mortality_1y",
    "decompensation",
    "mortality_48h",
    "los_under_48h",
)


def data_spec(modalities, tasks, **shapes) -> DataSpec:
    """A DataSpec of the named modalities and tasks; `shapes` maps a modality to its arguments."""
    return DataSpec(
        tuple(modality(name, **shapes.get(name, {})) for name in modalities),
        tuple(task(name) for name in tasks),
        hours=HOURS,
    )
