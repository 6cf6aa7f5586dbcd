"""The code of docs/moe.md runs, and its table names everything there is."""

import re
import sys
import types
from pathlib import Path

import jax
import numpy as np

from m4.moe import routers, selection
from m4.moe.layer import MoE
from m4.resolve import public_names

PAGE = (Path(__file__).parents[2] / "docs" / "moe.md").read_text()
GATE, ROUTER = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def listed(*kinds):
    rows = re.findall(r"^\| ([a-z ]+) \| (`.*`) \|$", PAGE, re.MULTILINE)
    return {name for kind, names in rows if kind in kinds for name in re.findall(r"`(\w+)`", names)}


def test_the_table_is_complete():
    assert listed("gates", "null gates") == set(public_names("m4.moe.gates"))
    assert listed("routers") == set(public_names("m4.moe.routers"))
    helpers = {"cv_squared", "mutual_information", "conditional_mutual_information", "entropy_of"}
    assert listed("losses") == set(public_names("m4.moe.losses")) - helpers


def test_the_examples_run(monkeypatch):
    module = types.ModuleType("mylab_gates")
    module.selection = selection
    exec(GATE + ROUTER, module.__dict__)
    monkeypatch.setitem(sys.modules, "mylab_gates", module)
    layer = MoE(
        num_experts=5,
        top_k=2,
        hidden=3,
        gate="mylab_gates:cauchy",
        router="mylab_gates:second_best",
        gate_options={"width": 2.0},
        dispatch="dense",
    )
    x, valid = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32), np.ones(7, bool)
    y, variables = jax.jit(lambda key: layer.init_with_output(key, x, valid_N=valid, train=False))(
        jax.random.key(0)
    )
    assert variables["params"]["gate_centre"].shape == (1, 4, 5)
    assert y[0].shape == (7, 4)
    logits = module.cauchy(x, variables["params"]["gate_centre"][0], width=2.0)
    best = routers.top_k(logits, valid, k=3)
    got = module.second_best(logits, valid, k=2)
    np.testing.assert_array_equal(got.experts, best.experts[:, 1:])
