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

No label: unknown death, an admission without a code, `readmission` of who died in the ICU,
`mortality_1y` of who died in hospital, a DRG that training does not have. FlexCare sees
readmissions among its filtered stays only; here any admission of the hospital counts.

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
    died, unknown = life.died, np.isnan(life.died)
    after = life.hours_to_discharge - limit_n
    if name == "ihm48":
        return died
    if name == "los":
        return life.hours / 24
    if name == "los_under_96h":
        return np.where(unknown, np.nan, (life.hours < 96) & (died == 0))
    if name == "decompensation":
        return np.where(unknown, np.nan, (died == 1) & (life.hours_to_death - limit_n < 24))
    if name == "los_remaining":
        days = np.maximum(life.hours - limit_n, 0) / 24
        return np.searchsorted([1, 2, 3, 4, 5, 6, 7, 8, 14], days, side="right").astype(float)
    if name == "disposition":
        return np.array([_place(text) for text in life.facts["discharge_location"]])
    if name == "mortality_1y":
        days = life.days_to_death
        return np.where(unknown | (died == 1), np.nan, (days >= 0) & (days <= 365))
    if name == "los_after_cxr":
        return np.where(after >= 0, after, np.nan)
    if name == "los_under_48h":
        return np.where(unknown | np.isnan(after), np.nan, (after < 48) & (died == 0))
    if name == "mortality_48h":
        short = after < 48
        return np.where(unknown | np.isnan(after) | (short & (died == 0)), np.nan, short)
    raise KeyError(name)


def readmission(life: Life, admissions: dict[str, np.ndarray]) -> np.ndarray:
    """f64[n], see the module."""
    died = life.died == 1
    in_icu = died & (life.death > csv_files.NEVER) & (life.death <= life.outtime)
    order = np.lexsort((admissions["admittime"], admissions["subject_id"]))
    subject, begin = admissions["subject_id"][order], admissions["admittime"][order]
    days = life.days_to_death
    out = np.zeros(len(died))
    for i, (who, end) in enumerate(zip(life.subject, life.discharge, strict=True)):
        first, last = np.searchsorted(subject, [who, who + 1])
        mine = begin[first:last]
        back = mine[mine > life.admit[i]]
        gap = (back.min() - end) / DAY if len(back) else np.inf
        out[i] = died[i] or gap < 30 or 0 <= days[i] < 30
    return np.where(in_icu | np.isnan(life.died), np.nan, out)


def drg(root: Path, hadm_n: np.ndarray, train_n: np.ndarray) -> np.ndarray:
    """f64[n]: class of an admission's HCFA group (MS-DRG in the hospital's naming)."""
    columns = {"hadm_id": "int", "drg_type": "text", "drg_code": "text"}
    code_of = {}
    for row in release.rows(root, "drgcodes", columns):
        if row["drg_type"] == "HCFA":
            code_of.setdefault(row["hadm_id"], row["drg_code"].strip())
    codes = [code_of.get(int(hadm)) for hadm in hadm_n]
    known = {code for code, train in zip(codes, train_n, strict=True) if train and code}
    classes = {code: k for k, code in enumerate(sorted(known)[: catalogue.DRG_CLASSES])}
    return np.array([classes.get(code, np.nan) for code in codes], float)


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
    text = text.upper().strip()
    if not text:
        return np.nan
    return next((float(k) for k, words in PLACES if any(w in text for w in words)), 4.0)
