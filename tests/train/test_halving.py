"""Rates of tasks that are halved: the rule, the step, and a run that goes on."""

import dataclasses
import json

import jax
import numpy as np

from m4.train import optim, verify
from m4.train.halving import Halving
from m4.train.step import Inputs, init_params, init_state, make_step
from tests import toy
from tests.test_main import CONFIG, run


def test_a_share_is_halved_where_the_loss_did_not_fall():
    rates = Halving(("a", "b", "c"))
    rates.after({"a/log_loss": 0.5, "b/rmse": 2.0})
    assert rates.shares().tolist() == [1, 1, 1]  # nothing to compare with yet
    rates.after({"a/log_loss": 0.4, "b/rmse": 2.0, "c/log_loss": float("nan")})
    assert rates.shares().tolist() == [1, 0.5, 1]  # equal is not below
    kept = json.loads(json.dumps(rates.after({"a/log_loss": 0.45, "b/rmse": 1.9})))
    assert rates.shares().tolist() == [0.5, 0.5, 1]
    again = Halving(("a", "b", "c"), kept)
    again.after({"a/log_loss": 0.46})
    assert again.shares().tolist() == [0.25, 0.5, 1]


def test_a_step_has_the_rate_of_its_task():
    method, first = toy.Toy(data=toy.SPEC), toy.batch(0)
    schedule = optim.make_schedule(0.1, steps=10, schedule="constant")
    tx = optim.make_optimiser("sgd", schedule, b1=0.0)
    step = make_step(method, tx, seed=0)
    params = init_params(method, first, seed=0)

    def moved(share):
        batch = dataclasses.replace(first, task=np.ones_like(first.task))
        inputs = Inputs.of(0, schedule, np.array([7.0, share], np.float32))
        state = init_state(params, tx, ema=0.0)
        after, _ = step.apply(state, step.zeros(state, batch, inputs), batch, inputs)
        return jax.tree.map(lambda a, b: np.asarray(a - b), after.params, params)

    whole, half = moved(1.0), moved(0.5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a / 2, atol=1e-7), whole, half)


def test_it_is_refused_without_batches_of_one_task(tmp_path, capsys):
    (tmp_path / "toy.py").write_text(CONFIG)
    assert run(tmp_path, "--config.optim.halve=True") == 2
    assert "optim.halve=True: needs batches of one task each" in capsys.readouterr().err


def test_a_run_keeps_its_shares(tmp_path):
    (tmp_path / "toy.py").write_text(CONFIG)
    still = (
        "--config.optim.lr=1e-30",
        "--config.optim.ema=0.0",
        "--config.train.streams=batches",
    )  # no loss can fall
    assert run(tmp_path, "--config.optim.halve=True", *still) == 0
    rates = verify.newest_note(tmp_path / "w/checkpoints/last")["progress"]["rates"]
    assert {task: found["share"] for task, found in rates.items()} == {"ihm48": 0.5, "los": 0.5}
    assert all(np.isfinite(found["loss"]) for found in rates.values())
