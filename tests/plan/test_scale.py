"""`--mode=scale` as a user gives it: measured points, planned ones, tables, resuming."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from m4.errors import Preempted
from m4.main import main
from m4.modes import scale
from m4.plan import curves
from m4.plan import facts as plans
from tests.test_config import TOY

NAMES = {field.name: None for field in dataclasses.fields(plans.Facts)}
FORM = {"flops": 1e9, "products": {"float32": 1e9}, "wire_bytes": {}, "argument_bytes": 1e6}


def facts(config) -> plans.Facts:
    """Facts of nothing that was compiled, on the mesh that a configuration asks for."""
    mesh = {axis: config.mesh[axis] for axis in ("data", "fsdp", "expert", "tensor")}
    form = FORM | {"flops": 1e9 / mesh["data"], "peak_bytes": 2e6}
    numbers = {"rows": config.train.batch_size, "flops": form["flops"], "peak_bytes": 2_000_000}
    rest: dict[str, Any] = NAMES | {"mesh": mesh, "products": {"f32": form["flops"]}}
    rest |= {"memory_traffic": 1e6, "collectives": (), "model": form, **numbers}
    return plans.Facts(**rest)


def pretended(config, data, study, count):
    """A machine of two devices, on which two take 0.6 of the time of one."""
    if count > 2:
        return None
    seconds = {1: 1.0, 2: 0.6}[count]
    out = {"device": "a device (cpu)", "kind": "cpu", "step_s": [seconds] * 3, "loss": 0.7}
    out |= {"rows_per_s": 8 / seconds, "tokens_per_s": 80 / seconds, "peak_bytes": 2_000_000}
    return out | {"facts": dataclasses.asdict(facts(config)), "measured": True}


def flags_for(folder, *more):
    flags = ["--config=configs/m3h_mimic.py:tiny", f"--workdir={folder}/w", "--mode=scale"]
    return [*flags, f"--config.data.dir={folder}/data", "--kind=strong", "--steps=2", *more]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Folder of a strong study of one and two devices, pretended, and of four, planned."""
    flags = flags_for(tmp_path_factory.mktemp("scale"), "--devices=1,2,4")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scale, "measured", pretended)
        patch.setattr(plans, "ask", lambda config, chips: facts(config))
        assert main(flags) == 0
    return Path(flags[1].removeprefix("--workdir=")), flags


@pytest.mark.slow
def test_points_are_measured_and_agree(tmp_path):
    assert main(flags_for(tmp_path, "--devices=1,2")) == 0
    one, two = json.loads((tmp_path / "w/scale.json").read_text())
    assert one["measured"] and two["measured"] and two["mesh"]["data"] == 2
    assert abs(one["loss"] - two["loss"]) < 1e-6
    assert one["rows"] == two["rows"] == 8
    assert two["model_flops"] == one["model_flops"] / 2  # what is planned is what was run
    assert one["tokens_per_s"] > one["rows_per_s"] > 0 and one["peak_bytes"] > 0


def test_points_beyond_the_machine_are_planned(study):
    one, two, four = json.loads((study[0] / "scale.json").read_text())
    assert [p["chips"] for p in (one, two, four)] == [1, 2, 4]
    assert one["measured"] and two["measured"] and not four["measured"]
    assert one["efficiency"] == 1 and one["exposed"] == 0
    assert two["efficiency"] == pytest.approx(0.5 / 0.6)
    assert two["exposed"] == pytest.approx(1 - 0.5 / 0.6)
    assert one["mfu"] is None  # nobody knows what this processor could do
    assert four["planned_s"] > 0 and four["mesh"]["data"] == 4


def test_a_table_a_plot_and_a_mark(study):
    text = (study[0] / "scale.md").read_text()
    assert text.count("| strong |") == 3 and "planned for cpu, not measured" in text
    assert (study[0] / "scale.svg").read_text().startswith("<svg")
    assert not (study[0] / "lock").exists()


def test_a_rerun_measures_nothing_again(study, monkeypatch, capsys):
    def never(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(scale, "measured", never)
    before = (study[0] / "scale.json").read_text()
    assert main(study[1]) == 0
    assert (study[0] / "scale.json").read_text() == before
    assert "strong-data-2: " in capsys.readouterr().out


def test_another_configuration_is_measured_again(study, monkeypatch, capsys):
    asked = []

    def again(config, data, study, count):
        asked.append(count)
        raise scale.ConfigError("enough")

    monkeypatch.setattr(scale, "measured", again)
    assert main([*study[1], "--config.optim.lr=0.02"]) == 1
    assert asked == [1, 2, 4]
    assert "strong-data-1: enough" in capsys.readouterr().err


def test_a_study_that_is_stopped_begins_no_other_point(study, monkeypatch):
    asked = []

    def stopped(config, data, study, count):
        asked.append(count)
        raise Preempted("the same command goes on")

    monkeypatch.setattr(scale, "measured", stopped)
    assert main([*study[1], "--config.optim.lr=0.03"]) == 75
    assert asked == [1] and not (study[0] / "lock").exists()


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--devices=0,1", "--devices=0,1: must be different numbers"),
        ("--devices=2,2", "must be different numbers"),
        ("--kind=best", "--kind=best: must be weak, strong"),
        ("--axis=rows", "--axis=rows: must be one of data"),
        ("--steps=1", "--steps=1: must be a number from 2 on"),
        ("--topology=v9", "--topology=v9: must be one of v4"),
    ],
)
def test_refusals(tmp_path, capsys, flag, says):
    (tmp_path / "toy.py").write_text(TOY)
    flags = [f"--config={tmp_path}/toy.py", f"--workdir={tmp_path}/w", "--mode=scale", flag]
    assert main(flags) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "w").exists()


def test_weak_scaling_keeps_the_rows_of_a_device(study):
    point = json.loads((study[0] / "points/strong-data-2.json").read_text())
    slow = point | {"step_s": [0.5], "rows": 32}
    fast = point | {"step_s": [0.4], "facts": point["facts"] | {"mesh": {"data": 1}}}
    rows = [curves.Row("weak", 1, "data", fast), curves.Row("weak", 2, "data", slow)]
    found = curves.figures(rows, rows[1])
    assert found["efficiency"] == pytest.approx(0.8) and found["exposed"] == pytest.approx(0.2)
