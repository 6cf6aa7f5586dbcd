"""`python -m m4.audit` finds planted defects and is silent on what is sound."""

import functools
import json
import os
import stat

import numpy as np
import pytest

from m4.audit import __main__ as command
from m4.audit import examine, findings, laws, leaks, learning
from m4.audit.probe import Defect, Programs, probe, without_aux
from m4.config import code
from m4.data import build
from m4.data.store import Store
from m4.errors import DataError
from m4.run import compiler
from m4.specs import DataSpec, ModalitySpec
from tests import properties
from tests.audit import leaky, mutants

LITTLE = compiler.OPTIONS["little"]
CHECKS = {check.__name__: check for check in (*laws.LAWS, *examine.ONCE, examine.OF_ROUTING)}


def probe_of(method):
    """Nothing is compiled before it is asked for."""
    return probe(method, compiled=Programs.of(method, LITTLE), tolerance=examine.ROUNDING)


WITH_ECG = DataSpec(
    (*properties.THREE.modalities, ModalitySpec("ecg", "vectors", (2, 3))),
    properties.THREE.tasks[:1],
    hours=4.0,
)


@functools.cache
def released(share="joint", **fields):
    cls = code.method_class("fusemoe", "released")
    moe = {"share": share, "num_experts": 12}
    return probe_of(properties.small(cls, WITH_ECG, moe=moe, **fields))


REPEATED = {"batch statistics", "routed by place", "fixed dropout", "stopped gate"}  # of a check
REPEATED |= {"reads labels", "reads numbers"}


@pytest.mark.parametrize(
    "defect",
    [pytest.param(d, marks=pytest.mark.slow if d in REPEATED else ()) for d in mutants.METHOD],
)
def test_a_defect_is_found(defect):
    check = CHECKS[mutants.METHOD[defect]]
    one = probe_of(mutants.Sound(mutants.SPEC, defect=defect))
    found = findings.ask(check, "the method", one)
    assert found.verdict == "ALARM", found
    assert "cannot be asked" not in found.says
    assert len(found.says) < 200 and found.says.isprintable()


def test_the_sound_method_raises_no_alarm():
    spec = mutants.SPEC
    found = [*examine.of_method(mutants.Sound(spec), Programs.of(mutants.Sound(spec), LITTLE))]
    assert [f.line() for f in found if f.verdict != "ok"] == []
    assert {f.check for f in found} == {*CHECKS}


@pytest.mark.parametrize(
    "check, fields",
    [
        ("batch_composition_invariance", {}),  # rows of a batch are mixed
        ("evaluation_draws_nothing", {}),  # noise
        pytest.param(  # types of ECG; one query mixes nobody
            "absence_stays_in_its_row", {"num_queries": 1}, marks=pytest.mark.slow
        ),
        ("gates_are_parameters", {"share": "permod"}),
        pytest.param("routing_follows_inputs", {"share": "disjoint"}, marks=pytest.mark.slow),
    ],
)
def test_the_defects_of_the_released_fusemoe_are_found(check, fields):
    assert findings.ask(CHECKS[check], "the method", released(**fields)).verdict == "ALARM"


@pytest.mark.slow
def test_absent_images_of_the_released_m4oe_are_zeros():
    cls = code.method_class("m4oe", "released")
    one = probe_of(properties.small(cls, properties.IMAGES))
    assert "absent is read as zeros" in findings.ask(laws.absence_is_no_zero, "", one).says


@pytest.mark.slow
@pytest.mark.parametrize("name", code.method_names())
def test_what_the_laws_of_methods_leave_out_holds_of_ours(name):
    one = probe_of(without_aux(properties.small(code.method_class(name), properties.PAIR)))
    asked = (*examine.ONCE, examine.OF_ROUTING)
    assert [findings.ask(check, name, one).verdict for check in asked] == ["ok"] * len(asked)


def splits_of(folder, **options):
    data = build.prepare("tests.audit.leaky", folder, folder / "data", seed=0, options=options)
    return {name: Store(data, name) for name in ("train", "val", "test")}


@pytest.mark.parametrize("leak", ["", *leaky.LEAKS])
def test_a_leak_is_found_and_told_without_anybody(leak, tmp_path):
    splits = splits_of(tmp_path, leak=leak)
    found = {f.check: f for f in (findings.ask(check, "data", splits) for check in leaks.CHECKS)}
    alarms = [name for name, finding in found.items() if finding.verdict == "ALARM"]
    assert alarms == ([leaky.LEAKS[leak]] if leak else []), found
    if alarms:
        says = found[alarms[0]].says
        few = leak in ("copied row", "row twice", "other name")
        assert ("<10 rows repeat" in says) == few and len(says) < 120
        assert ("train and test" in says) == (leak == "copied row")
        assert ("of another patient" in says) == (leak in ("copied row", "other name"))


def test_a_patient_in_two_splits_is_found(tmp_path):
    one, two = (splits_of(tmp_path, rows=n)["train"] for n in (100, 120))
    with pytest.raises(Defect, match="^60 patients are in train and in val$"):
        leaks.no_patient_in_two_splits({"train": one, "val": two})
    few = splits_of(tmp_path, rows=10)["train"]
    with pytest.raises(Defect, match="^<10 patients"):
        leaks.no_patient_in_two_splits({"train": one, "val": few})


def test_coarse_rows_may_be_equal(tmp_path, monkeypatch):
    """Two columns of yes or no are the same in many rows: no alarm."""
    splits = splits_of(tmp_path, rows=200)
    example = leaky._example

    def coarse(number, seed, leak):
        made = example(number, seed, leak)
        bits = np.random.default_rng((1, number)).integers(0, 2, 5).astype(np.float32)
        return made | {"inputs": {"static": {"values": bits}}}

    monkeypatch.setattr(leaky, "_example", coarse)
    coarse_splits = splits_of(tmp_path / "coarse", rows=200)
    assert leaks.no_duplicate_rows(coarse_splits) is None
    assert leaks.no_duplicate_rows(splits) is None

    def narrow(number, seed, leak):  # three numbers, one row twice
        made = example(number, seed, leak)
        values = np.random.default_rng((1, 7 if number == 9 else number)).normal(size=5)
        values[3:] = np.nan
        return made | {"inputs": {"static": {"values": values.astype(np.float32)}}}

    monkeypatch.setattr(leaky, "_example", narrow)
    with pytest.raises(Defect, match="of another patient"):
        leaks.no_duplicate_rows(splits_of(tmp_path / "narrow", rows=200))


@pytest.mark.parametrize("also", ["val", "all"])
def test_held_out_rows_that_train_are_no_alarm(also, tmp_path):
    data = build.prepare("tests.audit.leaky", tmp_path, tmp_path / "data", also_train=also)
    splits = {name: Store(data, name) for name in ("train", "test")[: 1 + (also == "val")]}
    found = [findings.ask(check, "data", splits) for check in leaks.CHECKS]
    left_out = {f.check for f in found if f.verdict == "left out"}
    assert {f.verdict for f in found} <= {"ok", "left out"}, found
    both = {"no_patient_in_two_splits", "presence_tells_no_label"}
    assert left_out == (both if also == "all" else set())


def test_what_was_found_before_an_error_is_written(tmp_path, monkeypatch, capsys):
    def everything(config, workdir):
        yield findings.Finding("one", "data", "ALARM", "a leak", 0.0)
        raise DataError("the disk is gone")

    monkeypatch.setattr(examine, "everything", everything)
    assert command.main([configuration(tmp_path), f"--json={tmp_path / 'a.json'}"]) == 3
    written = json.loads((tmp_path / "a.json").read_text())
    assert (written["alarms"], written["stopped"]) == (1, "the disk is gone")
    assert "1 checks, 1 alarm; stopped before the last check" in capsys.readouterr().out


def test_areas_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    x = rng.integers(0, 7, 300).astype(float)
    x[rng.random(300) < 0.2] = np.nan
    labels = (rng.random((300, 3)) < 0.3).astype(float)
    labels[rng.random((300, 3)) < 0.2] = np.nan
    asked = [(str(i), labels[:, i], False) for i in range(3)]
    for y, found in zip(labels.T, leaks.told(x, asked, 10), strict=True):
        known = ~np.isnan(x) & ~np.isnan(y)
        area = metrics.roc_auc_score(y[known], x[known])
        assert found == pytest.approx(max(area, 1 - area), abs=1e-12)


def test_few_rows_prove_nothing():
    """Ten of twenty can be in order by chance when many features are tried."""
    x = np.arange(20.0)
    asked = [("y", np.repeat([0.0, 1.0], 10), False)]
    assert leaks.told(x, asked, 1) == [1.0] and leaks.told(x, asked, 1000) == [0.0]


def test_gates_that_training_left_alone_are_named():
    before = {"layer_0": {"gate_w": np.ones(2), "w1": np.ones(3)}, "head": {"bias": np.zeros(1)}}
    after = {"layer_0": {"gate_w": np.ones(2), "w1": np.zeros(3)}, "head": {"bias": np.ones(1)}}
    with pytest.raises(Defect, match="layer_0/gate_w"):
        learning.training_moved_the_gates(before, after)
    after["layer_0"] |= {"gate_w": np.zeros(2), "w1": np.ones(3)}
    assert "layer_0/w1" in learning.training_moved_the_gates(before, after)
    with pytest.raises(Defect, match="no parameter has moved"):
        learning.training_moved_the_gates(before["head"], before["head"])


def configuration(folder, *, leak="", defect=""):
    (folder / "c.py").write_text(f"""
import ml_collections
def get_config():
    return ml_collections.ConfigDict(dict(
        data=dict(name='tests.audit.leaky', dir={str(folder / "data")!r},
                  options=dict(leak={leak!r}, rows=200)),
        method=dict(name='tests.audit.mutants:Sound', defect={defect!r}),
        optim=dict(lr=0.01),
        train=dict(steps=2, batch_size=8, select='death/auroc', choose='last',
                   eval_every=2, save_every=2),
        eval=dict(batch_size=16, bootstrap=5, subsets=False, baselines=False),
    ))
""")
    return f"--config={folder / 'c.py'}"


def test_the_command_ends_in_8_and_writes_what_it_says(tmp_path, capsys):
    file = tmp_path / "findings.json"
    asked = [configuration(tmp_path, leak="feature", defect="batch statistics"), f"--json={file}"]
    asked += ["--config.data.also_train=val"]  # without a validation split rows are of train
    assert command.main(asked) == command.ALARM == 8
    printed = capsys.readouterr().out
    written = json.loads(file.read_text())
    alarmed = {f["check"] for f in written["findings"] if f["verdict"] == "ALARM"}
    assert {"no_feature_tells_the_label", "batch_composition_invariance"} <= alarmed
    left_out = [f["check"] for f in written["findings"] if f["verdict"] == "left out"]
    assert left_out == ["validation_rows"] and written["stopped"] == ""
    checks = len(written["findings"]) - 1
    assert f"{checks} checks, {written['alarms']} alarms, 1 left out" in printed
    assert printed.count("\nALARM ") == written["alarms"]
    assert findings.seal.intact(written)
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600


@pytest.mark.parametrize(
    "args, words",
    [
        ([], "--config: is missing"),
        (["--config=x.py", "--json"], "--json: needs a value"),
        (["--config=x.py", "--no_data", "--workdir=w"], "--no_data: cannot be given"),
        (["--config=x.py", "--workdir=/nowhere/w"], "no such folder"),
        (["--config=x.py", "--mode=train"], "--mode: goes with m4.main"),
        (["--config=x.py", "--jsn=x"], "unknown flag"),
    ],
)
def test_wrong_commands_are_refused(args, words, capsys):
    assert command.main(args) == 2
    assert words in capsys.readouterr().err


def test_help_tells_costs_and_exit_codes(capsys):
    assert command.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert "CPU seconds" in printed and "8 at least one alarm" in printed


def test_a_build_refuses_a_patient_in_two_splits(tmp_path, monkeypatch):
    one = leaky._example
    monkeypatch.setattr(leaky, "_example", lambda n, *args: one(n, *args) | {"patient": n % 90})
    with pytest.raises(DataError, match="patients are in both"):
        splits_of(tmp_path, rows=100)
