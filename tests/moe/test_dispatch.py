"""Every engine against a float64 loop over tokens, and what dropping means."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m4.moe import experts
from m4.moe.engine import dispatch
from m4.moe.engine.dispatch import Target, apply_experts
from m4.moe.engine.grouped import Layout, grouped_mlp, make_plan, slots
from m4.moe.experts import ExpertParams, Functions
from m4.types import Routing

D, F, OUT = 6, 10, 5


def make_params(num_experts, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    shapes = {"w1": (F, D), "b1": (F,), "w2": (F, OUT), "b2": (OUT,)}
    return ExpertParams(
        **{k: jnp.asarray(rng.normal(size=(num_experts, *s)), dtype) for k, s in shapes.items()}
    )


def make_routing(experts_NK, num_experts, seed=1):
    experts_NK = np.asarray(experts_NK, np.int32)
    weights = np.random.default_rng(seed).uniform(0.1, 1, experts_NK.shape)
    weights = np.where(experts_NK < num_experts, weights, 0)
    zeros = jnp.zeros((len(experts_NK), num_experts))
    return Routing(
        experts=jnp.asarray(experts_NK),
        weights=jnp.asarray(weights),
        probs=zeros,
        logits=zeros,
        valid=jnp.asarray((experts_NK < num_experts).any(1)),
    )


def make_x(num_tokens, dtype=np.float64):
    return jnp.asarray(np.random.default_rng(3).normal(size=(num_tokens, D)), dtype)


def random_experts(num_tokens, k, num_experts, *, invalid=0.2, seed=2):
    rng = np.random.default_rng(seed)
    chosen = np.stack([rng.permutation(num_experts)[:k] for _ in range(num_tokens)])
    chosen[rng.random(num_tokens) < invalid] = num_experts
    return chosen


# Per (N, K, E): cases of one shape share a compiled function.
ROUTINGS = {
    (23, 2, 7): {
        "random": random_experts(23, 2, 7),
        "two_giant_groups": np.tile([[4, 1]], (23, 1)),
        "all_invalid": np.full((23, 2), 7),
        "second_choice_invalid": np.stack([np.arange(23) % 7, np.full(23, 7)], axis=1),
        "first_and_last_expert": np.tile([[0, 6]], (23, 1)),
    },
    (37, 1, 6): {
        "random": random_experts(37, 1, 6),
        "one_giant_group": np.full((37, 1), 3),
        "one_valid_token": np.where(np.arange(37) == 30, 5, 6)[:, None],
    },
    (19, 4, 9): {"random": random_experts(19, 4, 9)},
    (17, 12, 13): {"nearly_all": random_experts(17, 12, 13)},
    (9, 3, 64): {"more_experts_than_rows": random_experts(9, 3, 64, invalid=0)},
    (5, 1, 1): {"one_expert": np.array([[0], [1], [0], [0], [0]])},
}
CASES = [(*shape, name) for shape, cases in ROUTINGS.items() for name in cases]


def layer(engine, capacity=None, output=None):
    """A function (x, weights, params, experts_NK) -> y_NO by the given engine."""

    def run(x_ND, weights_NK, params, experts_NK):
        routing = make_routing(np.zeros(experts_NK.shape), params.w1.shape[0])
        y_NO, _ = apply_experts(
            x_ND,
            routing.replace(experts=experts_NK, weights=weights_NK),
            params,
            Functions(jnp.tanh, output),
            engine=engine,
            capacity=capacity,
            target=Target("cpu", grouped=engine == "ragged"),
        )
        return y_NO

    return run


@functools.cache
def compiled(function, *args):
    """Jitted (x, weights, params, experts_NK) -> (y, gradients of <y, fixed numbers>)."""

    def run(x_ND, weights_NK, params, experts_NK):
        y_NO, vjp = jax.vjp(lambda *a: function(*args)(*a, experts_NK), x_ND, weights_NK, params)
        g_NO = jnp.asarray(np.random.default_rng(9).normal(size=y_NO.shape), y_NO.dtype)
        return y_NO, *vjp(g_NO)

    return jax.jit(run)


def close(a, b, tolerance):
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
        error = np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max(initial=0)
        assert error <= tolerance * max(1, np.abs(np.asarray(y)).max(initial=0)), (path, error)


@pytest.mark.parametrize("output", [None, experts.softmax])
def test_dense_equals_a_loop_over_tokens(output):
    chosen = ROUTINGS[37, 1, 6]["random"][:6].repeat(2, axis=1)
    chosen[:, 1] = (chosen[:, 1] + 1) % 7
    with jax.enable_x64(True):
        params, routing, x_ND = make_params(6), make_routing(chosen, 6), make_x(6)
        got = layer("dense", None, output)(x_ND, routing.weights, params, chosen)
        p, x, w = jax.tree.map(np.asarray, (params, x_ND, routing.weights))
    for n in range(6):
        y_O = np.zeros(OUT)
        for k in range(2):
            if (e := chosen[n, k]) < 6:
                y = np.tanh(x[n] @ p.w1[e].T + p.b1[e]) @ p.w2[e] + p.b2[e]
                y_O += w[n, k] * (y if output is None else np.exp(y) / np.exp(y).sum())
        np.testing.assert_allclose(got[n], y_O, atol=1e-12)


@pytest.mark.parametrize(
    ("engine", "capacity"),
    [
        ("dropless", 0.01),  # hardly any slots: nearly all rows go through the loop
        ("capacity_prioritised", 1e3),  # nothing is dropped
    ],
)
@pytest.mark.parametrize(("num_tokens", "k", "num_experts", "case"), CASES)
def test_every_engine_equals_dense(num_tokens, k, num_experts, case, engine, capacity):
    chosen = ROUTINGS[num_tokens, k, num_experts][case]
    output = experts.softmax if k == 2 else None
    with jax.enable_x64(True):
        params, routing = make_params(num_experts), make_routing(chosen, num_experts)
        args = make_x(num_tokens), routing.weights, params, jnp.asarray(chosen, jnp.int32)
        want = compiled(layer, "dense", None, output)(*args)
        close(compiled(layer, engine, capacity, output)(*args), want, 1e-12)


@pytest.mark.parametrize("block", [1, 4, 64])
def test_blocks_of_any_size_are_exact(block):
    # Blocks with and without a tail, experts without rows, loads at and around C = 3.
    loads = [0, 1, 3, 29, 2, 13, 4]
    chosen = np.random.default_rng(0).permutation(np.repeat(np.arange(7), loads))[:, None]

    def blocked():
        return lambda x_ND, weights_NK, params, experts_NK: grouped_mlp(
            Layout(3, block),
            Functions(jnp.tanh),
            x_ND,
            make_plan(experts_NK, 7),
            weights_NK,
            params,
        )

    with jax.enable_x64(True):
        params, routing = make_params(7), make_routing(chosen, 7)
        args = make_x(len(chosen)), routing.weights, params, jnp.asarray(chosen, jnp.int32)
        close(compiled(blocked)(*args), compiled(layer, "dense")(*args), 1e-12)


def test_float32_and_bfloat16_stay_near_float64():
    chosen = ROUTINGS[23, 2, 7]["random"]
    results = {}
    for dtype, tolerance in (("float64", 0), ("float32", 1e-5), ("bfloat16", 0.05)):
        with jax.enable_x64(dtype == "float64"):
            wide = "float64" if dtype == "float64" else "float32"
            params, weights_NK = make_params(7, dtype=wide), make_routing(chosen, 7).weights
            y, dx, dw, dp = compiled(layer, "dropless")(
                make_x(23, dtype), weights_NK.astype(wide), params, jnp.asarray(chosen, jnp.int32)
            )
            assert y.dtype == dx.dtype == dtype
            assert dw.dtype == dp.w1.dtype == wide
            results[dtype] = jax.tree.map(np.asarray, (y, dx, dw, dp))
        close(results[dtype], results["float64"], tolerance)


def test_capacity_serves_first_choices_in_token_order():
    # Expert 0 is the first choice of tokens 0 and 2 and the second of token 1; expert 1 is the
    # second of 0 and 2 and the first of 1. With 2 of 6 slots each, expert 0 drops token 1's second
    # choice, expert 1 serves token 1 then token 0, and drops token 2: 2 of 6 are lost.
    experts_NK = jnp.array([[0, 1], [1, 0], [0, 1]])
    plan = make_plan(experts_NK, 2)
    # Assignments are numbered choice-major: 0, 1, 2 first choices, 3, 4, 5 second choices.
    np.testing.assert_array_equal(slots(plan, 2), [[0, 2], [1, 3]])
    # Token 2 has the highest priority: it keeps its place at both experts.
    plan = make_plan(experts_NK, 2, priority_N=jnp.array([0.1, 0.2, 0.9]))
    np.testing.assert_array_equal(slots(plan, 2), [[2, 0], [1, 5]])


def test_dropped_assignments_are_named_and_contribute_nothing():
    chosen = np.array([[0], [0], [0], [1], [2]])  # of 4 valid assignments, expert 2 is none
    routing, params = make_routing(chosen, 2), make_params(2, dtype=np.float32)
    x_ND = jnp.asarray(np.random.default_rng(3).normal(size=(5, D)), jnp.float32)
    # Mean load 5/2, capacity 0.8: two slots, so expert 0 serves two of its three tokens.
    y_NO, lost_NK = apply_experts(
        x_ND, routing, params, Functions(jnp.tanh), engine="capacity", capacity=0.8
    )
    np.testing.assert_array_equal(lost_NK[:, 0], [False, False, True, False, False])
    kept = routing.replace(experts=jnp.array([[0], [0], [2], [1], [2]]))
    want, none = apply_experts(x_ND, kept, params, Functions(jnp.tanh), engine="dense")
    np.testing.assert_allclose(y_NO, want, atol=1e-5)
    assert none is None


@pytest.mark.parametrize(
    ("engine", "want"), [("capacity", [0, 0, 2, 2]), ("capacity_prioritised", [2, 2, 0, 0])]
)
def test_who_is_dropped(engine, want):
    """Four tokens, all first to expert 0, second to 1; capacity 0.5 * 8 / 2 = 2.

    Expert 0 serves tokens 0 and 1, expert 1 too; the others lose both assignments. With
    priority the tokens of the largest best weight, 2 and 3, are served instead.
    """
    routing = make_routing([[0, 1]] * 4, 2)
    weights = jnp.float32([[0.5, 0.5], [0.6, 0.4], [0.9, 0.1], [0.8, 0.2]])
    x_ND, params = make_x(4, "float32"), make_params(2, dtype="float32")
    _, lost_NK = apply_experts(
        x_ND,
        routing.replace(weights=weights),
        params,
        Functions(jnp.tanh),
        engine=engine,
        capacity=0.5,
    )
    np.testing.assert_array_equal(lost_NK.sum(1), want)


@pytest.mark.parametrize("engine", ["dropless", "capacity"])
def test_what_an_unrouted_token_holds_changes_no_bit(engine):
    chosen = ROUTINGS[23, 2, 7]["random"]
    routing, params, x_ND = (
        make_routing(chosen, 7),
        make_params(7, dtype="float32"),
        make_x(23, "float32"),
    )
    junk_ND = jnp.where(routing.valid[:, None], x_ND, jnp.nan)
    clean, dirty = (
        compiled(layer, engine)(x, routing.weights, params, jnp.asarray(chosen, jnp.int32))
        for x in (x_ND, junk_ND)
    )
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)


def test_both_sorts_agree():
    chosen = ROUTINGS[19, 4, 9]["random"]
    packed = make_plan(jnp.asarray(chosen), 9)
    # 2**25 experts times 76 assignments exceed 31 bits: the sort of pairs takes over.
    pairs = make_plan(jnp.asarray(np.where(chosen < 9, chosen, 2**25)), 2**25)
    np.testing.assert_array_equal(packed.order_A, pairs.order_A)
    np.testing.assert_array_equal(packed.position_A, pairs.position_A)


def test_program_size_does_not_depend_on_the_number_of_experts():
    def text(num_experts):
        routing = make_routing(random_experts(64, 2, 8), num_experts)
        shapes = jax.eval_shape(lambda: make_params(num_experts, dtype=np.float32))

        def loss(x_ND, params):
            return apply_experts(x_ND, routing, params, Functions(jnp.tanh), engine="dropless")[
                0
            ].sum()

        x_ND = jax.ShapeDtypeStruct((64, D), jnp.float32)
        return len(jax.jit(jax.grad(loss, (0, 1))).lower(x_ND, shapes).as_text())

    assert abs(text(1024) / text(16) - 1) < 0.05


def test_dense_with_all_experts_makes_nothing_of_tokens_by_choices_by_experts():
    num_tokens, num_experts = 64, 32
    experts_NK = jnp.broadcast_to(jnp.arange(num_experts), (num_tokens, num_experts))
    weights_NK = jnp.ones(experts_NK.shape)
    params = make_params(num_experts, dtype="float32")
    x_ND = jnp.ones((num_tokens, params.w1.shape[2]))
    text = jax.jit(layer("dense")).lower(x_ND, weights_NK, params, experts_NK).as_text()
    shapes = [
        [*map(int, found.split("x"))] for found in re.findall(r"tensor<((?:\d+x)+\d+)xf", text)
    ]
    largest = num_experts * num_tokens * max(params.w1.shape[1:])
    assert max(map(math.prod, shapes)) <= largest


def test_auto_never_drops_and_bad_options_are_named():
    cpu, gpu = Target("cpu", False), Target("gpu", False)
    assert dispatch.choose_engine(4, 4, cpu) == "dropless"
    assert dispatch.choose_engine(4, 5, gpu) == "dense"
    assert dispatch.choose_engine(4, 6, gpu) == "dropless"
    assert dispatch.choose_engine(2, 64, cpu) == "dropless"
    assert dispatch.choose_engine(2, 64, Target("tpu", True)) == "ragged"
    assert dispatch.choose_engine(2, 64, Target("tpu", False)) == "dropless"
    routing, params = make_routing([[0]], 2), make_params(2, dtype="float32")
    apply = functools.partial(apply_experts, jnp.ones((1, D)), routing, params, Functions(jnp.tanh))
    with pytest.raises(ValueError, match="moe.engine='fast'; choose one of auto"):
        apply(engine="fast")
    with pytest.raises(ValueError, match="moe.engine='ragged' costs E times"):  # on a CPU
        apply(engine="ragged")
    with pytest.raises(ValueError, match="moe.capacity=-1"):
        apply(capacity=-1)


@pytest.mark.parametrize("case", ROUTINGS[23, 2, 7])
def test_ragged_equals_dense(case):
    chosen, output = ROUTINGS[23, 2, 7][case], experts.softmax
    params, routing = make_params(7, dtype="float32"), make_routing(chosen, 7)
    args = make_x(23, "float32"), routing.weights, params, jnp.asarray(chosen, jnp.int32)
    want = compiled(layer, "dense", None, output)(*args)
    close(compiled(layer, "ragged", None, output)(*args), want, 1e-5)


@pytest.mark.parametrize(
    ("backend", "num_experts", "slots"),
    [("cpu", 4096, 4), ("cpu", 1024, 8), ("cpu", 64, 64), ("cuda", 4096, 6), ("cuda", 64, 88)],
)
def test_few_rows_an_expert_have_few_slots(backend, num_experts, slots):
    """3,584 assignments: 7/8 of a row for each of 4,096 experts, which 8 slots held at 9 times."""
    layout = dispatch.choose_layout(3584, num_experts, backend=backend)
    assert layout.capacity == slots
    assert layout.capacity >= 3584 / num_experts
