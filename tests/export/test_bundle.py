"""A bundle as its users meet it: made by the command, run where m4 is not, refusing mistakes."""

import copy
import hashlib
import io
import itertools
import json
import os
import shutil
import zipfile

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

import m4
import m4.main
from m4 import seal
from m4.api import loaded
from m4.data.manifest import spec_from
from m4.eval import averages, calibrated, conformal, damage, metrics, scorer
from m4.eval.predictions import Predictions
from m4.eval.questions import ask
from m4.export import Bundle, Refused, __main__, decisions, standalone
from m4.export.standalone import digest_of
from m4.run import beside
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from tests import toy
from tests.export import apart, clinic


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run with patients set aside, its predictions and its bundle; then its data are gone."""
    folder = tmp_path_factory.mktemp("clinic")
    file = folder / "config.py"
    file.write_text(toy.config("tables", clinic.write(folder), "aki/log_loss"))
    where = [f"--config.data.dir={folder / 'data'}", f"--config.data.raw_dir={folder / 'raw'}"]
    where += ["--config.data.calibration=0.3", "--config.eval.min_patients=2"]
    work = f"--workdir={folder / 'run'}"
    assert m4.main.main([f"--config={file}", work, *where]) == 0
    assert m4.main.main([work, "--mode=predict", "--trust_code"]) == 0
    assert __main__.main([work, f"--out={folder / 'model.m4'}", "--trust_code"]) == 0
    loaded = m4.load(folder / "run", trust_code=True)
    assert loaded.export(folder / "again.m4", trust_code=True) == digest_of(folder / "model.m4")
    for gone in (folder / "data", folder / "raw"):
        shutil.rmtree(gone)
    return folder


@pytest.fixture(scope="module")
def model(place):
    return m4.export.open(place / "model.m4")


def predicted(place):
    """Subject -> (probability, days) of `--mode=predict`."""
    found = place / "run/predictions/meds/test"
    aki, los = (pq.read_table(found / f"{name}.parquet").to_pydict() for name in ("aki", "los"))
    values = aki["predicted_boolean_probability"], los["predicted_float_value"]
    return dict(zip(aki["subject_id"], zip(*values, strict=True), strict=True))


def test_the_same_numbers_where_m4_is_not(place):
    known = predicted(place)
    (place / "rows.json").write_text(json.dumps({"rows": clinic.rows(known)}))
    given = f"--in={place / 'rows.json'}", f"--out={place / 'out.json'}"
    done = apart.run(place / "model.m4", *given, "--as_trained")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert not os.stat(place / "out.json").st_mode & 0o077
    found = json.loads((place / "out.json").read_text())["rows"]
    assert [row["id"] for row in found] == [*known]
    pairs = [(r["tasks"]["aki"]["probability"], r["tasks"]["los"]["value"]) for r in found]
    np.testing.assert_allclose(pairs, [*known.values()], rtol=1e-6, atol=1e-6)
    assert len({len(row["present"]) for row in found}) > 1


@pytest.mark.parametrize("count", [1, 3, 17, 65])
def test_any_number_of_rows(place, model, count):
    known = predicted(place)
    rows = [clinic.rows(known)[i % len(known)] for i in range(count)]
    found = [row["tasks"]["aki"]["probability"] for row in model.predict(rows, as_trained=True)]
    wanted = [[*known.values()][i % len(known)][0] for i in range(count)]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


def test_arrays_say_the_same_as_rows(place, model):
    rows = clinic.rows(predicted(place))
    known = model.schema["modalities"]
    rng = np.random.default_rng(0)
    arrays = {"id": np.array([row["id"] for row in rows])}
    for m in known:  # garbage everywhere, until a row has something to say
        name, shape = m["name"], (len(rows), *m["shape"])
        arrays[f"{name}/values"] = rng.integers(0, 5, shape).astype(float)
        if m["kind"] == "table":
            arrays[f"{name}/present"] = np.zeros(len(rows), bool)
            continue
        arrays[f"{name}/mask"] = np.zeros(shape[:2], bool)
        if m["kind"] == "series":
            arrays[f"{name}/times"] = np.full(shape[:2], np.nan)
    by_record = [model.read(row, as_trained=True) for row in rows]
    for n, payloads in enumerate(by_record):
        for name, (values, times) in payloads.items():
            if f"{name}/present" in arrays:
                arrays[f"{name}/present"][n], arrays[f"{name}/values"][n] = True, values
                continue
            arrays[f"{name}/mask"][n, : len(values)] = True
            arrays[f"{name}/values"][n, : len(values)] = values
            if times is not None:
                arrays[f"{name}/times"][n, : len(values)] = times
    pairs = zip(model.predict(rows, as_trained=True), model.predict(arrays), strict=True)
    for one, other in pairs:
        assert {k: one[k] for k in other} == other


def test_what_is_absent_is_absent_in_whatever_way(model):
    row = standalone.example(model.schema)["rows"][0]
    whole = model.predict([row])[0]
    assert whole["present"] == ["labs", "vitals", "baseline", "drugs"]
    inputs = row["inputs"]
    left = {name: value for name, value in inputs.items() if name != "labs"}
    ways = [left, {**inputs, "labs": None}, {**inputs, "labs": {}}]
    ways += [{**inputs, "labs": {"present": False, "values": "garbage", "times": [float("nan")]}}]
    ways += [{**inputs, "labs": {"urea": {"times": [3.0], "values": [None]}}}]
    first, *others = (model.predict([{"id": "invented", "inputs": way}])[0] for way in ways)
    assert first["tasks"] != whole["tasks"] and all(other == first for other in others)
    nothing = model.predict({"inputs": {}})[0]
    assert nothing == {"id": 1, "present": [], "tasks": None}
    both = model.predict([{"inputs": {}}, row])
    assert both[0]["tasks"] is None and both[1]["tasks"] == whole["tasks"]


def test_a_cut_decides_as_it_was_evaluated_where_a_prediction_lies_on_it():
    """The cut is a predicted value, whose seventh digit counts; and a cut of 0 is one."""
    task = TaskSpec("died", "binary")
    spec = DataSpec((ModalitySpec("a", "table", (1,)),), (task,))
    p_N, y_N = np.float32([0.2, 0.31234567, 0.31234567, 0.7]), np.array([0.0, 1, 1, 1])
    for shift in (0.0, p_N[1]):  # the second time the cut is 0
        p_NC = np.maximum(p_N - shift, 0)[:, None]
        label_NL, known_NL, everyone = y_N[:, None], np.ones((4, 1), bool), np.ones((1, 4), bool)
        found = Predictions(
            np.ones((1, 1), bool), np.arange(4), np.arange(4), known_NL, {"died": p_NC[None]},
            {"died": label_NL}, {"died": known_NL}, everyone, {},
        )  # fmt: skip
        chosen = metrics.choose_threshold(label_NL, known_NL, p_NC)
        assert chosen[0] == p_NC[1, 0]
        card = scorer.Scorer(found, spec, task, threshold=chosen).card()
        document = json.loads(json.dumps({"tasks": {"died": card}}))
        one = {"kind": "binary", "labels": ["died"], "needs": [], "transform": ""}
        one |= decisions.cuts(task, document)
        told = [standalone.told(one, row_C, [True], ["a"])["decision"] for row_C in p_NC]
        np.testing.assert_array_equal(told, p_NC[:, 0] >= chosen[0])
    assert decisions.cuts(task, {"tasks": {"died": {"threshold": [None]}}}) == {}


def test_what_goes_with_a_prediction(place, model):
    results = json.loads((place / "run/results/test.json").read_text())
    aki, los = model.schema["tasks"]
    assert aki["threshold"] == results["tasks"]["aki"]["threshold"]
    row = standalone.example(model.schema)
    found = model.predict(row)[0]["tasks"]
    assert found["aki"]["decision"] == (found["aki"]["probability"] >= aki["threshold"][0])
    assert {*found["aki"]["set"]} <= {"no aki", "aki"}
    low, high = found["los"]["interval"]
    assert found["los"]["value"] == pytest.approx((low + high) / 2) and low < high
    assert los["conformal"][0]["alpha"] == 0.1
    assert model.card["tested"]["tasks"]["aki"]["auroc"] == results["scores"][0]["metrics"]["auroc"]
    assert "Creatinine \\| doubled &lt;within>" in model.card_text
    content = model.path.read_bytes()
    assert not any(f"P{n:03d}".encode() in content for n in range(90))
    assert str(place.parent).encode() not in content and b"/m4/" not in content  # no place either


def evaluated(place, to, *, alpha, tried, **more):
    """A copy of the run as another evaluation would leave it: thresholds, and results."""
    shutil.copytree(place / "run", to)
    known = json.loads((to / "calibration.json").read_text()) | {"alpha": alpha}
    for rule in (rule for rules in known["tasks"].values() for rule in rules):
        rule["alpha"] = alpha
    (to / "calibration.json").write_text(json.dumps(seal.sealed(known)))
    results = json.loads((to / "results/test.json").read_text()) | more
    results["conformal"]["alpha"] = tried
    seal.write(to, "results/test.json", json.dumps(results))
    return to


def test_the_alpha_that_was_evaluated_is_exported(place, tmp_path, capsys):
    run = evaluated(place, tmp_path / "run", alpha=0.2, tried=0.2)
    args = [f"--workdir={run}", f"--out={tmp_path / 'x.m4'}", "--trust_code"]
    assert __main__.main([*args, "--platforms=cpu"]) == 0  # whose data are gone
    bundle = m4.export.open(tmp_path / "x.m4")
    sets = [task["conformal"][0]["alpha"] for task in bundle.schema["tasks"]]
    assert sets == [0.2, 0.2] and bundle.card["tested"]["conformal"]["alpha"] == 0.2
    model = m4.load(run, trust_code=True)
    with pytest.warns(UserWarning, match="is of eval.alpha=0.2; --config.eval.alpha=0.2 takes"):
        found = model.predict(_frames([*predicted(place)]), frame="pandas")
    assert "set/aki" not in found.columns
    other = evaluated(place, tmp_path / "other", alpha=0.2, tried=0.1)
    assert __main__.main([f"--workdir={other}", *args[1:]]) == 2
    assert "eval.alpha=0.2, results/test.json of 0.1; --mode=eval" in capsys.readouterr().err


def test_scores_of_data_made_to_lack_more_are_not_the_models(place, tmp_path, capsys):
    lacking = {"kind": "mcar", "rate": 0.5}
    run = evaluated(place, tmp_path / "run", alpha=0.1, tried=0.1, missing=lacking)
    args = [f"--workdir={run}", f"--out={tmp_path / 'x.m4'}", "--trust_code"]
    assert __main__.main(args) == 2 and not (tmp_path / "x.m4").exists()
    said = capsys.readouterr().err
    assert "evaluate again without eval.missing" in said and said.count("\n") == 1


def test_scores_and_cuts_of_other_parameters_are_not_exported(place, tmp_path, capsys):
    known = json.loads((place / "run/results/test.json").read_text())["parameters"]
    before = ["1 those_of_before"]  # as of a run that was trained on, and killed before its test
    run = evaluated(place, tmp_path / "run", alpha=0.1, tried=0.1, parameters=before)
    args = [f"--workdir={run}", f"--out={tmp_path / 'x.m4'}", "--trust_code", "--platforms=cpu"]
    assert __main__.main(args) == 0
    said = capsys.readouterr()
    assert "results/test.json is of other parameters, so it is not taken" in said.out + said.err
    bundle = m4.export.open(tmp_path / "x.m4")
    assert not bundle.card["tested"]
    assert not any("threshold" in task for task in bundle.schema["tasks"])
    spec = spec_from(json.loads((run / "data.json").read_text())["schema"])
    assert loaded._thresholds(run, spec, {}) == {}
    assert [line for line in damage.lines(run) if "is of other parameters than those" in line]
    results = json.loads((run / "results/test.json").read_text())
    assert results["parameters"] == before and damage.lines(place / "run") == []
    del results["parameters"]  # of an older version, which is believed
    seal.write(run, "results/test.json", json.dumps(results))
    assert not any("of other" in line for line in damage.lines(run))
    assert "aki" in loaded._thresholds(run, spec, {})
    assert decisions.results(run) == results
    assert known == beside.parameters(run)


def test_the_same_sets_stand_beside_the_predictions_of_the_run(place, model):
    table = pq.read_table(place / "run/predictions/test.parquet").to_pydict()
    who = pq.read_table(place / "run/predictions/meds/test/aki.parquet")["subject_id"].to_pylist()
    there = (place / "run/predictions/test-by-subject.csv").read_text().splitlines()
    assert there[0].endswith(",set/aki,low/los,high/los")
    told = m4.load(place / "run", trust_code=True).predict(_frames(who), frame="pandas")
    told = told.set_index("patient")
    for n, one in enumerate(model.predict(clinic.rows(who), as_trained=True)):
        aki, los = one["tasks"]["aki"], one["tasks"]["los"]
        assert table["set/aki"][n] == aki["set"] == [*told.loc[who[n], "set/aki"]]
        assert there[n + 1].split(",")[-3] == f"{{{' | '.join(aki['set'])}}}"
        for end, wanted in zip(("low/los", "high/los"), los["interval"], strict=True):
            assert table[end][n] == pytest.approx(wanted, rel=1e-5, abs=1e-5)
            assert told.loc[who[n], end] == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def _frames(who):
    events, outcomes = clinic.tables()
    frames = {"events": events, "outcomes": outcomes}
    return {name: frame[frame["patient"].isin(who)] for name, frame in frames.items()}


def wrong(**changes):
    """The invented row with parts of its inputs replaced."""
    return {"id": "x", "inputs": changes}


SERIES = {"times": [1.0], "values": [80.0]}
WRONG = [
    ([], "rows: must be a list of at least one row"),
    ({"row": []}, 'rows: must be a list of rows, {"rows": [...]} or one row'),
    ([1], 'row 1: must be {"id": ..., "inputs": {modality: ...}}'),
    ([{"inputs": {}, "label": 1}], "row 1: 'label' is none of id, inputs"),
    ([{"inputs": {}, "id": [1]}], "row 1: id must be a text or a whole number"),
    ([wrong(lab={})], "row 1: 'lab' is no modality; there are labs, vitals, baseline, drugs"),
    ([wrong(labs=[1])], "row 1: labs: must be an object of times and values"),
    ([wrong(labs={"Urea": SERIES})],
     "row 1: labs: 'Urea' is no variable; there are creatinine, urea"),
    ([wrong(labs={"urea": [1]})],
     'row 1: labs.urea: must be {"times": [...], "values": [...]}'),
    ([wrong(labs={"urea": {"times": [1, 2], "values": [1]}})],
     "row 1: labs.urea: 1 values at 2 times"),
    ([wrong(labs={"urea": {"times": [None], "values": [1]}})],
     "row 1: labs.urea.times: 1 are not finite"),
    ([wrong(labs={"urea": {"times": [1], "values": ["high"]}})],
     "row 1: labs.urea.values: must be numbers"),
    ([wrong(labs={"urea": {"times": [1], "values": [1e400]}})],
     "row 1: labs.urea.values: 1 are not finite"),
    ([wrong(labs={"urea": {"times": [25], "values": [1]}})],
     "row 1: labs.urea: 1 times outside 0..24 hours; --as_trained drops them"),
    ([wrong(labs={"creatinine": {"times": [1, 2], "values": [88, 90]}})],
     "row 1: labs.creatinine: 2 values outside 0..20 mg/dl; --as_trained drops them"),
    ([wrong(labs={"urea": {"times": [*range(7)], "values": [1] * 7}})],
     "row 1: labs: 1 positions more than the 6 that it has; --as_trained drops them"),
    ([wrong(labs={"times": [1], "values": [[1]]})], "row 1: labs.values: 1 variables, expected 2"),
    ([wrong(labs={"times": [1], "values": [[1, 2], [3]]})],
     "row 1: labs.values: must be numbers, in lists of the same length"),
    ([wrong(labs={"times": [1], "values": [[1, 1e39]]})],
     "row 1: labs: 1 values are too large"),
    ([wrong(baseline={"age": 50, "sex": 1})],
     "row 1: baseline: 'sex' is no variable; there are age, weight"),
    ([wrong(baseline={"age": 500})],
     "row 1: baseline.age: 1 values outside 0..120; --as_trained drops them"),
    ([wrong(baseline={"age": "50"})], "row 1: baseline.age: must be numbers"),
    ([wrong(drugs=["DRUG//aspirin"])],
     "row 1: drugs: 1 tokens outside the vocabulary; --as_trained drops them"),
    ([wrong(drugs=[8])], "row 1: drugs: must be within 0..7"),
    ([wrong(drugs=[1.5])], "row 1: drugs: must be whole numbers"),
    ([wrong(drugs="heparin")],
     "row 1: drugs: must be a list of ids; how text is split is not known here"),
    ({"labs/values": np.zeros((2, 6, 2)), "labs/mask": np.ones((2, 6), bool), "x": np.zeros(2)},
     "'x': is no array of the schema; see --schema"),
    ({"labs/values": np.zeros((2, 6, 2)), "baseline/values": np.zeros((3, 2))},
     "arrays: of [2, 3] rows; all need the same number, at least 1"),
    ({"labs/values": np.zeros((1, 6, 2)), "labs/mask": np.ones((1, 6))},
     "row 1: labs/mask: must be of bool"),
    ({"labs/values": np.zeros((1, 6, 2)), "labs/mask": np.ones((1, 5), bool)},
     "row 1: labs: values, mask and times must have the same number of positions"),
    ({"drugs/values": np.zeros((1, 5), object), "id": np.array([1])},
     "'drugs/values': must be of numbers"),
    ({"baseline/values": np.array([["a", "b"]]), "baseline/observed": np.ones((1, 2), bool)},
     "'baseline/values': must be of numbers"),
    ({"baseline/values": np.ones((1, 2), complex)}, "'baseline/values': must be of numbers"),
    ({"baseline/values": np.ones((2, 2)), "id": np.ones((2, 2))},
     "'id': must have the dimension of rows alone"),
    ({"baseline/values": np.ones((1, 2)), "baseline/present": np.ones((1, 2), bool)},
     "'baseline/present': must have the dimension of rows alone"),
    *(([wrong(baseline={"age": 50, "present": said})],
       "row 1: baseline/present: must be true or false") for said in (0, 1, "false", None)),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "line"), WRONG, ids=range(len(WRONG)))
def test_what_the_schema_does_not_know_is_refused_in_one_line(model, rows, line):
    before = copy.deepcopy(rows)
    with pytest.raises(Refused) as error:
        model.predict(rows)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)
    assert len(str(error.value)) < len(line) + 40
    assert str(before) == str(rows)


def test_the_ends_of_a_range_are_inside_however_rounded(model):
    ends = {
        "times": [1, 2, 24],
        "values": [0, float(np.nextafter(np.float32(20), np.float32(30))), 20],
    }
    (found,) = model.predict([wrong(labs={"creatinine": ends})])
    assert found["present"] == ["labs"]


def test_as_trained_counts_what_it_drops(model):
    row = wrong(labs={"creatinine": {"times": [1, 2, 30], "values": [88, 1, 1]}}, drugs=["DRUG//z"])
    (found,) = model.predict([row], as_trained=True)
    assert found["notes"] == {
        "labs.creatinine: values outside 0..20 mg/dl, dropped": 1,
        "labs.creatinine: times outside 0..24 hours, dropped": 1,
        "drugs: tokens outside the vocabulary, dropped": 1,
    }
    kept = wrong(labs={"creatinine": {"times": [2], "values": [1]}}, drugs=[0])
    assert found["tasks"] == model.predict(kept)[0]["tasks"]


FILES = [
    (b"{", "is no JSON, nor an .npz file of plain arrays"),
    (b'{"rows": [{"inputs": {"labs": NaN}}]}', "NaN is no number of JSON"),
    (b'{"rows": [{"inputs": {}, "inputs": {}}]}', "'inputs' is there twice in one object"),
    (b"[" * 100_000, "is no JSON, nor an .npz file of plain arrays"),
]


@pytest.mark.parametrize(("content", "line"), FILES, ids=range(len(FILES)))
def test_files_that_are_no_rows(place, capsys, content, line):
    file = place / "wrong.json"
    file.write_bytes(content)
    assert standalone.main(str(place / "model.m4"), [f"--in={file}"]) == 3
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1


def test_an_array_file_with_a_pickle_is_not_loaded(place, capsys):
    evil: dict = {"labs/values": np.array([[print]], object)}
    np.savez(place / "evil.npz", **evil)
    assert standalone.main(str(place / "model.m4"), [f"--in={place / 'evil.npz'}"]) == 3
    assert capsys.readouterr().err.count("\n") == 1


def _damaged(kind):
    """An .npz file that is none, by how."""
    whole = io.BytesIO()
    np.savez_compressed(whole, x=np.arange(1000))
    content = whole.getvalue()
    if kind == "npy":
        alone = io.BytesIO()
        np.save(alone, np.arange(3))
        return alone.getvalue()
    if kind == "empty":
        return b""
    if kind == "deflate":
        return content[:80] + bytes(60) + content[140:]
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as file:
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }"
        head = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
        file.writestr("x.npy", head)
    return other.getvalue()


@pytest.mark.parametrize("kind", ["npy", "empty", "deflate", "endless"])
def test_array_files_that_are_none_are_refused(tmp_path, kind):
    (tmp_path / "x.npz").write_bytes(_damaged(kind))
    with pytest.raises(standalone.Refused):
        standalone.read(str(tmp_path / "x.npz"))


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(standalone.Refused, match="cannot be written"):
        standalone.write(str(tmp_path / "out"), "predictions")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_single_changed_byte_is_refused(place):
    whole = (place / "model.m4").read_bytes()
    rng = np.random.default_rng(0)
    file = place / "damaged.m4"
    places = [0, 10, 100, len(whole) - 1, len(whole) - 64, len(whole) - 70]
    for at in [*places, *rng.integers(0, len(whole), 40)]:
        content = bytearray(whole)
        content[at] ^= 1 << int(rng.integers(8))
        file.write_bytes(content)
        with pytest.raises(Refused, match=r"is damaged; take another copy|is no bundle of m4"):
            Bundle(file)
    for cut in (whole[:-1], whole[: len(whole) // 2], b"", b"PK"):
        file.write_bytes(cut)
        with pytest.raises(Refused):
            Bundle(file)
    content = bytearray(whole)
    with zipfile.ZipFile(place / "model.m4") as known:
        content[known.getinfo("member_0.bin").header_offset + 50] ^= 1
    file.write_bytes(content)
    done = apart.run(file, "--card")
    assert done.returncode == 4 and "is damaged; take another copy" in done.stderr
    with pytest.raises(Refused, match="is another bundle than the one asked for"):
        Bundle(place / "model.m4", digest="0" * 64)
    assert Bundle(place / "model.m4", digest=digest_of(place / "model.m4").upper())


def test_a_program_that_leaves_the_device_is_refused():
    spied = jax.jit(lambda x: jax.pure_callback(lambda y: y, x, x) + 1)
    text = spied.lower(np.float32(1)).as_text()
    with pytest.raises(Refused, match="calls what is not StableHLO"):
        standalone.require_pure(text)
    standalone.require_pure(jax.jit(lambda x: x + 1).lower(np.float32(1)).as_text())


def test_two_members_are_averaged_in_log_odds(place, model):
    twice = standalone.averaged({"kind": "binary"}, np.array([[[0.2]], [[0.8]]]))
    assert twice == pytest.approx(0.5) and twice.dtype == np.float32
    classes = standalone.averaged({"kind": "multiclass"}, np.array([[[0.9, 0.1]], [[0.5, 0.5]]]))
    assert classes.sum() == pytest.approx(1) and classes[0, 0] == pytest.approx(0.75)
    days = {"kind": "regression", "transform": "log1p"}
    assert standalone.averaged(days, np.array([[[0.0]], [[3.0]]])) == pytest.approx(1.0)


def test_an_ensemble_is_averaged_as_m4_does(place, tmp_path):
    """Two members of one run's parameters, of which one is changed, against `averages.mean_of`."""
    content = place / "model.m4"
    with zipfile.ZipFile(content) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    schema = json.loads(parts["schema.json"])
    schema["members"].append({**schema["members"][0], "file": "member_1.bin"})
    parts["schema.json"] = json.dumps(schema).encode()
    parts["member_1.bin"] = (2 * np.frombuffer(parts["member_0.bin"], np.float32)).tobytes()
    both = sealed(tmp_path / "both.m4", parts)
    parts["member_0.bin"] = parts["member_1.bin"]
    other = sealed(tmp_path / "other.m4", parts)
    rows = clinic.rows(predicted(place))
    one, two, mean = (
        [row["tasks"]["aki"]["probability"] for row in Bundle(path).predict(rows, as_trained=True)]
        for path in (content, other, both)
    )
    wanted = averages.mean_of(TaskSpec("aki", "binary"), np.array([one, two]))
    np.testing.assert_allclose(mean, wanted, rtol=1e-6)
    assert not np.allclose(one, two)


def sealed(path, parts):
    with zipfile.ZipFile(path, "w") as file:
        for name, part in parts.items():
            file.writestr(name, part)
        file.comment = standalone.MARK + b"0" * 64
    body = path.read_bytes()[:-64]
    path.write_bytes(body + hashlib.sha256(body).hexdigest().encode())
    return path


def test_thresholds_back_off_as_those_of_the_evaluation():
    rng = np.random.default_rng(0)
    present_NM = rng.random((400, 4)) < [0.9, 0.6, 0.3, 0.5]
    truth_N = rng.integers(0, 2, 400)
    p_N = 1 / (1 + np.exp(-rng.normal(truth_N + present_NM[:, 1], 1)))
    spec = DataSpec(
        tuple(ModalitySpec(f"m{i}", "table", (1,)) for i in range(4)), (TaskSpec("y", "binary"),)
    )
    found = Predictions(
        subsets=np.ones((1, 4), bool), uid=np.arange(400), patient=np.arange(400) // 2,
        present=present_NM, prediction={"y": p_N[None, :, None].astype(np.float32)},
        label={"y": truth_N[:, None].astype(float)}, label_mask={"y": np.ones((400, 1), bool)},
        counted=np.ones((1, 400), bool), routing={},
    )  # fmt: skip
    levels = calibrated.rules(found, spec, 0.1)["y"][0]["levels"]
    (question,) = ask(found, spec, spec.tasks[0])
    sample, smallest = question.sample(found), conformal.smallest_cell(0.1)
    rule = conformal.fit(sample, alpha=0.1, by_pattern=True, by_class=True, smallest=smallest)
    patterns = np.array([*itertools.product([False, True], repeat=4)])
    wanted, _, cell = rule.cells(patterns)
    assert len(np.unique(cell)) > 8  # both cells of their own and those of fewer modalities
    got = [[standalone.limit(levels, k, present_M) for k in (0, 1)] for present_M in patterns]
    np.testing.assert_array_equal(got, wanted)


def test_the_command_says_what_it_cannot_do(place, capsys):
    for args, line in (
        ([], "--workdir: is missing; see --help"),
        ([f"--workdir={place}", "--out=x.m4"], "holds no run (no config.json)"),
        ([f"--workdir={place / 'run'}", "--out=/nowhere/x.m4"], "a folder that is there"),
        ([f"--workdir={place / 'run'}", "--out=x", "--platforms=abacus"], "must be of cpu"),
        (["--workdir=gs://b/r", "--out=x"], "must be a local path"),
        (["--frobnicate"], "frobnicate: unknown; see --help"),
    ):
        assert __main__.main(args) == 2
        said = capsys.readouterr().err
        assert line in said and "Traceback" not in said
    assert __main__.main(["--help"]) == 0 and "usage" in capsys.readouterr().out
    assert standalone.main(str(place / "model.m4"), ["--help"]) == 0
    assert standalone.main(str(place / "model.m4"), ["--out=x"]) == 2
    assert standalone.main(str(place / "model.m4"), ["--in=/nowhere.json"]) == 3
