"""The layer as a whole: interface, parameters, masks."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from m4.moe.layer import MoE

N, D, M = 12, 8, 3


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, D)).astype(np.float32)
    return x, {"valid_N": rng.random(N) < 0.7, "modality_N": np.arange(N) % M}


def test_parameter_tree_and_stats():
    x, given = inputs()
    layer = MoE(num_experts=6, top_k=2, hidden=16, router="noisy_top_k", num_modalities=M)
    layer = layer.clone(sharing="disjoint", losses=("importance", "load", "entropy"))
    rngs = {"params": jax.random.key(0), "gate": jax.random.key(1)}
    variables = layer.init(rngs, x, **given, train=True)
    shapes = jax.tree.map(jnp.shape, nn.unbox(variables["params"]))
    assert shapes == {
        "gate_centre": (3, 8, 2),
        "router_noise": (3, 8, 2),
        "w1": (6, 8, 16),
        "b1": (6, 16),
        "w2": (6, 16, 8),
        "b2": (6, 8),
    }
    y, aux = layer.apply(variables, x, **given, num_rows=4, train=False)
    assert y.shape == (N, D)
    assert set(aux.losses) == {"importance", "load", "entropy"}
    valid = given["valid_N"]
    assert aux.stats["by_modality"].sum() == 2 * valid.sum()
    np.testing.assert_array_equal(aux.stats["by_row"].sum(0), aux.stats["by_modality"])
    # disjoint: modality m only ever visits experts 2m and 2m + 1
    by_modality = aux.stats["by_modality"].reshape(M, M, 2)
    assert (by_modality * (1 - np.eye(M))[..., None]).sum() == 0


def test_garbage_in_an_invalid_slot_changes_nothing():
    x, given = inputs()
    layer = MoE(num_experts=4, top_k=2, hidden=16)
    variables = layer.init(jax.random.key(0), x, **given, train=False)
    garbage = np.where(given["valid_N"][:, None], x, np.nan)
    clean, _ = layer.apply(variables, x, **given, train=False)
    dirty, _ = layer.apply(variables, garbage, **given, train=False)
    np.testing.assert_array_equal(clean, dirty)
    assert not np.any(np.asarray(clean)[~given["valid_N"]])
