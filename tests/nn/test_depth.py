"""Layers as a loop: the same numbers as layers written out, in a program that does not grow."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from m4 import sharding
from m4.config import code
from m4.maths import LAYERS
from m4.nn import layers
from m4.nn.layers import Dropout
from m4.run import setup
from m4.train import optim
from m4.train import step as steps
from tests.train import methods

LOOPED = [
    name
    for name in methods.NAMES
    if "scan" in {field.name for field in dataclasses.fields(code.method_class(name))}
]
QUICK = ("fusemoe",)
CASES = [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in LOOPED]


def numbered(name, i, every):
    """The name of a part of the loop's layer in its `i`-th turn; Flex-MoE's layers are pairs."""
    pairs = 2 if "mlp_1" in every and not name.startswith("layer") else 1
    return re.sub(r"_(\d)", lambda found: f"_{pairs * i + int(found[1])}", name, count=1)


def stacked(written, looped):
    """Parameters of numbered layers, laid out as those of the loop."""
    if not isinstance(looped, dict):
        return written
    found = {}
    for name, part in looped.items():
        if name.endswith(LAYERS):
            depth = jax.tree.leaves(part)[0].shape[0]
            layers = [{own: written[numbered(own, i, part)] for own in part} for i in range(depth)]
            found[name] = jax.tree.map(lambda *x: np.stack(x), *layers)
        else:
            found[name] = stacked(written[name], part)
    return found


def pair(name, **fields):
    """A method with layers written out and in a loop, a batch, and equal parameters of both."""
    batch = methods.batch()
    fields |= {"moe": {"router": "top_k"} if name != "m4oe" else {}}  # that draws nothing
    written, looped = (methods.small(name, scan=scan, **fields) for scan in (False, True))
    params = methods.params(written, batch)
    like = jax.eval_shape(lambda: sharding.unbox(steps.init_params(looped, batch, seed=0)))
    return written, looped, batch, params, stacked(params, like)


def losses(method, params, batch, *, boxed=None, sizes=None, **how):
    """Of three steps of training, on a mesh with the parameters where they belong."""
    tx = optax.adam(1e-3)
    mesh = sharding.make_mesh(sizes or {}, None if sizes else jax.devices()[:1])
    step = steps.make_step(method, tx, seed=0, **how)
    with setup.context(mesh):
        if boxed is not None:
            params = jax.device_put(params, sharding.param_shardings(boxed, mesh))
            batch = sharding.put_batch(batch, mesh)
        state = steps.init_state(params, tx, ema=0.0)
        totals, found = step.zeros(state, batch), []
        apply = jax.jit(step.apply).lower(state, totals, batch).compile(methods.FAST)
        for _ in range(3):
            state, after = apply(state, totals, batch)
            found.append(float(after.means["loss"].total))
    return np.array(found)


@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_of_layers_written_out(name):
    written, looped, batch, *params = pair(name, depth=4)
    one, other = losses(written, params[0], batch), losses(looped, params[1], batch)
    assert one[-1] < one[0]
    np.testing.assert_allclose(other, one, rtol=1e-6)


HOW = {
    "remat": {"remat": "layer"},
    "accumulate": {"accumulate": 2, "remat": "dots"},
    "bfloat16": {"precision": "bfloat16"},
    "tensor": {"sizes": {"data": 2, "tensor": 4}},
    "experts": {"sizes": {"data": 2, "fsdp": 2, "expert": 2}, "remat": "layer"},
}


@pytest.mark.parametrize(
    "how", [pytest.param(h, marks=() if h == "experts" else pytest.mark.slow) for h in HOW]
)
def test_so_they_are_with_every_lever(how):
    """And on a mesh of eight devices, where the stacked parameters are split."""
    written, looped, batch, *params = pair("fusemoe", depth=2)
    found, sizes = [], HOW[how].get("sizes")
    for method, own in zip((written, looped), params, strict=True):
        more = {}
        if sizes:
            boxed = jax.eval_shape(lambda m=method: steps.init_params(m, batch, seed=0))
            gather = sharding.gatherer(boxed, sharding.make_mesh(sizes))
            more = {"boxed": boxed, "gather": gather}
        found.append(losses(method, own, batch, **HOW[how], **more))
    # A difference in the last digit can be one in the third after rounding to bfloat16.
    apart = 1e-3 if how == "bfloat16" else 1e-6
    np.testing.assert_allclose(found[1], found[0], rtol=apart)


def test_devices_split_what_is_in_a_layer_not_the_layers():
    method, batch = methods.small("fusemoe", depth=16, width=64, scan=True), methods.batch()
    boxed = jax.eval_shape(lambda: steps.init_params(method, batch, seed=0))
    mesh = sharding.make_mesh({"fsdp": 2, "expert": 2, "tensor": 2})
    placed = sharding.param_shardings(boxed, mesh)["layers"]
    assert {s.spec[0] for s in jax.tree.leaves(placed) if s.spec} == {None}
    assert placed["layer_0"]["w1"].spec[1] == "expert"
    assert placed["time_0"]["attention"]["qkv"]["kernel"].spec[2:] == (("fsdp", "expert"), "tensor")


def test_layers_differ_in_what_they_draw():
    """Initial values have each layer's own scale, and neither they nor dropout are another's."""
    batch, depth = methods.batch(rows=64), 3
    written, looped = (methods.small("fusemoe", depth=depth, scan=s) for s in (False, True))
    one, other = methods.params(written, batch), methods.params(looped, batch)["layers"]
    for path, x in jax.tree_util.tree_leaves_with_path(other):
        assert len(x) == depth
        first = one[path[0].key]
        for part in path[1:]:
            first = first[part.key]
        assert x.shape[1:] == first.shape
        if first.std() > 0 and first.size > 50:
            spread = x.std(axis=tuple(range(1, x.ndim)))
            np.testing.assert_allclose(spread, first.std(), rtol=0.5, err_msg=str(path))
            assert not np.array_equal(x[0], x[1])


class Masks(nn.Module):
    """Says which elements each of three layers keeps."""

    scan: bool

    @nn.compact
    def __call__(self, x):
        def layer(i, x):
            return x, Dropout(0.5, deterministic=False, name=f"drop_{i}")(x)

        return jnp.stack(layers.repeat(layer, 3, x, scan=self.scan)[1])


def test_dropout_is_drawn_anew_in_every_layer():
    masks = Masks(scan=True).apply({}, jnp.ones(64), rngs={"dropout": jax.random.key(0)}) > 0
    again = Masks(scan=True).apply({}, jnp.ones(64), rngs={"dropout": jax.random.key(0)}) > 0
    np.testing.assert_array_equal(masks, again)
    shares = [float((masks[i] == masks[j]).mean()) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert max(shares) < 0.8, shares


@pytest.mark.parametrize("name", LOOPED)
def test_decay_spares_what_it_spares_of_layers_written_out(name):
    written, looped, _, params, own = pair(name, depth=4)
    assert written != looped
    mask = jax.tree.map(np.asarray, optim.decayed(params))
    every = jax.tree.map(lambda x, m: np.full(np.shape(x), m), params, mask)
    want = stacked(every, own)
    jax.tree.map(lambda m, w: np.testing.assert_array_equal(m, w), optim.decayed(own), want)


def lines(name, layers, **fields):
    """Of the StableHLO of a train step."""
    batch, tx = methods.batch(), optax.adamw(1e-3)
    method = methods.small(name, scan=True, depth=layers, **fields)
    params = jax.eval_shape(lambda: sharding.unbox(steps.init_params(method, batch, seed=0)))
    step = steps.make_step(method, tx, seed=0)
    state = jax.eval_shape(lambda: steps.init_state(params_of(params), tx, ema=0.9))
    totals = jax.eval_shape(step.zeros, state, batch)
    return jax.jit(step.apply).lower(state, totals, batch).as_text().count("\n")


def params_of(shapes):
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


@pytest.mark.parametrize("name", LOOPED)
def test_sixteen_layers_are_hardly_more_program_than_two(name):
    more = {"fusion_depth": 2} if name == "m4oe" else {}
    few = lines(name, 2, **more)
    many = lines(name, 16, **dict.fromkeys(more, 16))
    assert many <= 1.2 * few, (few, many)
