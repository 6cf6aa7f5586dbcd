"""M3H: the properties of every method, the public head's equations, attention, losses, refusals."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m4.methods.m3h.cross_task import CrossTask, normalise, task_attention
from m4.methods.m3h.model import M3H
from m4.methods.m3h.paper import PaperM3H
from m4.methods.m3h.released import ReleasedM3H
from m4.methods.m3h.tasks import task_weights
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from m4.types import Outputs, Target
from tests import properties

ROOT = Path(__file__).parents[2]
VERSIONS = {"m4": M3H, "paper": PaperM3H, "released": ReleasedM3H}
SIZES = {"width": 6, "task_width": 5, "dropout": 0.1}
CONFIGS = {  # beside each file as it is, of which tests/methods/test_laws.py asks the same
    "m4-mix": {"identity": "mix", "balance": "learned", "task_weighting": "uncertainty"},
}


def small(data=properties.SPEC, fidelity="m4", **fields):
    return VERSIONS[fidelity](data, **(SIZES | fields))


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS.keys())
def probe(request):
    return properties.probe(small(**request.param))


@pytest.mark.parametrize("check", properties.CHECKS, ids=lambda c: c.__name__)
def test_property(probe, check):
    check(probe)


def test_eight_devices_equal_one():
    properties.same_on_eight_devices(small(properties.PAIR))


def test_parameter_tree_of_the_default_configuration():
    # A checkpoint's schema. Regenerate on purpose only: the test prints the tree it found.
    found = properties.parameter_tree(M3H(properties.SPEC))
    assert found == (ROOT / "tests/golden/m3h_params.txt").read_text(), found


# --- the public head ----------------------------------------------------------------------------

TASKS, INPUTS, WIDTH, ROWS = 3, 7, 5, 4


def head_params(rng):
    """Scores spread over both signs, their maximum well above 0."""
    return {
        "projection": rng.normal(size=(TASKS, INPUTS, WIDTH)),
        "task": rng.normal(size=(TASKS, WIDTH)),
        "query": rng.normal(size=(WIDTH, WIDTH)),
        "key": rng.normal(size=(WIDTH, WIDTH)),
        "value": rng.normal(size=(WIDTH, WIDTH)),
    }


def public_head(x, p):
    """The third party's head, patient by patient and task by task, in float64."""
    out = np.zeros((len(x), TASKS, WIDTH))
    for b in range(len(x)):
        e = [x[b] @ p["projection"][t] for t in range(TASKS)]
        q = [p["task"][t] @ p["query"] for t in range(TASKS)]
        k, v = [u @ p["key"] for u in e], [u @ p["value"] for u in e]
        s = np.array([[q[t] @ k[u] for u in range(TASKS)] for t in range(TASKS)])
        a = np.exp(np.eye(TASKS) + s / (s.max() + 1e-8))
        a /= a.sum(1, keepdims=True)
        for t in range(TASKS):
            out[b, t] = sum(a[t, u] * v[u] for u in range(TASKS))
    return out


def as_flax(p):
    dense = {name: {"kernel": p[name]} for name in ("query", "key", "value")}
    tree = {"projection": p["projection"], "task": p["task"], **dense}
    return {"params": jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)}


def test_released_head_is_the_public_one_forward_and_gradient():
    rng = np.random.default_rng(3)
    x, p, weight = rng.normal(size=(ROWS, INPUTS)), head_params(rng), rng.normal(size=WIDTH)
    head = CrossTask(TASKS, WIDTH, norm="max", beta=1.0)
    every = jnp.ones(TASKS, bool)

    @jax.jit
    def run(variables):
        o = head.apply(variables, jnp.asarray(x, jnp.float32), every)[0]
        return jnp.sum(jnp.tanh(o @ weight.astype(np.float32))), o

    (_, out), grads = jax.value_and_grad(run, has_aux=True)(as_flax(p))
    np.testing.assert_allclose(out, public_head(x, p), rtol=1e-5, atol=1e-5)
    for name in p:  # the derivative along a random direction, by central differences
        direction = rng.normal(size=p[name].shape)
        up, down = (
            np.tanh(public_head(x, {**p, name: p[name] + h * direction}) @ weight).sum()
            for h in (1e-6, -1e-6)
        )
        found = grads["params"][name]
        found = found["kernel"] if isinstance(found, dict) else found
        np.testing.assert_allclose(
            np.sum(np.asarray(found) * direction), (up - down) / 2e-6, rtol=2e-5, atol=2e-5
        )


def test_released_divides_by_the_signed_maximum():
    # All scores negative: the largest, -1, divides, and every sign turns.
    s = jnp.array([[[-1.0, -2.0], [-4.0, -1.0]]])
    every = jnp.ones(2, bool)
    turned = normalise(s, every, norm="max", width=1)
    np.testing.assert_allclose(turned, [[[1.0, 2.0], [4.0, 1.0]]], rtol=1e-6)
    kept = normalise(s, every, norm="absmax", width=1)
    np.testing.assert_allclose(kept, [[[-0.25, -0.5], [-1.0, -0.25]]], rtol=1e-6)


# --- attention ----------------------------------------------------------------------------------


def test_absmax_keeps_signs_and_is_finite():
    s = jax.random.normal(jax.random.key(0), (9, 4, 4)) * 100
    s = s.at[0].set(0.0)
    out = normalise(s, jnp.ones(4, bool), norm="absmax", width=1)
    assert np.isfinite(out).all() and np.abs(out).max() <= 1.0
    np.testing.assert_array_equal(np.sign(out), np.sign(s))


def test_rows_of_the_attention_sum_to_one():
    s = jax.random.normal(jax.random.key(0), (3, 5, 5))
    active = jnp.array([True, False, True, True, False])
    for mix in (None, 0.3):
        a = task_attention(s, active, mix=mix)[:, np.array([0, 2, 3])]
        np.testing.assert_allclose(a.sum(-1), 1.0, rtol=1e-6)
        assert not a[..., np.array([1, 4])].any()


def test_self_weight_without_exploration():
    # e / (e + T - 1) with a constant identity: almost nothing is left of it with 44 tasks.
    every = lambda n: (jnp.zeros((1, n, n)), jnp.ones(n, bool))  # noqa: E731
    for tasks, share in ((2, 0.731), (4, 0.475), (8, 0.280), (20, 0.125), (44, 0.059)):
        a = task_attention(*every(tasks), beta=1.0)
        np.testing.assert_allclose(a[0, 0, 0], share, atol=5e-4)
    # The default keeps e / (e + 1) whatever T is.
    for tasks in (2, 3, 17, 64):
        a = task_attention(*every(tasks))
        np.testing.assert_allclose(a[0, 1, 1], np.e / (np.e + 1), rtol=1e-5)


def test_strong_identity_is_the_identity():
    s = jax.random.normal(jax.random.key(0), (2, 4, 4))
    a = task_attention(s, jnp.ones(4, bool), alpha=0.0, beta=100.0)
    np.testing.assert_allclose(a, np.broadcast_to(np.eye(4), (2, 4, 4)), atol=1e-6)


@pytest.mark.parametrize("identity", ["logit", "mix"])
def test_one_active_task_is_a_single_task_model(identity):
    rng = np.random.default_rng(0)
    x, p = rng.normal(size=(ROWS, INPUTS)).astype(np.float32), head_params(rng)
    head = CrossTask(TASKS, WIDTH, identity=identity)
    only = jnp.arange(TASKS) == 1
    out, a = head.apply(as_flax(p), x, only)
    np.testing.assert_allclose(a[:, 1], np.tile([0.0, 1.0, 0.0], (ROWS, 1)), atol=1e-6)
    np.testing.assert_allclose(out[:, 1], x @ p["projection"][1] @ p["value"], rtol=1e-4)
    p["projection"][[0, 2]] = rng.normal(size=(2, INPUTS, WIDTH))
    np.testing.assert_array_equal(head.apply(as_flax(p), x, only)[0][:, 1], out[:, 1])


def test_tasks_are_equivariant():
    rng = np.random.default_rng(0)
    x, p = rng.normal(size=(ROWS, INPUTS)).astype(np.float32), head_params(rng)
    head, every, order = CrossTask(TASKS, WIDTH), jnp.ones(TASKS, bool), [2, 0, 1]
    out, a = head.apply(as_flax(p), x, every)
    moved = {**p, "projection": p["projection"][order], "task": p["task"][order]}
    out_moved, a_moved = head.apply(as_flax(moved), x, every)
    np.testing.assert_allclose(out_moved, out[:, order], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(a_moved, a[:, order][:, :, order], rtol=1e-5, atol=1e-6)


# --- all kinds of task --------------------------------------------------------------------------

DAYS = ("10", "20", "40")
ALL = DataSpec(
    (
        ModalitySpec("static", "table", (4,)),
        ModalitySpec("report", "text", (6,), dtype="int32", vocab=9),
    ),
    (
        TaskSpec("death", "binary"),
        TaskSpec("readmission", "binary", weight=3.0),
        TaskSpec("stay", "regression"),
        TaskSpec("survival", "survival", dim=3, labels=DAYS),
        TaskSpec("phenotype", "cluster", dim=3),
    ),
)


def all_kinds(rows=properties.ROWS, seed=0):
    """A batch with a survival target per row and no label of the clusters."""
    rng = np.random.default_rng(seed)
    batch = properties.random_batch(ALL, seed, rows)
    time = np.stack([rng.uniform(0, 50, rows), rng.integers(0, 2, rows)], -1).astype(np.float32)
    targets = {
        **batch.targets,
        "survival": Target(time, np.ones(rows, np.float32)),
        "phenotype": Target(np.zeros(rows, np.int32), np.zeros(rows, np.float32)),
    }
    return batch.replace(targets=targets)


@pytest.fixture(scope="module")
def everything():
    """Method, parameters, batch, and compiled `grads(params, batch, active) -> (...)`."""
    method = small(ALL, dropout=0.0)
    batch = all_kinds()
    params = properties.random_params(method)

    @jax.jit
    def grads(params, batch, active_T):
        def loss(params):
            out = method.apply({"params": params}, batch, train=True, active_T=active_T)
            total, terms = method.loss(out, batch, jnp.zeros((), jnp.int32))
            return total, {name: term.value() for name, term in terms.items()}

        return jax.value_and_grad(loss, has_aux=True)(params)

    return method, params, batch, grads


def test_every_kind_of_task_trains(everything):
    _, params, batch, grads = everything
    (loss, terms), g = grads(params, batch, np.ones(5, bool))
    assert np.isfinite(loss) and all(np.isfinite(v) for v in terms.values())
    properties_of = jax.tree_util.tree_leaves_with_path(g)
    for path, x in properties_of:
        assert np.isfinite(x).all() and np.any(x), jax.tree_util.keystr(path)


def test_loss_weighs_every_kind_the_same(everything):
    # Shares: two binary tasks 1/2 and 3/2, three others 1 each; they sum to 5.
    method, params, batch, grads = everything
    np.testing.assert_allclose(task_weights(ALL.tasks, "class"), [0.5, 1.5, 1, 1, 1])
    np.testing.assert_array_equal(task_weights(ALL.tasks, "uniform"), [1, 3, 1, 1, 1])
    (loss, terms), _ = grads(params, batch, np.ones(5, bool))
    by_hand = 0.5 * terms["death"] + 1.5 * terms["readmission"]
    by_hand += terms["stay"] + terms["survival"] + terms["phenotype"]
    np.testing.assert_allclose(loss, by_hand / 5, rtol=1e-6)


def test_inactive_tasks_are_neither_read_nor_trained(everything):
    _, params, batch, grads = everything
    active = np.array([True, False, True, False, False])
    (loss, terms), g = grads(params, batch, active)
    np.testing.assert_allclose(loss, (0.5 * terms["death"] + terms["stay"]) / 1.5, rtol=1e-6)
    assert not np.any(g["cluster_phenotype"]["centroid"])
    for t, used in enumerate(active):
        assert np.any(g["cross_task"]["projection"][t]) == used
        assert np.any(g["cross_task"]["task"][t]) == used
    changed = jax.tree.map(np.array, params)
    changed["cross_task"]["projection"][[1, 3, 4]] = 7.0
    np.testing.assert_array_equal(grads(changed, batch, active)[0][0], loss)


def test_the_task_mask_is_an_input_of_one_compiled_step(everything):
    _, params, batch, grads = everything
    grads(params, batch, np.ones(5, bool))
    before = grads._cache_size()
    for t in range(5):
        grads(params, batch, np.arange(5) == t)
    assert grads._cache_size() == before == 1


def test_uncertainty_weighting_by_hand():
    # L / (2 s^2) + log(1 + s^2) at s = 2, L = 3: 3 / 8 + log 5.
    spec = DataSpec(ALL.modalities, ALL.tasks[:1])
    method = small(spec, task_weighting="uncertainty")
    batch = properties.random_batch(spec)
    params = properties.random_params(method)
    params["sigma"] = np.array([2.0], np.float32)
    rngs = {"dropout": jax.random.key(0)}
    out = method.apply({"params": params}, batch, train=True, rngs=rngs)
    loss, terms = method.loss(out, batch, 0)
    np.testing.assert_allclose(loss, terms["death"].value() / 8 + np.log(5), rtol=1e-6)


def test_regression_is_squared_in_paper_and_huber_in_m4():
    # Standardised target (7 - 1) / 2 = 3, prediction 1: 4 squared, 2 - 0.5 = 1.5 with Huber.
    spec = DataSpec(ALL.modalities, (TaskSpec("stay", "regression", loc=1.0, scale=2.0),))
    target = Target(np.full((2, 1), 7.0, np.float32), np.ones(2, np.float32))
    batch = properties.random_batch(spec, rows=2).replace(targets={"stay": target})
    out = Outputs({"stay": jnp.ones((2, 1))}, {}, {}, {"active": jnp.ones(1, bool)})
    found = {f: float(small(spec, f).loss(out, batch, 0)[0]) for f in VERSIONS}
    assert found == {"released": 4.0, "paper": 4.0, "m4": 1.5}


def test_absent_modalities_are_zeros_as_released_and_learned_otherwise():
    trees = {f: properties.parameter_tree(small(fidelity=f)) for f in VERSIONS}
    assert [f for f, tree in trees.items() if "missing/embedding" in tree] == ["m4", "paper"]


def test_heads_read_statistics_only_in_m4():
    trees = {f: properties.parameter_tree(small(fidelity=f)) for f in ("paper", "m4")}
    # 2 series of at most 3 features and 10 statistics, a table of 4 values and 4 flags; width 5
    assert "heads/dim_4/kernel (1, 5, 4)" in trees["paper"]
    assert "heads/dim_4/kernel (1, 73, 4)" in trees["m4"]
    assert "cross_task/norm/scale" in trees["m4"] and "cross_task/norm" not in trees["paper"]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"norm": "l2"}, "norm='l2'; choose one of"),
        ({"cluster": "gmm"}, "cluster='gmm'; choose one of"),
        ({"fidelity": "paper", "identity": "sum"}, "identity='sum'; choose one of"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        properties.parameter_shapes(small(**fields))


def test_the_page_says_what_it_is_and_names_tests_that_exist():
    page = (ROOT / "docs/methods/m3h.md").read_text()
    assert "econstructed from public descriptions" in page
    table = page.split("## Every difference")[1].split("## ")[0]
    folders = ("tests", "m4/audit")
    code = "".join(p.read_text() for f in folders for p in (ROOT / f).rglob("*.py"))
    names = {n for n in re.findall(r"`([a-z_0-9]+)`", table) if n.count("_") > 1}
    assert len(names) > 10
    assert not {n for n in names if f"def {n}(" not in code}
