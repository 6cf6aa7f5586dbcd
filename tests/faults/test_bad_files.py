"""Damaged raw files, work directories, built records, checkpoints and results of the catalogue."""

import gzip

import pytest

from m4.data.data_sets import find
from m4.data.sets import physionet2012
from tests.faults import bad_files, bad_layouts, bad_meds, bad_work, catalogue

FILES = [*bad_files.cases()]


@pytest.fixture(scope="module", autouse=True)
def imported():
    """What is imported on first use isn't part of a case's time."""
    import m4.modes.check
    import m4.modes.train  # noqa: F401


@pytest.mark.parametrize("first", range(6))
def test_each_damaged_file_ends_as_it_should(first):
    assert len(FILES) == len({case.name for case in FILES}) >= 180
    lost = catalogue.count(FILES[first::6])[1]
    assert lost == {}


def test_every_ninth_damaged_file_of_the_invented_layouts():
    cases = [*bad_layouts.cases()]
    assert len(cases) == len({case.name for case in cases}) >= 190
    assert catalogue.count(cases[::9])[1] == {}


def test_every_third_damaged_meds_file_and_definition():
    cases = [*bad_meds.cases()]
    assert len(cases) == len({case.name for case in cases}) >= 100
    assert catalogue.count(cases[::3])[1] == {}


def test_each_unusable_place_ends_as_it_should(tmp_path):
    cases = [*bad_work.cases(tmp_path)]
    assert len(cases) == len({case.name for case in cases}) >= 60
    assert catalogue.count(cases)[1] == {}


@pytest.mark.parametrize("source", bad_files.SOURCES[:4], ids=lambda s: s.name)
def test_the_files_are_right_before_they_are_damaged(source, tmp_path):
    module = find(source.name)
    source.write(tmp_path)
    assert module.missing_files(tmp_path, **source.options) == []
    cohort = module.cohort(tmp_path, seed=0, **source.options)
    assert all(len([*start()]) > 0 for start in cohort.splits.values())


def test_an_archive_bomb_is_not_unpacked(tmp_path):
    bad_files.SOURCES[0].write(tmp_path)
    folder = tmp_path / "physionet2012"
    bad_files.ARCHIVES["a bomb"](folder / "Outcomes-a.txt", 0)
    assert (folder / "set-a.tar.gz").stat().st_size < 500_000  # 50 MB inside
    raw = gzip.decompress((folder / "set-a.tar.gz").read_bytes())
    assert len(raw) > 50_000_000
    with pytest.raises(Exception, match="a link or a file of 50") as error:
        list(physionet2012.cohort(tmp_path, seed=0).splits["train"]())
    assert error.type.__name__ == "DataError"
