"""The search for canaries sees them wherever they could hide; the whole scenario runs by itself."""

import gzip
import random
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.faults import canaries

SECRET = b"Zq7vN123456789"
OWNER = ("name", 7)
WHOSE = {SECRET.lower(): OWNER, b"12345678": ("value", 7), b"2100-02-03": ("date", 7)}


def hidden(folder):
    (folder / "plain.log").write_bytes(b"\0\xff" + SECRET + b"\xff")
    (folder / "small.json").write_bytes(SECRET.lower())
    (folder / "p.gz").write_bytes(b"head" + gzip.compress(SECRET * 3))
    packed = pa.Codec("zstd").compress(SECRET * 3, asbytes=True)
    (folder / "chunks").write_bytes(b"head" + packed + b"tail")
    with zipfile.ZipFile(folder / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", SECRET * 3)
    table = pa.table({"subject": [SECRET.decode()]})
    pq.write_table(table, folder / "x.parquet", compression="zstd")
    (folder / SECRET.decode()).touch()


def test_the_search_sees_through_names_and_compression(tmp_path):
    hidden(tmp_path)
    found = canaries.find(tmp_path.iterdir(), WHOSE)
    assert found == {OWNER: {*tmp_path.iterdir()}} and len(found[OWNER]) == 7


@pytest.mark.parametrize("text", ["x 12345678.0", "[12345678]", "2100-02-03T10:00", "'2100-02-03'"])
def test_numbers_and_dates_are_seen(tmp_path, text):
    (tmp_path / "x").write_text(text)
    assert len(canaries.find([tmp_path / "x"], WHOSE)) == 1


@pytest.mark.parametrize("text", ["0.12345678", "9123456789", "1234567", "2100-02-04"])
def test_parts_of_other_numbers_are_not(tmp_path, text):
    (tmp_path / "x").write_text(text)
    assert not canaries.find([tmp_path / "x"], WHOSE)


def test_a_thousand_are_planted(tmp_path):
    whose = canaries.plant(tmp_path / "raw", random.Random(0))
    planted = canaries.find((tmp_path / "raw").iterdir(), whose)
    assert planted.keys() == {*whose.values()} and len(planted) == 1000
