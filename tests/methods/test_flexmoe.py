"""Flex-MoE: the properties of every method, the bank, losses by completeness and refusals."""

import dataclasses
import itertools
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from m4 import maths
from m4.methods.flexmoe import bank, completeness
from m4.methods.flexmoe.model import FlexMoE
from m4.methods.flexmoe.paper import PaperFlexMoE
from m4.methods.flexmoe.patches import PatchTokens
from m4.methods.flexmoe.released import ReleasedFlexMoE
from m4.moe.routers import top_k
from m4.nn.encoders.volume import VolumeEncoder
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from m4.types import Routing, Stream
from tests import properties

GOLDEN = Path(__file__).parent.parent / "golden"
VERSIONS = {"m4": FlexMoE, "paper": PaperFlexMoE, "released": ReleasedFlexMoE}
SIZES = {"width": 8, "num_heads": 2, "dropout": 0.1, "aux_weights": FrozenDict({})}
MOE = {"hidden": 6, "num_experts": 10, "top_k": 2}
THREE = DataSpec(properties.SPEC.modalities[1:4], properties.SPEC.tasks)  # table, series, vectors
CONFIGS = {  # beside each file as it is, of which tests/methods/test_laws.py asks the same
    "m4-factorised": {
        "bank": "factorised",
        "bank_rank": 4,
        "moe": {"gate": "laplace"},
        "depth": 2,
    },
    "released": {"data": THREE, "fidelity": "released", "depth": 2},
}


def small(data=properties.SPEC, fidelity="m4", moe=None, **fields):
    version = VERSIONS[fidelity]
    sizes = SIZES if fidelity == "m4" else SIZES | {"num_patches": 3}
    options = dataclasses.replace(version.moe, **(MOE | (moe or {})))
    return version(data, moe=options, **(sizes | fields))


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS.keys())
def probe(request):
    return properties.probe(small(**request.param))


@pytest.mark.parametrize("check", properties.CHECKS, ids=lambda c: c.__name__)
def test_property(probe, check):
    check(probe)


def test_eight_devices_equal_one():
    aux = FrozenDict({"router": 0.01, "importance": 0.01, "load": 0.01})
    properties.same_on_eight_devices(small(properties.PAIR, aux_weights=aux))


def test_parameter_tree_of_the_default_configuration():
    # A checkpoint's schema. Regenerate on purpose only: the test prints the tree it found.
    found = properties.parameter_tree(FlexMoE(properties.SPEC))
    assert found == (GOLDEN / "flexmoe_params.txt").read_text(), found


# --- combinations and bank ----------------------------------------------------------------------


def test_combination_index_follows_the_authors_enumeration():
    names = ["IGCB", "IGC", "IGB", "ICB", "GCB", "IG", "IC", "IB", "GC", "GB", "CB", *"IGCB"]
    bits = np.array([[letter in name for letter in "IGCB"] for name in names])
    np.testing.assert_array_equal(maths.combination_index(bits), np.arange(15))
    np.testing.assert_array_equal(maths.combinations(4), bits)
    assert maths.combination_index(np.zeros((1, 4), bool)) == 15


def test_combination_index_of_many_modalities():
    rng = np.random.default_rng(0)
    bits = rng.random((20, 17)) < 0.7
    table = {s.tobytes(): i for i, s in enumerate(_enumerate(17))}
    expected = np.array([table[row.tobytes()] for row in bits])
    np.testing.assert_array_equal(maths.combination_index(bits), expected)
    np.testing.assert_array_equal(maths.combination_index(bits, modulo=7), expected % 7)
    many = maths.combination_index(np.ones((1, 60), bool), modulo=9)
    assert many == 0
    with pytest.raises(ValueError, match="60 modalities have more combinations"):
        maths.combination_index(np.ones((1, 60), bool))


def _enumerate(num):
    """Every set as bits, by size and then by itertools' order, without the module under test."""
    for size in range(num, 0, -1):
        for chosen in itertools.combinations(range(num), size):
            bits = np.zeros(num, bool)
            bits[list(chosen)] = True
            yield bits


@pytest.mark.parametrize("num", [2, 3, 4])
def test_factorised_bank_equals_the_full_bank(num):
    cells = np.random.default_rng(num).normal(size=(2**num - 1, num, 2, 3)).astype(np.float32)
    present = maths.combinations(num)
    x = np.full((len(present), num, 2, 3), 7.0, np.float32)
    full = bank.FullBank().apply({"params": {"cells": cells}}, x, present)
    weight, bias = bank.indicators(num)
    params = {"weight": weight, "bias": bias, "value": cells, "base": np.zeros((num, 2, 3))}
    factors = bank.FactorisedBank(rank=15).apply({"params": params}, x, present)
    np.testing.assert_array_equal(full, factors)
    absent = ~present
    np.testing.assert_array_equal(np.asarray(full)[present], 7.0)
    np.testing.assert_array_equal(np.asarray(full)[absent], cells[absent])


def test_factorised_bank_starts_as_a_full_one_while_the_rank_lasts():
    x, present = np.zeros((7, 3, 1, 2), np.float32), maths.combinations(3)
    params = bank.FactorisedBank(rank=7).init(jax.random.key(0), x, present)["params"]
    full = bank.FullBank().apply({"params": {"cells": params["value"]}}, x, present)
    np.testing.assert_array_equal(
        bank.FactorisedBank(rank=7).apply({"params": params}, x, present), full
    )


def test_factorised_bank_is_linear_in_the_number_of_modalities():
    def size(num):
        x, present = np.zeros((1, num, 1, 8)), np.ones((1, num), bool)
        shapes = jax.eval_shape(
            lambda: bank.FactorisedBank(rank=4).init(jax.random.key(0), x, present)
        )
        return sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))

    assert size(17) - size(16) == size(7) - size(6) == 4 * (8 + 1) + 8


def many_modalities(num):
    series = tuple(ModalitySpec(f"m{i:02}", "series", (3, 1)) for i in range(num))
    return DataSpec(series, (TaskSpec("death", "binary"),))


def test_seventeen_modalities_run():
    method = small(many_modalities(17), moe={"num_experts": 4})
    probe = properties.probe(method)
    properties.every_modality_matters(probe)
    properties.every_parameter_learns(probe)


# --- losses -------------------------------------------------------------------------------------


def routing(experts, weights, probs, load=None):
    valid = np.ones(len(experts), bool)
    arrays = [jnp.asarray(x, jnp.float32) for x in (weights, probs, probs)]
    return Routing(jnp.asarray(experts), *arrays, jnp.asarray(valid), load)


# 2 tokens of a complete row, 2 of a row whose combination belongs to expert 2; 3 experts, k = 2.
EXPERTS = [[0, 1], [1, 2], [2, 0], [2, 1]]
WEIGHTS = [[0.6, 0.4], [0.5, 0.5], [0.7, 0.3], [0.9, 0.1]]
PROBS = [[0.5, 0.3, 0.2], [0.2, 0.4, 0.4], [0.25, 0.25, 0.5], [0.05, 0.15, 0.8]]
GIVEN = {"modality_N": np.zeros(4, int), "num_modalities": 1, "pattern_N": np.array([0, 0, 2, 2])}


def test_router_loss_by_hand():
    # -(log 0.5 + log 0.8) / 2 = 0.458145; only tokens of the incomplete row count.
    found = completeness.router(
        routing(EXPERTS, WEIGHTS, PROBS), pattern_N=GIVEN["pattern_N"], num_modalities=1
    )
    np.testing.assert_allclose(found, 0.458145, rtol=1e-5)


def test_balance_of_complete_and_incomplete_rows_by_hand():
    chosen = routing(EXPERTS, WEIGHTS, PROBS)
    # Complete: sums (0.6, 0.9, 0.5), mean 2/3, variance 0.13/3, CV^2 0.0975.
    # Incomplete without expert 0: sums (0.1, 1.6), mean 0.85, variance 1.125, CV^2 1.557093.
    np.testing.assert_allclose(completeness.importance(chosen, **GIVEN), 1.654593, rtol=1e-5)
    # Choices: (1, 2, 1): 1/3 / (4/3)^2 = 0.1875; without expert 0 (1, 2): 0.5 / 2.25 = 0.222222.
    np.testing.assert_allclose(completeness.load(chosen, **GIVEN), 0.409722, rtol=1e-5)
    load = jnp.asarray(PROBS)
    # Smooth: complete (0.7, 0.7, 0.6): 0.003333 / 0.444444 = 0.0075; incomplete (0.4, 1.3):
    # 0.405 / 0.7225 = 0.560554.
    smooth = routing(EXPERTS, WEIGHTS, PROBS, load)
    np.testing.assert_allclose(completeness.load(smooth, **GIVEN), 0.568054, rtol=1e-5)


def test_paper_balances_what_is_not_the_first_choice():
    chosen = routing(EXPERTS, WEIGHTS, PROBS)
    # Incomplete: second choices alone, (0.3, 0.1, 0): mean 0.4/3, variance 0.0233333, CV^2 1.3125.
    found = completeness.importance_of_others(chosen, **GIVEN)
    np.testing.assert_allclose(found, 0.0975 + 1.3125, rtol=1e-5)
    # Numbers of them: (1, 1, 0): mean 2/3, variance 1/3, CV^2 0.75.
    np.testing.assert_allclose(completeness.load_of_others(chosen, **GIVEN), 0.9375, rtol=1e-5)


def test_losses_are_summed_over_modalities():
    chosen = routing(EXPERTS * 2, WEIGHTS * 2, PROBS * 2)
    two = {"modality_N": np.repeat([0, 1], 4), "num_modalities": 2}
    two["pattern_N"] = np.tile(GIVEN["pattern_N"], 2)
    for loss in (completeness.importance, completeness.importance_of_others):
        one = loss(routing(EXPERTS, WEIGHTS, PROBS), **GIVEN)
        np.testing.assert_allclose(loss(chosen, **two), 2 * one, rtol=1e-6)


def test_aux_losses_reach_the_total():
    weights = {"router": 0.5, "importance": 2.0, "load": 3.0, "z": 0.25}
    spec = DataSpec(THREE.modalities[:2], (TaskSpec("death", "binary"),))
    method = small(spec, depth=3, aux_weights=FrozenDict(weights))
    batch, params = properties.random_batch(spec), properties.random_params(method)

    @jax.jit
    def run(batch):
        rngs = {"dropout": jax.random.key(0), "gate": jax.random.key(1)}
        out = method.apply({"params": params}, batch, train=True, rngs=rngs)
        total, terms = method.loss(out, batch, np.int32(0))
        return out.moe, out.aux_losses, total, terms["death"].value()

    moe, aux, total, expected = run(batch)
    assert set(moe) == {"layer_0", "layer_1"}  # layers 0 and 2; layer 1 is dense
    for name, weight in weights.items():
        assert aux[name] > 0
        expected += weight * aux[name]
    np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_combinations_share_experts_in_m4_but_not_that_of_complete_rows():
    pattern = np.asarray(completeness.pattern(maths.combinations(5), 4))
    assert pattern[0] == 0 and set(pattern[1:]) == {1, 2, 3}
    enough = completeness.pattern(maths.combinations(3), 8)
    np.testing.assert_array_equal(enough, np.arange(7))


# --- versions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("attention, reads", [("doubled", False), ("residual", True)])
def test_released_attention_forgets_its_input(attention, reads):
    # Attention that writes its bias alone, and experts that write 0: with a skip connection the
    # tokens reach the heads, without one nothing does.
    data = DataSpec(THREE.modalities[:2], (TaskSpec("death", "binary"),))
    method = small(data, fidelity="released", attention=attention)
    params = properties.random_params(method)
    params["attention_0"]["out"]["kernel"][:] = 0
    params["layer_0"] = {k: v * (k[0] not in "wb") for k, v in params["layer_0"].items()}
    batch = properties.random_batch(data)
    run = jax.jit(lambda b: method.apply({"params": params}, b, train=False).logits["death"])
    assert (np.ptp(run(batch)) > 1e-3) == reads


def test_parameter_tree_of_versions():
    trees = {f: properties.parameter_tree(small(THREE, fidelity=f)) for f in ("m4", "paper")}
    assert "attention_0/qkv/bias" in trees["m4"] and "attention_0/qkv/bias" not in trees["paper"]
    assert "bank/cells (7, 3, 1, 8)" in trees["m4"] and "bank/cells (7, 3, 3, 8)" in trees["paper"]
    assert "notes/project/kernel (2, 8)" in trees["paper"]  # 5 features in 3 patches of 2


LAYERS_WEIGHTS = "tests.methods.test_flexmoe:mean_weight"


def mean_weight(routing):
    return routing.weights.sum(-1).sum() / routing.valid.sum()


def test_paper_takes_the_softmax_first():
    # The layer's importance, a sum of weights: 1 per token in the release, less in the paper.
    weights = {}
    for fidelity in ("paper", "released"):
        method = small(THREE, fidelity, aux_weights=FrozenDict({LAYERS_WEIGHTS: 1.0}))
        params = properties.random_params(method)
        run = jax.jit(lambda b, m=method, p=params: m.apply({"params": p}, b, train=False))
        weights[fidelity] = run(properties.random_batch(THREE)).aux_losses[LAYERS_WEIGHTS]
    np.testing.assert_allclose(weights["released"], 1.0, rtol=1e-6)
    assert weights["paper"] < 0.9
    # Of scores log 5, log 3, log 2 the two largest: 0.5 and 0.3, not 5/8 and 3/8.
    logits = np.log([[5.0, 3.0, 2.0]])
    weights = top_k(logits, np.ones(1, bool), k=2, normalise="before").weights
    np.testing.assert_allclose(weights, [[0.5, 0.3]], rtol=1e-6)


@pytest.mark.parametrize("router", ["noisy_top_k", "top_k"])
def test_released_initial_values(router):
    # Paths that `method.init` takes; the bounds are those of the authors' fans.
    method = small(THREE, "released", width=16, moe={"hidden": 64, "router": router})
    batch, rngs = properties.random_batch(THREE), {"params": jax.random.key(0)}
    layer = jax.jit(lambda: nn.unbox(method.init(rngs, batch, train=False)))()["params"]["layer_0"]
    for name, bound in {
        "w1": 1 / 32,
        "w2": 1 / 32,
        "gate_w": 10**-0.5,
        "router_noise": 10**-0.5,
    }.items():
        if name == "router_noise" and router == "top_k":
            continue
        top = np.abs(layer[name]).max()
        assert 0.9 * bound < top <= bound, name
    assert not layer["b1"].any() and not layer["b2"].any()


def test_patches_by_hand():
    # 5 features, 2 patches of 3: (1, 2, 3) and (4, 5, 0), each summed by the shared map.
    params = {"project": {"kernel": np.ones((3, 1)), "bias": np.array([10.0])}}
    found = PatchTokens(1, 2).apply({"params": params}, np.array([[1.0, 2, 3, 4, 5]]))
    np.testing.assert_array_equal(found, [[[16.0], [19.0]]])


def test_volume_encoder_has_the_published_size():
    shape, mask = (1, 91, 91, 109, 1), np.ones((1, 91), bool)
    encoder = VolumeEncoder(128)
    shapes = jax.eval_shape(
        lambda x: encoder.init(jax.random.key(0), Stream(x, mask, mask[:, 0]), train=False),
        jax.ShapeDtypeStruct(shape, np.float32),
    )
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 1_448_352


IMAGE = ModalitySpec("mri", "image", (5, 6, 6, 1))


def with_image(batch):
    """A random batch with a volume in every other row."""
    rng, rows = np.random.default_rng(0), properties.ROWS
    present = np.arange(rows) % 2 == 0
    mask = np.broadcast_to(present[:, None], (rows, 5))
    stream = dataclasses.replace(
        batch.inputs["static"], values=rng.normal(size=(rows, 5, 6, 6, 1)).astype(np.float32),
        mask=mask, present=present, observed=None,
    )  # fmt: skip
    return batch.replace(inputs={"mri": stream, **batch.inputs})


@pytest.mark.parametrize("fidelity", ["m4", "paper", "released"])
def test_volumes_tables_and_codes_together(fidelity):
    # The layout of ADNI: image, genomic, clinical, biospecimen.
    others = tuple(ModalitySpec(n, "table", (9,)) for n in ("genomic", "static", "biospecimen"))
    task = TaskSpec("diagnosis", "multiclass", dim=3)
    batch = with_image(properties.random_batch(DataSpec(others, (task,))))
    method = small(DataSpec((IMAGE, *others), (task,)), fidelity=fidelity, moe={"num_experts": 15})

    def run():
        rngs = {name: jax.random.key(0) for name in ("params", "dropout", "gate")}
        return method.init_with_output(rngs, batch, train=True)

    out, variables = jax.eval_shape(run)
    assert out.logits["diagnosis"].shape == (properties.ROWS, 3)
    cells = nn.unbox(variables)["params"]["bank"]["cells"]
    assert cells.shape == (15, 4, 1 if fidelity == "m4" else 3, 8)


@pytest.mark.parametrize("kind", ["series", "vectors", "table", "codes"])
@pytest.mark.parametrize("fidelity", ["m4", "paper", "released"])
def test_one_modality_of_any_kind_is_enough(kind, fidelity):
    modality = next(m for m in properties.SPEC.modalities if m.kind == kind)
    spec = DataSpec((modality,), (TaskSpec("death", "binary"),))
    assert "bank" not in properties.parameter_tree(small(spec, fidelity=fidelity))


def test_statistics_have_the_shapes_that_reports_read():
    method = small(depth=3)
    batch, params = properties.random_batch(method.data), properties.parameter_shapes(method)
    out = jax.eval_shape(lambda p: method.apply({"params": p}, batch, train=False), params)
    for layer in ("layer_0", "layer_1"):
        shapes = {name: x.shape for name, x in out.moe[layer].stats.items()}
        assert shapes["load"] == shapes["importance"] == (10,)
        assert shapes["by_row"] == (properties.ROWS, 5, 10)


RELEASED = {"fidelity": "released", "data": THREE}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"attention": "sum", **RELEASED}, "attention='sum'; choose one of"),
        ({"num_patches": 0, **RELEASED}, "num_patches=0 must be at least 1"),
        ({"bank": "half"}, "bank='half'; choose one of"),
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"moe": {"num_experts": 1}}, "num_experts=1 must be at least 2"),
        ({"bank_rank": 0}, "bank_rank=0 must be at least 1"),
        ({"moe": {"top_k": 11}}, "top_k=11"),
        ({"moe": {"gate": "no_such_gate"}}, "no_such_gate"),
        ({"aux_weights": FrozenDict({"balance": 1.0})}, "balance"),
        ({"fidelity": "released"}, r"num_experts=10 must be at least 31"),
        ({"fidelity": "paper", "data": many_modalities(1), "moe": {"num_experts": 1}}, "least 2"),
        ({"data": many_modalities(17), "bank": "full"}, "131071 rows; choose bank='factorised'"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        properties.parameter_shapes(small(**fields))


def test_every_test_that_the_documentation_names_exists():
    root = Path(__file__).parents[2]
    page = (root / "docs/methods/flexmoe.md").read_text()
    table = page.split("## Every difference")[1].split("## Results")[0]
    folders = ("tests", "m4/audit")
    code = "".join(p.read_text() for f in folders for p in (root / f).rglob("*.py"))
    names = {n for n in re.findall(r"`([a-z_0-9]+)`", table) if n.count("_") > 1}
    assert len(names) > 24
    missing = {n for n in names if f"def {n}(" not in code}
    assert not missing
