"""`compare` on runs of `m4.main`: what it says is what their results say, paired."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t, ttest_rel

from m4.__main__ import main
from m4.lab import compare, planted, side_by_side
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


def test_one_seed_each_is_judged_over_patients(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unfinished").mkdir()
    args = ["compare", runs["linear0"], runs["hash0"], "unfinished", "--page=p/side.html"]
    assert main(args) == 0
    said = capsys.readouterr().out
    assert "one seed, 50 patients; 95 % intervals over patients alone" in said
    assert "unfinished: left out, holds no finished run" in said
    found = compare.run([Path(runs["linear0"]), Path(runs["hash0"])])
    half = float(found.told.high[0] - found.told.low[0]) / 2
    smallest = float(found.told.smallest[0])
    ratio = t.ppf(0.975, 49) + t.ppf(0.8, 49)  # what is found four times in five, over what is sure
    assert half > 0 and smallest / half == pytest.approx(ratio / t.ppf(0.975, 49), rel=0.01)
    page = Path("p/side.html").read_text()
    assert "Runs side by side: y0/rmse" in page and "y0/mae" in page and "<svg" in page
    assert f"{found.values[0][0]:.4f}" in page and "method.moe.gate" in page
    evil = [dataclasses.replace(arm, runs={0: Path(f"{i}<img src=x>")}) for i, arm in
            enumerate(found.arms)]  # fmt: skip
    assert "<img src=x" not in side_by_side.html(dataclasses.replace(found, arms=evil))


def test_folders_that_are_printed_alike_are_two(runs, tmp_path):
    pair = [Path(runs["linear0"]), Path(runs["hash0"])]
    alike = [tmp_path / "d\x01", tmp_path / "d\x02"]
    for whole, place in zip(pair, alike, strict=True):
        shutil.copytree(whole, place)
    found, same = compare.run(pair), compare.run(alike)
    assert found.told.low[0] == same.told.low[0] < same.told.high[0] == found.told.high[0]


def test_replaced_data_are_no_difference_of_methods(runs, tmp_path, capsys):
    for name, digest in (("linear0", "1"), ("hash0", "2")):
        shutil.copytree(runs[name], tmp_path / name)
        document = json.loads((tmp_path / name / "data.json").read_text())
        document["sources"] = {"a.csv": {"sha256": digest}, "b.csv": {"sha256": "0"}}
        (tmp_path / name / "data.json").write_text(json.dumps(document))
    assert main(["compare", f"{tmp_path}/linear0", f"{tmp_path}/hash0"]) == 3
    said = capsys.readouterr().err
    assert f"{tmp_path}/hash0: was trained on other data than {tmp_path}/linear0: a.csv" in said


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


def test_damaged_runs_are_said_and_not_shown_and_names_steer_nothing(runs, tmp_path, capsys):
    folders = [shutil.copytree(runs["linear0"], tmp_path / "a")]
    folders.append(shutil.copytree(runs["hash0"], tmp_path / "b\x1b[31m"))
    path = folders[1] / "results/test.json"
    path.write_text(path.read_text().replace(f"{value(folders[1])}", "0.123456"))
    log = folders[1] / "metrics.jsonl"
    log.write_text(log.read_text().replace('"step": 8', '"step": 9'))
    capsys.readouterr()
    assert main(["compare", *map(str, folders)]) == 0
    told, page = capsys.readouterr().out, (tmp_path / "compare.html").read_text()
    for text in (told, page):
        assert "results/test.json differs from its seal" in text and "metrics.jsonl" in text
        assert "\x1b" not in text and "0.1235" not in text
    path.write_text("[" * 200_000)
    assert main(["compare", *map(str, folders)]) == 0


def test_scores_of_other_parameters_are_not_a_runs(runs, tmp_path, capsys):
    """Its results and their seals are those of another seed: nothing differs from its seal."""
    folder, other = shutil.copytree(runs["linear0"], tmp_path / "a"), Path(runs["linear1"])
    shutil.copytree(other / "results", folder / "results", dirs_exist_ok=True)
    shutil.copy(other / "seals.json", folder)
    assert main(["compare", str(folder), runs["hash0"]]) == 0
    assert "results/test.json is of other parameters" in capsys.readouterr().out
    page = (tmp_path / "compare.html").read_text()
    assert f"{value(runs['hash0']):.4f}" in page and f"{value(other):.4f}" not in page


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["/x/runs/a", "/x/runs/b/c"], ["a", "b/c"]),
        (["a", "b"], ["a", "b"]),
        (["/x/a", "b"], ["/x/a", "b"]),
        (["/x/a", "/x/a/b"], [".", "b"]),
    ],
)
def test_a_legend_names_what_differs(names, told):
    """Whole paths of a deep folder left the curves no room."""
    assert side_by_side.told_apart(names) == told
