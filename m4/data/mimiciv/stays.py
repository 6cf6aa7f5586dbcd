"""Who is in the cohort: ICU stays, their labels, static features and earlier diagnoses.

Small tables only; everything here is an array over n stays, ordered by split and within a split by
subject and time. Times are seconds since 1970 as int64.
"""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from m4.data.mimiciv import files, phenotypes, schema
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
    split: np.ndarray  # index into `splits`, i64[n]
    splits: tuple[str, ...]
    targets: dict[str, np.ndarray]  # task -> f64[n] or f64[n, 25], NaN where there is no label
    static: np.ndarray  # f32[n, len(schema.STATIC)]
    history: list[np.ndarray]  # per stay: hashed codes, latest admission last; empty if not asked

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
) -> Stays:
    """Read the small tables and apply the filters of the cohort, each counted in `flow`."""
    icu, adm, pat = _icustays(root), _admissions(root), _patients(root)
    flow.append(("ICU stays", len(icu["stay_id"])))
    a, known = _lookup(adm["hadm_id"], icu["hadm_id"])
    p, known_patient = _lookup(pat["subject_id"], icu["subject_id"])
    hours = (icu["outtime"] - icu["intime"]) / SECONDS
    keep = np.ones(len(hours), bool)
    filters = [
        ("with admission and patient record", known & known_patient),
        ("with ICU exit after entry", icu["timed"] & (hours > 0)),
    ]
    if window == "48h":
        filters.append(("of at least 48 h", hours >= schema.HOURS))
    for step, passed in filters:
        keep &= passed
        flow.append((f"ICU stays {step}", int(keep.sum())))
    flow.append(("patients", len(np.unique(icu["subject_id"][keep]))))
    if not keep.any():
        raise DataError(f"{root}: no ICU stay passes the cohort's filters")
    unit = icu["stay_id" if split_by == "stay" else "subject_id"]
    names = tuple(fractions)
    split = np.array([names.index(assign(int(u), fractions, seed)) for u in unit])
    rows = np.flatnonzero(keep)
    rows = rows[np.lexsort((icu["intime"][rows], icu["subject_id"][rows], split[rows]))]
    icu, adm = {k: v[rows] for k, v in icu.items()}, {k: v[a[rows]] for k, v in adm.items()}
    pat, hours = {k: v[p[rows]] for k, v in pat.items()}, hours[rows]
    diagnoses = _Diagnoses(root, data, phenotype_file)
    return Stays(
        stay=icu["stay_id"],
        subject=icu["subject_id"],
        unit=unit[rows],
        intime=icu["intime"],
        limit=np.minimum(hours, schema.HOURS) if window == "48h" else hours,
        split=split[rows],
        splits=names,
        targets=_targets(data, hours, adm, diagnoses),
        static=_static(icu, adm, pat),
        history=diagnoses.history(adm) if "history" in data.modality_names else [],
    )


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
        "admission_type": "text",
        "admission_location": "text",
        "insurance": "text",
        "hospital_expire_flag": "int",
    }
    return _arrays(files.read(root, "admissions", columns), columns)


def _patients(root):
    columns = {"subject_id": "int", "gender": "text", "anchor_age": "int", "anchor_year": "int"}
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


def _targets(data, hours, adm, diagnoses):
    died = adm["hospital_expire_flag"].astype(float)
    died[died < 0] = np.nan
    all_targets = {
        "ihm48": died,
        "los": hours / 24,
        "los_under_96h": np.where(np.isnan(died), np.nan, (hours < 96) & (died == 0)),
    }
    if "phe" in data.task_names:
        all_targets["phe"] = diagnoses.labels(adm["hadm_id"])
    return {name: all_targets[name] for name in data.task_names}


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


class _Diagnoses:
    """Discharge diagnoses by admission: labels of this one, history from earlier ones."""

    def __init__(self, root, data, phenotype_file):
        self._root, self._wanted = root, {*data.task_names, *data.modality_names}
        if not self._wanted & {"phe", "history"}:
            return
        columns = {"hadm_id": "int", "icd_code": "text", "icd_version": "int"}
        self._vocab = data.modality("history").vocab if "history" in self._wanted else 1
        mapping = phenotypes.load(phenotype_file) if phenotype_file else phenotypes.builtin()
        hadm, code_of, groups, ids = [], [], [], {}
        for batch in files.stream(files.table(root, "diagnoses_icd"), columns):
            hadm.append(batch["hadm_id"].fill_null(-1).to_numpy(zero_copy_only=False))
            versions = batch["icd_version"].fill_null(-1).to_pylist()
            for key in zip(versions, batch["icd_code"].to_pylist(), strict=True):
                if key not in ids:
                    ids[key] = len(ids)
                    groups.append(mapping(*key))
                code_of.append(ids[key])
        self._hadm = np.concatenate(hadm) if hadm else np.zeros(0, np.int64)
        self._code, self._groups = np.array(code_of, np.int32), groups
        order = np.argsort(self._hadm, kind="stable")
        self._hadm, self._code = self._hadm[order], self._code[order]
        self._hashes = np.array([hashed(f"{v}:{c.strip()[:3]}", self._vocab) for v, c in ids])

    def _codes(self, hadm):
        return self._code[slice(*np.searchsorted(self._hadm, [hadm, hadm + 1]))]

    def labels(self, hadm_n):
        """f64[n, 25]; a row of NaN for an admission without diagnoses."""
        labels = np.full((len(hadm_n), len(schema.PHENOTYPES)), np.nan)
        for row, hadm in zip(labels, hadm_n, strict=True):
            codes = self._codes(hadm)
            if len(codes):
                row[:] = 0
                row[[j for code in codes for j in self._groups[code]]] = 1
        return labels

    def history(self, adm):
        """Per stay the three-character codes of admissions that ended before this one began."""
        everyone = _admissions(self._root)
        order = np.lexsort((everyone["dischtime"], everyone["subject_id"]))
        subject = everyone["subject_id"][order]
        found = []
        for who, begin in zip(adm["subject_id"], adm["admittime"], strict=True):
            first, last = np.searchsorted(subject, [who, who + 1])
            earlier = [
                i for i in order[first:last] if files.NEVER < everyone["dischtime"][i] <= begin
            ]
            codes = [self._hashes[self._codes(everyone["hadm_id"][i])] for i in earlier]
            found.append(last_distinct(np.concatenate(codes) if codes else np.zeros(0, int)))
        return found


def last_distinct(codes):
    """Distinct codes in the order of their last appearance."""
    _, first_from_end = np.unique(codes[::-1], return_index=True)
    return codes[::-1][np.sort(first_from_end)][::-1]


def hashed(text: str, vocab: int) -> int:
    """A stable id in [0, vocab); different codes may share one."""
    digest = hashlib.blake2b(text.strip().lower().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % vocab
