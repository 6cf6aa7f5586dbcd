"""Flex-MoE as released: numbers of the authors' modules, and its defects, each by name.

Letters: B rows, M modalities, P tokens of a modality, N tokens, E experts, D width.
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m4 import maths
from m4.methods.flexmoe import completeness
from m4.methods.flexmoe import torch_layout as table
from m4.methods.flexmoe.released import ReleasedFlexMoE, weighted
from m4.moe import gates, routers
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from m4.types import Batch, Stream, Target
from tests.filler import filled, filler, state_dict
from tests.interop import shared

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/flexmoe.json").read_text())
ROWS, NUM, PATCHES, WIDTH, EXPERTS = 4, 3, 2, 8, 8
SPEC = DataSpec(
    tuple(ModalitySpec(name, "table", (PATCHES * WIDTH,)) for name in "LNC"),
    (TaskSpec("diagnosis", "multiclass", dim=3),),
)
LAYER = {
    "norm1.weight": (8,), "norm1.bias": (8,), "norm2.weight": (8,), "norm2.bias": (8,),
    "attn.q.weight": (8, 8), "attn.kv.weight": (16, 8),
    "attn.proj.weight": (8, 8), "attn.proj.bias": (8,),
}  # fmt: skip
SPARSE = {
    "mlp.all_gates.0.w_gate": (8, 8), "mlp.all_gates.0.w_noise": (8, 8),
    "mlp.experts.htoh4.weight": (8, 16, 8), "mlp.experts.htoh4.bias": (8, 16),
    "mlp.experts.h4toh.weight": (8, 8, 16), "mlp.experts.h4toh.bias": (8, 8),
}  # fmt: skip
DENSE = {
    "mlp.network.0.weight": (16, 8), "mlp.network.0.bias": (16,),
    "mlp.network.3.weight": (8, 16), "mlp.network.3.bias": (8,),
}  # fmt: skip
BLOCKS = np.stack([filled(1000 + m, (ROWS, PATCHES, WIDTH)) for m in range(NUM)], axis=1)  # BMPD
NOISE = np.stack([filled(2000 + m, (ROWS, PATCHES, EXPERTS)) for m in range(NUM)], axis=1)


def torch_state(depth):
    shapes = {"pos_embed": (1, NUM * PATCHES, WIDTH)}
    for i in range(depth):
        for name, shape in (LAYER | (DENSE if i % 2 else SPARSE)).items():
            shapes[f"network.{i}.{name}"] = shape
    shapes |= {
        f"network.{depth}.network.0.weight": (3, 24),
        f"network.{depth}.network.0.bias": (3,),
    }
    return state_dict(shapes)


def params_from(state, method):
    """Our parameters from the authors' state dict; patches are passed on as they are."""
    fusion = {f"fusion_model.{name}": x for name, x in state.items()}
    params = shared.params_from(table.layout(method), fusion)
    same = {"kernel": np.eye(WIDTH, dtype=np.float32), "bias": np.zeros(WIDTH, np.float32)}
    return params | {m: {"project": same} for m in "LNC"}


def golden_batch(combinations):
    """Rows with the given combinations of modalities."""
    present_BM = maths.combinations(NUM)[combinations]
    inputs = {}
    for m, name in enumerate(SPEC.modality_names):
        here_B1 = present_BM[:, m : m + 1]
        values = np.where(here_B1, BLOCKS[:, m].reshape(ROWS, -1), 0).astype(np.float32)
        observed = np.broadcast_to(here_B1, values.shape)
        inputs[name] = Stream(values, here_B1, here_B1[:, 0], None, observed)
    target = Target(np.array(GOLDEN["labels"], np.int32), np.ones(ROWS, np.float32))
    rows = np.arange(ROWS, dtype=np.int32)
    return Batch(inputs, {"diagnosis": target}, rows * 0 - 1, np.ones(ROWS, np.float32), rows)


def golden_bank(combinations):
    """Absent modalities have the very tokens that the golden rows have."""
    cells = np.zeros((2**NUM - 1, NUM, PATCHES, WIDTH), np.float32)
    cells[list(combinations)] = BLOCKS
    return {"cells": cells}


class Run:
    """The released model on the golden rows, compiled once for all combinations."""

    def __init__(self, depth):
        moe = {"num_experts": EXPERTS, "top_k": 2, "hidden": 2 * WIDTH, "engine": "dense"}
        method = ReleasedFlexMoE(
            SPEC, moe=dataclasses.replace(ReleasedFlexMoE.moe, **moe), width=WIDTH, depth=depth,
            num_heads=2, num_patches=PATCHES, dropout=0.0,
        )  # fmt: skip
        self.params = params_from(torch_state(depth), method)

        @jax.jit
        def train(params, batch):
            def objective(params):
                out = method.apply({"params": params}, batch, train=True, rngs=rngs)
                total, _ = method.loss(out, batch, jnp.zeros((), jnp.int32))
                return total, (out.logits["diagnosis"], sum(out.aux_losses.values()))

            rngs = {"gate": jax.random.key(0), "dropout": jax.random.key(0)}
            return jax.value_and_grad(objective, has_aux=True)(params)

        @jax.jit
        def evaluate(params, batch):
            return method.apply({"params": params}, batch, train=False).logits["diagnosis"]

        self.train = lambda c: train(self.params | {"bank": golden_bank(c)}, golden_batch(c))
        self.evaluate = lambda c: evaluate(self.params | {"bank": golden_bank(c)}, golden_batch(c))


@pytest.fixture(scope="module")
def runs():
    """depth -> Run, with the noise of the golden values."""
    draw = jax.random.normal
    noise = jnp.asarray(NOISE.reshape(-1, EXPERTS), jnp.float32)
    jax.random.normal = lambda key, shape=(), *rest: (
        noise if shape == noise.shape else draw(key, shape, *rest)
    )
    yield {depth: Run(depth) for depth in (1, 2)}
    jax.random.normal = draw


@pytest.mark.parametrize("depth", [1, 2])
def test_golden_logits_and_losses(runs, depth):
    golden = GOLDEN[f"depth_{depth}"]
    for expected in golden["losses"]:
        combinations = expected["combinations"]
        np.testing.assert_allclose(runs[depth].evaluate(combinations), golden["eval"], atol=1e-5)
        (total, (logits, gate)), _ = runs[depth].train(combinations)
        np.testing.assert_allclose(gate, expected["gate"], rtol=1e-5)
        np.testing.assert_allclose(total, expected["total"], rtol=1e-5)
        if "train" in golden:
            np.testing.assert_allclose(logits, golden["train"], atol=1e-5)


def test_golden_gradient_norms(runs):
    _, grads = runs[1].train([0, 1, 4, 6])
    norm = lambda x: np.sqrt(np.square(x).sum())  # noqa: E731
    layer = grads["layer_0"]
    found = {
        "pos_embed": norm(grads["position"]),
        "attn.q": norm(grads["attention_0"]["qkv"]["kernel"][..., :WIDTH]),
        "w_gate": norm(layer["gate_w"]),
        "w_noise": norm(layer["router_noise"]),
        "htoh4.weight": norm(layer["w1"]),
        "htoh4.bias": norm(layer["b1"]),
        "h4toh.weight": norm(layer["w2"]),
        "h4toh.bias": norm(layer["b2"]),
    }
    for name, expected in GOLDEN["depth_1"]["gradient_norms"].items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_filler():
    np.testing.assert_allclose(filler(0, 3), [0.415349439, -0.032240656, 0.192779589], atol=1e-9)
    np.testing.assert_allclose(filler(5, 2), [0.025535061, -0.135049247], atol=1e-9)


def gate_alone(combinations, *, train):
    """Routing and losses of 3 samples of 2 tokens, D = 4, E = 5, k = 2."""
    t, i, e = np.arange(6)[:, None], np.arange(4)[:, None], np.arange(5)
    x_ND = np.cos(0.4 * t + 0.25 * np.arange(4)).astype(np.float32)
    logits_NE = gates.linear(x_ND, np.sin(1 + i + 2 * e).astype(np.float32))
    noise = {"noise_NE": (0.5 * np.sin(1.3 * t + 0.9 * e)).astype(np.float32)} if train else {}
    noise_DE = (0.5 * np.cos(i - e)).astype(np.float32)
    chosen = routers.noisy_top_k(
        logits_NE, np.ones(6, bool), k=2, x_ND=x_ND, noise_DE=noise_DE, **noise
    )
    given = {"num_modalities": 1, "pattern_N": np.repeat(combinations, 2)}
    modality = {"modality_N": np.zeros(6, int)}
    found = {
        "cross_entropy": completeness.router(chosen, **given),
        "importance": completeness.importance(chosen, **given, **modality),
        "load": completeness.load(chosen, **given, **modality),
    }
    return chosen, found | {"total": sum(found.values())}


def test_golden_gate_alone():
    golden = GOLDEN["gate_alone"]
    for expected in golden["train"]:
        chosen, found = gate_alone(expected["combinations"], train=True)
        for name in expected.keys() - {"combinations"}:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, err_msg=name)
    np.testing.assert_array_equal(chosen.experts, golden["top_2"])
    np.testing.assert_allclose(chosen.weights[:, 0], golden["first_gates"], atol=1e-6)
    np.testing.assert_allclose(chosen.logits[0], golden["token_0"]["clean"], atol=1e-6)


def test_golden_gate_alone_in_evaluation():
    # There the release forgets which rows are complete, and counts every row as either: twice the
    # balance of all rows, plus the cross-entropy. Nobody uses that number; ours keeps them apart.
    one, complete, other = GOLDEN["gate_alone"]["eval"]
    _, found = gate_alone(complete["combinations"], train=False)
    np.testing.assert_allclose(found["total"], complete["total"], rtol=1e-5)
    for expected in (one, other):
        _, parts = gate_alone(expected["combinations"], train=False)
        theirs = parts["cross_entropy"] + 2 * found["total"]
        np.testing.assert_allclose(theirs, expected["total"], rtol=1e-5)
        assert abs(parts["total"] - expected["total"]) > 0.1


def test_class_weights_are_those_of_cross_entropy():
    """As `torch.nn.CrossEntropyLoss(weight)`: the sum over rows of w_y l over the sum of w_y."""
    rng, task = np.random.default_rng(0), TaskSpec("death", "binary")
    logits, label = rng.normal(size=(5, 1)).astype(np.float32), np.array([0, 1, 1, 0, 1])
    target = Target(label[:, None].astype(np.float32), np.array([1, 1, 0, 1, 1], np.float32))
    loss, weight = weighted({"death": (0.25, 0.75)})(task, logits, target)
    z, known = np.asarray(logits[:, 0], np.float64), target.mask > 0
    entry, w = np.logaddexp(0, z) - label * z, np.where(label, 0.75, 0.25)
    found = float((loss * weight).sum() / weight.sum())
    np.testing.assert_allclose(found, (w * entry)[known].sum() / w[known].sum(), rtol=1e-6)


@pytest.mark.parametrize("scale", [1, 30, 1000])
def test_router_loss_at_any_spread_of_scores(scale):
    """Cross-entropy of the noisy scores in float64, forward and gradient; no floor of a chance."""
    rng = np.random.default_rng(0)
    scores, pattern = scale * rng.normal(size=(7, 5)), np.array([1, 2, 0, 4, 3, 1, 0])
    own = jnp.asarray(scores, jnp.float32)

    def loss(scores_NE):
        routing = routers.top_k(scores_NE, jnp.ones(7, bool), k=2)
        return completeness.router(routing, pattern_N=pattern, num_modalities=3)

    value, slope = jax.value_and_grad(loss)(own)
    high = np.asarray(own, np.float64)
    log_p = high - np.logaddexp.reduce(high, axis=1, keepdims=True)
    kept = pattern > 0
    expected = -3 * log_p[np.arange(7), pattern][kept].mean()
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    gradient = 3 * kept[:, None] * (np.exp(log_p) - np.eye(5)[pattern]) / kept.sum()
    np.testing.assert_allclose(slope, gradient, rtol=1e-4, atol=1e-6)
