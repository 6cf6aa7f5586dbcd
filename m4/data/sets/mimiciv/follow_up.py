"""Whether a release knows of deaths outside the hospital, which some tasks ask about.

Before 2.0 a patient's date of death was that of a death in hospital. A release that says what it is
is believed; of another one the tables decide.
"""

import re
from pathlib import Path

import numpy as np

from m4.data.csv_files import NEVER
from m4.data.sets.mimiciv import release

AFTER_DISCHARGE = ("readmission", "mortality_1y")
DAY = 86400  # seconds
ADMISSIONS = {"subject_id": "int", "dischtime": "time", "deathtime": "time"}
PATIENTS = {"subject_id": "int", "dod": "time"}


def missing(root: Path, tasks: tuple[str, ...]) -> list[str]:
    """A line for each task that needs what the release does not have."""
    found, wrong = release.version(root), [task for task in tasks if task in AFTER_DISCHARGE]
    old, known = re.match(r"[01]\.", found), re.match(r"\d", found)
    if not wrong or not old and (known or _any_outside(root)):
        return []
    what, hint = f"MIMIC-IV {found}", "leave it out, or get release 2.0 or later"
    if not known:
        what = "MIMIC-IV of a release that nothing names and without a single such death"
        hint = "leave it out, or unpack release 2.0 or later into a folder named after it (2.2/)"
    return [
        f"data.options.tasks: {task} needs deaths outside the hospital, which {what} in {root} does"
        f" not have; {hint}"
        for task in wrong
    ]


def _any_outside(root: Path) -> bool:
    """Whether a date of death lies more than a day from every end of a hospital stay."""
    adm, pat = (
        release.read(root, name, columns)
        for name, columns in (("admissions", ADMISSIONS), ("patients", PATIENTS))
    )
    dated = pat["dod"] > NEVER
    who, date = pat["subject_id"][dated], pat["dod"][dated]
    inside = np.zeros(len(who), bool)
    order = np.argsort(who)
    for column in ("dischtime", "deathtime"):
        ends = adm[column] > NEVER
        subject, end = adm["subject_id"][ends], adm[column][ends] // DAY * DAY
        at = np.searchsorted(who, subject, sorter=order).clip(max=max(len(who) - 1, 0))
        if len(who):
            row = order[at]
            near = (who[row] == subject) & (np.abs(date[row] // DAY * DAY - end) <= DAY)
            inside[row[near]] = True
    return bool((~inside).any())
