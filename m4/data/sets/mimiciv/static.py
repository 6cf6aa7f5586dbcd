"""What is known of a patient when the stay begins: static table, HAIM's demographics, groups."""

from pathlib import Path

import numpy as np

from m4.data import csv_files
from m4.data.bands import band
from m4.data.sets.mimiciv import catalogue, haim_blocks, release
from m4.data.sets.mimiciv.life import HOUR, Life, lookup
from m4.specs import text_problem


def demographics(root: Path, life: Life, age_n: np.ndarray) -> np.ndarray:
    """f32[n, 6], HAIM's columns; the race is called ethnicity in version 1."""
    race = "race" if "race" in csv_files.header(release.need(root, "admissions")) else "ethnicity"
    words = (race, "marital_status", "language", "insurance")
    adm = release.read(root, "admissions", {"hadm_id": "int"} | dict.fromkeys(words, "text"))
    row, _ = lookup(adm["hadm_id"], life.hadm)
    return haim_blocks.demographics(age_n, [life.facts["gender"], *(adm[w][row] for w in words)])


def groups(life: Life, age: float, row: int) -> dict[str, str | None]:
    """Group column -> category of stay `row`, None where unknown; `age` is that of its table."""
    names = ("gender", "first_careunit", "insurance", "race")
    facts = {name: str(life.facts[name][row]) for name in names}
    found = {
        "sex": {"F": "female", "M": "male"}.get(facts["gender"]),
        "age_band": band(age, catalogue.AGES),
        "icu_type": facts["first_careunit"],
        "insurance": facts["insurance"],
        "race": race(facts["race"]),
    }
    return {name: None if value and text_problem(value) else value for name, value in found.items()}


def race(text: str) -> str:
    """One of `catalogue.RACES` for what an admission says; "" where that is not known."""
    words_of = catalogue.RACES.items()
    return next((name for name, words in words_of if any(w in text.lower() for w in words)), "")


def static(life: Life) -> np.ndarray:
    """f32[n, f]: the columns of `catalogue.STATIC`; NaN where unknown."""
    facts = life.facts
    year = life.intime.astype("datetime64[s]").astype("datetime64[Y]").astype(int) + 1970
    age = facts["anchor_age"] + year - facts["anchor_year"]
    unknown = (facts["anchor_age"] < 0) | (facts["anchor_year"] < 0) | (age < 0)
    gender = facts["gender"]
    before = (life.intime - life.admit) / HOUR
    columns = {
        "age": np.where(unknown, np.nan, age),
        "female": np.where(gender == "", np.nan, gender == "F"),
        "hours_before_icu": np.where(life.admit > csv_files.NEVER, before, np.nan),
    }
    for source, block in catalogue.WORDS.items():
        text = np.char.lower(facts[source].astype(str))
        for name, words in block.items():
            columns[name] = np.any([np.char.find(text, word) >= 0 for word in words], axis=0)
    return np.stack([columns[name] for name in catalogue.STATIC], axis=1).astype(np.float32)
