"""`m4.bench device` at toy sizes on a CPU, and how its goals are judged."""

import json

import pytest

from m4.bench import __main__ as bench
from m4.bench import device


def test_its_budget_and_its_records(tmp_path, capsys):
    out = tmp_path / "out"
    asked = ["device", "--device=cpu", "--budget=14", f"--out={out}"]
    assert bench.main(asked) == 0
    records = [json.loads(line) for line in (out / "device.jsonl").read_text().splitlines()]
    by_name = {record["id"]: record for record in records}
    assert [r["id"] for r in records] == [name for name, *_ in device.stages(device.TOY)]
    assert by_name["facts"]["platform"] == "cpu"
    assert by_name["right"]["dropless float32"] < 1e-5
    assert by_name["steps m4oe remat"]["status"] == "skipped"  # of that the budget had nothing left
    assert "right: dropless float32" in capsys.readouterr().out


@pytest.mark.slow
def test_all_of_its_stages(tmp_path):
    assert bench.main(["device", "--device=cpu", "--budget=900", f"--out={tmp_path}"]) == 0
    records = [json.loads(line) for line in (tmp_path / "device.jsonl").read_text().splitlines()]
    missing = {r["id"]: r["why"] for r in records if r["status"] != "ok"}
    assert set(missing) <= {"layer E=8 grouped", "rivals E=8"}, missing


def test_goals_are_of_the_best_engine_on_a_hopper_card():
    facts = {"id": "facts", "status": "ok", "capability": 90}
    layers = [
        {"id": "layer E=64 grouped", "of_dense": 0.65, "zipf_over_uniform": 1.1, "status": "ok"},
        {"id": "layer E=64 dropless", "of_dense": 0.5, "zipf_over_uniform": 4.0, "status": "ok"},
        {"id": "layer E=256 grouped", "peak_gb": 72.0, "status": "ok"},
    ]
    goals = {name: (value, met) for name, value, met in device.judged([facts, *layers])}
    assert goals["layer, 2,048 rows an expert and more, of dense"] == (0.65, True)
    assert goals["Zipf 1 over uniform, E = 64"] == (1.1, True)
    assert goals["peak at E = 256, GB"] == (72.0, False)
    assert len(goals) == 3  # nothing is said of what was not measured
    assert device.judged([{**facts, "capability": 80}, *layers]) == []
    assert device.over({"grouped_mm_ms": 3.0, "loop_ms": 80.0}, 4.0) == {
        "over_grouped": 0.75,
        "over_loop": 20.0,
    }


def test_a_budget_that_is_none_is_refused(capsys):
    assert bench.main(["device", "--budget=nan"]) == 2
    assert "--budget=nan: must be a positive number" in capsys.readouterr().err
