"""What goes to the bucket and what comes from it."""

import json
import threading
import time

import pytest

from m4.errors import ConfigError, SaveError
from m4.remote import mirror, places
from m4.train import workdir
from tests import bucket_server


@pytest.fixture
def here(url):
    return places.folder(url)


def elsewhere(url, monkeypatch, tmp_path):
    """The folder for the same place on another machine."""
    monkeypatch.setenv("M4_MIRRORS", str(tmp_path / "elsewhere"))
    return places.folder(url)


def write(folder, name, text):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def names(address, url):
    start = bucket_server.path_of(url) + "/"
    return [n.removeprefix(start) for n in bucket_server.names(address) if n.startswith(start)]


def put(url, name, content=b"x"):
    import fsspec

    fsspec.filesystem("gs").pipe_file(f"{url.removeprefix('gs://')}/{name}", content)


def test_another_machine_finds_what_was_brought(url, here, address, monkeypatch, tmp_path):
    write(here, "run.json", "{}")
    write(here, "results/test.json", "[1]")
    for own in ("lock", ".new/notes", "cache/program", ".metrics.jsonl.ab.partial", "events.jsonl"):
        write(here, own, "own")
    write(here, "checkpoints/last/2/meta/metadata", "copies are not brought back")
    mirror.push(here)
    assert names(address, url) == ["results/test.json", "run.json"]
    there = elsewhere(url, monkeypatch, tmp_path)
    mirror.pull(there)
    assert (there / "results/test.json").read_text() == "[1]"
    assert not (there / "lock").exists()


def test_changes_go_both_ways_and_nothing_else_does(url, here, monkeypatch, tmp_path):
    write(here, "log", "1")
    write(here, "gone", "1")
    mirror.push(here)
    home = str(here.parent)
    there = elsewhere(url, monkeypatch, tmp_path)
    mirror.pull(there)
    stamp = (there / "log").stat().st_mtime_ns
    mirror.pull(there)
    assert (there / "log").stat().st_mtime_ns == stamp  # as it was: not fetched again
    write(there, "log", "12")
    (there / "gone").unlink()
    mirror.push(there)
    monkeypatch.setenv("M4_MIRRORS", home)
    write(here, "left by a killed run", "1")
    mirror.pull(here)
    assert sorted(p.name for p in here.iterdir() if p.name[0] != ".") == ["log"]
    assert (here / "log").read_text() == "12"


def test_of_states_the_notes_of_complete_ones_come(url, here):
    for step, done in ((2, True), (4, True), (6, False)):
        put(url, f"checkpoints/last/{step}/meta/metadata", b"{}")
        put(url, f"checkpoints/last/{step}/state/d/arrays", b"1" * 1000)
        if done:
            put(url, f"checkpoints/last/{step}/commit_success.txt")
    put(url, "checkpoints/last/8/meta/metadata", b"{}")
    put(url, "checkpoints/last/8/commit_success.txt")
    put(url, "checkpoints/last/8/corrupt.txt")
    write(here, "log", "newer than the bucket's")
    mirror.pull(here, mirror.STATES)
    assert sorted(p.name for p in (here / "checkpoints/last").iterdir()) == ["2", "4"]
    assert [p.name for p in (here / "checkpoints/last/4").rglob("*") if p.is_file()] == ["metadata"]
    assert (here / "log").exists()
    mirror.of(here)._store.rm(f"{url.removeprefix('gs://')}/checkpoints/last/2", recursive=True)
    mirror.pull(here, mirror.STATES)
    assert [p.name for p in (here / "checkpoints/last").iterdir()] == ["4"]


@pytest.mark.parametrize(
    "name", ["../../above", "a/../../../above", "/above", "a\\..\\above", ".ssh/keys", "x" * 300]
)
def test_a_name_in_the_bucket_leads_nowhere_else(url, here, name, tmp_path):
    put(url, "run.json")
    put(url, name)
    mirror.pull(here)
    assert {p.name for p in here.iterdir()} == {"run.json", ".url", ".turn", ".synced.json"}
    assert not [p for p in here.parent.parent.rglob("*") if p.name in ("above", "keys")]


def test_links_in_the_folder_are_not_followed(url, here, address, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (here / "link").symlink_to(tmp_path / "secret")
    (here / "folder").symlink_to(tmp_path)
    mirror.push(here)
    assert names(address, url) == []


def test_a_store_that_breaks_is_told_and_the_next_push_brings_it_all(url, here, address):
    write(here, "results/test.json", "[1]")
    write(here, "run.json", "{}")
    bucket_server.breaks(address, f"{bucket_server.path_of(url)}/run.json", 100, 403)
    with pytest.raises(SaveError, match="not brought to the bucket"):
        mirror.push(here)
    bucket_server.breaks(address, "x", 0, 500)
    mirror.push(here)
    assert names(address, url) == ["results/test.json", "run.json"]


def test_a_bucket_that_is_not_there_is_one_line(address):
    with pytest.raises(ConfigError, match="--workdir=gs://no-such-bucket/a: ") as raised:
        mirror.pull(places.folder("gs://no-such-bucket/a"))
    assert len(raised.value.args) == 1


def test_a_folder_that_a_command_works_in_is_left_alone(url, here):
    put(url, "metrics.jsonl", b"older")
    with workdir.locked(here):
        write(here, "metrics.jsonl", "newer")
        mirror.begin(here)
        assert (here / "metrics.jsonl").read_text() == "newer"
        mirror.push(here)
    mirror.begin(here)
    assert (here / "metrics.jsonl").read_text() == "newer"
    put(url, "metrics.jsonl", b"of another machine")
    mirror.begin(here)
    assert (here / "metrics.jsonl").read_text() == "of another machine"


def test_what_an_older_record_says_is_not_believed_of_a_changed_file(url, here):
    put(url, "run.json", b"[1]")
    mirror.pull(here)
    (here / mirror.SYNCED).write_text(json.dumps({"run.json": ["1", 3, 4]}))
    write(here, "run.json", "[2]")
    mirror.pull(here)
    assert (here / "run.json").read_text() == "[1]"


def test_one_command_of_this_host_at_a_time_looks_or_writes(url, here):
    """A pull that began before another's run would remove what that writes."""
    put(url, "run.json")
    there, seen = mirror.of(here), []
    found = there._there

    def listing():
        other = threading.Thread(target=lambda: (mirror.pull(here), seen.append("other")))
        other.start()
        other.join(0.5)
        seen.append("this")
        return found()

    there._there = listing
    there.pull()
    end = time.monotonic() + 20
    while len(seen) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert seen == ["this", "other"]


@pytest.mark.parametrize("size", [1, 3])
def test_what_changes_while_it_is_read_is_read_again(url, here, size):
    put(url, "log", b"12")
    there, told = mirror.of(here), []
    found = there._there

    def stale():
        told.append(1)
        names = found()
        if len(told) == 1:
            put(url, "log", b"1" * size)
        return names

    there._there = stale
    there.pull()
    assert (here / "log").read_text() == "1" * size and len(told) == 2


def test_a_store_without_the_bucket_takes_nothing_in_silence(url, here, monkeypatch):
    write(here, "run.json", "{}")
    there = mirror.of(here)

    def gone(*args):
        raise FileNotFoundError("https://storage.googleapis.com/upload: bucket does not exist")

    monkeypatch.setattr(there._store, "pipe_file", gone)
    with pytest.raises(SaveError, match="there is no such bucket"):
        there.push()
