"""A definition is drafted from tables, and what it says reads them."""

import gzip
import re
import tomllib

import numpy as np
import pandas as pd
import pytest

from m4.data import identifiers
from m4.data.__main__ import main
from m4.data.sets import tables
from m4.data.sets.declared import notations
from m4.data.sets.declared.patterns import pattern
from m4.errors import DataError

N = 60
WHO = [f"P{i:04d}" for i in range(N)]
RNG = np.random.default_rng(0)


def hours(*chosen):
    return [f"2100-01-01 {h:02}:00:00" for h in chosen]


def frames():
    """Long numbers, long codes, notes, wide rows once and again, outcomes; a stranger."""
    long = [
        (w, t, i, RNG.normal()) for w in WHO for t in hours(1, 5) for i in ("urea", "LACT*", "rare")
    ]
    long = [row for row in long if row[2] != "rare" or row[0] < "P0005"]
    notes = [
        (w, t, k, "she is quite well") for w in WHO for t in hours(2, 3) for k in ("day", "night")
    ]
    alike = {"age": RNG.integers(20, 90, N), "unit": RNG.choice(["medical", "surgical"], N)}
    gaps = RNG.random(N) < 0.4
    lab = pd.Series(RNG.normal(size=N)).where(gaps)
    return {
        "patients.csv": pd.DataFrame(
            {"patient_id": WHO, **alike, "site": "A", "crp": lab, "pct": lab}
        ),
        "labs.csv.gz": pd.DataFrame(long, columns=["patient_id", "charted", "item", "result"]),
        "notes.csv": pd.DataFrame(notes, columns=["patient_id", "time", "note_type", "words"]),
        "vitals.parquet": pd.DataFrame(
            [(w, pd.Timestamp(t), 80.5, RNG.normal(120, 9)) for w in WHO for t in hours(1, 2, 3)],
            columns=["pid", "time", "hr", "sbp"],
        ).assign(hr=lambda f: RNG.normal(80, 5, len(f))),
        "outcomes.csv": pd.DataFrame(
            {
                "patient_id": WHO,
                "asked_at": hours(12) * N,
                "aki": RNG.choice(["yes", "no"], N),
                "los": RNG.exponential(4, N),
                "grade": RNG.choice(["mild", "severe"], N),
            }
        ),
        "wards.csv": pd.DataFrame({"ward": ["x", "y"], "beds": [10, 20]}),
    }


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    place = tmp_path_factory.mktemp("raw") / "clinic"
    place.mkdir()
    for name, frame in frames().items():
        if name.endswith("parquet"):
            frame.to_parquet(place / name)
        else:
            data = frame.to_csv(index=False).encode()
            (place / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    return place


def test_a_draft_of_tables_reads_them(clinic, capsys):
    assert main(["draft", str(clinic)]) == 0
    draft = clinic.parent / "clinic.toml"
    draft.write_text(text := capsys.readouterr().out)
    found = tables.cohort(clinic.parent, seed=0, file=str(draft))
    examples = [example for start in found.splits.values() for example in start()]
    spec = found.spec
    kinds = {m.name: (m.kind, m.features) for m in spec.modalities}
    assert kinds["labs"] == ("series", ("LACT*", "urea"))  # rare: of five patients
    assert kinds["vitals"] == ("series", ("hr", "sbp"))
    assert kinds["notes_text"][0] == "text"
    assert kinds["patients"] == ("table", ("age", "unit=medical"))
    assert kinds["patients_crp"] == ("table", ("crp", "pct"))  # they go missing together
    assert {t.name: t.kind for t in spec.tasks} == {
        "aki": "binary",
        "los": "regression",
        "grade": "multiclass",
    }
    assert len(examples) == N and all(
        {*kinds} - {*e["inputs"]} <= {"patients_crp"} for e in examples
    )
    assert examples[0]["inputs"]["labs"]["values"].shape == (2, 2)
    assert "always the same: 'site' of patients.csv" in text
    assert "wards.csv has no column with the subjects of patient_id" in text
    assert "train.select=aki/auroc" in text and "rare" not in text and "P00" not in text


def test_one_file_is_enough_and_says_what_lacks(tmp_path, capsys):
    frame = frames()["patients.csv"]
    frame.to_csv(tmp_path / "all.csv", index=False)
    assert main(["draft", str(tmp_path)]) == 0
    assert "No column looks like an outcome" in capsys.readouterr().out
    frame.assign(died=RNG.integers(0, 2, N)).to_csv(tmp_path / "all.csv", index=False)
    assert main(["draft", str(tmp_path)]) == 0
    (tmp_path / "d.toml").write_text(text := capsys.readouterr().out)
    (task,) = tables.spec(file=str(tmp_path / "d.toml")).tasks
    assert (task.name, task.kind) == ("died", "binary") and "select=died/auroc" in text


@pytest.mark.parametrize(
    "files, said",
    [
        ({}, "no files that end in .parquet, .csv"),
        ({"a.csv": "x,y\n1.5,2.5\n2.5,3.5\n"}, "no column looks like the subject"),
        ({"a.csv": "patient,y\n1,2\n1\n"}, "a.csv, line 3: not 2 columns"),
    ],
)
def test_what_cannot_be_drafted_is_said_in_one_line(files, said, tmp_path, capsys):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert main(["draft", str(tmp_path)]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_hostile_names_stay_within_strings_and_comments(tmp_path, capsys):
    names = ["patient", 'a"] evil=1', "x\\u0000", "[tasks.z]", "died"]
    rows = pd.DataFrame({n: RNG.normal(size=N) for n in names}).assign(
        patient=WHO, died=RNG.integers(0, 2, N)
    )
    rows.to_csv(tmp_path / "all.csv", index=False)
    assert main(["draft", str(tmp_path)]) == 0
    (tmp_path / "d.toml").write_text(capsys.readouterr().out)
    spec = tables.spec(file=str(tmp_path / "d.toml"))
    assert spec.task_names == ("died",) and {*names[1:4]} <= {*spec.modalities[0].features}


def drafted(place, capsys, **files):
    """The draft of some CSV files as text, and what it says, parsed."""
    for name, frame in files.items():
        frame.to_csv(place / f"{name}.csv", index=False)
    assert main(["draft", str(place)]) == 0
    text = capsys.readouterr().out
    return text, tomllib.loads(text)


def long(item, *values, n=N):
    """A long file of one measurement an hour and patient."""
    rows = [(WHO[i % N], hours(1 + i // N)[0], item, values[i % len(values)]) for i in range(n)]
    return pd.DataFrame(rows, columns=["patient", "time", "item", "result"])


@pytest.mark.parametrize(
    "name, late",
    [
        *((n, True) for n in ("deathtime", "HospitalDeath", "inhospdeath", "deathflag", "dod")),
        *((n, True) for n in ("DeathDate", "diedInICU", "deceased_at", "hospital_expire_flag")),
        *((n, True) for n in ("mort28", "icuMortality", "DOD_ssn")),
        *((n, False) for n in ("method", "dodecane", "studied", "dead_space", "amortized")),
    ],
)
def test_what_says_who_died_is_no_feature(name, late, tmp_path, capsys):
    flags = pd.DataFrame({"patient": WHO, "age": RNG.normal(size=N), name: ["0", "1"] * (N // 2)})
    _, found = drafted(tmp_path, capsys, ward=flags)
    assert (name in found["modalities"]["ward"]["features"]) != late


def test_a_time_of_death_is_no_prediction_time_nor_one_that_is_often_empty(tmp_path, capsys):
    outcomes = pd.DataFrame({"patient": WHO, "deathtime": hours(3) * N, "left": hours(4) * N})
    outcomes = outcomes.assign(asked=hours(2) * N, aki=["yes", "no"] * (N // 2))
    outcomes.loc[:3, "left"] = None
    text, found = drafted(tmp_path, capsys, outcomes=outcomes)
    assert found["tasks"]["aki"]["time"] == "asked"
    assert "'deathtime'" in text and "'left'" in text and "'asked'" not in text


def test_values_are_quoted_that_ten_subjects_have_not_ten_rows(tmp_path, capsys):
    ward = pd.DataFrame({"patient": WHO, "x": RNG.normal(size=N), "unit": ["a", "b"] * (N // 2)})
    more = ward[:1].assign(unit="ward of the mayor")
    text, found = drafted(tmp_path, capsys, ward=pd.concat([ward, *[more] * 20]))
    assert "mayor" not in text
    assert found["modalities"]["ward"]["features"]["unit"]["known"] == ["a", "b"]


def test_sources_that_share_a_name_are_told_apart(tmp_path, capsys):
    wide = pd.DataFrame({"patient": WHO, "lactate": RNG.normal(size=N), "x": RNG.normal(size=N)})
    one, two = long("lactate", 1.5, 2.5, n=4 * N), long("lactate", 30.5, n=4 * N)
    two = pd.concat([two, two.assign(item="urea")])
    one = pd.concat([one, one.assign(item="sodium")]).assign(unit="mmol")
    _, found = drafted(tmp_path, capsys, wide=wide, blood=one, urine=two)
    codes = {f["lactate"] for m in found["modalities"].values() if (f := m["features"])}
    assert codes == {"wide//lactate", "blood//lactate", "urine//lactate"}
    prefixes = {source["prefix"] for key in ("events", "rows") for source in found[key]}
    assert prefixes == {"wide//", "blood//", "urine//"}


def test_a_value_that_is_no_number_does_not_lose_the_others(tmp_path, capsys):
    labs = long("urea", *RNG.normal(size=97), n=4 * N)
    labs = pd.concat([labs, labs.assign(item="sodium")]).reset_index(drop=True)
    labs["result"] = labs["result"].astype(object)
    labs.loc[5, "result"] = "<0.5"
    text, found = drafted(tmp_path, capsys, labs=labs)
    assert found["events"][0]["value"] == "result"
    assert {*found["modalities"]["labs"]["features"]} == {"urea", "sodium"}
    assert "1 of 480 cells looked at is no number: the build stops" in text


@pytest.mark.parametrize("missing", identifiers.MISSING)
def test_what_is_missing_for_identifiers_is_missing_for_numbers(missing, tmp_path, capsys):
    numbers = [missing, *map(str, RNG.normal(size=N - 1))]
    ward = pd.DataFrame({"patient": WHO, "x": numbers, "crp": ["?", *numbers[1:]]})
    text, found = drafted(tmp_path, capsys, ward=ward.assign(y2=RNG.normal(size=N)))
    assert {*found["modalities"]["ward"]["features"]} == {"x", "y2"}
    assert "Left out, numbers but for some cells" in text and "'crp' of ward.csv" in text


def test_names_that_are_patterns_or_rare_letters_stand_for_themselves(tmp_path, capsys):
    odd = ["pH*", "re:x", "\U0001f525\u200b", "\U0001f525"]
    ward = pd.DataFrame({"patient": WHO, **{name: RNG.normal(size=N) for name in odd}})
    labs = pd.concat([long("pH*", 7.5, 7.25, n=4 * N), long("urea", 4.5, n=4 * N)])
    _, found = drafted(tmp_path, capsys, ward=ward, labs=labs)
    features = found["modalities"]["ward"]["features"]
    for name in {*odd} & {*features}:
        assert re.fullmatch(pattern(features[name])[2:-2], f"ward//{name}")
    assert {"pH*", "re:x", "\U0001f525"} <= {*features}
    assert features["pH*"] == "re:ward//pH\\*"


def test_whatever_is_dropped_is_told(tmp_path, capsys):
    (tmp_path / "excel.csv").write_text("patient;x, mmol;y\n1;2,5;3\n")
    (tmp_path / "one.csv").write_text("patient\n1\n")
    (tmp_path / "tabs.tsv").write_text("patient\tx\n1\t2\n")
    ward = pd.DataFrame({"patient": WHO, "x": RNG.normal(size=N), "seen": hours(3) * N})
    ward.loc[7, "seen"] = "2100-01-01 03:00:00Z"
    labs = [long(f"item {i:02}", 1.5, n=N).assign(time=hours(i % 24) * N) for i in range(61)]
    labs += [long("death", 1.5), long("ode to someone", 1.5, n=3)]
    text, _ = drafted(tmp_path, capsys, ward=ward, labs=pd.concat(labs))
    for line in (
        "excel.csv is separated by semicolons; save it with commas",
        "one.csv has one column",
        "tabs.tsv is none of",
        "Left out, times, some with a zone and some without: write all alike: 'seen' of ward.csv",
        "beyond the 60 most frequent: 1 code of labs.csv ('item 60')",
        "looks like an outcome: 1 code of labs.csv ('death')",
        "fewer than 10 subjects: 1 code of labs.csv\n",
    ):
        assert line in text
    assert "ode to someone" not in text


@pytest.mark.parametrize("text", ["patient;x\n1;2,5\n", "patient\tx\n1\t2\n"])
def test_files_without_commas_are_called_so(tmp_path, capsys, text):
    (tmp_path / "excel.csv").write_text(text)
    assert main(["draft", str(tmp_path)]) == 3
    said = capsys.readouterr().err
    assert "excel.csv is separated by " in said and "save it with commas" in said


def test_of_one_file_a_patient_all_are_looked_at(tmp_path, capsys):
    labs = pd.concat([long("urea", *RNG.normal(size=97), n=4 * N), long("sodium", 4.5, n=4 * N)])
    for name, rows in labs.groupby("patient"):
        rows.to_csv(tmp_path / f"{name}.csv", index=False)
    _, found = drafted(tmp_path, capsys)
    assert {*found["modalities"].popitem()[1]["features"]} == {"urea", "sodium"}


def asked_ward(write, *, name="time"):
    """Events, half of them after the time of the labels, which is written alike."""
    at = [pd.Timestamp("2021-03-04 03:00") + pd.Timedelta(days=9 * k) for k in range(2)]
    rows = [(w, write(t), c, 1.0 + k) for w in WHO for k, t in enumerate(at) for c in ("HR", "BP")]
    events = pd.DataFrame(rows, columns=["patient_id", name, "code", "value"])
    died = ["yes", "no"] * (N // 2)
    labels = pd.DataFrame({"patient_id": WHO, "time": "2021-03-05 12:00", "died": died})
    return {"events": events, "labels": labels}


@pytest.mark.parametrize(
    "form, name",
    [("%d/%m/%Y %H:%M", "time"), ("%m/%d/%Y %H:%M", "charttime"), ("%d.%m.%Y", "x"), ("one", "x")]
    + [("zones", "time"), ("rarely", "time")],
)
def test_times_that_cannot_be_read_stop_the_build_and_are_no_codes(form, name, tmp_path, capsys):
    iso = "%Y-%m-%d %H:%M" if "%" not in form else form
    given = asked_ward(lambda t: t.strftime(iso), name=name)
    if form == "rarely":
        given["events"].loc[9:, name] = "unknown"
    elif iso != form:
        given["events"].loc[9, name] = "unknown" if form == "one" else "2021-03-04 03:00Z"
    (tmp_path / "ward").mkdir()
    text, found = drafted(tmp_path / "ward", capsys, **given)
    (source,) = found["events"]
    assert (source["time"], source["code"], source["value"]) == (name, "code", "value")
    assert {*found["modalities"]["events"]["features"]} == {"HR", "BP"}
    assert ("write all alike: the build stops" if form == "zones" else "write YYYY-MM-DD") in text
    assert form != "one" or "(1 cell;" in text
    (tmp_path / "d.toml").write_text(text)
    with pytest.raises(DataError, match=f"events.csv.*'{name}' (is not a time|has a zone)"):
        tables.cohort(tmp_path, seed=0, file=str(tmp_path / "d.toml")).joining()


def test_a_date_in_any_notation_is_no_category(tmp_path, capsys):
    ward = pd.DataFrame({"patient": WHO, "age": RNG.normal(size=N), "died": ["0", "1"] * (N // 2)})
    dates = ("05.02.2020", "06-Mar-2021"), ("3/16/20 3:00 PM", "2020-03"), ("20200301", "20200302")
    for name, values in zip(("a", "b", "born_date"), dates, strict=True):
        ward[name] = [*values] * (N // 2)
    text, found = drafted(tmp_path, capsys, ward=ward)
    assert {*found["modalities"]["ward"]["features"]} == {"age"} and {*found["tasks"]} == {"died"}
    assert "times that cannot be read (60 cells; write YYYY-MM-DD HH:MM): 'a' of ward.csv" in text


def test_what_looks_like_a_time():
    looks = "2021-3-6 3:00;Sat Mar  6 03:00:00 2021;06MAR2021:03:00:00;6. März 2021;3/6/2021 3 PM"
    looks += ";03:00 06/03/2021;6 de marzo de 2021;06.03.2021 14:00 Uhr;20210306T0300;Mar 6, 2021"
    other = "HR;120/80;1:40;2160-0;2028-9;K35.8;5-470.11;C09AA05;20210306;0002-3227-30;May;10.0.0.1"
    assert [cell for cell in looks.split(";") if not notations.unread("x", {cell: 9})] == []
    assert [cell for cell in other.split(";") if notations.unread("code", {cell: 9})] == []
    numbers = ["20210306", "1614999600", "1614999600000", "1.6149996e+09", "44261.125"]
    assert [n for n in numbers if not notations.unread("charttime", {n: 9})] == []
    assert [n for n in numbers if notations.unread("value", {n: 9})] == []
    assert not notations.unread("time", {"1.25": 4, "12.5": 4, "7": 1})  # hours of something
    assert not notations.unread("code", {"05.02.2020": 1, "HR": 90})


def test_events_without_a_time_are_told(tmp_path, capsys):
    given = asked_ward(str)
    given["events"] = given["events"].drop(columns="time")
    (tmp_path / "ward").mkdir()
    text, _ = drafted(tmp_path / "ward", capsys, **given)
    told = "events.csv has no time: all its events count, also those after the prediction time"
    assert f"# {told}" in text and "may be later" not in text
    (tmp_path / "d.toml").write_text(text)
    found = tables.cohort(tmp_path, seed=0, file=str(tmp_path / "d.toml"))
    found.joining()
    assert found.warnings == [told]


def test_a_time_of_rows_that_come_once_is_offered(tmp_path, capsys):
    given = asked_ward(str)
    given["scans"] = pd.DataFrame({"patient_id": WHO, "at": hours(3) * N, "x": RNG.normal(size=N)})
    text, _ = drafted(tmp_path, capsys, **given)
    assert '# time = "at" # if what a row holds may be later than the prediction time' in text
