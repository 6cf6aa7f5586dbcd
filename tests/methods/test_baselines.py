"""What is particular to the fusion baselines; the laws ask the rest of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m4 import task_losses
from m4.methods.i2moe import interaction
from m4.methods.latefusion import LateFusion
from m4.methods.medfuse import MedFuse
from m4.methods.simmlm import SimMLM
from tests import properties


def test_interaction_losses_by_hand():
    """Two modalities, four experts; row 1 has one modality only, which tells nothing."""
    rng = np.random.default_rng(0)
    h = rng.normal(size=(2, 4, 3, 5)).astype(np.float32)
    found = interaction(h, np.array([[True, True], [True, False]]), 1.0)
    whole, less = h[0, :, 0], h[0, :, 1:]
    far = np.linalg.norm(whole[:, None] - less, axis=-1)
    triplets = [max(0, far[0, 1] - far[0, 0] + 1), max(0, far[1, 0] - far[1, 1] + 1)]

    def cosines(e):
        lengths = np.linalg.norm(whole[e]) * np.linalg.norm(less[e], axis=-1)
        return less[e] @ whole[e] / lengths

    wanted = (sum(triplets) + cosines(2).mean() + (1 - cosines(3)).mean()) / 4
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    grads = jax.grad(interaction)(jnp.asarray(h), np.array([[True, True], [True, False]]), 1.0)
    assert np.any(grads[0]) and not np.any(grads[1])
    nobody = jax.grad(interaction)(jnp.zeros_like(h), np.zeros((2, 2), bool), 1.0)
    assert not np.any(nobody) and np.isfinite(nobody).all()


def predicted(method):
    batch, params = properties.random_batch(method.data, keep=0.7), properties.random_params(method)
    return batch, params, method.apply({"params": params}, batch, train=False)


@pytest.mark.parametrize("cls", [LateFusion, SimMLM])
def test_predictions_are_means_of_what_is_present(cls):
    """Between the least and the largest of the logits of a row's modalities; alone, its own."""
    batch, _, out = predicted(cls(properties.PAIR, width=8))
    present = np.asarray(batch.present(properties.PAIR))
    assert (~present).any()
    for name, logits in out.logits.items():
        each = np.where(present[..., None], out.extra[name], np.nan)
        low, high = np.nanmin(each, 1), np.nanmax(each, 1)
        assert ((logits >= low - 1e-6) & (logits <= high + 1e-6))[present.any(1)].all()
        if cls is LateFusion:
            np.testing.assert_allclose(logits, np.nanmean(each, 1), rtol=1e-5)


def test_models_of_late_fusion_are_trained_apart():
    """Each has the gradient that it has alone, over the number of a row's modalities."""
    method = LateFusion(properties.PAIR, width=8, dropout=0.0)
    batch = properties.random_batch(method.data, keep=1.0)
    params = properties.random_params(method)
    last = method.data.modality_names[1]

    def loss(params, batch, method=method):
        out = method.apply({"params": params}, batch, train=False)
        return method.loss(out, batch, jnp.zeros((), jnp.int32))[0]

    without = batch.replace(
        inputs=batch.inputs | {last: jax.tree.map(np.zeros_like, batch.inputs[last])}
    )
    both, alone = jax.jit(jax.grad(loss))(params, batch), jax.jit(jax.grad(loss))(params, without)
    series = both["summary"]["mixed"]["series_16"], alone["summary"]["mixed"]["series_16"]
    assert np.any(series[0]["up"]["kernel"])
    properties.tree_close(series[0], jax.tree.map(lambda g: g / 2, series[1]))


def test_an_lstm_reads_what_is_present_in_order():
    """By the equations of an LSTM in NumPy."""
    method = MedFuse(properties.PAIR, width=4, hidden=3)
    batch, params, out = predicted(method)
    _, kept = method.apply({"params": params}, batch, train=False, capture_intermediates=True)
    x_BMD = np.asarray(kept["intermediates"]["project"]["__call__"][0], np.float64)
    cell = params["lstm"]

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    for row, present in enumerate(np.asarray(batch.present(method.data))):
        c = h = np.zeros(3)
        for x in x_BMD[row][present]:
            i, f, g, o = (
                x @ cell[f"i{k}"]["kernel"] + h @ cell[f"h{k}"]["kernel"] + cell[f"h{k}"]["bias"]
                for k in "ifgo"
            )
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        head = params["heads"]["death"]
        wanted = h @ head["kernel"] + head["bias"]
        np.testing.assert_allclose(out.logits["death"][row], wanted, rtol=1e-4, atol=1e-5)


def test_losses_alone_merge_over_parts():
    """Rows weigh the same whatever they have, and what is absent has no loss."""
    spec = properties.PAIR
    batch = properties.random_batch(spec, keep=0.6)
    rng = np.random.default_rng(1)
    each = {t.name: rng.normal(size=(len(batch.uid), 2, t.dim)) for t in spec.tasks}
    _, terms = task_losses.of_each(
        spec, jax.tree.map(jnp.asarray, each), batch, batch.present(spec)
    )
    target, present = batch.targets["death"], np.asarray(batch.present(spec))
    sign = 2 * np.asarray(target.value).reshape(-1, 1) - 1
    own = np.logaddexp(0, -sign * each["death"][..., 0])
    row = np.where(present, own, 0).sum(1) / np.maximum(present.sum(1), 1)
    weight = np.asarray(batch.weight) * target.mask * present.any(1)
    np.testing.assert_allclose(terms["death"].total, (row * weight).sum(), rtol=1e-5)
