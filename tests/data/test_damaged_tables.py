"""Tables that are damaged, no files, or more than they look like: one line, bounded memory."""

import gzip
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m4.data import __main__ as data_main
from m4.data import csv_files
from m4.data.sets.declared import arrow_files
from m4.errors import DataError

SECRET = "JOHN DOE 1953"
ROWS = (
    "subject_id,value\n" + "".join(f"{i},{i * 7919 % 100003}\n" for i in range(20_000))
).encode()
PACKED = gzip.compress(ROWS)
DAMAGE = {
    "deflate": PACKED[:40] + b"\xff" * 20 + PACKED[60:],
    "cut short": PACKED[:-5000],
    "cut in its head": PACKED[:5],
    "checksum": PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:],
    "not packed": ROWS,
}
READERS = {
    "header": csv_files.header,
    "stream": lambda path: [*csv_files.stream(path, {"subject_id": "int"})],
    "rows": lambda path: [*csv_files.rows(path, ("subject_id",))],
    "tables": lambda path: [*arrow_files.tables(path)],
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_gz_is_one_line(tmp_path, damage, reader):
    path = tmp_path / "events.csv.gz"
    path.write_bytes(DAMAGE[damage])
    if reader == "header" and damage in ("cut short", "checksum"):  # its first line is whole
        assert csv_files.header(path) == ["subject_id", "value"]
        return
    with pytest.raises(DataError) as caught:
        READERS[reader](path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_draft_of_a_damaged_gz_names_the_file(tmp_path, capsys):
    (tmp_path / "events.csv.gz").write_bytes(DAMAGE["deflate"])
    assert data_main.main(["draft", str(tmp_path)]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "events.csv.gz: cut short or corrupt" in line


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["events.csv", "events.csv.gz", "events.parquet"])
def test_a_pipe_is_not_waited_for(tmp_path, name, reader):
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="is no regular file"):
        READERS[reader](tmp_path / name)


@pytest.mark.parametrize("reader", READERS)
def test_too_many_columns_name_the_limit(tmp_path, monkeypatch, reader):
    monkeypatch.setattr(csv_files, "MAX_COLUMNS", 3)
    path = tmp_path / "wide.csv"
    path.write_text("subject_id,b,c\n1,2,3\n")
    assert READERS[reader](path)
    path.write_text("subject_id,b,c,d\n1,2,3,4\n")
    with pytest.raises(DataError, match=r"wide\.csv: has 4 columns, the limit is 3"):
        READERS[reader](path)


def test_too_many_columns_of_parquet_name_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_files, "MAX_COLUMNS", 3)
    path = tmp_path / "wide.parquet"
    pq.write_table(pa.table({name: [1] for name in "abc"}), path)
    assert [len(table) for table in arrow_files.tables(path)] == [1]
    pq.write_table(pa.table({name: [1] for name in "abcd"}), path)
    with pytest.raises(DataError, match=r"wide\.parquet: has 4 columns, the limit is 3"):
        [*arrow_files.tables(path)]


def test_an_empty_file_has_no_header(tmp_path):
    (tmp_path / "x.csv").write_text("")
    with pytest.raises(DataError, match=r"x\.csv: has no first line"):
        csv_files.header(tmp_path / "x.csv")


def test_a_line_without_end_of_a_small_file_names_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_files, "MAX_LINE", 100)
    (tmp_path / "x.csv").write_text("a,b\n" + "1," * 100)
    with pytest.raises(DataError, match="a line is longer than 100 characters"):
        [*csv_files.rows(tmp_path / "x.csv", ("a",))]


def table(folder, array):
    pq.write_table(pa.table({"t": array}), folder / "t.parquet")
    (found,) = arrow_files.tables(folder / "t.parquet")
    return found


def take(*_):
    """Any identifier will do."""


DAYS = pa.array([0, None, 2**31 - 1], pa.int32()).cast(pa.date32())
BYTES = [f"{SECRET}\xff".encode("latin-1")]
YEAR_20000 = pa.array([569_000_000_000_000], pa.timestamp("ms"))
COLUMNS = {
    "days": (DAYS, lambda t: t.times("t", up=True), "row 3: 't' is no time that can be"),
    "binary": (pa.array(BYTES, pa.binary()), lambda t: t.strings("t"), "holds binary that"),
    "fixed": (pa.array(BYTES, pa.binary(14)), lambda t: t.strings("t"), "holds fixed_size_binary"),
    "far times": (YEAR_20000, lambda t: t.identifiers("t", take), "'t' holds timestamp"),
    "far days": (DAYS, lambda t: t.identifiers("t", take), "'t' holds date32"),
    "inside": (
        pa.array([YEAR_20000.to_numpy().tolist()], pa.list_(pa.timestamp("ms"))),
        lambda t: t.digests(["t"], np.array([0])),
        "'t' holds list",
    ),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_what_arrow_cannot_make_of_a_column_is_one_line(tmp_path, kind):
    array, read, said = COLUMNS[kind]
    with pytest.raises(DataError, match=said) as caught:
        read(table(tmp_path, array))
    assert f"{tmp_path / 't.parquet'}" in str(caught.value) and SECRET not in str(caught.value)


def test_days_are_times_of_their_midnight(tmp_path):
    found, zone = table(tmp_path, DAYS[:2]).times("t", up=True)
    assert found.tolist() == [0, arrow_files.NEVER] and zone == ""
    found, zone = table(tmp_path, pa.array([-1, 20_000], pa.int32()).cast(pa.date32())).times(
        "t", up=False
    )
    assert found.tolist() == [-86_400_000_000, 20_000 * 86_400_000_000]


def test_a_draft_of_a_column_that_is_no_text_names_it(tmp_path, capsys):
    pq.write_table(
        pa.table({"id": [1], "word": pa.array(BYTES, pa.binary())}), tmp_path / "t.parquet"
    )
    assert data_main.main(["draft", str(tmp_path)]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "t.parquet: column 'word' holds binary" in line and "JOHN" not in line


def repeated(number, text):
    """A text that is kept once, in so many rows."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(number, np.int32)), pa.array([text]))


TEXTS = {
    "text": lambda n: repeated(n, "x" * 1000),
    "bytes": lambda n: repeated(n, b"x" * 1000),
    "fixed": lambda n: pa.array([b"x" * 1000] * n, pa.binary(1000)),
    "plain": lambda n: pa.array([str(i) * 200 for i in range(n)]),
    "struct": lambda n: pa.StructArray.from_arrays([repeated(n, "x" * 1000)], ["a"]),
    "list": lambda n: pa.ListArray.from_arrays(
        pa.array(np.arange(n + 1) * 2, pa.int32()), repeated(2 * n, "x" * 500)
    ),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_batches_are_of_bounded_size_however_small_the_file(tmp_path, monkeypatch, kind):
    path = tmp_path / "t.parquet"
    want = TEXTS[kind](2000)
    numbers = pa.array(np.arange(2000))
    pq.write_table(pa.table({"t": want, "n": numbers}), path, store_schema=False)
    assert kind in ("fixed", "plain") or path.stat().st_size < 20_000
    monkeypatch.setattr(arrow_files, "BYTES", 1 << 16)
    parts = [*arrow_files.tables(path)]
    assert max(map(len, parts)) <= 70 and sum(map(len, parts)) == 2000
    assert np.concatenate([part.numbers("n") for part in parts]).tolist() == [*range(2000)]
    assert [part.first for part in parts] == [0, *np.cumsum([*map(len, parts)])[:-1]]
    if kind in ("text", "bytes", "fixed", "plain"):
        found = [cell for part in parts for cell in part.raw("t").to_pylist()]
        assert found == want.to_pylist()
        assert max(part.raw("t").nbytes for part in parts) < 1.3 * (1 << 16)


def test_row_groups_of_every_length_are_read_in_order(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    texts = pa.array([None if i % 7 == 0 else f"{i % 13}" * (1 + i % 50) for i in range(1000)])
    schema = pa.schema({"t": pa.string(), "n": pa.int64()})
    with pq.ParquetWriter(path, schema) as writer:
        for start, stop in ((0, 1), (1, 400), (400, 401), (401, 1000)):
            own = texts.slice(start, stop - start)
            writer.write_table(pa.table([own, pa.array(range(start, stop))], schema=schema))
    monkeypatch.setattr(arrow_files, "BYTES", 1 << 12)
    monkeypatch.setattr(arrow_files, "CODED", 1 << 11)  # some groups this way, some that
    parts = [*arrow_files.tables(path)]
    found = [cell for part in parts for cell in part.strings("t").to_pylist()]
    assert found == texts.to_pylist() and len(parts) > 10
    assert np.concatenate([part.numbers("n") for part in parts]).tolist() == [*range(1000)]


def test_a_row_of_more_than_a_batch_is_read(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"t": ["a" * 5000, "b", "c" * 5000]}), path)
    monkeypatch.setattr(arrow_files, "BYTES", 1000)
    found = [cell for part in arrow_files.tables(path) for cell in part.strings("t").to_pylist()]
    assert found == ["a" * 5000, "b", "c" * 5000]
