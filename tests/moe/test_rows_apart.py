"""Routing on a mesh: every device routes its own rows, and no program gathers those of others."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from m4 import maths, sharding
from m4.moe import losses as all_losses
from m4.moe import options, route, routers
from m4.moe.layer import MoE
from m4.moe.options import MoEOptions, SoftOptions
from m4.moe.product_keys import product_keys
from m4.moe.soft import SoftExperts

B, T, E, K = 16, 4, 16, 5
N = B * T
ROUTERS = sorted(set(options.known("router")) - {"expert_choice"})


def given():
    rng = np.random.default_rng(0)
    return {
        "k": K,
        "x_ND": jnp.asarray(rng.normal(size=(N, 8)), jnp.float32),
        "noise_DE": jnp.asarray(rng.normal(size=(8, E)), jnp.float32),
        "noise_NE": jnp.asarray(rng.normal(size=(N, E)), jnp.float32),
        "outer_NG": jnp.asarray(rng.normal(size=(N, 4)), jnp.float32),
        "bias_E": jnp.zeros(E),
        "num_groups": 4,
        "num_rows": B,
        "num_experts": E,
        "pattern_N": jnp.asarray(rng.integers(0, 9, N), jnp.int32),
        "modality_N": jnp.arange(N) % T,
        "num_modalities": T,
        "task_N": jnp.arange(N) % 2,
        "num_tasks": 2,
        "gate_N": jnp.zeros(N, jnp.int32),
        "allowed_GE": jnp.ones((1, E), bool),
        "train": True,
    }


def route_all(scores_NE, found):
    """A number of every router, every loss and all statistics, and what they chose."""
    valid_N, total, chosen = jnp.arange(N) % 7 > 0, 0.0, {}
    own = {"group_limited": {"groups_kept": 3}, "hierarchical": {"groups_kept": 1}}
    for name in ROUTERS:
        router = getattr(routers, name)
        size = {"k": 4} if name == "hierarchical" else {}
        args = {**found, **size}
        routing = route.call(router, scores_NE, valid_N, options=own.get(name), **args)
        chosen[name] = routing.experts
        total += jnp.sum(routing.weights**2)
        if name in ("noisy_top_k", "soft"):  # the margin of `soft` is a search of its own
            total += route.call(all_losses.statistics, routing, None, **args)["margin"]
        for loss in options.known("losses") if name == "noisy_top_k" else ():
            bias = {"bias_E": found["bias_E"][None]} if loss == "loss_free" else {}
            total += route.call(getattr(all_losses, loss), routing, **args | bias)
    choice = routers.expert_choice(scores_NE, valid_N, k=K, num_rows=B, train=True)
    chosen["expert_choice"] = choice.tokens
    keys = product_keys(scores_NE.reshape(N, 2, 8), found["keys_2SQ"], k=5)
    return total + jnp.sum(choice.weights**2) + jnp.sum(keys[1] ** 2), (chosen, keys[0])


def compile_on(mesh, jitted, *args):
    return jitted.lower(*args).compile(sharding.compiler_options(mesh))


def gathered(compiled):
    """Results of the all-gathers of a program."""
    found = re.findall(r"= (.*?) all-gather(?:-start)?\(", compiled.as_text())
    return [s for shapes in found for s in re.findall(r"\w+\[[\d,]*\]", shapes)]


def test_every_router_loss_and_statistic_keeps_rows_where_they_are():
    rng = np.random.default_rng(1)
    scores_NE = jnp.asarray(rng.normal(size=(N, E)), jnp.float32)
    found = given()
    found["keys_2SQ"] = jnp.asarray(rng.normal(size=(2, 16, 4)), jnp.float32)
    step = jax.value_and_grad(lambda s: route_all(s, found), has_aux=True)
    want = jax.jit(step)(scores_NE)
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "expert": 2})
    rows = sharding.rows(mesh)
    with jax.set_mesh(mesh):
        compiled = compile_on(mesh, jax.jit(step, in_shardings=rows), scores_NE)
        got = compiled(jax.device_put(scores_NE, rows))
    assert gathered(compiled) == []
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-6), got, want)


# --- slots: soft mixtures and expert choice -------------------------------------------------------

MESHES = [{"data": 2, "expert": 4}, {"fsdp": 2, "expert": 2, "tensor": 2}, {"expert": 8}]


def run_soft(params, x_BSTD, *, stacks):
    """Loss of a soft mixture: 8 experts shared by all sequences, or 3 of each of two stacks."""
    soft = SoftOptions(num_experts=8 if stacks == 1 else 3, hidden=16)
    layer = SoftExperts(soft, num_slots=2, num_stacks=stacks)
    mask_BST = jnp.arange(T) < jnp.arange(1, 3)[:, None] + jnp.arange(B)[:, None, None] % 3
    if params is None:
        return nn.unbox(layer.init(jax.random.key(0), x_BSTD, mask_BST))
    slots: Any = layer.apply(params, x_BSTD, mask_BST)
    return jnp.mean((slots.tokens() - 1) ** 2)


@pytest.mark.parametrize("stacks", [1, 2])
def test_slots_travel_to_their_experts_and_weights_stay(stacks, capfd):
    """Six experts over four or eight devices are split by width instead."""
    x_BSTD = jnp.asarray(np.random.default_rng(0).normal(size=(B, 2, T, 8)), jnp.float32)
    params = run_soft(None, x_BSTD, stacks=stacks)
    step = functools.partial(run_soft, stacks=stacks)
    want = jax.jit(jax.value_and_grad(step))(params, x_BSTD)
    for sizes in MESHES:
        mesh = sharding.make_mesh(sizes)
        shapes = jax.eval_shape(functools.partial(boxed, stacks), x_BSTD)
        placed = sharding.param_shardings(shapes, mesh)
        with jax.set_mesh(mesh):
            jitted = jax.jit(
                jax.value_and_grad(step),
                in_shardings=(placed, sharding.rows(mesh)),
                out_shardings=(None, placed),
            )
            compiled = compile_on(mesh, jitted, params, x_BSTD)
            put = jax.device_put(params, placed), jax.device_put(x_BSTD, sharding.rows(mesh))
            got = compiled(*put)
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), got, want)
        split = mesh.shape["expert"] <= 4 and (stacks == 1 or mesh.shape["expert"] == 2)
        if split and mesh.shape["fsdp"] == 1:
            assert gathered(compiled) == []
    assert "Involuntary full rematerialization" not in capfd.readouterr().err


def boxed(stacks, x_BSTD):
    layer = SoftExperts(SoftOptions(num_experts=8 if stacks == 1 else 3, hidden=16), 2, stacks)
    return layer.init(jax.random.key(0), x_BSTD, jnp.ones(x_BSTD.shape[:3], bool))


def test_experts_that_choose_take_from_their_devices_rows():
    moe = MoEOptions(router="expert_choice", num_experts=8, top_k=2, hidden=12)
    layer, x_ND = MoE(moe), jnp.asarray(np.random.default_rng(0).normal(size=(N, 8)), jnp.float32)
    inputs = {"valid_N": jnp.arange(N) % 7 > 0, "num_rows": B, "train": True}
    params = nn.unbox(layer.init(jax.random.key(0), x_ND, **inputs))

    def loss(params, x_ND):
        return jnp.mean((layer.apply(params, x_ND, **inputs)[0] - 1) ** 2)

    step = jax.value_and_grad(loss)
    want = jax.jit(step)(params, x_ND)
    mesh = sharding.make_mesh({"data": 2, "expert": 4})
    with jax.set_mesh(mesh):
        jitted = jax.jit(step, in_shardings=(None, sharding.rows(mesh)))
        compiled = compile_on(mesh, jitted, params, x_ND)
        got = compiled(params, jax.device_put(x_ND, sharding.rows(mesh)))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), got, want)
    assert not [s for s in gathered(compiled) if f"[{N}," in s or f"[{B}," in s], gathered(compiled)


def test_what_is_searched_by_rows_has_no_gradient_on_one_device_either():
    def total(x_NE):
        return maths.by_rows(lambda x: x.max(axis=-1), x_NE).sum()

    assert (jax.grad(total)(jnp.arange(6.0).reshape(2, 3)) == 0).all()
