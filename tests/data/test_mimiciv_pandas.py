"""MIMIC-IV's open demo cell by cell against pandas: values, times, codes and labels of every stay.

Only what an item means (`features.py`, `benchmark.FEATURES`) is taken from m4; reading, joining,
windows, units and labels are worked out here. A sample of the stays by default, all in `slow`.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from m4.data.sets import mimiciv
from m4.data.sets.mimiciv import benchmark, catalogue, features, haim_blocks
from m4.data.sets.mimiciv.diagnoses import hashed

pd = pytest.importorskip("pandas")

HOUR = pd.Timedelta(hours=1)
SERIES = {"vitals": features.VITALS, "labs": features.LABS, "benchmark": benchmark.FEATURES}
SERIES["fusemoe"] = tuple(
    f for f in features.VITALS + features.LABS if f.name not in ("temperature", "glucose")
)
CODES = {
    "medications": ("icu/inputevents", "stay_id", "itemid"),
    "procedures": ("icu/procedureevents", "stay_id", "itemid"),
    "prescriptions": ("hosp/prescriptions", "subject_id", "drug"),
}
TASKS = ("ihm48", "los", "los_under_96h", "readmission", "mortality_1y")
NAMES = (*SERIES, *CODES, "flexcare", "haim_chart")
# Every seventh stay and every one; every window that ends with hours known here.
HOW = [("48h", 7), *(pytest.param(w, 1, marks=pytest.mark.slow) for w in ("48h", "stay"))]


@pytest.fixture(scope="module")
def raw():
    folders = os.environ.get("M4_RAW_DIR"), Path(__file__).parents[3] / "shared" / "data"
    for folder in folders:
        if folder and (Path(folder) / "mimic-iv-demo-2.2").is_dir():
            return Path(folder)
    return pytest.skip("no mimic-iv-demo-2.2/ in M4_RAW_DIR")


def table(raw, name, times=(), **options):
    path = raw / "mimic-iv-demo-2.2" / f"{name}.csv.gz"
    found = pd.read_csv(path, low_memory=False, **options)
    return found.assign(**{c: pd.to_datetime(found[c], format="ISO8601") for c in times})


@pytest.fixture(scope="module")
def stays(raw):
    """One row per ICU stay, with its admission and patient; hours of the ICU end at death."""
    found = table(raw, "icu/icustays", ["intime", "outtime"])
    times = ["admittime", "dischtime", "deathtime"]
    found = found.merge(table(raw, "hosp/admissions", times), on=["subject_id", "hadm_id"])
    found = found.merge(table(raw, "hosp/patients", ["dod"]), on="subject_id")
    end = found[["outtime", "deathtime"]].min(axis=1)
    return found.assign(hours=(end - found.intime) / HOUR).set_index("stay_id", drop=False)


@pytest.fixture(scope="module")
def measured(raw):
    """Charted and laboratory values that are numbers, in the order of the files."""
    columns = ["itemid", "charttime", "storetime", "valuenum"]
    parts = []
    for name, key in (("icu/chartevents", "stay_id"), ("hosp/labevents", "subject_id")):
        part = table(raw, name, ["charttime", "storetime"], usecols=[key, *columns])
        parts.append(part.dropna(subset=["valuenum", key]).assign(key=key, id=part[key]))
    return pd.concat(parts)[["key", "id", *columns]]


def inside(events, stay, limit, *, time="charttime", stored="storetime"):
    """Events of a stay that are charted and stored in its window, with their hour."""
    own = events[events.id == events.key.map(stay)]
    hour = (own[time] - stay.intime) / HOUR
    late = (own[stored] - stay.intime) / HOUR > limit if stored else np.zeros(len(own), bool)
    return own.assign(hour=hour)[(hour >= 0) & (hour <= limit) & ~late]


def values_of(events, columns):
    """(hour, column, value) in the columns' units, implausible ones left out."""
    parts = []
    for j, column in enumerate(columns):
        own = events[events.itemid.isin(column.items)]
        value = own.valuenum.astype(float)
        value = value.where(own.itemid != 223761, (value - 32) * 5 / 9)
        if column.name == "fio2":
            percent = value.between(20, 100)
            value = value.where(~percent, value / 100)[percent | value.between(0.21, 1)]
        value = value[value.between(column.low - 1e-9, column.high + 1e-9)]
        parts.append(pd.DataFrame({"hour": own.hour[value.index], "column": j, "value": value}))
    return pd.concat(parts).sort_index(kind="stable")


def check_series(payload, found, columns):
    grid = found.groupby(["hour", "column"]).value.first().unstack()
    grid = grid.reindex(columns=range(len(columns))).sort_index()
    np.testing.assert_allclose(payload["times"], grid.index, atol=2e-4)
    np.testing.assert_allclose(payload["values"], grid.to_numpy(), rtol=1e-5)


def check_grid(payload, found, limit):
    """The last number of each hour, carried on; normal before the first."""
    hours = int(min(limit, 48) + 1 - 1e-6)
    found = found[found.hour <= min(limit, 48) + 1e-6].sort_values("hour", kind="stable")
    bins = found.assign(bin=(found.hour - 1e-6).astype(int))
    grid = bins.groupby(["bin", "column"]).value.last().unstack()
    grid = grid.reindex(range(hours), columns=range(len(benchmark.NAMES)))
    for j, name in enumerate(benchmark.NAMES):
        observed = payload["values"][:, benchmark.COLUMNS.index(f"{name}_observed")]
        np.testing.assert_array_equal(observed, grid[j].notna())
        if name in benchmark.SCALE:
            mean, deviation = benchmark.SCALE[name]
            expected = (grid[j].ffill().fillna(benchmark.NORMAL[name]) - mean) / deviation
            got = payload["values"][:, benchmark.COLUMNS.index(name)]
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def check_haim(payload, found, columns):
    values = dict(zip(haim_blocks.columns("haim_chart"), payload["values"], strict=True))
    ordered = found.sort_values("hour", kind="stable").groupby("column").value
    for j, column in enumerate(columns):
        if j not in ordered.groups:
            assert np.isnan(values[f"{column.name}_mean"])
            continue
        own = ordered.get_group(j)
        expected = {"max": own.max(), "min": own.min(), "mean": own.mean()}
        expected |= {"variance": own.var(ddof=0), "last_minus_first": own.iloc[-1] - own.iloc[0]}
        for statistic, value in expected.items():
            got = values[f"{column.name}_{statistic}"]
            np.testing.assert_allclose(got, value, rtol=1e-4, atol=1e-4)


def check_labels(targets, stay, stays):
    died, days = stay.hospital_expire_flag, stay.hours / 24
    assert targets["ihm48"] == died
    assert targets["los"] == pytest.approx(days)
    assert targets["los_under_96h"] == (days < 4 and not died)
    later = stays[(stays.subject_id == stay.subject_id) & (stays.admittime > stay.admittime)]
    back = ((later.admittime - stay.dischtime) < 30 * 24 * HOUR).any()
    dead = (stay.dod - stay.dischtime.normalize()) / (24 * HOUR)  # NaT: alive
    if died:
        in_icu = stay.deathtime <= stay.outtime
        assert targets["readmission"] == (None if in_icu else 1)
        assert targets["mortality_1y"] is None
    else:
        if back or dead < 30:
            assert targets["readmission"] == 1
        assert targets["mortality_1y"] == (dead <= 365)


@pytest.mark.parametrize(("window", "every"), HOW)
def test_every_cell_of_the_demo(raw, stays, measured, window, every):
    tasks = [t for t in TASKS if t in sum(catalogue.WINDOWS[window], ())]
    options = {"window": window, "modalities": NAMES, "tasks": tasks, "split_by": "stay"}
    cohort = mimiciv.cohort(raw, seed=0, demo=True, **options)
    examples = {e["patient"]: e for start in cohort.splits.values() for e in start()}
    expected = stays[stays.hours >= 48] if window == "48h" else stays
    assert {*examples} == {*expected.stay_id}
    codes = {
        name: table(raw, path, ["starttime", *(["storetime"] if key == "stay_id" else [])]).assign(
            key=key, id=lambda t, key=key: t[key]
        )
        for name, (path, key, _) in CODES.items()
    }
    cells = 0
    for stay_id in sorted(examples)[::every]:
        stay, inputs = stays.loc[stay_id], examples[stay_id]["inputs"]
        limit = min(stay.hours, 48) if window == "48h" else stay.hours
        events = inside(measured, stay, limit)
        chart = events.key == "stay_id"
        for name, columns in SERIES.items():
            wanted = {"vitals": events[chart], "labs": events[~chart]}.get(name, events)
            found = values_of(wanted.reset_index(drop=True), columns)
            assert (name in inputs) == bool(len(found))
            if len(found):
                check_series(inputs[name], found, columns)
                cells += len(found)
            if name == "benchmark" and len(found):
                check_grid(inputs["flexcare"], found, limit)
        columns = haim_blocks.SIGNALS["haim_chart"]
        found = values_of(events[chart].reset_index(drop=True), columns)
        check_haim(inputs["haim_chart"], found, columns)
        for name, (_, key, code) in CODES.items():
            stored = "storetime" if key == "stay_id" else None
            own = inside(codes[name], stay, limit, time="starttime", stored=stored)
            own = own.sort_values("hour", kind="stable")[code]
            ids = [hashed(str(c), catalogue.VOCAB) for c in own]
            last = [c for n, c in enumerate(ids) if c not in ids[n + 1 :]]
            assert inputs.get(name, {"values": np.zeros(0)})["values"].tolist() == last
        if window == "48h":
            check_labels(examples[stay_id]["targets"], stay, stays)
    assert cells > 100_000 / every
