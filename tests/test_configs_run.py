"""Every shipped configuration trains, stops, goes on where it was and is evaluated.

At `:tiny`, on generated data or on invented files in the layout of the data set; what needs files
that are not there ends in exit code 3 and says which.
"""

import json
import re
from pathlib import Path

import pytest

from m4.config import load_file
from m4.data import fake
from m4.main import main
from m4.modes import report
from m4.train import preemption
from tests import raw_files

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(ROOT.glob("configs/*.py"))
TINY = [f"{p}:{v}" for p in CONFIGS for v in load_file.variants(str(p)) if v.endswith("tiny")]
# One per method; the others take some minutes together and run with `-m slow`.
QUICK = {
    "support2.py:fusemoe_tiny",
    "flexmoe_adni.py:tiny",
    "flexcare_mimic.py:tiny",
    "m3h_support2.py:tiny",
    "support2.py:m4oe_tiny",
}
NEED_NO_FILES = {"m4oe_views.py"}  # even without `:tiny`
INVENTED = {  # configuration -> who writes its files, and what must be installed for it
    "m4oe_embed.py": ("embed", "pydicom"),
    "m4oe_rsna.py": ("rsna", "pydicom"),
    "m4oe_vindr.py": ("vindr", "pydicom"),
    "m4oe_gamma.py": ("gamma", "PIL"),
    "fusemoe_pam.py": ("pam", "numpy"),
    "fusemoe_mosi.py": ("mosi", "numpy"),
}


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
    name = Path(target).name
    return pytest.param(target, id=name, marks=() if name in QUICK else pytest.mark.slow)


@pytest.mark.parametrize("target", [marked(target) for target in TINY])
def test_trains_stops_and_goes_on(target, folders, monkeypatch, capsys):
    work = folders / Path(target).name.replace(":", "-")
    writer, package = INVENTED.get(Path(target).name.partition(":")[0], (None, None))
    if writer:
        pytest.importorskip(package)
        fake.write(writer, folders / "raw")
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
    methods = {path.stem for path in (ROOT / "m4/methods").glob("[!_]*.py")}
    names = {re.split("[_:]", name.removeprefix("support2.py:"))[0] for name in QUICK}
    assert names == methods
    assert {Path(target).name for target in TINY} >= QUICK


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_without_its_files_it_says_what_to_do(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("M4_RAW_DIR", str(tmp_path / "raw"))
    monkeypatch.setenv("M4_DATA_DIR", str(tmp_path / "data"))
    if path.name in NEED_NO_FILES:
        pytest.skip("its data are generated")
    assert main([f"--config={path}", f"--workdir={tmp_path / 'work'}"]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 12
    assert all(line.startswith("m4: ") for line in lines)
    assert not (tmp_path / "work").exists()
