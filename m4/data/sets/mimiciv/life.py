"""The life of each ICU stay: when its patient came, left and died, and how surely that is known.

One row per stay, read from the three small tables of every cohort. Filters, windows, labels and
static features take the times of a stay from here and from nowhere else.

A death is known as an interval, from its earliest to its latest possible time:

| what the tables say | earliest | latest |
|---|---|---|
| a time of death of this admission | that time | that time |
| a death in another admission, or a date of death | its beginning | its end |
| only that the patient died in this hospital stay | - | discharge |
| that the patient lived through it, and no date | never | never |
| nothing | - | never |

A patient in the ICU is alive unless a time or date of death says otherwise, and a survivor is until
discharge. Where two of the tables contradict each other about the hospital stay, whether the
patient died is unknown, and the death may have been at any time from the earliest on. Likewise
where the patient is admitted again more than `LATER` after it: so long the clocks of two offices,
or the admission of a body for the donation of organs, may lag behind. Time and date of a death in
hospital may be a day apart: the time counts, unless the date lies more than a day outside the
hospital stay.
"""

import dataclasses
from pathlib import Path

import numpy as np

from m4.data import csv_files
from m4.data.csv_files import NEVER
from m4.data.sets.mimiciv import release
from m4.errors import DataError

HOUR, DAY = 3600.0, 86400.0  # seconds
LATER = 6 * HOUR
WORDS = ("discharge_location", "admission_type", "admission_location", "insurance")
STAYS = dict.fromkeys(("stay_id", "subject_id", "hadm_id"), "whole")
STAYS |= {"first_careunit": "text", "intime": "time", "outtime": "time"}
ADMISSIONS = {"hadm_id": "whole", "subject_id": "whole", "hospital_expire_flag": "int"}
ADMISSIONS |= dict.fromkeys(("admittime", "dischtime", "deathtime"), "time")
ADMISSIONS |= dict.fromkeys(WORDS, "text")
PATIENTS = {"subject_id": "whole", "anchor_age": "int", "anchor_year": "int"}
PATIENTS |= {"gender": "text", "dod": "time"}
TABLES = {"icustays": STAYS, "admissions": ADMISSIONS, "patients": PATIENTS}  # the id comes first
RACE = ("race", "ethnicity")  # what a release calls it; one may have neither
Table = dict[str, np.ndarray]


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
    died: np.ndarray  # f64[n], in the hospital stay; NaN where unknown or contradictory
    dead_from: np.ndarray  # f64[n], earliest time of death, infinite without one
    dead_by: np.ndarray  # f64[n], the latest
    facts: Table  # the tables' other columns: words, and -1 for unknown numbers

    def __len__(self) -> int:
        return len(self.stay)

    def take(self, rows: np.ndarray | list[int]) -> "Life":
        """Some of the stays."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        facts = {name: column[rows] for name, column in fields.pop("facts").items()}
        return Life(**{name: array[rows] for name, array in fields.items()}, facts=facts)

    @property
    def hours(self) -> np.ndarray:
        """f64[n]: hours in the ICU, NaN where one of its times is unknown."""
        return (_known(self.outtime) - _known(self.intime)) / HOUR

    @property
    def hours_to_death(self) -> np.ndarray:
        """f64[2, n]: from ICU admission to death, at least and at most; infinite without one."""
        return (np.stack([self.dead_from, self.dead_by]) - self.intime) / HOUR

    @property
    def hours_lived(self) -> np.ndarray:
        """f64[2, n]: hours alive in the ICU, at least and at most."""
        return np.minimum(self.hours, self.hours_to_death)

    @property
    def hours_in_hospital(self) -> np.ndarray:
        """f64[2, n]: from ICU admission to discharge or death in hospital; NaN where unknown."""
        end = (_known(self.discharge) - self.intime) / HOUR
        return np.where(self.died == 1, np.fmin(end, self.hours_to_death), end)

    @property
    def days_to_death(self) -> np.ndarray:
        """f64[2, n]: dates from that of discharge to that of death; infinite without one."""
        death = np.stack([self.dead_from, self.dead_by])
        return np.floor(death / DAY) - np.floor(_known(self.discharge) / DAY)

    @property
    def within_hospital(self) -> np.ndarray:
        """bool[n]: whether the stay lies, in part, between hospital admission and discharge."""
        late = (self.discharge > NEVER) & (self.intime > self.discharge)
        return ~late & ~((self.outtime > NEVER) & (self.outtime < self.admit))

    def hour_of(self, row, time: np.ndarray) -> np.ndarray:
        """f64[e]: hours from ICU admission of the stays `row` to the times of e events."""
        return (time - self.intime[row]) / HOUR

    def overlapping(self, rows: np.ndarray) -> np.ndarray:
        """bool[n]: whether a stay of `rows` shares time with another of its patient among them."""
        found = np.zeros(len(self), bool)
        last = -1  # of those that began, the one that ends last
        for row in rows[np.lexsort((self.intime[rows], self.subject[rows]))]:
            same = last >= 0 and self.subject[row] == self.subject[last]
            if same and self.intime[row] < self.outtime[last]:
                found[[last, row]] = True
            if not same or self.outtime[row] > self.outtime[last]:
                last = row
        return found


def _known(time: np.ndarray) -> np.ndarray:
    return np.where(time > NEVER, time, np.nan)


def read(root: Path) -> tuple[Life, np.ndarray, Table, dict[str, int]]:
    """Every ICU stay, whether its admission and patient are known, the table of admissions, and how
    many stays have records that are contradictory or incomplete, by kind.

    A stay without an id is not known: rows of any patient have none either.

    Raises DataError for files that cannot be used, and for a row that comes twice: it would be two
    stays, or one of two answers.
    """
    race = [name for name in csv_files.header(release.need(root, "admissions")) if name in RACE]
    more = {"admissions": dict.fromkeys(race[:1], "text")}
    icu, adm, pat = (
        release.read(root, name, columns | more.get(name, {})) for name, columns in TABLES.items()
    )
    for table, (ids_N, *_) in zip(TABLES, (t.values() for t in (icu, adm, pat)), strict=True):
        ids_N = ids_N[ids_N != -1]  # null, which is no id
        twice = len(ids_N) - len(np.unique(ids_N))
        if twice:
            raise DataError(f"{root}: {table} has {twice} rows whose id came before")
    a, known_admission = lookup(adm["hadm_id"], icu["hadm_id"])
    p, known_patient = lookup(pat["subject_id"], icu["subject_id"])
    known = known_admission & known_patient
    reversed_N = (adm["dischtime"] > NEVER) & (adm["dischtime"] < adm["admittime"])
    adm["dischtime"] = np.where(reversed_N, NEVER, adm["dischtime"])
    odd_N = ~np.isin(adm["hospital_expire_flag"], (-1, 0, 1))
    adm["hospital_expire_flag"] = np.where(odd_N, -1, adm["hospital_expire_flag"])
    facts = {name: adm[name][a] for name in WORDS} | {"first_careunit": icu["first_careunit"]}
    facts |= {name: pat[name][p] for name in ("gender", "anchor_age", "anchor_year")}
    facts["race"] = adm[race[0]][a] if race else np.full(len(a), "")
    life = Life(
        stay=icu["stay_id"],
        subject=icu["subject_id"],
        hadm=icu["hadm_id"],
        intime=icu["intime"],
        outtime=icu["outtime"],
        admit=adm["admittime"][a],
        discharge=adm["dischtime"][a],
        died=np.where(adm["hospital_expire_flag"][a] < 0, np.nan, adm["hospital_expire_flag"][a]),
        dead_from=np.zeros(0),
        dead_by=np.zeros(0),
        facts=facts,
    )
    other = adm["subject_id"][a] != icu["subject_id"]
    contradictions = {"admission of another patient": other}
    contradictions |= {"hospital discharge before admission": reversed_N[a]}
    contradictions |= {"died in hospital neither 0 nor 1": odd_N[a]}
    contradictions |= _deaths(life, _known(adm["deathtime"][a]), _known(pat["dod"][p]), adm)
    counts = {kind: int(found[known].sum()) for kind, found in contradictions.items()}
    nameless = known & (life.stay == -1)
    counts["ICU stay without an id, left out"] = int(nameless.sum())
    return life, known & ~other & ~nameless, adm, counts


def _deaths(life: Life, time_n: np.ndarray, date_n: np.ndarray, adm: Table) -> Table:
    """Fill in when the patients died; returns gaps and contradictions, kind -> bool[n].

    `time_n`: of a death in this admission; `date_n`: midnight of the date of death. NaN if unknown.
    """
    flag, exact = life.died, ~np.isnan(time_n)
    out, end = _known(life.outtime), _known(life.discharge)
    other_from, other_by = _elsewhere(life, adm)
    elsewhere = np.isfinite(other_by) | ~np.isnan(date_n)
    date_from = np.where(np.isfinite(other_by), other_from, date_n)
    date_by = np.where(np.isfinite(other_by), other_by, date_n + DAY)
    before = np.where(exact, time_n <= life.intime, date_by <= life.intime)
    before |= other_by < life.intime
    dated = elsewhere & ~exact & ~before
    first, last = np.fmin(_known(life.admit), time_n), np.fmax(end, time_n)
    far = exact & ((date_n > last + DAY) | (date_n + DAY < first - DAY)) & ~before
    kinds = {
        "dead before the stay": before,
        "a time of death, but discharged alive": exact & (flag == 0) & ~before,
        "a date of death before a discharge alive": dated & (flag == 0) & (date_by < end),
        "died in hospital, but a date of death after it": dated & (flag == 1) & (date_from > end),
        "died in hospital without a time of death": ~exact & (flag == 1) & ~before,
        "time and date of death differ": exact & ((time_n < date_n) | (time_n >= date_n + DAY)),
        "hospital discharge unknown": np.isnan(end),
    }
    _, alive, early, late, *_ = kinds.values()
    outlived = exact & (flag != 0) & (time_n >= end + DAY) & ~before
    timed, unsure = exact & ~outlived, alive | early | late | outlived | far
    low = np.select(
        [timed, dated & ~late], [time_n, date_from], np.where(flag == 0, np.inf, -np.inf)
    )
    low = np.where(outlived, -np.inf, low)
    high = np.select([exact, dated], [time_n, date_by], np.where(flag == 1, end, np.inf))
    high = np.where(dated & (flag == 1), np.fmin(high, end), high)
    back = (_last_other(life, adm) > np.fmin(high, date_n + DAY) + LATER) & ~before
    high = np.where(unsure | back | np.isnan(high), np.inf, high)
    in_icu = np.fmax(np.fmin(out, end), life.intime)  # alive until then, unless dead for certain
    low = np.where(timed | early | (high < in_icu), low, np.fmax(low, in_icu))
    low = np.where(dated & (flag == 0) & ~early, np.fmax(low, end), low)
    low = np.where(before, -np.inf, np.where(exact, low, np.fmax(low, life.intime)))
    flag = np.where(np.isnan(flag) & exact, 1, flag)
    flag = np.where(np.isnan(flag) & dated & (high <= end), 1, flag)
    flag = np.where(np.isnan(flag) & dated & (low > end), 0, flag)
    life.died = np.where(unsure | (back & (flag == 1)), np.nan, flag)
    life.dead_from, life.dead_by = low, high
    return kinds | {
        "died in hospital, but a time of death after it": outlived,
        "admitted after death": back,
        "left the ICU after death": (high < out) & ~before,
    }


def _last_other(life: Life, adm: Table) -> np.ndarray:
    """f64[n]: when the last other admission of the patient begins, -infinite without one."""
    order = np.lexsort((adm["admittime"], adm["subject_id"]))
    subject, hadm, begin = (adm[c][order] for c in ("subject_id", "hadm_id", "admittime"))
    last = np.searchsorted(subject, life.subject, side="right") - 1
    last -= hadm[last] == life.hadm
    found = (last >= 0) & (subject[last.clip(0)] == life.subject)
    begin = begin[last.clip(0)]
    return np.where(found & (begin > NEVER), begin, -np.inf)


def _elsewhere(life: Life, adm: Table) -> tuple[np.ndarray, np.ndarray]:
    """The first death in another admission of the patient, earliest and latest, f64[n]."""
    dead = np.flatnonzero((adm["deathtime"] > NEVER) | (adm["hospital_expire_flag"] == 1))
    deaths: dict[int, list] = {}
    for i in dead:
        time, begin, end = (_known(adm[c][i]) for c in ("deathtime", "admittime", "dischtime"))
        at = (begin, end) if np.isnan(time) else (time, time)
        if not np.isnan(at).any():
            deaths.setdefault(int(adm["subject_id"][i]), []).append((*at[::-1], adm["hadm_id"][i]))
    found = np.full((2, len(life)), np.inf)
    for row in np.flatnonzero(np.isin(life.subject, [*deaths])):
        others = [at for *at, hadm in deaths[int(life.subject[row])] if hadm != life.hadm[row]]
        found[:, row] = min(others, default=(np.inf, np.inf))
    return found[1], found[0]


def lookup(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of `wanted` in unsorted `keys`, and whether each was found; a null (-1) is not."""
    order = np.argsort(keys, kind="stable")
    found = order[np.searchsorted(keys, wanted, sorter=order).clip(max=len(keys) - 1)]
    return found, (keys[found] == wanted) & (wanted != -1)
