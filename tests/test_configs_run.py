"""Every shipped configuration trains, stops, goes on where it was and is evaluated.

At `:tiny`, on generated data or on invented files in the layout of the data set; what needs files
that are not there ends in exit code 3 and says which.
"""

import json
from pathlib import Path

import pytest

from m4 import config as configs
from m4.config import code, program
from m4.data import data_sets, fake
from m4.main import main
from m4.modes import report
from m4.run import preflight
from m4.train import preemption
from tests import raw_files

ROOT = Path(__file__).parents[1]
CONFIGS = [
    p
    for p in sorted(ROOT.glob("configs/*.py"))
    if p.stem[:4] != "lab_" and p.stem != "own" and "def get_config" in p.read_text()
]
TINY = [f"{p}:{v}" for p in CONFIGS for v in program.variants(str(p)) if v.endswith("tiny")]


def loaded(target):
    return configs.load(configs.parse([f"--config={target}"]))


def inventor(config):
    """Whose invented files a configuration reads, if any's."""
    given = {"name": config.data.name} | config.data.options.to_dict()
    for name, (data_set, options) in fake.invented().items():
        if {"name": data_set, **options}.items() <= given.items():
            return name
    return None


def files_missing(config, root):
    return data_sets.find(config.data.name).missing_files(root, **config.data.options.to_dict())


def quick():
    """The target with the fewest modalities of every method; the others run with `-m slow`.

    They take some minutes together.
    """
    sizes = {}
    for target in TINY:
        config = loaded(target)
        if config.data.name in raw_files.WRITERS or not files_missing(config, Path("nowhere")):
            size = (len(preflight.schema(config).modalities), target)
            sizes[config.method.name] = min(size, sizes.get(config.method.name, size))
    return {name: target for name, (_, target) in sizes.items()}


QUICK = quick()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("configs")
    raw_files.write_all(root / "raw")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("M4_RAW_DIR", str(root / "raw"))
        patch.setenv("M4_DATA_DIR", str(root / "data"))
        yield root


def logged(workdir):
    return [
        json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()
    ]


def marked(target):
    quick = target in QUICK.values()
    return pytest.param(target, id=Path(target).name, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize("target", [marked(target) for target in TINY])
def test_trains_stops_and_goes_on(target, folders, monkeypatch, capsys):
    work = folders / Path(target).name.replace(":", "-")
    config = loaded(target)
    if writer := inventor(config):
        try:
            fake.write(writer, folders / "raw")
        except ImportError as error:
            pytest.skip(f"{error.name} is not installed")
    if files_missing(config, folders / "raw"):
        pytest.skip("nothing invents its files")
    command = [f"--config={target}", f"--workdir={work}"]
    if "gamma" in target:  # its few invented patients are no one's secret
        command.append("--config.eval.min_patients=1")
    monkeypatch.setattr(report, "build", lambda folder: None)  # a quarter of the time
    with monkeypatch.context() as patch:
        patch.setattr(preemption.Signals, "stop", lambda signals, step: step == 3)
        code = main(command)
    printed = capsys.readouterr()
    assert code == 75, printed.err
    assert logged(work) == [2, 3]
    assert main(command) == 0, capsys.readouterr().err
    assert "resuming from step 3" in capsys.readouterr().out
    # Validated at step 3, which the stop had left out, and at the end; no step was taken twice.
    assert logged(work) == [2, 3, 3, 4, 6, 6]
    results = json.loads((work / "results/test.json").read_text())
    assert any(score["subset"] == "full" for score in results["scores"])
    for name, task in results["tasks"].items():
        if task["kind"] == "segmentation":
            found = [s for s in results["scores"] if (s["task"], s["subset"]) == (name, "full")]
            assert 0 <= found[0]["metrics"]["dice"]["value"] <= 1


def test_every_method_is_in_the_default_suite():
    assert {*QUICK} == {*configured()}


def configured():
    """Methods with configurations of their own; baselines take those of others."""
    return [n for n in code.method_names() if (ROOT / "m4/methods" / n).is_dir()]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_without_its_files_it_says_what_to_do(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("M4_RAW_DIR", str(tmp_path / "raw"))
    monkeypatch.setenv("M4_DATA_DIR", str(tmp_path / "data"))
    if not files_missing(loaded(path), tmp_path / "raw"):
        pytest.skip("its data are generated")
    assert main([f"--config={path}", f"--workdir={tmp_path / 'work'}"]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 12
    assert all(line.startswith("m4: ") for line in lines)
    assert not (tmp_path / "work").exists()
