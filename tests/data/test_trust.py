"""What a build trusts: raw files by their content, its own records, and the machine's limits."""

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

from m4.data import __main__ as data_main
from m4.data import apply, build, record
from m4.data.sets import meds
from m4.data.store import Store
from m4.errors import DataError, SaveError, UserError
from tests.data import meds_folder as mf


@pytest.fixture
def hospital(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    return raw, {"file": mf.write(raw, mf.cohort_tables())}, tmp_path / "data"


def prepare(hospital):
    raw, options, home = hospital
    return build.prepare("meds", raw, home, options=options)


def labels(hospital):
    return hospital[0] / "hospital/labels/death/0.parquet"


@pytest.mark.parametrize("small", [1 << 24, 0])
def test_a_change_behind_the_same_size_and_time_is_noticed(hospital, monkeypatch, small):
    """As `rsync -t`, `cp -p` or a restored backup leave it."""
    monkeypatch.setattr(build, "SMALL", small)
    first = prepare(hospital)
    assert prepare(hospital) == first
    path = labels(hospital)
    before, content = path.stat(), bytearray(path.read_bytes())
    rows = mf.pq.read_table(path).to_pydict()
    rows["boolean_value"] = [not value for value in rows["boolean_value"]]
    mf.pq.write_table(mf.pa.table(rows, schema=mf.pq.read_schema(path)), path)
    with open(path, "ab") as file:  # the same size, if there is room
        file.truncate(max(path.stat().st_size, 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns and bytes(content) != path.read_bytes()
    assert prepare(hospital) != first


def test_verify_reads_everything(hospital, capsys):
    folder = prepare(hospital)
    assert data_main.main(["verify", str(folder), str(hospital[0])]) == 0
    assert "5 of 5 source files unchanged" in capsys.readouterr().out
    assert data_main.main(["verify", str(folder), str(hospital[1])]) == 3
    assert "holds none of the 5 files" in capsys.readouterr().err
    (record,) = (folder / "records").rglob("*-train.array_record-*")
    sound = record.read_bytes()
    record.write_bytes(sound[: len(sound) // 2] + b"?" * 16 + sound[len(sound) // 2 + 16 :])
    assert data_main.main(["verify", str(folder), str(hospital[0])]) == 3
    assert "damaged" in capsys.readouterr().err
    record.write_bytes(sound)
    path = labels(hospital)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert data_main.main(["verify", str(folder), str(hospital[0])]) == 3
    assert "is not the file that" in capsys.readouterr().err


def test_scratch_lies_below_the_data_folder_and_is_swept(hospital, monkeypatch):
    raw, _, home = hospital
    seen = []
    whole = meds.cohort

    def watched(*args, **kwargs):
        cohort = whole(*args, **kwargs)
        joining = cohort.joining

        def look():
            said = joining()
            seen.extend(p for p in home.rglob("m4-meds-*") if p.is_dir())
            return said

        cohort.joining = look
        return cohort

    monkeypatch.setattr(meds, "cohort", watched)
    prepare(hospital)
    assert len(seen) == 1 and not seen[0].exists()


def test_a_killed_build_leaves_no_events_in_tmp(hospital, tmp_path):
    raw, options, home = hospital
    temp = tmp_path / "tmp"
    temp.mkdir()
    code = f"""
        import os, signal
        from m4.data import build
        build.write_records = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
        build.prepare("meds", {str(raw)!r}, {str(home)!r}, options={options!r})
    """
    environ = {**os.environ, "TMPDIR": str(temp)}
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environ)
    assert ended.returncode == -9
    assert not [*temp.rglob("*")] and [*home.rglob("m4-meds-*/*")]
    prepare(hospital)
    assert not [*home.rglob("m4-meds-*")]


def test_no_class_is_imported_because_records_name_it(hospital, tmp_path, monkeypatch):
    folder = prepare(hospital)
    (tmp_path / "evilmod.py").write_text(f"open({str(tmp_path / 'EXECUTED')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for path in folder.rglob("features.json"):
        document = json.loads(path.read_text())
        document["pythonClassName"] = "evilmod.Features"
        path.write_text(json.dumps(document))
    with pytest.raises(DataError):  # its digest differs, too
        Store(folder, "train")
    spec = build.manifests.spec_from(build.manifests.unchecked(folder)["schema"])
    source = record.Source(folder / "records", "train", spec)
    assert len(source) > 0 and source.read([0])[0]["inputs"]
    assert not (tmp_path / "EXECUTED").exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "out of memory"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "out of memory"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left"),
        (RuntimeError("write failed: No space left on device"), "No space left"),
        (RuntimeError("RESOURCE_EXHAUSTED: cannot allocate"), "out of memory"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "ulimit"),
        (OSError(errno.EACCES, os.strerror(errno.EACCES)), "Permission denied"),
    ],
)
def test_what_is_short_is_not_damaged(hospital, monkeypatch, error, words):
    folder = prepare(hospital)

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(record, "decode", fail)
    with pytest.raises(UserError, match=words) as caught:
        Store(folder, "train")
    assert "delete" not in str(caught.value) and len(caught.value.lines()) == 1


def test_a_disk_that_fills_up_in_a_build_is_a_save_error(hospital, monkeypatch):
    def full(*args, **kwargs):
        raise RuntimeError("ArrayRecordWriter: No space left on device")

    monkeypatch.setattr(record, "write", full)
    with pytest.raises(SaveError, match="No space left") as caught:
        prepare(hospital)
    assert len(caught.value.lines()) == 1 and not [*Path(hospital[2]).rglob(".partial-*")]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("built", [True, False])
def test_a_source_file_that_cannot_be_read_is_named(hospital, monkeypatch, named, built, number):
    """And not the data folder, whose owner can do nothing about it. Arrow gives no file name."""
    if built:
        prepare(hospital)
    path = labels(hospital)

    def refused(*args, **kwargs):
        if named:
            raise OSError(number, os.strerror(number), str(path))
        raise OSError(number, f"Failed to open local file {str(path)!r}")

    monkeypatch.setattr(build, "sha256", refused)
    monkeypatch.setattr(mf.pq, "read_table", refused)
    monkeypatch.setattr("m4.data.sets.meds.cohort", refused)
    with pytest.raises(
        DataError, match=f"hospital.*: cannot be read .{os.strerror(number)}"
    ) as caught:
        prepare(hospital)
    assert "data.dir" not in str(caught.value) and len(caught.value.lines()) == 1


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_new_data_that_cannot_be_read_are_named(tmp_path, number):
    def new(*args, **kwargs):
        raise OSError(number, os.strerror(number), str(tmp_path / "raw/x.parquet"))

    trained = apply.Trained({"options": {}}, {})
    with pytest.raises(DataError, match=f"raw/x.parquet: cannot be read .{os.strerror(number)}"):
        apply.write(tmp_path / "new", tmp_path / "raw", SimpleNamespace(new=new), trained)
