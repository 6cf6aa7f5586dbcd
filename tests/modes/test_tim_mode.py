"""`--mode=tim` end to end: coalitions share one compiled step, and the file adds up."""

import json
import types

import numpy as np
import pytest

from m4 import main
from m4.data import split
from m4.errors import DataError
from m4.modes import tim
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from tests.interop import cli_data

CONFIG = """
import ml_collections
def get_config(variant=''):
    return ml_collections.ConfigDict(dict(
        data=dict(name='tests.interop.cli_data', options=dict(kind='tasks')),
        method=dict(name='m3h', width=4, task_width=4, dropout=0.0),
        optim=dict(lr=0.01, ema=0.5),
        train=dict(steps=3, batch_size=8, select='death/auroc'),
        eval=dict(batch_size=8, bootstrap=5, baselines=False, subsets=False),
    ))
"""


def run(folder, *args):
    return main.main(
        ["--mode=tim", f"--config={folder / 'c.py'}", f"--workdir={folder / 'w'}", *args]
    )


def test_every_coalition_from_one_compiled_step(folder, made, capsys):
    assert run(folder, "--tasks=death,los") == 0
    found = json.loads((folder / "w/tim.json").read_text())
    assert found["tasks"] == ["death", "los"] and found["metric"] == ["auroc", "r2"]
    assert len(made) == 2  # that of every run, and one for all coalitions
    assert capsys.readouterr().out.count("trained ") == 3  # {death}, {los} and both
    single, joint = np.array(found["single"]), np.array(found["joint"])
    shapley = np.array(found["shapley"])
    # The value of the others for a task is all that it gains from them; of two tasks, the other's.
    np.testing.assert_allclose(shapley.sum(0), joint - single, atol=1e-12)
    np.testing.assert_allclose(np.diag(shapley), 0)
    gain = (joint - single) / np.abs(single)
    np.testing.assert_allclose(np.array(found["pairwise"]).sum(0), gain, atol=1e-12)
    np.testing.assert_allclose(np.array(found["leave_one_out"]).sum(0), gain, atol=1e-12)
    assert np.isfinite(single).all() and (single != joint).any()


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (("--tasks=death,gout",), "--tasks=death,gout: must be some of death, los, each once"),
        (("--tasks=death,death",), "each once"),
    ],
)
def test_refusals(folder, args, match, capsys):
    assert run(folder, *args) == 2
    assert match in capsys.readouterr().err


def test_a_method_without_coalitions_is_refused(folder, capsys):
    fields = "name='flexmoe', width=8, num_heads=2"
    text = CONFIG.replace("name='m3h', width=4, task_width=4", fields)
    (folder / "c.py").write_text(text)
    assert run(folder, "--tasks=death,los") == 2
    assert "method.name='flexmoe': its call has no argument active_T" in capsys.readouterr().err


def test_a_task_that_the_test_split_cannot_score_is_told_before_training(
    folder, made, monkeypatch, capsys
):
    original = cli_data.example

    def alike(data, row):
        found = original(data, row)
        tested = split.assign(row, cli_data.FRACTIONS, 0) == "test"
        return found | {"targets": found["targets"] | ({"death": 0} if tested else {})}

    monkeypatch.setattr(cli_data, "example", alike)
    assert run(folder, "--tasks=death,los") == 3
    assert "test split: no score for death: labels are all alike" in capsys.readouterr().err
    assert len(made) == 1 and not (folder / "w/tim.json").exists()  # no step of coalitions


def test_scores_that_are_not_there_are_refused_and_gains_on_nothing_are_null(monkeypatch):
    """A summary has NaN, never None, for a score that it cannot tell."""
    tasks = TaskSpec("a", "binary"), TaskSpec("b", "regression")
    spec = DataSpec((ModalitySpec("m", "table", (1,)),), tasks)
    setup = types.SimpleNamespace(spec=spec, method=None)
    monkeypatch.setattr(tim, "fitter", lambda *_: lambda _: types.SimpleNamespace(eval_params=None))
    monkeypatch.setattr(tim, "_predictor", lambda *_: lambda *_: {"a/auroc": np.nan, "b/r2": 0.5})
    train = tim._trainer(None, setup, ["a", "b"])
    with pytest.raises(DataError, match="no score for a: labels are all alike"):
        train(np.array([True, True]))
    np.testing.assert_array_equal(train(np.array([False, True])), [np.nan, 0.5])
    assert tim._finite(np.array([[0.0, np.inf], [-0.5, np.nan]])) == [[0.0, None], [-0.5, None]]
