"""The library as a user calls it: frames in, frames out, folders, scores, explanations."""

import itertools
import math
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import tomllib
import uuid
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import m4
from m4.api import contributions, frames, handed
from m4.data import temporary
from m4.data.sets.declared import parse
from m4.main import main
from m4.run.workspace import trained_on
from tests.api import ward
from tests.data.test_temporary import DEAD, left


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("library")


@pytest.fixture(scope="module")
def fitted(place):
    return ward.fit(place)


@pytest.fixture(scope="module")
def model(place, fitted):
    """The model of the work directory alone: its data, built and raw, are gone."""
    for gone in (place / "data", place / "w" / "frames", place / "ward.toml"):
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    return m4.load(place / "w")


def test_importing_it_is_cheap_and_lazy():
    code = "import sys, m4; print({'jax', 'numpy', 'flax', 'pyarrow'} & {*sys.modules}, m4.load)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("set() <function load")
    assert {"fit", "load", "data", "moe", "Model"} <= {*dir(m4)}
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = m4.moe.train


def test_what_fit_leaves_is_for_its_owner_only(place, fitted, capsys):
    assert repr(fitted).endswith("labs, baseline -> aki, los>")
    for path in (place / "w").rglob("*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    (place / "ward.toml").rename(place / "away.toml")  # as from a folder to which it is relative
    assert len(m4.load(place / "w").predict()) > 0
    assert main(["predict", f"--workdir={place / 'w'}"]) == 0
    assert trained_on(fitted.config, place / "w").name == fitted._known.manifest["fingerprint"]
    (place / "data").rename(place / "away")
    assert main(["eval", f"--workdir={place / 'w'}"]) == 2
    (place / "away").rename(place / "data")
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"{place / 'w'}: the data trained on are not in {place / 'data/tables/'}" in last
    (place / "away.toml").rename(place / "ward.toml")
    before = os.umask(0o022)
    try:
        again = m4.fit(ward.config(place / "ward.toml", place / "data"), workdir=place / "w",
                       frames=ward.tables(), quiet=True)  # fmt: skip
        assert os.umask(0o022) == 0o022  # the process has its own again
    finally:
        os.umask(before)
    assert again.predict(ward.tables()).equals(fitted.predict(ward.tables()))


def test_scores_of_subjects_trained_on_are_told(fitted):
    given = ward.tables()
    rows = fitted._known.manifest["splits"]
    seen = rows["train"]["rows"] + rows["val"]["rows"]  # one row each
    with pytest.warns(UserWarning, match=f"^{seen} of 90 records have the identifier of a train"):
        fitted.evaluate(given)
    fitted.evaluate()


def test_frames_that_are_refused_leave_those_of_the_run(place, fitted):
    whole = ward.config(place / "ward.toml", place / "data")

    def kept(folder):
        found = sorted(path for path in (folder / "w").rglob("frames*/**/*") if path.is_file())
        return {path.relative_to(folder): path.read_bytes() for path in found}

    before = kept(place)
    assert len(before) == 3
    with pytest.raises(m4.errors.CheckpointError, match="choose another --workdir"):
        m4.fit(whole, workdir=place / "w", frames=ward.tables(seed=5), quiet=True)
    assert kept(place) == before
    with pytest.raises(m4.errors.ConfigError, match="another configuration"):
        m4.fit(whole, workdir=place / "w", frames=ward.tables(seed=5), quiet=True,
               set={"optim.lr": 0.5})  # fmt: skip
    assert kept(place) == before
    unreadable = place / "unreadable"  # a run of which no step is left, that is begun elsewhere
    shutil.copytree(place / "w", unreadable / "w")
    shutil.rmtree(unreadable / "w" / "checkpoints")
    frames_of = kept(unreadable)
    with pytest.raises(m4.errors.ConfigError, match=r"train\.from=.*no such folder"):
        m4.fit(whole, workdir=unreadable / "w", frames=ward.tables(seed=5), quiet=True,
               set={"train.from": str(place / "nowhere")}, force="config, program")  # fmt: skip
    assert kept(unreadable) == frames_of
    with pytest.raises(m4.errors.ConfigError, match="force: 'confg' is none of config, program"):
        m4.fit(whole, workdir=place / "w", force="confg", quiet=True)
    with pytest.raises(m4.errors.ConfigError, match=r"train\.select"):
        m4.fit(whole, workdir=place / "other" / "w", frames=ward.tables(), quiet=True,
               set={"train.select": "aki/aurocc"})  # fmt: skip
    assert not kept(place / "other")


def test_frames_and_the_files_they_came_from_are_predicted_alike(model, tmp_path):
    given = ward.tables(40, seed=1, first=500)
    folder = ward.write(tmp_path, given)
    found, files = model.predict(given), model.predict(folder)
    assert list(found) == ["patient", "asked_at", "aki", "los"]
    assert found["patient"].tolist() == given["outcomes"]["patient"].tolist()
    assert isinstance(files, pa.Table)
    files = files.to_pandas().set_index("subject_id").loc[found["patient"]]
    for task in ("aki", "los"):
        np.testing.assert_allclose(found[task], files[task], rtol=1e-6)
    assert found["aki"].between(0, 1).all() and found["aki"].nunique() > 30


def test_records_lie_in_the_work_directory_while_they_are_needed(model, monkeypatch, tmp_path):
    """What killed predictions left there goes; nothing lies among everybody's temporary files."""
    given, seen = ward.tables(20, seed=1, first=500), []
    whole = type(model).read

    def read(self, new, place, **kwargs):
        seen.append(place)
        return whole(self, new, place, **kwargs)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(type(model), "read", read)
    dead = left(model.workdir, DEAD, prefix=temporary.BESIDE)
    before = {*model.workdir.iterdir()} - {dead}
    model.predict(given)
    assert seen[0].parent.parent == model.workdir and not dead.exists()
    assert {*model.workdir.iterdir()} == before and [*tmp_path.iterdir()] == []


def test_the_frame_that_comes_back_is_of_the_kind_that_went_in(model):
    given = ward.tables(40, seed=1, first=500)
    expected = model.predict(given)
    polars = model.predict({name: pl.from_pandas(frame) for name, frame in given.items()})
    arrow = model.predict({name: pa.table(pl.from_pandas(f)) for name, f in given.items()})
    assert isinstance(polars, pl.DataFrame) and isinstance(arrow, pa.Table)
    for found in (polars.to_pandas(), arrow.to_pandas(), model.predict(given, frame="polars")):
        np.testing.assert_allclose(found["aki"], expected["aki"], rtol=1e-6)
    with pytest.raises(m4.errors.ConfigError, match="must be one of pandas, polars, arrow"):
        model.predict(given, frame="pandsa")


def test_answers_come_in_the_order_of_the_questions(model):
    given = ward.tables(40, seed=1, first=500)
    expected = model.predict(given).set_index("patient")
    outcomes = given.pop("outcomes")
    asked = outcomes[["patient", "asked_at"]].iloc[[7, 3, 3, 21]]
    nobody = pd.DataFrame({"patient": ["nobody"], "asked_at": ["2100-01-01 08:00:00"]})
    found = model.predict(given, points=pd.concat([asked, nobody]))
    assert found["patient"].tolist() == [*asked["patient"], "nobody"]
    np.testing.assert_allclose(found["aki"][:4], expected.loc[asked["patient"], "aki"], rtol=1e-6)
    assert math.isnan(found["aki"][4])  # of whom there is nothing to predict from


@pytest.mark.parametrize("zone", [None, "Europe/Berlin", "+02:00"])
def test_times_come_back_in_the_zone_in_which_they_were_asked(model, zone):
    given = ward.tables(9, seed=1, first=500)
    expected = model.predict(given)["aki"]
    for name, column in (("measurements", "charted"), ("outcomes", "asked_at")):
        times = pd.to_datetime(given[name][column])
        if zone == "+02:00":
            times = times.dt.strftime("%Y-%m-%dT%H:%M:%S+02:00")
        elif zone:
            times = times.dt.tz_localize(zone)
        given[name][column] = times
    found = model.predict(given)
    np.testing.assert_allclose(found["aki"], expected, rtol=1e-6)
    asked = pd.to_datetime(given["outcomes"]["asked_at"], utc=bool(zone))
    assert (pd.to_datetime(found["asked_at"], utc=bool(zone)) == asked).all()
    kept = {None: None, "+02:00": "UTC"}.get(zone, zone)
    assert (None if found["asked_at"].dt.tz is None else str(found["asked_at"].dt.tz)) == kept


def test_identifiers_may_be_numbers_and_words(model):
    given = ward.tables(9, seed=1, first=500)
    expected = model.predict(given)["aki"]
    names = dict(zip(given["patients"]["patient"], ["W001", *map(str, range(12, 20))], strict=True))
    named = {k: frame.assign(patient=frame["patient"].replace(names)) for k, frame in given.items()}
    found = model.predict(named)
    assert found["patient"].tolist() == [*names.values()]
    np.testing.assert_allclose(found["aki"], expected, rtol=1e-6)


def test_with_nothing_to_predict_from_the_prediction_is_missing(model):
    given = ward.tables(9, seed=1, first=500)
    asked = given.pop("outcomes")[["patient", "asked_at"]].iloc[:2].assign(patient=["x", "y"])
    with pytest.warns(UserWarning):
        found = model.predict(given, points=asked)
    assert found["patient"].tolist() == ["x", "y"] and found[["aki", "los"]].isna().all(axis=None)
    with pytest.warns(UserWarning):
        why = model.explain(given, points=asked)
    assert len(why) == 0 and {"patient", "output", "contribution"} <= {*why}


def test_everybody_is_in_any_of_the_frames(tmp_path):
    content = tomllib.loads(ward.DEFINITION.replace('time = "asked_at"', ""))
    definition = parse.parse(content, "ward.toml", meds=False)
    given = ward.tables(3)
    given["patients"]["patient"] = ["7", "8", "8"]
    given["measurements"] = given["measurements"].assign(patient=range(8, 26))
    del given["outcomes"]
    handed.write(tmp_path, definition, given)
    found = pq.read_table(tmp_path / "points.parquet")["patient"].to_pylist()
    assert sorted(found) == [*range(7, 26)]


def test_columns_of_other_kinds_are_named_or_left_out(model):
    given = ward.tables(9, seed=1, first=500)
    expected = model.predict(given)["aki"]
    count, many = len(given["patients"]), len(given["measurements"])
    others = {
        "interval": lambda n: pd.interval_range(0, n, n),
        "bytes": lambda n: [b"\xff"] * n,
        "uuid": lambda n: [uuid.UUID(int=i) for i in range(n)],
        "list": lambda n: [[1]] * n,
    }
    for name, make in others.items():
        unread = given | {"measurements": given["measurements"].assign(**{name: make(many)})}
        np.testing.assert_array_equal(model.predict(unread)["aki"], expected)
        with pytest.raises(m4.errors.DataError, match=f"frame 'patients': column '{name}'"):
            model.predict(given | {"patients": given["patients"].assign(**{name: make(count)})})


def test_one_frame_is_enough_and_the_others_are_absent(model):
    given = ward.tables(40, seed=1, first=500)
    points = given["outcomes"][["patient", "asked_at"]]
    with pytest.warns(UserWarning, match="labs: in 0 of 40 records"):
        found = model.predict(given["patients"], points=points)
    why = model.explain(given).query("output == 'aki' and modality == 'baseline'")
    assert len(found) == 40 and len(why) == 40
    indexed = given["patients"].set_index("patient")
    timed = given["patients"].assign(asked_at="2100-01-01 08:00:00")
    for same in (indexed, timed):
        with pytest.warns(UserWarning, match="labs: in 0 of"):
            again = model.predict(same, points=None if same is timed else points)
        np.testing.assert_array_equal(again["aki"], found["aki"])


def test_scores_are_those_of_scikit_learn(model):
    metrics = pytest.importorskip("sklearn.metrics")
    given = ward.tables(60, seed=2, first=700)
    found, scores = model.predict(given), model.evaluate(given)
    expected = metrics.roc_auc_score(given["outcomes"]["aki"], found["aki"])
    assert scores["aki"]["auroc"]["value"] == pytest.approx(expected, abs=1e-4)
    mae = np.abs(given["outcomes"]["los"] - found["los"]).mean()
    assert scores["los"]["mae"]["value"] == pytest.approx(mae, rel=1e-3)
    del given["outcomes"]
    with pytest.raises(m4.errors.DataError, match=r"none has the labels \(outcomes\)"):
        model.evaluate(given)


def test_contributions_add_up_to_the_prediction(model):
    given = ward.tables(40, seed=1, first=500)
    found, why = model.predict(given).set_index("patient"), model.explain(given)
    assert len(why) == 40 * 2 * 2
    for (patient, output), rows in why.groupby(["patient", "output"]):
        total = rows["baseline"].iloc[0] + rows["contribution"].sum()
        assert total == pytest.approx(found.loc[patient, output], rel=1e-4, abs=1e-5)
    assert why["baseline"].groupby(why["output"]).nunique().tolist() == [1, 1]


def test_shapley_values_by_their_definition():
    rng = np.random.default_rng(0)
    for count in (1, 3, 4):
        keep_SM = contributions.subsets(count)
        value_SNC = rng.normal(size=(2**count, 2, 1))
        place = {tuple(map(bool, keep)): s for s, keep in enumerate(keep_SM)}
        expected = np.zeros((2, count, 1))
        for order in itertools.permutations(range(count)):
            kept = [False] * count
            for m in order:
                before = place[tuple(kept)]
                kept[m] = True
                expected[:, m] += value_SNC[place[tuple(kept)]] - value_SNC[before]
        found = contributions.shapley(value_SNC, keep_SM)
        np.testing.assert_allclose(found, expected / math.factorial(count), atol=1e-12)
    keep_SM = contributions.subsets(11)  # too many: drawn, exact where the game is additive
    worth_M = rng.normal(size=11)
    found = contributions.shapley((keep_SM @ worth_M)[:, None, None], keep_SM)
    np.testing.assert_allclose(found[0, :, 0], worth_M, atol=1e-9)
    assert keep_SM[0].all() and not keep_SM[-1].any()


def test_the_meds_files_of_predictions(model, tmp_path):
    given = ward.tables(40, seed=1, first=500)
    found = model.predict(given, to=tmp_path / "out")
    rows = pq.read_table(tmp_path / "out/aki.parquet").to_pandas().set_index("subject_id")
    assert stat.S_IMODE((tmp_path / "out/aki.parquet").stat().st_mode) == 0o600
    np.testing.assert_allclose(
        rows.loc[found["patient"], "predicted_boolean_probability"], found["aki"], rtol=1e-6
    )


def _without(frame, column):
    return ward.tables(20)[frame].drop(columns=column)


REFUSED = {
    "unknown name": (lambda: {"patient": ward.tables(9)["patients"]}, "did you mean 'patients'"),
    "no column": (
        lambda: {"measurements": _without("measurements", "charted")},
        "frame 'measurements': has no column 'charted'",
    ),
    "of no file": (lambda: pd.DataFrame({"x": [1]}), "has the columns of no file"),
    "no question": (lambda: ward.tables(9)["patients"], "'patient' and 'asked_at'"),
    "no frame": (lambda: {"patients": [1, 2]}, "frame 'patients': list is no frame"),
    "number": (lambda: 7, "frame: int is no frame"),
    "mixed": (
        lambda: {"patients": pd.DataFrame({"patient": ["P1", 2], "age": [1, 2]})},
        "column 'patient' holds values of several types",
    ),
    "no time": (
        lambda: ward.tables(9) | {"outcomes": ward.tables(9)["outcomes"].assign(asked_at="soon")},
        "outcomes.csv, row 1: 'asked_at' is not a time",
    ),
    "no folder": (lambda: "/nowhere/at/all", "/nowhere/at/all: no such folder"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_frame_and_quote_no_value(model, name):
    make, expected = REFUSED[name]
    with pytest.raises(m4.errors.UserError) as caught:
        model.predict(make())
    assert expected in str(caught.value) and len(caught.value.args) == 1
    assert "soon" not in str(caught.value) and "/tmp/" not in str(caught.value)


def test_load_says_what_is_wrong_with_a_folder(tmp_path, place):
    with pytest.raises(m4.errors.ConfigError, match="no such work directory"):
        m4.load(tmp_path / "w")
    with pytest.raises(m4.errors.ConfigError, match="holds no run"):
        m4.load(tmp_path)
    shutil.copy(place / "w/config.json", tmp_path)
    with pytest.raises(m4.errors.UserError, match="holds no trained parameters|--trust_code"):
        m4.load(tmp_path)
    (tmp_path / "fold_0").mkdir()
    with pytest.raises(m4.errors.CheckpointError, match="fold_0"):
        m4.load(tmp_path, trust_code=True)


def test_fit_refuses_in_one_line(tmp_path):
    with pytest.raises(m4.errors.ConfigError, match="did you mean"):
        m4.fit("fusemoe_mimc:tiny", workdir=tmp_path)
    with pytest.raises(m4.errors.ConfigError, match="workdir: is missing"):
        m4.fit({"seed": 0})
    with pytest.raises(m4.errors.ConfigError, match="'meds' and 'tables' take frames"):
        m4.fit("configs/fusemoe_mimic.py:synthetic", workdir=tmp_path / "w", frames={})


def test_a_data_set_from_python(tmp_path):
    ward.write(tmp_path / "raw", ward.tables())
    (tmp_path / "ward.toml").write_text(ward.DEFINITION)
    options = {"raw_dir": tmp_path / "raw", "data_dir": tmp_path / "d"}
    data = m4.data.open("tables", **options, file=str(tmp_path / "ward.toml"))
    assert repr(data).startswith("<m4.data tables: train ") and data.splits[0] == "train"
    frame = pd.DataFrame(data.table("train"))
    assert len(frame) == len(data.split("train")) and set(frame["y/aki"]) == {0, 1}
    assert sum(batch.weight.sum() for batch in data.batches("test", 4)) == len(data.split("test"))
    assert m4.data.open(data.folder).spec == data.spec and "labs" in data.describe()
    with pytest.raises(m4.errors.ConfigError, match="is none of"):
        m4.data.open("tabels")
    with pytest.raises(m4.errors.ConfigError, match="no such folder"):
        m4.data.open(tmp_path / "nowhere")
    with pytest.raises(m4.errors.ConfigError, match="unexpected keyword argument 'fiel'"):
        m4.data.open("tables", **options, fiel="x")


class Block(nn.Module):
    """One layer in a model of one's own."""

    @nn.compact
    def __call__(self, x_BTD, *, train):
        options = m4.moe.MoEOptions(num_experts=4, top_k=2, hidden=8)
        y_BTD, aux = m4.moe.MoE(options, losses=("importance",))(x_BTD, train=train)
        return x_BTD + y_BTD, aux.losses["importance"]


def test_the_layer_takes_tokens_of_any_shape():
    x_BTD = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    params = Block().init(jax.random.key(0), x_BTD, train=False)
    y_BTD, loss = Block().apply(params, x_BTD, train=True)
    assert y_BTD.shape == (2, 3, 5) and np.isfinite(loss)
    options = m4.moe.MoEOptions(num_experts=4, top_k=2, hidden=8, share="permod")
    layer = m4.moe.MoE(options, num_modalities=3, losses=("importance",))
    kind_BT, valid_BT = np.tile(np.arange(3), (2, 1)), np.array([[1, 1, 0], [1, 1, 1]], bool)
    given = {"modality_N": kind_BT, "valid_N": valid_BT, "train": False}
    params = layer.init(jax.random.key(0), x_BTD, **given)
    y_BTD, aux = layer.apply(params, x_BTD, **given)
    flat = {"modality_N": kind_BT.reshape(-1), "valid_N": valid_BT.reshape(-1), "train": False}
    y_ND, flat_aux = layer.apply(params, x_BTD.reshape(-1, 5), **flat)
    np.testing.assert_array_equal(y_BTD.reshape(-1, 5), y_ND)
    np.testing.assert_array_equal(aux.losses["importance"], flat_aux.losses["importance"])
    assert not y_BTD[0, 2].any() and y_BTD[1, 2].any()


def test_tables_keep_what_frames_say():
    frame = pd.DataFrame({"a": [1.0, np.nan], "b": [0.5, 2.0], "c": pd.Categorical(["x", None])})
    table = frames.to_arrow(frame)
    assert table.to_pydict() == {"a": [1, None], "b": [0.5, 2.0], "c": ["x", None]}
    assert frames.to_arrow(frame.iloc[:0]).num_rows == 0
    twice = pd.DataFrame([[1, 2]], columns=["a", "a"])
    with pytest.raises(m4.errors.DataError, match="two columns have the same name"):
        frames.to_arrow(twice)
    assert isinstance(Path(m4.__file__).with_name("py.typed").read_text(), str)
