"""A definition is drafted from tables, and what it says reads them."""

import gzip

import numpy as np
import pandas as pd
import pytest

from m4.data.__main__ import main
from m4.data.sets import tables

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
