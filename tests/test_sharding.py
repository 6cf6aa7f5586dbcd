"""Mesh, rules, shardings; a data-parallel step equals the single-device step."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from m4 import sharding
from m4.errors import ConfigError
from m4.train import optim
from m4.train.checkpoint import abstract
from m4.train.step import init_params, init_state, make_step
from tests import toy


def test_too_large_a_mesh_is_refused_with_the_numbers():
    with pytest.raises(ConfigError, match=r"data=4\*fsdp=1\*expert=4\*tensor=1 needs 16.*found 8"):
        sharding.make_mesh({"data": 4, "expert": 4})


def boxed(shape, *names):
    box = nn.LogicallyPartitioned(jnp.zeros(shape), names)
    return jax.eval_shape(lambda: box)


def test_parameter_shardings_by_rule_and_by_size():
    mesh = sharding.make_mesh({"fsdp": 2, "expert": 2, "tensor": 2})
    params = {
        "experts": boxed((4, 6, 8), "expert", "embed", "mlp"),
        "odd": boxed((3, 6), "expert", "embed"),  # 3 experts can't be split over 2
        "odder": boxed((3, 8), "expert", "embed"),  # their width can
        "twice": boxed((4, 4), "mlp", "heads"),  # one axis can be used once
        "up": {"kernel": jax.ShapeDtypeStruct((1, 64, 256), jnp.float32)},
        "down": {"kernel": jax.ShapeDtypeStruct((1, 256, 64), jnp.float32)},
        "large": jax.ShapeDtypeStruct((300, 512), jnp.float32),
        "small": jax.ShapeDtypeStruct((4, 4), jnp.float32),
    }
    specs = jax.tree.map(lambda s: s.spec, sharding.param_shardings(params, mesh))
    assert specs["experts"] == PartitionSpec("expert", "fsdp", "tensor")
    assert specs["odd"] == PartitionSpec(None, "fsdp")
    assert specs["odder"] == PartitionSpec(None, ("fsdp", "expert"))
    assert specs["twice"] == PartitionSpec("tensor", None)
    assert specs["up"]["kernel"] == PartitionSpec(None, ("fsdp", "expert"), "tensor")
    assert specs["down"]["kernel"] == PartitionSpec(None, "tensor", ("fsdp", "expert"))
    # By size: fsdp on the larger, then what is left of the two dimensions is equal or reversed.
    assert specs["large"] == PartitionSpec("expert", ("fsdp", "tensor"))
    assert specs["small"] == PartitionSpec()
    plain = sharding.unbox({"a": nn.LogicallyPartitioned(jnp.ones(2), ("embed",))})
    assert isinstance(plain["a"], jax.Array)


def test_moments_and_average_live_where_their_parameters_do():
    mesh = sharding.make_mesh({"fsdp": 2})
    params = {"kernel": jax.ShapeDtypeStruct((512, 256), jnp.float32)}
    tx = optim.make_optimiser("adamw", lambda _: 0.1, weight_decay=0.1, clip_norm=1.0)
    placed = sharding.param_shardings(params, mesh)
    state = jax.eval_shape(lambda p: init_state(p, tx, ema=0.9), params)
    found = sharding.state_shardings(state, placed, tx, mesh)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    split = [s for s in jax.tree.leaves(found) if s.spec == PartitionSpec("fsdp", None)]
    assert len(split) == 4  # parameter, average, two moments


def losses_on(sizes, *, steps=3, dropout=0.1, accumulate=1, shard=False, width=256):
    """Losses, final parameters and the state of a few steps, with dropout, on a mesh."""
    mesh = sharding.make_mesh(sizes)
    method = toy.Toy(data=toy.SPEC, width=width, dropout=dropout)
    tx = optim.make_optimiser("adamw", lambda _: 0.01, weight_decay=0.01, clip_norm=1.0)
    first = sharding.put_batch(toy.batch(0), mesh)

    def init():
        return init_state(init_params(method, toy.batch(0), seed=0), tx, ema=0.9)

    shapes = jax.eval_shape(init)
    placed = sharding.param_shardings(shapes.params, mesh)
    shardings = sharding.state_shardings(shapes, placed, tx, mesh, shard=shard)
    split = sharding.over_data(shapes.params, placed) if shard else placed
    scatter = lambda grads: jax.lax.with_sharding_constraint(grads, split)  # noqa: E731
    step = make_step(method, tx, seed=0, ema=0.9, accumulate=accumulate, scatter=scatter)
    whole = sharding.replicated(mesh)
    state = jax.jit(init, out_shardings=shardings)()
    totals = jax.device_put(step.zeros(state, first), whole)
    like = abstract(totals, jax.tree.map(lambda _: whole, totals))
    jitted = jax.jit(step.apply, donate_argnums=0, out_shardings=(shardings, whole))
    compiled = jitted.lower(state, like, first).compile()
    losses = []
    for number in range(steps):
        batch = sharding.put_batch(toy.batch(number), mesh)
        state, new = compiled(state, totals, batch)
        losses.append(float(new.means["loss"].total))
    return losses, jax.device_get(state.params), state


def test_moments_and_average_split_over_data():
    one, params, whole = losses_on({"data": 8}, width=2048)
    for sizes in ({"data": 8}, {"data": 4, "fsdp": 2}):
        many, other, state = losses_on(sizes, shard=True, width=2048)
        np.testing.assert_allclose(many, one, rtol=0, atol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, other)
        large = [x for x in jax.tree.leaves((state.opt, state.ema)) if x.size >= 2**12]
        assert len(large) >= 3
        for x in large:  # an eighth of it on each device
            assert x.addressable_shards[0].data.size == x.size // 8, x.sharding
    for x in jax.tree.leaves(state.params):
        assert "data" not in jax.tree.leaves(tuple(x.sharding.spec))
    kept = [x.addressable_shards[0].data.size for x in jax.tree.leaves((whole.opt, whole.ema))]
    assert max(kept) >= 2**12  # without it every device has all


def test_eight_devices_agree_with_one():
    one, params, _ = losses_on({})
    for sizes in ({"data": 8}, {"data": 2, "fsdp": 2, "expert": 2}):
        many, other, _ = losses_on(sizes)
        np.testing.assert_allclose(many, one, rtol=0, atol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, other)
    assert len(set(one)) == 3


def test_micro_batches_on_devices_are_one_batch_on_one():
    one, params, _ = losses_on({}, dropout=0.0)
    for sizes in ({"data": 8}, {"data": 2, "fsdp": 2, "expert": 2}):
        with jax.set_mesh(sharding.make_mesh(sizes)):
            many, other, _ = losses_on(sizes, dropout=0.0, accumulate=2)
        np.testing.assert_allclose(many, one, rtol=0, atol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, other)


def test_micro_batches_keep_rows_where_they_are():
    with jax.set_mesh(sharding.make_mesh({"data": 4})):
        rows = sharding.put_whole(np.arange(16), sharding.rows(sharding.make_mesh({"data": 4})))
        program = jax.jit(lambda x: sharding.micro_batches(x, 2)).lower(rows).compile()
        parts = program(rows)
    # Devices hold 0..3, 4..7, 8..11, 12..15; every part has two rows of each.
    assert parts.tolist() == [[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]
    for moved in ("all-to-all", "all-gather", "collective-permute", "all-reduce"):
        assert moved not in program.as_text()
