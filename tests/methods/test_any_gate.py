"""Any gate, any router, any number of modalities, in every method that has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from m4 import resolve
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from tests import properties
from tests.methods import test_flexcare, test_flexmoe, test_fusemoe, test_m3h, test_m4oe

MODALITIES = (
    ModalitySpec("vitals", "series", (3, 2)),
    ModalitySpec("static", "table", (3,)),
    ModalitySpec("labs", "series", (3, 2)),
    ModalitySpec("icd", "codes", (2,), dtype="int32", vocab=5),
    ModalitySpec("history", "table", (2,)),
    ModalitySpec("urine", "series", (2, 1)),
)
COUNTS = (1, 2, 6)
GATES = resolve.public_names("m4.moe.gates")
ROUTERS = resolve.public_names("m4.moe.routers")
WITH_GROUPS = {
    "group_limited": {"num_groups": 2, "routing_options": FrozenDict({"groups_kept": 1})},
    "hierarchical": {"num_groups": 2},
}
AUX = FrozenDict({"importance": 0.1, "load": 0.1})
ROUTED = {
    "fusemoe": lambda spec, **fields: test_fusemoe.small(
        spec, router="joint", aux_weights=AUX, **fields
    ),
    "flexmoe": lambda spec, **fields: test_flexmoe.small(
        spec, aux_weights=AUX.copy({"router": 0.1}), **fields
    ),
    "flexcare": lambda spec, **fields: test_flexcare.small(
        spec, aux_weights=AUX.copy({"covariance": 0.1}), **fields
    ),
}
OTHERS = {"m3h": test_m3h.small, "m4oe": test_m4oe.small}
# A soft mixture reads tokens alone: not whose they are, where they stand, or what is asked.
NOT_SOFT = {"hash", "oracle", "task_additive"}


def spec(count):
    return DataSpec(
        MODALITIES[:count], (TaskSpec("death", "binary"), TaskSpec("stay", "regression"))
    )


def loss(method, batch):
    """Training loss at the initial parameters."""
    rngs = {"dropout": jax.random.key(1), "gate": jax.random.key(2)}
    params = method.init({"params": jax.random.key(0), **rngs}, batch, train=True)

    def run(params):
        out = method.apply(params, batch, train=True, rngs=rngs)
        return method.loss(out, batch, jnp.zeros((), jnp.int32))[0]

    return jax.value_and_grad(run)(params)


def trace(method):
    """Without compiling: shapes, names, inputs that are missing."""
    value, _ = jax.eval_shape(lambda: loss(method, properties.random_batch(method.data)))
    assert value.shape == ()


def routed(name, count, gate, router):
    fields = {"num_experts": 10, "gate": gate, "routing": router} | WITH_GROUPS.get(router, {})
    return ROUTED[name](spec(count), **fields)


def choices():
    """Every gate, router and count with one method or another; all with all are slow."""
    for i, gate in enumerate(GATES):
        for j, name in enumerate(ROUTED):
            router, count = ROUTERS[(i + 4 * j) % len(ROUTERS)], COUNTS[(i // 3 + j) % len(COUNTS)]
            marks = () if i % len(ROUTED) == j else pytest.mark.slow
            yield pytest.param(
                name, count, gate, router, id=f"{name}-{count}-{gate}-{router}", marks=marks
            )


@pytest.mark.parametrize("name, count, gate, router", [*choices()])
def test_gates_routers_and_counts(name, count, gate, router):
    trace(routed(name, count, gate, router))


@pytest.mark.slow
@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("name", ROUTED)
def test_every_router_in_every_method(name, router):
    for count in COUNTS:
        trace(routed(name, count, "laplace", router))


@pytest.mark.parametrize("name", OTHERS)
def test_any_number_of_modalities(name):
    for count in COUNTS:
        trace(OTHERS[name](spec(count)))


@pytest.mark.slow
@pytest.mark.parametrize("gate", GATES)
def test_gates_of_soft_mixtures(gate):
    method = test_m4oe.small(spec(2), gate=gate)
    if gate in NOT_SOFT:
        with pytest.raises(ValueError, match=gate):
            trace(method)
    else:
        trace(method)


@pytest.mark.parametrize(
    "name, count, gate, router",
    [("flexmoe", 1, "quadratic", "soft"), ("flexcare", 2, "task_additive", "hierarchical")],
)
def test_unusual_choices_learn(name, count, gate, router):
    method = routed(name, count, gate, router)
    batch = properties.random_batch(method.data)
    value, grads = jax.jit(lambda batch: loss(method, batch))(batch)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    gate_grads = [g for name, g in grads["params"]["layer_0"].items() if name.startswith("gate_")]
    assert gate_grads and all(np.any(g) for g in gate_grads)
