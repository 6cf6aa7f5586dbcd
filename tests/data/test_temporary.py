"""What killed processes leave goes, what living ones need stays; whatever file locks say."""

import contextlib
import json
import os
import stat
import tempfile
import time
from pathlib import Path

import pytest

from m4 import flock, owners
from m4.data import build, temporary
from m4.data.sets.declared import events
from m4.errors import DataError
from tests.data import meds_folder as mf

DEAD = owners.own() | {"pid": 1 << 30, "born": "1"}
ELSEWHERE = owners.own() | {"boot": "of another machine"}  # nobody here can tell


def left(folder, owner, *, prefix=temporary.PARTIAL, old=False):
    """What a process left in a folder that was killed; without an owner it did not come so far."""
    folder.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
    (place / "data").mkdir()
    (place / "data/events").write_text("of patients")
    if owner is not None:
        (place / temporary.OWNER).write_text(json.dumps(owner))
    if old:
        for path in (place / "data/events", *place.glob("*"), place):
            os.utime(path, (time.time() - 2 * temporary.OLD,) * 2)
    return place


@pytest.mark.parametrize("locks", [True, None])
def test_a_start_sweeps_what_the_dead_left_and_nothing_of_the_living(tmp_path, monkeypatch, locks):
    monkeypatch.setattr(flock, "take", lambda *args, **kwargs: locks)  # as if free, or no locks
    file = mf.write(tmp_path, mf.cohort_tables())
    homes = tmp_path / "d/meds", tmp_path / "d/another"
    for home in homes:
        home.mkdir(parents=True)
        (home / ".lock").touch()
    gone = [left(home, DEAD) for home in homes]
    gone += [left(home, owner, old=True) for home in homes for owner in (ELSEWHERE, None)]
    gone += [left(homes[1], None, prefix=build.OLDER, old=True)]
    stay = [left(home, owner) for home in homes for owner in (owners.own(), ELSEWHERE, None)]
    stay += [left(homes[0], owners.own(), old=True)]
    for _ in range(2):  # built, and there
        build.prepare("meds", tmp_path, tmp_path / "d", options={"file": file})
        assert not any(place.exists() for place in gone)
        assert all((place / "data/events").is_file() for place in stay)


def test_two_builds_at_once_without_locks_do_no_harm_to_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(flock, "take", lambda *args, **kwargs: None)
    file = mf.write(tmp_path, mf.cohort_tables())
    told = []

    def prepare(home, **kwargs):
        return build.prepare("meds", tmp_path, tmp_path / home, options={"file": file}, **kwargs)

    def meanwhile(split, rows):
        if not told:  # the slower one still reads its events
            told.append(prepare("d"))
            told.append((told[0] / "manifest.json").stat().st_ino)

    alone = (prepare("alone") / "manifest.json").read_bytes()
    folder = prepare("d", progress=meanwhile)
    assert folder == told[0] and (folder / "manifest.json").stat().st_ino == told[1]  # it stays
    assert (folder / "manifest.json").read_bytes() == alone
    assert sorted(p.name for p in folder.parent.iterdir()) == [".lock", folder.name]


@pytest.mark.parametrize("change", [os.unlink, lambda path: os.truncate(path, 24)])
def test_events_that_were_written_and_are_gone_are_not_none(tmp_path, monkeypatch, change):
    file = mf.write(tmp_path, mf.cohort_tables())
    blocks = events.Events.blocks

    def late(self, split):
        for path in self._folder.iterdir():
            if path.name.isdigit() and path.stat().st_size:
                change(path)
        return blocks(self, split)

    monkeypatch.setattr(events.Events, "blocks", late)
    with pytest.raises(DataError, match="was removed or cut while it was needed") as caught:
        build.prepare("meds", tmp_path, tmp_path / "d", options={"file": file})
    assert len(caught.value.lines()) == 1 and not [*tmp_path.rglob("*.array_record*")]


def test_a_folder_for_anything_lies_where_its_owner_alone_writes(tmp_path, monkeypatch):
    system, work = tmp_path / "tmp", tmp_path / "w"
    for folder in (system, work):
        folder.mkdir(mode=0o700)
    (system / f"{temporary.SYSTEM}of-the-user").mkdir()  # nobody's that says so
    monkeypatch.setattr(tempfile, "tempdir", str(system))
    dead = [left(system, DEAD, prefix=temporary.SYSTEM), left(work, DEAD, prefix=temporary.BESIDE)]
    place = temporary.somewhere(work)
    assert place.parent == work and stat.S_IMODE(place.stat().st_mode) == 0o700
    assert not any(folder.exists() for folder in dead)
    work.chmod(0o770)
    other = temporary.somewhere(work)
    assert other.parent == system and place.exists()
    assert temporary.somewhere().parent == system and (system / "m4-scratch-of-the-user").exists()
    temporary.remove(other)
    assert not other.exists()


def test_what_is_kept_is_moved_from_the_dead_and_shared_with_the_living(tmp_path):
    def keeps(owner, text):
        place = left(tmp_path, owner)
        (place / "kept-1").mkdir()
        (place / "kept-1/part").write_text(text)
        return place

    living, dead = keeps(ELSEWHERE, "a"), keeps(DEAD, "b")
    temporary.sweep(tmp_path)
    assert (dead / "kept-1").exists() and not (dead / "data").exists()
    os.utime(living / "kept-1/part", (time.time() + 60,) * 2)
    first = temporary.made(tmp_path)
    temporary.adopt(first)  # the newest
    assert (first / "kept-1/part").read_text() == "a" == (living / "kept-1/part").read_text()
    temporary.remove(living)
    assert (first / "kept-1/part").read_text() == "a"
    temporary.remove(first)
    with pytest.raises(KeyboardInterrupt), temporary.held(tmp_path) as second:
        temporary.adopt(second)
        (second / "data").mkdir()
        raise KeyboardInterrupt
    assert not dead.joinpath("kept-1").exists() and not (second / "data").exists()
    assert (second / "kept-1/part").read_text() == "b"  # for the next attempt
    temporary.sweep(tmp_path, kept=False)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("number", range(1, 5))
def test_whoever_is_killed_at_any_point_leaves_what_the_next_sweeps(tmp_path, monkeypatch, number):
    """Before a folder is signed it is empty; while it is removed it stays signed."""
    place = temporary.made(tmp_path)
    for name in ("data/events", "more/events"):
        (place / name).parent.mkdir()
        (place / name).write_text("of patients")
    removed = temporary._remove

    class Killed(BaseException):
        pass

    def counted(item):
        calls.append(item)
        if len(calls) == number:
            raise Killed
        removed(item)

    calls = []
    with monkeypatch.context() as patch:
        patch.setattr(temporary, "_remove", counted)
        patch.setattr(Path, "rmdir", counted)
        with contextlib.suppress(Killed):
            temporary.remove(place)
    assert len(calls) == number or not place.exists()
    if (place / temporary.OWNER).exists():
        (place / temporary.OWNER).write_text(json.dumps(DEAD))
    (tmp_path / ".partial-1").mkdir()
    (tmp_path / ".partial-1" / f".{temporary.OWNER}.1.partial").touch()
    temporary.sweep(tmp_path)
    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_is_swept_before_it_is_signed_is_made_again(tmp_path, monkeypatch):
    sign, times = temporary._sign, []

    def late(place, owner):
        times.append(place)
        if len(times) == 1:
            temporary.sweep(tmp_path)
        sign(place, owner)

    monkeypatch.setattr(temporary, "_sign", late)
    assert temporary.made(tmp_path).is_dir() and len(times) == 2
