"""Files and logs whose damage is noticed: a digit, a part, NULs, absence."""

import json
import os
import zlib

import pyarrow as pa
import pytest

from m4 import atomic, seal
from m4.eval import damage
from m4.run import meds_predictions as meds
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
    "the last line": lambda data: data[: data.rindex(b"\n", 0, -1) + 1],
    "NULs": lambda data: data[:200] + b"\0" * 500 + data[700:],
    "one byte": lambda data: data[:100] + b"\xff" + data[101:],
    "a line": lambda data: b"".join(data.splitlines(keepends=True)[:5] * 2),
    "two lines change places": lambda data: b"".join(
        data.splitlines(keepends=True)[i ^ 1] for i in range(30)
    ),
    "a step": lambda data: data.replace(b'"step": 7', b'"step": 8'),
    "a checksum": lambda data: data[:-4] + b'x"}\n',
    "everything": lambda data: b"",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_said_left_out_and_never_in_the_way(log, name, capsys):
    before = log.read_bytes().splitlines()
    log.write_bytes(DAMAGE[name](log.read_bytes()))
    lines, problem = seal.sound_lines(log, least=30)  # as a saved state knows it
    assert {*lines} < {*before} and "of 30 lines are damaged or missing" in problem
    writer = JsonLines(log, resume=20, least=30)
    assert "damaged or missing; the run goes on without them" in capsys.readouterr().out
    writer.write_scalars(31, {"x": 1.0})
    writer.close()
    again, problem = seal.sound_lines(log)
    assert problem is None and steps(again) == [s for s in steps(lines) if s <= 20] + [31]


def test_absence_is_said(log):
    log.unlink()
    assert seal.sound_lines(log, least=30) == ([], "is gone")


def test_the_end_of_a_log_is_known_to_the_newest_state(log):
    """Lines that end well vouch for themselves, not for those that came after."""
    folder = log.parent
    (folder / "run.json").write_text("{}")
    for step, least in ((20, 20), (30, 30)):
        meta = folder / f"checkpoints/last/{step}/meta/metadata"
        meta.parent.mkdir(parents=True)
        meta.write_text(json.dumps(seal.sealed({"note": {"log": least}, "leaves": {}})))
    assert damage.lines(folder) == []
    log.write_bytes(DAMAGE["the last line"](log.read_bytes()))
    said = ["metrics.jsonl 1 of 30 lines are damaged or missing; the curves show what is left"]
    assert damage.lines(folder) == said
    log.unlink()
    assert damage.lines(folder) == ["metrics.jsonl is gone; the curves show what is left"]


def test_a_killed_writer_is_no_damage(log):
    whole = log.read_bytes()
    for cut in (1, 9, 50):
        log.write_bytes(whole[:-cut])
        lines, problem = seal.sound_lines(log)
        assert (
            problem is None and len(lines) == 29 and seal.last_line(log) == (30 if cut == 1 else 0)
        )
    JsonLines(log, resume=30).close()
    assert seal.last_line(log) == 29 and seal.sound_lines(log)[1] is None


def test_a_resume_is_one_replacement(log, monkeypatch):
    """Killed before it or after it, the log is sound: there is no second file to fall behind."""
    whole = log.read_bytes()

    def killed(path, text):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            JsonLines(log, resume=20)
    assert log.read_bytes() == whole
    writes = []
    write = atomic.write
    monkeypatch.setattr(
        atomic, "write", lambda path, text: writes.append(path) or write(path, text)
    )
    JsonLines(log, resume=20).close()
    assert writes == [log] and seal.sound_lines(log)[1] is None


def older(log, *, sums):
    """The log as the version before wrote it."""
    rows = [json.loads(line) for line in log.read_bytes().splitlines()]
    texts = [
        json.dumps({k: v for k, v in r.items() if k not in (seal.NUMBER, seal.SUM)}) for r in rows
    ]
    log.write_text("".join(f"{text}\n" for text in texts))
    if sums:
        checks = (f"{zlib.crc32(text.encode()):08x}\n" for text in texts)
        log.with_suffix(".sums").write_text("".join(checks))


@pytest.mark.parametrize("sums", [False, True])
def test_a_log_of_an_older_version_is_read_and_taken_over(log, sums):
    older(log, sums=sums)
    assert len(seal.sound_lines(log)[0]) == 30 and seal.sound_lines(log)[1] is None
    damaged = log.read_bytes().replace(b"0.25", b"0.35")
    log.write_bytes(damaged)
    lines, problem = seal.sound_lines(log)
    assert (len(lines), problem) == (
        (29, "1 of 30 lines are damaged or missing") if sums else (30, None)
    )
    JsonLines(log, resume=10).close()
    assert steps(seal.sound_lines(log)[0]) == [s for s in range(1, 11) if s != 4 or not sums]
    assert not log.with_suffix(".sums").exists() and seal.last_line(log) == 10 - sums


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
    assert damage.lines(tmp_path) == []
    (tmp_path / "checkpoints/last/3").mkdir(parents=True)
    assert damage.lines(tmp_path) == ["metrics.jsonl is gone; the curves show what is left"]


SEALING = json.dumps({"starts": [{"code": "1"}]})


def test_a_list_of_seals_that_is_gone_or_damaged_is_said(tmp_path):
    (tmp_path / "results").mkdir()
    seal.write(tmp_path, "results/test.json", "{}")
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "run.json").write_text(SEALING)
    assert damage.lines(tmp_path) == []
    (tmp_path / "results/test.json").write_text("[]")
    assert "differs from its seal" in damage.lines(tmp_path)[0]
    whole = (tmp_path / "seals.json").read_text()
    for text in (whole.replace("test", "best"), whole[:50], "{}", ""):
        (tmp_path / "seals.json").write_text(text)
        (line,) = damage.lines(tmp_path)
        assert line.startswith("seals.json is damaged") and "--mode=eval" in line
    (tmp_path / "seals.json").unlink()
    (line,) = damage.lines(tmp_path)
    assert line.startswith("seals.json is gone")
    (tmp_path / "run.json").write_text("{}")  # of a version that sealed nothing
    assert damage.lines(tmp_path) == []


def test_a_run_of_an_older_version_is_not_told_that_it_lacks_seals(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "results/old.json").write_text("{}")
    seal.write(tmp_path, "results/test.json", "{}")  # evaluated again
    assert damage.lines(tmp_path) == []
    (tmp_path / "run.json").write_text(SEALING)
    assert damage.lines(tmp_path) == ["results/old.json has no seal; --mode=eval writes it again"]


def test_a_file_is_sealed_before_it_has_its_name(tmp_path, monkeypatch):
    """Killed in between, neither the old file nor the new one is suspect."""
    path = tmp_path / "predictions/test.parquet"
    meds.write_private(path, pa.table({"x": [1]}), tmp_path)
    before, replace = path.read_bytes(), os.replace

    def killed(source, target):
        if str(target).endswith(".parquet"):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            meds.write_private(path, pa.table({"x": [2]}), tmp_path)
    name = "predictions/test.parquet"
    assert path.read_bytes() == before and seal.problem(tmp_path, name) is None
    meds.write_private(path, pa.table({"x": [2]}), tmp_path)
    assert path.read_bytes() != before and seal.problem(tmp_path, name) is None
