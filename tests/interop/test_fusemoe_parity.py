"""FuseMoE as released against a PyTorch model of the same structure, whole, at random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from m4.methods.fusemoe import torch_layout as table
from m4.methods.fusemoe.released import ReleasedFuseMoE
from m4.moe.options import MoEOptions
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from m4.types import Batch, Stream, Target
from tests import properties
from tests.interop import shared
from tests.interop.parity import (
    RNGS,
    close,
    imported,
    randomise,
    run,
    same_gradients,
    same_noise,  # noqa: F401 (a fixture)
    scale,
    tensors,
    torch,
    torch_noise,
)

SIZES = {"width": 8, "num_heads": 2, "num_queries": 48, "embed_time": 8}
CHANNELS = {"ts": 3, "text": 5, "cxr": 4, "ecg": 3}
NAMES = {"ts": "vitals", "text": "notes", "cxr": "cxr", "ecg": "ecg"}
ROWS, LENGTH, TIMES = 3, 6, 2
LARGE = 1.55  # makes random weights four times as large as PyTorch's initial ones


def schema(roles):
    """The data of modalities by the release's names."""
    kinds = {"ts": ("series", LENGTH)}
    modalities = [
        ModalitySpec(NAMES[r], kind, (length, CHANNELS[r]))
        for r in roles
        for kind, length in [kinds.get(r, ("vectors", TIMES))]
    ]
    return DataSpec(tuple(modalities), (TaskSpec("death", "binary"),))


def impute(values, observed, times, length, bins=48):
    """The authors' hourly grid of one row: values and flags, with the defects of their loop."""
    grid, flags = np.zeros((2, bins, values.shape[1]), np.float32)
    for row in range(length):
        hour = int(times[row])
        if hour >= bins:
            continue
        for f in range(values.shape[1]):
            if observed[row, f]:
                grid[hour, f], flags[hour, f] = values[row, f], 1
            elif grid[hour - 1, f] != 0:
                grid[hour, f] = grid[hour - 1, f]
    return np.concatenate([grid, flags], 1)


def batches(roles, seed=0, lacking=1):
    """One batch for m4 and for the rival; row `lacking` has the series alone."""
    rng = np.random.default_rng(seed)
    ours, theirs = {}, {}
    for role in roles:
        f, steps = CHANNELS[role], LENGTH if role == "ts" else TIMES
        missing = np.arange(ROWS) == lacking if role != "ts" else np.zeros(ROWS, bool)
        length = np.where(missing, 0, rng.integers(1, steps + 1, ROWS))
        mask = np.arange(steps) < length[:, None]
        times = (np.sort(rng.uniform(0, 47.9, (ROWS, steps)), 1) * mask).astype(np.float32)
        values = rng.standard_normal((ROWS, steps, f)).astype(np.float32) * mask[..., None]
        ours[NAMES[role]] = stream = Stream(values, mask, ~missing, times)
        if role == "ts":
            observed = (rng.random(values.shape) < 0.6) & mask[..., None]
            values *= observed
            ours[NAMES[role]] = stream.replace(observed=observed)
            reg = np.stack([impute(*x) for x in zip(values, observed, times, length, strict=True)])
            theirs[role] = {"mask": observed.astype(np.float32), "reg": reg}
            theirs[role] |= {"values": values, "times": times / np.float32(48)}
            continue
        # Their loader: something missing is one zero at time 0 that counts; notes run backwards.
        kept = mask | (missing[:, None] & (np.arange(steps) == 0))
        when = 1 - times / np.float32(48) if role == "text" else times
        theirs[role] = {
            "values": values,
            "mask": kept.astype(np.float32),
            "times": (when * mask).astype(np.float32),
            "missing": missing,
        }
    rows = np.arange(ROWS, dtype=np.int32)
    label = rng.integers(0, 2, ROWS)
    target = Target(label[:, None].astype(np.float32), np.ones(ROWS, np.float32))
    batch = Batch(ours, {"death": target}, rows * 0 - 1, np.ones(ROWS, np.float32), rows)
    return batch, tensors(theirs | {"label": label})


@pytest.mark.parametrize(
    ("roles", "fields", "moe"),
    [
        (("ts", "text", "cxr"), {"depth": 2}, {"share": "joint", "gate": "laplace"}),
        (("text", "ts"), {}, {"share": "joint", "gate": "gaussian"}),
        (("cxr", "ts"), {"utde": "batch_seq_feature"}, {"share": "permod", "gate": "linear"}),
        (("ts", "text", "ecg", "cxr"), {}, {"share": "disjoint", "gate": "laplace", "top_k": 1}),
    ],
    ids=lambda x: "-".join(map(str, x.values() if isinstance(x, dict) else x)),
)
@pytest.mark.parametrize("size", [1, LARGE])
@pytest.mark.usefixtures("same_noise")
def test_forward_losses_and_gradients(roles, fields, moe, size):
    from tests.rivals.fusemoe import Model

    fields = SIZES | {"depth": 1, "utde": "batch", "dropout": 0.0} | fields
    moe = {"num_experts": 8, "top_k": 2, "hidden": 6} | moe
    theirs = {"router" if name == "share" else name: value for name, value in moe.items()}
    model = randomise(Model(channels={r: CHANNELS[r] for r in roles}, **fields, **theirs))
    scale(model, size)
    for layer in model.trans_self_cross_ts_txt.layers:
        layer.moe.randn = torch_noise
    weights = FrozenDict({"importance": 0.0, "load": 0.0})  # computed, never added
    options = MoEOptions(router="noisy_top_k", engine="dense", **moe)
    method = ReleasedFuseMoE(schema(roles), options, aux_weights=weights, **fields)
    layout = table.layout(method)
    params = imported(method, layout, model, shared.shapes(method))
    batch, theirs = batches(roles)
    logits, aux, terms, grads = run(method, params, batch)
    out, balance = model(theirs)
    losses = model.loss(theirs)
    losses["total"].backward()
    close(logits["death"][:, 0], (out[:, 1] - out[:, 0]).detach(), "logits")
    # A loss of e^-28 has the logit's absolute error as its relative one, and so has its gradient.
    rtol = 1e-5 if size == 1 else 1e-4
    close(terms["death"], losses["task"].detach(), "task", rtol)
    close(terms["total"], losses["total"].detach(), "total", rtol)
    close(sum(aux.values()), balance.detach(), "balance")
    same_gradients(layout, model, grads, rtol)


@pytest.mark.parametrize("size", [1, LARGE])
def test_a_batch_that_is_filled_up_predicts_as_the_original_s_smaller_one(size, monkeypatch):
    """The last batch of an evaluation, without noise; filler rows lack an ECG."""
    from tests.rivals.fusemoe import Model

    monkeypatch.setattr(jax.random, "normal", lambda key, shape=(), *_: jnp.zeros(shape))
    roles, sizes = ("ts", "text", "ecg", "cxr"), SIZES | {"depth": 2, "utde": "batch"}
    moe = {"num_experts": 8, "top_k": 2, "hidden": 6, "gate": "laplace"}
    model = Model(channels={r: CHANNELS[r] for r in roles}, dropout=0.0, **sizes, **moe)
    scale(randomise(model), size)
    for layer in model.trans_self_cross_ts_txt.layers:
        layer.moe.randn = torch.zeros
    options = MoEOptions(router="noisy_top_k", engine="dense", share="joint", **moe)
    method = ReleasedFuseMoE(schema(roles), options, dropout=0.0, **sizes)
    params = imported(method, table.layout(method), model, shared.shapes(method))
    batch, theirs = batches(roles, lacking=-1)  # all have an ECG but what fills up
    filler = properties.take(properties.random_batch(method.data, seed=3), [1, 4])
    filler = properties.drop_modalities(filler, row=0).replace(weight=np.zeros(2, np.float32))
    filled = jax.tree.map(lambda x, y: np.concatenate([x, y]), batch, filler)
    order = np.array([3, 0, 1, 4, 2])
    predict = jax.jit(
        lambda b: method.apply({"params": params}, b, train=False, rngs=RNGS).logits["death"]
    )
    found = predict(properties.take(filled, order))[np.argsort(order)[:ROWS], 0]
    out = model(theirs)[0].detach()
    close(found, out[:, 1] - out[:, 0], "logits")
