"""New data as a trained model's inputs: what was fitted is taken over, to the last bit."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from m4.data import apply, build, index
from m4.data import manifest as manifests
from m4.data.sets import meds, tables
from m4.data.sets.declared import asked, parse
from m4.data.sets.declared import definition as definitions
from m4.data.sets.declared.joins import Joins
from m4.data.sets.declared.points import Flow
from m4.data.store import Store
from m4.errors import DataError
from tests.data import meds_folder as mf

LOS = """
[tasks.los]
kind = "regression"
transform = "log1p"
labels = "labels/los"
[modalities.vitals]
"""


def given(num_subjects=60, seed=0):
    found = mf.cohort_tables(num_subjects, seed)
    death = found["labels/death/0.parquet"]
    days = pa.array(np.random.default_rng(1).exponential(4, len(death)), pa.float32())
    found["labels/los/0.parquet"] = death.drop_columns("boolean_value").append_column(
        "float_value", days
    )
    return found


def trained(folder):
    """What a work directory remembers of a built folder."""
    words = folder / "vocabulary.json"
    known = json.loads(words.read_text()) if words.is_file() else {}
    return apply.Trained(manifests.read(folder), known)


def rows(folder, split):
    """(subject, time) -> flat key -> row, exactly as a batch is filled."""
    store = Store(folder, split)
    found = store.read(np.arange(len(store)))
    keys = [tuple(row.values()) for row in index.read(folder, split).to_pylist()]
    return {key: {name: a[i] for name, a in found.items()} for i, key in enumerate(keys)}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, row in found.items():
        for name, array in row.items():
            np.testing.assert_array_equal(array, expected[key][name], err_msg=name)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The training hospital's folder and what it was built into."""
    folder = tmp_path_factory.mktemp("apply")
    definition = mf.DEFINITION.replace("[modalities.vitals]\n", LOS)
    file = mf.write(folder, given(), definition=definition)
    return folder / "hospital", build.prepare(
        "meds", folder, folder / "data", options={"file": file}
    )


@pytest.fixture(scope="module")
def known(built):
    """Rows of all splits."""
    return {k: r for split in ("train", "val", "test") for k, r in rows(built[1], split).items()}


def again(built, tmp_path, content):
    """Rows of a new folder, and its manifest."""
    mf.write(tmp_path, content)
    (tmp_path / "out").mkdir()
    manifest = apply.write(tmp_path / "out", tmp_path / "hospital", meds, trained(built[1]))
    return rows(tmp_path / "out", apply.SPLIT), manifest


def test_the_training_hospital_is_read_as_it_was(built, known, tmp_path):
    found, manifest = again(built, tmp_path, given())
    assert_same(found, known)
    assert len(found) == 90 and [*manifest["splits"]] == ["new"]
    assert apply.warnings(manifest, trained(built[1])) == []
    los = Store(tmp_path / "out", "new").spec.task("los")
    assert los == Store(built[1], "test").spec.task("los") and los.loc != 0  # fitted on train


@pytest.mark.parametrize("seed", range(3))
def test_a_record_is_its_subjects_alone(built, known, tmp_path, seed):
    rng = np.random.default_rng(seed)
    content = given()
    kept = {s for s in range(1, 61) if rng.random() < 0.4}
    for path, table in content.items():
        mask = pa.array([s in kept for s in table["subject_id"].to_pylist()])
        content[path] = table.filter(mask)
    strange = [
        (2000 + i, float(rng.uniform(0, 4)), code, float(rng.normal(0, 1e30)), "moan pain")
        for i in range(20)
        for code in ("VITAL//HR", "DRUG//z", "DRUG//a", "NOTE//nurse")
    ]
    content["data/strange/0.parquet"] = mf.events(strange)
    ask = mf.labels([(2000 + i, 4, bool(i % 2)) for i in range(20)])
    content["labels/death/1.parquet"] = ask
    found, manifest = again(built, tmp_path, content)
    assert_same(
        {key: row for key, row in found.items() if key[0] < 2000},
        {key: row for key, row in known.items() if key[0] in kept},
    )
    old = manifests.read(built[1])
    for key in ("normalisers", "schema", "options", "fingerprint"):
        assert manifest[key] == old[key], key
    flow = dict(manifest["flow"])
    assert flow["drugs: tokens outside the vocabulary"] == 20
    assert flow["notes: tokens outside the vocabulary"] == 20  # 'moan', not 'pain'


def test_another_unit_is_told(built, tmp_path):
    content = given()
    for path in [path for path in content if path.startswith("data/")]:
        table = content[path]
        tenfold = pc.if_else(
            pc.equal(table["code"], "VITAL//HR"),
            pc.multiply(table["numeric_value"], 10),
            table["numeric_value"],
        )
        content[path] = table.set_column(3, "numeric_value", tenfold.cast(pa.float32()))
    _, manifest = again(built, tmp_path, content)
    (line,) = apply.warnings(manifest, trained(built[1]))
    assert line == "vitals: hr is clipped in 100% of its values: another unit than in training?"


TABLES = """
[[events]]
files = "labs.csv*"
subject = "patient"
time = "charted"
code = "item"
value = "value"
[[rows]]
files = "static.csv"
subject = "patient"
[labels]
files = "static.csv"
subject = "patient"
[tasks.sick]
kind = "multilabel"
column = ["sepsis", "aki"]
[tasks.unit]
kind = "multiclass"
column = "ward"
classes = ["A", "B"]
[tasks.death]
kind = "survival"
column = ["days", "died"]
days = [1, 7, 30]
[modalities.labs]
kind = "series"
every = 1
features = ["k", "na"]
[modalities.static]
kind = "table"
features = { age = "age" }
"""


def lines(*rows):
    return "\n".join([*rows, ""])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Tables of 40 patients whose labels stand beside their inputs, built."""
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    labs = [f"p{p},2100-01-01 0{h}:00,{i},{rng.normal(4):.3f}"
            for p in range(40) for h in range(4) for i in ("k", "na")]  # fmt: skip
    static = [
        f"p{p},{40 + p},{p % 2},{p % 3 // 2},{'AB'[p % 2]},{p + 1},{p % 2}" for p in range(40)
    ]
    text = lines("patient,charted,item,value", *labs).encode()
    (folder / "labs.csv.gz").write_bytes(gzip.compress(text))
    (folder / "static.csv").write_text(lines("patient,age,sepsis,aki,ward,days,died", *static))
    (folder / "s.toml").write_text(TABLES)
    options = {"file": str(folder / "s.toml")}
    return folder, build.prepare("tables", folder, folder / "data", options=options)


def test_tables_whose_label_columns_are_gone_or_half_empty(study, tmp_path):
    folder, data = study
    (tmp_path / "labs.csv.gz").write_bytes((folder / "labs.csv.gz").read_bytes())
    header, *rest = (folder / "static.csv").read_text().splitlines()
    keep = (0, 1, 2, 4, 5)  # without 'aki' and 'died'
    cut = [",".join(line.split(",")[i] for i in keep) for line in (header, *rest)]
    (tmp_path / "static.csv").write_text(lines(*cut).replace(",A,", ",,").replace(",B,", ",C,"))
    (tmp_path / "out").mkdir()
    manifest = apply.write(tmp_path / "out", tmp_path, tables, trained(data))
    old = {k: r for s in ("train", "val", "test") for k, r in rows(data, s).items()}
    found = rows(tmp_path / "out", "new")
    assert found.keys() == old.keys() and len(found) == 40
    for key, row in found.items():
        for name in row:
            if not name.startswith("y/"):
                np.testing.assert_array_equal(row[name], old[key][name], err_msg=name)
        np.testing.assert_array_equal(row["y/sick/mask"], [1, 0])
        assert row["y/sick"][0] == old[key]["y/sick"][0]
        assert not row["y/unit/mask"] and not row["y/death/mask"]
    flow = dict(manifest["flow"])
    assert flow["sick: label rows without a column aki"] == 40
    assert flow["death: label rows without a column died"] == 40
    assert flow["unit: labels of no listed class"] == 20


def test_tables_without_a_whole_file(study, tmp_path):
    folder, data = study
    (tmp_path / "static.csv").write_text((folder / "static.csv").read_text())
    (tmp_path / "out").mkdir()
    manifest = apply.write(tmp_path / "out", tmp_path, tables, trained(data))
    assert apply.warnings(manifest, trained(data)) == [
        "labs: no event has one of its 2 codes",
        "labs: in 0 of 40 records (training: 100%)",
    ]
    assert dict(manifest["flow"])["event files that are absent: labs.csv*"] == 1
    for row in rows(tmp_path / "out", "new").values():
        assert not row["labs/present"] and not row["labs/values"].any() and row["static/present"]


def test_another_schema_is_refused(study, tmp_path):
    folder, data = study
    found = trained(data)
    found.manifest["declared"]["hours"] = 1.0
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="another schema"):
        apply.write(tmp_path / "out", folder, tables, found)


@pytest.mark.parametrize(
    ("points", "says"),
    [
        ("subject_id,prediction_time\n", "no row of the points files"),
        ("subject_id,prediction_time\n,2100-01-01\n7,\n", "no row of the points files"),
        ("subject_id,prediction_time\n7,noon\n", "points.csv, row 1: 'prediction_time' is not a"),
        ("subject_id\n7\n", "points.csv: has no column 'prediction_time'"),
        ("subject_id,prediction_time\n7,2100\0\n", "points.csv, line 2: has a NUL byte"),
        ("", "points.csv: is empty"),
    ],
)
def test_bad_points_are_named_with_the_row(tmp_path, points, says):
    (tmp_path / "points.csv").write_text(points)
    definition = parse.parse(definitions.load(mf.write(tmp_path, {})), "x", meds=True)
    with pytest.raises(DataError, match=says) as error:
        asked.read(definition, tmp_path, joins=Joins(tmp_path), flow=Flow())
    assert len(error.value.args) == 1 and "noon" not in str(error.value)


def test_points_may_repeat_and_drop_out(tmp_path):
    rows = ["subject_id,prediction_time", *["7,2100-01-01 04:00"] * 2, ",2100-01-01 04:00", "8,"]
    (tmp_path / "points.csv").write_text(lines(*rows))
    definition = parse.parse(definitions.load(mf.write(tmp_path, {})), "x", meds=True)
    flow = Flow()
    found = asked.read(definition, tmp_path, joins=Joins(tmp_path), flow=flow)
    assert [found.ids[s] for s in found.subject_P] == [7]
    assert np.isnan(found.targets["death"]).all()
    assert flow["points file: label rows"] == 4 and flow["prediction points"] == 1
    assert flow["points file: label rows without a subject or time"] == 2
    assert flow["points file: duplicate label rows"] == 1


def test_group_columns_may_come_after_training(built, known, tmp_path):
    definition = mf.DEFINITION.replace("[modalities.vitals]\n", LOS)
    (tmp_path / "grouped.toml").write_text(definition + '\n[groups]\ndrug = "DRUG//*"\n')
    before = trained(built[1])
    now = apply.Trained(
        before.manifest, before.vocabularies, {"file": str(tmp_path / "grouped.toml")}
    )
    mf.write(tmp_path, given())
    (tmp_path / "out").mkdir()
    apply.write(tmp_path / "out", tmp_path / "hospital", meds, now)
    assert_same(rows(tmp_path / "out", apply.SPLIT), known)
    store = Store(tmp_path / "out", apply.SPLIT)
    assert store.spec.groups == ("drug",) and {*store.groups()["drug"]} > {""}
