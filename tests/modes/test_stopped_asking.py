"""Patients' records that a prediction needs are gone however it ends, at the latest at the next."""

import signal

import pytest

from m4 import owners
from m4.data import apply, temporary
from m4.run import workspace
from m4.train import early
from tests.data.test_temporary import DEAD, left
from tests.modes.hospital import ask, everyone, write


class Stopped(BaseException):
    """Where the process would end."""


def told_to_stop(number=signal.SIGTERM):
    """What a signal does, but for the end of the process."""
    signal.getsignal(number).part()
    raise Stopped


def test_on_that_is_told_to_stop_removes_its_records(place, monkeypatch):
    def read(target, folder, *args, **kwargs):
        (target / "records").mkdir()
        (target / "records/r").write_text("of patients")
        assert [*place.glob("w/.new/*/records/r")]
        try:
            told_to_stop()
        finally:
            seen.append((place / "w/.new").exists())

    seen = []
    write(place, "some", everyone())
    monkeypatch.setattr(apply, "write", read)
    with pytest.raises(Stopped):
        ask(place, "some")
    assert seen == [False]


def test_so_does_whoever_borrows_a_folder(tmp_path):
    with pytest.raises(Stopped), early.leaving(), workspace.lent(tmp_path) as lent:
        assert lent.parent == tmp_path and lent.stat().st_mode & 0o777 == 0o700
        (lent / "f/records").mkdir(parents=True)
        (lent / "f/records/r").write_text("of patients")
        signal.getsignal(signal.SIGTERM).part()
        assert [*tmp_path.iterdir()] == []
        raise Stopped


def test_what_killed_ones_left_goes_when_the_work_directory_is_used(tmp_path):
    (tmp_path / ".new/f").mkdir(parents=True)
    dead = left(tmp_path, DEAD, prefix=temporary.BESIDE)
    living = left(tmp_path, owners.own(), prefix=temporary.BESIDE)
    with workspace.owned(tmp_path):
        assert not (tmp_path / ".new").exists() and not dead.exists() and living.exists()
