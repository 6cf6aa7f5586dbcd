"""Whose code is run: a work directory that names modules outside m4 is not believed."""

import json
import os
import sys

import pytest

from m4 import config as configs
from m4.config import trust
from m4.errors import ConfigError
from m4.main import main
from tests.faults import bad_work

EVIL = "import pathlib; pathlib.Path(__file__).with_suffix('.ran').touch()\n"


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module that leaves a mark where it is imported."""
    (tmp_path / "evilpkg").mkdir()
    (tmp_path / "evilpkg/__init__.py").write_text(EVIL)
    (tmp_path / "evilpkg/mod.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "evilpkg/__init__.ran"
    for name in [n for n in sys.modules if n.partition(".")[0] == "evilpkg"]:
        del sys.modules[name]


BARE = ["--mode=check"], ["--mode=report"]  # read no configuration to run it
CASES = {
    "data": {"data": {"name": "evilpkg.mod", "options": {}}},
    "method": {"method": {"name": "evilpkg.mod:Method"}},
    "gate": {"method": {"name": "fusemoe", "moe": {"gate": "evilpkg.mod:gate"}}},
}


KNOWN = [["--mode=eval"], ["--mode=predict"], [], ["--on=."], ["--mode=check"]]
OTHERS = ("report", "crossval", "interplay", "tim", "scale", "plan")


@pytest.mark.parametrize(
    ("case", "args"),
    [(case, args) for case in CASES for args in KNOWN]
    + [("data", [f"--mode={mode}"]) for mode in OTHERS],
)
def test_a_foreign_work_directory_imports_nothing(tmp_path, evil, capsys, case, args):
    work = tmp_path / "w"
    work.mkdir()
    known = {"data": {"name": "synthetic", "options": {}}, "method": {"name": "m3h"}}
    (work / "config.json").write_text(json.dumps(bad_work.CONFIG | known | CASES[case]))
    code = main([f"--workdir={work}", *args])
    said = capsys.readouterr().err
    assert not evil.exists()
    if args not in BARE:
        assert code == 2 and "is code outside m4" in said and "--trust_code" in said


def test_what_the_user_gave_once_is_believed_and_a_copied_mark_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "mine"))
    config, other = ({"data": {"name": name}} for name in ("lab.data", "lab.other"))
    trust.mark(tmp_path, config)
    trust.require(tmp_path, config, {})
    with pytest.raises(ConfigError, match="lab.other"):
        trust.require(tmp_path, other, {})
    trust.require(tmp_path, other, {"data.name": "synthetic"})
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "yours"))  # of another user
    with pytest.raises(ConfigError, match="code outside m4"):
        trust.require(tmp_path, config, {})
    trust.mark(tmp_path / "nowhere", {"data": {"name": "synthetic"}})  # nothing to remember
    assert (tmp_path / "mine/m4/own.key").stat().st_mode & 0o777 == 0o600


def test_a_shared_cache_holds_no_secret_and_an_older_one_is_still_believed(tmp_path, monkeypatch):
    config, cache = {"data": {"name": "lab.data"}}, tmp_path / "cache"
    monkeypatch.setenv("M4_CACHE", str(cache))
    monkeypatch.setenv("XDG_STATE_HOME", str(cache))  # where older versions put it
    trust.mark(tmp_path, config)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "mine"))
    trust.require(tmp_path, config, {})
    (cache / "m4/own.key").chmod(0o640)  # of all who share the cache
    with pytest.raises(ConfigError, match="code outside m4"):
        trust.require(tmp_path, config, {})
    trust.mark(tmp_path, config)
    trust.require(tmp_path, config, {})
    assert (tmp_path / "mine/m4/own.key").stat().st_mode & 0o777 == 0o600


def test_without_a_home_the_cache_keeps_it(tmp_path, monkeypatch):
    config = {"data": {"name": "lab.data"}}
    monkeypatch.setenv("M4_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    trust.mark(tmp_path, config)
    trust.require(tmp_path, config, {})
    assert (tmp_path / "cache/m4/own.key").exists()


@pytest.mark.parametrize("links", [True, False])
def test_a_secret_that_was_not_written_to_its_end_is_made_anew(tmp_path, monkeypatch, links):
    config, key = {"data": {"name": "lab.data"}}, tmp_path / "mine/m4/own.key"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "mine"))
    monkeypatch.setenv("M4_CACHE", str(tmp_path / "cache"))
    if not links:
        monkeypatch.setattr(trust.os, "link", lambda *names: os.stat(tmp_path / "no/where"))
    key.parent.mkdir(parents=True)
    key.touch(0o600)  # killed, or a full disk
    trust.mark(tmp_path, config)
    trust.require(tmp_path, config, {})
    made = key.read_bytes()
    assert len(made) == trust.SIZE and [*key.parent.iterdir()] == [key]
    trust.mark(tmp_path, config)
    assert key.read_bytes() == made and not (tmp_path / "cache").exists()
    key.unlink()
    trust.mark(tmp_path, config)
    trust.require(tmp_path, config, {})
    assert key.stat().st_mode & 0o777 == 0o600 and [*key.parent.iterdir()] == [key]


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_in_the_place_of_a_mark_is_not_believed(tmp_path, monkeypatch, kind):
    config, place = {"data": {"name": "lab.data"}}, tmp_path / "w/own"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "mine"))
    place.parent.mkdir()
    trust.mark(tmp_path, config)
    before = (tmp_path / "own").read_bytes()
    if kind == "link":
        place.symlink_to(tmp_path / "own")
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir()
    with pytest.raises(ConfigError, match="code outside m4"):
        trust.require(place.parent, config, {})
    if kind == "folder":
        with pytest.raises(ConfigError, match="own: is a folder"):
            trust.mark(place.parent, config)
        return
    trust.mark(place.parent, config)
    trust.require(place.parent, config, {})
    assert (tmp_path / "own").read_bytes() == before and not place.is_symlink()


def test_comparing_with_a_foreign_configuration_imports_nothing(tmp_path, evil):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(bad_work.CONFIG | CASES["data"]))
    assert configs.stored(path)["data"]["name"] == "evilpkg.mod"
    assert not evil.exists()


def test_on_the_users_word_it_does(tmp_path, evil):
    (tmp_path / "w").mkdir()
    (tmp_path / "w/config.json").write_text(json.dumps(bad_work.CONFIG | CASES["data"]))
    assert main([f"--workdir={tmp_path / 'w'}", "--mode=eval", "--trust_code"]) == 2
    assert evil.exists()
