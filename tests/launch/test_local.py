"""The supervisor, with processes that only pretend to train."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

LOCAL = Path(__file__).parents[2] / "launch/local.py"
FAKE = """
import os, pathlib, signal, subprocess, sys, time
folder = pathlib.Path(sys.argv[-1].removeprefix("--workdir="))
number = int(os.environ["M4_PROCESS_ID"])
start = len([*folder.glob(f"start-{number}-*")])
(folder / f"start-{number}-{start}").write_text(f"{os.getpid()} {os.environ.get('M4_COORDINATOR')}")
codes = pathlib.Path(folder / "codes").read_text().split()
code = codes[min(start, len(codes) - 1)].split(",")[number]
if "+" in code:  # saves a step, or another file, first
    place, code = code.split("+")
    place = place or f"checkpoints/last/{10 * (start + 1)}"
    (folder / place).mkdir(parents=True, exist_ok=True)
if code.endswith("wait"):
    subprocess.Popen(["sleep", "60"])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    time.sleep(60)
if code.startswith("slow"):  # takes half a second to save
    told, code = [], code.removeprefix("slow")
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    (folder / "waits").touch()
    while not told:
        time.sleep(0.01)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        time.sleep(0.01)
    (folder / "told").write_text(str(len(told)))
if code.endswith("deaf"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / "waits").touch()
    time.sleep(60)
if code.endswith("kill"):
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(code))
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def begin(codes, procs=2, restarts=2, pause=0.05, grace=5):
        (tmp_path / "codes").write_text(codes)
        command = [sys.executable, str(LOCAL), f"--procs={procs}", f"--restarts={restarts}"]
        command += ["--module=fake", f"--pause={pause}", f"--grace={grace}"]
        command += ["--", f"--workdir={tmp_path}"]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    return begin


def events(folder):
    path = folder / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def starts(folder, number=0):
    return len([*folder.glob(f"start-{number}-*")])


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_success_is_quiet(start, tmp_path):
    assert start("0,0").wait(20) == 0
    assert events(tmp_path) == [] and starts(tmp_path) == starts(tmp_path, 1) == 1
    told = {(tmp_path / f"start-{n}-0").read_text().split()[1] for n in (0, 1)}
    assert len(told) == 1 and told.pop().startswith("localhost:")


def test_preempted_hung_and_killed_gangs_start_again(start, tmp_path):
    assert start("+75,+75 +7,+wait +kill,+wait 0,0").wait(60) == 0
    found = events(tmp_path)
    assert [e["event"] for e in found] == ["restarts"] * 3
    assert [e["step"] for e in found] == [10, 20, 30]
    assert found[2]["codes"][0] == -9
    assert starts(tmp_path) == 4


def test_the_errors_of_those_who_lost_another_do_not_end_the_run(start, tmp_path):
    assert start("+1,kill +kill,1 +7,1 0,0").wait(60) == 0
    found = events(tmp_path)
    assert [e["event"] for e in found] == ["restarts"] * 3
    assert [sorted(e["codes"]) for e in found] == [[-9, 1], [-9, 1], [1, 7]]


def test_an_internal_error_ends_the_run_though_the_others_are_killed_then(start, tmp_path):
    assert start("wait,1").wait(20) == 1
    assert starts(tmp_path) == 1 and [e["event"] for e in events(tmp_path)] == ["ended"]


def test_gives_up_without_progress(start, tmp_path):
    assert start("75,75", restarts=2).wait(30) == 75
    assert [e["event"] for e in events(tmp_path)] == ["restarts", "gave up"]


def test_folds_points_and_finished_files_are_progress(start, tmp_path):
    first = [f"{place}/checkpoints/last/9+75" for place in ("fold_0", "a_s0", "a_s0/fold_0")]
    then = ["fold_1/checkpoints/last/3+75", "fold_1/checkpoints/last/6+75"]
    files = ["rows/a-s0.json+75", "fold_0/results/test.json+75", "results/crossval.json+75"]
    codes = [*first, *then, *files, "fold_1/checkpoints/last/6+75"]
    assert start(" ".join(codes), procs=1, restarts=1).wait(60) == 75
    found = events(tmp_path)
    assert [e["event"] for e in found] == ["restarts"] * 8 + ["gave up"]
    assert [e["step"] for e in found] == [9, 18, 27, 30, *[33] * 5]


def test_pauses_begin_with_the_one_that_was_asked_for(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(LOCAL.parent))
    import local

    clock, begun = [0.0], []
    own = {"monotonic": lambda: clock[0], "strftime": time.strftime}
    own["sleep"] = lambda seconds: clock.append(clock.pop() + seconds)
    monkeypatch.setattr(local, "time", types.SimpleNamespace(**own))
    monkeypatch.setattr(local.signal, "signal", lambda *_: None)
    monkeypatch.setattr(local.Supervisor, "_once", lambda _: begun.append(clock[0]) or [75])
    spec = local.specs.Spec((f"--workdir={tmp_path}",))
    assert local.Supervisor(spec, restarts=4, grace=1, pause=2).run() == 75
    assert [round(b - a) for a, b in itertools.pairwise(begun)] == [2, 4, 8]


@pytest.mark.parametrize("code", [2, 3, 4, 5, 6])
def test_what_a_restart_cannot_mend_ends_at_once(start, tmp_path, code):
    assert start(f"wait,{code}").wait(20) == code
    assert starts(tmp_path) == 1 and [e["event"] for e in events(tmp_path)] == ["ended"]


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("code", [75, 6])
def test_a_stop_is_passed_on_once_and_what_was_not_saved_is_said(start, tmp_path, code):
    run = start(f"slow{code}", procs=1)
    wait_for((tmp_path / "waits").exists)
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
        run.send_signal(number)
        time.sleep(0.1)
    assert run.wait(20) == code
    assert (tmp_path / "told").read_text() == "1" and starts(tmp_path) == 1


def test_a_gang_that_had_to_be_killed_is_not_called_saved(start, tmp_path):
    run = start("deaf", procs=1, grace=0.2)
    wait_for((tmp_path / "waits").exists)
    run.terminate()
    assert run.wait(20) == 137


def test_a_stop_is_heard_between_two_gangs(start, tmp_path):
    run = start("75", procs=1, pause=30)
    wait_for(lambda: events(tmp_path))
    run.terminate()
    assert run.wait(5) == 75
    assert starts(tmp_path) == 1 and [e["event"] for e in events(tmp_path)] == ["restarts", "ended"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_supervisor(start, tmp_path, number):
    run = start("wait,wait")
    wait_for(lambda: starts(tmp_path) and starts(tmp_path, 1))
    time.sleep(0.3)  # until both wait
    members = [int((tmp_path / f"start-{n}-0").read_text().split()[0]) for n in (0, 1)]
    os.kill(run.pid, number)
    assert run.wait(20) == (75 if number == signal.SIGTERM else -9)
    wait_for(lambda: not any(map(alive, members)))
    if number == signal.SIGTERM:  # and their children: sleep
        children = [p for p in Path("/proc").iterdir() if p.name.isdecimal()]
        groups = [_group(p) for p in children]
        assert members[0] not in groups


def _group(path):
    try:
        fields = (path / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[2])
