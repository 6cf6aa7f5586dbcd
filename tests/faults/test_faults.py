"""The harness counts honestly: crashes and miscounts are losses, the page keeps other rows."""

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import __main__ as command
from tests.faults import data_flips, flips, harness
from tests.faults.harness import BEGIN, END, Bench, Outcome, Scenario

PAGE = f"text\n{BEGIN}\n{harness.HEAD}\n|---|\n| old | 1 | 1 | 0 | long | |\n{END}\nmore\n"


def run(monkeypatch, tmp_path, *outcomes):
    """Outcomes of scenarios that return (or raise) these."""

    def scenario(bench):
        found = next(left)
        if isinstance(found, Exception):
            raise found
        return found

    left = iter(outcomes)
    monkeypatch.setattr(flips, "bits", scenario)
    names = [Scenario(f"s{i}", "flips:bits") for i in range(len(outcomes))]
    bench = Bench(tmp_path, tmp_path, short=True)
    found = harness.run(names, lambda: contextlib.nullcontext(bench))
    return [*found.values()]


def test_crashes_and_miscounts_are_losses(monkeypatch, tmp_path, capsys):
    good = Outcome(3, 2, 1, "a note")
    found = run(monkeypatch, tmp_path, good, RuntimeError("x"), Outcome(0, 0, 0), Outcome(3, 3, 1))
    assert found[0] == good
    assert [o[:3] for o in found[1:]] == [(1, 0, 1)] * 3
    assert "RuntimeError" in found[1].notes and "miscounts" in found[2].notes
    assert "s0: 3 tried, 2 survived, 1 lost; a note" in capsys.readouterr().out


def test_what_cannot_be_tried_is_said_and_no_row(monkeypatch, tmp_path, capsys):
    cannot = Outcome(0, 0, 0, "needs root")
    assert run(monkeypatch, tmp_path, cannot) == [cannot]
    assert "s0: not tried: needs root" in capsys.readouterr().out
    assert harness.total({"s0": cannot})[:3] == (0, 0, 0)


def test_the_page_keeps_other_rows_and_replaces_its_own():
    page = harness.update(PAGE, {"new": Outcome(2000, 1999, 1, "n")}, "short")
    assert "| old | 1 | 1 | 0 | long | |\n| new | 2,000 | 1,999 | 1 | short | n |\n" in page
    page = harness.update(page, {"old": Outcome(5, 5, 0)}, "long")
    assert "| old | 5 | 5 | 0 | long |  |\n| new |" in page
    assert page.startswith("text\n") and page.endswith(f"{END}\nmore\n")
    with pytest.raises(ValueError, match="lacks"):
        harness.update("nothing", {}, "long")


def test_side_by_side_on_the_command_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    command_line = [sys.executable, "-m", "tests.faults", "--short", "--jobs=2"]
    command_line += ["--only=truncated,fuzzed", f"--write={page}"]
    done = subprocess.run(command_line, capture_output=True, text=True, check=False)
    last = done.stdout.splitlines()[-1]
    assert (done.returncode, last) == (0, "faults tried / survived / lost: 1520 / 1520 / 0")
    rows = [line for line in page.read_text().splitlines() if "| short |" in line]
    assert {row.split("|")[1].split()[0] for row in rows} == {"truncated", "fuzzed"}


def test_every_scenario_exists_and_names_differ():
    folder = Path(command.__file__).parent
    for scenario in command.SCENARIOS:
        module, _, function = scenario.target.partition(":")
        source = (folder / f"{module}.py").read_text()
        assert re.search(rf"\ndef {function}\(bench: Bench(, [^)]*)?\) -> Outcome:", source)
    names = [s.name for s in command.SCENARIOS]
    assert len({*names}) == len(names) and not any("|" in name for name in names)


def test_a_flip_that_nobody_notices_is_lost(tmp_path, monkeypatch):
    bench = Bench(tmp_path, tmp_path, short=True)
    object.__setattr__(bench, "number", lambda short, full: 4)
    assert flips.bits(bench)[:3] == (4, 4, 0)
    # Without digests the store hands wrong bits out, and the scenario must say so.
    monkeypatch.setattr("m4.train.verify.differing", lambda saved, found: None)
    (tmp_path / "blind").mkdir()
    object.__setattr__(bench, "work", tmp_path / "blind")
    object.__setattr__(bench, "number", lambda short, full: 12)
    assert flips.bits(bench).lost > 0


def test_a_flip_in_built_data_that_nobody_notices_is_lost(tmp_path, monkeypatch):
    bench = Bench(tmp_path, tmp_path, short=True)
    object.__setattr__(bench, "number", lambda short, full: 24)
    tried, survived, lost, notes = data_flips.bits(bench)
    assert (tried, survived, lost) == (24, 24, 0) and int(notes.split()[0]) >= 8  # refused
    monkeypatch.setattr("m4.data.mapped.Mapped.check", lambda *args: None)
    (tmp_path / "blind").mkdir()
    object.__setattr__(bench, "work", tmp_path / "blind")
    assert data_flips.bits(bench).lost > 0
