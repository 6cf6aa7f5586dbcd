"""A study's folder that was damaged, mixed up, or made by somebody who means no good."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from m4 import seal
from m4.lab import judged
from m4.lab import pages as lab_pages
from m4.lab.__main__ import main
from m4.lab.documents import rows
from tests.lab.test_runner import FILE, lab

assert lab  # the fixture: a study of four rows, in 'whole'
EVIL = "a\x1b[31mb\x1b]0;t\x07\r\nc"


@pytest.fixture
def out(lab, tmp_path):  # noqa: F811 (a fixture)
    """A copy of the study."""
    shutil.copytree(lab[0] / "whole", tmp_path / "out")
    return tmp_path / "out"


def report(out, capsys):
    """(exit code, output, errors) of a report alone."""
    capsys.readouterr()
    code = main([f"--out={out}", "--report"])
    said = capsys.readouterr()
    assert "internal error" not in said.err
    return code, said.out, said.err


def resealed(path, **changes):
    """Writes a document with other fields as its author could; without those that are None."""
    found = json.loads(path.read_text()) | changes
    kept = {k: v for k, v in found.items() if v is not None and k != seal.KEY}
    path.write_text(json.dumps(seal.sealed(kept)))


def test_files_beside_the_rows_are_theirs(out, capsys):
    first, second, *_ = sorted((out / "predictions").iterdir())
    kept = first.read_bytes()
    for content in (
        second.read_bytes(),
        kept[: len(kept) // 2],
        b"",
        kept[:100] + b"\xfe" + kept[101:],
    ):
        first.write_bytes(content)
        code, _, err = report(out, capsys)
        assert code == 3 and first.name in err
    first.write_bytes(kept)
    assert report(out, capsys)[0] == 0
    shutil.rmtree(out / "selections")
    code, _, err = report(out, capsys)
    assert code == 3 and "is gone" in err


@pytest.mark.parametrize(
    "changes",
    [
        {"study": "0" * 16},
        {"schema": 2},
        {"metric": "y0/r2"},
        {"family": None},
        {"seed": 7},
        {"data": "0" * 16},
        {"parameters": []},
        {"label": "laplace"},
        {"reference": None},
        {"null": True},
        {"family": {"method.moe.num_experts": 8}},
    ],
    ids=str,
)
def test_a_row_of_something_else_is_not_judged(out, capsys, changes):
    path = sorted((out / "rows").glob("*-s0.json"))[0]
    resealed(path, **changes)
    code, _, err = report(out, capsys)
    assert code == 3 and len(err.splitlines()) == 1


def test_arms_and_seeds_that_nobody_planned_are_not_judged(out, capsys):
    path = sorted((out / "rows").glob("*-s0.json"))[0]
    row = json.loads(path.read_text())
    for changes in ({"arm": "0" * 16}, {"seed": 9}):
        own = {k: v for k, v in (row | changes).items() if k != seal.KEY}
        other = path.with_name(f"{own['arm']}-s{own['seed']}.json")
        other.write_text(json.dumps(seal.sealed(own)))
        code, _, err = report(out, capsys)
        assert code == 3 and "that study.json does not have" in err
        other.unlink()
    assert report(out, capsys)[0] == 0


def test_before_all_seeds_are_there_nothing_is_judged(out, capsys):
    """Else one looks until a difference is sure."""
    arms = {
        arm["label"]: arm["key"] for arm in json.loads((out / "study.json").read_text())["arms"]
    }
    assert "equivalent" in report(out, capsys)[1]
    for label in arms:  # also where it is the reference that lacks one
        path = out / f"rows/{arms[label]}-s1.json"
        kept = path.read_text()
        path.unlink()
        code, said, _ = report(out, capsys)
        assert code == 0 and "no verdict: 1 of 2 seeds" in said and "equivalent" not in said
        path.write_text(kept)


def test_seeds_with_other_validation_patients_agree_on_nothing(out):
    """By position alone, other patients' tokens would be compared."""
    found = rows(out)
    assert judged.agreements(found, out)
    other = [row | {"data": "0" * 64} if row["seed"] == 1 else row for row in found]
    assert judged.agreements(other, out) == {}


def test_seeds_that_came_later_are_said(out, capsys):
    resealed(out / "study.json", first_seeds=[0])
    assert "seeds 1 were added when there were rows of 0" in report(out, capsys)[1]


def test_a_folder_without_a_study_says_so(tmp_path, capsys):
    code, _, err = report(tmp_path, capsys)
    assert code == 3 and "holds no study" in err


def test_a_margin_that_is_none_is_no_bug(out, capsys):
    plan = json.loads((out / "study.json").read_text())["plan"]
    for value in (0, -1, float("nan")):
        resealed(out / "study.json", plan=plan | {"margin": plan["margin"] | {"value": value}})
        code, _, err = report(out, capsys)
        assert code == 3 and len(err.splitlines()) == 1


def test_documents_without_end_or_plan_are_refused(out, capsys):
    path = next((out / "rows").iterdir())
    path.write_text("[" * 200_000)
    assert report(out, capsys)[0] == 3
    path.unlink()
    resealed(out / "study.json", plan=None)
    assert report(out, capsys)[0] == 3
    resealed(out / "study.json", schema=1)
    code, _, err = report(out, capsys)
    assert code == 3 and "another version of the lab" in err


def test_arms_without_a_row_are_named(out, capsys):
    (gone,) = (a for a in json.loads((out / "study.json").read_text())["arms"] if not a["is"])
    for path in (out / "rows").glob(f"{gone['key']}-*"):
        path.unlink()
    code, told, _ = report(out, capsys)
    assert code == 0 and f"not run  {gone['label']}" in told


def test_a_folder_in_the_reports_place_is_said(out, capsys):
    (out / "report.html").unlink()
    (out / "report.html").mkdir()
    code, _, err = report(out, capsys)
    assert code == 3 and "report.html: is a folder" in err


def test_a_plan_of_other_types_is_no_bug_of_a_run(out, lab, capsys):  # noqa: F811
    resealed(out / "study.json", arms=3)
    assert main([f"--config={lab[0] / 'own.py'}", f"--out={out}"]) == 3
    assert "is not as the lab writes it" in capsys.readouterr().err


def test_rows_of_other_code_packages_and_devices_are_said(out, capsys):
    assert "warning" not in report(out, capsys)[1]
    path = next((out / "rows").iterdir())
    own = {"code": "0" * 16, "versions": {"jax": "0.1"}, "device": "abacus", "together": "vmap"}
    resealed(path, **own)
    code, told, _ = report(out, capsys)
    assert code == 0 and told.count("a difference between arms may be theirs") == 4
    assert "made by 2 kinds of devices" in (out / "report.html").read_text()


def test_names_steer_neither_terminal_nor_table_nor_paper(out, capsys):
    arms = json.loads((out / "study.json").read_text())["arms"]
    names = dict(zip([arm["key"] for arm in arms], (EVIL, "=1+1"), strict=True))
    own = [arm | {"label": names[arm["key"]], "family": {"x": "=cmd|x"}} for arm in arms]
    for path in (out / "rows").iterdir():
        resealed(path, label=names[path.stem.partition("-")[0]], family={"x": "=cmd|x"})
    resealed(out / "study.json", metric="y0/rmse\n\\input{/etc/passwd}", arms=own)
    code, told, _ = report(out, capsys)
    assert code == 0
    pages = [(out / n).read_text() for n in ("report.html", "verdicts.tex", "verdicts.csv")]
    for text in (told, *pages):
        assert not {"\x1b", "\x07", "\r"} & {*text}
    assert not any(line.startswith(("\\input", " \\input")) for line in pages[1].splitlines())
    cells = [cell for line in pages[2].splitlines()[1:] for cell in line.split(",")[:2]]
    assert cells and not any(cell.startswith(("=", '"=')) for cell in cells)
    # After a line break LaTeX would read a bracket as its length.
    line = {"family": "a", "arm": "[2cm] x", "reference": False, "within_margin": False}
    line |= dict.fromkeys(("mean", "difference", "low", "verdict")) | {"p": 1e-9}
    (row,) = [r for r in pages_of({"a": [line]}).splitlines() if "2cm" in r]
    assert row.startswith("{}[2cm] x & ") and "$<0.0001$" in row


def pages_of(tables):
    return lab_pages.as_latex(
        {"plan": {"margin": {"value": 1, "reason": "a"}}, "metric": "m"}, tables
    )


def test_a_folder_that_others_may_write_to_is_closed_or_refused(lab, tmp_path, capsys):  # noqa: F811
    folder, _ = lab
    out, elsewhere = tmp_path / "open", tmp_path / "elsewhere"
    shutil.copytree(folder / "whole", out)
    out.chmod(0o777)
    args = [f"--config={folder / 'own.py'}", f"--out={out}"]
    assert main(args) == 0
    assert out.stat().st_mode & 0o022 == 0 and "may not write" in capsys.readouterr().err
    out.chmod(0o777)
    elsewhere.mkdir()
    shutil.rmtree(out / "predictions")
    (out / "predictions").symlink_to(elsewhere)
    assert main(args) == 2
    assert "holds a link" in capsys.readouterr().err and not [*elsewhere.iterdir()]


def test_whoever_reads_may_go_and_a_terminal_may_know_ascii_alone(out):
    command = [sys.executable, "-m", "m4.lab", f"--out={out}", "--report"]
    ascii_alone = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run(command, env=ascii_alone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (out / "report.html").unlink()
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as gone:
        assert subprocess.run(command, stdout=gone, check=False).returncode == 0
    assert (out / "report.html").is_file()


def test_a_study_that_is_told_to_stop_leaves_no_lock(tmp_path):
    (tmp_path / "own.py").write_text(FILE.replace("steps=4", "steps=400_000"))
    command = [sys.executable, "-m", "m4.lab", "--config=own.py", "--out=stopped"]
    with open(tmp_path / "log", "w") as log:
        own = os.environ | {"M4_DATA_DIR": str(tmp_path / "data")}
        process = subprocess.Popen(command, cwd=tmp_path, env=own, stdout=log, stderr=log)
    until = time.monotonic() + 300
    while not [*tmp_path.glob("stopped/claims/*/lock")] and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 75, (tmp_path / "log").read_text()
    assert not [*tmp_path.glob("stopped/claims/*/lock")]
