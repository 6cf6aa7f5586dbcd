"""The smaller pods compiled for real; the larger ones by `python -m m4.bench aot`."""

import importlib.util
import os
import subprocess
import sys

import pytest

from m4.bench import aot


@pytest.mark.slow
@pytest.mark.parametrize("exchange", aot.EXCHANGES)
@pytest.mark.parametrize("name", ["8x64", "64x64"])
def test_pod_program(name, exchange):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the TPU compiler: pip install 'm4-moe[tpu]'")
    row = aot.compile_case(name, exchange)
    assert all(row["checks"].values()), row


def test_without_the_compiler_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    aot.main(["--cases=8x64"])
    assert "skipped: no libtpu" in capsys.readouterr().out


# The whole train step of a configuration, through the functions that a run calls.
STEP = """
import sys
from pathlib import Path

from jax.experimental import topologies

from m4 import config as configs
from m4 import sharding
from m4.config import code
from m4.data.batch import empty
from m4.run import programs, setup

config = configs.load(configs.parse([f"--config={sys.argv[1]}", "--config.train.batch_size=64"]))
chips = topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x2").devices
expert = int(sys.argv[2])
mesh = sharding.make_mesh({"data": len(chips) // expert, "expert": expert}, chips)
spec = code.data_module(config.data.name).spec(**config.data.options.to_dict())
model = setup.make_model(config, Path("."), spec, empty(spec, 64), mesh)
moe = getattr(model.method, "moe", None)
assert getattr(moe, "target", None) is None or moe.target.grouped, moe
with setup.context(mesh):
    step, _ = programs.compile_step(model, 64)
print("compiled", step.memory_analysis().temp_size_in_bytes)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "expert"),
    [("fusemoe", 4), ("flexmoe", 4), ("flexcare", 2), ("m3h", 1), ("m4oe", 4)],
)
def test_whole_methods_start_on_several_chips(method, expert):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the TPU compiler: pip install 'm4-moe[tpu]'")
    env = os.environ | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    command = [sys.executable, "-c", STEP, f"configs/{method}_mimic.py:tiny", str(expert)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "compiled" in done.stdout, done.stderr[-2000:]
