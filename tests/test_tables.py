"""The commands behind docs/results.md are commands; a sweep of cross-validations is a table."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest

from m4 import config as configs
from m4.data import data_sets
from m4.eval.metrics import HEADLINE
from m4.modes import sweep
from m4.train import children

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs/site/tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_table_asks_for_what_there_is(tables, tmp_path):
    known = {}
    for name in tables.TABLES:
        flags = configs.parse(tables.command(name, tmp_path))
        for path in sweep.asked(flags.config, None):
            if path not in known:
                point = sweep.command(path, 0, tmp_path / "p", flags.overrides)
                config = configs.load(configs.parse(point[3:]))
                module = data_sets.find(config.data.name)
                known[path] = module.spec(**config.data.options.to_dict())
            task = known[path].task(flags.options["task"])
            assert {*flags.options["metrics"].split(",")} <= {*HEADLINE[task.kind]}, name


def test_a_table_is_what_its_runs_found(tables, tmp_path, monkeypatch, capsys):
    # Two methods, folds pooled; a point is a child that writes down its results.
    estimate = {"value": 0.8, "low": 0.7, "high": 0.9}
    ran = []

    def child(args, **_):
        if "--mode=sweep" in args:
            code = original(args)
            return subprocess.CompletedProcess(args, code)
        flags = configs.parse(args[3:])
        assert flags.mode == "crossval" and flags.workdir is not None
        ran.append(flags.workdir.name)
        (flags.workdir / "results").mkdir(parents=True)
        (flags.workdir / "config.json").write_text(configs.to_json(configs.load(flags)))
        (flags.workdir / "run.json").write_text(json.dumps({"git": "abc123"}))
        metrics = dict.fromkeys(tables.JUDGED.split(","), estimate)
        scores = [{"task": "hospital_mortality", "subset": "full", "metrics": metrics}]
        document = {"tasks": ["hospital_mortality"], "scores": scores, "references": {}}
        (flags.workdir / "results/crossval.json").write_text(json.dumps(document))
        return subprocess.CompletedProcess(args, 0)

    def original(args):
        flags = configs.parse(args[3:])
        assert flags.workdir is not None
        sweep.run(None, flags.workdir, flags)
        return 0

    monkeypatch.setattr(children, "run", child)  # of a point
    monkeypatch.setattr(subprocess, "run", child)  # of a sweep
    assert tables.main([f"--out={tmp_path}", "eicu-mortality"]) == 0
    assert len(ran) == 5
    text = (tmp_path / "eicu-mortality.md").read_text()
    assert "| fusemoe_eicu_meds | 0 | 0.800 [0.700, 0.900] |" in text
    assert "5 runs; commit abc123." in text
    assert tables.main([f"--out={tmp_path}", "eicu-mortality"]) == 0 and len(ran) == 5
    assert tables.main(["none"]) == 2 and "no such table" in capsys.readouterr().err
