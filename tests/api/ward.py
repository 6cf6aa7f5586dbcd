"""Invented tables of a ward and a run trained on them through the library."""

import numpy as np
import pandas as pd

import m4

DEFINITION = """
folder = "study"
[[events]]
files = "measurements.csv.gz"
subject = "patient"
time = "charted"
code = "item"
value = "result"
[[rows]]
files = "patients.csv"
subject = "patient"
[labels]
files = "outcomes.csv"
subject = "patient"
time = "asked_at"
[tasks.aki]
kind = "binary"
column = "aki"
[tasks.los]
kind = "regression"
column = "los"
[modalities.labs]
kind = "series"
features = ["creatinine", "urea"]
[modalities.baseline]
kind = "table"
[modalities.baseline.features]
age = "age"
unit = { codes = "unit", values = ["1", "2"] }
surgical = { codes = "surgical", values = ["True"], known = ["True", "False"] }
"""


def tables(count=90, *, seed=0, first=0):
    """The three files as frames of pandas, as `pandas.read_csv` would give them."""
    rng = np.random.default_rng(seed)
    who = [f"P{i:04d}" for i in range(first, first + count)]
    age = rng.integers(20, 90, count).astype(float)
    unit = rng.integers(1, 3, count).astype(float)  # whole numbers, floats because of a gap
    unit[0] = np.nan
    patients = pd.DataFrame(
        {"patient": who, "age": age, "unit": unit, "surgical": rng.random(count) < 0.3}
    )
    rows = [
        (who[i], f"2100-01-01 0{hour}:00:00", item, age[i] / 50 + rng.normal())
        for i in range(count)
        for hour in (1, 3, 5)
        for item in ("creatinine", "urea")
    ]
    measurements = pd.DataFrame(rows, columns=["patient", "charted", "item", "result"])
    outcomes = pd.DataFrame(
        {
            "patient": who,
            "asked_at": "2100-01-01 08:00:00",
            "aki": (age + rng.normal(0, 20, count) > 55).astype(int),
            "los": rng.exponential(4, count),
        }
    )
    return {"patients": patients, "measurements": measurements, "outcomes": outcomes}


def write(folder, given):
    """The same as raw files below `folder`."""
    (folder / "study").mkdir(parents=True)
    for name, frame in given.items():
        ending = "csv.gz" if name == "measurements" else "csv"
        frame.convert_dtypes().to_csv(folder / "study" / f"{name}.{ending}", index=False)
    return folder / "study"


def config(definition, data_dir):
    """A mapping, as a configuration from Python."""
    return {
        "data": {"name": "tables", "options": {"file": str(definition)}, "dir": str(data_dir)},
        "method": {"name": "tests.toy:Toy", "width": 4},
        "optim": {"lr": 0.01},
        "train": {"steps": 4, "batch_size": 8, "log_every": 4, "eval_every": 4, "save_every": 4}
        | {"select": "aki/auroc"},
        "eval": {"batch_size": 32, "bootstrap": 5, "subsets": False, "baselines": False},
    }


def fit(folder):
    """A model of the frames; all that is left of them is the work directory `folder/w`."""
    (folder / "ward.toml").write_text(DEFINITION)
    whole = config(folder / "ward.toml", folder / "data")
    return m4.fit(whole, workdir=folder / "w", frames=tables(), quiet=True)
