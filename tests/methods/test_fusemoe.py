"""FuseMoE: the properties of every method, the parameter tree, losses and refusals."""

import dataclasses
import re
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from flax.core import FrozenDict

from m4.methods.fusemoe.model import FuseMoE
from m4.methods.fusemoe.paper import PaperFuseMoE
from m4.methods.fusemoe.released import ReleasedFuseMoE
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from m4.task_losses import of_each
from tests import properties

GOLDEN = Path(__file__).parent.parent / "golden"
VERSIONS = {"m4": FuseMoE, "paper": PaperFuseMoE, "released": ReleasedFuseMoE}
MOE = {"hidden": 6, "num_experts": 10, "top_k": 2}
SIZES = {
    "width": 8,
    "depth": 1,
    "num_queries": 3,
    "embed_time": 8,
    "num_heads": 2,
    "dropout": 0.1,
    "aux_weights": FrozenDict({}),
}
CONFIGS = {  # beside each file as it is, of which tests/methods/test_laws.py asks the same
    "m4-joint": {"mix": "none", "moe": {"share": "joint", "gate": "linear"}},
    "m4-disjoint": {"depth": 2, "moe": {"share": "disjoint", "gate": "gaussian"}},
    "m4-alone": {"alone": 0.5, "moe": {"share": "joint"}},
    "paper-joint": {"fidelity": "paper", "utde": "batch", "moe": {"share": "joint"}},
}


def small(data=properties.SPEC, fidelity="m4", moe=None, **fields):
    version = VERSIONS[fidelity]
    options = dataclasses.replace(version.moe, **(MOE | (moe or {})))
    return version(data, moe=options, **(SIZES | fields))


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS.keys())
def probe(request):
    return properties.probe(small(**request.param))


@pytest.mark.parametrize("check", properties.CHECKS, ids=lambda c: c.__name__)
def test_property(probe, check):
    check(probe)


@pytest.mark.parametrize("share", ["joint", "permod"])
def test_eight_devices_equal_one(share):
    aux = FrozenDict({"importance": 0.01, "load": 0.01})
    properties.same_on_eight_devices(small(moe={"share": share}, aux_weights=aux))


def test_parameter_tree_of_the_default_configuration():
    # A checkpoint's schema. Regenerate on purpose only: the test prints the tree it found.
    moe = dataclasses.replace(FuseMoE.moe, num_experts=10)
    found = properties.parameter_tree(FuseMoE(properties.SPEC, moe=moe))
    assert found == (GOLDEN / "fusemoe_params.txt").read_text(), found


SINGLE = {
    "series": ModalitySpec("vitals", "series", (4, 2)),
    "vectors": ModalitySpec("notes", "vectors", (2, 3)),
    "table": ModalitySpec("static", "table", (3,)),
    "codes": ModalitySpec("icd", "codes", (3,), dtype="int32", vocab=5),
}


@pytest.mark.parametrize("kind", SINGLE)
@pytest.mark.parametrize("fidelity", ["m4", "paper", "released"])
def test_one_modality_of_any_kind_is_enough(kind, fidelity):
    # The shapes of the whole forward pass and loss, without compiling them.
    spec = DataSpec((SINGLE[kind],), (TaskSpec("death", "binary"),))
    method = small(spec, fidelity=fidelity)
    batch = properties.random_batch(spec)

    def run(params):
        rngs = {"dropout": jax.random.key(0), "gate": jax.random.key(1)}
        out = method.apply({"params": params}, batch, train=True, rngs=rngs)
        return out.logits["death"], method.loss(out, batch, np.int32(0))[0]

    logits, loss = jax.eval_shape(run, properties.parameter_shapes(method))
    assert logits.shape == (properties.ROWS, 1) and loss.shape == ()


SERIES_ONLY = DataSpec((SINGLE["series"],), (TaskSpec("death", "binary"),))


def test_one_modality_trains():
    probe = properties.probe(small(SERIES_ONLY))
    _, grads = probe.grads(probe.batch)
    # A row without the only modality counts nowhere, so its indicator has nothing to learn.
    assert not np.any(grads.pop("missing")["embedding"])
    assert all(np.any(g) for g in jax.tree.leaves(grads))
    properties.garbage_changes_no_bit(probe)


@pytest.mark.parametrize("fidelity", VERSIONS)
def test_sharp_attention_over_time_trains(fidelity):
    # One feature was drawn once; queries and keys have eight times their initial size, so that
    # scores spread by hundreds. Training must go on from there.
    spec = DataSpec((ModalitySpec("labs", "series", (16, 3)),), SERIES_ONLY.tasks)
    method = VERSIONS[fidelity](spec, dropout=0.0)
    batch = properties.random_batch(spec, rows=16, keep=1.0)
    labs = batch.inputs["labs"]
    observed = np.array(labs.observed)
    observed[..., 2] = np.arange(16) == 0
    labs = labs.replace(observed=observed & labs.mask[..., None])
    batch = batch.replace(inputs={"labs": labs})
    rngs = {"params": jax.random.key(0), "gate": jax.random.key(1)}
    params = nn.unbox(jax.jit(lambda: method.init(rngs, batch, train=False))())["params"]
    for name in ("query", "key"):
        part = params["grid"]["series_16"]["mtand"][name]
        part["kernel"] = 8 * part["kernel"]
    optimiser = optax.adam(1e-3)

    @jax.jit
    def step(params, state):
        def loss(params):
            out = method.apply({"params": params}, batch, train=True, rngs=rngs)
            return method.loss(out, batch, np.int32(0))[0]

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimiser.update(grads, state)
        return optax.apply_updates(params, updates), state, value, optax.tree.norm(grads)

    state, found = optimiser.init(params), []
    for _ in range(30):
        params, state, value, norm = step(params, state)
        assert np.isfinite(norm)
        found.append(value)
    assert found[-1] < 0.9 * found[0]


def test_series_of_different_lengths_keep_their_presence():
    spec = DataSpec(
        (
            ModalitySpec("monitor", "series", (20, 2)),
            ModalitySpec("static", "table", (3,)),
            ModalitySpec("labs", "series", (4, 1)),
        ),
        (TaskSpec("death", "binary"),),
    )
    properties.every_modality_matters(properties.probe(small(spec)))


def test_aux_losses_reach_the_total():
    weights = {"importance": 0.5, "load": 2.0, "entropy": 3.0}
    method = small(SERIES_ONLY, depth=2, moe={"num_experts": 4}, aux_weights=FrozenDict(weights))
    batch = properties.random_batch(SERIES_ONLY)
    params = properties.random_params(method)

    @jax.jit
    def run(batch):
        rngs = {"dropout": jax.random.key(0), "gate": jax.random.key(1)}
        out = method.apply({"params": params}, batch, train=True, rngs=rngs)
        total, terms = method.loss(out, batch, np.int32(0))
        return out, total, terms["death"].value()

    out, total, task = run(batch)
    assert set(out.moe) == {"layer_0", "layer_1"}
    expected = task
    for name, weight in weights.items():
        over_layers = sum(layer.losses[name] for layer in out.moe.values())
        np.testing.assert_allclose(out.aux_losses[name], over_layers, rtol=1e-6)
        expected += weight * over_layers
    assert out.aux_losses["importance"] > 0 and out.aux_losses["load"] > 0
    np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_one_modality_is_asked_alone_and_several_add_what_they_say_together():
    method, rest = small(alone=2.0), small()
    batch, params = properties.random_batch(method.data, keep=0.4), properties.random_params(method)
    alone = {"params": {name: own for name, own in params.items() if name != "alone"}}

    @jax.jit
    def run(batch):
        out = method.apply({"params": params}, batch, train=False)
        own = of_each(method.data, out.extra, batch, batch.present(method.data))[0]
        return out, method.loss(out, batch, 0)[0] - rest.loss(out, batch, 0)[0] - 2 * own

    out, difference = run(batch)
    np.testing.assert_allclose(difference, 0, atol=1e-5)
    together = jax.jit(lambda b: rest.apply(alone, b, train=False).logits)(batch)
    here_BM = np.asarray(batch.present(method.data))
    assert {*here_BM.sum(1)} >= {1, 2}
    for task, logits_BK in out.logits.items():
        for row, here_M in enumerate(here_BM):
            count, own_MK = here_M.sum(), np.asarray(out.extra[task][row])
            expected = own_MK[here_M].mean(0) if count else 0
            expected = expected + (1 - 1 / count if count else 1) * together[task][row]
            np.testing.assert_allclose(logits_BK[row], expected, atol=1e-5)


def test_what_a_modality_says_alone_is_of_itself_alone():
    method = small(alone=1.0)
    params = properties.random_params(method)
    run = jax.jit(lambda b: method.apply({"params": params}, b, train=False).extra["ward"])
    one, two = (properties.random_batch(method.data, seed=seed, keep=1.0) for seed in (0, 1))
    for m, name in enumerate(method.data.modality_names):
        mixed = one.replace(inputs={**one.inputs, name: two.inputs[name]})
        changed_M = np.abs(run(mixed) - run(one)).max((0, 2)) > 1e-6
        assert changed_M.tolist() == [n == m for n in range(len(changed_M))]


def test_what_reads_a_modality_learns_from_its_own_loss_alone():
    method = small(alone=1.0)
    batch, params = properties.random_batch(method.data, keep=0.9), properties.random_params(method)

    def said(params, together):
        out = method.apply({"params": params}, batch, train=False)
        return optax.l2_loss((out.logits if together else out.extra)["ward"]).sum()

    together, own = (jax.jit(jax.grad(said), static_argnums=1)(params, k) for k in (True, False))
    for name in ("summary", "alone"):
        assert all(not np.any(x) for x in jax.tree.leaves(together[name]))
        assert any(np.any(x) for x in jax.tree.leaves(own[name]))
    assert any(np.any(x) for x in jax.tree.leaves(together["layer_0"]))


@pytest.mark.parametrize("share", ["joint", "permod"])
@pytest.mark.parametrize("fidelity", ["m4", "paper"])
def test_statistics_have_the_shapes_that_reports_read(fidelity, share):
    method = small(fidelity=fidelity, moe={"share": share})
    batch = properties.random_batch(method.data)
    params = properties.parameter_shapes(method)
    out = jax.eval_shape(lambda p: method.apply({"params": p}, batch, train=False), params)
    shapes = {name: x.shape for name, x in out.moe["layer_0"].stats.items()}
    modalities, experts = len(method.data.modalities), method.moe.num_experts
    assert shapes["load"] == shapes["importance"] == (experts,)
    assert shapes["by_modality"] == (modalities, experts)
    assert shapes["by_row"] == (properties.ROWS, modalities, experts)


def test_absent_modalities_are_not_routed(probe):
    if not isinstance(probe.method, FuseMoE):
        pytest.skip("the paper routes the learned indicator of an absent modality")
    run = jax.jit(
        lambda b: probe.method.apply({"params": probe.params}, b, train=False).moe["layer_0"].stats
    )
    present = np.asarray(probe.batch.present(probe.method.data))
    timed = [m.kind in ("series", "vectors") for m in probe.method.data.modalities]
    tokens = np.where(timed, 1 + SIZES["num_queries"], 1)  # one summary, and the grid
    expected = present * tokens * MOE["top_k"]
    np.testing.assert_array_equal(run(probe.batch)["by_row"].sum(-1), expected)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"mix": "sum"}, "mix='sum'; choose one of"),
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"fidelity": "paper", "depth": 0}, "depth=0 must be at least 1"),
        ({"fidelity": "released", "depth": 0}, "depth=0 must be at least 1"),
        ({"fidelity": "released", "moe": {"output": "relu"}}, "output='relu'"),
        ({"utde": "row"}, "utde='row'; choose one of"),
        ({"moe": {"top_k": 11}}, "top_k=11"),
        ({"moe": {"num_experts": 7, "share": "disjoint"}}, "num_experts=7 cannot be split over 5"),
        ({"num_heads": 3}, "3 heads"),
        ({"moe": {"gate": "no_such_gate"}}, "no_such_gate"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        properties.parameter_shapes(small(**fields))


def test_kinds_without_an_encoder_are_refused():
    image = ModalitySpec("cxr", "image", (1, 8, 8, 1))
    spec = DataSpec((SINGLE["series"], image), (TaskSpec("death", "binary"),))
    batch = properties.random_batch(SERIES_ONLY)
    cxr = dataclasses.replace(batch.inputs["vitals"], times=None, observed=None)
    batch = batch.replace(inputs={**batch.inputs, "cxr": cxr})
    with pytest.raises(ValueError, match="modality cxr: no encoder for kind 'image'"):
        jax.eval_shape(lambda: small(spec).init(jax.random.key(0), batch, train=False))


def test_m4_projects_vectors_and_shares_blocks():
    m4, paper = (properties.parameter_tree(small(fidelity=f)) for f in ("m4", "paper"))
    # notes are 5 wide, 2 heads: 10 channels reach the authors' output map, 2 * 8 reach ours
    assert "grid/notes/project/kernel (5, 8)" in m4 and "project" not in paper
    assert "grid/notes/mtand/out/kernel (1, 16, 8)" in m4
    assert "grid/notes/mtand/out/kernel (1, 10, 8)" in paper
    assert "time_0/attention/qkv/kernel (1, 8, 24)" in m4
    assert "time_0/attention/qkv/kernel (5, 8, 24)" in paper
    assert "mlp_0/mlp/up/kernel (5, 8, 32)" in paper and "mlp_0" not in m4


def test_mix_is_an_option():
    assert "mix_0/attention/qkv" in properties.parameter_tree(small())
    assert "mix_0" not in properties.parameter_tree(small(mix="none"))


def test_every_test_that_the_documentation_names_exists():
    root = Path(__file__).parents[2]
    page = (root / "docs/methods/fusemoe.md").read_text()
    table = page.split("## Every difference")[1].split("## Cost")[0]
    folders = ("tests", "m4/audit")
    code = "".join(p.read_text() for f in folders for p in (root / f).rglob("*.py"))
    names = {n for n in re.findall(r"`([a-z_0-9]+)`", table) if n.count("_") > 1}
    assert len(names) > 30
    missing = {n for n in names if f"def {n}(" not in code}
    assert not missing
