"""Names of places in a bucket, and the folders that stand for them."""

import os

import pytest

from m4 import config as configs
from m4.errors import ConfigError, Preempted, SaveError
from m4.remote import places, states


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("M4_MIRRORS", str(tmp_path / "mirrors"))
    return tmp_path / "mirrors"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("gs://", "a bucket cannot be called ''"),
        ("gs://ab/x", "a bucket cannot be called 'ab'"),
        ("gs://Big/x", "cannot be called"),
        ("gs://a..b/x", "cannot be called"),
        ("gs://runs", "name a folder in the bucket"),
        ("gs://runs/", "name a folder in the bucket"),
        ("gs://runs/../x", "the folder '..'"),
        ("gs://runs/a//b", "the folder ''"),
        ("gs://runs/a[1]", "has a name"),
        ("gs://runs/a*", "has a name"),
        ("gs://runs/a b\x1b", "has a name"),
        ("gs://runs/ä", "has a name"),
    ],
)
def test_a_name_that_cannot_be_kept_is_refused_in_one_line(url, words):
    with pytest.raises(ConfigError, match="--workdir=gs://") as raised:
        configs.parse([f"--workdir={url}", "--config=x.py"])
    assert len(raised.value.args) == 1
    assert words in raised.value.args[0]


@pytest.mark.parametrize("mode", ["sweep", "crossval", "ensemble", "refit", "tim", "interplay"])
def test_a_mode_that_cannot_work_in_a_bucket_says_so(mode):
    with pytest.raises(ConfigError, match="needs a local work directory"):
        configs.parse(["--workdir=gs://runs/a", "--config=x.py", f"--mode={mode}"])


@pytest.mark.parametrize("url", ["s3://runs/a", "file:///tmp/a", "GS://runs/a", "gs:/runs/a"])
def test_other_schemes_stay_refused(url):
    with pytest.raises(ConfigError, match="must be a local path"):
        configs.parse([f"--workdir={url}", "--config=x.py"])


def test_a_folder_stands_for_one_place_and_one_process(home):
    one = places.folder("gs://runs/a")
    assert one.parent == home
    assert one == places.folder("gs://runs/a/") != places.folder("gs://runs/b")
    assert one == places.folder("gs://runs/a", os.environ | {"M4_PROCESS_ID": "0"})
    assert one != places.folder("gs://runs/a", os.environ | {"M4_PROCESS_ID": "1"})
    assert places.url_of(one) == places.shown(one) == "gs://runs/a"
    assert str(states.of(one) / "last") == "gs://runs/a/checkpoints/last"
    assert one.stat().st_mode & 0o777 == home.stat().st_mode & 0o777 == 0o700


def test_a_local_folder_stands_for_itself_whatever_it_holds(tmp_path, home):
    (tmp_path / places.URL).write_text("gs://somebody/else")
    assert places.url_of(tmp_path) is None
    assert places.url_of(None) is None
    assert states.of(tmp_path) == tmp_path / "checkpoints"


def test_a_folder_that_lost_its_name_is_no_local_one(home):
    one = places.folder("gs://runs/a")
    (one / places.URL).unlink()
    with pytest.raises(SaveError, match="was removed while a command had it"):
        places.url_of(one)


def test_an_outage_is_no_bug_of_ours(home):
    one = places.folder("gs://runs/a")
    with pytest.raises(Preempted, match="gs://runs/a: cannot be reached"), places.told(one):
        raise ConnectionResetError
    with pytest.raises(ConnectionResetError), places.told(home.parent):
        raise ConnectionResetError


def test_copies_are_not_kept_where_others_may_write(home):
    home.mkdir()
    home.chmod(0o777)
    with pytest.raises(ConfigError, match="others may write"):
        places.folder("gs://runs/a")


def test_errors_name_the_place(home):
    one = places.folder("gs://runs/a")
    with pytest.raises(ConfigError) as raised, places.told(one):
        raise ConfigError(f"--workdir={one}: is full", "more")
    assert raised.value.args == ("--workdir=gs://runs/a: is full", "more")
