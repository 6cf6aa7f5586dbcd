"""Every option of a mixture of experts reaches the layer from the configuration of every method."""

import dataclasses

import flax.linen as nn
import jax
import pytest

from m4 import config as configs
from m4.config import code
from m4.errors import ConfigError
from m4.moe.layer import MoE
from m4.moe.options import MoEOptions, SoftOptions
from m4.moe.soft import SoftExperts
from m4.run.method import make_method
from tests import properties

# Every field, away from its default, as far as they go together.
ROUNDS = {
    MoEOptions: (
        {
            "gate": "gaussian", "router": "hierarchical", "num_experts": 12, "top_k": 3,
            "hidden": 7, "num_shared": 1, "activation": "silu", "output": "softmax",
            "dtype": "bfloat16", "num_groups": 3, "outer_gate": "gaussian", "engine": "capacity",
            "capacity": 1.5, "exchange": "all_gather", "slack": 2.0, "overflow": "drop",
            "replicas": 1,
        },
        {"router": "soft", "share": "joint", "num_slots": 2, "gate": "cosine", "rank": 3},
        {"share": "disjoint", "num_experts": 12, "gate": "student_t", "gate_options": {"nu": 2.0},
         "router": "top_k", "router_options": {"normalise": "before"}},
    ),
    SoftOptions: (
        {
            "gate": "cosine", "num_experts": 12, "hidden": 7, "activation": "silu", "rank": 3,
            "output": "softmax", "dtype": "bfloat16", "inputs": "unit",
        },
        {"gate": "student_t", "gate_options": {"nu": 2.0}},
    ),
}  # fmt: skip
METHODS = [n for n in code.method_names() if hasattr(code.method_class(n), "moe")]


def configured(tmp_path, name, moe):
    """The method that a configuration file with this section makes."""
    (tmp_path / "c.py").write_text(f"""
import ml_collections
def get_config(variant=''):
    return ml_collections.ConfigDict(dict(
        data=dict(name='synthetic'),
        method=dict(name={name!r}, width=8, moe={moe}),
        optim=dict(lr=0.01),
        train=dict(steps=2, batch_size=4, select='death/auroc'),
        eval=dict(batch_size=4),
    ))
""")
    config = configs.load(configs.parse([f"--config={tmp_path / 'c.py'}"]))
    return make_method(config.method.to_dict(), properties.PAIR)


def traced(method):
    """Options of every mixture that a call makes, and what its program looks like."""
    found = []

    def watch(call, args, kwargs, context):
        if isinstance(context.module, MoE | SoftExperts) and context.method_name == "__call__":
            found.append(context.module.options)
        return call(*args, **kwargs)

    batch = properties.random_batch(method.data)
    rngs = {name: jax.random.key(0) for name in ("params", "dropout", "gate")}
    with nn.intercept_methods(watch):
        jax.eval_shape(lambda: method.init(rngs, batch, train=True))
    return found


@pytest.mark.parametrize("name", METHODS)
def test_every_option_reaches_the_layer(name, tmp_path):
    default = code.method_class(name).moe
    options = type(default)
    names = {f.name for f in dataclasses.fields(options) if "set_by" not in f.metadata}
    assert {key for moe in ROUNDS[options] for key in moe} == names
    for moe in ROUNDS[options]:
        method = configured(tmp_path, name, moe)
        asked = dataclasses.replace(default, **moe)
        assert method.moe == asked
        assert asked in traced(method)


@pytest.mark.parametrize("name", METHODS)
def test_options_that_do_not_apply_are_refused_in_words(name, tmp_path):
    wrong = {"router_": "top_k", "capacity_factor": 1.0}
    if isinstance(code.method_class(name).moe, SoftOptions):
        wrong |= {"top_k": 2, "router": "top_k", "share": "permod", "engine": "dense"}
    for field, value in wrong.items():
        with pytest.raises(ConfigError, match=f"method.moe.{field}"):
            configured(tmp_path, name, {field: value})
