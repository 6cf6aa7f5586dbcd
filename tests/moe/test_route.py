"""Signatures as declarations, names as shapes."""

from typing import Annotated

import jax
import numpy as np
import pytest
from flax import linen as nn

from m4.moe import gates, route
from m4.moe.layer import MoE
from m4.moe.options import MoEOptions, problems
from m4.types import Array

Zeros = Annotated[Array, nn.initializers.zeros]


def gate(x_ND, w_DE: Zeros, log_tau: Zeros, *, power: float = 2.0, modality_N=None, extra_N):
    return x_ND, w_DE, log_tau, power, modality_N, extra_N


def test_parameters_and_stems():
    got = route.parameters(gate, {"D": 3, "E": 5})
    assert {name: shape for name, (shape, _) in got.items()} == {"w_DE": (3, 5), "log_tau": ()}
    assert [route.stem(a) for a in got] == ["w", "log_tau"]


def known_bad(argument):
    """A gate whose learned array has this name."""
    namespace = {"Zeros": Zeros}
    exec(f"def bad(x_ND, {argument}: Zeros): return x_ND @ {argument}", namespace)
    return namespace["bad"]


BAD = ["bias_e", "w_de", "w_De", "w_dE", "w_DX", "w_XE", "w_2E", "biasE", "W", "w_DE_"]


@pytest.mark.parametrize("argument", BAD)
def test_a_shape_that_is_none_is_refused(argument):
    """Small and mixed letters too: they would silently be one number for all experts."""
    with pytest.raises(ValueError, match=f"bad: the shape of parameter {argument} has unknown"):
        route.parameters(known_bad(argument), {"D": 3, "E": 5})


@pytest.mark.parametrize("argument", ["log_tau", "scale", "tau", "nu_0"])
def test_scalars_stay_legal(argument):
    assert route.parameters(known_bad(argument), {"D": 3, "E": 5})[argument][0] == ()


@pytest.mark.parametrize("argument", ["bias_e", "w_DX"])
def test_the_layer_refuses_them_too(argument, monkeypatch):
    monkeypatch.setattr(gates, "bad", known_bad(argument), raising=False)
    layer = MoE(MoEOptions(gate="bad", num_experts=4, hidden=3))
    x = np.ones((2, 4), np.float32)
    with pytest.raises(ValueError, match=f"parameter {argument} has unknown dimensions"):
        layer.init(jax.random.key(0), x, valid_N=np.ones(2, bool), train=False)
    assert f"parameter {argument} has unknown" in problems(MoEOptions(gate="bad"))[0]


def test_inputs_are_of_the_tokens_by_a_name_that_is_true():
    given = {"pattern_N": np.zeros(6), "bias_E": np.zeros(6), "num_rows": 2, "temperature": 1.0}
    inputs = route.Inputs.sort(6, given | {"task_N": None})
    assert set(inputs.tokens) == {"pattern_N"} and set(inputs.others) == set(given) - {"pattern_N"}
    for name, value in {
        "pattern": np.zeros(6),
        "pattern_N": np.zeros(5),
        "w_EN": np.ones((2, 6)),
    }.items():
        with pytest.raises(ValueError, match=f"input {name} has shape .* does not spell"):
            route.Inputs.sort(6, {name: value})


def test_call_passes_what_is_named():
    given = {"w_DE": 1, "log_tau": 2, "extra_N": 3, "unrelated": 4}
    assert route.call(gate, 0, options={}, **given) == (0, 1, 2, 2.0, None, 3)
    assert route.call(gate, 0, options={"power": 1.0}, **given) == (0, 1, 2, 1.0, None, 3)


def test_call_refuses_what_cannot_be():
    given = {"w_DE": 1, "log_tau": 2, "extra_N": 3}
    with pytest.raises(ValueError, match="gate takes no option pwoer; it has: power"):
        route.call(gate, 0, options={"pwoer": 1.0}, **given)
    with pytest.raises(ValueError, match="gate needs extra_N, which was not given"):
        route.call(gate, 0, options={}, **given | {"extra_N": None})


def test_arrays_are_not_compared_with_none():
    assert route.call(lambda x, y: y.sum(), 0, options={}, y=np.ones(3)) == 3
