"""Tasks of a stay, from the small tables.

| task | label | source |
|---|---|---|
| `ihm48` | died in the hospital stay | FuseMoE, FlexCare |
| `los` | days in the ICU | |
| `los_under_96h` | less than 96 h in the ICU and survived the admission | FuseMoE's "LOS" |
| `phe` | 25 phenotypes (`phenotypes.py`) | MIMIC-III benchmark |
| `decompensation` | dies in the hospital within 24 h after the input's end | FlexCare |
| `los_remaining` | days left in the ICU at the input's end, ten bins | FlexCare |
| `readmission` | after the ICU: died in hospital, or within 30 days dead or back | FlexCare |
| `mortality_1y` | dead within a year of discharge | Flex-MoE |
| `diseases` | 40 diseases (`diseases.py`) | M3H |
| `disposition` | where to: home, home with help, facility, hospice or death, other | M3H |
| `drg` | HCFA diagnosis-related group, number in the sorted codes of training | FlexCare |
| `los_after_cxr` | hours from the image to discharge | HAIM, M3H |
| `los_under_48h` | discharged alive within 48 h of the image | HAIM |
| `mortality_48h` | died within 48 h of the image; none if discharged alive by then | HAIM |
| `chexpert` | 14 findings of the image; uncertain or not mentioned is no label | FlexCare |

A stay in the ICU ends at death, whatever is written down later. No label: what depends on a death
that is unknown, contradictory or not known well enough (`life.py`) or on an unknown discharge, an
admission without a code, `readmission` of who died in the ICU, `mortality_1y` of who died in
hospital, a `disposition` against that, a DRG that training does not have. FlexCare sees
readmissions among its filtered stays only; here any admission of the hospital counts, but for
another that begins before the discharge, however early, and outlasts it: then there is no label.

All arrays are over n stays, whose times are those of `life.py`; NaN is no label.
"""

from pathlib import Path

import numpy as np

from m4.data import csv_files
from m4.data.sets.mimiciv import catalogue, linked, release
from m4.data.sets.mimiciv.life import DAY, Life

PLACES = (  # disposition, words in the discharge location; the first that fits
    (3, ("HOSPICE", "DIED")),
    (1, ("HOME HEALTH",)),
    (2, ("SKILLED NURSING", "REHAB", "LONG TERM ACUTE")),
    (0, ("HOME",)),
)


def simple(name: str, life: Life, limit_n: np.ndarray) -> np.ndarray:
    """f64[n] of one task that needs nothing but the life of the stays.

    `limit_n`: end of the input, hours since ICU admission.
    """
    died, survived = life.died, life.died == 0
    after = life.hours_in_hospital - limit_n
    short = _sure(np.where(after >= 0, after < 48, np.nan))
    if name == "ihm48":
        return died
    if name == "los":
        return _sure(life.hours_lived / 24)
    if name == "los_under_96h":
        return np.where(np.isnan(died), np.nan, _sure((life.hours_lived < 96) & survived))
    if name == "decompensation":
        return _if_died(life, _sure(life.hours_to_death - limit_n < 24), 0)
    if name == "los_remaining":
        days = np.maximum(life.hours_lived - limit_n, 0) / 24
        return _sure(np.searchsorted([1, 2, 3, 4, 5, 6, 7, 8, 14], days, side="right"))
    if name == "disposition":
        places = np.char.upper(life.facts["discharge_location"].astype(str))
        found = np.array([_place(text) for text in places])
        against = np.where(np.char.find(places, "DIED") >= 0, survived, (died == 1) & (found != 3))
        return np.where(against, np.nan, found)
    if name == "mortality_1y":
        return _if_died(life, np.nan, _dead_within(life, 365))
    if name == "los_after_cxr":
        return _sure(np.where(after >= 0, after, np.nan))
    if name == "los_under_48h":
        return _if_died(life, 0, short)
    if name == "mortality_48h":
        soon = _sure(life.hours_to_death - limit_n < 48)
        return _if_died(life, soon, np.where(short == 0, 0, np.nan))
    raise KeyError(name)


def _sure(found_2n: np.ndarray) -> np.ndarray:
    """f64[n]: what is so for the earliest and the latest death; NaN where they differ."""
    return np.where(found_2n[0] == found_2n[1], found_2n[0], np.nan)


def _if_died(life: Life, died, survived) -> np.ndarray:
    """f64[n]: one label of those who died in the hospital stay, another of those who did not."""
    return np.select([life.died == 1, life.died == 0], [died, survived], np.nan)


def _dead_within(life: Life, days: int) -> np.ndarray:
    """f64[n]: whether a survivor died within so many days of discharge."""
    known = life.discharge > csv_files.NEVER
    return np.where(known, _sure(life.days_to_death <= days), np.nan)


def readmission(life: Life, admissions: dict[str, np.ndarray]) -> np.ndarray:
    """f64[n], see the module."""
    order = np.lexsort((admissions["admittime"], admissions["subject_id"]))
    columns = ("subject_id", "hadm_id", "admittime", "dischtime")
    subject, hadm, begin, end = (admissions[c][order] for c in columns)
    back, overlaps = np.zeros((2, len(life)), bool)
    for i, (who, left) in enumerate(zip(life.subject, life.discharge, strict=True)):
        mine = slice(*np.searchsorted(subject, [who, who + 1]))
        later, days = begin[mine] > life.admit[i], (begin[mine] - left) / DAY
        back[i] = (later & (days >= 0) & (days < 30)).any()
        other = hadm[mine] != life.hadm[i]
        overlaps[i] = (other & (begin[mine] < left) & (end[mine] > left)).any()
    survived = np.select([overlaps, back], [np.nan, 1], _dead_within(life, 29))
    after_icu = (life.dead_from >= life.outtime) & (life.dead_by > life.outtime)
    return _if_died(life, np.where(after_icu, 1, np.nan), survived)


def drg_codes(root: Path, hadm_n: np.ndarray) -> list[str | None]:
    """An admission's HCFA group (MS-DRG in the hospital's naming)."""
    columns = {"hadm_id": "int", "drg_type": "text", "drg_code": "text"}
    code_of = {}
    for row in release.rows(root, "drgcodes", columns):
        if row["drg_type"] == "HCFA":
            code_of.setdefault(row["hadm_id"], row["drg_code"].strip())
    return [code_of.get(int(hadm)) for hadm in hadm_n]


def drg_classes(codes: list[str | None], train_n: np.ndarray) -> list[str]:
    """The groups of the training stays, in the order of their classes."""
    known = {code for code, train in zip(codes, train_n, strict=True) if train and code}
    return sorted(known)[: catalogue.DRG_CLASSES]


def drg(codes: list[str | None], classes: list[str]) -> np.ndarray:
    """f64[n]: class of each group."""
    number = {code: k for k, code in enumerate(classes)}
    return np.array([number.get(code or "", np.nan) for code in codes], float)


def chexpert(raw_dir: Path, studies: list[str]) -> np.ndarray:
    """f64[n, 14] of one study per stay, NaN where a finding is uncertain or not mentioned."""
    titles = [name.replace("_", " ").title() for name in catalogue.CHEXPERT]
    columns = {"study_id": "text"} | dict.fromkeys(titles, "float")
    found = dict.fromkeys(studies, [np.nan] * len(titles))
    for row in release.rows(linked.home(raw_dir, "cxr"), linked.FINDINGS, columns):
        if row["study_id"] in found:
            found[row["study_id"]] = [row[title] for title in titles]
    out = np.array([found[study] for study in studies], float).reshape(-1, len(titles))
    return np.where(np.isin(out, (0, 1)), out, np.nan)


def _place(text: str) -> float:
    if not text.strip():
        return np.nan
    return next((float(k) for k, words in PLACES if any(w in text for w in words)), 4.0)
