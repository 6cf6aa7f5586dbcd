"""`compare` on runs of `m4.main`: what it says is what their results say, paired."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

from m4.lab import planted
from m4.lab.__main__ import main
from m4.main import main as train

BASE = {
    "data": {"name": "m4.lab.planted", "options": {"rows": 200}},
    "method": {"name": "m4.lab.mixture:Mixture", "moe": {"num_experts": 4, "hidden": 4}},
    "optim": {"lr": 0.05},
    "train": {"steps": 8, "batch_size": 32, "select": "y0/rmse", "eval_every": 8},
    "eval": {"batch_size": 50, "baselines": False, "bootstrap": 5, "subsets": False},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two gates with two seeds each, and the second seed of the second gate on other rows."""
    folder = tmp_path_factory.mktemp("runs")
    patch = pytest.MonkeyPatch()
    patch.setenv("M4_DATA_DIR", str(folder / "data"))
    patch.setenv("M4_CACHE", str(folder / "cache"))

    def run(name, gate, seed, *given):
        (folder / "c.json").write_text(json.dumps(BASE))
        more = [f"--config.method.moe.gate={gate}", f"--config.seed={seed}", *given]
        args = [f"--config_json={folder}/c.json", f"--workdir={folder}/{name}", *more]
        assert train(args) == 0
        return f"{folder}/{name}"

    found = {
        f"{gate}{s}": run(f"{gate}{s}", gate, s) for gate in ("linear", "hash") for s in (0, 1)
    }
    drawn = planted.draw
    patch.setattr(planted, "draw", lambda **options: drawn(**options | {"world": 7}))
    found["other"] = run("other", "hash", 1, f"--config.data.dir={folder}/others")
    patch.setattr(planted, "draw", drawn)
    yield found
    patch.undo()


def value(folder):
    document = json.loads(Path(folder, "results/test.json").read_text())
    (score,) = [s for s in document["scores"] if s["task"] == "y0"]
    return score["metrics"]["rmse"]["value"]


def test_a_difference_is_that_of_the_results(runs, capsys):
    folders = [runs[name] for name in ("linear0", "hash0", "hash1", "linear1")]
    more = ["--margin=5", "--reason=five is more than any answer here"]
    assert main(["compare", *folders, *more]) == 0
    said = capsys.readouterr().out
    a, b = ([value(runs[f"{gate}{s}"]) for s in (0, 1)] for gate in ("linear", "hash"))
    assert f"{runs['linear0']}: {np.mean(a):.4f}, the reference" in said
    low, high = map(float, re.findall(r"\[([-+.\d]+), ([-+.\d]+)\]", said)[0])
    assert f"{np.mean(b):.4f}, {np.mean(b) - np.mean(a):+.4f} [" in said
    assert "within the margin" in said or ": equivalent" in said
    assert "method.moe.gate" in said and "margin 5: five is more" in said
    alone = ttest_rel(b, a).confidence_interval()
    variance = (alone.high - alone.low) ** 2  # of seeds alone, with their one degree of freedom
    assert high - low > 0 and low < np.mean(b) - np.mean(a) < high and variance > 0


def test_a_run_is_no_seed_of_itself(runs, capsys):
    assert main(["compare", runs["linear0"], runs["linear0"]]) == 2
    assert "the same configuration and seed" in capsys.readouterr().err


def test_every_seed_must_be_about_the_same_patients(runs, capsys):
    folders = [runs[name] for name in ("linear0", "linear1", "hash0", "other")]
    assert main(["compare", *folders]) == 3  # known bad: only the first seeds were looked at
    said = capsys.readouterr().err
    assert f"{runs['other']}: tests other patients or labels than {runs['linear1']}" in said


@pytest.mark.parametrize("margin", ["inf", "nan", "-1", "0"])
def test_a_margin_is_a_number_above_0(runs, capsys, margin):
    args = [f"--margin={margin}", "--reason=it is small enough"]
    assert main(["compare", runs["linear0"], runs["hash0"], *args]) == 2
    assert "--margin: must be a number above 0" in capsys.readouterr().err


def test_what_cannot_be_compared_is_said(runs, capsys):
    assert main(["compare", runs["linear0"], runs["hash1"]]) == 2
    assert "2 different configurations with 0 seeds in common" in capsys.readouterr().err
    folders = [runs[f"{gate}{s}"] for gate in ("linear", "hash") for s in (0, 1)]
    assert main(["compare", *folders, "--metric=y9/rmse"]) == 2
    assert "--metric=y9/rmse: must be of y0" in capsys.readouterr().err
