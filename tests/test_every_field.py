"""Every field of every method, and of the layer in it, can be set by a configuration.

Methods, fidelities and fields are discovered: a new one is tested the day it is written.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import pytest

from m4 import config as configs
from m4.config import code, rules
from m4.data.batch import empty
from m4.run import preflight
from m4.run.method import make_method

METHODS = [(name, f) for name in code.method_names() for f in code.method_modules(name)]
BASE = {
    "data": {
        "name": "synthetic",
        "options": {"modalities": ("vitals", "static"), "tasks": ("ihm48", "los"), "steps": 4},
    },
    "optim": {"lr": 0.01},
    "train": {"steps": 100, "batch_size": 16, "select": "ihm48/auroc"},
    "eval": {"batch_size": 16},
}
# What another field must be for a value to make sense.
WITH = {
    "gate_options": {"gate": "student_t", "gate_options": {"nu": 2.0}},
    "router_options": {"router": "top_k", "router_options": {"normalise": "after"}},
    "num_groups": {"router": "hierarchical", "num_groups": 2},
    "outer_gate": {"router": "hierarchical", "num_groups": 2, "outer_gate": "linear"},
    "num_slots": {"router": "soft", "share": "joint", "num_slots": 2},
    "aux_weights": {},
}


def routes(name, fidelity):
    paths = (path for path, _ in code.fields(code.method_class(name, fidelity)))
    return any(path.startswith("moe.") for path in paths)


ROUTED = [pair for pair in METHODS if routes(*pair)]


def made(name, fidelity, overrides):
    """The method that command-line overrides of its fields give, and the schema."""
    method = {"name": name, "fidelity": fidelity}
    flags = {f"method.{path}": text(value) for path, value in overrides.items()}
    config = configs.check({**BASE, "method": method}, flags, "a test")
    spec = preflight.schema(config)
    return make_method(config.method.to_dict(), spec), spec


def text(value):
    return str(value) if isinstance(value, str | int | float) else repr(value)


def other(path: str, rule: rules.Rule) -> Any:
    """A value that a field has not by default."""
    default = rule.default
    if rule.names is not None:
        return next(name for name in rule.names() if name != default)
    if rule.kind is dict:
        return dict.fromkeys(default, 0.5) if default else {"ihm48": (0.25, 0.75)}
    if rule.kind is bool:
        return not default
    if rule.kind is int:
        return 2 * default if default else 1
    if rule.kind is float:
        return default / 2 if default else 0.25
    return (3, 4) if rule.kind is tuple else "something"


def at(method, path):
    for part in path.split("."):
        method = getattr(method, part)
    return dict(method) if hasattr(method, "items") else method


@pytest.mark.parametrize(("name", "fidelity"), METHODS)
def test_every_field_of_every_method(name, fidelity):
    known = rules.method_rules(code.method_class(name, fidelity))
    assert len(known) > 2
    for path, rule in known.items():
        path = path.removeprefix("method.")
        section, dot, field = path.rpartition(".")
        values = {f"{section}{dot}{k}": v for k, v in WITH.get(field, {}).items()}
        if path == "aux_weights" and not rule.default:
            values[path] = {"importance": 0.5} if "method.moe.router" in known else {}
        values.setdefault(path, other(path, rule))
        method, _ = made(name, fidelity, values)
        for path, value in values.items():
            assert at(method, path) == value, path


@pytest.mark.parametrize(("name", "fidelity"), ROUTED)
def test_the_layer_gets_the_section_whole(name, fidelity):
    """What `method.moe` says is in the layer that runs, field by field."""
    options = {
        "hidden": 24,
        "num_experts": 16,
        "gate": "gaussian",
        "router": "sinkhorn",
        "activation": "silu",
        "output": "softmax",
        "dtype": "bfloat16",
        "top_k": 3,
        "share": "joint",
        "num_shared": 1,
        "engine": "dense",
    }
    cls = code.method_class(name, fidelity)
    own = {path.removeprefix("moe.") for path, _ in code.fields(cls) if path.startswith("moe.")}
    assert own >= {"hidden", "num_experts", "gate"}
    wanted = {field: value for field, value in options.items() if field in own}
    method, spec = made(name, fidelity, {f"moe.{k}": v for k, v in wanted.items()})
    seen = []

    def watch(call, args, kwargs, context):
        if dataclasses.is_dataclass(found := getattr(context.module, "options", None)):
            seen.append(found)
        return call(*args, **kwargs)

    def init():
        rngs = dict.fromkeys(("params", "dropout", "gate"), jax.random.key(0))
        return method.init(rngs, empty(spec, 2), train=False)

    with nn.intercept_methods(watch):
        jax.eval_shape(init)
    assert seen
    for found in seen:
        # Soft mixtures have several numbers; a paper may normalise otherwise by itself.
        for field in own - {"num_experts", "router_options"}:
            there, said = getattr(found, field), getattr(method.moe, field)
            own_form = field == "output" and there == "m4.methods.fusemoe.released:lifted_softmax"
            assert there == said or (own_form and said == "softmax"), field
    assert 16 in {found.num_experts for found in seen}
