import errno
import fcntl
import json
import os
import shutil

import numpy as np
import pytest

from m4 import owners
from m4.data import manifest as manifests
from m4.data import mapped
from m4.data import record as records
from m4.data.normalise import Normaliser
from m4.data.store import Store
from m4.errors import DataError, UserError
from tests.data.test_temporary import DEAD, left
from tests.data.toy_cohort import SPEC, build_into, example, make_cohort


def test_rows_equal_the_examples_they_came_from(built, train):
    rows = train.read(range(40))
    normalisers = {k: Normaliser(v) for k, v in train.manifest["normalisers"].items()}
    for i in range(40):
        raw = example(i)
        assert rows["patient"][i] == raw["patient"]
        for modality in SPEC.modalities:
            name = modality.name
            values = rows[f"{name}/values"][i]
            payload = raw["inputs"].get(name)
            known = None if payload is None else np.asarray(payload["values"], float)
            if modality.kind == "series" and known is not None and np.isnan(known).all():
                payload = None
            assert rows[f"{name}/present"][i] == (payload is not None)
            if payload is None:
                assert not values.any() and not rows[f"{name}/mask"][i].any()
                continue
            if modality.kind == "table":
                assert rows[f"{name}/mask"][i].tolist() == [True]
            else:
                known = known[-modality.length :]
                expected_mask = np.arange(modality.length) < len(known)
                assert np.array_equal(rows[f"{name}/mask"][i], expected_mask)
                assert not values[len(known) :].any()
                values = values[: len(known)]
            if modality.timed:
                times = rows[f"{name}/times"][i]
                expected = np.asarray(payload["times"], np.float32)[-modality.length :]
                assert np.array_equal(times[: len(known)], expected)
            if name in normalisers:
                known = normalisers[name](known)
            if modality.kind in ("series", "table"):
                observed = rows[f"{name}/observed"][i]
                observed = observed if modality.kind == "table" else observed[: len(known)]
                assert np.array_equal(observed, ~np.isnan(known))
                known = np.nan_to_num(known)
            np.testing.assert_allclose(values, known.astype(values.dtype), rtol=1e-6)


def test_targets_and_their_masks(train):
    rows = train.read(range(40))
    for i in range(40):
        raw = example(i)["targets"]
        assert rows["y/death"][i].tolist() == [raw["death"]]
        assert rows["y/los/mask"][i] == (raw["los"] is not None)
        assert rows["y/los"][i].tolist() == [raw["los"] or 0]
        known = ~np.isnan(raw["pheno"])
        assert np.array_equal(rows["y/pheno/mask"][i], known)
        assert np.array_equal(rows["y/pheno"][i], np.nan_to_num(raw["pheno"]))
        assert rows["y/unit/mask"][i] == (raw["unit"] is not None)
        assert rows["y/unit"][i] == (raw["unit"] or 0)
    assert rows["y/unit"].dtype == np.int32


def test_disk_equals_memory(built, train):
    disk = Store(built, "train", ram_limit=0)
    assert train.in_ram and not disk.in_ram
    indices = [3, 39, 0, 3]
    for key, array in disk.read(indices).items():
        assert np.array_equal(array, train.read(indices)[key]), key


def test_own_decoder_equals_that_of_tensorflow_datasets(built):
    import tensorflow_datasets as tfds

    (folder,) = (path.parent for path in built.rglob("features.json"))
    theirs = tfds.builder_from_directory(folder).as_data_source("train")
    ours = records.Source(built / "records", "train", SPEC)
    for i in range(len(ours)):
        np.testing.assert_equal(ours.read([i])[0], theirs[i])


def test_caller_owns_what_it_reads(train):
    before = train.read([5])["vitals/values"].copy()
    train.read([5])["vitals/values"][:] = 99
    assert np.array_equal(train.read([5])["vitals/values"], before)


def test_unknown_split_and_damaged_folders(built, tmp_path):
    with pytest.raises(DataError, match=r"no split 'dev'; it has \['train', 'val', 'test'\]"):
        Store(built, "dev")
    with pytest.raises(DataError, match="no readable manifest"):
        Store(tmp_path, "train")


def test_lost_records_are_noticed(tmp_path):
    folder = build_into(tmp_path, make_cohort())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["test"]["rows"] = 10
    manifests.write(folder, manifest)
    with pytest.raises(DataError, match="split test has 9 of 10 records"):
        Store(folder, "test")


def test_a_changed_manifest_or_file_is_noticed(tmp_path):
    folder = build_into(tmp_path, make_cohort())
    features = next(folder.rglob("features.json"))
    for path, old, new, says in (
        (folder / "manifest.json", b'"rows": 9,', b'"rows": 8,', "manifest.json: differs from its"),
        (features, b"FeaturesDict", b"FeaturesDicu", "features.json: is damaged or gone"),
    ):
        good = path.read_bytes()
        assert old in good
        path.write_bytes(good.replace(old, new))
        with pytest.raises(DataError, match=f"{says}.*delete the folder to build it again"):
            Store(folder, "val")
        path.write_bytes(good)
    (folder / "a note of the owner").touch()  # is nobody's business
    assert len(Store(folder, "val")) == 11
    features.unlink()
    with pytest.raises(DataError, match="is damaged or gone"):
        Store(folder, "val")


@pytest.mark.parametrize("writable", [True, False])
def test_disk_reads_mapped_files_or_else_records(built, train, monkeypatch, writable):
    if not writable:
        monkeypatch.setattr(mapped, "_write", lambda *args: (_ for _ in ()).throw(OSError(28, "")))
    shutil.rmtree(built / "rows", ignore_errors=True)
    disk = Store(built, "train", ram_limit=0)
    assert any((built / "rows").rglob("*.npy")) == writable
    if writable:  # nothing is decoded any more, and a caller cannot write into the files
        monkeypatch.setattr(records, "decode", None)
        assert Store(built, "train", ram_limit=0)._rows is not None
        disk.read([1])["patient"][:] = 0
    indices = [3, 39, 0, 3]
    for key, array in disk.read(indices).items():
        assert np.array_equal(array, train.read(indices)[key]), key
    for key, array in disk.columns(["patient", "y/death"]).items():
        assert np.array_equal(array, train.columns([key])[key])


def test_a_damaged_mapped_file_is_written_again(built, train):
    Store(built, "train", ram_limit=0)
    path = next((built / "rows").rglob("patient.npy"))
    path.write_bytes(path.read_bytes()[:-8])
    again = Store(built, "train", ram_limit=0)
    assert np.array_equal(again.read([39])["patient"], train.read([39])["patient"])


@pytest.mark.parametrize("key", ["vitals/values", "patient", "y/death", mapped.SUMS])
def test_a_bit_flipped_in_a_mapped_file_is_noticed(built, train, key):
    shutil.rmtree(built / "rows", ignore_errors=True)
    Store(built, "train", ram_limit=0)
    path = next((built / "rows").rglob(f"{key.replace('/', '.')}.npy"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # of the last row
    path.write_bytes(data)
    disk = Store(built, "train", ram_limit=0)
    sound = np.arange(39)
    for _ in range(2):  # compared once
        assert np.array_equal(disk.read(sound)["patient"], train.read(sound)["patient"])
    with pytest.raises(DataError, match="row 39: differs from its checksum; delete .*rows"):
        disk.read([3, 39])
    with pytest.raises(DataError, match="row 39: differs from its checksum"):
        disk.columns([key] if key != mapped.SUMS else list(train.read([0])))
    shutil.rmtree(built / "rows")


def no_locks(*args):
    raise OSError(errno.ENOSYS, "Function not implemented")


def test_without_file_locks_rows_are_mapped_all_the_same(built, train, monkeypatch, capsys):
    monkeypatch.setattr(fcntl, "flock", no_locks)
    shutil.rmtree(built / "rows", ignore_errors=True)
    write = mapped._write

    def faster(home, split, layout, chunks):  # than we, another run
        write(home, split, layout, iter([train.read(range(len(train)))]))
        write(home, split, layout, chunks)

    monkeypatch.setattr(mapped, "_write", faster)
    home = built / "rows" / str(mapped.VERSION)
    another, dead = left(home, owners.own()), left(home, DEAD)
    disk = Store(built, "train", ram_limit=0)
    assert "no file locks here" in capsys.readouterr().err
    assert disk._mapped is not None
    assert [*home.glob(".partial-*")] == [another] and not dead.exists()
    assert np.array_equal(disk.read([39])["patient"], train.read([39])["patient"])
    shutil.rmtree(built / "rows")


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, os.strerror(errno.EMFILE))])
def test_mapped_files_are_not_deleted_because_something_is_short(built, monkeypatch, error):
    Store(built, "train", ram_limit=0)
    path = next((built / "rows").rglob("patient.npy"))
    before = path.stat().st_ino, path.stat().st_mtime_ns

    def short(*args, **kwargs):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(np, "load", short)
        with pytest.raises(UserError, match="out of memory|ulimit"):
            Store(built, "train", ram_limit=0)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before
    with monkeypatch.context() as patched:
        patched.setattr(manifests.json, "loads", short)
        with pytest.raises(UserError, match="out of memory|ulimit") as caught:
            Store(built, "train")
    assert "delete" not in str(caught.value)
