"""Bundles of whatever m4 trains: images, texts, encoders from files, buckets, tables of one's own.

Each run is trained, exported by the command, and asked about the rows of its test split in a
process without m4; it must say what `--mode=predict` wrote of them, and refuse what is damaged.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import m4
from m4.data import data_sets, pictures
from m4.export import __main__ as export
from m4.main import main
from m4.nn.pretrained import bert, safetensors, vit_file
from tests.export import apart
from tests.nn import test_vit_file

pytestmark = pytest.mark.slow
CONFIGS = Path(__file__).parents[2] / "configs"
SHORT = """
import ml_collections
def get_config(variant=''):
    return ml_collections.ConfigDict(dict(
        data=dict(name={data!r}, options={options!r}),
        method={method!r},
        optim=dict(lr=0.01),
        train=dict(steps=6, batch_size=16, eval_every=6, save_every=6, select={select!r}),
        eval=dict(batch_size=16, bootstrap=5, baselines=False, subsets=False, min_patients=2),
    ))
"""
M3H = {"name": "m3h", "width": 4, "task_width": 4, "dropout": 0.0}
M4OE = {"name": "m4oe", "width": 16, "patch": 8, "vit_depth": 1, "modality_experts": 2}
M4OE |= {"fusion_experts": 2, "moe": {"num_experts": 4, "hidden": 16}}
OWN = """
[[rows]]
files = "scans.csv"
subject = "patient"
[labels]
files = "scans.csv"
subject = "patient"
[tasks.ill]
kind = "binary"
column = "ill"
[tasks.stage]
kind = "multiclass"
column = "stage"
classes = ["one", "two", "three"]
[tasks.days]
kind = "regression"
column = "days"
transform = "log1p"
[modalities.xray]
kind = "image"
codes = "file"
size = 16
channels = 3
[modalities.note]
kind = "text"
codes = "note"
min_subjects = 2
length = 6
[modalities.letter]
kind = "text"
codes = "letter"
vocabulary = "hashed"
vocab = 64
length = 5
[modalities.baseline]
kind = "table"
[modalities.baseline.features]
age = { codes = "age", low = 0, high = 120 }
weight = "weight"
"""
WORDS = ["Fever", "cough", "no", "pain", "38.5", "Ödem", "ruhig", "x"]


def frame(count=90):
    rng = np.random.default_rng(0)

    def text(k):
        return " ".join(rng.choice(WORDS, k)) if rng.random() < 0.8 else ""

    return pd.DataFrame({
        "patient": [f"P{i:03d}" for i in range(count)],
        "ill": rng.integers(0, 2, count),
        "stage": rng.choice(["one", "two", "three"], count),
        "days": rng.gamma(2, 3, count).round(2),
        "file": [f"pictures/{i}.png" if rng.random() < 0.7 else "" for i in range(count)],
        "note": [text(1 + i % 8) for i in range(count)],
        "letter": [text(1 + i % 7) for i in range(count)],
        "age": rng.integers(20, 90, count),
        "weight": np.where(rng.random(count) < 0.8, rng.integers(45, 120, count), np.nan),
    })  # fmt: skip


def own_rows(folder, subjects):
    """What the table and the pictures say, as one would give it to a bundle."""
    rows, table = [], frame().set_index("patient")
    for who in subjects:
        own, inputs = table.loc[who], {}
        if own["file"]:
            inputs["xray"] = {"values": [pictures.square(folder / own["file"], 16, 3).tolist()]}
        inputs |= {name: own[name] for name in ("note", "letter") if own[name]}
        inputs["baseline"] = {n: float(own[n]) for n in ("age", "weight") if own[n] == own[n]}
        rows.append({"id": who, "inputs": inputs})
    return rows


def as_row(spec, example, number):
    """An example of a data set's module as a bundle takes it."""
    inputs = {}
    for m in spec.modalities:
        if m.name not in example["inputs"]:
            continue
        payload = {k: np.asarray(v) for k, v in example["inputs"][m.name].items()}
        values = payload["values"]
        if values.dtype.kind == "f":
            values = np.where(np.isnan(values), None, values.astype(object))
        inputs[m.name] = {"values": values.tolist()}
        if "times" in payload and m.kind in ("series", "vectors"):
            inputs[m.name]["times"] = payload["times"].tolist()
        if m.kind in ("codes", "text"):
            inputs[m.name] = values.tolist()
    return {"id": number, "inputs": inputs}


def rows_of(work):
    """The test split as the run's data set makes it."""
    config = json.loads((work / "config.json").read_text())
    module, options = data_sets.find(config["data"]["name"]), config["data"]["options"]
    cohort = module.cohort(None, seed=config["seed"], **options)
    found = [*cohort.splits["test"]()]
    return [as_row(cohort.spec, example, n) for n, example in enumerate(found)]


def train(folder, config, *args, work="run"):
    """A run and its predictions of the test split, task -> f[N, C]; the work directory's path."""
    where = [f"--config.data.dir={folder / 'data'}", f"--config.data.raw_dir={folder}"]
    flags = [f"--workdir={folder / work}", "--trust_code"]
    assert main([f"--config={config}", *flags, *where, *args]) == 0
    assert main([*flags, "--mode=predict"]) == 0
    return folder / work


def predicted(work):
    table = pq.read_table(work / "predictions/test.parquet").to_pandas()
    return table.sort_values("row", kind="stable") if "row" in table else table


def exported(work):
    file = work.parent / f"{work.name}.m4"
    assert export.main([f"--workdir={work}", f"--out={file}", "--trust_code"]) == 0
    return file


def numbers(told):
    """Outputs of a task in order, of what a bundle says of a row."""
    for key in ("probability", "value"):
        if key in told:
            return [told[key]]
    for key in ("probabilities", "values", "event_by"):
        if key in told:
            return [*told[key].values()]
    raise AssertionError(told)


def same(file, rows, table, *, as_trained=True):
    """The bundle says of all rows what the predictions do, where m4 is not."""
    given = file.with_suffix(".json")
    given.write_text(json.dumps({"rows": rows}))
    flags = ["--as_trained"] if as_trained else []
    done = apart.run(file, f"--in={given}", f"--out={file}.out", *flags)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    found = json.loads(Path(f"{file}.out").read_text())["rows"]
    assert len(found) == len(rows) == len(table)
    for task in m4.export.open(file).schema["tasks"]:
        name = task["name"]
        columns = [c for c in table if c == name or c.startswith(f"{name}/")]
        columns = [c for c in columns if not c.endswith(("/label", "/true"))]
        wanted = table[columns].to_numpy(float)
        got = np.array([numbers(row["tasks"][name]) for row in found])
        assert got.shape == wanted.shape, columns
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6, err_msg=name)
        assert len(np.unique(got[:, 0])) > 3, "every row is told the same"


def refuses(file, wrong):
    """Every damaged input is refused in one line, of the wording given."""
    for change, line in wrong:
        row = {"id": "x", "inputs": change}
        given = file.with_suffix(".wrong.json")
        given.write_text(json.dumps({"rows": [row]}))
        done = apart.run(file, f"--in={given}")
        assert done.returncode == 3, done.stderr
        assert done.stderr.count("\n") == 1 and line in done.stderr, done.stderr


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    Image = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("own")
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(1)
    for name in frame()["file"]:
        if name:
            size = rng.integers(14, 30, 2)
            Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / name)
    frame().to_csv(folder / "scans.csv", index=False)
    (folder / "own.toml").write_text(OWN)
    options = {"file": str(folder / "own.toml")}
    select = "ill/auroc"
    text = SHORT.format(data="tables", options=options, method=M4OE, select=select)
    (folder / "c.py").write_text(text)
    return folder


WRONG_OWN = [
    ({"xray": {"values": [[[0, 0, 0]]]}}, "row 1: xray.values: has 3 dimensions, expected 4"),
    ({"xray": {"values": np.zeros((1, 8, 16, 3)).tolist()}}, "expected t x 16 x 16 x 3"),
    ({"xray": {"values": np.full((1, 16, 16, 3), 256).tolist()}}, "xray: must be within 0..255"),
    ({"xray": {"values": np.full((1, 16, 16, 3), 0.5).tolist()}}, "xray: must be whole numbers"),
    ({"note": "a word that nobody wrote"}, "note: 5 tokens outside the vocabulary"),
    ({"note": {"values": 3}}, "row 1: note: must be a list of tokens or ids"),
    ({"letter": [64]}, "row 1: letter: must be within 0..63"),
]


def test_tables_of_ones_own_with_images_and_texts(own):
    work = train(own, own / "c.py")
    table = pd.read_csv(work / "predictions/test-by-subject.csv")
    rows = own_rows(own, table.iloc[:, 0])
    file = exported(work)
    same(file, rows, predicted(work))
    refuses(file, WRONG_OWN)


def test_an_ensemble_of_them(own):
    work = own / "several"
    where = [f"--config.data.dir={own / 'data'}", f"--config.data.raw_dir={own}"]
    flags = [f"--workdir={work}", "--trust_code"]
    assert main([f"--config={own / 'c.py'}", *flags, *where, "--mode=ensemble", "--seeds=0,1"]) == 0
    assert main([*flags, "--mode=predict"]) == 0
    table = pd.read_csv(work / "predictions/test-by-subject.csv")
    file, rows = exported(work), own_rows(own, table.iloc[:, 0])
    assert len(m4.export.open(file).members) == 2
    same(file, rows, predicted(work))
    refuses(file, WRONG_OWN[:3])


VIT = vit_file.ViTSizes(8, 12, 1, 2, patch=8, grid=2, channels=3, pooler=0)


def test_an_image_encoder_from_a_file(tmp_path):
    weights = test_vit_file.weights(VIT)
    safetensors.write(weights, tmp_path / "vit.safetensors")
    options = {"num_patients": 120, "size": 16, "tasks": ("finding", "density")}
    text = SHORT.format(
        data="synthetic_images", options=options, select="finding/auroc",
        method=M4OE,
    )  # fmt: skip
    (tmp_path / "c.py").write_text(text)
    image = [f"--config.image.file={tmp_path / 'vit.safetensors'}", "--config.image.num_heads=2"]
    work = train(tmp_path, tmp_path / "c.py", *image)
    rows = rows_of(work)
    (tmp_path / "vit.safetensors").unlink()  # a bundle needs no such file, nor does export
    file = exported(work)
    same(file, rows, predicted(work))
    name = next(iter(rows[0]["inputs"]))
    refuses(file, [
        ({name: {"values": [[[[0, 0, 0]]]]}}, "expected t x 16 x 16 x 3"),
        ({name: {"values": [[[[None] * 3] * 16] * 16]}}, "768 are not finite"),
        ({name: "view.png"}, "must be an object of values"),
    ])  # fmt: skip


def test_a_text_encoder_from_a_file(tmp_path):
    sizes, rng = bert.BertSizes(11, 6, 9, 8, 12, 1, 2, 0), np.random.default_rng(0)
    weights = {n: rng.normal(size=s).astype(np.float32) for n, s in bert.tables(sizes)[1].items()}
    safetensors.write(weights, tmp_path / "model.safetensors")
    options = {"kind": "text", "rows": 90}
    text = SHORT.format(
        data="tests.interop.cli_data", options=options, method=M3H, select="death/auroc"
    )
    (tmp_path / "c.py").write_text(text)
    encoder = [f"--config.text.file={tmp_path / 'model.safetensors'}", "--config.text.num_heads=2"]
    work = train(tmp_path, tmp_path / "c.py", *encoder, "--config.text.tuning=tuned")
    rows, file = rows_of(work), exported(work)
    same(file, rows, predicted(work))
    refuses(file, [
        ({"note": [11]}, "note: must be within 0..10"),
        ({"note": [*range(10)]}, "note: 1 positions more than the 9 that it has"),
        ({"note": "words"}, "note: must be a list of ids; how text is split is not known here"),
        ({"note": ["words"]}, "note: must be ids; the bundle has no vocabulary of it"),
        ({"note": [1.5]}, "note: must be whole numbers"),
    ])  # fmt: skip


def test_embedded_notes_and_codes(tmp_path):
    work = train(tmp_path, f"{CONFIGS / 'fusemoe_mimic'}.py:tiny")
    rows, file = rows_of(work), exported(work)
    same(file, rows, predicted(work))
    refuses(file, [
        ({"notes": {"values": [[0.0] * 3], "times": [1.0]}}, "notes: values of shape (1, 3)"),
        ({"notes": {"values": [[0.0] * 16], "times": [99.0]}}, "notes: 1 times outside 0..48"),
        ({"notes": {"values": [[0.0] * 16]}}, "notes: must be an object of times, values"),
        ({"medications": [-1]}, "medications: must be within 0..15"),
    ])  # fmt: skip


def test_buckets_of_lengths(tmp_path):
    options = {
        "modalities": ("vitals", "labs", "static", "medications"), "tasks": ("ihm48", "los"),
        "num_patients": 150, "steps": 12, "lab_steps": 6, "rows_per_hour": 0.1,
    }  # fmt: skip
    text = SHORT.format(data="synthetic", options=options, method=M3H, select="ihm48/auroc")
    (tmp_path / "c.py").write_text(text)
    work = train(tmp_path, tmp_path / "c.py", "--config.train.buckets=(3,6)")
    rows, file = rows_of(work), exported(work)
    cuts = m4.export.open(file).schema["programs"][0]["cuts"]
    assert [cut["length"] for cut in cuts] == [3, 6, None]
    same(file, rows, predicted(work))
    refuses(file, [
        ({"vitals": {"times": [*range(13)], "values": [[80.0] * 10] * 13}}, "positions more than"),
        ({"vitals": {"times": [1.0], "values": [[80.0]]}}, "1 variables, expected 10"),
        ({"static": {"values": [1.0]}}, "static: 1 values for"),
    ])  # fmt: skip
