"""Studies run as a user runs them: once, in parts, and by several processes that may be killed."""

import gc
import json
import re
import shutil
import subprocess
import sys

import jax
import ml_collections
import numpy as np
import pytest

from m4 import seal
from m4.data.loader import TrainLoader
from m4.lab import judged, runner
from m4.lab.__main__ import main
from m4.lab.documents import rows
from m4.main import main as train

FILE = """
GATE = "method.moe.gate"
BASE = dict(
    data=dict(name="m4.lab.planted", options=dict(rows=400)),
    method=dict(name="m4.lab.mixture:Mixture", moe=dict(num_experts=4, hidden=4)),
    optim=dict(lr=0.01),
    train=dict(steps=4, batch_size=32, log_every=2, eval_every=2, select="y0/rmse", watchdog=0),
    eval=dict(batch_size=100, baselines=False, bootstrap=5),
)
AGAIN = {GATE: "m4.moe.gates:linear"}
def get_config():
    found = dict(base=BASE, axes={GATE: ("linear", AGAIN)}, seeds=(0, 1))
    return found | dict(margin=dict(value=1e-9, reason="none at all may be seen"))
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with a study of one gate under two names, run once."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "own.py").write_text(FILE)
    patch = pytest.MonkeyPatch()
    patch.setenv("M4_DATA_DIR", str(folder / "data"))
    patch.chdir(folder)
    calls = []
    compiled = runner.fitting.compile_for
    patch.setattr(runner.fitting, "compile_for", lambda data: calls.append(data) or compiled(data))
    assert main(["--config=own.py", "--out=whole"]) == 0
    yield folder, calls
    patch.undo()


def test_a_gate_under_two_names_is_equivalent_to_the_bit(lab):
    folder, calls = lab
    found = rows(folder / "whole")
    assert len(found) == 4 and len(calls) == 2  # two seeds of an arm cost one compile
    said = judged.judge(found, 1e-9)["m4.moe.gates:linear"]
    assert (said["verdict"], said["value"], said["within"]) == ("equivalent", 0.0, True)
    digests = {(row["seed"], row["digest"]) for row in found}
    assert len(digests) == 2


def test_a_row_is_the_run_of_m4_main(lab):
    folder, _ = lab
    row = next(r for r in rows(folder / "whole") if r["seed"] == 1)
    (folder / "cell.json").write_text(json.dumps(row["config"]))
    assert train([f"--config_json={folder}/cell.json", f"--workdir={folder}/main"]) == 0
    document = json.loads((folder / "main/results/test.json").read_text())
    for score in document["scores"]:
        label = score["subset"]
        for name, estimate in score["metrics"].items():
            assert row["scores"][label][f"y0/{name}"] == estimate["value"], (label, name)
    lines = (folder / "main/metrics.jsonl").read_text().splitlines()
    (last,) = [
        line for line in map(json.loads, lines) if line["step"] == 4 and "val/y0/rmse" in line
    ]
    assert row["validation"][-1]["y0/rmse"] == last["val/y0/rmse"]


def test_a_row_holds_what_a_reader_needs(lab):
    folder, _ = lab
    row = rows(folder / "whole")[0]
    assert row["parameters"] == {"total": 357, "active": 211, "router": 64}
    assert row["flops_per_step"] > 0 and row["peak_bytes"] > 0 and row["step_s"] > 0
    assert row["saturation"]["moe"][-1] == 1.0 and len(row["balance"]) == 2
    assert row["saturation"]["steps"] == [0, 2, 4] and row["together"] == "loop"
    assert set(row["necessity"]) == {"intact", "without_first", "shuffled", "ablated"}
    assert row["necessity"]["intact"] == pytest.approx(row["value"], rel=1e-5)
    assert row["necessity"]["shuffled"] != row["necessity"]["intact"]
    assert set(row["experts"]["moe"]["information"]) == {"modality", "pattern", "cluster"}
    kept = np.load(folder / "whole/predictions" / f"{row['arm']}-s{row['seed']}.npz")
    assert kept["p/y0"].shape == (100, 1) and kept["known/y0"].all()


def test_nothing_runs_twice_and_parts_are_the_whole(lab):
    folder, calls = lab
    before, programs = len(calls), living()
    assert main(["--config=own.py", "--out=whole"]) == 0
    assert len(calls) == before
    path = next((folder / "whole/rows").iterdir())
    text = path.read_text()
    path.unlink()  # as if it had been killed before this one
    for part in ("0/2", "1/2"):
        assert main(["--config=own.py", "--out=whole", f"--shard={part}"]) == 0
    again, timed = json.loads(path.read_text()), ("compile_s", "step_s", "cpu_s", "sha256")
    first = json.loads(text)
    assert {k: v for k, v in again.items() if k not in timed} == {
        k: v for k, v in first.items() if k not in timed
    }
    assert len(calls) == before + 1
    # Linux ends a process of 65,530 maps, and a program takes three: an arm must leave none.
    assert living() <= programs


def living() -> int:
    """Compiled programs that this process holds."""
    gc.collect()
    return len(jax.devices()[0].client.live_executables())


def test_an_arm_of_another_process_is_left_to_it_until_that_is_dead(lab, capsys):
    folder, _ = lab
    path = next((folder / "whole/rows").iterdir())
    text, key = path.read_text(), path.stem.partition("-")[0]
    path.unlink()
    hold = (
        "from pathlib import Path; from m4.train.workdir import locked; import time\n"
        f"with locked(Path({str(folder / 'whole/claims' / key)!r})): print(1, flush=True), "
        "time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True)
    assert holder.stdout and holder.stdout.readline() == "1\n"
    assert main(["--config=own.py", "--out=whole"]) == 9
    assert f"in use by process {holder.pid}" in capsys.readouterr().out
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert main(["--config=own.py", "--out=whole"]) == 0
    assert json.loads(path.read_text())["digest"] == json.loads(text)["digest"]


def test_layers_of_different_sizes_are_ablated_nowhere(lab):
    """M4oE has three layers, of 4 and 16 experts, whose gates have one name."""
    folder, _ = lab
    own = (
        FILE.replace('"m4.lab.mixture:Mixture"', '"m4oe"')
        .replace("num_experts=4, ", "")
        .replace(", AGAIN)", ",)")
    )
    (folder / "sizes.py").write_text(own)
    assert main(["--config=sizes.py", "--out=sizes"]) == 0
    row = json.loads(next((folder / "sizes/rows").iterdir()).read_text())
    assert row["necessity"]["ablated"] == [] and row["necessity"]["shuffled"] is not None


def test_a_margin_is_not_moved(lab, capsys):
    folder, _ = lab
    (folder / "moved.py").write_text(FILE.replace("1e-9", "0.5"))
    assert main(["--config=moved.py", "--out=whole"]) == 2
    assert "another plan" in capsys.readouterr().err
    # Nor is the metric, which `train.select` says where the study does not; other arms are theirs.
    other = FILE.replace("y0/rmse", "y0/mae").replace("num_experts=4", "num_experts=8")
    (folder / "moved.py").write_text(other)
    assert main(["--config=moved.py", "--out=whole"]) == 2
    assert "is judged by y0/rmse, not y0/mae" in capsys.readouterr().err


def test_a_plan_that_nothing_followed_may_be_changed(lab, capsys):
    folder, _ = lab
    (folder / "moved.py").write_text(FILE.replace("1e-9", "0.5"))
    for name in ("own.py", "moved.py"):
        assert main([f"--config={name}", "--out=planned", "--report"]) == 0
    assert "margin   0.5" in capsys.readouterr().out


def test_rows_of_two_configurations_are_not_judged_together(lab, capsys):
    folder, _ = lab
    changed = FILE.replace("lr=0.01", "lr=0.5")
    assert changed != FILE
    (folder / "other.py").write_text(changed)
    assert main(["--config=other.py", "--out=whole"]) == 2
    assert "with another configuration" in capsys.readouterr().err
    assert main(["--config=own.py", "--out=gs://b/x"]) == 2


def test_compare_runs_no_code_that_a_work_directory_names(tmp_path, capsys):
    for run in ("a", "b", "c", "d"):
        (tmp_path / run / "results").mkdir(parents=True)
        (tmp_path / run / "results/test.json").write_text("{}")
        (tmp_path / run / "config.json").write_text('{"data": {"name": "evil_mod.x"}}')
    assert main(["compare", *(str(tmp_path / run) for run in "abcd")]) == 2
    assert "code outside m4" in capsys.readouterr().err


def test_a_row_that_was_edited_is_refused(lab, capsys):
    folder, _ = lab
    path = next((folder / "whole/rows").iterdir())
    text = path.read_text()
    path.write_text(text.replace('"seed": ', '"seed": 1'))
    assert main(["--out=whole", "--report"]) == 3
    assert path.name in capsys.readouterr().err
    path.write_text(text)


def test_the_configuration_of_a_cell_is_that_of_a_run(lab):
    folder, _ = lab
    config = ml_collections.ConfigDict(rows(folder / "whole")[0]["config"])
    assert config.train.steps == 4 and config.method.moe.gate.endswith("linear")


@pytest.mark.parametrize("how", ["map", pytest.param("vmap", marks=pytest.mark.slow)])
def test_seeds_in_one_program_are_those_one_by_one(lab, how, monkeypatch):
    """And the batches of the first arm are those of the second: they are drawn once."""
    folder, _ = lab
    drawn, draw = [], TrainLoader.iter
    monkeypatch.setattr(TrainLoader, "iter", lambda self, at: drawn.append(at) or draw(self, at))
    text = FILE.replace("seeds=(0, 1))", f"seeds=(0, 1), together={how!r})")
    (folder / f"{how}.py").write_text(text)
    assert main([f"--config={how}.py", f"--out={how}"]) == 0
    found = {(row["label"], row["seed"]): row for row in rows(folder / how)}
    assert len(found) == 4 and len(drawn) == 2
    for row in rows(folder / "whole"):
        own = found[row["label"], row["seed"]]
        assert own["together"] == how and own["step"] == row["step"]
        assert own["value"] == pytest.approx(row["value"], rel=1e-4)
        for mine, theirs in zip(own["balance"], row["balance"], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("effort", ["some", pytest.param("full", marks=pytest.mark.slow)])
def test_seeds_in_one_program_have_the_same_bits(lab, effort):
    """Of the shapes of the shipped study: smaller ones had the same bits by chance."""
    folder, _ = lab
    text = FILE.replace("watchdog=0", f"watchdog=0, compile={effort!r}")
    text = text.replace("num_experts=4, hidden=4", "num_experts=64, hidden=16")
    text = text.replace("rows=400", "rows=2000").replace("batch_size=32", "batch_size=256")
    text = text.replace("steps=4", "steps=8").replace("every=2", "every=4")
    text = text.replace('("linear", AGAIN)', '("linear",)')
    digests = []
    for how in ("loop", "map"):
        changed = text.replace("seeds=(0, 1))", f"seeds=(0, 1), together={how!r})")
        (folder / "bits.py").write_text(changed)
        assert main(["--config=bits.py", f"--out={how}_{effort}"]) == 0
        found = rows(folder / f"{how}_{effort}")
        digests.append({(row["label"], row["seed"]): row["digest"] for row in found})
    assert digests[0] == digests[1] and len(digests[0]) == 2


def test_lists_on_an_axis_and_values_that_are_undefined_are_told(lab, capsys):
    """Of rows that were run, with another family and without a value."""
    folder, _ = lab
    out = folder / "edited"
    shutil.copytree(folder / "whole", out)
    for path in (out / "rows").iterdir():
        row = json.loads(path.read_text())
        row["family"] = {"data.options.x": [1, 2], "method.moe.num_experts": None}
        row["value"] = row["value"] if row["reference"] else None
        path.write_text(json.dumps(seal.sealed({k: v for k, v in row.items() if k != "sha256"})))
    plan = json.loads((out / "study.json").read_text())
    for arm in plan["arms"]:
        arm["family"] = {"data.options.x": [1, 2], "method.moe.num_experts": None}
    del plan["sha256"]
    (out / "study.json").write_text(json.dumps(seal.sealed(plan)))
    assert main([f"--out={out}", "--report"]) == 0
    said = capsys.readouterr().out
    assert "x=(1, 2), num_experts=None: 4 runs" in said
    assert re.search(r"m4.moe.gates:linear +– ± –  no verdict: 0 of 2 seeds", said)
    assert "(1, 2)" in (out / "report.html").read_text()


@pytest.mark.parametrize(("metric", "first"), [("y0/rmse", "low"), ("y0/r2", "high")])
def test_the_best_arm_stands_first(metric, first):
    said = {
        "high": {"mean": 0.9, "metric": metric},
        "none": {"mean": None, "metric": metric},
        "low": {"mean": 0.1, "metric": metric},
    }
    order = [label for label, _ in judged.by_quality(said)]
    assert order[0] == first and order[-1] == "none"
