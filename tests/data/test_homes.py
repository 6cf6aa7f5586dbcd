"""Folders of built data in a place that others write to as well."""

import os
import threading

import pytest

from m4 import flock
from m4.data import build, homes, mapped
from m4.data.store import Store
from m4.errors import SaveError


def prepare(folder):
    return build.prepare("synthetic", folder, folder, options={"num_patients": 60})


@pytest.fixture
def home(tmp_path):
    (tmp_path / "synthetic").mkdir(mode=0o700)
    return tmp_path / "synthetic"


@pytest.mark.parametrize("kind", ["link", "loop", "folder", "pipe", "link to nothing"])
def test_a_lock_that_is_no_file_is_refused_and_nothing_is_cut(home, tmp_path, kind):
    precious, lock = tmp_path / "precious", home / ".lock"
    precious.write_text("of the user")
    {
        "link": lambda: lock.symlink_to(precious),
        "loop": lambda: lock.symlink_to(lock.name),
        "folder": lock.mkdir,
        "pipe": lambda: os.mkfifo(lock),
        "link to nothing": lambda: lock.symlink_to(tmp_path / "new"),
    }[kind]()
    with pytest.raises(SaveError, match=r"\.lock: is a link, a folder or a pipe") as caught:
        prepare(tmp_path)
    assert len(caught.value.lines()) == 1
    assert precious.read_text() == "of the user" and not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_so_is_that_of_mapped_rows(built, tmp_path, kind):
    rows = built / "rows" / str(mapped.VERSION)
    lock, precious = rows / ".lock", tmp_path / "precious"
    rows.mkdir(parents=True, exist_ok=True)
    precious.write_text("of the user")
    lock.unlink(missing_ok=True)
    lock.symlink_to(precious) if kind == "link" else os.mkfifo(lock)
    try:
        for place in rows.glob("[!.]*"):
            place.rename(tmp_path / place.name)
        with pytest.raises(SaveError, match=r"\.lock: is a link, a folder or a pipe"):
            Store(built, "train", ram_limit=0)
        assert precious.read_text() == "of the user"
    finally:
        lock.unlink()


def test_a_lock_that_another_has_is_waited_for_with_a_word(home, tmp_path, capsys):
    with open(home / ".lock", "w") as other:
        assert flock.take(other.fileno())
        found = []
        thread = threading.Thread(target=lambda: found.append(prepare(tmp_path)), daemon=True)
        thread.start()
        said = ""
        while "waits" not in said and thread.is_alive():
            said += capsys.readouterr().err
        assert said.count("\n") == 1 and str(home / ".lock") in said and not found
    thread.join(60)
    assert found[0].is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
@pytest.mark.parametrize("built", [True, False])
def test_a_folder_of_somebody_else_is_refused(home, tmp_path, built):
    if built:
        prepare(tmp_path)
    os.chown(home, 1001, 1001)
    before = [*home.iterdir()]
    with pytest.raises(SaveError, match="user 1001.*built data are for their owner only"):
        prepare(tmp_path)
    assert [*home.iterdir()] == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_file_system_with_one_user_for_all_is_of_this_one(home, monkeypatch):
    os.chown(home, 1001, 1001)
    assert not homes.own(home)
    monkeypatch.setattr(homes, "_here", lambda folder: 1001)
    assert homes.own(home)


def test_ones_own_folder_is_closed_to_others(home, tmp_path, capsys):
    home.chmod(0o775)
    prepare(tmp_path)
    assert home.stat().st_mode & 0o777 == 0o755
    assert "synthetic: others may not write to it any more" in capsys.readouterr().err
