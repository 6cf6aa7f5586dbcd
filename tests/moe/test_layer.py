"""The layer as a whole: parameters, masks, gradients, noise, every gate and router."""

import functools
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import FrozenDict

from m4.moe.layer import MoE
from m4.moe.options import MoEOptions, known
from tests.moe.training import train_steps

pytestmark = pytest.mark.usefixtures("quick_compile")
B, T, D, M, E = 4, 6, 8, 3, 6
N = B * T
GATES, ROUTERS = known("gate"), known("router")
OPTIONS = {"group_limited": {"groups_kept": 2}}
RNGS = {"params": jax.random.key(0), "gate": jax.random.key(1)}


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    given = {
        "valid_N": rng.random(N) < 0.7,
        "modality_N": np.arange(N) % M,
        "query_NQ": rng.normal(size=(N, 2)).astype(np.float32),
        "pattern_N": np.repeat(np.arange(B), T),
        "task_N": np.repeat(np.arange(B) % 2, T),
    }
    return rng.normal(size=(N, D)).astype(np.float32), given


def make(**fields):
    """A layer from its own fields and those of its options."""
    own = {f: fields.pop(f) for f in ("num_modalities", "out", "losses") if f in fields}
    return MoE(MoEOptions(**fields), **own)


def build(**fields):
    """Random parameters of a layer, its `apply`, and inputs."""
    router = fields.get("router", "top_k")
    defaults = {
        "num_experts": E,
        "top_k": 2,
        "hidden": 5,
        "num_modalities": M,
        "num_groups": 3,
        "num_slots": 2 if router == "soft" else 1,
        "router_options": FrozenDict(OPTIONS.get(router, {})),
        "engine": "dense",
    }
    layer = make(**(defaults | fields))
    x, given = inputs()
    static = {"num_rows": B, "num_tasks": 2}
    init = functools.partial(layer.init, train=True, **static)
    shapes = nn.unbox(jax.eval_shape(init, RNGS, x, **given))
    rng = np.random.default_rng(1)  # drawn here: compiling every initialiser takes longer
    params = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    return params, functools.partial(layer.apply, **static), x, given


def test_parameter_tree_and_stats():
    variables, apply, x, given = build(
        router="noisy_top_k", share="disjoint", losses=("importance", "load", "entropy")
    )
    assert jax.tree.map(jnp.shape, variables["params"]) == {
        "gate_centre": (3, 8, 2),
        "router_noise": (3, 8, 2),
        "w1": (6, 5, 8),
        "b1": (6, 5),
        "w2": (6, 5, 8),
        "b2": (6, 8),
    }
    y, aux = jax.jit(functools.partial(apply, train=False))(variables, x, **given)
    assert y.shape == (N, D)
    assert set(aux.losses) == {"importance", "load", "entropy"}
    assert aux.stats["by_modality"].sum() == 2 * given["valid_N"].sum()
    np.testing.assert_array_equal(aux.stats["by_row"].sum(0), aux.stats["by_modality"])
    # disjoint: modality m only ever visits experts 2m and 2m + 1
    by_modality = aux.stats["by_modality"].reshape(M, M, 2)
    assert (by_modality * (1 - np.eye(M))[..., None]).sum() == 0
    train = jax.eval_shape(functools.partial(apply, train=True), variables, x, **given, rngs=RNGS)
    assert "by_row" not in train[1].stats


def test_expert_kernels_do_not_shrink_with_the_number_of_experts():
    """LeCun: the variance is 1 / D, whatever E. (Counting E as a field would give 1 / (E D).)"""
    layer = make(num_experts=64, top_k=1, hidden=128)
    init = jax.jit(functools.partial(layer.init, train=False))
    params = nn.unbox(init(jax.random.key(0), np.ones((2, 128)), valid_N=np.ones(2, bool)))
    for name, fan_in in {"w1": 128, "w2": 128}.items():
        assert float(params["params"][name].std()) == pytest.approx(fan_in**-0.5, rel=0.01)


@pytest.mark.parametrize("num_experts", [8, 128])
def test_output_scale_does_not_depend_on_the_number_of_experts(num_experts):
    """Mixing k = 2 experts of independent outputs: between 1 / sqrt(2) and 1 of one expert's."""
    layer = make(num_experts=num_experts, top_k=2, hidden=64, activation="relu", engine="dense")
    x = np.random.default_rng(0).normal(size=(256, 16)).astype(np.float32)
    given = {"valid_N": np.ones(256, bool)}
    y = jax.jit(lambda k: layer.init_with_output(k, x, **given, train=False))(jax.random.key(0))
    # relu halves the second moment: one expert's output has variance 1/2
    assert (1 / 4) ** 0.5 * 0.9 < float(jnp.std(y[0][0])) < (1 / 2) ** 0.5 * 1.1


def every_case():
    for gate in GATES:
        yield pytest.param({"gate": gate, "top_k": 1}, id=gate)
    for router in ROUTERS:
        yield pytest.param({"gate": "linear", "router": router}, id=router)
    yield pytest.param({"router": "hierarchical", "top_k": 1}, id="hierarchical-1")
    yield pytest.param({"share": "permod", "router": "noisy_top_k"}, id="permod")
    yield pytest.param({"share": "disjoint", "gate": "gaussian"}, id="disjoint")


UNTRAINED = ("uniform", "hash", "hash_modality", "oracle", "fixed_random")
LOSSES = ("importance", "switch", "z", "entropy", "conditional_information", "orthogonality")


@pytest.mark.parametrize("fields", list(every_case()))
def test_masks_and_gradients(fields):
    """For every gate and router, compiled once:

    - garbage in an invalid token changes no bit of any output, loss or statistic;
    - invalid tokens have zero output and zero gradient;
    - every gate and router parameter gets a gradient from the task loss alone, with K = 1 (the
      trap: a weight normalised over one expert is constant) and with K = 2;
    - without any valid token everything is finite and the output zero.
    """
    variables, apply, x, given = build(**fields, losses=LOSSES)

    def run(params, x, valid_N):
        y, aux = apply({"params": params}, x, **given | {"valid_N": valid_N}, train=True, rngs=RNGS)
        return (y**2).sum(), (y, aux)

    run = jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))
    valid = given["valid_N"]
    clean, dirty = (
        run(variables["params"], np.where(valid[:, None], x, fill).astype(np.float32), valid)
        for fill in (x, np.nan)
    )
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    (_, (y, aux)), (grads, by_x) = clean
    assert np.isfinite(list(aux.losses.values())).all()
    np.testing.assert_array_equal(y[~valid], 0.0)
    np.testing.assert_array_equal(by_x[~valid], 0.0)
    learned = {k: g for k, g in grads.items() if k.split("_")[0] in ("gate", "outer", "router")}
    if fields.get("gate") in UNTRAINED:
        assert not any(np.any(g) for g in learned.values())
    else:
        learned.pop("router_bias", None)  # moved by losses.loss_free alone
        assert learned
        assert all(np.any(np.asarray(g) != 0) for g in learned.values()), learned
    empty = run(variables["params"], x, np.zeros(N, bool))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(empty))
    np.testing.assert_array_equal(empty[0][1][0], 0.0)


def test_permod_is_a_gate_per_modality():
    """Equal to running each modality's tokens through a joint layer with its gate."""
    variables, apply, x, given = build(share="permod")
    y, aux = apply(variables, x, **given, train=False)
    for m in range(M):
        params = dict(variables["params"])
        params["gate_centre"] = params["gate_centre"][m : m + 1]
        layer = make(num_experts=E, top_k=2, hidden=5, engine="dense")
        own = given["modality_N"] == m
        alone, alone_aux = layer.apply(
            {"params": params}, x, valid_N=given["valid_N"] & own, train=False
        )
        np.testing.assert_allclose(y[own], alone[own], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(
            aux.stats["by_modality"][m], alone_aux.stats["by_modality"][0]
        )


def test_noise_needs_its_rng_and_evaluation_none():
    variables, apply, x, given = build(router="noisy_top_k")
    with pytest.raises(Exception, match="gate"):
        apply(variables, x, **given, train=True)
    quiet = [apply(variables, x, **given, train=False)[0] for _ in range(2)]
    np.testing.assert_array_equal(*quiet)


def test_bfloat16_input_is_routed_in_float32():
    """Scores of a bfloat16 token are those of the same token in float32, not of rounded scores."""
    variables, apply, x, given = build(gate="linear", losses=("z",))
    x = jnp.asarray(x, jnp.bfloat16)
    y, aux = apply(variables, x, **given, train=False)
    _, wide_aux = apply(variables, x.astype(jnp.float32), **given, train=False)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(aux.losses["z"], wide_aux.losses["z"])
    np.testing.assert_array_equal(aux.stats["by_modality"], wide_aux.stats["by_modality"])


def test_dense_to_sparse_temperature_reaches_the_gate():
    variables, apply, x, given = build(gate="dense_to_sparse")
    entropy = [
        apply(variables, x, **given, temperature=t, train=False)[1].stats["entropy"]
        for t in (2.0, 0.1)
    ]
    assert entropy[0] > entropy[1]


def test_loss_free_bias_balances():
    """Gradient descent on the loss alone evens out a load that a biased gate made uneven."""
    variables, apply, x, given = build(gate="linear", router="loss_free", losses=("loss_free",))
    params = variables["params"] | {"router_bias": np.zeros((1, E), np.float32)}
    params["gate_w"][0, :, 0] *= 5.0
    x = np.abs(x)  # so that expert 0 is far ahead or behind

    def loss(bias):
        aux = apply({"params": params | {"router_bias": bias}}, x, **given, train=True)[1]
        return aux.losses["loss_free"], aux.stats["load"].std() * E

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    bias, seen = params["router_bias"], []
    for _ in range(200):
        (_, cv), grad = step(bias)
        bias = bias - 0.05 * grad
        seen.append(float(cv))
    assert np.mean(seen[-20:]) < 0.6 * seen[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": 7}, r"moe.top_k=7 must be in \[1, 6\]"),
        ({"top_k": 0}, r"moe.top_k=0 must be in"),
        ({"share": "disjoint", "top_k": 3}, r"moe.top_k=3 must be in \[1, 2\]"),
        (
            {"share": "disjoint", "num_experts": 7},
            "moe.num_experts=7 cannot be split over 3 modalities",
        ),
        ({"share": "shared"}, "moe.share='shared'; choose joint"),
        ({"gate": "laplas"}, "moe.gate='laplas': m4.moe.gates has no 'laplas'"),
        ({"losses": ("laod",)}, "moe.losses='laod': m4.moe.losses has no"),
        ({"gate_options": FrozenDict(power=2)}, "moe.gate: laplace takes no option power"),
        ({"router": "soft", "share": "permod"}, "moe.share must be 'joint'"),
    ],
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        build(**fields)


def test_an_outside_gate_needs_one_function():
    """A gate given as 'module:name', as a user's own file would."""
    variables, _, _, _ = build(gate=f"{__name__}:outside_gate")
    assert variables["params"]["gate_w"].shape == (1, D, E)


def outside_gate(x_ND, w_DE: Annotated[jax.Array, nn.initializers.ones]):
    return x_ND @ w_DE


def test_drops_by_modality_task_and_row_add_up():
    variables, apply, x, given = build(engine="capacity", capacity=0.5)
    _, aux = jax.jit(functools.partial(apply, train=True))(variables, x, **given)
    routed = 2 * given["valid_N"].sum()
    assert aux.stats["dropped"] > 0.1
    for by in ("dropped_by_modality", "dropped_by_task", "dropped_by_row"):
        np.testing.assert_allclose(aux.stats[by].sum() / routed, aux.stats["dropped"], rtol=1e-6)


def test_coactivation_only_in_evaluation():
    """The diagonal counts visits, off it every pair of a token's experts twice."""
    variables, apply, x, given = build(top_k=3)
    _, aux = apply(variables, x, **given, train=False)
    pairs = aux.stats["coactivation"]
    np.testing.assert_array_equal(np.diag(pairs), aux.stats["by_modality"].sum(0))
    assert pairs.sum() == 3 * 3 * given["valid_N"].sum()
    train = jax.eval_shape(functools.partial(apply, train=True), variables, x, **given, rngs=RNGS)
    assert "coactivation" not in train[1].stats


@pytest.mark.parametrize("output", [None, "softmax"])
def test_shared_experts_are_added_for_every_valid_token(output):
    variables, apply, x, given = build(num_shared=2, activation="relu", output=output, out=3)
    params = dict(variables["params"])
    shared = params.pop("shared")
    assert {k: v.shape for k, v in shared.items()} == {
        "w1": (2, 5, D),
        "b1": (2, 5),
        "w2": (2, 5, 3),
        "b2": (2, 3),
    }
    _, routed, _, _ = build(activation="relu", output=output, out=3)
    y, _ = apply(variables, x, **given, train=False)
    without, _ = routed({"params": params}, x, **given, train=False)
    want = np.zeros((N, 3))
    for w1, b1, w2, b2 in zip(*(shared[n] for n in ("w1", "b1", "w2", "b2")), strict=True):
        one = np.maximum(x @ w1.T + b1, 0) @ w2 + b2
        want += one if output is None else jax.nn.softmax(one, axis=-1)
    want = np.where(given["valid_N"][:, None], want, 0)
    np.testing.assert_allclose(y - without, want, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_16384_experts_train():
    """20 Adam steps through the default engine, with small experts."""
    layer = make(num_experts=16_384, top_k=2, hidden=8, gate="laplace", router="noisy_top_k")
    losses = train_steps(layer, width=64, num_tokens=2048, steps=20)
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


ONE_GATE_EACH = [  # and the modality of each position in a row
    ({"share": "permod", "router": "noisy_top_k"}, (0, 1, 2, 0, 1, 2)),
    ({"share": "permod", "router": "hierarchical", "top_k": 1}, (2, 0, 0, 1, 0, 1)),
    ({"share": "permod", "router": "sinkhorn", "gate": "linear"}, (1, 0, 0, 0, 0, 1)),
    ({"share": "disjoint", "router": "loss_free", "gate": "cosine"}, (2, 0, 0, 1, 0, 1)),
]


@pytest.mark.parametrize(("fields", "order"), ONE_GATE_EACH)
def test_a_modality_known_to_the_program_changes_nothing(fields, order):
    """As a NumPy array every gate routes its own tokens; traced, every gate routes all tokens.

    Outputs, losses, statistics and gradients agree, with equally and unequally many tokens per
    modality and with a modality that has none.
    """
    variables, apply, x, given = build(**fields, losses=("importance", "z"))
    given["modality_N"] = np.tile(np.array(order), B)
    if fields["router"] == "noisy_top_k":
        given["noise_NE"] = np.random.default_rng(2).normal(size=(N, E)).astype(np.float32)

    def run(params, x, modality_N):
        inputs = given | {"modality_N": modality_N}
        y, aux = apply({"params": params}, x, **inputs, train=True, rngs=RNGS)
        return (y**2).sum() + sum(aux.losses.values()), (y, aux)

    run = jax.value_and_grad(run, argnums=(0, 1), has_aux=True)
    own = jax.jit(functools.partial(run, modality_N=given["modality_N"]))(variables["params"], x)
    everyone = jax.jit(run)(variables["params"], x, given["modality_N"])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), own, everyone)


def test_every_modality_draws_its_own_noise():
    """A key is split over the gates: equal tokens of two modalities get different noise."""
    variables, apply, x, given = build(
        share="permod", gate="noisy_linear", losses=("z",), top_k=1, num_modalities=2
    )
    params = jax.tree.map(np.zeros_like, variables["params"])  # sigma = log 2, no signal
    given |= {"valid_N": np.ones(N, bool), "modality_N": np.arange(N) % 2}
    _, aux = apply({"params": params}, x, **given, train=True, rngs=RNGS)
    first, second = np.asarray(aux.stats["by_modality"])
    assert np.any(first != second)


@pytest.mark.parametrize("gate", ["linear", "laplace"])
def test_the_size_of_the_program_does_not_depend_on_the_number_of_experts(gate):
    def size(num_experts):
        layer = make(num_experts=num_experts, top_k=2, hidden=8, gate=gate, engine="dropless")
        given = {"valid_N": jnp.ones(256, bool), "train": True}
        x_ND = jax.ShapeDtypeStruct((256, 4), jnp.float32)
        variables = jax.eval_shape(lambda x: layer.init(jax.random.key(0), x, **given), x_ND)
        loss = lambda v, x: jnp.sum(layer.apply(v, x, **given)[0] ** 2)  # noqa: E731
        return len(jax.jit(jax.grad(loss, (0, 1))).lower(variables, x_ND).as_text())

    assert abs(size(4096) / size(64) - 1) < 0.05
