"""The watchdog: when it fires, when it must not, how the process ends."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from m4.train.watchdog import PATIENT, Watchdog


def watch(floor=0.2):
    fired = []
    return Watchdog(floor, Path(), fire=fired.append), fired


def test_silence_fires_once_and_steps_do_not():
    dog, fired = watch()
    with dog:
        dog.step()
        for _ in range(20):
            time.sleep(0.03)
            dog.step()
        assert fired == []
        time.sleep(1.5)
        assert len(fired) == 1 and "no step for" in fired[0]


def test_what_is_longer_than_a_step_has_more_patience():
    dog, fired = watch()
    with dog, dog.patient():
        time.sleep(1)
        assert dog.limit() == pytest.approx(0.2 * PATIENT)
    assert fired == []


def test_the_limit_follows_the_median_step(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    dog, _ = watch(60.0)
    for seconds in (100, 2, 4, 9):  # the first is not counted: it may be slow for other reasons
        now[0] += seconds
        dog.step()
    assert dog.limit() == 20 * 4
    for _ in range(9):
        now[0] += 1
        dog.step()
    assert dog.limit() == 60


def test_zero_is_off():
    dog, fired = watch(0.0)
    with dog:
        time.sleep(0.1)
    assert fired == []


def test_the_process_ends_with_stacks(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from m4.train.watchdog import Watchdog\n"
        "with Watchdog(0.2, Path(sys.argv[1])) as dog:\n"
        "    dog.step()\n"
        "    time.sleep(60)"
    )
    stacks = tmp_path / "stacks.txt"
    command = [sys.executable, "-c", code, str(stacks)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 7
    assert "m4: hung: no step for" in done.stderr and "most recent call first" in done.stderr
    assert "most recent call first" in stacks.read_text()
