"""`--mode=plan` as a user gives it: no data, no accelerator, figures and refusals."""

import dataclasses
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from m4 import config as configs
from m4.errors import ConfigError
from m4.main import main
from m4.modes import plan, scale
from m4.plan import facts as plans
from m4.plan import fits, printed, roofline, topology
from tests.test_config import TOY

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/scale.md").read_text()


CPU = topology.parse("cpu:4")


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """What the command in docs/scale.md prints and writes, on four virtual devices."""
    folder = tmp_path_factory.mktemp("plan")
    blocks = re.findall(r"^```sh\n(.*?)\n```", PAGE, flags=re.M | re.S)
    (text,) = [block for block in blocks if "--mode=plan" in block]
    command = [sys.executable, *shlex.split(text)[1:]]
    command = [arg.replace("=plan.json", f"={folder}/plan.json") for arg in command]
    env = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir() if path.suffix == ".json"] == ["plan.json"]
    return done.stdout, json.loads((folder / "plan.json").read_text())


def test_figures_of_a_step(planned):
    out, document = planned
    facts = plans.Facts(**document["facts"])
    assert facts.mesh == {"data": 4, "fsdp": 1, "expert": 1, "tensor": 1} and facts.idle == 0
    assert facts.rows == 16 and facts.program == "own" and facts.callbacks == 0
    assert facts.replicated_bytes == facts.parameter_bytes > 0
    assert facts.peak_bytes > facts.argument_bytes > facts.state_bytes > 0
    assert {axes for one in facts.collectives for axes in one["axes"]} == {"data"}
    assert fits.disagreements(facts, CPU) == []
    for words in ("matrix FLOPs", "peak", "replicated", "all-reduce along data", "bound by"):
        assert words in out
    assert "4 x cpu, mesh data=4" in out and "goodput" in out
    assert document["refusal"] is None and 0 < document["goodput"]["goodput"] < 1


def test_commands_of_the_page_are_right():
    commands = re.findall(r"python -m m4\.main ((?:\\\n|[^\n`])+)", PAGE)
    modes = set()
    for command in commands:
        flags = configs.parse(shlex.split(command.replace("\\\n", " ").partition("#")[0]))
        modes.add(flags.mode)
        if flags.mode == "scale":
            assert scale.parse(flags.options).topology == "v5p"
    assert modes == {"train", "eval", "plan", "scale"}
    for name in re.findall(r"`([a-z]\d\w+:[\dx+]+|cpu:\d+)`", PAGE):
        assert topology.parse(name).count > 0


def test_a_mesh_that_does_not_pay_is_told(planned):
    facts = plans.Facts(**planned[1]["facts"])
    mesh = {"data": 2, "fsdp": 1, "expert": 1, "tensor": 2}
    idle = dataclasses.replace(facts, mesh=mesh, flops=2 * facts.model["flops"])
    lines = fits.disagreements(idle, CPU)
    assert any("matrix FLOPs: the compiler's is 2.00" in line for line in lines)
    assert any("mesh.tensor=2: splits 0 % of the FLOPs" in line for line in lines)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "toy.py").write_text(TOY)
    return configs.load(configs.parse([f"--config={tmp_path}/toy.py"]))


def test_what_does_not_fit_is_refused_with_planned_remedies(planned, config, monkeypatch):
    facts, asked = plans.Facts(**planned[1]["facts"]), []
    small = {"data": 300e9, "fsdp": 60e9}

    def ask(config, chips):
        asked.append(config)
        axis = "fsdp" if config.mesh.fsdp == -1 else "data"
        peak = small[axis] / (4 if config.train.accumulate > 1 else 1)
        return dataclasses.replace(facts, peak_bytes=int(peak), state_bytes=int(20e9))

    monkeypatch.setattr(plans, "ask", ask)
    found = plan.make(config, topology.parse("v5p:2x2x2"))
    assert found.refusal == (
        "v5p has 95 GB, this needs 300 GB (state 20 GB, activations and all else 280 GB)"
    )
    changes = [remedy.change for remedy in found.remedies]
    assert changes[0] == "--config.mesh.data=1 --config.mesh.fsdp=-1" and len(changes) == 3
    assert all(remedy.peak_bytes < 95e9 for remedy in found.remedies)
    assert len(asked) >= 4  # each remedy was planned
    assert plan.document(found)["remedies"][0]["peak_bytes"] == 60e9


def test_what_the_compiler_itself_refuses_is_a_refusal(config, monkeypatch):
    monkeypatch.setattr(plans, "ask", lambda config, chips: "needs 131G of 95G of memory")
    found = plan.make(config, topology.parse("v5p:2x2x2"))
    assert found.facts is None and found.refusal == "v5p has 95 GB: needs 131G of 95G of memory"
    assert found.remedies == []


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "--topology: is missing"),
        (["--topology=v9:8"], "--topology=v9:8: must begin with"),
        (["--topology=cpu:2", "--rows=0"], "--rows=0: must be"),
        (["--topology=cpu:2", "--json=gs://b/x"], "--json=gs://b/x: must be a local path"),
    ],
)
def test_refusals_before_anything_is_compiled(tmp_path, capsys, flags, says):
    (tmp_path / "toy.py").write_text(TOY)
    assert main([f"--config={tmp_path}/toy.py", "--mode=plan", *flags]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_time_and_its_bound(planned):
    facts = plans.Facts(**planned[1]["facts"])
    chips = topology.parse("v5p:2x2x2")
    heavy = dataclasses.replace(facts, products={"f32": 459e12}, memory_traffic=1.0)
    step = roofline.time(heavy, chips)
    assert step.arithmetic == pytest.approx(1 / 0.9) and step.bound == "arithmetic"
    sent = {"kind": "all-reduce", "axes": ["data"], "times": 2, "wire": 180e9}
    step = roofline.time(dataclasses.replace(heavy, collectives=(sent,)), chips)
    assert step.messages == {"data": pytest.approx(2.0)} and step.bound == "messages on data"
    assert step.worst == pytest.approx(2 + 1 / 0.9) and step.best == pytest.approx(2.0)
    two = topology.parse("v5p:2x2x2+2x2x2")  # the same axis over the slow network
    assert roofline.time(dataclasses.replace(heavy, collectives=(sent,)), two).messages == {
        "data": pytest.approx(360 / 6.25)
    }


def test_goodput_by_hand(planned):
    facts = dataclasses.replace(
        plans.Facts(**planned[1]["facts"]), state_bytes=int(10e9), compile_s=80.0
    )
    chips = topology.parse("h200:8")
    good = roofline.goodput(facts, chips, 1.0, 1000)
    per_second = 8 / (50_000 * 3600)
    assert good["saving"] == pytest.approx(10 / 1000)
    assert good["failures"] == pytest.approx(per_second * (200 + 500))
    assert good["goodput"] == pytest.approx(1 / (1 + 0.01 + per_second * 700))


def test_a_program_that_cannot_be_printed_is_said(planned):
    facts = dataclasses.replace(
        plans.Facts(**planned[1]["facts"]), program="none", products={}, collectives=()
    )
    lines = printed.lines(facts, topology.parse("cpu:4"), 100, "data")
    assert any("not readable" in line for line in lines)
    facts = dataclasses.replace(facts, model=facts.model | dict.fromkeys(("peak_bytes",), 2e6))
    assert [row.name for row in fits.compared(facts, CPU)] == ["peak"]
    assert fits.disagreements(facts, CPU) != []


def test_a_compiler_that_fails_is_one_line(config, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ConfigError, match="the compiler failed: ended with 1"):
        plans.ask(config, topology.parse("cpu:2"))


def test_a_compiler_that_dies_is_told_apart(config, monkeypatch, tmp_path):
    """As libtpu 0.0.52 does of FuseMoE's step, a fault in its code for sparse cores."""
    fatal = tmp_path / "fatal"
    fatal.write_text("#!/bin/sh\nkill -SEGV $$\n")
    fatal.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fatal))
    monkeypatch.setattr(topology.Topology, "compiler", "tpu")
    with pytest.raises(ConfigError, match=r"died of SIGSEGV in this program.* 0\.0\.48 compiles"):
        plans.ask(config, topology.parse("v5p:2x2x2"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["m3h", "fusemoe"])
def test_a_slice_that_is_not_here(name, tmp_path):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the TPU compiler: pip install 'm4-moe[tpu]'")
    target = tmp_path / "plan.json"
    flags = [f"--config=configs/{name}_mimic.py:tiny", "--topology=v5p:2x2x2", "--rows=8"]
    assert main([*flags, "--mode=plan", f"--json={target}"]) in (0, 1)
    document = json.loads(target.read_text())
    assert document["compiler"] == "tpu" and document["facts"]["mesh"]["data"] == 8
    assert abs(document["ratios"]["arguments"] - 1) < 0.25  # arrays are padded to tiles
