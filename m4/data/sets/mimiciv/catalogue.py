"""Modalities and tasks of the MIMIC-IV cohort; shared with its synthetic twin.

Which raw items the columns of vitals and labs merge is said in `features.py`.
"""

import dataclasses

from m4.data.sets.mimiciv import benchmark, diseases, haim_blocks, phenotypes, said
from m4.data.sets.mimiciv.features import features
from m4.specs import About, DataSpec, ModalitySpec, TaskSpec

HOURS = 48.0
# Known when the patient reaches the ICU. Insurance and the admission's own route are written at
# registration; language, race and marital status are left out on purpose. Source -> column -> words
# of which one is there.
WORDS = {
    "admission_type": {
        "type_emergency": ("emer",),
        "type_urgent": ("urgent",),
        "type_elective": ("elective", "surgical same day"),
        "type_observation": ("observation",),
    },
    "admission_location": {
        "from_emergency_room": ("emergency",),
        "from_transfer": ("transfer",),
        "from_referral": ("referral",),
        "from_procedure": ("procedure", "pacu"),
    },
    "insurance": {"insurance_medicare": ("medicare",), "insurance_medicaid": ("medicaid",)},
    "first_careunit": {
        "unit_medical": ("medical",),
        "unit_surgical": ("surgical", "sicu"),
        "unit_cardiac": ("cardiac", "coronary"),
        "unit_neuro": ("neuro",),
    },
}
STATIC = ("age", "female", "hours_before_icu", *(c for block in WORDS.values() for c in block))
GROUPS = ("sex", "age_band", "icu_type", "insurance", "race")  # of people, see `m4.data.groups`
RACES = {  # category -> words of admissions that say so, the first that does; else unknown
    "hispanic": ("hispanic", "south american"),
    "white": ("white", "portuguese"),
    "black": ("black",),
    "asian": ("asian",),
    "other": ("other", "multiple", "american indian", "native"),
}
AGES = (50, 65, 80)  # edges of the age bands
CODES = ("medications", "prescriptions", "procedures", "history")
VECTORS = {"notes": 768, "cxr": 1024, "ecg": 256}
EARLIER = "earlier_notes"  # discharge summaries of admissions that had ended; as wide as `notes`
MAX_VECTORS = 5
MAX_CODES = 64
VOCAB = 1024
NOTE_WORDS, WORD_VOCAB = 512, 8192  # of `note_words`
IMAGE = (1, 224, 224, 3)
ECG_MEASURES = (
    "rr_interval", "p_onset", "p_end", "qrs_onset", "qrs_end", "t_end", "p_axis", "qrs_axis",
    "t_axis",
)  # fmt: skip
# What other files than hosp/ and icu/ give; see `linked.py`.
LINKED = (*VECTORS, EARLIER, "note_words", "cxr_image", "ecg_measures")
# Published sets of variables; see `benchmark.py` and `haim_blocks.py`.
HAIM = ("haim_chart", "haim_labs", "haim_procedures", "haim_demographics")
PUBLISHED = ("fusemoe", "benchmark", "flexcare", *HAIM)
MODALITIES = ("vitals", "labs", "static", *CODES, *LINKED, *PUBLISHED)
TASKS = ("ihm48", "los", "los_under_96h", "phe")
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
    "atelectasis", "cardiomegaly", "consolidation", "edema", "enlarged_cardiomediastinum",
    "fracture", "lung_lesion", "lung_opacity", "no_finding", "pleural_effusion", "pleural_other",
    "pneumonia", "pneumothorax", "support_devices",
)  # fmt: skip
DAYS = ("0", "1", "2", "3", "4", "5", "6", "7", "8-13", "14+")  # bins of `los_remaining`
DRG_CLASSES = 769


def modality(
    name: str, *, steps: int = 256, dim: int = 0, vocab: int = VOCAB, variables: str = "m4"
) -> ModalitySpec:
    """The ModalitySpec called `name`; `steps` rows of a series, `dim` features of a vector."""
    if name in CODES:
        return ModalitySpec(name, "codes", (MAX_CODES,), dtype="int32", vocab=vocab)
    if name in VECTORS or name == EARLIER:
        width = dim or VECTORS.get(name, VECTORS["notes"])
        return ModalitySpec(name, "vectors", (MAX_VECTORS, width))
    if name == "note_words":
        return ModalitySpec(name, "text", (NOTE_WORDS,), dtype="int32", vocab=WORD_VOCAB)
    if name == "cxr_image":
        return ModalitySpec(name, "image", IMAGE, dtype="uint8")
    tables = {"static": STATIC, "ecg_measures": ECG_MEASURES}
    if name in (*tables, *HAIM):
        names = tables.get(name) or haim_blocks.columns(name)
        return ModalitySpec(name, "table", (len(names),), features=names)
    if name == "flexcare":
        shape = (int(HOURS), len(benchmark.COLUMNS))
        return ModalitySpec(name, "vectors", shape, features=benchmark.COLUMNS)
    series = benchmark.FEATURES if name == "benchmark" else features(name, variables)
    names = tuple(f.name for f in series)
    return ModalitySpec(name, "series", (steps, len(names)), features=names)


def _multilabel(name: str, labels: tuple[str, ...]) -> TaskSpec:
    return TaskSpec(name, "multilabel", dim=len(labels), labels=labels)


ALL_TASKS = tuple(dict.fromkeys(name for both in WINDOWS.values() for name in both[0] + both[1]))
SPECS = (  # of tasks that are not binary; what each means is said in `labels.py`
    *(TaskSpec(name, "regression", transform="log1p") for name in ("los", "los_after_cxr")),
    _multilabel("phe", phenotypes.NAMES),
    _multilabel("chexpert", CHEXPERT),
    _multilabel("diseases", diseases.NAMES),
    TaskSpec("los_remaining", "multiclass", dim=len(DAYS), labels=DAYS),
    TaskSpec("disposition", "multiclass", dim=len(DISPOSITIONS), labels=DISPOSITIONS),
    TaskSpec("drg", "multiclass", dim=DRG_CLASSES),
)
TASK_SPECS = {name: TaskSpec(name, "binary") for name in ALL_TASKS}
TASK_SPECS |= {spec.name: spec for spec in SPECS}
for _name, (_title, _unit, _definition) in said.TASKS.items():
    _words = {"title": _title, "unit": _unit, "definition": _definition}
    TASK_SPECS[_name] = dataclasses.replace(TASK_SPECS[_name], **_words)


def data_spec(modalities, tasks, groups=(), *, about: About = said.ABOUT, **shapes) -> DataSpec:
    """A DataSpec of the named modalities and tasks; `shapes` maps a modality to its arguments."""
    return DataSpec(
        tuple(_with_words(modality(name, **shapes.get(name, {}))) for name in modalities),
        tuple(TASK_SPECS[name] for name in tasks),
        hours=HOURS,
        groups=groups,
        about=about,
    )


def _with_words(spec: ModalitySpec) -> ModalitySpec:
    own = [_words_of(name) for name in spec.features]
    titles, units = zip(*own, strict=True) if any(map(any, own)) else ((), ())
    units = () if spec.name in said.SCALED else units
    title = said.MODALITIES[spec.name]
    return dataclasses.replace(spec, title=title, titles=titles, units=units)


def _words_of(name: str) -> tuple[str, str]:
    """(title, unit) of a feature, also of one that is made of another: 'ph_observed', 'eeg_max'."""
    if name in said.FEATURES:
        return said.FEATURES[name]
    for ending, (words, same_unit) in said.MADE.items():
        base = name.removesuffix(f"_{ending}")
        if base != name:
            title, unit = said.FEATURES.get(base, ("", ""))
            return f"{title or base.replace('_', ' ')}, {words}", unit if same_unit else ""
    return "", ""
