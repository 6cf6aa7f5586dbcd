"""Rows and bundles that ask for too much, say what nobody exports, or are no files: one line."""

import hashlib
import io
import json
import os
import re
import time
import zipfile

import numpy as np
import pytest

from m4.errors import ConfigError, SaveError
from m4.export import Bundle, Refused, bundle, standalone
from tests.export.test_bundle import sealed

LABS = {"name": "labs", "kind": "series", "shape": [4, 2], "dtype": "float32", "every": 2.0}
LABS |= {"features": [{"name": "urea", "take": "sum", "low": 0.0}, {"name": "ph"}]}
CODES = {"name": "codes", "kind": "codes", "shape": [4], "dtype": "int32", "features": []}
CODES |= {"vocab": 8, "tokens": {"hashed": True}}
MEMBER = {"file": "member_0.bin", "program": 0, "scaling": {"targets": [], "inputs": {}}}
SCHEMA = {"format": 1, "modalities": [LABS, CODES], "tasks": [], "use": "research"}
SCHEMA |= {"members": [MEMBER], "programs": [{"params": [], "cuts": []}]}


def parts(**changes):
    """Of a bundle that predicts nothing; of a schema with parts replaced."""
    schema = json.dumps(SCHEMA | changes).encode()
    return {"schema.json": schema, "card.json": b"{}", "card.md": "µ".encode(), "member_0.bin": b""}


@pytest.fixture
def path(tmp_path):
    return sealed(tmp_path / "model.m4", parts())


def row(**inputs):
    return {"inputs": inputs}


def series(times, values):
    return {"urea": {"times": times, "values": values}}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (row(labs=series([1], [1e39])), "row 1: labs: 1 values are too large"),
        (row(labs=series([1, 1], [2e38, 2e38])), "row 1: labs: 1 values are too large"),
        (row(labs=series([1e39], [1])), "row 1: labs.urea: has times that are too large"),
        (
            row(labs={"times": [-1e39], "values": [[1, 2]]}),
            "row 1: labs: has times that are too large",
        ),
        (row(codes=["a", "\ud800"]), "row 1: codes: has a token of half a letter"),
        (row(codes=np.array(3)), "row 1: codes: must be a list of tokens or ids"),
    ],
)
def test_rows_that_float32_or_utf_8_cannot_hold(path, given, line):
    with pytest.raises(Refused) as error:
        Bundle(path).read(given)
    assert str(error.value).startswith(line) and error.value.code == 3


def test_a_pipe_is_waited_for_neither_as_rows_nor_as_a_bundle(tmp_path, path, capsys):
    for name in ("rows.json", "rows.npz", "other.m4"):
        os.mkfifo(tmp_path / name)
    for name in ("rows.json", "rows.npz"):
        assert standalone.main(str(path), [f"--in={tmp_path / name}"]) == 3
        assert f"{name}: is no regular file" in capsys.readouterr().err
    assert standalone.main(str(tmp_path / "other.m4"), ["--card"]) == 4
    assert "other.m4: is no regular file" in capsys.readouterr().err


def test_a_name_that_is_there_twice_is_found_in_a_moment(tmp_path):
    names = ", ".join(f'"k{i}": 0' for i in range(20_000))
    (tmp_path / "rows.json").write_text(f'{{{names}, "z": 0, "z": 1}}')
    begun = time.process_time()
    with pytest.raises(Refused, match="'z' is there twice in one object"):
        standalone.read(str(tmp_path / "rows.json"))
    assert time.process_time() - begun < 2  # each among all others took 9


def arrays(path, *members, method=zipfile.ZIP_DEFLATED):
    content = io.BytesIO()
    np.save(content, np.zeros(100_000))
    with zipfile.ZipFile(path, "w", method) as file:
        for name in members:
            file.writestr(name, content.getvalue())
    return path


def test_arrays_are_measured_before_they_are_unpacked(tmp_path, monkeypatch):
    path = arrays(tmp_path / "x.npz", "a.npy", "b.npy")
    assert path.stat().st_size < 10_000 and len(standalone.read(str(path))) == 2
    monkeypatch.setattr(standalone, "MOST_ARRAYS", 1_000_000)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("unpacked"))
    with pytest.raises(Refused, match="unpacks to more than 1000000 bytes; split it"):
        standalone.read(str(path))


def test_arrays_twice_or_packed_without_an_end_are_refused(tmp_path):
    with pytest.raises(Refused, match="'a' is there twice"):
        standalone.read(str(arrays(tmp_path / "x.npz", "a.npy", "a")))
    # Python unpacks all of what bzip2 packed that it is given, whatever was asked for.
    packed = arrays(tmp_path / "x.npz", "a.npy", method=zipfile.ZIP_BZIP2)
    with pytest.raises(Refused, match=r"nor an \.npz file of plain arrays"):
        standalone.read(str(packed))


def test_rows_that_are_too_long_are_said_to_be(tmp_path, path, monkeypatch, capsys):
    monkeypatch.setattr(standalone, "MOST_JSON", 1000)
    (tmp_path / "rows.json").write_text("[" + " " * 1000 + "]")
    assert standalone.main(str(path), [f"--in={tmp_path / 'rows.json'}"]) == 3
    assert "rows.json: is larger than 1000 bytes" in capsys.readouterr().err
    content = io.BytesIO((tmp_path / "rows.json").read_bytes())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(content))
    assert standalone.main(str(path), ["--in=-"]) == 3
    assert "standard input: is larger than 1000 bytes" in capsys.readouterr().err


def test_predictions_replace_neither_rows_nor_bundle_nor_a_device(tmp_path, path, capsys):
    rows = tmp_path / "rows.json"
    rows.write_text('{"inputs": {}}')
    (tmp_path / "link.json").symlink_to(rows)
    for out, line in ((rows, "is --in"), (tmp_path / "link.json", "is --in"), (path, "the bundle")):
        before = out.read_bytes()
        assert standalone.main(str(path), [f"--in={rows}", f"--out={out}"]) == 2
        assert line in capsys.readouterr().err and out.read_bytes() == before
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Refused, match=r"pipe: cannot be written \(is no regular file\)"):
        standalone.write(str(tmp_path / "pipe"), "predictions")
    assert (tmp_path / "pipe").is_fifo()


def test_what_nobody_foresaw_is_said_without_a_row(path, monkeypatch, capsys):
    def predict(*_, **__):
        raise ValueError("the name of a patient")

    monkeypatch.setattr(Bundle, "predict", predict)
    monkeypatch.setattr(standalone, "read", lambda _: [])
    assert standalone.main(str(path), ["--in=-"]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"m4: internal error: ValueError in run:\d+\n", said)


FEATURES = [{"name": "urea"}, {"name": "ph"}]
ODD = [
    {"modalities": [LABS | {"shape": [4]}]},
    {"modalities": [LABS | {"shape": [4, -2]}]},
    {"modalities": [LABS | {"shape": "ab"}]},
    {"modalities": [LABS | {"kind": "song"}]},
    {"modalities": [LABS | {"kind": []}]},
    {"modalities": [LABS | {"dtype": "O"}]},
    {"modalities": [LABS | {"name": 3}]},
    {"modalities": [LABS | {"every": "2"}]},
    {"modalities": [LABS | {"window": [0]}]},
    {"modalities": [LABS | {"window": ["0", 24]}]},
    {"modalities": [LABS | {"features": [{"name": "urea"}]}]},
    {"modalities": [LABS | {"features": [FEATURES[0] | {"low": "0"}, FEATURES[1]]}]},
    {"modalities": [LABS | {"features": [FEATURES[0] | {"name": 1}, FEATURES[1]]}]},
    {"modalities": [CODES | {"vocab": "8"}]},
    {"modalities": [CODES | {"tokens": {"known": [1]}}]},
    {"modalities": {}, "format": "1"},
    {"members": [MEMBER, MEMBER]},  # a large file, taken many times
    {"members": [{**MEMBER, "file": "member_1.bin"}]},
]


@pytest.mark.parametrize("changes", ODD, ids=range(len(ODD)))
def test_a_schema_that_no_export_writes_is_refused_when_it_is_read(tmp_path, changes):
    with pytest.raises(Refused) as error:
        Bundle(sealed(tmp_path / "x.m4", parts(**changes)))
    assert error.value.code == 4


def test_what_a_schema_says_of_predictions_is_followed_or_refused(path):
    with pytest.raises(Refused, match=r"says what cannot be followed \(KeyError\)") as error:
        Bundle(sealed(path, parts(tasks=[{"name": "died"}]))).predict(row(labs=series([1], [1])))
    assert error.value.code == 4


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("name", "method"), [("card.md", zipfile.ZIP_STORED), ("more", zipfile.ZIP_DEFLATED)]
)
def test_members_of_one_name_and_packed_ones_are_refused(path, name, method):
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(name, b"other", method)
    body = path.read_bytes()[:-64]
    path.write_bytes(body + hashlib.sha256(body).hexdigest().encode())
    with pytest.raises(Refused, match="is no bundle that can be read"):
        Bundle(path)


def test_what_is_read_is_what_was_digested(tmp_path, path, monkeypatch):
    other = sealed(tmp_path / "other.m4", parts(use="else"))
    digest, whole = standalone.digest_of(path), standalone._digest

    def replaced(file, at):
        try:
            return whole(file, at)
        finally:
            os.replace(other, at)  # by somebody, between the digest and the reading

    monkeypatch.setattr(standalone, "_digest", replaced)
    assert Bundle(path, digest=digest).schema["use"] == "research"


def test_an_export_replaces_nothing_but_a_bundle(tmp_path, path, monkeypatch):
    monkeypatch.setattr(bundle, "pack", lambda *_, **__: path.read_bytes())
    (tmp_path / "thesis.pdf").write_bytes(b"%PDF")
    os.mkfifo(tmp_path / "pipe")
    for name, line in {
        "thesis.pdf": "is there, and no bundle; choose another",
        "pipe": "must be a file in a folder that is there",
        "none/x.m4": "must be a file in a folder that is there",
    }.items():
        with pytest.raises(ConfigError, match=line):
            bundle.write(tmp_path, tmp_path / name)
    with pytest.raises(SaveError, match="not written"):
        bundle.write(tmp_path, tmp_path / ("x" * 300))
    assert bundle.write(tmp_path, path) == standalone.digest_of(path)
