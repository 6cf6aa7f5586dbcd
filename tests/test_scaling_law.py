"""What a mesh must buy: no large parameter whole, every axis cuts a device's work, chips add none.

MaxText refuses a run that leaves 2 % of its parameters' bytes unsharded; so does the law here. The
programs of whole steps are compiled in the `slow` suite, in one process a number of devices.
"""

import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from m4 import config as configs
from m4 import sharding
from m4.config import code
from m4.data.batch import empty
from m4.run import setup
from m4.run.method import make_method
from m4.train import step as train_step

METHODS = {"fusemoe": 4, "flexmoe": 4, "flexcare": 2, "m3h": 1, "m4oe": 4}  # and an expert axis
MESHES = [{"fsdp": 2}, {"fsdp": 8}, {"tensor": 2}, {"tensor": 4}, {"fsdp": 2, "tensor": 4}]
LARGE = 2**14  # numbers; smaller ones, 64 kB, may have no dimension that eight devices divide
WHOLE = 0.02  # of the bytes of the large


def boxed_params(name):
    """Names and shapes of the parameters that a shipped configuration trains."""
    config = configs.load(configs.parse([f"--config=configs/{name}_mimic.py"]))
    spec = code.data_module(config.data.name).spec(**config.data.options.to_dict())
    method = make_method(config.method.to_dict(), spec)
    with setup.context(sharding.make_mesh({"data": 8})):
        return jax.eval_shape(lambda: train_step.init_params(method, empty(spec, 8), seed=0))


@pytest.mark.parametrize("name", METHODS)
def test_no_large_parameter_is_whole_and_every_axis_cuts_their_bytes(name):
    boxed = boxed_params(name)
    plain = jax.tree.leaves(sharding.unbox(boxed))
    every = sum(x.size for x in plain if x.size >= LARGE)
    assert every > 0
    experts = [{"expert": METHODS[name]}, {"data": 2, "expert": METHODS[name]}]
    for sizes in MESHES + (experts if METHODS[name] > 1 else []):
        placed = jax.tree.leaves(sharding.param_shardings(boxed, sharding.make_mesh(sizes)))
        large = [(x, s) for x, s in zip(plain, placed, strict=True) if x.size >= LARGE]
        whole = sum(x.size for x, s in large if s.is_fully_replicated)
        held = sum(np.prod(s.shard_shape(x.shape)) for x, s in large)
        cut = np.prod([n for axis, n in sizes.items() if axis != "data"])
        assert whole <= WHOLE * every, sizes
        assert held <= (1 - 0.8 * (1 - 1 / cut)) * every, (sizes, held / every)


# --- programs -----------------------------------------------------------------------------------

CHILD = """
import json, sys
from tests import compiled_step
words, sizes, rows = json.loads(sys.argv[1])
found = compiled_step.facts(words, sizes, rows)
found["collectives"] = [[kind, s, n] for (kind, s), n in found["collectives"].items()]
print(json.dumps(found))
"""


def facts(name, sizes, rows=8):
    """`compiled_step.facts` at `rows` a device, in a process of so many devices, and its words."""
    number = int(np.prod([*sizes.values()]))
    flags = f"--xla_force_host_platform_device_count={number}"
    rows *= number // sizes.get("tensor", 1)
    args = json.dumps([[f"--config=configs/{name}_mimic.py:tiny"], sizes, rows])
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", CHILD, args]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def largest(found):
    """Numbers in the largest result of each kind of collective."""
    sizes = {}
    for kind, shape, _ in found["collectives"]:
        number = int(np.prod([int(n) for n in re.findall(r"\d+", shape.split("[")[1])] or [1]))
        sizes[kind] = max(number, sizes.get(kind, 0))
    return sizes


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_devices_work_does_not_grow_with_devices(name):
    """At 8 rows a device: FLOPs within 5 %, no collective of a larger result, no message."""
    expert = min(METHODS[name], 2)
    few, words = facts(name, {"data": 8 // expert, "expert": expert})
    many, more_words = facts(name, {"data": 32 // expert, "expert": expert})
    assert many["flops"] == pytest.approx(few["flops"], rel=0.05)
    assert {kind: n for kind, n in largest(many).items() if n > largest(few).get(kind, 0)} == {}
    assert "Involuntary full rematerialization" not in words + more_words


@pytest.mark.slow
@pytest.mark.parametrize("name", ["m3h", "fusemoe"])
def test_tensor_shares_the_work(name):
    """Half of the devices do not do the same twice: at most 0.8 of the FLOPs without the axis."""
    alone, _ = facts(name, {"data": 4})
    shared, words = facts(name, {"data": 4, "tensor": 2})
    assert shared["flops"] < 0.8 * alone["flops"]
    assert "Involuntary full rematerialization" not in words
