"""Work in other processes: same results, same order, same errors, bounded memory."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from m4.data import workers
from m4.errors import DataError


def double(number):
    if number < 0:
        raise DataError("bad record")
    return 2 * number


def test_worker_processes_keep_the_order_and_the_error():
    many = [*range(workers.FEW + 20)]
    found = workers.ordered(double, [*many, -1], workers=2)
    assert [next(found) for _ in many] == [2 * n for n in many]
    with pytest.raises(DataError, match="bad record"):
        next(found)


def test_few_items_start_no_process():
    local = []
    assert list(workers.ordered(local.append, [1, 2], workers=2)) == [None, None]
    assert local == [1, 2]  # another process would have its own list


BUILD = """
import os, time
from m4.data import workers
from m4.train import early
workers.FEW = 2

def work(number):
    time.sleep(0.01)
    return os.getpid()

if __name__ == "__main__":
    with early.leaving():
        for pid in workers.ordered(work, range(10_000), workers=2):
            print(pid, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_worker_processes_end_with_the_build(tmp_path, number):
    (tmp_path / "build.py").write_text(BUILD)
    paths = os.pathsep.join([str(tmp_path), str(Path(workers.__file__).parents[2])])
    build = subprocess.Popen(
        [sys.executable, "-m", "build"],
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that what it leaves over is known by its session
    )
    with build:
        assert build.stdout is not None and build.stdout.readline()
        if number == signal.SIGINT:
            os.killpg(build.pid, number)  # as a terminal does
        else:
            build.send_signal(number)
        end = time.monotonic() + 10
        while of_session(build.pid) and time.monotonic() < end:
            time.sleep(0.02)
            build.poll()
        for left in (over := of_session(build.pid)):
            os.kill(left, signal.SIGKILL)
        errors = build.communicate()[1]
    assert not over and "SpawnProcess" not in errors


def of_session(number):
    """What lives of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == number and fields[0] not in "ZX":
            found.append(int(path.parent.name))
    return found
