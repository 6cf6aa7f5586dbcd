"""A trained run, through the commands: its audit and its stress test."""

import json

import pytest

from m4 import seal
from m4.audit import __main__ as audit
from m4.main import main
from m4.modes import stress
from m4.run import programs
from m4.specs import DataSpec
from tests.audit.test_audit import configuration, splits_of


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    args = [configuration(folder), f"--workdir={folder / 'w'}"]
    assert main(args) == 0
    return folder / "w"


def test_a_sound_run_raises_no_alarm(trained, capsys):
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.is_file()}
    file = trained.parent / "audit.json"
    code = audit.main([f"--workdir={trained}", f"--json={file}", "--trust_code"])
    printed = capsys.readouterr()
    assert code == 0, printed.out + printed.err
    findings = json.loads(file.read_text())["findings"]
    assert {f["of"] for f in findings} >= {"training", "trained, real rows", "data", "the method"}
    after = {p: p.stat().st_mtime_ns for p in trained.rglob("*") if p.is_file()}
    assert {p: t for p, t in after.items() if p.name != "lock"} == {
        p: t for p, t in before.items() if p.name != "lock"
    }


def test_every_kind_with_one_program(trained, monkeypatch, capsys):
    compiled = []
    compile_predict = programs.compile_predict

    def counted(*args):
        compiled.append(args)
        return compile_predict(*args)

    monkeypatch.setattr(programs, "compile_predict", counted)
    assert main(["--mode=stress", f"--workdir={trained}", "--rates=0.5,1"]) == 0
    assert len(compiled) == 1
    found = json.loads((trained / "stress.json").read_text())
    kinds = {row["kind"] for row in found["conditions"]}
    assert kinds | {name.split()[0] for name in found["left_out"]} == {*stress.KINDS}
    assert found["left_out"]["mcar 1"] == "no row has anything left"
    assert seal.problem(trained, "stress.json") is None
    lost = {(r["kind"], r["rate"]): r["lost"] for r in found["conditions"]}
    assert abs(lost["mcar", 0.5] - 0.5) < 0.05 and lost["drift", 1.0] == lost["noise", 0.5] == 0
    assert "Under other conditions" in (trained / "report.html").read_text()
    assert "left out: mcar 1" in capsys.readouterr().out


def test_kinds_that_a_schema_lacks_are_left_out_and_options_are_whole(tmp_path):
    split = splits_of(tmp_path)["test"]
    assert stress.options(split, "mar", 0.3)["driver"] == "static"
    groups = stress.options(split, "blocks", 0.3)["groups"]
    assert sorted(n for names in groups.values() for n in names) == ["notes", "static", "vitals"]
    table = DataSpec(split.spec.modalities[1:2], split.spec.tasks)
    assert stress.impossible(table, "mar") and stress.impossible(table, "gaps")
    assert stress.impossible(table, "mnar") is None


@pytest.mark.parametrize(
    "option, words",
    [
        ("--kinds=mcra", "--kinds=mcra: must be of"),
        ("--rates=0", "--rates=0: must be numbers"),
        ("--rates=a", "--rates=a: must be numbers"),
        ("--rates=nan", "--rates=nan: must be numbers"),
        ("--seeds=1", "--seeds: goes with --mode=sweep"),
    ],
)
def test_wrong_options_are_one_line(option, words, tmp_path, capsys):
    asked = ["--mode=stress", configuration(tmp_path), f"--workdir={tmp_path}", option]
    assert main(asked) == 2
    assert words in capsys.readouterr().err
