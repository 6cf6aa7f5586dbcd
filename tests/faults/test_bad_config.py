"""Every bad command line and configuration of the catalogue, before JAX looks for devices."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import bad_config, catalogue

ROOT = Path(__file__).parents[2]
CODE = """
import json, sys, time
from jax._src import xla_bridge
from tests.faults import bad_config, catalogue
slowest, lost, tried = 0.0, {}, 0
for case in bad_config.cases():
    start, tried = time.process_time(), tried + 1
    if wrong := catalogue.judge(case):
        lost[case.name] = wrong
    slowest = max(slowest, time.process_time() - start)
print(json.dumps([tried, lost, slowest, bool(xla_bridge._backends)]))
"""


def test_all_are_refused_at_once_and_without_devices():
    command = [sys.executable, "-W", "error", "-c", CODE]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    tried, lost, slowest, devices = json.loads(done.stdout)
    assert lost == {}
    assert tried >= 400 and not devices
    assert slowest < 1.5  # seconds of processor time; one file runs into its limit of 0.3 s


@pytest.mark.parametrize(
    ("attempt", "says"),
    [
        (catalogue.Attempt(0, "", "m4: config error: lr", 0.1), "exit 0"),
        (catalogue.Attempt(2, "", "m4: config error: no", 0.1), "does not say 'lr'"),
        (catalogue.Attempt(2, "", "m4: lr\n" * 6, 0.1), "6 lines"),
        (catalogue.Attempt(2, "", "", 0.1), "0 lines"),
        (catalogue.Attempt(2, "", "lr", 0.1), "not of ours"),
        (catalogue.Attempt(2, "", "m4: lr", 11.0), "took 11.0 s"),
        (catalogue.Attempt(2, catalogue.TEXT, "m4: lr", 0.1), "shows content"),
        (catalogue.Attempt(2, "", f"m4: lr {catalogue.NUMBER}", 0.1), "shows content"),
        (catalogue.Attempt(None, "", "m4: lr\nTraceback: X", 0.1), "a traceback"),
    ],
)
def test_the_judge_sees(attempt, says):
    case = catalogue.Case("x", lambda folder: [], 2, ("lr",))
    assert any(says in fault for fault in catalogue.faults(case, attempt))


def test_the_judge_is_content_with_a_good_end_and_a_valid_configuration_is_not_refused(tmp_path):
    case = catalogue.Case("x", lambda folder: [], 2, ("lr",))
    assert catalogue.faults(case, catalogue.Attempt(2, "", "m4: config error: lr", 0.1)) == []
    from m4 import config

    args = bad_config.given("--config.method.moe.top_k=4")(tmp_path)
    assert config.load(config.parse(args)).method.moe.top_k == 4
    (tmp_path / "x.json").write_text(json.dumps(bad_config.PLAIN))
    plain = config.load(config.parse([f"--config_json={tmp_path / 'x.json'}"]))
    assert plain.to_dict() == config.load(config.parse(args[:1])).to_dict()
