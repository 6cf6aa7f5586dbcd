"""MEDS in: records by hand, every type a file may come in, splits, leaks, counts and refusals."""

import datetime
import json
import os
import shutil
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m4.data import build
from m4.data import manifest as manifests
from m4.data.sets import meds
from m4.errors import ConfigError, DataError
from tests.data import meds_folder as mf

TRAIN, VAL, TEST = 1, 2, 3
PARTS = {TRAIN: "train", VAL: "tuning", TEST: "held_out"}


def tables(rows, asked):
    return {
        "data/0.parquet": mf.events(rows),
        "labels/death/0.parquet": mf.labels(asked),
        "metadata/subject_splits.parquet": mf.splits(PARTS),
    }


def read(folder, file, **options):
    """(split -> examples, flow) of the definition `file`."""
    found = meds.cohort(folder, seed=0, file=file, **options)
    return {name: list(start()) for name, start in found.splits.items()}, dict(found.flow)


def assert_equal(a, b):
    """Two sets of splits hold the same records, bit for bit."""
    for name in ("train", "val", "test"):
        assert len(a[name]) == len(b[name])
        for one, two in zip(a[name], b[name], strict=True):
            assert one["key"] == two["key"] and one["patient"] == two["patient"]
            assert one["inputs"].keys() == two["inputs"].keys()
            for modality, payload in one["inputs"].items():
                for key, array in payload.items():
                    np.testing.assert_array_equal(array, two["inputs"][modality][key])
            np.testing.assert_array_equal(one["targets"]["death"], two["targets"]["death"])


EVERYONE = [(s, 4, s == TRAIN) for s in PARTS]


def test_a_record_by_hand(tmp_path):
    year = 24 * 365.25
    rows = [
        (TRAIN, None, "SEX//M"),
        (TRAIN, 4 - 30 * year, "MEDS_BIRTH"),
        (TRAIN, -1, "VITAL//HR", 200.0),  # before the window of 4 hours
        (TRAIN, 0, "VITAL//HR", 70.0),  # its first moment: cell 0 to 2
        (TRAIN, 2, "VITAL//HR", 80.0),  # end of the first cell
        (TRAIN, 2.5, "VITAL//TEMP//C", 36.0),
        (TRAIN, 3.0, "VITAL//TEMP//F", 98.0),  # outside 30 to 45
        (TRAIN, 3.5, "VITAL//TEMP//C", 37.0),  # the last one of its cell
        (TRAIN, 4, "VITAL//HR", 90.0),  # at the prediction time
        (TRAIN, mf.at(4, us=1), "VITAL//HR", 999.0),  # after it
        (TRAIN, 1, "DRUG//b"),
        (TRAIN, 2, "DRUG//a"),
        (TRAIN, 3, "DRUG//b"),
        (TRAIN, 3, "NOTE//nurse", None, "No pain, no fever"),
        (TRAIN, 3, "OTHER//x", 1.0),
        (VAL, 3, "DRUG//z"),
    ]
    file = mf.write(tmp_path, tables(rows, EVERYONE))
    splits, flow = read(tmp_path, file)
    (example,) = splits["train"]
    assert example["patient"] == TRAIN and example["targets"] == {"death": [1.0]}
    micro = int((mf.at(4) - mf.datetime.datetime(1970, 1, 1)).total_seconds()) * 10**6
    assert example["key"] == (TRAIN, micro)
    vitals = example["inputs"]["vitals"]
    np.testing.assert_array_equal(vitals["times"], [2, 4])
    np.testing.assert_array_equal(vitals["values"], [[75, np.nan], [90, 37]])
    np.testing.assert_allclose(example["inputs"]["static"]["values"], [30, 1, 3], rtol=1e-6)
    # Vocabulary by name, as every token has one subject: DRUG//a is 1, DRUG//b 2. Distinct
    # codes in the order of their last appearance.
    np.testing.assert_array_equal(example["inputs"]["drugs"]["values"], [1, 2])
    # fever 1, no 2, pain 3
    np.testing.assert_array_equal(example["inputs"]["notes"]["values"], [2, 3, 2, 1])
    (other,) = splits["val"]
    assert other["inputs"]["drugs"]["values"].tolist() == [0]  # unseen in training
    assert splits["test"][0]["inputs"] == {}
    assert flow["events with a code of no modality"] == 1
    assert flow["vitals/temp: uses outside the allowed range"] == 1
    assert flow["uses after the last prediction time"] == 1
    assert flow["points of subjects without any event"] == 1


def change(name, function):
    return lambda t: t.set_column(t.column_names.index(name), name, function(t[name]))


FORMS = {
    "dictionary codes": change("code", lambda c: c.dictionary_encode()),
    "large strings": change("code", lambda c: c.cast(pa.large_string())),
    "nanoseconds": change("time", lambda c: c.cast(pa.timestamp("ns"))),
    "milliseconds": change("time", lambda c: c.cast(pa.timestamp("ms"), safe=False)),
    "time zone": change("time", lambda c: c.cast(pa.timestamp("us", "UTC"))),
    "doubles": change("numeric_value", lambda c: c.cast(pa.float64())),
    "small ids": change("subject_id", lambda c: c.cast(pa.int32())),
    "small text": change("text_value", lambda c: c.cast(pa.string()).dictionary_encode()),
    "another column": lambda t: t.append_column("site", pa.array([[1]] * len(t))),
    "another order": lambda t: t.take(np.random.default_rng(0).permutation(len(t))),
    "another order of columns": lambda t: t.select(t.column_names[::-1]),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_record_does_not_depend_on_the_form_of_its_files(tmp_path, form):
    given = mf.cohort_tables(20)
    for key in [*given]:  # whole milliseconds, no two events at once
        if key.startswith("data/"):
            given[key] = change("time", lambda c: c.cast(pa.timestamp("ms"), safe=False))(
                given[key]
            )
    expected, _ = read(tmp_path, mf.write(tmp_path, given))
    other = tmp_path / "other"
    other.mkdir()
    forms = {k: FORMS[form](t) if k.startswith("data/") else t for k, t in given.items()}
    if form == "time zone":  # then all times have one
        key = "labels/death/0.parquet"
        zoned = change("prediction_time", lambda c: c.cast(pa.timestamp("us", "UTC")))
        forms[key] = zoned(forms[key])
    if form == "another order":  # subjects in any shard, and in several
        whole = pa.concat_tables(forms.pop(k) for k in [*forms] if k.startswith("data/"))
        forms |= {f"data/{i}/x.parquet": whole.slice(i * 100, 100) for i in range(4)}
    found, _ = read(other, mf.write(other, forms))
    assert_equal(expected, found)
    assert sum(map(len, found.values())) == 30


def test_absent_columns_leave_modalities_absent(tmp_path):
    given = mf.cohort_tables(20)
    for key in [*given]:
        if key.startswith("data/"):
            given[key] = given[key].drop_columns(["numeric_value", "text_value"])
    splits, flow = read(tmp_path, mf.write(tmp_path, given))
    every = sum(splits.values(), [])
    assert len(every) == 30 and not any(e["inputs"].keys() & {"vitals", "notes"} for e in every)
    assert flow["vitals/hr: uses without a finite number"] > 0
    assert flow["notes: events without text"] > 0


def test_records_in_are_records_out_and_every_drop_has_a_reason(tmp_path):
    asked = [*EVERYONE, (TRAIN, 6, False), (TRAIN, 6, False), (4, 4, True), (VAL, 6, None)]
    rows = [(TRAIN, 1, "DRUG//a"), (9, 1, "DRUG//a"), (TRAIN, 1, None), (VAL, 2, "X")]
    given = tables(rows, asked)
    missing = mf.labels([(TRAIN, 8, True)])
    none = pa.array([None], pa.timestamp("us"))
    given["labels/death/deep/er.parquet"] = missing.set_column(1, "prediction_time", none)
    splits, flow = read(tmp_path, mf.write(tmp_path, given))
    records = sum(map(len, splits.values()))
    assert flow["death: label rows"] == 8 and records == 5
    assert records == (
        flow["death: label rows"]
        - flow["death: label rows without a subject or time"]  # 1
        - flow["death: duplicate label rows"]  # 1
        - flow["points of subjects in no split"]  # subject 4
    )
    assert flow["death: points without a label value"] == 1
    assert splits["val"][1]["targets"]["death"] is None
    assert flow["events"] == 4
    assert flow["events of subjects without a point"] == 1
    assert flow["events without a code"] == 1
    assert flow["events with a code of no modality"] == 1
    assert len(splits["train"][0]["inputs"]["drugs"]["values"]) == 1


def test_nothing_after_the_prediction_time_changes_a_record(tmp_path):
    given = mf.cohort_tables(20)
    expected, _ = read(tmp_path, mf.write(tmp_path, given))
    last = {}
    for row in given["labels/death/0.parquet"].to_pylist():
        subject, when = row["subject_id"], row["prediction_time"]
        last[subject] = max(when, last.get(subject, when))
    for key in [k for k in given if k.startswith("data/")]:
        rows = given[key].to_pylist()
        for row in rows:
            if row["time"] and row["time"] > last[row["subject_id"]]:
                row["numeric_value"], row["text_value"] = 1e6, "death death death"
        more = [
            {"subject_id": s, "time": t + mf.datetime.timedelta(microseconds=1), "code": code,
             "numeric_value": 7.0, "text_value": "deceased"}
            for s, t in last.items() for code in ("VITAL//HR", "DRUG//zz", "NOTE//x", "SEX//F")
        ]  # fmt: skip
        given[key] = pa.Table.from_pylist(rows + more, given[key].schema)
    other = tmp_path / "other"
    other.mkdir()
    found, _ = read(other, mf.write(other, given))
    assert_equal(expected, found)


def test_points_after_a_death_are_no_points(tmp_path):
    rows = [(TRAIN, 5, "MEDS_DEATH"), (TRAIN, 7, "MEDS_DEATH"), (VAL, None, "MEDS_DEATH")]
    rows += [(TEST, 50, "MEDS_DEATH"), (TRAIN, 1, "DRUG//a")]
    asked = [
        (TRAIN, 2, False),
        (TRAIN, 5, True),
        (TRAIN, 6, False),
        (VAL, 4, True),
        (TEST, 4, True),
    ]
    splits, flow = read(tmp_path, mf.write(tmp_path, tables(rows, asked)))
    assert flow["points at or after the death of their subject, left out"] == 2
    micro = int((mf.at(2) - datetime.datetime(1970, 1, 1)).total_seconds()) * 1_000_000
    (left,) = (e for e in splits["train"] if e["patient"] == TRAIN)
    assert left["targets"]["death"] == 0 and left["key"] == (TRAIN, micro)


def test_only_training_subjects_are_fitted_to(tmp_path, monkeypatch):
    given = mf.cohort_tables(30)
    file = mf.write(tmp_path, given)
    expected, _ = read(tmp_path, file)
    manifests = [manifest_of(tmp_path, file)]
    for part in ("tuning", "held_out"):
        key = f"data/{part}/0.parquet"
        rows = given[key].to_pylist()
        for row in rows:
            row["numeric_value"] = 40.0 if row["numeric_value"] else None
            row["text_value"] = "poison " * 9 if row["text_value"] else None
            row["code"] = row["code"].replace("DRUG//", "DRUG//poison")
        given[key] = pa.Table.from_pylist(rows, given[key].schema)
    file = mf.write(tmp_path, given)
    found, _ = read(tmp_path, file)
    manifests.append(manifest_of(tmp_path, file))
    assert manifests[0]["normalisers"] == manifests[1]["normalisers"]
    assert_equal(expected | {"val": [], "test": []}, found | {"val": [], "test": []})
    drugs = [e["inputs"]["drugs"]["values"] for e in found["test"] if "drugs" in e["inputs"]]
    assert drugs and not np.concatenate(drugs).any()


def manifest_of(folder, file):
    cohort = meds.cohort(folder, seed=0, file=file)
    target = folder / "built"
    target.mkdir(exist_ok=True)
    found = build.write(target, cohort)
    shutil.rmtree(target)
    return found


def test_vocabularies_are_kept_with_the_records(tmp_path):
    rows = [(s, 3, f"DRUG//{code}") for s, code in ((TRAIN, "b"), (TRAIN, "a"), (TEST, "z"))]
    file = mf.write(tmp_path, tables(rows, EVERYONE))
    folder = build.prepare("meds", tmp_path, tmp_path / "built", options={"file": file})
    kept = json.loads((folder / "vocabulary.json").read_text())
    assert kept == {"drugs": ["DRUG//a", "DRUG//b"], "notes": []}  # ids 1 and 2; z is of the test


@hypothesis.given(
    st.lists(st.integers(-(2**62), 2**62) | st.text("ab7", min_size=1), max_size=30),
    st.integers(0, 99),
    st.integers(2, 6),
)
@hypothesis.settings(max_examples=15, deadline=None)
def test_folds_part_any_subjects_once(ids, seed, num_folds):
    from m4.data.sets.declared.definition import Splits
    from m4.data.sets.declared.points import Flow, assign

    ids = [*dict.fromkeys(ids)]
    tested = np.zeros(len(ids), int)
    for fold in range(num_folds):
        splits = Splits("folds", fold=fold, num_folds=num_folds)
        found = assign(ids, splits, Path("none"), seed=seed, flow=Flow())
        again = assign(ids[::-1], splits, Path("none"), seed=seed, flow=Flow())[::-1]
        np.testing.assert_array_equal(found, again)
        assert (found >= 0).all()
        tested += found == 2
    assert (tested == 1).all()


def test_splits_without_a_file_or_without_tuning(tmp_path):
    given = mf.cohort_tables(60)
    names = dict(zip(*given["metadata/subject_splits.parquet"].to_pydict().values(), strict=True))
    only = {s: "train" if part == "tuning" else part for s, part in names.items()}
    given["metadata/subject_splits.parquet"] = mf.splits(only)
    splits, _ = read(tmp_path, mf.write(tmp_path, given))
    patients = {name: {e["patient"] for e in found} for name, found in splits.items()}
    assert 0 < len(patients["val"]) < 12 and len(patients["test"]) == 12
    assert not patients["val"] & patients["train"] and sum(map(len, patients.values())) == 60
    (tmp_path / "hospital/metadata/subject_splits.parquet").unlink()
    with pytest.raises(DataError, match="subject_splits.parquet: is missing; splits.from = 'hash'"):
        read(tmp_path, str(tmp_path / "spec.toml"))
    text = (tmp_path / "spec.toml").read_text().replace('from = "meds"', "")
    (tmp_path / "spec.toml").write_text(text)
    splits, flow = read(tmp_path, str(tmp_path / "spec.toml"))
    assert all(splits.values()) and sum(map(len, splits.values())) == 90
    assert flow["no metadata/subject_splits.parquet: subjects split by a keyed hash"] == 60


@pytest.mark.parametrize(
    "task, values, kind, expected",
    [
        ('kind = "multiclass"\nclasses = ["a", "b"]', ["a", "x", "b"], pa.string(), [0, None, 1]),
        ('kind = "multiclass"\nclasses = [7, 9]', [9, 7, None], pa.int64(), [1, 0, None]),
        ('kind = "regression"', [1.5, None, -2.0], pa.float64(), [1.5, None, -2]),
        ('kind = "regression"', [3, 4, 5], pa.int64(), [3, 4, 5]),
        ('kind = "binary"', [1, 0, None], pa.int64(), [1, 0, None]),
    ],
)  # fmt: skip
def test_labels_of_every_kind(tmp_path, task, values, kind, expected):
    column = {pa.string(): "categorical_value", pa.float64(): "float_value"}.get(
        kind, "integer_value"
    )
    asked = [(s, 4, v) for s, v in zip(PARTS, values, strict=True)]
    given = tables([(TRAIN, 1, "DRUG//a")], EVERYONE)
    given["labels/death/0.parquet"] = mf.labels(asked, column, kind)
    definition = mf.DEFINITION.replace('kind = "binary"', task)
    splits, _ = read(tmp_path, mf.write(tmp_path, given, definition=definition))
    found = [splits[name][0]["targets"]["death"] for name in ("train", "val", "test")]
    assert [None if f is None else float(f[0]) for f in found] == expected


def damaged(folder, path, content):
    (folder / "hospital" / path).write_bytes(content)


def test_files_that_cannot_be_used_are_one_clear_line(tmp_path):
    given = mf.cohort_tables(20)
    file = mf.write(tmp_path, given)
    raw = (tmp_path / "hospital/data/train/0.parquet").read_bytes()
    damaged(tmp_path, "data/train/0.parquet", raw[: len(raw) // 2])
    with pytest.raises(DataError, match=r"data/train/0.parquet: cut short, corrupt or malformed"):
        read(tmp_path, file)
    for column in ("code", "subject_id", "time"):
        table = given["data/train/0.parquet"].drop_columns([column])
        mf.write(tmp_path, {"data/train/0.parquet": table})
        with pytest.raises(DataError, match=f"train/0.parquet: has no column '{column}'"):
            read(tmp_path, file)
    wrong = change("time", lambda c: pa.array(["x"] * len(c)))
    mf.write(tmp_path, {"data/train/0.parquet": wrong(given["data/train/0.parquet"])})
    with pytest.raises(DataError, match="train/0.parquet, row 1: 'time' is not a time"):
        read(tmp_path, file)
    mf.write(tmp_path, given)
    twice = [(1, 4, True), (2, 4, True), (1, 4, False)]
    mf.write(tmp_path, {"labels/death/1.parquet": mf.labels(twice[2:])})
    mf.write(tmp_path, {"labels/death/0.parquet": mf.labels(twice[:2])})
    with pytest.raises(
        DataError, match="1.parquet, row 1: a second, different label of task death"
    ):
        read(tmp_path, file)
    assert meds.missing_files(tmp_path / "no", file=file)[0].endswith("data is missing (events)")


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('take = "mean"', 'take = "avarage"', "modalities.vitals.take: 'avarage' is not one of"),
        ("every = 2", "evry = 2", "modalities.vitals.evry: no such key; did you mean 'every'?"),
        ('kind = "text"', 'kind = "video"', "modalities.notes.kind: 'video' is not one of"),
        ("hours = 4", "hours = -4", "window.hours: must be a number above 0"),
        ('labels = "labels/death"', "", "tasks.death.labels: is missing"),
        ('codes = "DRUG//*"\n', "", "modalities.drugs.codes: is missing"),
        ("[tasks.death]", "[[tasks.death]", "no readable TOML file"),
        ('"NOTE//*"', '"re:("', "'re:\\(' is no regular"),
    ],
)
def test_wrong_definitions_are_refused_by_key(tmp_path, old, new, message):
    assert old in mf.DEFINITION
    file = mf.write(tmp_path, {}, definition=mf.DEFINITION.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        meds.spec(file=file)


def test_unknown_definition_lists_the_shipped_ones():
    with pytest.raises(ConfigError, match="no such file; shipped definitions: .*eicu_demo"):
        meds.spec(file="eicu")


def test_an_absolute_folder_is_refused(tmp_path):
    file = mf.write(tmp_path, {})
    with pytest.raises(ConfigError, match="folder: '.x' must be a path below"):
        meds.spec(file=file, folder="/x")


def test_a_build_is_renewed_when_the_definition_changes(tmp_path):
    file = mf.write(tmp_path, mf.cohort_tables(20))
    first = build.prepare("meds", tmp_path, tmp_path / "d", options={"file": file})
    keys = pq.read_table(first / "index/train.parquet")
    assert keys.column_names == ["subject_id", "prediction_time"] and keys.num_rows == 18
    (tmp_path / "moved.toml").write_text((tmp_path / "spec.toml").read_text())
    moved = {"file": str(tmp_path / "moved.toml")}
    assert build.prepare("meds", tmp_path, tmp_path / "d", options=moved) == first
    text = (tmp_path / "spec.toml").read_text()
    (tmp_path / "spec.toml").write_text(text.replace("low = 30", "low = 31"))
    assert build.prepare("meds", tmp_path, tmp_path / "d", options={"file": file}) != first


@pytest.mark.parametrize("folder", ["hospital", "."])
@pytest.mark.parametrize("late", ["metadata/subject_splits.parquet", "data/train/1.parquet"])
def test_a_build_is_renewed_when_a_file_comes(tmp_path, folder, late):
    given = mf.cohort_tables(20)
    given["data/train/1.parquet"] = mf.events([(1, 3, "VITAL//HR", 99.0)])
    definition = mf.DEFINITION.replace('from = "meds"', "")
    options = {"file": mf.write(tmp_path, given, definition=definition), "folder": folder}
    raw = tmp_path if folder == "hospital" else tmp_path / "hospital"
    path = tmp_path / "hospital" / late
    path.rename(tmp_path / path.name)
    first = build.prepare("meds", raw, tmp_path / "d", options=options)
    (tmp_path / path.name).rename(path)
    second = build.prepare("meds", raw, tmp_path / "d", options=options)
    assert build.prepare("meds", raw, tmp_path / "d", options=options) == second != first
    assert any(name.endswith(late) for name in manifests.read(second)["sources"])


@pytest.mark.skipif(not os.environ.get("M4_RAW_DIR"), reason="M4_RAW_DIR is not set")
def test_the_eicu_demo():
    folder = Path(os.environ["M4_RAW_DIR"])
    if meds.missing_files(folder, file="eicu_demo"):
        pytest.skip("no eicu-demo-meds in M4_RAW_DIR")
    splits, flow = read(folder, "eicu_demo", split="meds")
    every = sum(splits.values(), [])
    assert [len(splits[name]) for name in ("train", "val", "test")] == [593, 145, 116]
    deaths = sum(e["targets"]["hospital_mortality"][0] for e in every)
    long = sum(e["targets"]["los_over_72h"][0] for e in every)
    assert (len(every), deaths, long) == (854, 72, 291)
    assert flow["events"] == 415_739
    # the demo puts the stays of a patient in an order of its own: which were before, nobody knows
    assert flow["points at or after the death of their subject, left out"] == 19
    present = {name: sum(name in e["inputs"] for e in every) for name in ("vitals", "treatments")}
    assert present["vitals"] == 854 and 650 < present["treatments"] < 720
