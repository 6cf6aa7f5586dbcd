"""FlexCare: the properties of every method, tasks, masks, combinations and refusals."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from m4 import task_losses
from m4.methods.flexcare.combinations import available, members
from m4.methods.flexcare.covariance import covariance, covariance_of_all
from m4.methods.flexcare.model import FlexCare
from m4.methods.flexcare.paper import PaperFlexCare
from m4.methods.flexcare.released import ReleasedFlexCare
from m4.nn.layers import SelfAttention
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from tests import properties

GOLDEN = Path(__file__).parent.parent / "golden"
VERSIONS = {"m4": FlexCare, "paper": PaperFlexCare, "released": ReleasedFlexCare}
SIZES = {"width": 8, "mlp": 12, "depth": 1, "num_heads": 2, "aux_weights": FrozenDict({})}
MOE = {"hidden": 6, "num_experts": 5, "top_k": 2}
THREE = DataSpec(properties.SPEC.modalities[1:4], properties.SPEC.tasks, hours=4.0)
BINARY = DataSpec(THREE.modalities[:2], (TaskSpec("death", "binary"), TaskSpec("icu", "binary")))
CONFIGS = {  # beside each file as it is, of which tests/methods/test_laws.py asks the same
    "m4-small-sets": {"max_size": 1, "depth": 2, "moe": {"gate": "laplace"}},
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


@pytest.mark.slow
def test_eight_devices_equal_one():
    aux = FrozenDict({"covariance": 0.5, "importance": 0.01, "load": 0.01})
    properties.same_on_eight_devices(small(properties.PAIR, aux_weights=aux))


def test_parameter_tree_of_the_default_configuration():
    # A checkpoint's schema. Regenerate on purpose only: the test prints the tree it found.
    found = properties.parameter_tree(FlexCare(properties.SPEC))
    assert found == (GOLDEN / "flexcare_params.txt").read_text(), found


# --- tasks --------------------------------------------------------------------------------------


def trainer(method):
    """A compiled `batch -> (total, terms, gradients of the heads)` in training."""
    params = properties.random_params(method)
    rngs = {"dropout": jax.random.key(0), "gate": jax.random.key(1)}

    @jax.jit
    def run(batch):
        def objective(params):
            out = method.apply({"params": params}, batch, train=True, rngs=rngs)
            total, terms = method.loss(out, batch, jnp.zeros((), jnp.int32))
            return total, terms

        (total, terms), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return total, terms, grads["heads"]

    return run


def with_task(batch, task):
    return batch.replace(task=np.broadcast_to(np.int32(task), batch.task.shape))


@pytest.mark.parametrize("fidelity", ["released", "m4"])
def test_one_program_serves_every_task(fidelity):
    # The release chooses the head in Python, by the first row's task.
    run = trainer(small(BINARY, fidelity=fidelity))
    batch = properties.random_batch(BINARY)
    for task, other in (("death", "icu"), ("icu", "death")):
        number = BINARY.task_names.index(task)
        _, terms, heads = run(with_task(batch, number))
        assert terms[task].weight == properties.ROWS and terms[other].weight == 0
        assert np.any(heads[task]["kernel"]) and not np.any(heads[other]["kernel"])
    total, terms, _ = run(with_task(batch, np.arange(properties.ROWS) % 2))
    assert terms["death"].weight == terms["icu"].weight == properties.ROWS / 2
    np.testing.assert_allclose(total, sum(t.value() for t in terms.values()), rtol=1e-6)
    assert run._cache_size() == 1


def test_released_gives_rows_without_a_task_one_by_place_and_others_all():
    batch = properties.random_batch(BINARY)
    _, terms, _ = trainer(small(BINARY, fidelity="released"))(batch)
    assert terms["death"].weight == terms["icu"].weight == properties.ROWS / 2
    _, terms, _ = trainer(small(BINARY, fidelity="paper", max_size=1))(batch)
    assert terms["death"].weight == terms["icu"].weight == properties.ROWS


def test_released_scales_all_losses_by_the_weight_of_the_task():
    tasks = (TaskSpec("death", "binary", weight=0.2), TaskSpec("icu", "binary", weight=0.5))
    weights = {"covariance": 0.5, "importance": 0.1, "load": 2.0}
    batch = with_task(properties.random_batch(BINARY), 1)
    for fidelity, scale in (("released", 0.5), ("m4", 1.0)):
        data = DataSpec(BINARY.modalities, tasks)
        method = small(data, fidelity=fidelity, aux_weights=FrozenDict(weights))
        shapes = properties.parameter_shapes(method)
        assert "heads" in shapes
        out = losses_of(method, batch)
        total, terms = method.loss(out, batch, np.int32(0))
        aux = sum(weights[name] * value for name, value in out.aux_losses.items())
        np.testing.assert_allclose(total, 0.5 * terms["icu"].value() + scale * aux, rtol=1e-6)


def losses_of(method, batch):
    """Made-up outputs: only `loss` is under test."""
    out = jax.eval_shape(
        lambda p: method.apply({"params": p}, batch, train=False),
        properties.parameter_shapes(method),
    )
    filled = jax.tree.map(lambda x: np.full(x.shape, 0.3, x.dtype), out)
    return filled.replace(extra={"task": batch.task})


def test_a_task_of_hundreds_of_classes_reads_token_and_mixture():
    # DRG: the release declares a head for D inputs and feeds it 2 D.
    drg = DataSpec(BINARY.modalities, (TaskSpec("drg", "multiclass", dim=769),))
    for fidelity in ("released", "paper"):
        assert "heads/drg/kernel (16, 769)" in properties.parameter_tree(
            small(drg, fidelity=fidelity)
        )
    batch = properties.random_batch(drg)
    logits = np.zeros((properties.ROWS, 769), np.float32)
    (term,) = task_losses.task_losses(drg, {"drg": logits}, batch).values()
    np.testing.assert_allclose(term.value(), np.log(769), rtol=1e-6)


# --- masks and combinations ---------------------------------------------------------------------


@pytest.mark.parametrize("bias, leaks", [(1.0, True), (-np.inf, False)])
def test_the_additive_mask_lets_through_what_it_should_stop(bias, leaks):
    bias_TT = np.array([[0, bias], [bias, 0]], np.float32)
    x = np.random.default_rng(0).normal(size=(1, 1, 2, 4)).astype(np.float32)
    module, mask = SelfAttention(1), np.ones((1, 1, 2), bool)
    params = module.init(jax.random.key(0), x, mask, train=False)
    run = lambda x: module.apply(params, x, mask, train=False, bias_TT=bias_TT)  # noqa: E731
    moved = np.abs(run(x)[0, 0, 0] - run(x + [[[[0.0], [1.0]]]])[0, 0, 0]).max()
    assert (moved > 1e-3) == leaks


def test_covariance_of_available_pairs_by_hand():
    # Rows centred over 2 features: (1, -1), (2, -2), (3, -3); C_01 = 4, C_02 = 6, C_12 = 12.
    z = jnp.array([[[[2.0, 0.0], [2.0, -2.0], [4.0, -2.0]]]])
    all_there, two_there = np.ones((1, 3), bool), np.array([[True, False, True]])
    np.testing.assert_allclose(covariance(z, all_there), (16 + 36 + 144) / 3)
    np.testing.assert_allclose(covariance(z, two_there), 36)
    # Released: 2 (16 + 36 + 144) / (3 - 1)^2, whatever is available.
    np.testing.assert_allclose(covariance_of_all(z, np.ones(1, bool)), 98)
    assert covariance(z, np.zeros((1, 3), bool)) == covariance_of_all(z, np.zeros(1, bool)) == 0


def test_only_available_combinations_are_routed(probe):
    method = probe.method
    run = jax.jit(
        lambda b: method.apply({"params": probe.params}, b, train=False).moe["layer_0"].stats
    )
    present = np.asarray(probe.batch.present(method.data))
    member = members(len(method.data.modalities), method.max_size)
    ready = np.asarray(available(present, member))
    assert (ready == (present[:, None] | ~member).all(-1)).all()
    visits = method.moe.top_k * len(method.data.tasks)
    expected = np.einsum("bc,cm->bm", ready * 1, member * 1) * visits
    np.testing.assert_allclose(run(probe.batch)["by_row"].sum(-1), expected)


def tables(num):
    series = tuple(ModalitySpec(f"m{i:02}", "series", (3, 1)) for i in range(num))
    return DataSpec(series, (TaskSpec("death", "binary"),))


def test_many_modalities_need_small_combinations():
    tree = properties.parameter_tree(small(tables(17), max_size=2))
    assert f"combination {(1 + 17 + 136, 8)}" in tree
    with pytest.raises(ValueError, match="13 modalities have 8191 combinations .* smaller max_"):
        properties.parameter_shapes(small(tables(13)))


IMAGE = ModalitySpec("cxr", "image", (2, 9, 8, 1))


@pytest.mark.parametrize("kind", ["series", "vectors", "table", "codes"])
@pytest.mark.parametrize("fidelity", ["m4", "paper", "released"])
def test_one_modality_of_any_kind_is_enough(kind, fidelity):
    modality = next(m for m in properties.SPEC.modalities if m.kind == kind)
    method = small(DataSpec((modality,), BINARY.tasks), fidelity=fidelity)
    assert "combination (1, 8)" in properties.parameter_tree(method)


@pytest.mark.parametrize("fidelity", ["m4", "paper", "released"])
def test_statistics_have_the_shapes_that_reports_read(fidelity):
    method = small(THREE, fidelity=fidelity)
    batch, params = properties.random_batch(THREE), properties.parameter_shapes(method)
    out = jax.eval_shape(lambda p: method.apply({"params": p}, batch, train=False), params)
    shapes = {name: x.shape for name, x in out.moe["layer_0"].stats.items()}
    assert shapes["load"] == shapes["importance"] == (5,)
    assert shapes["by_modality"] == (3, 5)
    assert shapes["by_row"] == (properties.ROWS, 3, 5)


def test_the_release_starts_its_gate_at_zero():
    method = small(BINARY, fidelity="released")
    batch = properties.random_batch(BINARY)
    init = jax.jit(lambda: method.init(jax.random.key(0), batch, train=False))
    params = init()["params"]
    for name in ("gate_w", "gate_query", "router_noise"):
        assert not np.any(params["layer_0"][name])
    assert not np.any(params["combination"])


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"fidelity": "released", "mask_mode": "none"}, "mask_mode='none'; choose one of"),
        ({"max_size": 0}, "max_size=0 must be at least 1"),
        ({"moe": {"top_k": 6}}, "top_k=6"),
        ({"moe": {"gate": "no_such_gate"}}, "no_such_gate"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        properties.parameter_shapes(small(BINARY, **fields))


def test_every_test_that_the_documentation_names_exists():
    root = Path(__file__).parents[2]
    page = (root / "docs/methods/flexcare.md").read_text()
    table = page.split("## Every difference")[1].split("## Results")[0]
    folders = ("tests", "m4/audit")
    code = "".join(p.read_text() for f in folders for p in (root / f).rglob("*.py"))
    names = {n for n in re.findall(r"`([a-z_0-9]+)`", table) if n.count("_") > 1}
    assert len(names) > 17
    missing = {n for n in names if f"def {n}(" not in code}
    assert not missing
