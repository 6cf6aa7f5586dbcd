"""`--mode=tim` end to end: coalitions share one compiled step, and the file adds up."""

import json

import numpy as np
import pytest

from m4 import main

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
