"""Runs whose work directory is in a bucket: the same numbers, and nothing lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from m4 import main as command
from m4.remote import mirror, places, states
from m4.train import retention
from tests import bucket_server
from tests.faults import config as smallest
from tests.faults import runs

LOCAL = Path(__file__).parents[2] / "launch/local.py"
GANG = [
    f"--config={smallest.__file__}:m3h",
    "--config.train.save_every=9",
    "--config.train.eval_every=24",
]
ARGS = [*GANG, "--config.mesh.data=1"]
LOSS = "train/loss"
FSDP = ["--config.mesh.data=2", "--config.mesh.fsdp=4"]  # of eight devices


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    """Built once for all runs."""
    folder = tmp_path_factory.mktemp("data")
    before, os.environ["M4_DATA_DIR"] = os.environ.get("M4_DATA_DIR"), str(folder)
    yield
    os.environ.pop("M4_DATA_DIR") if before is None else os.environ.update(M4_DATA_DIR=before)


@pytest.fixture(scope="module")
def right(tmp_path_factory, data):
    """The work directory of a run that nothing disturbed, on this machine."""
    folder = tmp_path_factory.mktemp("right") / "run"
    assert command.main([*ARGS, f"--workdir={folder}"]) == 0
    return folder


def gang(place, *args, log):
    """A run of two processes with four devices each, supervised."""
    own = ["--procs=2", "--devices=4", "--pause=0.1", "--", *GANG]
    with open(log, "a") as file:
        return subprocess.Popen(
            [sys.executable, str(LOCAL), *own, f"--workdir={place}", *args],
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def apart(*args, **pipes):
    """A run in a process of its own: the array store keeps what it has read or written."""
    code = f"import sys; from m4 import main; sys.exit(main.main({[*ARGS, *args]}))"
    return subprocess.Popen([sys.executable, "-c", code], **pipes)


def complete(url):
    """Steps that are whole in the bucket."""
    return retention.complete(states.of(places.folder(url)) / "last")


def brought(url):
    """The work directory as anybody finds it."""
    folder = places.folder(url)
    mirror.pull(folder)
    return folder


def test_two_processes_killed_and_resumed_on_another_mesh(url, tmp_path):
    """The whole way: a bucket, two processes, SIGKILL, other processes of another mesh, a check."""
    other = gang(tmp_path / "other", *FSDP, log=tmp_path / "other.log")
    log = tmp_path / "log"
    with gang(url, "--config.mesh.data=8", log=log) as process:
        end = time.monotonic() + 240
        while not complete(url) and time.monotonic() < end and process.poll() is None:
            time.sleep(0.2)
        process.kill()  # the kernel kills the gang
        process.wait()
    assert (saved := complete(url)), log.read_text()[-3000:]
    assert saved[-1] < 24
    assert other.wait(240) == 0
    others = ["--force=config", *FSDP]
    with gang(url, *others, log=log) as process:
        assert process.wait(240) == 0, log.read_text()[-3000:]
    text = log.read_text()
    assert "resuming from step" in text
    found = brought(url)
    assert complete(url)[-1] == 24
    losses = [
        [json.loads(line)["train/loss"] for line in file.read_text().splitlines() if LOSS in line]
        for file in (found / "metrics.jsonl", tmp_path / "other/metrics.jsonl")
    ]
    assert len(losses[0]) == 24
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert command.main(["check", f"--workdir={url}"]) == 0
    assert (found / "results/test.json").is_file()


def test_a_run_in_a_bucket_has_the_bits_of_a_local_one(url, right, capsys):
    assert command.main([*ARGS, f"--workdir={url}"]) == 0
    assert f"workdir  {url}" in capsys.readouterr().out
    found = brought(url)
    assert runs.same(found, right)
    start = bucket_server.path_of(url)
    names = [n for n in bucket_server.names(os.environ["STORAGE_EMULATOR_HOST"]) if start in n]
    assert not [n for n in names if n.endswith("/lock") or "/." in n]
    for mode in ("eval", "predict", "report", "check"):
        assert command.main([mode, f"--workdir={url}"]) == 0
    assert (brought(url) / "predictions/test.parquet").is_file()


def test_sigterm_saves_in_the_bucket_and_gives_the_lock_up(url, right):
    with apart(f"--workdir={url}", stdout=subprocess.DEVNULL) as process:
        while not complete(url) and process.poll() is None:
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 75
    steps = complete(url)
    start = bucket_server.path_of(url)
    assert f"{start}/lock" not in bucket_server.names(os.environ["STORAGE_EMULATOR_HOST"])
    assert steps
    assert command.main([*ARGS, f"--workdir={url}"]) == 0
    assert runs.same(brought(url), right)


def test_a_damaged_object_costs_a_step_and_is_said(url, right):
    import fsspec

    assert command.main([*ARGS, f"--workdir={url}", "--config.train.until=18"]) == 0
    store, root = fsspec.filesystem("gs"), url.removeprefix("gs://")
    newest = complete(url)[-1]
    arrays = [n for n in store.find(f"{root}/checkpoints/last/{newest}/state") if "/d/" in n]
    for name in arrays:
        content = bytearray(store.cat_file(name))
        content[::97] = bytes(byte ^ 1 for byte in content[::97])
        store.pipe_file(name, bytes(content))
    with apart(f"--workdir={url}", "--force=config", stdout=subprocess.PIPE) as process:
        assert f"checkpoints/last/{newest}: cannot be read" in process.stdout.read().decode()
    assert process.returncode == 0
    assert runs.same(brought(url), right)


def test_a_store_that_takes_nothing_more_ends_the_run_and_the_next_one_goes_on(url, right, capfd):
    address = os.environ["STORAGE_EMULATOR_HOST"]
    start = bucket_server.path_of(url)

    def breaks(times):
        bucket_server.breaks(address, f"{start}/checkpoints/last/18", times, 403)

    breaks(10_000)
    assert command.main([*ARGS, f"--workdir={url}"]) == 6
    assert "step 18 not saved" in capfd.readouterr().err
    breaks(0)
    assert command.main([*ARGS, f"--workdir={url}"]) == 0
    assert runs.same(brought(url), right)


@pytest.mark.parametrize("mode", ["check", "eval", "report", "predict"])
def test_a_place_without_a_run_is_one_line(url, mode, capsys):
    assert command.main([mode, f"--workdir={url}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    lines = [line for line in lines if "google_auth_provider" not in line]
    assert len(lines) == 1 and url in lines[0] and "holds no run" in lines[0]
