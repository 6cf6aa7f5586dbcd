"""An invented clinic: raw tables, a run on them, and the same patients as rows for a bundle."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

DEFINITION = """
folder = "clinic"
[window]
hours = 24
[[events]]
files = "events.csv"
subject = "patient"
time = "charted"
code = "item"
value = "result"
[labels]
files = "outcomes.csv"
subject = "patient"
time = "asked_at"
[tasks.aki]
kind = "binary"
column = "aki"
title = "Kidney injury"
definition = "Creatinine | doubled <within> 48 hours."
[tasks.los]
kind = "regression"
column = "los"
unit = "days"
[modalities.labs]
kind = "series"
length = 6
[modalities.labs.features]
creatinine = { codes = "creatinine", low = 0, high = 20, unit = "mg/dl" }
urea = "urea"
[modalities.vitals]
kind = "series"
every = 2
take = "mean"
[modalities.vitals.features]
hr = { codes = "hr", low = 10, high = 300 }
urine = { codes = "urine", take = "sum" }
[modalities.baseline]
kind = "table"
[modalities.baseline.features]
age = { codes = "age", low = 0, high = 120 }
weight = "weight"
[modalities.drugs]
kind = "codes"
codes = "DRUG//*"
vocab = 8
length = 5
min_subjects = 3
"""
ASKED = datetime.datetime(2100, 1, 2, 6)  # everybody, at the end of the window of 24 hours
ZERO = ASKED - datetime.timedelta(hours=24)
DRUGS = [f"DRUG//{name}" for name in ("heparin", "insulin", "propofol", "rare")]


def tables(count: int = 90, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Events and outcomes; of every modality some patients have nothing."""
    rng = np.random.default_rng(seed)
    events = []
    for i in range(count):
        who, lacks = f"P{i:03d}", rng.random(4) < 0.25
        lacks[2] &= i > 3
        age = float(rng.integers(20, 90))

        def add(item, value, hour, who=who):
            time = ZERO + datetime.timedelta(minutes=int(60 * hour))
            events.append((who, f"{time:%Y-%m-%d %H:%M:%S}", item, value))

        for hour in np.sort(rng.choice(24, 4, replace=False)) if not lacks[0] else ():
            add("creatinine", round(age / 60 + rng.random(), 3), hour)
            if rng.random() < 0.6:
                add("urea", round(10 + 20 * rng.random(), 2), hour + 0.25 * (rng.random() < 0.5))
        for hour in np.sort(rng.uniform(0, 24, 9)) if not lacks[1] else ():
            add("hr", float(rng.integers(50, 130)), hour)
            add("urine", float(rng.integers(0, 400)), hour)
        if not lacks[2]:
            add("age", age, 0.5)
            add("weight", float(rng.integers(45, 120)), 1)
        for hour in np.sort(rng.uniform(0, 24, 3)) if not lacks[3] else ():
            add(str(rng.choice(DRUGS, p=[0.4, 0.3, 0.29, 0.01])), np.nan, hour)
    names = [f"P{i:03d}" for i in range(count)]
    made = pd.DataFrame(events, columns=["patient", "charted", "item", "result"])
    told = pd.DataFrame({
        "patient": names, "asked_at": f"{ASKED:%Y-%m-%d %H:%M:%S}",
        "aki": rng.integers(0, 2, count), "los": rng.gamma(2, 3, count).round(2),
    })  # fmt: skip
    return made, told


def write(folder: Path) -> Path:
    """Raw files and the definition below `folder`; returns the definition's path."""
    (folder / "raw/clinic").mkdir(parents=True)
    events, outcomes = tables()
    events.to_csv(folder / "raw/clinic/events.csv", index=False)
    outcomes.to_csv(folder / "raw/clinic/outcomes.csv", index=False)
    (folder / "clinic.toml").write_text(DEFINITION)
    return folder / "clinic.toml"


def rows(subjects) -> list[dict]:
    """What the files say of some patients, as one would type it for a bundle."""
    events: Any = tables()[0]
    found = []
    for who in subjects:
        own = events[events["patient"] == who].sort_values("charted", kind="stable")
        hours = (pd.to_datetime(own["charted"]) - ZERO).dt.total_seconds() / 3600
        inputs: dict = {}
        for modality, names in (("labs", ("creatinine", "urea")), ("vitals", ("hr", "urine"))):
            for name in names:
                here = own["item"] == name
                if here.any():
                    one = {"times": hours[here].tolist(), "values": own["result"][here].tolist()}
                    inputs.setdefault(modality, {})[name] = one
        for name in ("age", "weight"):
            if (value := own["result"][own["item"] == name].tolist()) != []:
                inputs.setdefault("baseline", {})[name] = value[-1]
        if drugs := own["item"][own["item"].str.startswith("DRUG")].tolist():
            inputs["drugs"] = drugs
        found.append({"id": who, "inputs": inputs})
    return found
