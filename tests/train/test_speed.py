"""Speeds beside the loop's lines, against a clock that is known; a trace of chosen steps."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from m4.plan import topology
from m4.train import speed, telemetry
from tests import toy


class Kept(telemetry.Writer):
    def __init__(self):
        self.lines = []

    def write_scalars(self, step, scalars):
        self.lines.append((step, dict(scalars)))


def test_speeds_of_a_line(monkeypatch):
    now = iter([30.0, 100.0])
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(now))
    kept, batch = Kept(), toy.batch(0)
    options = {"batch_size": 16, "first": 100, "began": 10.0, "flops": 2e9, "rate": 80e9}
    meter = speed.Meter(kept, **options)
    assert meter.count(batch) is batch
    tokens = sum(int(stream.mask.sum()) for stream in batch.inputs.values())
    meter.write_scalars(110, {"train/loss": 1.0, "time/examples_per_s": 16.0})  # 10 s of 20
    meter.write_scalars(110, {"val/death/auroc": 0.5})
    meter.write_scalars(130, {"train/loss": 1.0, "time/examples_per_s": 32.0})  # 10 s more of 90
    (_, first), (_, other), (_, last) = kept.lines
    assert first["time/tokens_per_s"] == 16 * tokens / len(batch.uid) > 16
    assert first["time/flops_per_s"] == 2e9 and first["time/mfu"] == pytest.approx(2 / 80)
    assert first["time/goodput"] == pytest.approx(0.5)
    assert other == {"val/death/auroc": 0.5}
    assert last["time/goodput"] == pytest.approx(20 / 90)
    assert last["time/mfu"] == pytest.approx(4 / 80)


def test_chosen_steps_are_traced(tmp_path):
    step = jax.jit(lambda x: x + 1)
    for number in speed.traced(iter(range(speed.SKIP + 3)), tmp_path / "profile", 2):
        step(jnp.float32(number)).block_until_ready()
    assert len([*(tmp_path / "profile").rglob("*.xplane.pb")]) == 1
    assert [*speed.traced(iter(range(9)), tmp_path / "none", 0)] == [*range(9)]
    assert not (tmp_path / "none").exists()


def test_a_run_that_ends_in_a_trace_still_writes_it(tmp_path):
    batches = speed.traced(iter(range(99)), tmp_path, 50)
    for _ in range(speed.SKIP + 2):
        next(batches)
    batches.close()
    assert len([*tmp_path.rglob("*.xplane.pb")]) == 1


@pytest.mark.parametrize(
    ("words", "kind"),
    [("TPU v5", "v5p"), ("TPU v5 lite", "v5e"), ("TPU v6 lite", "v6e")]
    + [("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200"), ("a chip", None)],
)
def test_devices_are_found_in_the_table(words, kind):
    class Device:
        platform, device_kind = "other", words

    assert topology.kind_of(Device()) == kind


def test_lines_of_a_run(tmp_path):
    """What the shipped loop writes, at the price of one line of JSON."""
    kept = telemetry.JsonLines(Path(tmp_path / "metrics.jsonl"))
    meter = speed.Meter(kept, batch_size=4, first=0, began=0.0)
    meter.count(toy.batch(0))
    meter.write_scalars(1, {"time/examples_per_s": 4.0})
    meter.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert {"time/tokens_per_s", "time/goodput"} < {*json.loads(line)}
    assert "time/mfu" not in line
