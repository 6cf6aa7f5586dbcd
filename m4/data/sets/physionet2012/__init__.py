"""PhysioNet/CinC Challenge 2012: the first 48 hours of ICU stays, in twelve groups of variables.

Silva, Moody, Scott, Celi, Mark: Predicting In-Hospital Mortality of ICU Patients (Computing in
Cardiology 2012); https://physionet.org/content/challenge-2012/1.0.0/. Every stay is one patient.

Train and validation stays come from set A by a keyed hash of the record id, the test split is
set B, as in the challenge's first phase. Set C is not used. With `num_folds` the stays of set A are
tested in turns and set B is not read (`--mode=crossval`: cross-validation on set A).

New stays for a trained model (`--on`) are those of all sets of a folder: `set-<x>.tar.gz` or
`set-<x>/`, with `Outcomes-<x>.txt` if there is one; or, without any, of its `<RecordID>.txt` files,
with an `Outcomes*.txt` if there is one.

Tasks
- `death`: in-hospital death.
- `los`: days from ICU admission to the end of the hospital stay. A stay that ends in death ends
  there and counts like any other, as in the Challenge's own outcome file and in the
  length-of-stay tasks of mimic3-benchmarks; so a short stay is not always good news.
- `los_over_7d`: los > 7.
- `sofa7` (auxiliary): SOFA score of the first day >= 7.
An outcome of -1 is unknown, but for the days of survival: of -1 they say that the patient outlived
the follow-up. Where they contradict the death (a survivor who is dead by the end of the stay, a
death in hospital after it, or of who outlived the follow-up) there is no `death`; a stay that goes
on more than a day after the death ends on the day after it, as the other stays that end in death
do; one that ends more than a day before its last measurement has no length. Each kind is counted in
the flow.

Group columns are `sex`, `age_band` and `icu_type`, with or without the table of demographics.

Cleaning, all counted in the flow: values outside the physiological `RANGES` (0 blood pressures
from disconnected lines, temperatures of 0, pH of 735) are dropped, as are rows without a
parameter name or readable time; of two values at one time the later row counts. A static
descriptor of -1 is missing. `Weight` is the first plausible one of the window (it is charted
again and again); the hourly copies are not used as a series.
"""

import functools
import hashlib
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from m4 import atomic
from m4.data import csv_files, identifiers, split
from m4.data.bands import band
from m4.data.cohort import Cohort, Example, checksums, home
from m4.data.option_checks import check
from m4.data.sets.physionet2012.archive import (
    RawSet,
    left_aside,
    new_outcomes,
    new_sets,
    read_set,
    set_files,
    set_name,
)
from m4.errors import DataError
from m4.specs import About, DataSpec, ModalitySpec, TaskSpec

VERSION = "1.0.0-4"  # of the source, and of this reading of it
LICENCE = "Open Data Commons Attribution License (ODC-BY) 1.0; cite Silva et al. 2012"
URL = "https://physionet.org/files/challenge-2012/1.0.0"
WHERE = f"`python -m m4.data download physionet2012 RAW_DIR` gets them from {URL}/ (open access)"
FOLDER = "physionet2012"
HOURS = 48.0

# Modality -> its variables and the number of time steps kept: about the 99.9 % quantile over set
# A's stays that have any. Longer stays keep their last steps.
GROUPS: dict[str, tuple[int, tuple[str, ...]]] = {
    "vitals": (132, ("HR", "NIDiasABP", "NIMAP", "NISysABP", "RespRate", "Temp")),
    "chemistry": (16, ("BUN", "Creatinine", "Glucose", "HCO3", "K", "Mg", "Na")),
    "haematology": (18, ("HCT", "Platelets", "WBC")),
    "gcs": (48, ("GCS",)),
    "urine": (54, ("Urine",)),
    "blood_gas": (32, ("PaCO2", "PaO2", "SaO2", "pH")),
    "invasive_pressure": (132, ("DiasABP", "MAP", "SysABP")),
    "ventilation": (40, ("FiO2", "MechVent")),
    "lactate": (24, ("Lactate",)),
    "liver": (10, ("ALP", "ALT", "AST", "Albumin", "Bilirubin")),
    "cardiac_markers": (8, ("TroponinI", "TroponinT")),
    "cholesterol": (2, ("Cholesterol",)),
}
ICU_TYPES = ("coronary", "cardiac_surgery", "medical", "surgical")  # codes 1..4
DEMOGRAPHICS = ("Age", "Gender", "Height", "Weight", *(f"ICU_{name}" for name in ICU_TYPES))

# Plausible values, inclusive; anything else is an artefact of charting. Wide on purpose: the
# point is to drop the impossible, not the extreme.
RANGES: dict[str, tuple[float, float]] = {
    "Age": (15, 120), "Gender": (0, 1), "Height": (120, 230), "Weight": (20, 300),
    "ICUType": (1, 4), "HR": (10, 300), "RespRate": (1, 90), "Temp": (25, 45), "GCS": (3, 15),
    "NIDiasABP": (10, 200), "NIMAP": (15, 250), "NISysABP": (30, 300),
    "DiasABP": (10, 200), "MAP": (15, 250), "SysABP": (30, 300),
    "BUN": (1, 300), "Creatinine": (0.1, 50), "Glucose": (10, 2000), "HCO3": (2, 60),
    "K": (1, 12), "Mg": (0.3, 10), "Na": (90, 190), "HCT": (5, 75), "Platelets": (1, 2000),
    "WBC": (0.05, 600), "Urine": (0, 5000), "PaCO2": (5, 200), "PaO2": (10, 700),
    "SaO2": (20, 100), "pH": (6.5, 8.0), "FiO2": (0.21, 1), "MechVent": (0, 1),
    "Lactate": (0.1, 40), "ALP": (5, 5000), "ALT": (1, 20000), "AST": (1, 20000),
    "Albumin": (0.5, 7), "Bilirubin": (0.1, 80), "TroponinI": (0, 100), "TroponinT": (0, 50),
    "Cholesterol": (20, 800),
}  # fmt: skip

STAY = "days from ICU admission to the end of the hospital stay, by discharge or death"
TASKS = (
    TaskSpec(
        "death",
        "binary",
        title="Death in hospital",
        definition="The patient died in the hospital stay to which the ICU stay belongs.",
    ),
    TaskSpec(
        "los",
        "regression",
        transform="log1p",
        title="Length of stay",
        unit="days",
        definition=f"Length of stay: {STAY}.",
    ),
    TaskSpec(
        "los_over_7d",
        "binary",
        title="Stay of more than 7 days",
        definition=f"More than 7 {STAY}. A short stay is not always good news.",
    ),
    TaskSpec(
        "sofa7",
        "binary",
        auxiliary=True,
        title="SOFA of 7 or more",
        definition="The Sequential Organ Failure Assessment score of the first day is at least 7.",
    ),
)
ABOUT = About(
    title="PhysioNet/Computing in Cardiology Challenge 2012",
    source="Records of the MIMIC-II database, de-identified, as chosen for the Challenge.",
    setting="Four intensive care units of one tertiary hospital in Boston, United States.",
    period="2001 to 2008.",
    participants="Patients of 16 years and more whose first ICU stay lasted at least 48 hours, one "
    "stay each: set A (4,000) for training and validation, set B (4,000) for testing.",
    use="To study methods on data of which some is missing: a prediction at 48 hours of an ICU "
    "stay from what was measured by then.",
    not_for="Decisions about patients, and units unlike these without a test there.",
    limits="One hospital, records of 2001 to 2008. Only stays of 48 hours and more: neither the "
    "sickest nor the quickest to recover are in it. Ethnicity is not recorded, so nothing is known "
    "about differences by it. Set B was drawn from the same units and years as set A.",
)
# Modality or variable -> what it is, and its unit. The rest explain themselves.
TITLES = {
    "vitals": "Vital signs", "chemistry": "Chemistry", "haematology": "Haematology",
    "gcs": "Glasgow coma scale", "urine": "Urine output", "blood_gas": "Blood gas",
    "invasive_pressure": "Invasive blood pressure", "ventilation": "Ventilation",
    "lactate": "Lactate", "liver": "Liver", "cardiac_markers": "Troponin",
    "cholesterol": "Cholesterol", "demographics": "Demographics",
    "HR": "heart rate", "NIDiasABP": "diastolic pressure, cuff", "NIMAP": "mean pressure, cuff",
    "NISysABP": "systolic pressure, cuff", "RespRate": "respiratory rate", "Temp": "temperature",
    "BUN": "urea nitrogen", "HCO3": "bicarbonate", "K": "potassium", "Mg": "magnesium",
    "Na": "sodium", "HCT": "haematocrit", "WBC": "white cells", "GCS": "Glasgow coma scale",
    "Urine": "urine output", "DiasABP": "diastolic pressure, arterial line",
    "MAP": "mean pressure, arterial line", "SysABP": "systolic pressure, arterial line",
    "FiO2": "fraction of inspired oxygen", "MechVent": "mechanical ventilation",
    "pH": "arterial pH",
    "ALP": "alkaline phosphatase", "ALT": "alanine transaminase",
    "AST": "aspartate transaminase", "Gender": "male", "ICU_coronary": "coronary care unit",
    "ICU_cardiac_surgery": "cardiac surgery recovery unit", "ICU_medical": "medical ICU",
    "ICU_surgical": "surgical ICU",
}  # fmt: skip
UNITS = {
    "HR": "/min", "NIDiasABP": "mmHg", "NIMAP": "mmHg", "NISysABP": "mmHg", "RespRate": "/min",
    "Temp": "°C", "BUN": "mg/dl", "Creatinine": "mg/dl", "Glucose": "mg/dl", "HCO3": "mmol/l",
    "K": "mmol/l", "Mg": "mmol/l", "Na": "mmol/l", "HCT": "%", "Platelets": "10³/µl",
    "WBC": "10³/µl", "Urine": "ml", "PaCO2": "mmHg", "PaO2": "mmHg", "SaO2": "%",
    "DiasABP": "mmHg", "MAP": "mmHg", "SysABP": "mmHg", "Lactate": "mmol/l", "ALP": "IU/l",
    "ALT": "IU/l", "AST": "IU/l", "Albumin": "g/dl", "Bilirubin": "mg/dl", "TroponinI": "µg/l",
    "TroponinT": "µg/l", "Cholesterol": "mg/dl", "Age": "years", "Height": "cm", "Weight": "kg",
}  # fmt: skip
NAMES = (*GROUPS, "demographics")
SEXES = ("female", "male")  # codes 0, 1
AGES = (50, 65, 80)  # edges of the age bands


def spec(
    *,
    modalities: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    val_fraction: float = 0.15,
    fold: int = 0,
    num_folds: int = 0,
) -> DataSpec:
    """The schema: all of `NAMES` and `TASKS`, or those asked for, in their fixed order.

    Args:
      modalities: some of `NAMES`.
      tasks: some of `TASKS`.
      val_fraction: share of the stays of set A that are not tested, for validation.
      fold: which of `num_folds` is tested.
      num_folds: of cross-validation on set A, set B untouched; 0 to test on set B.

    Raises:
      ConfigError: unknown names, a `val_fraction` outside (0, 1), a fold that is none.
    """
    tasks_known = tuple(task.name for task in TASKS)
    share = f"data.options.val_fraction: {val_fraction} must be between 0 and 1"
    check(
        some=[
            ("modalities", sorted(modalities or NAMES), NAMES),
            ("tasks", sorted(tasks or tasks_known), tasks_known),
        ],
        also=[share][0 < val_fraction < 1 :] + split.fold_problems(fold, num_folds),
    )
    groups = [
        ModalitySpec(name, "series", (steps, len(variables)), variables, **_words(name, variables))
        for name, (steps, variables) in GROUPS.items()
    ]
    names = DEMOGRAPHICS
    table = ModalitySpec("demographics", "table", (len(names),), names, **_words(NAMES[-1], names))
    return DataSpec(
        tuple(m for m in (*groups, table) if not modalities or m.name in modalities),
        tuple(t for t in TASKS if not tasks or t.name in tasks),
        hours=HOURS,
        groups=("sex", "age_band", "icu_type"),
        about=ABOUT,
    )


def _words(name: str, variables: Sequence[str]) -> dict[str, Any]:
    titles, units = (tuple(some.get(v, "") for v in variables) for some in (TITLES, UNITS))
    return {"title": TITLES[name], "titles": titles, "units": units}


def missing_files(raw_dir: Path | str, **options) -> list[str]:
    """One line per set or outcome file that is not in `raw_dir/physionet2012`."""
    folder = Path(raw_dir) / FOLDER
    lines = []
    for letter in _letters(options):
        if not set_files(folder, letter):
            lines.append(f"{folder}/set-{letter}.tar.gz is missing (nor is there a folder)")
        if not (folder / f"Outcomes-{letter}.txt").exists():
            lines.append(f"{folder}/Outcomes-{letter}.txt is missing")
    return lines


def cohort(raw_dir: Path | str, *, seed: int, **options) -> Cohort:
    """Train and validation stays from set A, test stays from set B, or all from A, see the module.

    Each set is read once and held compactly (about 60 MB for 4,000 stays).

    Raises:
      DataError: while iterating, for a damaged archive or outcome file.
    """
    folder, data = Path(raw_dir) / FOLDER, spec(**options)
    val_fraction = options.get("val_fraction", 0.15)
    turn = {name: options.get(name, 0) for name in ("fold", "num_folds")}
    fractions = {"train": 1 - val_fraction, "val": val_fraction}
    letters, flow = _letters(options), []

    @functools.cache
    def load(letter: str) -> tuple[RawSet, dict[int, dict[str, float]]]:
        return _load(folder, letter, folder / f"Outcomes-{letter}.txt", flow)

    def examples(letter: str, name: str | None = None) -> Iterator[Example]:
        raw, outcomes = load(letter)
        for i, stay in enumerate(raw.stays):
            if name is None or split.part(stay, fractions, seed, **turn) == name:
                yield _example(data, raw, i, outcomes.get(stay, {}))

    files = [path for letter in letters for path in set_files(folder, letter)]
    files += [folder / f"Outcomes-{letter}.txt" for letter in letters]
    test = "test is set B" if "b" in letters else "and test, a fold of it"
    return Cohort(
        spec=data,
        splits={
            "train": lambda: examples("a", "train"),
            "val": lambda: examples("a", "val"),
            "test": (lambda: examples("b")) if "b" in letters else (lambda: examples("a", "test")),
        },
        sources=checksums(Path(raw_dir), files),
        licence=LICENCE,
        version=VERSION,
        flow=flow,
        notes=f"PhysioNet/CinC Challenge 2012; train and val from set A, {test}.",
    )


def new(
    folder: Path, resolved: Mapping[str, Any], vocabularies: Mapping[str, Sequence[str]]
) -> Cohort:
    """Stays of other sets as the split 'new', see the module; those without an outcome, too.

    Raises DataError for a folder without stays, one that is in two sets, a damaged file.
    """
    del vocabularies
    data, root = spec(**resolved), home(folder, FOLDER)
    letters, flow = new_sets(root), []
    if not letters:
        raise DataError(
            f"{root}: no set-<x>.tar.gz, no folder set-<x> and no <RecordID>.txt: where are the"
            " stays?"
        )
    outcomes_of = {letter: new_outcomes(root, letter) for letter in letters}

    def examples() -> Iterator[Example]:
        seen: set[int] = set()
        for letter in letters:
            raw, outcomes = _load(root, letter, outcomes_of[letter], flow)
            if twice := len(seen.intersection(raw.stays)):
                raise DataError(f"{set_name(root, letter)}: {twice} stays are in another set, too")
            seen.update(raw.stays)
            for i, stay in enumerate(raw.stays):
                yield _example(data, raw, i, outcomes.get(stay, {}))

    files = [path for letter in letters for path in set_files(root, letter)]
    files += [path for path in outcomes_of.values() if path]
    found = Cohort(data, {"new": examples}, checksums(folder, files), LICENCE, VERSION, flow)
    found.warnings += left_aside(root, letters)
    found.warnings += [
        f"{set_name(root, letter)}: no Outcomes-{letter or '<x>'}.txt, so no labels"
        for letter, path in outcomes_of.items()
        if path is None
    ]
    return found


def _letters(options: Mapping[str, Any]) -> str:
    """The sets that are read."""
    return "a" if options.get("num_folds") else "ab"


def _load(
    folder: Path, letter: str, path: Path | None, flow: list[tuple[str, int]]
) -> tuple[RawSet, dict[int, dict[str, float]]]:
    """A set and its outcomes in the file `path`, by stay."""
    forms = identifiers.Forms()
    groups = {name: variables for name, (_, variables) in GROUPS.items()}
    raw = read_set(folder, letter, groups=groups, ranges=RANGES, forms=forms)
    outcomes = read_outcomes(path, forms) if path else {}
    known, last = {*raw.stays}, dict(zip(raw.stays, raw.last_hours(), strict=True))
    identifiers.require_match(known, outcomes, f"{path}: of the stays in set {letter}")
    counts = [
        *raw.flow,
        ("stays without an outcome row", len(known - outcomes.keys())),
        ("outcome rows without a stay", len(outcomes.keys() - known)),
        *Counter(
            kind for stay, row in outcomes.items() for kind in _settle(row, last.get(stay, 0.0))
        ).items(),
    ]
    outcomes = {stay: o for stay, o in outcomes.items() if stay not in raw.misnamed}
    name = f"set {letter}" if letter else "stays"
    flow.extend((f"{name}: {step}", count) for step, count in counts)
    return raw, outcomes


def read_outcomes(
    path: Path, forms: identifiers.Forms | None = None
) -> dict[int, dict[str, float]]:
    """Record id -> outcome columns. Raises DataError naming the file and line.

    `forms` knows how the records write their ids.
    """
    columns = ("RecordID", "SOFA", "Length_of_stay", "Survival", "In-hospital_death")
    found: dict[int, dict[str, float]] = {}
    ids = {"RecordID": forms or identifiers.Forms()}
    for line, row in csv_files.rows(path, columns, ids=ids, forms=ids):
        where, stay = f"{path}, line {line}", row["RecordID"]
        values = {c: csv_files.number(row[c], where=f"{where}: {c}") for c in columns[1:]}
        if not stay.isdecimal():
            raise DataError(f"{where}: RecordID is not a whole number")
        if int(stay) in found:
            raise DataError(f"{where}: this record came before")
        found[int(stay)] = values
    return found


def _settle(outcome: dict[str, float], last_hour: float) -> Iterator[str]:
    """Take contradictions out of an outcome, yielding the kind of each. See the module."""
    death, days, lived = (outcome[c] for c in ("In-hospital_death", "Length_of_stay", "Survival"))
    if death == 1 and lived == -1:
        outcome["In-hospital_death"] = -1
        yield "records: died in hospital, but outlived the follow-up, no label"
    if days >= 0 and lived >= 0:
        if (death == 0 and lived <= days) or (death == 1 and lived > days):
            outcome["In-hospital_death"] = -1
            yield "records: death and days of survival contradict each other, no label"
        elif death == 1 and lived + 1 < days:
            outcome["Length_of_stay"] = lived + 1
            yield "records: stays that go on after death, ended at it"
    if days >= 0 and (outcome["Length_of_stay"] + 1) * 24 < last_hour:
        outcome["Length_of_stay"] = -1
        yield "records: stays that end a day and more before their last measurement, no length"


def download(raw_dir: Path | str) -> None:
    """Download the four files from PhysioNet and verify them against its SHA256SUMS.txt.

    Files already there are left alone. Raises DataError on a failed download or checksum.
    """
    folder = Path(raw_dir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [f"{stem}-{letter}{end}" for letter in "ab" for stem, end in _OFFICIAL]
    wanted = [name for name in wanted if not (folder / name).exists()]
    if not wanted:
        return
    listing = _get("SHA256SUMS.txt").decode().split("\n")
    official = {line.split()[-1]: line.split()[0] for line in listing if line.strip()}
    for name in wanted:
        content = _get(name)
        if hashlib.sha256(content).hexdigest() != official.get(name):
            raise DataError(f"{URL}/{name}: checksum differs from SHA256SUMS.txt; try again")
        with atomic.replaced(folder / name) as partial:
            partial.write_bytes(content)


_OFFICIAL = (("set", ".tar.gz"), ("Outcomes", ".txt"))


def _get(name: str) -> bytes:
    try:
        with urllib.request.urlopen(f"{URL}/{name}", timeout=60) as reply:
            return reply.read()
    except OSError as error:
        raise DataError(f"{URL}/{name}: download failed ({error})") from error


def _example(data: DataSpec, raw: RawSet, i: int, outcome: dict[str, float]) -> Example:
    inputs = {}
    for name in data.modality_names:
        if name == "demographics":
            inputs[name] = {"values": _demographics(raw.statics(i))}
        elif name in raw.groups:
            values, times = raw.series(name, i)
            if len(times):
                inputs[name] = {"values": values, "times": times}
    labels = _labels(outcome)
    return {
        "patient": raw.stays[i],
        "key": (raw.stays[i], None),
        "inputs": inputs,
        "targets": {task: labels[task] for task in data.task_names},
        "groups": _groups(raw.statics(i)),
    }


def _demographics(statics: dict[str, float]) -> list[float]:
    """Values in the order of `DEMOGRAPHICS`; NaN where unknown."""
    nan = float("nan")
    unit = statics.get("ICUType")
    one_hot = [nan if unit is None else float(unit == code) for code in range(1, 5)]
    return [statics.get(name, nan) for name in DEMOGRAPHICS[:4]] + one_hot


def _groups(statics: dict[str, float]) -> dict[str, str | None]:
    """Group column -> category, None where unknown."""
    sexes = {float(code): name for code, name in enumerate(SEXES)}
    units = {float(code): name.replace("_", " ") for code, name in enumerate(ICU_TYPES, start=1)}
    return {
        "sex": sexes.get(statics.get("Gender", -1)),
        "age_band": band(statics.get("Age"), AGES),
        "icu_type": units.get(statics.get("ICUType", -1)),
    }


def _labels(outcome: dict[str, float]) -> dict[str, float | None]:
    """Task -> label, None where the outcome is unknown (absent or -1)."""
    known = {name: value for name, value in outcome.items() if value >= 0}
    los, sofa = known.get("Length_of_stay"), known.get("SOFA")
    return {
        "death": known.get("In-hospital_death"),
        "los": los,
        "los_over_7d": None if los is None else float(los > 7),
        "sofa7": None if sofa is None else float(sofa >= 7),
    }
