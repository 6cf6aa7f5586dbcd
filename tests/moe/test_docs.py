"""The code of docs/moe.md runs."""

import re
import sys
import types
from pathlib import Path

import jax
import numpy as np

from m4 import maths
from m4.moe import routers
from m4.moe.layer import MoE
from m4.moe.options import MoEOptions, problems

PAGE = (Path(__file__).parents[2] / "docs" / "moe.md").read_text()
GATE, ROUTER = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_examples_run(monkeypatch):
    module = types.ModuleType("mylab_gates")
    module.maths, module.routers = maths, routers
    exec(GATE + ROUTER, module.__dict__)
    monkeypatch.setitem(sys.modules, "mylab_gates", module)
    options = MoEOptions(
        num_experts=5,
        top_k=2,
        hidden=3,
        gate="mylab_gates:cauchy",
        router="mylab_gates:second_best",
        gate_options={"width": 2.0},
        engine="dense",
    )
    assert not problems(options)
    layer = MoE(options)
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
