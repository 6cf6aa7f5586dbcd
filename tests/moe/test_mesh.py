"""Expert parallelism on eight virtual devices against one device."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from m4 import sharding
from m4.moe.engine import dispatch, slots
from m4.moe.engine import mesh as parallel
from m4.moe.experts import ExpertParams, Functions
from m4.moe.layer import MoE
from m4.moe.options import MoEOptions
from m4.types import Routing

N, K, D, F, E = 64, 2, 8, 16, 16


def mesh_of(**sizes):
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes))


def inputs(load="random", seed=0):
    """x, experts_NK (a fifth of the tokens invalid), weights, params."""
    rng = np.random.default_rng(seed)
    chosen = np.stack([rng.permutation(E)[:K] for _ in range(N)])
    if load == "skewed":  # every first choice on the first device: four times its bucket's mean
        chosen[:, 0], chosen[:, 1] = chosen[:, 0] % 2, 2 + chosen[:, 1] % 14
    if load == "none":
        chosen[:] = E
    chosen[rng.random(N) < 0.2] = E
    shapes = {"w1": (E, F, D), "b1": (E, F), "w2": (E, F, D), "b2": (E, D)}
    params = {k: rng.normal(size=s).astype(np.float32) / 4 for k, s in shapes.items()}
    weights = np.where(chosen < E, rng.uniform(0.1, 1, chosen.shape), 0).astype(np.float32)
    x = rng.normal(size=(N, D)).astype(np.float32)
    return x, chosen.astype(np.int32), weights, ExpertParams(**params)


def step(apply, x_ND, experts_NK, weights_NK, params):
    """Loss, lost assignments (None: none), and gradients in x, weights and params."""

    def loss(x_ND, weights_NK, params):
        empty = jnp.zeros((N, E))
        routing = Routing(experts_NK, weights_NK, empty, empty, experts_NK[:, 0] < E)
        # The layers around the dispatch belong to the partitioner.
        y_NO, lost_NK = apply(jnp.tanh(x_ND), routing, params, Functions(jax.nn.gelu))
        return jnp.mean((y_NO - 1) ** 2), lost_NK

    (value, lost_NK), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(
        x_ND, weights_NK, params
    )
    return value, lost_NK, grads


@functools.cache
def on_mesh(sizes, exchange, **options):
    """Compiled step on a mesh, a function placing its inputs, and the program's text."""
    mesh = mesh_of(**dict(sizes))
    axes = parallel.Axes().on(mesh, inputs()[3])
    tokens = tuple(a for a in axes.tokens if exchange != "replicated" or a != "expert")
    rows = NamedSharding(mesh, P(tokens))
    params = jax.tree.map(lambda spec: NamedSharding(mesh, spec), axes.weights())
    shardings = (rows, rows, rows, params)
    apply = functools.partial(
        parallel.apply_experts, mesh=mesh, exchange=exchange, **({"engine": "dropless"} | options)
    )
    out = (None, rows, (rows, rows, params))
    jitted = jax.jit(functools.partial(step, apply), in_shardings=shardings, out_shardings=out)
    compiled = jitted.lower(*inputs()).compile()
    return lambda args: compiled(*jax.device_put(args, shardings)), compiled


def one_device(args):
    apply = functools.partial(dispatch.apply_experts, engine="dense")
    return jax.jit(functools.partial(step, apply))(*args)


def assert_equal(got, want, tolerance=1e-6):
    assert got[1] is want[1] is None
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(want), strict=True):
        error = np.abs(np.asarray(a) - np.asarray(b)).max()
        assert error <= tolerance * max(1, np.abs(np.asarray(b)).max()), (path, error)


MESHES = [
    ((("data", 2), ("expert", 4)), "all_to_all"),
    ((("data", 2), ("expert", 4)), "all_gather"),
    ((("data", 2), ("expert", 4)), "ragged_all_to_all"),
    ((("fsdp", 2), ("expert", 2), ("tensor", 2)), "ragged_all_to_all"),
    ((("data", 2), ("expert", 4)), "replicated"),
    ((("data", 1), ("fsdp", 2), ("expert", 2), ("tensor", 2)), "all_to_all"),
    ((("data", 2), ("fsdp", 2), ("expert", 1), ("tensor", 2)), "all_to_all"),
]


@pytest.mark.parametrize(("sizes", "exchange"), MESHES)
def test_loss_and_gradients_equal_one_device(sizes, exchange):
    run, _ = on_mesh(sizes, exchange)
    for load in ("random", "skewed", "none"):
        assert_equal(run(inputs(load)), one_device(inputs(load)))


@pytest.mark.parametrize("exchange", ["all_to_all", "all_gather"])
def test_replicas_of_hot_experts_change_nothing(exchange):
    """Experts 0 and 1 have all first choices of 'skewed'; of 'none' nobody is hot."""
    run, compiled = on_mesh(MESHES[0][0], exchange, replicas=2)
    for load in ("random", "skewed", "none"):
        assert_equal(run(inputs(load)), one_device(inputs(load)))
    # What is fetched and summed back, w1 and w2, is 2 experts, not all 16 or a device's 4.
    found = entry_collectives(compiled)
    fetched = [s for kind, s in found if kind == "all-reduce" and s == f"f32[2,{F},{D}]"]
    assert len(fetched) == 2 * 2


def test_replicas_empty_the_buckets():
    """Dropping, the hot experts' rows overflow their device's bucket; replicated they do not."""
    lost = [
        on_mesh(*MESHES[0], overflow="drop", replicas=r)[0](inputs("skewed"))[1].sum()
        for r in (0, 2)
    ]
    assert lost[1] < 0.5 * lost[0]


def entry_collectives(compiled):
    """[(kind, shape)] of the program outside its loops, as ('all-to-all', 'f32[1,8,8]')."""
    kinds = "all-to-all|all-gather|all-reduce|reduce-scatter|collective-permute"
    entry = compiled.as_text().split("\nENTRY ")[1].split("\n}")[0]
    found = re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", entry)
    return [(kind, s) for shapes, kind in found for s in re.findall(r"\w+\[[\d,]*\]", shapes)]


@pytest.mark.parametrize("overflow", ["exact", "drop"])
def test_collectives_are_pinned_and_their_bytes_follow_the_formula(overflow):
    sizes, exchange = MESHES[0]
    options = {"overflow": "drop"} if overflow == "drop" else {}
    found = entry_collectives(on_mesh(sizes, exchange, **options)[1])
    # 8 tokens a device, 2 choices, 4 devices, slack 1.25: 5 rows, rounded to S = 8.
    rows, devices = parallel.bucket_rows(N // 8, K, 4), 4
    assert rows == 8
    # An all-to-all of p parts is a tuple of p arrays. Rows go there and back, forward and backward.
    exchanged = [shape for kind, shape in found if kind == "all-to-all"]
    assert exchanged.count(f"f32[1,{rows},{D}]") == 4 * devices
    assert exchanged.count(f"s32[1,{rows}]") == 1 * devices
    assert len(exchanged) == 5 * devices
    sent = 4 * sum(np.prod([int(n) for n in re.findall(r"\d+", s[3:])]) for s in exchanged)
    assert sent == 4 * devices * rows * D * 4 + devices * rows * 4
    # Nothing else but scalars and the sum of the weight gradients over `data`.
    others = sorted((k, s) for k, s in found if k != "all-to-all" and not s.endswith("[]"))
    local = [f"f32[{E // 4},{F}]", f"f32[{E // 4},{D}]", *[f"f32[{E // 4},{F},{D}]"] * 2]
    assert others == sorted(("all-reduce", s) for s in local)


@pytest.fixture
def fresh_compilation():
    """No persistent cache: a cached program would not be partitioned again."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


def test_experts_are_never_gathered_and_never_rematerialised(fresh_compilation, capfd):
    """With a control: the partitioner, left alone, does both."""
    mesh = mesh_of(fsdp=2, expert=4)
    axes = parallel.Axes().on(mesh, inputs()[3])
    rows = NamedSharding(mesh, P(axes.tokens))
    params = jax.tree.map(lambda spec: NamedSharding(mesh, spec), axes.weights())
    whole = {f"f32[{E},{F},{D // 2}]", f"f32[{E},{F},{D}]"}
    message = "Involuntary full rematerialization"

    def compile_with(apply):
        step_with = jax.jit(
            functools.partial(step, apply),
            in_shardings=(rows, rows, rows, params),
            out_shardings=(None, None, (rows, rows, params)),
        )
        text = step_with.lower(*inputs()).compile().as_text()
        return set(re.findall(r"\w+\[[\d,]*\]", text)) & whole, capfd.readouterr().err

    ours = compile_with(functools.partial(parallel.apply_experts, mesh=mesh, exchange="all_to_all"))
    control = compile_with(functools.partial(dispatch.apply_experts, engine="dense"))
    assert not ours[0]
    assert message not in ours[1]
    assert control[0]
    assert message in control[1]


def test_drops_are_named():
    x, chosen, weights, params = inputs("skewed")
    run, _ = on_mesh(*MESHES[0], overflow="drop")
    _, lost_NK, _ = run((x, chosen, weights, params))
    over = []
    for part in chosen.reshape(8, -1):  # one device's assignments: 8 rows per destination
        valid = part[part < E]
        over.append(np.maximum(np.bincount(valid // 4, minlength=4) - 8, 0).sum())
    assert max(over) > 0
    np.testing.assert_array_equal(np.asarray(lost_NK).reshape(8, -1).sum(1), over)


def test_a_receiver_of_the_ragged_exchange_takes_from_uneven_senders_what_fits_in_all():
    x, chosen, weights, params = inputs("skewed")
    run, _ = on_mesh(MESHES[0][0], "ragged_all_to_all", overflow="drop")
    _, lost_NK, _ = run((x, chosen, weights, params))
    over = []
    for group in chosen.reshape(2, 4, -1):  # the 4 senders of one expert axis, 32 places each
        counts = np.stack([np.bincount(part[part < E] // 4, minlength=4) for part in group])
        sent = np.clip(32 - (np.cumsum(counts, axis=0) - counts), 0, counts)
        over += list((counts - sent).sum(1))
    assert max(over) > 0
    np.testing.assert_array_equal(np.asarray(lost_NK).reshape(8, -1).sum(1), over)


@pytest.mark.parametrize(
    "exchange", ["all_to_all", "ragged_all_to_all", "all_gather", "replicated"]
)
def test_what_a_full_expert_drops_is_named_and_contributes_nothing(exchange):
    """Without the lost assignments the outputs are those of one device that drops nothing."""
    x, chosen, weights, params = inputs("skewed")
    run, _ = on_mesh(MESHES[0][0], exchange, engine="capacity", capacity=0.5)
    loss, lost_NK, _ = run((x, chosen, weights, params))
    assert 0 < lost_NK.sum() < (chosen < E).sum()
    assert not lost_NK[chosen == E].any()
    kept = np.where(lost_NK, E, chosen)
    np.testing.assert_allclose(loss, one_device((x, kept, weights, params))[0], rtol=1e-5)


def test_mesh_from_the_context_and_one_device_without_the_axis():
    x, chosen, weights, params = inputs()
    want = one_device((x, chosen, weights, params))
    apply = functools.partial(parallel.apply_experts, engine="dropless")
    with jax.set_mesh(mesh_of(data=1)):
        got = jax.jit(functools.partial(step, apply))(x, chosen, weights, params)
    assert_equal(got, want)


@pytest.mark.parametrize("sizes", [{"data": 2, "expert": 4}, {"data": 3}, {"fsdp": 2, "expert": 2}])
def test_the_layer_on_a_mesh_equals_the_layer_alone(sizes):
    """61 tokens divide by none of the meshes; gate and losses stay with the partitioner."""
    options = MoEOptions(num_experts=8, top_k=2, hidden=12, engine="dropless")
    layer = MoE(options, losses=("importance", "z"))
    x_ND = jnp.asarray(np.random.default_rng(0).normal(size=(61, D)), jnp.float32)
    valid_N = jnp.arange(61) % 5 > 0
    params = nn.unbox(layer.init(jax.random.key(0), x_ND, valid_N=valid_N, train=False))

    @jax.jit
    def run(params):
        def loss(params):
            y_ND, aux = layer.apply(params, x_ND, valid_N=valid_N, train=False)
            return jnp.mean((y_ND - 1) ** 2) + sum(aux.losses.values())

        return jax.value_and_grad(loss)(params)

    want = run(params)
    with jax.set_mesh(sharding.make_mesh(sizes)):
        got = run(params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), got, want)


def test_what_cannot_be_split_is_refused():
    x, chosen, weights, params = jax.tree.map(jnp.asarray, inputs())
    empty = jnp.zeros((N, E))
    routing = Routing(chosen, weights, empty, empty, chosen[:, 0] < E)
    apply = functools.partial(parallel.apply_experts, x, routing, functions=Functions(jnp.tanh))
    with pytest.raises(ValueError, match="moe.num_experts=16 cannot be split over 3 devices"):
        apply(params, mesh=mesh_of(expert=3))
    with pytest.raises(ValueError, match="moe.exchange='ring'"):
        apply(params, mesh=mesh_of(expert=2), exchange="ring")
    with pytest.raises(ValueError, match=r"moe.replicas=17 must be in \[0, 16\]"):
        apply(params, mesh=mesh_of(expert=2), replicas=17)
    with pytest.raises(ValueError, match="needs whole expert outputs"):
        apply(params, mesh=mesh_of(tensor=2), functions=Functions(jnp.tanh, jnp.tanh))


def test_slots_that_only_fill_devices_leave_no_trace():
    """3 slots on 2 devices; experts without biases give y / |y| no gradient where x is 0."""
    params = inputs()[3]
    params = params.replace(b1=0 * params.b1, b2=0 * params.b2)
    unit = Functions(jax.nn.gelu, lambda y: y / jnp.linalg.norm(y, axis=-1, keepdims=True))
    x_ECD = np.random.default_rng(0).normal(size=(E, 3, D)).astype(np.float32)

    @jax.jit
    def run(*args):
        return jax.value_and_grad(lambda *a: jnp.sum(slots.run(*a, unit) ** 3), (0, 1))(*args)

    want = run(x_ECD, params)
    with jax.set_mesh(mesh_of(data=2)):
        got = run(x_ECD, params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got, want)
