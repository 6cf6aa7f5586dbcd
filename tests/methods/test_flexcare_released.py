"""FlexCare as released: numbers of the authors' modules, in both mask modes.

The values have five decimals, so the tolerance is one unit of the last. Letters: B rows, K tasks,
C combinations, D width, E experts.
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m4.maths import combinations
from m4.methods.flexcare import torch_layout as table
from m4.methods.flexcare.combinations import attention_bias
from m4.methods.flexcare.covariance import covariance_of_all
from m4.methods.flexcare.released import ReleasedFlexCare
from m4.specs import DataSpec, ModalitySpec
from m4.types import Batch, Stream, Target
from tests.filler import filled, state_dict
from tests.interop import shared
from tests.timing.method_jax import FLEXCARE_TASKS as TASKS

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/flexcare.json").read_text())
WIDTH, DEPTH, EXPERTS, ROWS = 8, 2, 5, 3
# The hourly rows arrive discretised and normalised, so they are vectors here.
SPEC = DataSpec(
    (
        ModalitySpec("ehr", "vectors", (3, 76)),
        ModalitySpec("cxr", "image", (1, 224, 224, 3)),
        ModalitySpec("note", "vectors", (4, 768)),
    ),
    TASKS,
)
MOE = {"num_experts": EXPERTS, "hidden": WIDTH, "engine": "dense"}
METHOD = ReleasedFlexCare(
    SPEC, moe=dataclasses.replace(ReleasedFlexCare.moe, **MOE), width=WIDTH, depth=DEPTH, mlp=32,
    dropout=0.0,
)  # fmt: skip


def torch_state():
    token, shapes = (1, 1, WIDTH), {"task_embedding.weight": (40, WIDTH)}
    shapes |= {f"{m}_cls_token": token for m in ("ehr", "cxr", "note", "mm")}
    shapes["cross_cls_tokens"] = (3, 1, WIDTH)
    shapes |= {"ehr_pos_embed": (1, 600, WIDTH), "cxr_pos_embed": (1, 197, WIDTH)}
    shapes["note_pos_embed"] = (1, 600, WIDTH)
    shapes |= affine("ehr_projection", WIDTH, 76) | affine("note_fc", WIDTH, 768)
    shapes |= affine("patch_projection.proj", WIDTH, 3, 16, 16)
    for i in range(DEPTH):
        at = f"transformer_fusion.layers.{i}"
        shapes |= {f"{at}.self_attn.in_proj_weight": (24, 8), f"{at}.self_attn.in_proj_bias": (24,)}
        shapes |= affine(f"{at}.self_attn.out_proj", 8, 8)
        shapes |= affine(f"{at}.linear1", 32, 8) | affine(f"{at}.linear2", 8, 32)
        shapes |= affine(f"{at}.norm1", 8) | affine(f"{at}.norm2", 8)
    shapes |= {f"moe.{name}": (WIDTH, EXPERTS) for name in ("w_gate", "w_noise", "task_gate")}
    for e in range(EXPERTS):
        shapes |= affine(f"moe.experts.{e}.fc1", 8, 8) | affine(f"moe.experts.{e}.fc2", 8, 8)
    shapes |= {"mm_choose.weight": (8, 16), "mm_choose2.weight": (1, 8)}
    shapes |= affine("mm_layernorm", 8)
    for task in TASKS:
        shapes |= affine(f"dense_layer_{task.name}", task.dim, 2 * WIDTH)
    shapes |= affine("dense_layer_drg", 769, WIDTH)  # of no use, but numbered
    assert len(shapes) == 80
    return state_dict(shapes)


def affine(name, out, *rest):
    return {f"{name}.weight": (out, *rest), f"{name}.bias": (out,)}


def golden_batch(task):
    """Series of 3, 2 and 0 hours, images of rows 0 and 2, notes of 4, 2 and 0 words."""

    def vectors(number, shape, lengths):
        mask = np.arange(shape[1]) < np.array(lengths)[:, None]
        values = filled(number, shape) * mask[..., None]
        return Stream(
            values.astype(np.float32), mask, mask.any(1), np.zeros(mask.shape, np.float32)
        )

    here = np.array([True, False, True])
    image = filled(1001, (3, 3, 224, 224)).transpose(0, 2, 3, 1)[:, None]
    image = (image * here[:, None, None, None, None]).astype(np.float32)
    inputs = {
        "ehr": vectors(1000, (3, 3, 76), (3, 2, 0)),
        "cxr": Stream(image, here[:, None], here),
        "note": vectors(3000, (3, 4, 768), (4, 2, 0)),
    }
    targets = {}
    for spec in TASKS:
        mask = np.ones((ROWS, spec.dim) if spec.kind == "multilabel" else ROWS, np.float32)
        value = np.zeros(ROWS if spec.kind == "multiclass" else (ROWS, spec.dim), np.float32)
        targets[spec.name] = Target(value.astype(np.int32 if value.ndim == 1 else np.float32), mask)
    targets["mortality"] = Target(np.array([[1], [0], [1]], np.float32), np.ones(3, np.float32))
    rows = np.arange(ROWS, dtype=np.int32)
    return Batch(inputs, targets, rows * 0 + task, np.ones(ROWS, np.float32), rows)


PARAMS = shared.params_from(table.layout(METHOD), torch_state())
READY = np.array([[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 0, 1, 0, 1], [0, 0, 0, 0, 0, 1, 0]], bool)


@pytest.fixture(scope="module")
def noise():
    """The gate's noise of the 11 available tokens, in the places that they have here."""
    draw = jax.random.normal
    eps_NE = np.zeros((READY.size, EXPERTS), np.float32)
    eps_NE[READY.ravel()] = filled(2000, (11, EXPERTS))
    jax.random.normal = lambda key, shape=(), *rest: (
        jnp.asarray(eps_NE) if shape == eps_NE.shape else draw(key, shape, *rest)
    )
    yield
    jax.random.normal = draw


def train(method, batch):
    """Loss, its parts and gradients."""

    @jax.jit
    def run(params):
        rngs = {"gate": jax.random.key(0), "dropout": jax.random.key(0)}
        out = method.apply({"params": params}, batch, train=True, rngs=rngs)
        total, terms = method.loss(out, batch, jnp.zeros((), jnp.int32))
        return total, (out, terms)

    return jax.jit(jax.value_and_grad(run, has_aux=True))(PARAMS)


@pytest.mark.parametrize("mode", ["additive_one", "strict"])
def test_golden_scores_of_every_task(mode):
    method, batch = METHOD.clone(mask_mode=mode), golden_batch(0)
    run = jax.jit(lambda p: method.apply({"params": p}, batch, train=False).logits)
    logits = run(PARAMS)
    for name, expected in GOLDEN[mode]["eval"].items():
        task = name.removesuffix("_logits")
        found = np.asarray(logits[task][:, : len(expected[0])])
        found = found if name.endswith("_logits") else 1 / (1 + np.exp(-found))
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=name)


def test_golden_losses_and_gradients(noise):
    golden = GOLDEN["additive_one"]
    (total, (out, terms)), grads = train(METHOD, golden_batch(0))
    expected = golden["train"]
    scores = 1 / (1 + np.exp(-np.asarray(out.logits["mortality"][:, 0])))
    np.testing.assert_allclose(scores, expected["scores"], atol=1e-4)  # printed with 4 decimals
    balance = 0.01 * (out.aux_losses["importance"] + out.aux_losses["load"])
    np.testing.assert_allclose(out.aux_losses["covariance"], expected["covariance"], rtol=1e-5)
    np.testing.assert_allclose(balance, expected["balance"], atol=1e-6)
    np.testing.assert_allclose(terms["mortality"].value(), expected["bce"], rtol=1e-5)
    np.testing.assert_allclose(total, expected["total"], rtol=1e-5)
    norm = lambda x: np.sqrt(np.square(x).sum())  # noqa: E731
    found = {
        "mm_cls": norm(grads["combination"][0]),
        "cross_cls": norm(grads["combination"][1:4]),
        "task_embedding": norm(grads["task"]),
        "ehr_projection.weight": norm(grads["ehr"]["project"]["kernel"]),
        "in_proj_weight": norm(grads["attention_0"]["qkv"]["kernel"]),
        "w_gate": norm(grads["layer_0"]["gate_w"]),
        "w_noise": norm(grads["layer_0"]["router_noise"]),
        "task_gate": norm(grads["layer_0"]["gate_query"]),
        "mm_choose": norm(grads["choose"]["kernel"]),
        "mm_choose2": norm(grads["score"]["kernel"]),
    }
    for name, value in golden["gradient_norms"].items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)


def test_golden_losses_of_the_strict_mask(noise, monkeypatch):
    # Theirs asks one task at a time: six task tokens in one pass would route six times as much.
    only = METHOD.clone(mask_mode="strict", data=DataSpec(SPEC.modalities, TASKS[:1]))
    monkeypatch.setitem(PARAMS, "task", PARAMS["task"][:1])
    monkeypatch.setitem(PARAMS, "heads", {"mortality": PARAMS["heads"]["mortality"]})
    (_, (out, _)), _ = train(only, golden_batch(0))
    expected = GOLDEN["strict"]["train"]
    scores = 1 / (1 + np.exp(-np.asarray(out.logits["mortality"][:, 0])))
    np.testing.assert_allclose(scores, expected["scores"], atol=1e-5)
    np.testing.assert_allclose(out.aux_losses["covariance"], expected["covariance"], rtol=1e-5)
    balance = 0.01 * (out.aux_losses["importance"] + out.aux_losses["load"])
    np.testing.assert_allclose(balance, expected["balance"], atol=1e-6)


def test_covariance_by_formula():
    # The authors' check: 2 H(4000) as (2, 3, 4) gives 0.0767395.
    z = jnp.asarray(filled(4000, (2, 3, 4)), jnp.float32)[:, None]
    found = covariance_of_all(z, np.ones(2, bool))
    np.testing.assert_allclose(found, 0.0767395, rtol=1e-5)


def test_attention_bias_by_hand():
    # Two modalities with 1 and 2 data tokens; sequence: task, {0,1}, {0}, {1}, a, b, b.
    member = combinations(2)
    found = attention_bias(member, np.array([0, 1, 1]), 1, additive=True)
    expected = [
        [0, 0, 0, 0, 0, 0, 0],
        [1, 0, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 1, 1],
        [1, 1, 1, 0, 1, 0, 0],
        [1, 1, 1, 1, 0, 1, 1],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
    ]
    np.testing.assert_array_equal(found, expected)
    strict = attention_bias(member, np.array([0, 1, 1]), 1, additive=False)
    np.testing.assert_array_equal(strict == -np.inf, np.array(expected) == 1)


def test_findings_count_one_by_one_and_rows_with_nothing_too():
    """The authors' mean is over the known entries of the batch (`y_pred[label_mask]`)."""
    spec = DataSpec(
        (ModalitySpec("ehr", "vectors", (2, 3)), ModalitySpec("note", "vectors", (2, 3))),
        tuple(t for t in TASKS if t.name in ("diag", "mortality")),
    )
    moe = dataclasses.replace(ReleasedFlexCare.moe, num_experts=3, hidden=6)
    method = ReleasedFlexCare(spec, moe=moe, width=8, depth=1, mlp=8, dropout=0.0)
    rng, rows = np.random.default_rng(0), np.arange(4, dtype=np.int32)
    here = np.array([True, True, False, True])
    stream = lambda: Stream(  # noqa: E731
        rng.normal(size=(4, 2, 3)).astype(np.float32) * here[:, None, None],
        np.repeat(here[:, None], 2, 1), here, np.zeros((4, 2), np.float32),
    )  # fmt: skip
    known = rng.random((4, 14)) < [[0.1], [0.9], [0.5], [0.4]]
    known[2, 0] = True
    truth = (rng.random((4, 14)) < 0.5).astype(np.float32)
    targets = {
        "diag": Target(truth, known.astype(np.float32)),
        "mortality": Target(truth[:, :1], np.ones(4, np.float32)),
    }
    inputs = {"ehr": stream(), "note": stream()}
    zero = jnp.zeros((), jnp.int32)
    init = jax.jit(method.init, static_argnames="train")
    apply = jax.jit(method.apply, static_argnames="train")
    for name, mask in (("diag", known), ("mortality", np.ones((4, 1), bool))):
        index = spec.task_names.index(name)
        batch = Batch(inputs, targets, rows * 0 + index, np.ones(4, np.float32), rows)
        rngs = {"gate": jax.random.key(0), "dropout": jax.random.key(1)}
        params = init({"params": jax.random.key(2), **rngs}, batch, train=True)
        out = apply(params, batch, train=True, rngs=rngs)
        z = np.asarray(out.logits[name], np.float64)
        entry = np.logaddexp(0, z) - truth[:, : z.shape[1]] * z
        _, terms = method.loss(out, batch, zero)
        np.testing.assert_allclose(terms[name].value(), entry[mask].mean(), rtol=1e-5)
