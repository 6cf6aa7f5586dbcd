"""One run at a time has a work directory in a bucket."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from m4 import owners
from m4.errors import ConfigError, Preempted
from m4.train import lease, workdir
from tests import bucket_server

ELSEWHERE = {"host": "node7", "boot": "another", "space": "pid:[1]", "pid": 1, "born": "1"}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lease, "POLL", 0.05)
    monkeypatch.setattr(lease, "BEAT", 0.1)
    monkeypatch.setattr(lease, "STALE", 1.0)


def stored(url, content=None):
    """The lock as it is, or as it is made to be."""
    store = lease._Lock(url)._store
    if content is not None:
        store.write(lease.KEY, json.dumps(content).encode()).result()
    found = store.read(lease.KEY).result()
    return json.loads(found.value) if found.state == "value" else None


def test_it_comes_and_goes(url, quick):
    with lease.held(url):
        first = stored(url)
        assert owners.own().items() <= first.items()
        time.sleep(0.5)
        assert stored(url)["beat"] > first["beat"]  # a sign of life
    assert stored(url) is None


def test_a_living_run_here_has_it(url, quick):
    stored(url, owners.own() | {"token": "another"})
    with pytest.raises(workdir.InUse, match=f"in use by process {os.getpid()}"), lease.held(url):
        raise AssertionError
    assert stored(url)["token"] == "another"


def test_a_dead_run_of_this_machine_loses_it_at_once(url, quick):
    stored(url, owners.own() | {"pid": 2**22 + 1, "token": "dead"})
    start = time.monotonic()
    with lease.held(url):
        assert time.monotonic() - start < 0.9  # less than STALE


def test_a_run_elsewhere_is_waited_for_and_taken_over_without_a_sign_of_life(url, quick, capfd):
    stored(url, ELSEWHERE | {"token": "dead"})
    start = time.monotonic()
    with lease.held(url):
        assert time.monotonic() - start > 1.0
        assert stored(url)["token"] != "dead"
    assert "waits for a sign of life of it" in capfd.readouterr().err


def test_a_run_elsewhere_that_gives_one_keeps_it(url, quick):
    stored(url, ELSEWHERE | {"token": "alive", "beat": 0})
    done = threading.Event()

    def live():
        while not done.wait(0.2):
            stored(url, ELSEWHERE | {"token": "alive", "beat": time.time()})

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(workdir.InUse, match="process 1 on node7"), lease.held(url):
            raise AssertionError
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff" * 10_000, b"[" * 5000])
def test_a_lock_that_says_nothing_is_taken_over_when_it_is_old(url, quick, content):
    lease._Lock(url)._store.write(lease.KEY, content).result()
    with lease.held(url):
        assert stored(url)["pid"] == os.getpid()


HOLD = """
import sys, time
from m4.train import lease
lease.BEAT, lease.SILENT = 0.1, float(sys.argv[2])
with lease.held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(url):
    """Another process that has the lock."""
    command = [sys.executable, "-c", HOLD, url, "60"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_run_whose_lock_was_taken_ends_itself(url, holder):
    stored(url, ELSEWHERE | {"token": "another"})
    assert holder.wait(20) == 75
    assert "another run has taken it over" in holder.stderr.read()
    assert stored(url)["token"] == "another"


def test_a_run_whose_store_hangs_ends_itself(tmp_path, monkeypatch):
    """Connections are accepted and nothing is answered, as behind a broken balancer."""
    with bucket_server.served(tmp_path) as address:
        pid = bucket_server.process_of(tmp_path)
        own = os.environ | bucket_server.environment(address)
        code = HOLD.replace("lease.BEAT", "lease.PATIENCE = 0.5; lease.BEAT")
        command = [sys.executable, "-c", code, f"gs://{bucket_server.BUCKET}/hangs", "2"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, text=True, env=own, **pipes) as process:
            assert process.stdout.readline() == "held\n"
            os.kill(pid, signal.SIGSTOP)
            try:
                assert process.wait(20) == 75
            finally:
                os.kill(pid, signal.SIGCONT)
                process.kill()
            assert "its lock cannot be reached" in process.stderr.read()


def test_a_killed_run_leaves_a_lock_that_the_next_one_takes(url, holder, quick):
    holder.kill()
    holder.wait()
    assert stored(url)["pid"] == holder.pid
    with lease.held(url):
        assert stored(url)["pid"] == os.getpid()


def test_let_go_gives_up_ones_own_alone(url):
    stored(url, owners.own() | {"token": "this process has it"})
    lease.let_go(url)
    assert stored(url) is None
    stored(url, ELSEWHERE | {"token": "not this process's"})
    lease.let_go(url)
    assert stored(url) is not None


def contend(url, path, rounds):
    """Takes the lock again and again; two at once would find each other's file."""
    lease.POLL = 0.01
    done = 0
    while done < rounds:
        try:
            with lease.held(url):
                file = os.open(path, os.O_CREAT | os.O_EXCL)  # raises if another is inside
                os.close(file)
                os.unlink(path)
                done += 1
        except workdir.InUse:
            time.sleep(0.01)


def test_of_many_one_has_it(url, tmp_path):
    context = multiprocessing.get_context("spawn")
    every = [context.Process(target=contend, args=(url, tmp_path / "in", 20)) for _ in range(4)]
    for process in every:
        process.start()
    for process in every:
        process.join(120)
    assert [process.exitcode for process in every] == [0] * 4


def test_a_bucket_that_does_not_answer_is_one_line(monkeypatch, url):
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", "http://localhost:9")
    monkeypatch.setattr(lease, "RETRIES", {"gcs_request_retries": {"max_retries": 1}})
    with pytest.raises(Preempted, match="cannot be used"), lease.held(url):
        raise AssertionError


def test_a_bucket_that_may_only_be_read_is_one_line(url, address):
    bucket_server.breaks(address, bucket_server.path_of(url), 100, 403)
    with pytest.raises(ConfigError, match="no access"), lease.held(url):
        raise AssertionError
