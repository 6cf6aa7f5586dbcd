"""Files and logs whose damage is noticed: a digit, a part, NULs, absence."""

import json
from pathlib import Path

import pytest

from m4 import seal
from m4.eval.report import page
from m4.train.telemetry import JsonLines


@pytest.fixture
def log(tmp_path):
    writer = JsonLines(tmp_path / "metrics.jsonl")
    for step in range(1, 31):
        writer.write_scalars(step, {"train/loss": 1 / step})
    writer.close()
    return tmp_path / "metrics.jsonl"


def steps(lines):
    return [json.loads(line)["step"] for line in lines]


def test_a_whole_log_is_sound(log):
    lines, problem = seal.sound_lines(log)
    assert steps(lines) == [*range(1, 31)] and problem is None


DAMAGE = {
    "a digit": lambda data: data.replace(b"0.25", b"0.35"),
    "a third": lambda data: data[: len(data) // 3] + data[2 * len(data) // 3 :],
    "the end": lambda data: data[: len(data) // 2],
    "NULs": lambda data: data[:200] + b"\0" * 500 + data[700:],
    "one byte": lambda data: data[:100] + b"\xff" + data[101:],
    "a line": lambda data: b"".join(data.splitlines(keepends=True)[:5] * 2),
    "everything": lambda data: b"",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_said_left_out_and_never_in_the_way(log, name, capsys):
    before = log.read_bytes().splitlines()
    log.write_bytes(DAMAGE[name](log.read_bytes()))
    lines, problem = seal.sound_lines(log)
    assert {*lines} < {*before} and "damaged or missing" in problem
    writer = JsonLines(log, resume=20)
    assert "damaged or missing; the run goes on without them" in capsys.readouterr().out
    writer.write_scalars(31, {"x": 1.0})
    writer.close()
    again, problem = seal.sound_lines(log)
    assert problem is None and steps(again) == [s for s in steps(lines) if s <= 20] + [31]


def test_absence_is_said(log):
    log.unlink()
    assert seal.sound_lines(log) == ([], "is gone")


def test_a_killed_writer_is_no_damage(log):
    sums = log.with_suffix(".sums")
    whole, checks = log.read_bytes(), sums.read_bytes()
    log.write_bytes(whole[:-9])  # a line was cut
    assert seal.sound_lines(log)[1] is not None  # with its checksum there, that is damage
    sums.write_bytes(checks[:-9])  # which is written afterwards
    assert seal.sound_lines(log)[1] is None
    log.write_bytes(whole)
    lines, problem = seal.sound_lines(log)
    assert problem is None and len(lines) == 30


def test_a_log_that_grows_while_it_is_read_is_sound(log, monkeypatch):
    """As when a run in progress is reported: a line comes after each look at a file."""
    writer, more = JsonLines(log, resume=30), iter(range(31, 99))

    def growing(read):
        def reading(path, **how):
            found = read(path, **how)
            writer.write_scalars(next(more), {"x": 1.0})
            return found

        return reading

    for name in ("read_bytes", "read_text"):
        monkeypatch.setattr(Path, name, growing(getattr(Path, name)))
    lines, problem = seal.sound_lines(log)
    writer.close()
    assert problem is None and steps(lines)[:30] == [*range(1, 31)]


def test_a_log_of_an_older_version_is_read(log):
    log.with_suffix(".sums").unlink()
    lines, problem = seal.sound_lines(log)
    assert len(lines) == 30 and problem == "has no seal"
    JsonLines(log, resume=10).close()
    assert steps(seal.sound_lines(log)[0]) == [*range(1, 11)]


def test_files_of_a_folder(tmp_path):
    assert seal.problem(tmp_path, "a") is None  # never was
    (tmp_path / "a").write_bytes(b"1")
    assert seal.problem(tmp_path, "a") == "has no seal"
    seal.keep(tmp_path, "a", b"2")
    assert seal.problem(tmp_path, "a") == "differs from its seal"
    seal.keep(tmp_path, "b", b"old")
    (tmp_path / "b").write_bytes(b"old")
    seal.keep(tmp_path, "b", b"new")  # and killed before it was written
    assert seal.problem(tmp_path, "b") is None
    seal.keep(tmp_path, "b", b"new")  # and killed again
    seal.keep(tmp_path, "b", b"newer")
    assert seal.problem(tmp_path, "b") is None
    seal.keep(tmp_path, "b", b"new")
    (tmp_path / "b").write_bytes(b"new")
    assert seal.problem(tmp_path, "b") is None and seal.listed(tmp_path) == ["a", "b"]
    (tmp_path / "b").unlink()
    assert seal.problem(tmp_path, "b") == "is gone"


def test_a_run_that_has_not_come_to_its_first_step_lacks_nothing(tmp_path):
    """As while it compiles, or was killed then: there is no log yet."""
    (tmp_path / "run.json").write_text("{}")
    assert page.damage(tmp_path) == []
    (tmp_path / "checkpoints/last/3").mkdir(parents=True)
    assert page.damage(tmp_path) == ["metrics.jsonl is gone; the curves show what is left"]
