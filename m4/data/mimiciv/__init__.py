"""MIMIC-IV: one example per ICU stay, streamed from the raw csv files.

Johnson et al., MIMIC-IV, a freely accessible electronic health record dataset (Sci Data 2023).
Tasks and cohort follow FuseMoE (Han et al., NeurIPS 2024, section 4 and data appendix): time zero
is ICU admission, events before it are dropped.

`window="48h"` (default): stays of at least 48 h, inputs from the first 48 h.
- `ihm48`: `hospital_expire_flag` of the admission, so death anywhere in the hospital stay.
- `los_under_96h`: ICU stay below 96 h **and** the admission survived, the release's "LOS" label.
- `los`: days in the ICU.
- `phe`: 25 phenotypes of the admission's discharge diagnoses (`phenotypes.py`); no label for an
  admission without a single diagnosis.
`window="stay"`: every stay, the whole stay as input, `phe` only (the others would be read off).

Modalities: `vitals`, `labs`, `static`, and bags of hashed codes `medications` (ICU inputs),
`prescriptions`, `procedures`, `history` (diagnoses of earlier admissions). Diagnoses of the same
admission are written at discharge and are never an input. `notes`, `cxr` and `ecg` can be put in
the schema but are absent until their files are read.

Where m4 departs from the authors' preprocessing, and why:
- split by patient, not by stay (`split_by="stay"` for theirs, which also makes the stay the unit of
  the bootstrap): some of their patients are in two splits;
- an event counts from when it was *stored* if that is known and later than the window's end
  (`available="charted"` for theirs): a laboratory value drawn in hour 47 and reported in hour 50 is
  not known at hour 48;
- values outside a physiological range are dropped and counted;
- stays with more rows than fit keep their last ones instead of being dropped;
- the first value of a variable at one time stands, as theirs; all times are kept.
"""

from pathlib import Path

from m4.data.mimiciv import files, schema
from m4.errors import ConfigError, DataError
from m4.specs import DataSpec

VERSION = "1.0.0"
LICENCE = (
    "PhysioNet Credentialed Health Data License 1.5.0 (the demo: Open Data Commons Open Database "
    "License 1.0)"
)
WHERE = (
    "MIMIC-IV needs credentialed access: https://physionet.org/content/mimiciv/ ; unpack it as "
    "mimiciv/ under M4_RAW_DIR. The open demo https://physionet.org/content/mimic-iv-demo/ goes "
    "with variant :demo; variant :synthetic needs no files"
)
DEFAULT = ("vitals", "labs", "static", "medications")
FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}
CHOICES = {
    "window": ("48h", "stay"),
    "split_by": ("subject", "stay"),
    "available": ("stored", "charted"),
}
# What each modality or task reads beyond the tables of every cohort.
ALWAYS = ("icustays", "admissions", "patients")
NEEDS = {
    "vitals": "chartevents",
    "labs": "labevents",
    "medications": "inputevents",
    "prescriptions": "prescriptions",
    "procedures": "procedureevents",
    "history": "diagnoses_icd",
    "phe": "diagnoses_icd",
}
CONTENT = {
    "icustays": "ICU stays",
    "admissions": "hospital admissions",
    "patients": "patients",
    "chartevents": "charted vital signs",
    "labevents": "laboratory values",
    "inputevents": "ICU infusions and drugs",
    "prescriptions": "prescriptions",
    "procedureevents": "ICU procedures",
    "diagnoses_icd": "discharge diagnoses",
}


def spec(
    *,
    demo: bool = False,
    window: str = "48h",
    modalities=DEFAULT,
    tasks=None,
    split_by: str = "subject",
    available: str = "stored",
    steps: int = 256,
    lab_steps: int = 64,
    vocab: int = schema.VOCAB,
    phenotype_file: str = "",
) -> DataSpec:
    """The schema. `tasks=None` is all that the window allows.

    Args:
      demo: read the open demo of 100 patients instead of the full data.
      window: "48h" or "stay".
      modalities: names of `schema.MODALITIES`.
      tasks: names of `schema.TASKS`.
      split_by: "subject", or "stay" as the authors.
      available: "stored" or "charted", see the module.
      steps: rows of vitals kept.
      lab_steps: rows of labs kept.
      vocab: codes are hashed into this many ids.
      phenotype_file: csv of codes that replaces the built-in phenotypes.

    Raises:
      ConfigError: one line per wrong option.
    """
    chosen = {"window": window, "split_by": split_by, "available": available}
    problems = [
        f"data.options.{name}: {value!r} is none of {', '.join(CHOICES[name])}"
        for name, value in chosen.items()
        if value not in CHOICES[name]
    ]
    for name, value in (("steps", steps), ("lab_steps", lab_steps), ("vocab", vocab)):
        if value < 1:
            problems.append(f"data.options.{name}: {value} must be at least 1")
    allowed = schema.TASKS if window == "48h" else ("phe",)
    tasks = allowed if tasks is None else tasks
    for option, names, known in (
        ("modalities", modalities, schema.MODALITIES),
        ("tasks", tasks, allowed),
    ):
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            problems.append(f"data.options.{option}: {unknown} not in {', '.join(known)}")
    if problems:
        raise ConfigError(*problems)
    shapes = {"vitals": {"steps": steps}, "labs": {"steps": lab_steps}}
    return schema.data_spec(
        modalities, tasks, **shapes, **{name: {"vocab": vocab} for name in schema.CODES}
    )


def tables(data: DataSpec) -> list[str]:
    """Names of the tables that a schema needs."""
    extra = [NEEDS[n] for n in (*data.modality_names, *data.task_names) if n in NEEDS]
    return [*ALWAYS, *dict.fromkeys(extra)]


def missing_files(raw_dir, **options) -> list[str]:
    """One line per file that is not there; standard library only."""
    demo = options.get("demo", False)
    root = files.find_root(raw_dir, demo=demo)
    if root is None:
        what = "mimic-iv-demo-*/" if demo else "mimiciv/ or mimic-iv-*/"
        other = files.find_root(raw_dir, demo=not demo)
        hint = f"; {other} is the {'full data' if demo else 'demo'}" if other else ""
        return [f"{raw_dir}: no {what} folder with hosp/ and icu/ in it{hint}"]
    return [
        f"{root / files.HOME.get(name, 'hosp') / name}.csv.gz: missing ({CONTENT[name]})"
        for name in tables(spec(**options))
        if files.table(root, name) is None
    ]


def cohort(raw_dir, *, seed: int, **options):
    """The cohort of the raw files under `raw_dir`.

    Small tables are read at once (about 0.5 GB for the full data). Event tables are streamed
    when the first split is iterated: kept events go to temporary files, one per `ROWS` stays,
    and are read back one file at a time, so that memory does not grow with the tables.

    Raises:
      DataError: no files; while iterating, a damaged one, named.
    """
    from m4.data.cohort import Cohort, checksums
    from m4.data.mimiciv.examples import Examples
    from m4.data.mimiciv.stays import load_stays

    data = spec(**options)
    missing = missing_files(raw_dir, **options)
    if missing:
        raise DataError(*missing)
    root = files.find_root(raw_dir, demo=options.get("demo", False))
    flow: list[tuple[str, int]] = []
    stays = load_stays(
        root,
        data,
        seed=seed,
        fractions=FRACTIONS,
        flow=flow,
        window=options.get("window", "48h"),
        split_by=options.get("split_by", "subject"),
        phenotype_file=options.get("phenotype_file", ""),
    )
    examples = Examples(root, data, stays, flow, available=options.get("available", "stored"))
    release = files.version(root)
    found = [files.table(root, name) for name in tables(data)]
    return Cohort(
        spec=data,
        splits={name: lambda name=name: examples.split(name) for name in FRACTIONS},
        sources=checksums(Path(raw_dir), [path for path in found if path]),
        licence=LICENCE,
        version=VERSION,
        flow=flow,
        notes=f"MIMIC-IV {'demo ' if options.get('demo') else ''}{release}",
    )
