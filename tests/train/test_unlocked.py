"""Checkpoints on file systems without locks; `tests.faults.network` has a real one."""

import copy
import os

import jax.numpy as jnp
import pytest
from orbax.checkpoint._src.serialization import tensorstore_utils

from m4 import flock
from m4.train import unlocked
from m4.train.checkpoint import Checkpoints


@pytest.fixture
def contexts(monkeypatch):
    """Orbax's, put back afterwards."""
    for name in ("_BASE_TS_CONTEXT", "_DEFAULT_OCDBT_TS_CONTEXT"):
        own = copy.deepcopy(getattr(tensorstore_utils, name))
        monkeypatch.setattr(tensorstore_utils, name, own)


def locking():
    """What the array store is told, of both kinds of stores."""
    made = (tensorstore_utils.get_ts_context(use_ocdbt=own) for own in (False, True))
    return [context["file_io_locking"].to_json() for context in made]


def test_the_store_asks_for_no_locks_where_there_are_none(tmp_path, contexts, monkeypatch):
    usual = locking()
    unlocked.prepare(tmp_path / "not/there/yet")
    assert locking() == usual
    monkeypatch.setattr(flock, "take", lambda file, **how: None)
    checkpoints = Checkpoints(tmp_path / "last", keep=1)
    assert locking() == [unlocked.NO_LOCKS] * 2 != usual
    assert not [*tmp_path.iterdir()]
    checkpoints.save(1, {"w": jnp.arange(3.0)}, {"step": 1})
    checkpoints.wait()
    found = checkpoints.restore({"w": jnp.zeros(3)})[0]
    checkpoints.close()
    assert found["w"].tolist() == [0, 1, 2]


def test_a_folder_that_cannot_be_written_is_told_by_who_writes_it(tmp_path, contexts, monkeypatch):
    usual = locking()
    monkeypatch.setattr(unlocked.tempfile, "mkstemp", lambda **how: os.stat(tmp_path / "no/where"))
    unlocked.prepare(tmp_path)
    assert locking() == usual


def test_a_disk_that_fails_at_the_trial_ends_nothing(tmp_path, contexts, monkeypatch):
    def broken(*args, **how):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(unlocked.os, "unlink", broken)
    monkeypatch.setattr(flock, "take", broken)
    unlocked.prepare(tmp_path)


def test_what_a_killed_process_left_of_its_trial_is_cleared_away(tmp_path, contexts, monkeypatch):
    (tmp_path / ".locks-dead").touch()
    os.utime(tmp_path / ".locks-dead", (1, 1))
    (tmp_path / ".locks-living").touch()
    left = []

    def killed(file, **how):
        left.extend(path.name for path in tmp_path.iterdir())
        return True

    monkeypatch.setattr(flock, "take", killed)
    unlocked.prepare(tmp_path)
    assert left == [".locks-living"]
