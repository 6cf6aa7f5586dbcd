"""Of any number of processes one gets an arm, and a dead one gives it back."""

import json
import os
import socket
import subprocess
import sys
import time

from m4.lab.claims import claimed


def test_one_gets_it_and_it_is_free_afterwards(tmp_path):
    path = tmp_path / "claims" / "arm"
    with claimed(path) as mine:
        assert mine
        with claimed(path) as other:
            assert not other
    assert not path.exists()
    with claimed(path) as mine:
        assert mine


def test_a_process_that_was_killed_gives_it_back(tmp_path):
    path = tmp_path / "arm"
    text = (
        f"from pathlib import Path; from m4.lab.claims import claimed; import time\n"
        f"with claimed(Path({str(path)!r})) as mine: print(mine, flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "True\n"
    with claimed(path) as mine:
        assert not mine
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert path.exists()
    with claimed(path) as mine:
        assert mine and json.loads(path.read_text())["pid"] == os.getpid()


def test_another_host_is_believed_for_as_long_as_it_renews(tmp_path):
    path = tmp_path / "arm"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    with claimed(path, lease=60) as mine:
        assert not mine
    os.utime(path, (0, time.time() - 61))
    with claimed(path, lease=60) as mine:
        assert mine


def test_a_claim_that_is_held_is_renewed(tmp_path):
    path = tmp_path / "arm"
    with claimed(path, lease=0.1) as mine:
        os.utime(path, (0, 0))
        time.sleep(0.2)
        assert mine and path.stat().st_mtime > time.time() - 1


def test_a_claim_lapses_by_its_age_whoever_has_its_number_now(tmp_path):
    """A pod that starts again has the host name and the process number of the one that died."""
    path, here = tmp_path / "arm", json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
    for text in (here, "[]", '{"host": "e', '{"host": "' + socket.gethostname() + '"}'):
        path.write_text(text)
        with claimed(path, lease=60) as mine:
            assert not mine
        os.utime(path, (0, time.time() - 61))
        with claimed(path, lease=60) as mine:
            assert mine, text
