"""Virtual devices have threads enough to wait for each other."""

import io
import os
import sys
from pathlib import Path

import jax
import pytest

from m4 import main, virtual
from m4.lab import __main__ as lab
from m4.plan import measure

ASKED = {"XLA_FLAGS": "--xla_dump_to=x --xla_force_host_platform_device_count=6"}


@pytest.mark.parametrize(
    ("environ", "threads"),
    [
        ({}, None),
        ({"XLA_FLAGS": "--xla_dump_to=x"}, None),
        (ASKED, "24"),
        (ASKED | {"PJRT_NPROC": "7"}, "7"),
        (ASKED | {"NPROC": "7"}, None),
    ],
)
def test_four_threads_a_device_unless_told(environ, threads):
    found = dict(environ)
    virtual.make_room(found)
    assert found.get("PJRT_NPROC") == threads


@pytest.mark.parametrize("command", ["main", "lab", "measure"])
def test_whatever_runs_on_them_makes_room_first(monkeypatch, command):
    monkeypatch.delenv("PJRT_NPROC")
    monkeypatch.setenv("XLA_FLAGS", ASKED["XLA_FLAGS"])
    if command == "main":
        assert main.run(["--config=there_is_none.py"])
    elif command == "lab":
        assert lab.main(["--help"]) == 0
    else:
        monkeypatch.setattr("sys.stdin", io.StringIO("{}"))
        with pytest.raises(KeyError):  # no configuration
            measure.main()
    assert os.environ["PJRT_NPROC"] == "24"


@pytest.mark.skipif(sys.platform != "linux", reason="asks the system for names of threads")
def test_xla_takes_them():
    """Else this process, too, can hang in a collective: it did, with eight."""
    jax.devices()
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    assert names.count("tf_XLAEigen") >= int(os.environ["PJRT_NPROC"]) == 4 * jax.device_count()
