"""SUPPORT2: 9,105 seriously ill adults of five US hospitals, one table row each.

Knaus et al., *The SUPPORT prognostic model*, Annals of Internal Medicine 122:191 (1995);
https://archive.ics.uci.edu/dataset/880/support2. Inputs are what was known on study day 3.

Never an input, because it is known later or is itself an outcome: `avtisst`, `dnr`, `dnrday`,
`slos`, `charges`, `totcst`, `totmcst`, `adlsc` (imputed with later answers) and the outcomes.
`sps`, `aps`, `surv2m`, `surv6m` are other models' scores and `prg2m`, `prg6m` physicians'
estimates: modality `prognosis`, which has to be asked for.

Tasks
- `hospital_death`: died in hospital.
- `function`: status at two months, `FUNCTIONS`.
- `los`: days in hospital; `charges`: dollars. Both as log1p.
- `survival`: days to death or end of follow-up, and which of the two; intervals end at `DAYS`.
- `phenotype`: five clusters, no labels; has to be asked for.

The test split is fold `fold` of `num_folds` by a keyed hash of the row's number, so that running
every fold gives one out-of-fold prediction per patient.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from m4.data import split, text
from m4.data.cohort import Cohort, Example, checksums
from m4.errors import ConfigError, DataError
from m4.specs import DataSpec, ModalitySpec, TaskSpec

VERSION = "1"
LICENCE = "Creative Commons Attribution 4.0; cite Knaus et al. 1995"
WHERE = "download support2.csv from https://archive.ics.uci.edu/dataset/880/support2 (open access)"
FOLDER = "support2"

DISEASES = (
    "ARF/MOSF w/Sepsis", "CHF", "COPD", "Cirrhosis", "Colon Cancer", "Coma", "Lung Cancer",
    "MOSF w/Malig",
)  # fmt: skip
CHOICES = {  # text column -> its values, one 0/1 feature each; other text is missing
    "sex": ("female",),
    "race": ("white", "black", "hispanic", "asian", "other"),
    "income": ("under $11k", "$11-$25k", "$25-$50k", ">$50k"),
    "dzgroup": DISEASES,
    "ca": ("no", "yes", "metastatic"),
}
VALUES = {"sex": ("female", "male")}  # known values where not every one has a feature
# Groups of columns that are missing together.
GROUPS: dict[str, tuple[str, ...]] = {
    "demographics": ("age", "sex", "edu", "income", "race"),
    "disease": ("dzgroup", "num.co", "diabetes", "dementia", "ca", "hday"),
    "vitals": ("meanbp", "hrt", "resp", "temp", "scoma"),
    "blood": ("wblc", "crea", "sod"),
    "blood_gas": ("pafi", "ph"),
    "liver": ("alb", "bili"),
    "metabolism": ("glucose", "bun", "urine"),
    "daily_living": ("adlp", "adls"),
    "prognosis": ("sps", "aps", "surv2m", "surv6m", "prg2m", "prg6m"),
}
DEFAULT = tuple(name for name in GROUPS if name != "prognosis")
FUNCTIONS = (
    "no(M2 and SIP pres)", "adl>=4 (>=5 if sur)", "SIP>=30", "Coma or Intub", "<2 mo. follow-up",
)  # fmt: skip
DAYS = ("7", "14", "30", "60", "90", "180", "365", "730", "1460")

TASKS = (
    TaskSpec("hospital_death", "binary"),
    TaskSpec("function", "multiclass", dim=len(FUNCTIONS), labels=FUNCTIONS),
    TaskSpec("los", "regression", transform="log1p"),
    TaskSpec("charges", "regression", transform="log1p"),
    TaskSpec("survival", "survival", dim=len(DAYS), labels=DAYS),
    TaskSpec("phenotype", "cluster", dim=5),
)
DEFAULT_TASKS = tuple(task.name for task in TASKS if task.kind != "cluster")
COLUMNS = ("sno", "hospdead", "sfdm2", "slos", "charges", "d.time", "death")


def spec(
    *,
    modalities: Sequence[str] = DEFAULT,
    tasks: Sequence[str] = DEFAULT_TASKS,
    fold: int = 0,
    num_folds: int = 5,
    val_fraction: float = 0.1,
) -> DataSpec:
    """The schema: one table per group of columns.

    Raises:
      ConfigError: unknown names, a fold that does not exist, a `val_fraction` outside (0, 1).
    """
    problems = []
    for option, chosen, known in (
        ("modalities", modalities, tuple(GROUPS)),
        ("tasks", tasks, tuple(task.name for task in TASKS)),
    ):
        unknown = sorted({*chosen} - {*known})
        if unknown or not chosen:
            problems.append(f"data.options.{option}: {unknown} not in {', '.join(known)}")
    if not 0 <= fold < num_folds or num_folds < 2:
        problems.append(f"data.options.fold: {fold} is not one of num_folds={num_folds}, from 0")
    if not 0 < val_fraction < 1:
        problems.append(f"data.options.val_fraction: {val_fraction} must be between 0 and 1")
    if problems:
        raise ConfigError(*problems)
    tables = {name: tuple(f for c in GROUPS[name] for f in _features(c)) for name in GROUPS}
    return DataSpec(
        tuple(
            ModalitySpec(name, "table", (len(features),), features)
            for name, features in tables.items()
            if name in modalities
        ),
        tuple(task for task in TASKS if task.name in tasks),
    )


def missing_files(raw_dir: Path | str, **options) -> list[str]:
    """One line if `raw_dir/support2/support2.csv` is not there."""
    path = Path(raw_dir) / FOLDER / "support2.csv"
    return [] if path.exists() else [f"{path} is missing"]


def cohort(raw_dir: Path | str, *, seed: int, **options) -> Cohort:
    """Train, validation and test patients, each split a pass over the file.

    Raises:
      DataError: while iterating, for a file without the columns or with something unreadable.
    """
    data, path = spec(**options), Path(raw_dir) / FOLDER / "support2.csv"
    fold, num_folds = options.get("fold", 0), options.get("num_folds", 5)
    val_fraction = options.get("val_fraction", 0.1)
    folds = {str(i): 1 / num_folds for i in range(num_folds)}
    rest = {"train": 1 - val_fraction, "val": val_fraction}

    def examples(name: str) -> Iterator[Example]:
        for row in _rows(path):
            patient = int(row["sno"])
            place = "test"
            if split.assign(patient, folds, seed) != str(fold):
                place = split.assign(f"{patient} of the rest", rest, seed)
            if place == name:
                yield _example(data, row)

    return Cohort(
        spec=data,
        splits={name: lambda name=name: examples(name) for name in ("train", "val", "test")},
        sources=checksums(Path(raw_dir), [path]),
        licence=LICENCE,
        version=VERSION,
        notes=f"SUPPORT2; test is fold {fold} of {num_folds}.",
    )


def _features(column: str) -> tuple[str, ...]:
    return tuple(f"{column}={value}" for value in CHOICES.get(column, ())) or (column,)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows as text without blanks. Raises DataError naming the file and line."""
    wanted = {*COLUMNS, *(c for group in GROUPS.values() for c in group)}
    seen: set[str] = set()
    for line, row in text.rows(path, wanted):
        where = f"{path}, line {line}"
        for column in sorted(wanted - {*CHOICES, "sfdm2"}):
            text.number(row[column], where=f"{where}: {column}")
        if not row["sno"].isdigit():
            raise DataError(f"{where}: sno is not a whole number")
        if row["sno"] in seen:
            raise DataError(f"{where}: this patient came before")
        seen.add(row["sno"])
        yield row


def _example(data: DataSpec, row: dict[str, str]) -> Example:
    inputs = {}
    for name in data.modality_names:
        inputs[name] = {"values": [v for c in GROUPS[name] for v in _values(c, row[c])]}
    labels = {
        "hospital_death": _number(row["hospdead"]),
        "function": FUNCTIONS.index(row["sfdm2"]) if row["sfdm2"] in FUNCTIONS else None,
        "los": _number(row["slos"]),
        "charges": _number(row["charges"]),
        "survival": [float(row["d.time"] or "nan"), float(row["death"] or "nan")],
        "phenotype": None,
    }
    return {
        "patient": int(row["sno"]),
        "inputs": inputs,
        "targets": {name: labels[name] for name in data.task_names},
    }


def _values(column: str, value: str) -> list[float]:
    """Features of one column; NaN where unknown."""
    if column not in CHOICES:
        return [float(value or "nan")]
    if value not in VALUES.get(column, CHOICES[column]):
        return [float("nan")] * len(CHOICES[column])
    return [float(value == known) for known in CHOICES[column]]


def _number(value: str) -> float | None:
    return float(value) if value else None
