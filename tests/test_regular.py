"""Files that others wrote are read only if they are files, and not too large."""

import errno
import os

import pytest

from m4 import owners, regular, seal


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large", "gone"])
def test_what_is_no_such_file_is_not_waited_for(tmp_path, kind):
    path = tmp_path / "file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        path.write_bytes(b"12345")
    expected = {"large": errno.EFBIG, "gone": errno.ENOENT}.get(kind, errno.EINVAL)
    with pytest.raises(OSError) as caught:
        regular.read(path, 4)
    assert caught.value.errno in (expected, errno.EISDIR if kind == "folder" else expected)


def test_a_file_is_read_through_a_link(tmp_path):
    (tmp_path / "file").write_bytes(b"1234")
    (tmp_path / "link").symlink_to("file")
    assert regular.read(tmp_path / "link", 4) == b"1234"


def test_a_log_that_is_a_pipe_is_said_and_no_log_of_a_run(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    lines, problem = seal.sound_lines(tmp_path / "metrics.jsonl", 3)
    assert lines == [] and problem == "cannot be read (is no regular file)"


def test_a_process_is_known_by_more_than_its_number():
    own = owners.own()
    assert owners.lives(own) is True
    assert owners.lives(own | {"born": "1"}) is False
    for other in ({"boot": "another"}, {"space": "pid:[1]"}, {"pid": None}, {"boot": None}):
        assert owners.lives(own | other) is None
    assert owners.same_kernel(own | {"space": "pid:[1]", "host": "other"})
    assert not owners.same_kernel(own | {"boot": "another"})


def test_a_process_that_the_system_hides_may_live(monkeypatch):
    def hidden(pid, number):
        raise PermissionError

    gone = owners.own() | {"pid": 2**22 + 1}
    assert owners.lives(gone) is False
    monkeypatch.setattr(os, "kill", hidden)
    assert owners.lives(gone) is None
