"""Any gate, any router, any number of modalities, in every method that has them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from m4.config import code
from m4.moe import options
from m4.moe.options import MoEOptions, SoftOptions
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from tests import properties

MODALITIES = (
    ModalitySpec("vitals", "series", (3, 2)),
    ModalitySpec("static", "table", (3,)),
    ModalitySpec("labs", "series", (3, 2)),
    ModalitySpec("icd", "codes", (2,), dtype="int32", vocab=5),
    ModalitySpec("history", "table", (2,)),
    ModalitySpec("urine", "series", (2, 1)),
)
COUNTS = (1, 2, 6)
GATES, ROUTERS = options.known("gate"), options.known("router")
WITH_GROUPS = {
    "group_limited": {"num_groups": 2, "router_options": FrozenDict({"groups_kept": 1})},
    "hierarchical": {"num_groups": 2},
}
METHODS = {name: code.method_class(name) for name in code.method_names()}


def having(kind):
    """The methods whose `moe` is of a kind."""
    return [n for n, cls in METHODS.items() if isinstance(getattr(cls, "moe", None), kind)]


ROUTED, SOFT = having(MoEOptions), having(SoftOptions)
# A soft mixture reads tokens alone: not whose they are, where they stand, or what is asked.
NOT_SOFT = {"hash_modality", "oracle", "task_additive"}


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
    cls = METHODS[name]
    moe = {"num_experts": 10, "gate": gate, "router": router, "share": "joint"}
    moe |= WITH_GROUPS.get(router, {})
    return properties.small(cls, spec(count), moe=moe, aux_weights=cls.aux_weights)


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


@pytest.mark.parametrize("name", sorted({*METHODS} - {*ROUTED}))
def test_any_number_of_modalities(name):
    for count in COUNTS:
        trace(properties.small(METHODS[name], spec(count)))


@pytest.mark.slow
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("name", SOFT)
def test_gates_of_soft_mixtures(name, gate):
    method = properties.small(METHODS[name], spec(2), moe={"gate": gate})
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


def test_every_method_with_a_mixture_of_experts_is_here():
    assert {"fusemoe", "flexmoe", "flexcare"} <= {*ROUTED} and SOFT == ["m4oe"]
