"""M4oE: the properties of every method, losses, routing of tasks, segmentation, refusals."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict

from m4.audit.probe import Defect
from m4.methods.m4oe.model import M4oE
from m4.methods.m4oe.objective import focal, focal_loss, row_loss
from m4.methods.m4oe.paper import PaperM4oE
from m4.methods.m4oe.released import ReleasedM4oE, all_labels
from m4.moe.options import SoftOptions
from m4.nn.segmentation import scores
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from m4.types import Outputs, Target
from tests import properties

ROOT = Path(__file__).parents[2]
METHODS = {"m4": M4oE, "paper": PaperM4oE, "released": ReleasedM4oE}
SIZES = {
    "width": 8,
    "num_heads": 2,
    "modality_experts": 2,
    "fusion_experts": 2,
    "vit_depth": 1,
    "vit_heads": 2,
    "patch": 4,
    "num_queries": 2,
    "dropout": 0.1,
    "aux_weights": FrozenDict({}),
}
IMAGES = DataSpec(
    (ModalitySpec("fundus", "image", (1, 8, 8, 3)), ModalitySpec("oct", "image", (1, 8, 8, 3))),
    (TaskSpec("risk", "binary"), TaskSpec("grade", "multiclass", dim=3)),
)
CONFIGS = {  # beside each file as it is, of which tests/methods/test_laws.py asks the same
    "m4-laplace": {
        "moe": {"gate": "laplace"},
        "timed": "summary",
        "combine_norm": "expert_per_task",
        "residual": "none",
    },
    "paper-images": {"spec": IMAGES, "fidelity": "paper", "weighting": "uncertainty"},
    "released-images": {"spec": IMAGES, "fidelity": "released"},
}


def small(spec=properties.SPEC, fidelity="m4", moe=(), **fields):
    cls = METHODS[fidelity]
    options = dataclasses.replace(cls.moe, **{"num_experts": 3, "hidden": 6, **dict(moe)})
    return cls(spec, options, **{**SIZES, **fields})


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS.keys())
def probe(request):
    return properties.probe(small(**request.param))


@pytest.mark.parametrize("check", properties.CHECKS, ids=lambda c: c.__name__)
def test_property(probe, check):
    if check is properties.empty_row_counts_nowhere and isinstance(probe.method, ReleasedM4oE):
        pytest.skip("as released, absent images are zero images: an empty row is attended")
    if check.__name__ == "absence_is_no_zero" and isinstance(probe.method, ReleasedM4oE):
        with pytest.raises(Defect, match="absent is read as zeros"):
            check(probe)
        return
    check(probe)


@pytest.mark.slow
def test_eight_devices_equal_one():
    aux = FrozenDict({"information": 0.05})
    properties.same_on_eight_devices(small(properties.PAIR, timed="summary", aux_weights=aux))


def test_parameter_tree_of_the_default_configuration():
    # A checkpoint's schema. Regenerate on purpose only: the test prints the tree it found.
    found = properties.parameter_tree(M4oE(properties.SPEC))
    assert found == (ROOT / "tests/golden/m4oe_params.txt").read_text(), found


# --- sizes of the published network -------------------------------------------------------------

EMBED = DataSpec(
    tuple(
        ModalitySpec(name, "image", (1, 224, 224, 3))
        for name in ("cview_cc", "cview_mlo", "ffdm_cc", "ffdm_mlo")
    ),
    (
        TaskSpec("density", "multiclass", dim=4),
        TaskSpec("risk", "multiclass", dim=2),
        TaskSpec("birads", "multiclass", dim=3),
    ),
)
PUBLISHED = {
    "moe": SoftOptions(num_experts=128, hidden=3072, inputs="unit"), "width": 768, "num_heads": 8,
    "modality_experts": 32, "fusion_experts": 16, "depth": 2, "fusion_depth": 2, "vit_depth": 12,
    "vit_heads": 12, "patch": 16,
}  # fmt: skip


def test_published_sizes_have_the_closed_form_numbers_of_parameters():
    shapes = properties.parameter_shapes(ReleasedM4oE(EMBED, **PUBLISHED))
    size = lambda tree: sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))  # noqa: E731
    part = lambda *starts: size({k: v for k, v in shapes.items() if k.startswith(starts)})  # noqa: E731
    expert, attention, norms = 4_722_432, 2_362_368, 3_072
    assert part("mtoe", "task") == 128 * expert + 768 * 384 + 1 + 3 * 768 + attention + norms
    msoe = 2 * (32 * expert + 768 * 32 + 1 + attention + norms)
    assert msoe == 307_015_682 and part("msoe") == 4 * msoe
    assert part("fusion") == 155_873_282
    assert part("tokens") == 4 * (86_389_248 - 590_592)  # without the pooler, which is not used
    assert part("project") == 3 * 590_592 and part("norm") == 3 * 1_536
    assert part("heads") == 3_076 + 1_538 + 2_307
    # The release has 5,332,994 parameters more that no gradient reaches.
    assert size(shapes) == 2_341_380_886 - 5_332_994


# --- losses -------------------------------------------------------------------------------------


def test_focal_loss_by_hand():
    # p = (1/4, 3/4), label 0: (3/4)^2 * 2 * log 4; gradient of that factor is not taken.
    logits = jnp.log(jnp.array([[0.25, 0.75]]))
    target = Target(np.array([0]), np.ones(1))
    weight = jnp.array([2.0, 5.0])

    def loss(x):
        return focal(x, target, weight, 2.0)[0].sum()

    np.testing.assert_allclose(loss(logits), 0.5625 * 2 * np.log(4), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(loss)(logits), [[-0.84375, 0.84375]], rtol=1e-5)
    plain = focal(logits, target, jnp.ones(2), 0.0)[0]
    cross = optax.softmax_cross_entropy_with_integer_labels(logits, target.value)
    np.testing.assert_allclose(plain, cross, rtol=1e-6)


def test_focal_loss_of_one_logit_is_that_of_two():
    z = jnp.array([[0.7], [-0.2]])
    target = Target(np.array([[1.0], [0.0]]), np.ones(2))
    two = jnp.concatenate([jnp.zeros_like(z), z], -1)
    for a, b in zip(
        focal(z, target, jnp.ones(2), 2.0),
        focal(two, target, jnp.ones(2), 2.0),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_losses_are_focal_except_in_m4():
    task, target = IMAGES.task("grade"), Target(np.array([1]), np.ones(1))
    logits = jnp.array([[1.0, 0.5, -1.0]])
    batch = properties.random_batch(IMAGES, rows=1, keep=1.0)
    batch = batch.replace(targets={**batch.targets, "grade": target})
    out = Outputs({"risk": jnp.zeros((1, 1)), "grade": logits}, {})
    values = {
        name: float(small(IMAGES, name).loss(out, batch, 0)[1]["grade"].value()) for name in METHODS
    }
    cross = float(optax.softmax_cross_entropy_with_integer_labels(logits, target.value)[0])
    assert values["m4"] == pytest.approx(cross) == float(row_loss(task, logits, target)[0][0])
    assert (
        values["paper"]
        == values["released"]
        == pytest.approx(cross * (1 - np.exp(-cross)) ** 2, rel=1e-5)
    )
    weighed = focal_loss({"grade": (1.0, 3.0, 1.0)}, 0.0)(task, logits, target)[0]
    np.testing.assert_allclose(weighed, 3 * cross, rtol=1e-6)


def test_released_trains_on_rows_with_every_label_only():
    batch = properties.random_batch(IMAGES)
    mask = np.ones(properties.ROWS, np.float32)
    mask[[1, 3]] = 0
    grade = batch.targets["grade"].replace(mask=mask)
    batch = batch.replace(targets={**batch.targets, "grade": grade})
    np.testing.assert_array_equal(all_labels(batch), mask)
    logits = {"grade": jnp.zeros((properties.ROWS, 3)), "risk": jnp.zeros((properties.ROWS, 1))}
    for fidelity, rows in (("released", 4), ("paper", 6), ("m4", 6)):
        out = Outputs(logits, {}, {}, {})
        _, terms = small(IMAGES, fidelity=fidelity).loss(out, batch, 0)
        assert terms["risk"].weight == rows and terms["grade"].weight == 4


def run_images(batch, **fields):
    method = small(IMAGES, **fields)
    params = properties.random_params(method)
    # Routes are decided: with nearly even ones the information is a difference of rounding errors.
    params["mtoe_experts"]["gate_scale"] = params["mtoe_experts"]["gate_scale"] + 20.0
    out = jax.jit(lambda p, b: method.apply({"params": p}, b, train=False))(params, batch)
    return method, params, out


def test_information_reaches_the_total_and_is_a_mean_over_rows():
    weights = FrozenDict({"information": 0.5})
    batch = properties.random_batch(IMAGES, keep=1.0)
    method, params, out = run_images(batch, aux_weights=weights)
    total, terms = method.loss(out, batch, 0)
    tasks = sum(term.value() for term in terms.values())
    assert out.aux_losses["information"] < 0
    np.testing.assert_allclose(total, tasks + 0.5 * out.aux_losses["information"], rtol=1e-5)
    twice = jax.tree.map(lambda x: np.concatenate([x, x]), batch)
    _, _, again = run_images(twice, aux_weights=weights)
    np.testing.assert_allclose(
        again.aux_losses["information"], out.aux_losses["information"], rtol=1e-4
    )


def test_released_information_is_a_sum_over_rows_and_another_quantity():
    weights = FrozenDict({"information": 0.5})
    batch = properties.random_batch(IMAGES, keep=1.0)
    values = {}
    for name, rows in (("once", batch), ("twice", jax.tree.map(lambda x: np.tile(
        x, (2, *(1,) * (x.ndim - 1))), batch))):  # fmt: skip
        _, _, out = run_images(rows, fidelity="released", aux_weights=weights)
        values[name] = float(out.aux_losses["information"])
    assert values["once"] < -0.1
    np.testing.assert_allclose(values["twice"], 2 * values["once"], rtol=1e-4)


# --- routing ------------------------------------------------------------------------------------


def test_task_embeddings_move_their_own_branch_only():
    # Fusion and projection pass the task's own token on: the logits are the branches.
    batch = properties.random_batch(IMAGES, keep=1.0)
    method = small(IMAGES, "paper", residual="none", fusion_depth=0)
    params = properties.random_params(method)
    run = jax.jit(lambda p: method.apply({"params": p}, batch, train=False).logits)
    before = run(params)
    moved = {**params, "task": params["task"] + np.array([[0.0], [1.0]], np.float32)}
    after = run(moved)
    np.testing.assert_array_equal(after["risk"], before["risk"])
    assert np.abs(after["grade"] - before["grade"]).min() > 0


def test_absent_images_are_zero_images_as_released_and_masked_otherwise():
    batch = properties.random_batch(IMAGES, keep=1.0)
    absent = jax.tree.map(np.zeros_like, batch.inputs["oct"])
    zeros = batch.inputs["oct"].replace(values=absent.values)
    for fidelity in ("released", "paper"):
        logits = [
            run_images(batch.replace(inputs={**batch.inputs, "oct": s}), fidelity=fidelity)[2]
            for s in (absent, zeros)
        ]
        same = np.allclose(logits[0].logits["grade"], logits[1].logits["grade"], atol=1e-6)
        assert same == (fidelity == "released")
        used = logits[0].extra["utilisation"][:, 1]
        assert (np.abs(used).max() < 1e-6) == (fidelity == "paper")


def test_statistics_have_the_shapes_that_reports_read():
    _, _, out = run_images(properties.random_batch(IMAGES))
    shapes = {name: x.shape for name, x in out.moe["layer_0"].stats.items()}
    assert shapes["load"] == shapes["importance"] == (3,)
    assert shapes["by_modality"] == (2, 3) and shapes["by_row"] == (properties.ROWS, 2, 3)
    assert out.extra["utilisation"].shape == (properties.ROWS, 2, 2)
    np.testing.assert_allclose(out.extra["utilisation"].sum(1), 1.0, rtol=1e-5)


def test_experts_read_unit_tokens_except_in_m4():
    found = {name: cls(IMAGES).moe.inputs for name, cls in METHODS.items()}
    assert found == {"released": "unit", "paper": "unit", "m4": "raw"}


# --- segmentation and learning ------------------------------------------------------------------

GAMMA = dataclasses.replace(
    IMAGES, tasks=(IMAGES.task("grade"), TaskSpec("cup", "segmentation", needs=("fundus",)))
)


def test_overfits_four_images_with_a_grade_and_a_map():
    rng = np.random.default_rng(0)
    batch = properties.random_batch(IMAGES, keep=1.0, rows=4)
    cup = np.zeros((4, 8, 8, 1), np.float32)
    for b in range(4):
        y, x = rng.integers(0, 4, 2)
        cup[b, y : y + 4, x : x + 4] = 1
    targets = {"grade": batch.targets["grade"], "cup": Target(cup, np.ones(4, np.float32))}
    batch = batch.replace(targets=targets)
    method = small(GAMMA, width=16, dropout=0.0, segment_widths=(8, 8))
    params = properties.random_params(method)
    tx = optax.adam(3e-3)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry

            def loss(params):
                out = method.apply({"params": params}, batch, train=True)
                return method.loss(out, batch, 0)[0]

            updates, state = tx.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        params = jax.lax.scan(step, (params, tx.init(params)), length=150)[0][0]
        return method.apply({"params": params}, batch, train=False)

    out = train(params)
    assert out.logits["cup"].shape == (4, 8, 8, 1)
    score = scores(out.logits["cup"], cup)
    assert score.min() > 0.9
    assert (np.argmax(out.logits["grade"], -1) == targets["grade"].value).all()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"information": "mi"}, "information='mi'; choose one of"),
        ({"aux_weights": FrozenDict({"load": 1.0})}, "there is only 'information'"),
        ({"moe": {"gate": "no_such_gate"}}, "no_such_gate"),
        ({"moe": {"inputs": "long"}}, "inputs='long'; choose one of"),
        ({"spec": GAMMA, "fidelity": "released"}, "task cup: .*segmentation"),
        ({"spec": GAMMA, "patch": 3}, "patch=3 does not tile images of 8 x 8"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    spec = fields.get("spec", IMAGES)
    method = small(**{"spec": spec, **fields})
    batch = properties.random_batch(IMAGES)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: method.init(jax.random.key(0), batch, train=False))


def test_the_page_names_tests_that_exist():
    page = (ROOT / "docs/methods/m4oe.md").read_text()
    table = page.split("## Every difference")[1].split("## ")[0]
    folders = ("tests", "m4/audit")
    code = "".join(p.read_text() for f in folders for p in (ROOT / f).rglob("*.py"))
    names = {n for n in re.findall(r"`([a-z_0-9]+)`", table) if n.count("_") > 1}
    assert len(names) > 8
    assert not {n for n in names if f"def {n}(" not in code}


def test_released_has_no_dropout_and_no_information_loss():
    assert ReleasedM4oE.dropout == 0.0 and not ReleasedM4oE.aux_weights
    _, _, out = run_images(
        properties.random_batch(IMAGES), fidelity="released", aux_weights=FrozenDict({})
    )
    assert out.aux_losses == {}


def test_rows_without_an_image_count_as_released():
    """Their zero images are images: the mean focal loss is over all rows with every label."""
    batch = properties.drop_modalities(properties.random_batch(IMAGES, keep=1.0), row=1)
    weight = np.ones(len(batch.weight), np.float32)
    batch = batch.replace(weight=weight)
    method = small(IMAGES, fidelity="released", aux_weights=FrozenDict({}))
    init = jax.jit(method.init, static_argnames="train")
    params = init({"params": jax.random.key(0)}, batch, train=False)
    out = jax.jit(method.apply, static_argnames="train")(params, batch, train=False)
    _, terms = method.loss(out, batch, jnp.zeros((), jnp.int32))
    counted = np.asarray(all_labels(batch), np.float64)
    assert counted[1] == 1
    for task in IMAGES.tasks:
        found = focal_loss({}, 2.0)(task, out.logits[task.name], batch.targets[task.name])[0]
        np.testing.assert_allclose(
            terms[task.name].value(), (found * counted).sum() / counted.sum(), rtol=1e-5
        )
