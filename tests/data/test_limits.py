"""Wide, long and old: what is large builds in bounded time, what is hostile ends in one line."""

import csv
import datetime
import gzip
import re
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from m4.data import build, csv_files, wfdb
from m4.data.sets import adni, meds, mosi, physionet2012, tables
from m4.data.sets.declared import arrow_files, definition, match, parse
from m4.data.sets.imaging import pixels
from m4.data.sets.mimiciv import studies
from m4.data.sets.mimiciv.embeddings import folder
from m4.data.store import Store
from m4.errors import ConfigError, DataError
from m4.nn.pretrained import safetensors
from tests.data import meds_folder as mf

WIDE = """
folder = "."
[[rows]]
files = "wide.csv"
subject = "id"
[labels]
files = "labels.csv"
subject = "id"
[tasks.death]
kind = "binary"
column = "y"
[modalities.labs]
kind = "table"
features = {features}
"""


def wide(folder, columns, used):
    """60 subjects of so many columns, of which some are features."""
    rng = np.random.default_rng(0)
    value_NC = rng.normal(size=(60, columns)).round(2).astype(str)
    names = [f"c{i}" for i in range(columns)]
    lines = [",".join(["id", *names])]
    lines += [",".join([str(n), *row]) for n, row in enumerate(value_NC)]
    (folder / "wide.csv").write_text("\n".join(lines) + "\n")
    labels = [f"{n},{n % 2}" for n in range(60)]
    (folder / "labels.csv").write_text("\n".join(["id,y", *labels]) + "\n")
    listed = "[" + ",".join(f'"{name}"' for name in names[:used]) + "]"
    (folder / "spec.toml").write_text(WIDE.replace("{features}", listed))
    return {"file": str(folder / "spec.toml")}, value_NC


@pytest.mark.parametrize(
    ("columns", "used"),
    [
        (3_000, 1_000),
        pytest.param(20_000, 20_000, marks=pytest.mark.slow),
        pytest.param(100_000, 100_000, marks=pytest.mark.slow),
    ],
)
def test_wide_tables_are_built(tmp_path, columns, used):
    options, value_NC = wide(tmp_path, columns, used)
    start = time.process_time()
    cohort = tables.cohort(tmp_path, seed=0, **options)
    found = {
        e["patient"]: e["inputs"]["labs"]["values"] for s in cohort.splits.values() for e in s()
    }
    assert time.process_time() - start < 5 + columns / 500
    assert len(found) == 60
    for n, values in found.items():
        np.testing.assert_allclose(values, value_NC[n, :used].astype(float), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [20_000])
def test_wide_tables_are_built_to_records(tmp_path, columns):
    options, _ = wide(tmp_path, columns, columns)
    folder = build.prepare("tables", tmp_path, tmp_path / "data", options=options)
    assert len(Store(folder, "train")) > 20


def test_a_note_of_a_million_tokens(tmp_path):
    table = mf.cohort_tables()
    note = "word " * 1_000_000 + "end"
    table["data/more.parquet"] = mf.events([(1, 1.0, "NOTE//long", None, note)])
    options = {"file": mf.write(tmp_path, table)}
    start = time.process_time()
    cohort = meds.cohort(tmp_path, seed=0, **options)
    found = [e for s in cohort.splits.values() for e in s() if e["patient"] == 1]
    assert len(found[0]["inputs"]["notes"]["values"]) >= 1_000_001
    assert time.process_time() - start < 20


def columns_of(path, **options):
    return [*arrow_files.tables(path, **options)]


def test_a_long_cell_is_read_and_a_longer_one_names_the_limit(tmp_path, monkeypatch):
    path = tmp_path / "x.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], [1, "word " * 1_000_000], [2, "b"]])
    (found,) = columns_of(path)
    assert len(found.strings("text")[0].as_py()) == 5_000_000
    monkeypatch.setattr(arrow_files, "BLOCK", 1 << 16)
    with pytest.raises(DataError, match="a row is longer than 65,536 bytes, the limit"):
        columns_of(path)


def test_a_first_line_without_end_names_the_limit(tmp_path, monkeypatch):
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress(b"a" * (1 << 23)))
    monkeypatch.setattr(arrow_files, "BLOCK", 1 << 20)
    with pytest.raises(DataError, match="first line is longer than 1,048,576 bytes"):
        columns_of(path)
    with pytest.raises(DataError, match="first line is longer than"):
        csv_files.header(path)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_tar_header_of_a_gigabyte_is_not_read(tmp_path, kind):
    folder = tmp_path / "physionet2012"
    folder.mkdir()
    member = tarfile.TarInfo("long")
    member.type, member.size = kind, 1 << 30
    with gzip.open(folder / "set-b.tar.gz", "wb") as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.write(b"x" * (1 << 22))
    start = time.process_time()
    groups = {name: variables for name, (_, variables) in physionet2012.GROUPS.items()}
    with pytest.raises(DataError, match="the archive is damaged after record 0"):
        physionet2012.read_set(folder, "b", groups=groups, ranges=physionet2012.RANGES)
    assert time.process_time() - start < 2


PATTERNS = ("LAB//*", "re:(?i)lab//[0-9]+", "a?c", "re:x|y", "re:[^/]*", "A.C", "re:\\d+", "*", "")


def matcher(patterns):
    text = re.sub(r"codes = .DRUG//\*.\nmin", f"codes = {[*patterns]!r}\nmin", mf.DEFINITION)
    return match.Matcher(parse.parse(definition.tomllib.loads(text), "x", meds=True))


@pytest.mark.parametrize("pattern", PATTERNS[:-1])
def test_patterns_are_those_of_python(pattern):
    codes = ["LAB//1", "lab//12", "abc", "a\nc", "x", "xy", "7", "A.C", "ABC", "", "LAB//", "é/"]
    python = pattern if pattern.startswith("re:") else "re:" + re.escape(pattern).replace(
        r"\*", ".*").replace(r"\?", ".")  # fmt: skip
    found = matcher([pattern])
    slot = found.slots[2].start
    for code in codes:
        hit = any(entry.slot == slot for entry in found(code))
        assert hit == bool(re.fullmatch(python[3:], code, re.DOTALL)), (pattern, code)


@pytest.mark.parametrize(
    "pattern", ["re:(a+)+$", "re:(a|aa)+$", "re:(.*a){20}", "*a*a*a*a*a*a*a*b"]
)
def test_patterns_of_data_take_no_more_than_linear_time(pattern):
    start = time.process_time()
    matcher([pattern])("a" * 5000 + "!")
    assert time.process_time() - start < 2


@pytest.mark.parametrize("pattern", ["re:(?=a)b", "re:(?<!a)b", r"re:(a)\1", "re:(?P<x>a)(?P=x)"])
def test_patterns_that_no_linear_engine_has_are_refused(pattern):
    with pytest.raises(ConfigError, match="looks around and references back are not supported"):
        matcher([pattern])


def test_codes_that_may_follow():
    found = matcher(["LAB//*", "re:x"])
    for code, may in (("LAB", True), ("LAB//1", True), ("DRU", True), ("LAC", True)):
        assert found.may_follow(code) == may  # a regular expression may begin with anything
    found = matcher(["LAB//*"])
    assert found.may_follow("LA") and found.may_follow("LAB//x") and not found.may_follow("LAC")


def test_dates_in_the_years_1_and_9999(tmp_path):
    first, last = datetime.datetime(1, 1, 1, 2), datetime.datetime(9999, 12, 31, 23)
    table = mf.cohort_tables()
    rows = [(1, first, "VITAL//HR", 80.0), (1, last, "VITAL//HR", 81.0)]
    rows += [(2, datetime.datetime(9999, 12, 30), "MEDS_BIRTH")]
    table["data/more.parquet"] = mf.events(rows)
    asked = mf.labels([(1, 0, True)]).to_pylist()
    asked[0]["prediction_time"] = last
    asked.append({**asked[0], "prediction_time": first + datetime.timedelta(hours=1)})
    table["labels/death/1.parquet"] = mf.pa.Table.from_pylist(
        asked, schema=table["labels/death/0.parquet"].schema
    )
    options = {"file": mf.write(tmp_path, table)}
    folder = build.prepare("meds", tmp_path, tmp_path / "data", options=options)
    for name in ("train", "val", "test"):
        store = Store(folder, name)
        rows = store.read(range(len(store)))
        assert all(np.isfinite(v).all() for v in rows.values() if v.dtype.kind == "f")


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63), 2**63])
def test_subjects_at_the_edges(tmp_path, number):
    (tmp_path / "events.csv").write_text(f"id,code,value\n{number},HR,1\n5,HR,2\n")
    (tmp_path / "labels.csv").write_text(f"id,y\n{number},1\n5,0\n")
    text = WIDE.replace("{features}", '["HR"]').replace(
        '[[rows]]\nfiles = "wide.csv"',
        '[[events]]\nfiles = "events.csv"\ncode = "code"\nvalue = "value"',
    )
    (tmp_path / "spec.toml").write_text(text)
    cohort = tables.cohort(tmp_path, seed=0, file=str(tmp_path / "spec.toml"))
    if number == 2**63:
        with pytest.raises(DataError, match="is beyond 2"):
            cohort.joining()
    else:
        found = {e["patient"] for s in cohort.splits.values() for e in s()}
        assert found == {number, 5}


@pytest.mark.parametrize("side", [9_000, 14_000])  # below and beyond PIL's own limit
def test_an_image_of_too_many_pixels_names_both(tmp_path, side):
    path, said = tmp_path / "x.png", f"{side * side:,} pixels, the limit is 67,108,864"
    Image.new("1", (side, side)).save(path)
    with pytest.raises(DataError, match=said):
        pixels.fundus(path, 8, "stretch")
    with pytest.raises(DataError, match=f"t.csv line 2: its image has {said}"):
        studies.grey_square(studies.Image("x", path, "t.csv line 2"))


def test_waveforms_and_their_headers_that_are_too_long(tmp_path):
    header = tmp_path / "70.hea"
    wfdb.write(header, np.zeros((1, 4)), rate=500, leads=("II",))
    with open(tmp_path / "70.dat", "ab") as file:
        file.truncate(1 << 27)
    with pytest.raises(DataError, match=r"a \.dat file of 134,217,728 bytes, the limit is 67,108"):
        wfdb.read(header)
    header.write_text("#" * 100_000)
    with pytest.raises(DataError, match=r"a \.hea file of 100,000 bytes, the limit is 65,536"):
        wfdb.read(header)


def test_archives_of_arrays_that_unpack_to_too_much(tmp_path, monkeypatch):
    path = mosi.invent(tmp_path, patients=12, seed=0) / "train.npz"
    monkeypatch.setattr(mosi, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match="train.npz: 5 arrays of .* bytes, the limits are .* 1,000"):
        mosi._load(path, 50)


def test_a_safetensors_header_that_is_too_long(tmp_path, monkeypatch):
    safetensors.write({"x": np.zeros(3)}, tmp_path / "x")
    monkeypatch.setattr(safetensors, "MAX_HEADER", 8)
    with pytest.raises(ValueError, match="x: a header of .* bytes, the limit is 8"):
        safetensors.read(tmp_path / "x")


@pytest.mark.parametrize(
    "pattern", [r"re:a{2000}", r"re:(?>a)", "re:a++", r"re:\Z", "re:(", "re:[z-a]"]
)
def test_what_re2_lacks_is_refused_before_anything_is_read(pattern):
    with pytest.raises(ConfigError, match="no regular expression of RE2") as caught:
        matcher([pattern])
    assert len(caught.value.lines()) == 1


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_name_of_a_column_may_hold_a_line_break(tmp_path, ending):
    """As Excel writes one; names, rows and record batches agree."""
    content = b'\xef\xbb\xbfid,"heart\r\nrate",x\r\n1,80,2\r\n'
    path = tmp_path / f"x.csv{ending}"
    path.write_bytes(gzip.compress(content) if ending else content)
    assert csv_files.header(path) == ["id", "heart\r\nrate", "x"]
    (batch,) = csv_files.stream(path, {"id": "id", "heart\r\nrate": "float"})
    assert batch.to_pylist() == [{"id": "1", "heart\r\nrate": 80.0}]
    if not ending:
        ((_, row),) = csv_files.rows(path, ["heart\r\nrate"])
        assert row["x"] == "2"


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_column_that_a_header_names_twice_is_refused(tmp_path, ending):
    """Of two, `rows` took the last and `stream` the first."""
    content = b"id,value,value,x,x\n1,5,6,,\n"
    path = tmp_path / f"x.csv{ending}"
    path.write_bytes(gzip.compress(content) if ending else content)
    with pytest.raises(DataError, match="more than one column value"):
        next(csv_files.stream(path, {"id": "id", "value": "float"}))
    assert next(csv_files.stream(path, {"id": "id"})).num_rows == 1
    if not ending:
        with pytest.raises(DataError, match="more than one column value"):
            next(csv_files.rows(path, ["id", "value"]))
        assert next(csv_files.rows(path, ["id"]))[1]["id"] == "1"


def test_a_number_is_one_as_every_program_writes_it():
    assert csv_files.number("1e3", where="") == 1000
    with pytest.raises(DataError, match="is not a number"):
        csv_files.number("1_0", where="line 2")


@pytest.mark.parametrize("content", ['id,"' + "x" * (1 << 23), 'id,"' + "x\n" * (1 << 22)])
def test_a_quote_that_never_ends_is_refused(tmp_path, content):
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(DataError, match="longer than|cannot be read"):
        csv_files.header(tmp_path / "x.csv")


def test_a_mask_of_another_size_is_refused_before_it_is_unpacked(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    header = nibabel.Nifti1Header()
    header.set_data_shape((30_000, 30_000, 3_000))
    header.set_data_dtype(np.float64)
    with gzip.open(tmp_path / "mask.nii.gz", "wb") as file:
        header["vox_offset"], header["magic"] = 352, b"n+1"
        file.write(header.binaryblock + bytes(4))
    with pytest.raises(DataError, match="do not belong together"):
        adni._volumes(tmp_path, (4, 4, 4), set())


def test_an_array_whose_header_asks_for_more_than_there_is(tmp_path):
    with open(tmp_path / "ids.npy", "wb") as file:
        about = {"descr": "<i8", "fortran_order": False, "shape": (1 << 50,)}
        np.lib.format.write_array_header_1_0(file, about)
    np.save(tmp_path / "vectors.npy", np.zeros((2, 2), np.float16))
    with pytest.raises(DataError, match="no embeddings"):
        folder.Embeddings(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "[" * 200_000),
        ("a.toml", "a=" + "[" * 100_000),
        ("b.json", '{"a":' + "[" * 60 + "]" * 60 + "}"),
        ("b.toml", ".".join("a" * 5_000) + " = 1"),
    ],
)
def test_a_definition_that_is_too_deep_is_one_line(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match="more than 50 tables and lists in each other"):
        tables.resolved(file=str(tmp_path / name))
    inner = "[" * 48 + "]" * 48
    (tmp_path / "c.json").write_text(f'{{"a": {inner}}}')
    assert definition.load(str(tmp_path / "c.json"))


def test_a_pattern_that_is_none_and_a_span_without_end_are_one_line(tmp_path):
    text = WIDE.replace("wide.csv", "w/**.csv").replace("{features}", '"0..3"')
    (tmp_path / "d.toml").write_text(text)
    options = {"file": str(tmp_path / "d.toml")}
    with pytest.raises(ConfigError, match=r"'w/\*\*.csv' is no pattern of files"):
        tables.missing_files(tmp_path, **options)
    for span in ("0..99999999999", "0..200000", "0.." + "9" * 5_000):
        (tmp_path / "d.toml").write_text(WIDE.replace("{features}", f'"{span}"'))
        with pytest.raises(ConfigError, match="features: spans more than 200,000 columns"):
            tables.spec(**options)
    (tmp_path / "d.toml").write_text(WIDE.replace("{features}", '"7..1006"'))
    assert tables.spec(**options).modalities[0].features[::999] == ("7", "1006")
