"""FuseMoE: the properties of every method, in each fidelity and with each router."""

import pytest
from flax.core import FrozenDict

from m4.methods.fusemoe import FuseMoE
from tests import properties

SIZES = {
    "width": 8,
    "hidden": 6,
    "num_experts": 10,
    "top_k": 2,
    "num_queries": 3,
    "embed_time": 4,
    "num_heads": 2,
    "dropout": 0.1,
}
NO_AUX = FrozenDict({})


def small(spec=properties.SPEC, **fields):
    return FuseMoE(spec, **{**SIZES, "aux_weights": NO_AUX, **fields})


@pytest.fixture(
    scope="module",
    params=[
        ("m4", "permod"),
        ("m4", "joint"),
        ("m4", "disjoint"),
        ("paper", "permod"),
        ("paper", "joint"),
    ],
    ids="-".join,
)
def probe(request):
    fidelity, router = request.param
    return properties.probe(small(fidelity=fidelity, router=router))


@pytest.mark.parametrize("check", properties.CHECKS, ids=lambda c: c.__name__)
def test_property(probe, check):
    check(probe)
