"""The life of each ICU stay: when its patient came, left and died, and what was written down.

One row per stay, read from the three small tables of every cohort. Labels, windows, filters and
static features take the times of a stay from here and from nowhere else.
"""

import dataclasses
from pathlib import Path

import numpy as np

from m4.data.csv_files import NEVER
from m4.data.sets.mimiciv import release
from m4.errors import DataError

HOUR, DAY = 3600.0, 86400.0  # seconds
WORDS = ("discharge_location", "admission_type", "admission_location", "insurance")
STAYS = dict.fromkeys(("stay_id", "subject_id", "hadm_id"), "int")
STAYS |= {"first_careunit": "text", "intime": "time", "outtime": "time"}
ADMISSIONS = dict.fromkeys(("hadm_id", "subject_id", "hospital_expire_flag"), "int")
ADMISSIONS |= dict.fromkeys(("admittime", "dischtime", "deathtime"), "time")
ADMISSIONS |= dict.fromkeys(WORDS, "text")
PATIENTS = dict.fromkeys(("subject_id", "anchor_age", "anchor_year"), "int")
PATIENTS |= {"gender": "text", "dod": "time"}
TABLES = {"icustays": STAYS, "admissions": ADMISSIONS, "patients": PATIENTS}  # the id comes first


@dataclasses.dataclass
class Life:
    """Arrays over n stays; times are seconds since 1970, i64[n], `NEVER` where unknown."""

    stay: np.ndarray  # i64[n]
    subject: np.ndarray  # i64[n]
    hadm: np.ndarray  # i64[n]
    intime: np.ndarray  # of the ICU
    outtime: np.ndarray
    admit: np.ndarray  # of the hospital
    discharge: np.ndarray
    death: np.ndarray  # in the hospital
    death_date: np.ndarray  # anywhere; a date: its midnight
    died: np.ndarray  # f64[n], in the hospital stay; NaN where unknown
    facts: dict[str, np.ndarray]  # the tables' other columns: words, and -1 for unknown numbers

    def __len__(self) -> int:
        return len(self.stay)

    def take(self, rows: np.ndarray | list[int]) -> "Life":
        """Some of the stays."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        facts = {name: column[rows] for name, column in fields.pop("facts").items()}
        return Life(**{name: array[rows] for name, array in fields.items()}, facts=facts)

    @property
    def timed(self) -> np.ndarray:
        """bool[n]: whether both times of the ICU are known."""
        return (self.intime > NEVER) & (self.outtime > NEVER)

    @property
    def hours(self) -> np.ndarray:
        """f64[n]: hours in the ICU."""
        return (self.outtime - self.intime) / HOUR

    @property
    def hours_to_death(self) -> np.ndarray:
        """f64[n]: from ICU admission to a death in the hospital, infinite without one."""
        return np.where(self.death > NEVER, (self.death - self.intime) / HOUR, np.inf)

    @property
    def hours_lived(self) -> np.ndarray:
        """f64[n]: hours in the ICU, at most until death."""
        return np.minimum(self.hours, self.hours_to_death)

    @property
    def hours_to_discharge(self) -> np.ndarray:
        """f64[n]: from ICU admission to the end of the hospital stay, NaN where unknown."""
        return np.where(self.discharge > NEVER, (self.discharge - self.intime) / HOUR, np.nan)

    @property
    def days_to_death(self) -> np.ndarray:
        """f64[n]: from discharge to the date of death, infinite without one."""
        days = np.floor((self.death_date - self.discharge) / DAY) + 1
        return np.where(self.death_date > NEVER, np.maximum(days, 0), np.inf)

    def hour_of(self, row: np.ndarray, time: np.ndarray) -> np.ndarray:
        """f64[e]: hours from ICU admission of the stays `row` to the times of e events."""
        return (time - self.intime[row]) / HOUR


def read(root: Path) -> tuple[Life, np.ndarray, dict[str, np.ndarray]]:
    """Every ICU stay, whether its admission and patient are known, and the table of admissions.

    Raises DataError for files that cannot be used, and for a row that comes twice: it would be two
    stays, or one of two answers.
    """
    icu, adm, pat = (release.read(root, name, columns) for name, columns in TABLES.items())
    for table, (ids_N, *_) in zip(TABLES, (t.values() for t in (icu, adm, pat)), strict=True):
        twice = len(ids_N) - len(np.unique(ids_N))
        if twice:
            raise DataError(f"{root}: {table} has {twice} rows whose id came before")
    a, known_admission = lookup(adm["hadm_id"], icu["hadm_id"])
    p, known_patient = lookup(pat["subject_id"], icu["subject_id"])
    flag = adm["hospital_expire_flag"][a]
    facts = {name: adm[name][a] for name in WORDS} | {"first_careunit": icu["first_careunit"]}
    facts |= {name: pat[name][p] for name in ("gender", "anchor_age", "anchor_year")}
    life = Life(
        stay=icu["stay_id"],
        subject=icu["subject_id"],
        hadm=icu["hadm_id"],
        intime=icu["intime"],
        outtime=icu["outtime"],
        admit=adm["admittime"][a],
        discharge=adm["dischtime"][a],
        death=adm["deathtime"][a],
        death_date=pat["dod"][p],
        died=np.where(flag < 0, np.nan, flag),
        facts=facts,
    )
    return life, known_admission & known_patient, adm


def lookup(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of `wanted` in unsorted `keys`, and whether each was found."""
    order = np.argsort(keys, kind="stable")
    found = order[np.searchsorted(keys, wanted, sorter=order).clip(max=len(keys) - 1)]
    return found, keys[found] == wanted
