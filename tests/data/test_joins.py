"""Keys and clocks between files: one form, one clock, or one line; against pandas."""

import datetime
import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m4.data import apply, build, describe, shift
from m4.data.identifiers import canonical
from m4.data.sets import tables
from m4.errors import DataError
from m4.main import main
from tests.data.test_meds_run import CONFIG

DEFINITION = """
folder = "study"
[[events]]
files = "measurements.*"
subject = "patient"
time = "charted"
code = "item"
value = "result"
[[rows]]
files = "patients.*"
subject = "patient"
[labels]
files = "outcomes.*"
subject = "patient"
time = "asked"
[window]
hours = 24
[tasks.aki]
kind = "binary"
column = "aki"
[modalities.labs]
kind = "series"
features = { creatinine = { codes = "creatinine", low = 0, high = 20 }, urea = "urea" }
[modalities.baseline]
kind = "table"
features = ["age"]
"""
DAY = datetime.datetime(2150, 1, 2)
SUBJECTS = [*range(1, 41)]


def study(seed=0, subjects=SUBJECTS):
    """Three tables as pandas would hold them."""
    rng = np.random.default_rng(seed)
    asked = [DAY + datetime.timedelta(hours=int(rng.integers(0, 48))) for _ in subjects]
    rows = [
        (s, at - datetime.timedelta(minutes=int(rng.integers(-300, 1400))), item, rng.normal(5, 1))
        for s, at in zip(subjects, asked, strict=True)
        for item in ("creatinine", "urea", "other")
    ]
    return {
        "measurements": pd.DataFrame(rows, columns=["patient", "charted", "item", "result"]),
        "patients": pd.DataFrame({"patient": subjects, "age": rng.integers(20, 90, len(subjects))}),
        "outcomes": pd.DataFrame(
            {"patient": subjects, "asked": asked, "aki": rng.integers(0, 2, len(subjects))}
        ),
    }


def write(folder, frames, *, parquet=(), definition=DEFINITION):
    """Files of the tables; returns the definition's path."""
    (folder / "study").mkdir(parents=True, exist_ok=True)
    for name, frame in frames.items():
        path = folder / "study" / f"{name}.{'parquet' if name in parquet else 'csv'}"
        if isinstance(frame, pa.Table):
            pq.write_table(frame, path)
        elif name in parquet:
            frame.to_parquet(path)
        else:
            frame.to_csv(path, index=False)
    (folder / "d.toml").write_text(definition)
    return str(folder / "d.toml")


def read(folder, file):
    """(key -> example, lines of the joining report)."""
    cohort = tables.cohort(folder, seed=0, file=file)
    joining = cohort.joining()
    found = [e for start in cohort.splits.values() for e in start()]
    return {e["key"][0]: e for e in found}, joining


def assert_oracle(found, frames):
    """Every number that a record has, by pandas alone."""
    points = frames["outcomes"].set_index("patient")
    assert found.keys() == {*points.index}
    merged = frames["measurements"].merge(frames["outcomes"], on="patient")
    hours = 24 - (merged["asked"] - merged["charted"]).dt.total_seconds() / 3600
    merged = merged.assign(hours=hours)[hours.between(0, 24)]
    for subject, example in found.items():
        own = merged[(merged["patient"] == subject) & (merged["item"] != "other")]
        table = own.pivot_table(index="hours", columns="item", values="result")
        table = table.reindex(columns=["creatinine", "urea"])
        assert ("labs" in example["inputs"]) == (len(table) > 0)
        if len(table):
            labs = example["inputs"]["labs"]
            np.testing.assert_allclose(labs["times"], table.index, rtol=1e-6)
            np.testing.assert_allclose(labs["values"], table.to_numpy(), rtol=1e-6)
        age = frames["patients"].set_index("patient")["age"][subject]
        np.testing.assert_array_equal(example["inputs"]["baseline"]["values"], [age])
        assert example["targets"]["aki"] == points["aki"][subject]


FORMS = {
    "text": lambda c: c.astype(str),
    "with .0": lambda c: c.astype(float).astype(str),
    "with .00": lambda c: c.astype(str) + ".00",
    "with blanks": lambda c: " " + c.astype(str) + "\t",
    "no-break blanks": lambda c: "\u00a0" + c.astype(str),
    "float": lambda c: c.astype(float),
    "small": lambda c: c.astype("int16"),
    "unsigned": lambda c: c.astype("uint64"),
    "nullable": lambda c: c.astype("Int64"),
    "categories": lambda c: c.astype(str).astype("category"),
    "decimal": lambda c: c.astype("string").astype(pd.ArrowDtype(pa.decimal128(12, 2))),
}


@pytest.mark.parametrize("parquet", [False, True])
@pytest.mark.parametrize("name", ["measurements", "outcomes"])
@pytest.mark.parametrize("form", FORMS)
def test_an_identifier_is_the_same_in_every_form(tmp_path, form, name, parquet):
    frames = study()
    given = dict(frames)
    column = FORMS[form](frames[name]["patient"])
    given[name] = frames[name].assign(patient=column)
    file = write(tmp_path, given, parquet=(name,) if parquet else ())
    found, joining = read(tmp_path, file)
    assert_oracle(found, frames)
    assert "measurements.*: events of 100% of the subjects with a label" in joining


@hypothesis.given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1))
def test_numbers_keep_apart_and_come_back(one, two):
    forms = [one, str(one), f" {one} ", np.array([one]).tolist()[0]]
    forms += [float(one), f"{one}.0"] if abs(one) <= 2**53 else []
    assert {canonical(form) for form in forms} == {one}
    assert (canonical(str(one)) == canonical(two)) == (one == two)


@pytest.mark.parametrize(
    ("value", "is_"),
    [
        ("A7", "A7"), (" A7", "A7"), ("007", "007"), ("1.2.840", "1.2.840"), ("7.5", "7.5"),
        ("-0", 0), ("", None), ("nan", None), ("<NA>", None), (float("nan"), None), (None, None),
        ("1e5x", "1e5x"), ("1E5", "1E5"), ("1,5", "1,5"),
        ("\ufeff7", 7), (2**63 - 1, 2**63 - 1), (str(-(2**63)), -(2**63)),
    ],
)  # fmt: skip
def test_other_identifiers(value, is_):
    assert canonical(value) == is_


WRONG = {
    "beyond 2^63": [2**63, str(2**63), "123456789012345678901", "0" + "9" * 20, -(2**63) - 1],
    "beyond 2^53": [1e17, 2.0**53 + 2, "9007199254740994.0"],
    "not a whole number": [7.5],
    "last digits are lost": ["1e+16", "1.23E+18", "1,23457E+12", "1.23457E12"],
    "expected identifiers": [True, datetime.date(2100, 1, 1), b"7"],
}


@pytest.mark.parametrize(("says", "value"), [(k, v) for k, vs in WRONG.items() for v in vs])
def test_what_is_no_identifier(says, value):
    with pytest.raises(ValueError, match=says.replace("^", r"\^")) as error:
        canonical(value)
    assert str(value) not in str(error.value)


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (pa.array([2**63 + 5] * 3, pa.uint64()), "row 1: 'patient' is beyond 2"),
        (pa.array(["1", "2", str(2**64)]), "row 3: 'patient' is beyond 2"),
        (pa.array([1.0, 2.5, 3.0]), "row 2: 'patient' is not a whole number"),
        (pa.array([True, False, True]), "row 1: 'patient' is a bool, expected identifiers"),
        (pa.array([DAY] * 3), "row 1: 'patient' is a datetime, expected identifiers"),
        (pa.array([[1]] * 3), r"column 'patient' holds list.*expected identifiers"),
    ],
)
def test_columns_of_no_identifiers_are_named_with_the_row(tmp_path, column, says):
    frames = study()
    labs = pa.Table.from_pandas(frames["measurements"].head(3), preserve_index=False)
    frames["measurements"] = labs.set_column(0, "patient", column)
    with pytest.raises(DataError, match=says) as error:
        read(tmp_path, write(tmp_path, frames, parquet=("measurements",)))
    assert len(error.value.args) == 1 and "measurements.parquet" in str(error.value)


@pytest.mark.parametrize("padded", ["measurements", "outcomes", "patients"])
def test_leading_zeros_are_refused_where_others_have_none(tmp_path, padded):
    frames = study()
    frames[padded]["patient"] = frames[padded]["patient"].map("{:03d}".format)
    with pytest.raises(DataError, match=r"csv, row 1: 'patient' has leading zeros where another"):
        read(tmp_path, write(tmp_path, frames))
    whole = study()
    for frame in whole.values():
        frame["patient"] = frame["patient"].map("{:03d}".format)
    assert_oracle(read(tmp_path / "whole", write(tmp_path / "whole", whole))[0], whole)


def zoned(column, zone):
    """A column of naive times of UTC as text or times with a zone."""
    return column.dt.tz_localize("UTC").dt.tz_convert(zone)


TEXTS = {
    "+00:00": lambda c: zoned(c, "UTC").map(lambda t: t.isoformat(" ")),
    "Z": lambda c: c.map(lambda t: f"{t.isoformat()}Z"),
    " UTC": lambda c: c.map(lambda t: f"{t} UTC"),
    "+0530": lambda c: zoned(c, "Asia/Kolkata").map(lambda t: t.strftime("%Y-%m-%dT%H:%M:%S%z")),
    " -0800": lambda c: zoned(c, "Etc/GMT+8").map(lambda t: t.strftime("%Y-%m-%d %H:%M:%S %z")),
}


@pytest.mark.parametrize("form", TEXTS)
def test_times_with_an_offset_are_moments(tmp_path, form):
    frames = study()
    given = dict(frames)
    given["measurements"] = frames["measurements"].assign(
        charted=TEXTS[form](frames["measurements"]["charted"])
    )
    given["outcomes"] = frames["outcomes"].assign(
        asked=zoned(frames["outcomes"]["asked"], "Asia/Shanghai")
    )
    file = write(tmp_path, given, parquet=("outcomes",))
    found, joining = read(tmp_path, file)
    assert_oracle(found, frames)
    (clocks,) = [line for line in joining if line.startswith("clocks")]
    assert "'asked' a zone (Asia/Shanghai)" in clocks and "'charted' a zone (UTC)" in clocks


@pytest.mark.parametrize("parquet", [(), ("measurements", "outcomes")])
@pytest.mark.parametrize("zone", ["UTC", "Asia/Shanghai"])
@pytest.mark.parametrize(("name", "column"), [("measurements", "charted"), ("outcomes", "asked")])
def test_one_column_with_a_zone_and_one_without_are_refused(tmp_path, name, column, zone, parquet):
    frames = study()
    frames[name] = frames[name].assign(**{column: zoned(frames[name][column], zone)})
    with pytest.raises(DataError, match="write all with a zone or all without") as error:
        read(tmp_path, write(tmp_path, frames, parquet=parquet))
    assert len(error.value.args) == 1
    assert all(word in str(error.value) for word in ("'charted'", "'asked'", "no zone", "a zone ("))


@pytest.mark.parametrize("last", ["2150-01-01 01:00:00", "2150-01-01T01:00:00+08:00", "noon"])
def test_a_column_of_both_clocks_is_named_with_the_row(tmp_path, last):
    frames = study()
    other = "" if "+" in last else "+00:00"
    times = [f"2150-01-01 0{i}:00:00{other}" for i in range(5)]
    labs = frames["measurements"].head(6).assign(charted=[*times, last])
    says = {"noon": "is not a time"}.get(last, "has a zone" if "+" in last else "has no zone")
    with pytest.raises(DataError, match=f"row 6: 'charted' {says}"):
        read(tmp_path, write(tmp_path, frames | {"measurements": labs}))


def change(name, **columns):
    def apply(frames):
        frames[name] = frames[name].assign(
            **{key: frames[name][key].map(function) for key, function in columns.items()}
        )

    return apply


MISMATCHED = {
    "another numbering": (change("measurements", patient=lambda i: i + 1000), "measurements"),
    "a prefix": (change("measurements", patient="P{}".format), "measurements"),
    "hardly anybody": (
        change("measurements", patient=lambda i: i if i == 7 else i + 1000),
        "hardly a subject",
    ),
    "of the wide file": (change("patients", patient="P{}".format), "patients"),
    "other codes": (change("measurements", item="LAB//{}".format), "modality labs: there is no"),
    "years apart": (
        change("measurements", charted=lambda t: t + datetime.timedelta(days=3650)),
        "modality labs: none of its events is in time",
    ),
    "years before": (
        change("measurements", charted=lambda t: t - datetime.timedelta(days=3650)),
        "modality labs: none of its events is in time",
    ),
}


@pytest.mark.parametrize("case", MISMATCHED)
def test_files_that_do_not_match_are_one_line_and_nothing_is_built(tmp_path, case):
    apply, says = MISMATCHED[case]
    frames = study()
    apply(frames)
    file = write(tmp_path, frames)
    with pytest.raises(DataError, match=says) as error:
        build.prepare("tables", tmp_path, tmp_path / "data", options={"file": file})
    assert len(error.value.args) == 1
    assert not [*(tmp_path / "data").rglob("manifest.json")]


def test_a_modality_all_of_whose_events_are_of_others(tmp_path):
    """The file as a whole matches; its laboratory rows do not."""
    frames = study()
    labs = frames["measurements"]
    theirs = labs["item"] != "other"
    frames["measurements"] = labs.assign(
        patient=labs["patient"].where(~theirs, labs["patient"] + 900)
    )
    with pytest.raises(DataError, match="modality labs: all its events are of subjects without"):
        read(tmp_path, write(tmp_path, frames))


def test_few_with_labels_and_rare_sources_are_no_mistake(tmp_path):
    frames = study(subjects=[*range(1, 401)])
    whole = frames["outcomes"]
    frames["outcomes"] = whole.head(30)
    found, _ = read(tmp_path / "a", write(tmp_path / "a", frames))
    assert len(found) == 30
    frames["outcomes"], labs = whole, frames["measurements"]
    frames["measurements"] = labs[labs["patient"] <= 12]
    found, joining = read(tmp_path / "b", write(tmp_path / "b", frames))
    assert sum("labs" in e["inputs"] for e in found.values()) > 5
    assert "measurements.*: events of 3% of the subjects with a label" in joining


def test_a_build_says_how_files_match_before_it_makes_records(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("M4_RAW_DIR", str(tmp_path))
    monkeypatch.setenv("M4_DATA_DIR", str(tmp_path / "data"))
    frames = study(subjects=[*range(1, 91)])
    labs = frames["measurements"]
    far = (labs["item"] == "creatinine") & (labs["patient"] % 8 == 0)
    labs["result"] = labs["result"].where(~far, labs["result"] * 88.4)  # umol/L
    file = write(tmp_path, frames)
    config = CONFIG.format(file=file).replace("name='meds'", "name='tables'")
    (tmp_path / "c.py").write_text(config.replace("death/auroc", "aki/auroc"))
    config = f"--config={tmp_path / 'c.py'}"
    assert main([config, f"--workdir={tmp_path / 'w'}"]) == 0
    out = capsys.readouterr().out
    assert out.index("joining\nmeasurements.csv: 270 events, 100%") < out.index("building tables")
    odd = "labs/creatinine: 12% of its values lie outside low and high and are dropped"
    assert f"warning  {odd}" in out
    (built,) = (tmp_path / "data").rglob("manifest.json")
    manifest = json.loads(built.read_text())
    assert manifest["joining"][0].startswith("measurements.csv: 270 events")
    assert [line.startswith(odd) for line in manifest["warnings"]] == [True]
    change("measurements", patient="P{}".format)(frames)
    write(tmp_path, frames)
    assert main([config, f"--workdir={tmp_path / 'w2'}"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "measurements.*: no subject in 'patient' is one with a label" in line


def test_values_of_another_split_in_another_unit_are_told(tmp_path):
    frames = study(subjects=[*range(1, 201)])
    (tmp_path / "study/metadata").mkdir(parents=True)
    parts = {s: "held_out" if s > 150 else "tuning" if s > 120 else "train" for s in range(1, 201)}
    table = pa.table({"subject_id": [*parts], "split": [*parts.values()]})
    pq.write_table(table, tmp_path / "study/metadata/subject_splits.parquet")
    labs = frames["measurements"]
    other = (labs["patient"] > 150) & (labs["patient"] % 5 == 0) & (labs["item"] == "urea")
    labs["result"] = labs["result"].where(~other, labs["result"] * 2.8)
    file = write(tmp_path, frames)
    told = []
    folder = build.prepare(
        "tables", tmp_path, tmp_path / "data", options={"file": file}, report=told.append
    )
    (line,) = shift.of_build(told[0])
    assert line.startswith("test: labs: urea is clipped in") and "another unit" in line
    assert f"  ! {line}" in describe.lines(folder)
    assert any(line.startswith("  measurements.csv: 600 events") for line in describe.lines(folder))


def test_new_data_are_asked_the_same(tmp_path):
    frames = study(subjects=[*range(1, 201)])
    file = write(tmp_path, frames)
    built = build.prepare("tables", tmp_path, tmp_path / "data", options={"file": file})
    known = apply.Trained(json.loads((built / "manifest.json").read_text()), {})

    def new(name, frames, **files):
        write(tmp_path / name, frames, **files)
        (tmp_path / name / "out").mkdir()
        return apply.write(tmp_path / name / "out", tmp_path / name / "study", tables, known)

    theirs = study(seed=1)
    manifest = new("same", theirs)
    assert apply.warnings(manifest, known) == []
    assert manifest["joining"][0].startswith("measurements.csv: 120 events, 100%")
    labs = theirs["measurements"]
    few = (labs["item"] == "urea") & (labs["patient"] % 8 == 0)
    odd = theirs | {
        "measurements": labs.assign(result=labs["result"].where(~few, 6 * labs["result"]))
    }
    (line,) = apply.warnings(new("odd", odd), known)
    assert line.startswith("labs: urea is clipped in") and line.endswith("unit than in training?")
    prefix = theirs | {"measurements": labs.assign(patient=labs["patient"].map("P{}".format))}
    with pytest.raises(DataError, match="measurements.*: no subject in 'patient' is one with a"):
        new("prefix", prefix)
    moment = theirs | {"measurements": labs.assign(charted=zoned(labs["charted"], "UTC"))}
    with pytest.raises(DataError, match="write all with a zone or all without"):
        new("zone", moment)
    later = labs.assign(charted=labs["charted"] + datetime.timedelta(days=3650))
    with pytest.raises(DataError, match="modality labs: none of its events is in time"):
        new("later", theirs | {"measurements": later})
