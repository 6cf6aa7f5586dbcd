"""Checkpoints: bits, shardings, retention, replacement, errors."""

import concurrent.futures
import errno
import gc
import json
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from m4 import seal, sharding
from m4.errors import CheckpointError, SaveError
from m4.train.checkpoint import Checkpoints, abstract


def state(value=1.0, shape=(8, 2)):
    rng = np.random.default_rng(0)
    return {
        "w": jnp.asarray(rng.normal(size=shape).astype(np.float32) * value),
        "step": jnp.asarray(7, jnp.int32),
        "none": None,
    }


def like(tree):
    one = sharding.replicated(sharding.make_mesh())
    return abstract(tree, jax.tree.map(lambda _: one, tree))


def test_restores_bits_and_note(tmp_path):
    saved = state()
    first = Checkpoints(tmp_path, keep=2)
    first.save(3, saved, {"seed": 1, "best": None})
    first.close()
    second = Checkpoints(tmp_path, keep=2)
    assert second.latest() == 3
    restored, note = second.restore(like(saved))
    second.close()
    assert np.array_equal(restored["w"].view(np.uint32), saved["w"].view(np.uint32))
    assert (int(restored["step"]), restored["none"]) == (7, None)
    assert note == {"seed": 1, "best": None}


def test_restores_onto_another_mesh(tmp_path):
    saved = state()
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, saved, {})
    mesh = sharding.make_mesh({"fsdp": 4, "data": 2})
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    target = like(saved) | {"w": jax.ShapeDtypeStruct((8, 2), jnp.float32, sharding=split)}
    restored, _ = checkpoints.restore(target)
    checkpoints.close()
    assert restored["w"].sharding == split
    assert np.array_equal(restored["w"], saved["w"])


def test_keeps_the_newest_and_replaces_a_step_of_the_same_number(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {})
    checkpoints.save(3, state(9.0), {"again": True})
    checkpoints.wait()
    restored, note = checkpoints.restore(like(state()))
    assert np.array_equal(restored["w"], state(9.0)["w"]) and note == {"again": True}
    checkpoints.close()
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["2", "3"]


def test_files_of_a_save_that_never_finished_are_ignored_and_swept(tmp_path):
    (tmp_path / "5.orbax-checkpoint-tmp").mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    checkpoints.close()
    assert not (tmp_path / "5.orbax-checkpoint-tmp").exists()


def test_errors_are_one_line(tmp_path):
    checkpoints = Checkpoints(tmp_path / "a", keep=1)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoints.restore(like(state()))
    checkpoints.save(1, state(), {})
    checkpoints.wait()
    half = like(state())
    half["w"] = jax.ShapeDtypeStruct((8, 2), jnp.bfloat16, sharding=half["w"].sharding)
    for other, says in [
        (like(state(shape=(4, 2))), r"w: saved float32\[8, 2\], expected float32\[4, 2\]"),
        (half, r"w: saved float32\[8, 2\], expected bfloat16"),
        (like(state() | {"more": jnp.ones(1)}), "more: saved nothing"),
    ]:
        with pytest.raises(CheckpointError, match=says) as error:
            checkpoints.restore(other)
        assert "\n" not in "".join(error.value.lines())
    checkpoints.close()


def test_a_newer_versions_checkpoint_is_newer_and_stays(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state(), {})
    checkpoints.wait()
    path = tmp_path / "1/meta/metadata"
    path.write_text(json.dumps(seal.sealed(json.loads(path.read_text()) | {"more": 1})))
    with pytest.raises(CheckpointError, match="written by a newer version of m4, .* 'more'"):
        checkpoints.restore(like(state()))
    assert "newer version" in str(checkpoints.scrub()[1])
    checkpoints.close()
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ValueError("RESOURCE_EXHAUSTED: Out of memory"),
        OSError(24, "Too many open files"),
    ],
)
def test_what_is_short_is_called_so_and_nothing_is_renamed(tmp_path, monkeypatch, error):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state(), {})
    checkpoints.wait()

    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(checkpoints._saver, "restore", fails)
    with pytest.raises(CheckpointError, match="for want of memory or open files, and not damaged"):
        checkpoints.restore(like(state()))
    checkpoints.close()
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


def test_a_disk_that_stumbles_once_costs_no_step(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state(), {})
    checkpoints.wait()
    errors, restore = [OSError(errno.EIO, "Input/output error")], checkpoints._saver.restore

    def stumbles(*args, **kwargs):
        if errors:
            raise errors.pop()
        return restore(*args, **kwargs)

    monkeypatch.setattr(checkpoints._saver, "restore", stumbles)
    restored, _ = checkpoints.restore(like(state()))
    assert np.array_equal(restored["w"], state()["w"])
    checkpoints.close()
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


def test_a_damaged_checkpoint_is_one_line(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state(), {})
    checkpoints.close()
    (tmp_path / "1" / "meta" / "metadata").write_text("{")
    checkpoints = Checkpoints(tmp_path, keep=1)
    with pytest.raises(CheckpointError, match="no sound checkpoint is left") as error:
        checkpoints.restore(like(state()))
    assert len(error.value.lines()) == 2 and "\n" not in "".join(error.value.lines())
    checkpoints.close()


def test_a_disk_that_refuses_is_a_save_error(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, keep=1)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._saver, "save", full)
    checkpoints.save(1, state(), {})
    with pytest.raises(SaveError, match="step 1 not saved .*No space left"):
        checkpoints.wait()
    checkpoints.close()


@pytest.mark.parametrize("devices", [1, 8])
def test_arrays_may_be_given_away_once_save_returns(tmp_path, devices):
    place = sharding.replicated(sharding.make_mesh({"data": devices}))
    saved = jax.device_put(state(), place)
    expected = np.asarray(saved["w"]).copy()
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, saved, {})
    jax.jit(lambda x: jax.tree.map(jnp.zeros_like, x), donate_argnums=0)(saved)
    for array in jax.tree.leaves(saved):
        array.delete()
    restored, _ = checkpoints.restore(like(state()))
    assert np.array_equal(restored["w"], expected)
    checkpoints.close()


@pytest.mark.parametrize("devices", [1, 8])
def test_nothing_is_written_before_what_it_comes_after(tmp_path, devices):
    place = sharding.replicated(sharding.make_mesh({"data": devices}))
    checkpoints = Checkpoints(tmp_path, keep=1)
    seen = []

    def wait():
        seen.append([path.name for path in tmp_path.iterdir()])
        raise SaveError("the other one")

    with pytest.raises(SaveError, match="the other one"):
        checkpoints.save(1, jax.device_put(state(), place), {}, after=wait)
        checkpoints.wait()
    assert seen == [[]] and checkpoints.steps() == []
    checkpoints.save(2, jax.device_put(state(), place), {})
    checkpoints.close()
    assert names(tmp_path) == ["2"]


@pytest.mark.parametrize("devices", [1, 8])
def test_two_folders_do_not_get_into_each_others_way(tmp_path, devices):
    place = sharding.replicated(sharding.make_mesh({"data": devices}))
    last, best = (Checkpoints(tmp_path / name, keep=2) for name in ("last", "best"))
    for step in range(1, 9):
        best.save(step, jax.device_put(state(step), place), {})
        last.save(step, jax.device_put(state(-step), place), {})
    for checkpoints in (last, best):
        checkpoints.wait()
        assert checkpoints.scrub() == {7: None, 8: None}
        checkpoints.close()


def disk_with(free):
    return lambda path: shutil._ntuple_diskusage(total=1000, used=1000 - free, free=free)


def test_a_disk_nearly_full_costs_older_steps(tmp_path, monkeypatch, capsys):
    checkpoints = Checkpoints(tmp_path, keep=4, every=4)
    for step in (4, 5, 6, 7):
        checkpoints.save(step, state(step), {})
    checkpoints.wait()
    size = 8 * 2 * 4 + 4  # "w" and "step"
    monkeypatch.setattr(shutil, "disk_usage", disk_with(size))
    checkpoints.save(8, state(8), {})
    checkpoints.wait()
    assert names(tmp_path) == ["4", "5", "6", "7", "8"]  # 4 is protected, and 4 newer ones
    assert "nearly full" not in capsys.readouterr().out
    monkeypatch.setattr(shutil, "disk_usage", disk_with(size - 1))
    checkpoints.save(9, state(9), {})
    checkpoints.wait()
    assert names(tmp_path) == ["4", "8", "9"]
    assert "nearly full; deleted older steps" in capsys.readouterr().out
    checkpoints.close()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_save_that_finds_the_disk_full_makes_room_and_is_tried_again(
    tmp_path, monkeypatch, capsys, elsewhere
):
    """A best step that was given up would never be saved: its value stays the best."""
    asked = []
    room = (lambda: asked.append(1) or True) if elsewhere else (lambda: False)
    checkpoints = Checkpoints(tmp_path, keep=4, room=room)
    for step in (2,) if elsewhere else (1, 2):
        checkpoints.save(step, state(step), {})
    checkpoints.wait()
    commit, calls = checkpoints._saver.wait_until_finished, []

    def full():
        commit()
        if 3 in checkpoints.steps() and not calls:
            calls.append(1)
            shutil.rmtree(tmp_path / "3")  # never got there
            raise OSError(errno.ENOSPC, "text of another language")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._saver, "wait_until_finished", full)
        checkpoints.save(3, state(3), {})
        checkpoints.wait()
    assert names(tmp_path) == ["2", "3"] and checkpoints.scrub() == {2: None, 3: None}
    assert "step 3 not saved (OSError: No space left" in capsys.readouterr().out
    assert len(asked) == elsewhere
    checkpoints.close()


@pytest.mark.parametrize("devices", [1, 8])
def test_where_no_room_can_be_made_a_save_fails_and_says_so(tmp_path, monkeypatch, capsys, devices):
    """A split state is given away when it is found out: the next one takes its place."""
    place = sharding.replicated(sharding.make_mesh({"data": devices}))
    checkpoints = Checkpoints(tmp_path, keep=4)
    for step in (1, 2):
        checkpoints.save(step, jax.device_put(state(step), place), {})
    checkpoints.wait()
    commit = checkpoints._saver.wait_until_finished

    def full():
        commit()
        if 3 in checkpoints.steps():
            shutil.rmtree(tmp_path / "3")
            raise OSError(errno.ENOSPC, "text of another language")

    monkeypatch.setattr(checkpoints._saver, "wait_until_finished", full)
    checkpoints.save(3, jax.device_put(state(3), place), {})
    concurrent.futures.wait([checkpoints._pending])
    if devices == 1:
        with pytest.raises(SaveError, match="step 3 not saved"):
            checkpoints.save(4, jax.device_put(state(4), place), {})
        assert names(tmp_path) == ["2"]
    else:
        checkpoints.save(4, jax.device_put(state(4), place), {})
        checkpoints.wait()
        assert names(tmp_path) == ["2", "4"]
    assert "step 3 not saved" in capsys.readouterr().out
    checkpoints.close()


def test_memory_that_runs_out_is_no_full_disk(tmp_path, monkeypatch):
    """RESOURCE_EXHAUSTED: what XLA says of memory. No older step goes for that."""
    checkpoints = Checkpoints(tmp_path, keep=4)
    for step in (1, 2):
        checkpoints.save(step, state(step), {})
    checkpoints.wait()

    def short(*args, **kwargs):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes")

    monkeypatch.setattr(checkpoints._saver, "save", short)
    checkpoints.save(3, state(3), {})
    with pytest.raises(SaveError, match="step 3 not saved .out of memory"):
        checkpoints.wait()
    assert checkpoints.steps() == [1, 2]
    checkpoints.close()


def test_two_threads_wait_for_the_same_save(tmp_path):
    """The second must not be told that all is on disk because the first is still waiting."""
    checkpoints, gate = Checkpoints(tmp_path, keep=2), threading.Event()
    checkpoints.save(1, state(), {}, after=lambda: gate.wait(60) and None)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        waits = [pool.submit(checkpoints.wait) for _ in range(2)]
        done, _ = concurrent.futures.wait(waits, timeout=0.2)
        assert not done
        gate.set()
        concurrent.futures.wait(waits)
    assert checkpoints.steps() == [1]
    checkpoints.close()


def damage(folder, step):
    """Flips a bit in the largest file of a step."""
    path = max((folder / str(step)).rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_damaged_step_is_set_aside_and_the_one_before_it_taken(tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {"step": step})
    checkpoints.wait()
    damage(tmp_path, 3)
    (tmp_path / "2" / "meta" / "metadata").write_text("{}")
    assert {step: problem is None for step, problem in checkpoints.scrub().items()} == {
        1: True,
        2: False,
        3: False,
    }
    assert names(tmp_path) == ["1", "2", "3"]  # scrubbing changes nothing
    restored, note = checkpoints.restore(like(state()))
    assert note == {"step": 1} and np.array_equal(restored["w"], state(1)["w"])
    assert names(tmp_path) == ["1", "2.corrupt-0", "3.corrupt-0"]
    assert capsys.readouterr().out.count("trying an older one") == 2
    damage(tmp_path, 1)
    for message in ("no sound checkpoint is left", "holds damaged checkpoints only"):
        with pytest.raises(CheckpointError, match=message):  # never from scratch in silence
            checkpoints.restore(like(state()))
        assert checkpoints.used()
    checkpoints.close()


def test_retention_by_last_every_and_verified(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, every=4)
    for step in range(1, 8):
        checkpoints.save(step, state(step), {})
    checkpoints.wait()
    assert names(tmp_path) == ["4", "6", "7"]
    checkpoints._verified = {4, 6}  # as if nothing newer had been read back
    checkpoints._retire(1)
    assert names(tmp_path) == ["4", "6", "7"]
    checkpoints._verified = {7}
    checkpoints._retire(1)
    assert names(tmp_path) == ["4", "7"]
    checkpoints.close()


def test_saving_the_same_again_writes_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, state(), {"a": (1, 2)})
    checkpoints.wait()
    written = (tmp_path / "1" / "meta" / "metadata").stat().st_mtime_ns
    checkpoints.save(1, state(), {"a": (1, 2)})
    checkpoints.wait()
    assert (tmp_path / "1" / "meta" / "metadata").stat().st_mtime_ns == written
    damage(tmp_path, 1)  # no longer the same
    checkpoints._verified.clear()
    checkpoints.save(1, state(), {"a": (1, 2)})
    checkpoints.wait()
    assert checkpoints.scrub() == {1: None} and names(tmp_path) == ["1"]
    checkpoints.close()


def test_a_kill_while_a_step_is_replaced_keeps_the_old_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, state(), {})
    checkpoints.close()
    (tmp_path / "1").rename(tmp_path / "1.replaced")  # killed before the new one was complete
    (tmp_path / "2.deleted").mkdir()  # killed while deleting
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.scrub() == {1: None} and names(tmp_path) == ["1"]
    checkpoints.close()


def test_a_note_can_be_refused_and_that_damages_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, state(), {"method": "a"})

    def accept(note):
        raise CheckpointError(f"method {note['method']}")

    with pytest.raises(CheckpointError, match="method a"):
        checkpoints.restore(like(state()), accept=accept)
    assert names(tmp_path) == ["1"]
    checkpoints.close()


def test_saving_again_and_again_keeps_nothing(tmp_path):
    saved = {f"w{i}": jnp.full((4, 4), i, jnp.float32) for i in range(40)}
    checkpoints = Checkpoints(tmp_path, keep=2)

    def objects(steps):
        for step in steps:
            checkpoints.save(step, saved, {"step": step})
            checkpoints.wait()
        gc.collect()
        return len(gc.get_objects())

    before = objects(range(4))
    assert objects(range(4, 10)) - before < 6 * 40  # less than one per array and save
    checkpoints.close()
