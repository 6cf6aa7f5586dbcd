"""What a compiled program's text says, against programs whose figures are known by hand.

N rows, D width.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from m4 import sharding
from m4.plan import closed_form, hlo

MESH = {"data": 2, "fsdp": 1, "expert": 4, "tensor": 1}


def groups(text):
    return hlo.axes_of(text, MESH)


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}, x", ("expert",)),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", ("data",)),
        ("replica_groups={}, x", ("data", "expert")),
        ("replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, x", ()),
        ("replica_groups=[2,4]<=[8], x", ("expert",)),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", ("data",)),
        ("replica_groups=[1,8]<=[8], x", ("data", "expert")),
        ("source_target_pairs={{0,1},{1,2},{2,3},{3,0}}, x", ("expert",)),
        ("source_target_pairs={{0,4},{4,0}}, x", ("data",)),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, x",)
        + (("expert",),),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_1'}, x",)
        + (("data",),),
        ("replica_groups=mesh['axis_0'=8] {'axis_0':(1)2}, x", ("data",)),
        ("replica_groups=mesh['axis_0'=8] {'axis_0':(2)4}, x", ("expert",)),
        ("replica_groups=mesh['a'=8,'b'=1] {'a'}, x", ("data", "expert")),
    ],
)
def test_axes_of_groups(text, axes):
    assert groups(text) == axes


@pytest.fixture(scope="module")
def trained():
    """Gradient step of a stack of five equal layers, rows over data, one weight over tensor."""
    mesh = sharding.make_mesh({"data": 4, "tensor": 2})

    def loss(params, x_ND):
        def layer(x_ND, w_DD):
            return jnp.tanh(x_ND @ w_DD), None

        x_ND, _ = jax.lax.scan(layer, x_ND, params["stack"])
        return jnp.mean(jnp.tanh(x_ND @ params["out"]) ** 2)

    def step(params, x_ND):
        return jax.tree.map(lambda p, g: p - g, params, jax.grad(loss)(params, x_ND))

    def shaped(shape, spec):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))

    params = {"stack": shaped((5, 32, 32), P()), "out": shaped((32, 64), P(None, "tensor"))}
    rows = shaped((128, 32), P("data"))
    placed = jax.tree.map(lambda p: p.sharding, params)
    compiled = jax.jit(step, out_shardings=placed).lower(params, rows).compile()
    form = closed_form.count(step, (params, rows), mesh, params)
    return hlo.read(compiled.as_text() or "", dict(mesh.shape)), form, compiled


def test_products_of_loops_count_every_time(trained):
    program, form, _ = trained
    rows, width, wide = 128, 32, 64
    stack = 3 * 5 - 1  # forward, weights', rows' but for the first layer's input
    by_hand = 2 * rows * (stack + 1) * width * width + 3 * 2 * rows * width * wide
    assert form.flops * 8 == by_hand
    # The stack is not split over tensor: each chip of a pair does all of it.
    split = 3 * 2 * rows * width * wide / 8
    both = 2 * rows * (stack + 1) * width * width / 4
    assert program.products == {"f32": pytest.approx(split + both, rel=1e-6)}


def test_what_gradients_send(trained):
    program, form, _ = trained
    stack, out = 5 * 32 * 32 * 4, 32 * 64 * 4 / 2
    assert form.wire_bytes == {"data": pytest.approx(2 * 3 / 4 * (stack + out))}
    sent = {}
    for one in program.collectives:
        sent[one.axes] = sent.get(one.axes, 0) + one.times * one.wire
    assert sent["data",] == pytest.approx(form.wire_bytes["data"], rel=0.01)
    assert sent["tensor",] > 0  # activations' gradients


def test_bytes_on_a_chip(trained):
    _, form, compiled = trained
    own = 5 * 32 * 32 * 4 + 32 * 64 * 4 // 2 + 128 * 32 * 4 // 4
    assert form.argument_bytes == compiled.memory_analysis().argument_size_in_bytes == own


def test_branches_and_data_dependent_loops():
    x_DD = jnp.ones((16, 16))

    def body(x_DD):
        y_DD = jax.lax.cond(x_DD[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x_DD)
        return jax.lax.while_loop(lambda y: jnp.sum(y) < 10, lambda y: y @ y + 1, y_DD)

    compiled = jax.jit(body).lower(x_DD).compile()
    program = hlo.read(compiled.as_text() or "", {"data": 1})
    assert program.products == {"f32": 2 * 2 * 16**3}
    assert program.loops == 1 and program.collectives == () and program.callbacks == 0
    equations = closed_form.walk(jax.make_jaxpr(body)(x_DD).jaxpr, 1.0)
    assert sum(times * closed_form.flops(e) for e, times in equations) == 2 * 2 * 16**3


def test_flops_of_every_product():
    def counted(function, *args):
        found = closed_form.walk(closed_form.needed(function, args), 1.0)
        return sum(times * closed_form.flops(e) for e, times in found)

    x, w = jnp.ones((3, 5, 7)), jnp.ones((3, 7, 11))
    assert counted(lambda x, w: jnp.einsum("bij,bjk->bik", x, w), x, w) == 2 * 3 * 5 * 7 * 11
    image, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))

    def convolved(x, k):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=numbers)

    assert counted(convolved, image, kernel) == 2 * (2 * 8 * 8 * 4) * 3 * 3 * 3
    rows, experts = jnp.ones((12, 5)), jnp.ones((4, 5, 6))
    sizes = jnp.asarray([3, 3, 3, 3])
    assert counted(jax.lax.ragged_dot, rows, experts, sizes) == 2 * 12 * 5 * 6
    # Its weight gradient sums over rows, and is all that is left of forward and backward.
    gradient = jax.grad(lambda e: jax.lax.ragged_dot(rows, e, sizes).sum())
    assert counted(gradient, experts) == 2 * 12 * 5 * 6


def test_convolutions_count_what_meets_an_input():
    image, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
    numbers = ("NHWC", "HWIO", "NHWC")

    def convolved(x, k):
        return jax.lax.conv_general_dilated(x, k, (2, 1), "SAME", dimension_numbers=numbers)

    text = jax.jit(convolved).lower(image, kernel).compile().as_text()
    wide = sum(0 <= 2 * o + k < 8 for o in range(4) for k in range(3))
    high = sum(0 <= o + k - 1 < 8 for o in range(8) for k in range(3))
    by_hand = 2 * 2 * 4 * 3 * wide * high
    assert hlo.read(text or "", {"data": 1}).products == {"f32": by_hand}
    # A product over a batch, [4, 5, 6] x [4, 6, 7], as a TPU's compiler writes it.
    line = (
        "ENTRY %main (a: f32[4,5,6]) -> f32[4,5,7] {\n  %a = f32[4,5,6] parameter(0)\n"
        "  %b = f32[4,6,7] parameter(1)\n  ROOT %c = f32[4,5,7] convolution(%a, %b),"
        " window={size=4 stride=3 pad=0_0 lhs_dilate=4}, dim_labels=0bf_0io->0bf\n}\n"
    )
    assert hlo.read(line, {"data": 1}).products == {"f32": 2 * 4 * 5 * 6 * 7}


def test_the_largest_live_set():
    def peak(x_N):
        a_N = x_N * 2  # one array
        b_N = a_N + 1  # two: a is used again
        return jnp.sum(a_N * b_N)

    jaxpr = jax.make_jaxpr(peak)(np.ones(1000, np.float32)).jaxpr
    one = functools.partial(closed_form.share_of, parts=1, tiled=False)
    assert closed_form.live_bytes(jaxpr, one) == 3 * 4000
    assert closed_form.live_bytes(jaxpr, functools.partial(one, parts=4)) == 3 * 1000


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((), 512),
        ((3,), 512),
        ((300,), 2048),
        ((8, 128), 4096),
        ((9, 128), 2 * 4096),
        ((1, 128), 512),
        ((64, 3), 4 * 4 * 128),  # turned: 3 rows of 64 in tiles of 4
        ((5, 64, 128), 5 * 64 * 128 * 4),
    ],
)
def test_arrays_of_a_tpu_fill_tiles(shape, size):
    assert closed_form.stored(shape, 4, tiled=True) == size
    assert closed_form.stored(shape, 4, tiled=False) == 4 * np.prod(shape, dtype=int)
