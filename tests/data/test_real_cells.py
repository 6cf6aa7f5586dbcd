"""Every cell of the eICU demo (MEDS) and of PhysioNet 2012, recomputed from the files with pandas.

A sample always, all of them with `-m slow`; both need the files below M4_RAW_DIR.
"""

import io
import itertools
import os
import re
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from m4.data.sets import meds, physionet2012
from m4.data.sets.declared import definition

SAMPLE = 60  # records
HOUR = pd.Timedelta(hours=1)
WORD = re.compile(r"[^\W\d_]+|\d+(?:\.\d+)?")
EVERYTHING = pytest.param(None, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def raw():
    folder = Path(os.environ.get("M4_RAW_DIR") or "none")
    if meds.missing_files(folder, file="eicu_demo") or physionet2012.missing_files(folder):
        pytest.skip("M4_RAW_DIR has no eicu-demo-meds or no physionet2012")
    return folder


def some(items, number):
    rng = np.random.default_rng(0)
    return items if number is None else [items[i] for i in rng.permutation(len(items))[:number]]


def equal(found, expected):
    np.testing.assert_allclose(np.asarray(found, float), np.asarray(expected, float), rtol=1e-5)


# --- the eICU demo ----------------------------------------------------------------------------


class Hospital:
    """The demo's events by subject, and the vocabularies of its training subjects."""

    def __init__(self, root):
        files = sorted((root / "data").rglob("*.parquet"))
        events = pd.concat([pd.read_parquet(f) for f in files], ignore_index=True)
        events = events.sort_values("time", kind="stable", na_position="first")
        self.events = dict([*events.groupby("subject_id")])
        self.content = definition.load("eicu_demo")["modalities"]
        splits = pd.read_parquet(root / "metadata/subject_splits.parquet")
        self.train = {*splits["subject_id"][splits["split"] == "train"]}
        died = events[(events["code"] == "MEDS_DEATH") & events["time"].notna()]
        self.death = died.groupby("subject_id")["time"].min()

    def window(self, subject, now, hours=24):
        own = self.events[subject]
        inside = (own["time"] <= now) & (own["time"] >= now - hours * HOUR)
        return own[inside | own["time"].isna()]

    def series(self, name, own, now):
        """(times, values) of one row per cell of hours, stamped with its end."""
        content = self.content[name]
        features, every = content["features"], content["every"]
        if isinstance(features, list):
            features = {feature: feature for feature in features}
        columns = {}
        for feature, what in features.items():
            what = {"codes": what} if isinstance(what, str) else what
            low, high = what.get("low", -np.inf), what.get("high", np.inf)
            rows = own[(own["code"] == f"MEASUREMENT//{what['codes']}") & own["time"].notna()]
            rows = rows[rows["numeric_value"].between(low, high)]
            cell = np.ceil((rows["time"] - (now - 24 * HOUR)) / HOUR / every).clip(lower=1) * every
            take = what.get("take", content.get("take", "last"))
            columns[feature] = rows.groupby(cell.to_numpy())["numeric_value"].agg(take)
        table = pd.DataFrame(columns).sort_index()
        return table.index.to_numpy(), table.to_numpy()

    def static(self, own):
        found = []
        for what in self.content["static"]["features"].values():
            codes = [what["codes"]] if isinstance(what["codes"], str) else what["codes"]
            mine = own["code"].map(lambda c, codes=codes: any(map(re.compile(
                "|".join(re.escape(p).replace(r"\*", ".*") for p in codes)).fullmatch, [c]))
            )  # fmt: skip
            if what.get("take") == "is":
                among = [what["among"]] if isinstance(what["among"], str) else what["among"]
                pattern = "|".join(re.escape(p).replace(r"\*", ".*") for p in among)
                known = own["code"].str.fullmatch(pattern) | mine
                found.append(float(mine[known].iloc[-1]) if known.any() else np.nan)
            else:
                values = own["numeric_value"][mine]
                values = values[values.between(what["low"], what["high"])]
                found.append(values.iloc[-1] if len(values) else np.nan)
        return found

    def tokens(self, name, own):
        """Per event the tokens that it stands for, in order of time."""
        if name == "notes":
            rows = own[own["code"].str.startswith("NOTE//")]
            return [
                [" ".join(text.lower().split())]
                for text in rows["text_value"].dropna()
                if text.split()
            ]
        starts = {"medications": ("MEDICATION//", "INFUSION//"), "treatments": ("TREATMENT//",)}[
            name
        ]
        codes = own["code"][own["code"].str.startswith(starts)]
        if name == "medications":
            return [[*dict.fromkeys(WORD.findall(c.partition("//")[2].lower()))] for c in codes]
        return [["|".join(c.split("|")[: i + 1]) for i in range(len(c.split("|")))] for c in codes]

    def vocabulary(self, name, points):
        subjects = Counter()
        for subject, own in itertools.groupby(points, key=lambda key: key[0]):
            if subject in self.train:
                seen = {t for _, now in own for ts in self.tokens(name, self.window(subject, now))
                        for t in ts}  # fmt: skip
                subjects.update(seen)
        ranked = sorted((-n, t) for t, n in subjects.items() if n >= 10)
        return {
            token: i + 1 for i, (_, token) in enumerate(ranked[: self.content[name]["vocab"] - 1])
        }


@pytest.fixture(scope="module")
def hospital(raw):
    cohort = meds.cohort(raw, seed=0, file="eicu_demo", split="meds")
    found = {}
    for start in cohort.splits.values():
        for example in start():
            subject, micro = example["key"]
            found[subject, pd.Timestamp(micro, unit="us")] = example
    return Hospital(raw / "eicu-demo-meds"), found


@pytest.mark.parametrize("number", [SAMPLE, EVERYTHING])
def test_series_and_tables_of_the_eicu_demo(hospital, number):
    oracle, found = hospital
    cells = 0
    for key in some(sorted(found), number):
        subject, now = key
        inputs = found[key]["inputs"]
        for name in ("vitals", "labs"):
            times, values = oracle.series(name, oracle.window(subject, now), now)
            assert (name in inputs) == (len(times) > 0)
            if len(times):
                equal(inputs[name]["times"], times)
                equal(inputs[name]["values"], values)
                cells += int((~np.isnan(values)).sum())
        equal(inputs["static"]["values"], oracle.static(oracle.window(subject, now, 10**6)))
    assert cells > 60 * (number or len(found))


@pytest.mark.parametrize("number", [SAMPLE, EVERYTHING])
@pytest.mark.parametrize("name", ["notes", "medications", "treatments"])
def test_tokens_of_the_eicu_demo(hospital, name, number):
    oracle, found = hospital
    ids, tokens = oracle.vocabulary(name, sorted(found)), 0
    for key in some(sorted(found), number):
        events = oracle.tokens(name, oracle.window(*key))
        order = [ids.get(token, 0) for event in events for token in event]
        last = {one: place for place, one in enumerate(order)}
        expected = sorted(last, key=lambda one: last[one])
        inputs = found[key]["inputs"]
        assert (name in inputs) == (len(expected) > 0)
        if expected:
            assert inputs[name]["values"].tolist() == expected
            tokens += len(expected)
    assert tokens > 2 * (number or len(found))


def test_labels_of_the_eicu_demo(raw, hospital):
    oracle, found = hospital
    for task in ("hospital_mortality", "los_over_72h"):
        files = (raw / f"eicu-demo-meds/labels/{task}").rglob("*.parquet")
        table = pd.concat([pd.read_parquet(file) for file in files])
        known = {(r.subject_id, r.prediction_time): r.boolean_value for r in table.itertuples()}
        alive = {k for k in known if not k[1] >= oracle.death.get(k[0], pd.Timestamp.max)}
        assert alive == found.keys() and len(known) - len(alive) == 19
        for key in alive:
            assert found[key]["targets"][task] == known[key]


# --- PhysioNet 2012 ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def challenge(raw):
    cohort = physionet2012.cohort(raw, seed=0)
    found = {e["patient"]: e for start in cohort.splits.values() for e in start()}
    texts, outcomes = {}, []
    for letter in "ab":
        with tarfile.open(raw / f"physionet2012/set-{letter}.tar.gz") as archive:
            for member in archive:
                if member.name.endswith(".txt"):
                    texts[int(Path(member.name).stem)] = archive.extractfile(member).read().decode()
        outcomes.append(pd.read_csv(raw / f"physionet2012/Outcomes-{letter}.txt"))
    return found, texts, pd.concat(outcomes).set_index("RecordID")


def stay(text):
    """The plausible rows of one stay's file, with hours."""
    rows = pd.read_csv(io.StringIO(text), names=["time", "name", "value"], header=0)
    clock = rows["time"].str.extract(r"^(\d{1,3}):([0-5]\d)$").astype(float)
    rows["hours"] = clock[0] + clock[1] / 60
    low = rows["name"].map({k: v[0] for k, v in physionet2012.RANGES.items()})
    high = rows["name"].map({k: v[1] for k, v in physionet2012.RANGES.items()})
    return rows[rows["value"].between(low, high) & rows["hours"].between(0, 48)]


@pytest.mark.parametrize("number", [SAMPLE, EVERYTHING])
def test_cells_of_physionet_2012(challenge, number):
    found, texts, outcomes = challenge
    assert found.keys() == texts.keys()
    cells = 0
    for record in some(sorted(found), number):
        rows, inputs = stay(texts[record]), found[record]["inputs"]
        for name, (_, variables) in physionet2012.GROUPS.items():
            own = rows[rows["name"].isin(variables)]
            table = own.pivot_table(index="hours", columns="name", values="value", aggfunc="last")
            table = table.reindex(columns=variables)
            assert (name in inputs) == (len(table) > 0), (record, name)
            if len(table):
                equal(inputs[name]["times"], table.index)
                equal(inputs[name]["values"], table)
                cells += int(table.notna().to_numpy().sum())
        first = rows.groupby("name")["value"].first()
        static = [first.get(name, np.nan) for name in ("Age", "Gender", "Height", "Weight")]
        unit = first.get("ICUType", np.nan)
        static += [np.nan if np.isnan(unit) else float(unit == k) for k in range(1, 5)]
        equal(inputs["demographics"]["values"], static)
        labels(found[record]["targets"], outcomes.loc[record])
    assert cells > 100 * (number or len(found))


def labels(targets, outcome):
    """As the data set's page says, of outcomes that contradict each other too."""
    los, sofa, lived = (outcome[c] for c in ("Length_of_stay", "SOFA", "Survival"))
    dead = outcome["In-hospital_death"]
    both = los >= 0 and lived >= 0
    if (both and bool(dead) != (lived <= los)) or (dead == 1 and lived == -1):
        dead = None
    if both and dead == 1:
        los = min(los, lived + 1)
    assert targets["death"] == dead
    assert targets["los"] == (los if los >= 0 else None)
    assert targets["los_over_7d"] == (los > 7 if los >= 0 else None)
    assert targets["sofa7"] == (sofa >= 7 if sofa >= 0 else None)
