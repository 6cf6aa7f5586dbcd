"""Every option acts, and every impossible one is told in words before anything is computed."""

import dataclasses
import functools
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from m4 import sharding
from m4.moe import gates
from m4.moe.layer import MoE
from m4.moe.options import MoEOptions, SoftOptions, known, problems

pytestmark = pytest.mark.usefixtures("quick_compile")
N, D, M = 24, 6, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D)).astype(np.float32)
GIVEN = {"valid_N": np.arange(N) % 5 > 0, "modality_N": np.arange(N) % M, "num_rows": 4}
SMALL = MoEOptions(num_experts=6, hidden=5, engine="dense")


def run(**changes):
    """Parameters (drawn here, the same for the same shapes), output and statistics."""
    layer = MoE(dataclasses.replace(SMALL, **changes), num_modalities=M)
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), X, **GIVEN, train=False))
    params = jax.tree.map(
        lambda s: np.random.default_rng(s.size).normal(size=s.shape).astype(np.float32),
        nn.unbox(shapes),
    )
    y_ND, aux = jax.jit(functools.partial(layer.apply, train=True, num_rows=4))(
        params, X, valid_N=GIVEN["valid_N"], modality_N=GIVEN["modality_N"]
    )
    return params["params"], y_ND, aux.stats


# Of every option another value (with what it needs); the outputs or the parameters then differ.
OTHER = {
    "gate": {"gate": "linear"},
    "router": {"router": "expert_choice"},
    "share": {"share": "permod"},
    "num_experts": {"num_experts": 4},
    "top_k": {"top_k": 3},
    "hidden": {"hidden": 7},
    "num_shared": {"num_shared": 1},
    "activation": {"activation": "relu"},
    "output": {"output": "softmax"},
    "dtype": {"dtype": "bfloat16"},
    "rank": ({"gate": "cosine"}, {"gate": "cosine", "rank": 3}),
    "num_slots": ({"router": "soft"}, {"router": "soft", "num_slots": 2}),
    "num_groups": (
        {"router": "hierarchical", "num_groups": 2},
        {"router": "hierarchical", "num_groups": 3},
    ),
    "outer_gate": (
        {"router": "hierarchical", "num_groups": 2},
        {"router": "hierarchical", "num_groups": 2, "outer_gate": "linear"},
    ),
    "gate_options": (
        {"gate": "student_t"},
        {"gate": "student_t", "gate_options": {"nu": 9.0}},
    ),
    "router_options": {"router_options": {"normalise": "none"}},
    "engine": ({"capacity": 0.4}, {"engine": "capacity", "capacity": 0.4}),
    "capacity": ({"engine": "capacity"}, {"engine": "capacity", "capacity": 0.4}),
}
ON_A_MESH = {"exchange", "slack", "overflow", "replicas", "target"}


def test_every_option_is_tried():
    assert set(OTHER) | ON_A_MESH == {field.name for field in dataclasses.fields(MoEOptions)}


@pytest.mark.parametrize("name", OTHER)
def test_every_option_acts(name):
    first, second = OTHER[name] if isinstance(OTHER[name], tuple) else ({}, OTHER[name])
    shapes, outputs = [], []
    for changes in (first, second):
        assert not problems(dataclasses.replace(SMALL, **changes), num_modalities=M)
        params, y_ND, _ = run(**changes)
        shapes.append(jax.tree.map(jnp.shape, params))
        outputs.append(y_ND)
    assert shapes[0] != shapes[1] or np.abs(outputs[0] - outputs[1]).max() > 1e-4


def test_bfloat16_experts_and_a_float32_router():
    _, wide, wide_stats = run()
    _, narrow, stats = run(dtype="bfloat16")
    jax.tree.map(np.testing.assert_array_equal, stats, wide_stats)  # the same choices and weights
    assert narrow.dtype == jnp.float32  # the input's
    error = np.abs(narrow - wide).max() / np.abs(wide).max()
    assert 2**-12 < error < 0.05

    def dtypes(dtype):
        layer = MoE(dataclasses.replace(SMALL, dtype=dtype, engine="dropless"), num_modalities=M)
        params = layer.init(jax.random.key(0), X, **GIVEN, train=False)
        text = str(jax.make_jaxpr(lambda p: layer.apply(p, X, **GIVEN, train=False))(params))
        grads = jax.eval_shape(
            jax.grad(lambda p: layer.apply(p, X, **GIVEN, train=False)[0].sum()), params
        )
        return "bf16" in text, {a.dtype for a in jax.tree.leaves(grads)}

    assert dtypes(None) == (False, {jnp.dtype("float32")})
    assert dtypes("bfloat16") == (True, {jnp.dtype("float32")})


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"exchange": "all_to_all"}, "all_to_all"),
        ({"exchange": "all_gather"}, "all_gather"),
        ({"exchange": "all_to_all", "replicas": 2}, "all_to_all"),
        ({"exchange": "all_to_all", "slack": 4.0}, "all_to_all"),
    ],
    ids=["all_to_all", "all_gather", "replicas", "slack"],
)
def test_options_of_a_mesh_act(changes, seen):
    """They reach the program on eight devices, and change no output."""
    options = dataclasses.replace(SMALL, num_experts=8, engine="dropless")
    x, valid = np.tile(X, (4, 1))[:64], np.ones(64, bool)
    params = nn.unbox(MoE(options).init(jax.random.key(0), x, valid_N=valid, train=False))

    def program(**changes):
        layer = MoE(dataclasses.replace(options, **changes))
        apply = jax.jit(lambda p: layer.apply(p, x, valid_N=valid, train=False)[0])
        with jax.set_mesh(sharding.make_mesh({"data": 2, "expert": 4})):
            return str(apply.trace(params).jaxpr), apply(params)

    alone = MoE(options).apply(params, x, valid_N=valid, train=False)[0]
    text, y = program(**changes)
    np.testing.assert_allclose(y, alone, rtol=1e-4, atol=1e-5)
    assert f"{seen}[" in text
    plain = {k: v for k, v in changes.items() if k == "exchange"}
    assert changes == plain or text != program(**plain)[0]


def test_overflow_drops_on_a_mesh():
    options = dataclasses.replace(SMALL, num_experts=8, top_k=1, gate="linear", engine="dropless")
    x, valid = np.ones((256, D), np.float32), np.ones(256, bool)  # all to one expert
    params = nn.unbox(MoE(options).init(jax.random.key(0), x, valid_N=valid, train=False))
    dropped = {}
    for overflow in ("exact", "drop"):
        layer = MoE(dataclasses.replace(options, exchange="all_to_all", overflow=overflow))
        with jax.set_mesh(sharding.make_mesh({"data": 2, "expert": 4})):
            stats = jax.jit(lambda p, f=layer: f.apply(p, x, valid_N=valid, train=True)[1].stats)(
                params
            )
        dropped[overflow] = float(stats["dropped"])
    assert dropped["exact"] == 0 and dropped["drop"] > 0.2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gate": "laplas"}, "gate='laplas': unknown; did you mean laplace?"),
        ({"router": "topk"}, "router='topk': unknown; did you mean top_k?"),
        ({"activation": "gelo"}, "activation='gelo': unknown; did you mean gelu?"),
        ({"output": "softmx"}, "output='softmx': unknown; did you mean softmax?"),
        ({"outer_gate": "lineal"}, "outer_gate='lineal': unknown; did you mean linear?"),
        ({"gate": "no_such_module:f"}, "gate='no_such_module:f': No module named"),
        ({"share": "permode"}, "share='permode': unknown; did you mean permod?"),
        ({"engine": "raged"}, "engine='raged'"),
        ({"dtype": "float8"}, "dtype='float8'"),
        ({"top_k": 9}, "top_k=9 must be in [1, 6] experts"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_k": 1.5}, "top_k=1.5 must be a whole number"),
        ({"share": "disjoint", "top_k": 3}, "top_k=3 must be in [1, 2] experts"),
        ({"share": "disjoint", "num_experts": 7}, "num_experts=7 cannot be split over 3"),
        ({"capacity": -1.0}, "capacity=-1.0 must be positive"),
        ({"slack": 0.0}, "slack=0.0 must be positive"),
        ({"replicas": 7}, "replicas=7 must be at most num_experts=6"),
        ({"num_shared": -1}, "num_shared=-1 must be at least 0"),
        ({"gate_options": {"power": 2}}, "gate: laplace takes no option power; it has: none"),
        ({"router_options": {"normalize": 1}}, "router: top_k takes no option normalize"),
        ({"router_options": {"normalise": "sum"}}, "router: normalise='sum' is not one of"),
        ({"router": "group_limited"}, "router: group_limited needs groups_kept"),
        (
            {"router": "group_limited", "num_groups": 4, "router_options": {"groups_kept": 1}},
            "router: 6 experts cannot form 4 equal groups",
        ),
        ({"router": "soft", "share": "permod"}, "share must be 'joint'"),
        ({"num_slots": 2}, "router: top_k got scores of 12 experts, not of 6; num_slots"),
    ],
)
def test_what_cannot_be_is_told_and_refused(changes, told):
    options = dataclasses.replace(SMALL, **changes)
    found = problems(options, ("importance",), M)
    assert len(found) == 1 and found[0].startswith(told), found
    if not {"slack", "replicas", "num_shared", "outer_gate"} & set(changes):  # of no effect here
        with pytest.raises((ValueError, TypeError)):
            MoE(options, num_modalities=M, losses=("importance",)).init(
                jax.random.key(0), X, **GIVEN, train=False
            )


def test_all_problems_at_once_and_those_of_losses():
    options = dataclasses.replace(SMALL, gate="laplas", engine="fast", hidden=0)
    assert [p.split("=")[0] for p in problems(options, ("laod",))] == [
        "hidden",
        "engine",
        "gate",
        "losses",
    ]
    assert problems(SMALL, ("loss_free",)) == [
        "losses: loss_free needs bias_E, which was not given"
    ]
    assert not problems(dataclasses.replace(SMALL, router="loss_free"), ("loss_free",))
    assert not problems(SMALL, known("losses")[:3] + ("task_information",), M)


def test_soft_options():
    assert not problems(SoftOptions())
    assert problems(SoftOptions(gate="laplas")) == ["gate='laplas': unknown; did you mean laplace?"]
    assert "takes no option nu" in problems(SoftOptions(gate_options={"nu": 1}))[0]


def failing(x_ND):
    raise KeyError(f"no\nentry {x_ND.shape[1]}")


def one_score(x_ND):
    return x_ND[:, :1]


def small_letters(x_ND, bias_e: Annotated[jax.Array, nn.initializers.zeros]):
    return x_ND[:, :6] + bias_e


def no_routing(logits_NE, valid_N, *, k):
    return logits_NE[:, :k]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gate": "failing"}, "gate: failing fails: KeyError: "),
        ({"gate": "one_score"}, "gate: one_score must return scores of shape [N, E]"),
        ({"gate": "small_letters"}, "gate: small_letters: the shape of parameter bias_e has"),
        ({"router": "no_routing"}, "router: no_routing must return a Routing"),
        ({"router": "one_score"}, "router: one_score fails: TypeError"),
    ],
)
def test_a_function_from_outside_that_fails_is_told_by_its_field(changes, told):
    changes = {field: f"{__name__}:{name}" for field, name in changes.items()}
    (found,) = problems(dataclasses.replace(SMALL, **changes))
    assert found.startswith(told) and "\n" not in found
    if "gate" in changes:
        assert problems(SoftOptions(**changes)) == [found]


@pytest.mark.parametrize("field", ["activation", "output"])
def test_a_wrong_activation_is_told(field):
    for name, told in (
        ("no_routing", "fails: TypeError"),
        ("one_score", "the shape that it takes"),
    ):
        (found,) = problems(dataclasses.replace(SMALL, **{field: f"{__name__}:{name}"}))
        assert found.startswith(f"{field}=") and told in found
        assert problems(SoftOptions(**{field: f"{__name__}:{name}"})) == [found]


def outside(x_ND, w_DE: Annotated[jax.Array, nn.initializers.ones], *, prior_N):
    return gates.linear(x_ND, w_DE) + prior_N[:, None]


def test_what_the_method_gives_is_not_missed():
    """An outside gate may ask for arrays of tokens that only its method knows."""
    assert not problems(dataclasses.replace(SMALL, gate=f"{__name__}:outside"))


@pytest.mark.parametrize("field", ["gate", "router", "losses", "activation"])
def test_known_names_are_the_functions_of_that_kind(field):
    assert {"gate": "laplace", "router": "top_k", "losses": "z", "activation": "gelu"}[
        field
    ] in known(field)
    assert not {"tally", "statistics", "cv_squared", "routing_to", "smooth_load"} & set(
        known(field)
    )


@pytest.mark.parametrize("name", known("router"))
def test_every_router_is_checked_without_arrays(name):
    options = {"router_options": {"groups_kept": 2}} if name == "group_limited" else {}
    options |= {"num_groups": 3} if name in ("group_limited", "hierarchical") else {}
    assert not problems(dataclasses.replace(SMALL, router=name, **options), num_modalities=M)
