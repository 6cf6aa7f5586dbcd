"""Task heads."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from m4.nn.layers import TaskHeads
from m4.specs import TaskSpec

TASKS = (TaskSpec("death", "binary"), TaskSpec("ward", "multiclass", dim=3))


def test_two_logits_are_one_logit():
    # Softmax cross-entropy of (z0, z1) is the sigmoid cross-entropy of z1 - z0.
    h = np.array([[1.0, 2.0], [-1.0, 0.5]], np.float32)
    kernel = np.array([[0.3, -0.2], [0.1, 0.7]], np.float32)
    params = {
        "death": {"kernel": kernel, "bias": np.array([0.1, -0.4], np.float32)},
        "ward": {"kernel": np.ones((2, 3), np.float32), "bias": np.zeros(3, np.float32)},
    }
    heads = TaskHeads(TASKS, two_logits=True)
    logits = heads.apply({"params": params}, {"death": h, "ward": h})
    pair = h @ kernel + params["death"]["bias"]
    label = np.array([1, 0])
    np.testing.assert_allclose(
        optax.sigmoid_binary_cross_entropy(logits["death"][:, 0], label),
        optax.softmax_cross_entropy_with_integer_labels(pair, label),
        rtol=1e-6,
    )
    assert logits["ward"].shape == (2, 3)  # only binary tasks are doubled


def test_kinds_of_other_methods_are_refused():
    heads = TaskHeads((TaskSpec("seg", "segmentation", dim=4),))
    with pytest.raises(ValueError, match="task seg: no generic head for kind 'segmentation'"):
        heads.init(jax.random.key(0), {"seg": jnp.ones((1, 2))})


def test_no_tasks_have_no_logits():
    assert TaskHeads(()).init_with_output(jax.random.key(0), {}) == ({}, {})
