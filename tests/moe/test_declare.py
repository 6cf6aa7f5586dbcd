"""Signatures as declarations."""

from typing import Annotated

import numpy as np
import pytest
from flax import linen as nn

from m4.moe import declare
from m4.types import Array

Zeros = Annotated[Array, nn.initializers.zeros]


def gate(x_ND, w_DE: Zeros, log_tau: Zeros, *, power: float = 2.0, modality_N=None, extra_N):
    return x_ND, w_DE, log_tau, power, modality_N, extra_N


def test_parameters_and_stems():
    got = declare.parameters(gate, {"D": 3, "E": 5})
    assert {name: shape for name, (shape, _) in got.items()} == {"w_DE": (3, 5), "log_tau": ()}
    assert [declare.stem(a) for a in got] == ["w", "log_tau"]
    with pytest.raises(ValueError, match=r"gate: parameter w_DE has unknown dimensions \['E'\]"):
        declare.parameters(gate, {"D": 3})


def test_call_passes_what_is_named():
    given = {"w_DE": 1, "log_tau": 2, "extra_N": 3, "unrelated": 4}
    assert declare.call(gate, 0, options={}, **given) == (0, 1, 2, 2.0, None, 3)
    assert declare.call(gate, 0, options={"power": 1.0}, **given) == (0, 1, 2, 1.0, None, 3)


def test_call_refuses_what_cannot_be():
    given = {"w_DE": 1, "log_tau": 2, "extra_N": 3}
    with pytest.raises(ValueError, match="gate takes no option pwoer; it has: power"):
        declare.call(gate, 0, options={"pwoer": 1.0}, **given)
    with pytest.raises(ValueError, match="gate needs extra_N, which was not given"):
        declare.call(gate, 0, options={}, **given | {"extra_N": None})


def test_arrays_are_not_compared_with_none():
    assert declare.call(lambda x, y: y.sum(), 0, options={}, y=np.ones(3)) == 3
