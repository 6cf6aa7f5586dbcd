"""Nothing but its own row decides what a token gets in evaluation.

For every gate, router, engine and share, and for all that a new one is found by: other rows of the
batch, one at a time; filler rows; and how many rows there are.

Letters as in m4.moe.route; B rows, T tokens per row, M modalities.
"""

import functools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import FrozenDict

from m4.moe import routers
from m4.moe.engine import dispatch
from m4.moe.layer import MoE
from m4.moe.options import MoEOptions, known
from m4.types import Routing

pytestmark = pytest.mark.usefixtures("quick_compile")
B, T, D, M, E = 4, 5, 8, 3, 6  # T and E without a common divisor: places differ by row
FEW, MANY = 2, 7  # other numbers of rows
ROUTER_OPTIONS = {"group_limited": {"groups_kept": 2}}


def rows_of(seed, num=B):
    """Tokens and what goes with them, [rows, T, ...]."""
    rng = np.random.default_rng(seed)
    return {
        "x_ND": rng.normal(size=(num, T, D)).astype(np.float32),
        "valid_N": rng.random((num, T)) < 0.7,
        "query_NQ": rng.normal(size=(num, T, 2)).astype(np.float32),
        "pattern_N": np.repeat(rng.integers(0, 20, (num, 1)), T, axis=1),
        "task_N": np.repeat(rng.integers(0, 2, (num, 1)), T, axis=1),
    }


def replaced(rows, row, other):
    """`rows` with one of them from `other`."""
    found = jax.tree.map(np.array, rows)
    for name in found:
        found[name][row] = other[name][row]
    return found


def resized(rows, num):
    """The first `num` rows, or as many fillers more: garbage and nothing valid."""
    fillers = rows_of(5, num) | {"valid_N": np.zeros((num, T), bool)}
    return {name: np.concatenate([rows[name], fillers[name]])[:num] for name in rows}


def layer_of(traced=False, train=False, **fields):
    """`run(rows)` -> outputs [rows, T, D] of a layer with random parameters."""
    router = fields.get("router", "top_k")
    sizes = {"num_experts": E, "top_k": 2, "hidden": 5, "num_groups": 3, "engine": "dense"}
    sizes["router_options"] = FrozenDict(ROUTER_OPTIONS.get(router, {}))
    layer = MoE(MoEOptions(**(sizes | fields)), num_modalities=M)

    @functools.partial(jax.jit, static_argnames="own_T")
    def apply(params, rows, own_T):
        num = rows["x_ND"].shape[0]
        own = {name: a.reshape(num * T, *a.shape[2:]) for name, a in rows.items()}
        x_ND, modality_N = own.pop("x_ND"), np.tile(np.array(own_T), num)
        own["modality_N"] = jnp.asarray(modality_N) if traced else modality_N
        rngs = {"gate": jax.random.key(1)}
        sizes = {"num_rows": num, "num_tasks": 2, "train": train}
        if params is None:
            return layer.init({"params": jax.random.key(0), **rngs}, x_ND, **own, **sizes)
        return layer.apply(params, x_ND, **own, **sizes, rngs=rngs)[0].reshape(num, T, D)

    own_T = tuple(np.arange(T) % M)
    shapes = nn.unbox(jax.eval_shape(lambda rows: apply(None, rows, own_T), rows_of(0)))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    return lambda rows: apply(params, rows, own_T)


def no_other_row_matters(run):
    """The property; raises AssertionError."""
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    rng = np.random.default_rng(3)
    rows = rows_of(0)
    whole = np.asarray(run(rows))
    assert np.any(whole)
    for row in rng.permutation(B):
        for other in (rows_of(10 + row), {**rows, "valid_N": np.zeros((B, T), bool)}):
            kept = np.arange(B) != row
            close(run(replaced(rows, row, other))[kept], whole[kept])
    order = rng.permutation(B)
    close(run(jax.tree.map(lambda a: a[order], rows)), whole[order])
    for num in (FEW, MANY):
        close(run(resized(rows, num))[:B], whole[:num])


CASES = [{"gate": gate} for gate in known("gate")]
CASES += [{"gate": "linear", "router": router} for router in known("router")]
CASES += [{"router": "product_keys", "num_experts": 9, "router_options": {"query_width": 4}}]
CASES += [
    {"engine": e, "capacity": 0.5}
    for e in get_args(dispatch.Engine)
    if e not in ("ragged", "grouped")
]
CASES += [
    {"router": "expert_choice", "router_options": {"compete": "batch"}},
    {"router": "soft", "num_slots": 2},
    {"router": "noisy_top_k", "share": "permod"},
    {"router": "noisy_top_k", "share": "permod", "traced": True},
    {"router": "sinkhorn", "share": "disjoint"},
    {"num_shared": 2},
    {"dtype": "bfloat16"},
]


@pytest.mark.parametrize("fields", CASES, ids=lambda f: "-".join(map(str, f.values())))
def test_no_other_row_matters(fields):
    no_other_row_matters(layer_of(**fields))


def by_place(x_ND, *, num_experts):
    """Token n goes to expert n."""
    return -(1e-6 * ((jnp.arange(num_experts) - jnp.arange(x_ND.shape[0])[:, None]) % num_experts))


def over_the_batch(logits_NE, valid_N, *, k):
    """Experts choose from all tokens."""
    return routers.expert_choice(logits_NE, valid_N, k=k)


def by_slots(logits_NE, valid_N, *, k, num_rows):
    """Experts take the k / E of a row's places and fillers' places that this batch has."""
    found: Routing = routers.expert_choice(logits_NE, valid_N, k=k, num_rows=num_rows)
    return found.replace(weights=found.weights * (1 + logits_NE.shape[0] / 100))


@pytest.mark.parametrize(
    "fields",
    [
        {"gate": f"{__name__}:by_place"},
        {"router": f"{__name__}:over_the_batch"},
        {"router": f"{__name__}:by_slots"},
        {"router": "expert_choice", "router_options": {"compete": "batch"}, "train": True},
        {"router": "sinkhorn", "train": True},
        {"engine": "capacity", "capacity": 0.5, "train": True},
    ],
)
def test_the_property_sees_what_depends_on_others(fields):
    with pytest.raises(AssertionError):
        no_other_row_matters(layer_of(**fields))


@pytest.mark.parametrize("compete", ["row", "batch"])
@pytest.mark.parametrize("fillers", [0, 1, 8, 24])
def test_fillers_take_no_place_of_expert_choice(compete, fillers):
    """8 valid tokens, 4 experts, K = 1: two tokens each, whatever follows; also in training."""
    logits = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    padded, valid = np.pad(logits, ((0, fillers), (0, 0))), np.arange(8 + fillers) < 8
    found = routers.expert_choice(padded, valid, k=1, compete=compete, train=True)
    taken = np.asarray(found.tokens)
    best = np.argsort(-np.asarray(jax.nn.softmax(logits)), axis=0)[:2]
    np.testing.assert_array_equal(np.sort(taken)[:, :2], np.sort(best.T))
    assert (taken[:, 2:] == 8 + fillers).all()
    np.testing.assert_array_equal(np.asarray(found.weights)[:, 2:], 0)
