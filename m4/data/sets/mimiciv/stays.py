"""Who is in the cohort: ICU stays, their labels, static features and earlier diagnoses.

Small tables only; everything here is an array over n stays, ordered by split and within a split by
subject and time. Times are seconds since 1970 as int64.
"""

import dataclasses
from pathlib import Path

import numpy as np

from m4.data.sets.mimiciv import files, haim, labels, schema
from m4.data.sets.mimiciv.diagnoses import Diagnoses
from m4.data.sets.mimiciv.windows import FIRST_HOUR, only, some_hour, some_image
from m4.data.split import assign
from m4.errors import DataError
from m4.specs import DataSpec

SECONDS = 3600.0


@dataclasses.dataclass
class Stays:
    """The cohort. `limit` is the end of the window in hours since `intime`."""

    stay: np.ndarray  # i64[n]
    subject: np.ndarray  # i64[n]
    unit: np.ndarray  # i64[n], what is split and resampled: the subject, or the stay if asked
    intime: np.ndarray  # i64[n]
    limit: np.ndarray  # f64[n]
    hadm: np.ndarray  # i64[n]
    admit: np.ndarray  # i64[n], when the hospital admission began
    split: np.ndarray  # index into `splits`, i64[n]
    splits: tuple[str, ...]
    targets: dict[str, np.ndarray]  # task -> f64[n] or f64[n, 25], NaN where there is no label
    static: np.ndarray  # f32[n, len(schema.STATIC)]
    history: list[np.ndarray]  # per stay: hashed codes, latest admission last; empty if not asked
    demographics: np.ndarray | None = None  # f32[n, 6], see `haim.py`

    def __len__(self):
        return len(self.stay)


def load_stays(
    root: Path,
    data: DataSpec,
    *,
    seed: int,
    fractions: dict[str, float],
    flow: list[tuple[str, int]],
    window: str,
    split_by: str,
    phenotype_file: str,
    raw_dir: Path,
) -> Stays:
    """Read the small tables and apply the filters of the cohort, each counted in `flow`."""
    icu, adm, pat = _icustays(root), _admissions(root), _patients(root)
    _check_ids(root, icustays=icu["stay_id"], admissions=adm["hadm_id"], patients=pat["subject_id"])
    flow.append(("ICU stays", len(icu["stay_id"])))
    a, known = _lookup(adm["hadm_id"], icu["hadm_id"])
    p, known_patient = _lookup(pat["subject_id"], icu["subject_id"])
    keep, hours = _keep(icu, adm, a, known & known_patient, window, flow)
    if not keep.any():
        raise DataError(f"{root}: no ICU stay passes the cohort's filters")
    unit = icu["stay_id" if split_by == "stay" else "subject_id"]
    names = tuple(fractions)
    split = np.array([names.index(assign(int(u), fractions, seed)) for u in unit])
    rows = np.flatnonzero(keep)
    rows = rows[np.lexsort((icu["intime"][rows], icu["subject_id"][rows], split[rows]))]
    everyone = adm
    icu, adm = {k: v[rows] for k, v in icu.items()}, {k: v[a[rows]] for k, v in adm.items()}
    pat, hours = {k: v[p[rows]] for k, v in pat.items()}, hours[rows]
    stays = Stays(
        stay=icu["stay_id"],
        subject=icu["subject_id"],
        unit=unit[rows],
        intime=icu["intime"],
        limit=np.minimum(hours, schema.HOURS) if window == "48h" else hours,
        hadm=icu["hadm_id"],
        admit=adm["admittime"],
        split=split[rows],
        splits=names,
        targets={},
        static=_static(icu, adm, pat),
        history=[],
    )
    image_of: dict[int, str] = {}
    if window == "hour":
        stays.limit = some_hour(stays, np.minimum(hours, _lived(icu, adm)), seed)
    elif window == "cxr":
        image_of = some_image(stays, Path(raw_dir), seed)
        flow.append(("ICU stays with a frontal chest X-ray after hour 4", len(image_of)))
        stays = only(stays, [*image_of])
        icu, adm, pat = ({k: v[[*image_of]] for k, v in t.items()} for t in (icu, adm, pat))
    diagnoses = Diagnoses(root, data, phenotype_file)
    studies = list(image_of.values())
    targets = _Targets(root, stays, icu, adm, pat, everyone, diagnoses, studies, Path(raw_dir))
    stays.targets = {task: targets(task) for task in data.task_names}
    if "history" in data.modality_names:
        stays.history = diagnoses.history(adm, everyone)
    if "haim_demographics" in data.modality_names:
        stays.demographics = _demographics(root, stays, pat["gender"])
    return stays


def _keep(icu, adm, a, known, window, flow):
    """Filters of the cohort, bool[n], each counted in `flow`; and hours in the ICU."""
    hours = (icu["outtime"] - icu["intime"]) / SECONDS
    filters = [
        ("with admission and patient record", known),
        ("with ICU exit after entry", icu["timed"] & (hours > 0)),
    ]
    if window == "48h":
        filters.append(("of at least 48 h", hours >= schema.HOURS))
    if window in ("hour", "cxr"):
        lived = np.minimum(hours, _lived(icu, {k: v[a] for k, v in adm.items()}))
        filters.append((f"of at least {FIRST_HOUR} h", lived >= FIRST_HOUR))
    keep = np.ones(len(hours), bool)
    for step, passed in filters:
        keep &= passed
        flow.append((f"ICU stays {step}", int(keep.sum())))
    flow.append(("patients", len(np.unique(icu["subject_id"][keep]))))
    return keep, hours


def _lived(icu, adm) -> np.ndarray:
    """Hours from ICU admission to a death in the hospital, infinite without one."""
    died = adm["deathtime"] > files.NEVER
    return np.where(died, (adm["deathtime"] - icu["intime"]) / SECONDS, np.inf)


def _check_ids(root: Path, **ids: np.ndarray) -> None:
    """A row that comes twice would be two stays, or one of two answers."""
    for table, ids_N in ids.items():
        twice = len(ids_N) - len(np.unique(ids_N))
        if twice:
            raise DataError(f"{root}: {table} has {twice} rows whose id came before")


def _icustays(root):
    columns = {
        "subject_id": "int",
        "hadm_id": "int",
        "stay_id": "int",
        "first_careunit": "text",
        "intime": "time",
        "outtime": "time",
    }
    icu = _arrays(files.read(root, "icustays", columns), columns)
    icu["timed"] = (icu["intime"] > files.NEVER) & (icu["outtime"] > files.NEVER)
    return icu


def _admissions(root):
    columns = {
        "subject_id": "int",
        "hadm_id": "int",
        "admittime": "time",
        "dischtime": "time",
        "deathtime": "time",
        "discharge_location": "text",
        "admission_type": "text",
        "admission_location": "text",
        "insurance": "text",
        "hospital_expire_flag": "int",
    }
    return _arrays(files.read(root, "admissions", columns), columns)


def _patients(root):
    columns = {"subject_id": "int", "gender": "text", "anchor_age": "int", "anchor_year": "int"}
    columns["dod"] = "time"
    return _arrays(files.read(root, "patients", columns), columns)


def _arrays(table, columns):
    """Columns as NumPy arrays; a null is -1 for a number and `NEVER` for a time."""
    arrays = {}
    for name, kind in columns.items():
        column = table[name].combine_chunks()
        if kind == "time":
            arrays[name] = files.seconds(column)
        else:
            column = column.fill_null(-1) if kind == "int" else column
            arrays[name] = column.to_numpy(zero_copy_only=False)
    return arrays


def _lookup(keys, wanted):
    """Positions of `wanted` in unsorted `keys`, and whether each was found."""
    order = np.argsort(keys, kind="stable")
    at = np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)
    found = order[at]
    return found, keys[found] == wanted


@dataclasses.dataclass
class _Targets:
    """Labels of a task, f64[n] or f64[n, labels]; NaN where there is none."""

    root: Path
    stays: Stays
    icu: dict
    adm: dict
    pat: dict
    everyone: dict
    diagnoses: "Diagnoses"
    studies: list[str]
    raw_dir: Path

    def __call__(self, name: str) -> np.ndarray:
        if name in ("phe", "diseases"):
            return self.diagnoses.labels(self.adm["hadm_id"], name)
        if name == "readmission":
            return labels.readmission(self.icu, self.adm, self.pat, self.everyone)
        if name == "drg":
            train = self.stays.split == self.stays.splits.index("train")
            return labels.drg(self.root, self.adm["hadm_id"], train)
        if name == "chexpert":
            return labels.chexpert(self.raw_dir, self.studies)
        return labels.simple(name, self.icu, self.adm, self.pat, self.stays.limit)


def _demographics(root, stays, gender):
    """HAIM's six columns; the race is called ethnicity in version 1."""
    path = files.table(root, "admissions")
    race = "race" if "race" in files.header(path) else "ethnicity"
    columns = {"hadm_id": "int"}
    columns |= dict.fromkeys((race, "marital_status", "language", "insurance"), "text")
    adm = _arrays(files.read(root, "admissions", columns), columns)
    row, _ = _lookup(adm["hadm_id"], stays.hadm)
    age = stays.static[:, schema.STATIC.index("age")]
    return haim.demographics(age, [gender, *(adm[name][row] for name in [*columns][1:])])


def _static(icu, adm, pat):
    """The columns of `schema.STATIC`; NaN where unknown."""

    def holds(column, *words):
        text = np.char.lower(column.astype(str))
        return np.any([np.char.find(text, word) >= 0 for word in words], axis=0)

    year = icu["intime"].astype("datetime64[s]").astype("datetime64[Y]").astype(int) + 1970
    before = (icu["intime"] - adm["admittime"]) / SECONDS
    kind, place = adm["admission_type"], adm["admission_location"]
    unit, payer = icu["first_careunit"], adm["insurance"]
    columns = {
        "age": np.where(
            pat["anchor_age"] < 0, np.nan, pat["anchor_age"] + year - pat["anchor_year"]
        ),
        "female": np.where(pat["gender"] == "", np.nan, pat["gender"] == "F"),
        "hours_before_icu": np.where(adm["admittime"] > files.NEVER, before, np.nan),
        "type_emergency": holds(kind, "emer"),
        "type_urgent": holds(kind, "urgent"),
        "type_elective": holds(kind, "elective", "surgical same day"),
        "type_observation": holds(kind, "observation"),
        "from_emergency_room": holds(place, "emergency"),
        "from_transfer": holds(place, "transfer"),
        "from_referral": holds(place, "referral"),
        "from_procedure": holds(place, "procedure", "pacu"),
        "insurance_medicare": holds(payer, "medicare"),
        "insurance_medicaid": holds(payer, "medicaid"),
        "unit_medical": holds(unit, "medical"),
        "unit_surgical": holds(unit, "surgical", "sicu"),
        "unit_cardiac": holds(unit, "cardiac", "coronary"),
        "unit_neuro": holds(unit, "neuro"),
    }
    return np.stack([columns[name] for name in schema.STATIC], axis=1).astype(np.float32)
