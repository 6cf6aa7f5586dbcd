"""Vectors of a frozen encoder: what is encoded, pooling, pieces, going on, refusals."""

import errno
import functools
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from m4.data import __main__ as data_main
from m4.data.cohort import patient_number
from m4.data.sets import mimiciv
from m4.data.sets.mimiciv.embeddings import backends, folder, items
from m4.errors import ConfigError, DataError
from tests.data import test_mimiciv_linked as toy

raw = toy.raw  # a folder with the invented stays and their notes
PLAN = backends.Plan("notes", "hashing", "", "")


def test_notes_of_icu_patients_are_written_and_read_back(raw, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.chdir(raw)  # which is no model's folder, though no model's name is its path
    read, digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda f, how: read.append(f) or digest(f, how))
    assert data_main.main(["embed", "notes", str(raw), str(out), "--backend=hashing"]) == 0
    assert {Path(file.name).parent for file in read} <= {out}
    facts = json.loads((out / "embed.json").read_text())
    # five radiology reports, one of a stranger to the ICU; two summaries
    assert facts["count"] == 6 and facts["width"] == 768 and facts["backend"] == "hashing"
    assert out.stat().st_mode & 0o077 == 0 and not (out / folder.PARTS).exists()
    options = {"modalities": ("notes",), "available": "charted"}
    with_files, _ = toy.toy.examples(raw, **options, embeddings={"notes": str(out)})
    without, _ = toy.toy.examples(raw, **options)
    for key, example in without.items():
        if "notes" in example["inputs"]:
            found = with_files[key]["inputs"]["notes"]
            np.testing.assert_array_equal(found["values"], example["inputs"]["notes"]["values"])
    assert data_main.main(["embed", "notes", str(raw), str(out), "--backend=hashing"]) == 2
    assert "is complete" in capsys.readouterr().err


def test_a_second_start_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "PART", 2)
    seen = []

    def encode(texts):
        seen.extend(texts)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return np.array([[len(text)] for text in texts], np.float32)

    words = [("c", "xxx"), ("a", "x"), ("b", "xx"), ("d", "xxxx"), ("a", "again")]
    texts = [(key, functools.partial(str, word)) for key, word in words]
    with pytest.raises(KeyboardInterrupt):
        folder.write(tmp_path, PLAN, iter(texts), encode, 1)
    other = backends.Plan("notes", "hashing", "", "other")
    with pytest.raises(ConfigError, match="begun with other options"):
        folder.write(tmp_path, other, iter(texts), encode, 1)
    tmp_path.chmod(0o750)
    assert folder.write(tmp_path, PLAN, iter(texts), encode, 1) == 4
    assert tmp_path.stat().st_mode & 0o777 == 0o750  # a folder that is there keeps its mode
    assert seen == ["xxx", "x", "xx", "xx", "xxxx", "again"]  # the first part is not done again
    ids, vectors = np.load(tmp_path / "ids.npy"), np.load(tmp_path / "vectors.npy")
    lengths = {i: int(v) for i, v in zip(ids, vectors[:, 0], strict=True)}
    assert lengths == {patient_number(k): n for k, n in zip("abcd", (1, 2, 3, 4), strict=True)}
    with pytest.raises(DataError, match="no notes"):
        folder.write(tmp_path / "none", PLAN, iter(()), encode, 1)


def test_numbers_beyond_float16_stop(tmp_path):
    with pytest.raises(DataError, match="beyond float16"):
        folder.write(tmp_path, PLAN, iter([("a", str)]), lambda t: np.full((1, 2), 1e9), 1)


def test_pieces_and_their_mean():
    assert backends.pieces([5, 6, 7], 4, 1, 2) == [[1, 5, 6, 2], [1, 7, 2]]
    assert backends.pieces([], 4, 1, 2) == [[1, 2]]
    calls = []

    def run(ids, mask):
        calls.append(ids.shape)
        return ids.max(1, keepdims=True).astype(np.float32)

    encode = backends.by_pieces(lambda text: backends.pieces([*map(int, text)], 4, 1, 2), run)
    # pieces of 4 and 3 tokens with maxima 6 and 7: (4 * 6 + 3 * 7) / 7
    np.testing.assert_allclose(encode(["567", "8"]), [[45 / 7], [8]])
    assert calls == [(3, 4)]


def test_pooling():
    hidden = np.array([[[1.0], [3.0], [100.0]]], np.float32)
    mask = np.array([[1, 1, 0]])
    assert backends.pool(hidden, mask, "mean").tolist() == [[2]]
    assert backends.pool(hidden, mask, "cls").tolist() == [[1]]


def test_images_are_frontal_and_scaled(raw, tmp_path):
    from PIL import Image

    for study, dicom in ((500, "a"), (500, "b"), (501, "c")):
        place = raw / f"mimic-cxr-jpg/2.0.0/files/p1/p1/s{study}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 10), 255, np.uint8)).save(place / f"{dicom}.jpg")
    plan = backends.Plan("cxr", "onnx", "", "", scale="xrv")
    found = [*items.read("cxr", raw)]
    assert [dicom for dicom, _ in found] == ["a", "c"]  # b is lateral, d has no file
    image = found[0][1]()
    assert image.shape == (224, 224) and image.max() <= 1
    batch = backends.stacked([image], 3, plan)
    assert batch.shape == (1, 3, 224, 224) and batch.dtype == np.float32
    np.testing.assert_allclose(batch, 1024, rtol=1e-5)


def test_wrong_lines_end_in_one_line(raw, tmp_path, capsys):
    line = ["notes", str(raw), str(tmp_path / "o"), "--backend=transformers"]
    assert data_main.main(["embed", *line, "--encoder=/no/such/model"]) == 2
    assert (
        data_main.main(["embed", "notes", str(tmp_path), str(tmp_path / "o"), "--backend=hashing"])
        == 3
    )
    assert len(capsys.readouterr().err.splitlines()) == 2
    with pytest.raises(DataError, match="no embeddings"):
        mimiciv.cohort(raw, seed=0, modalities=("notes",), embeddings={"notes": str(tmp_path)})


def test_a_kill_between_two_files_leaves_nothing_that_looks_complete(tmp_path, monkeypatch):
    texts = [("a", functools.partial(str, "x"))]
    replace, names = (
        os.replace,
        (f"{folder.PARTS}/plan.json", "vectors.npy", "ids.npy", folder.FILE),
    )
    for name in names:

        def killed(source, target, name=name):
            if str(target).endswith(name):
                raise KeyboardInterrupt
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                folder.write(tmp_path, PLAN, iter(texts), lambda t: np.ones((1, 2)), 1)
        assert not (tmp_path / name).exists()
    assert folder.write(tmp_path, PLAN, iter(texts), lambda t: np.ones((1, 2)), 1) == 1


def test_a_full_disk_is_said(raw, tmp_path, monkeypatch, capsys):
    """Vectors are written through a map: there a full disk would be a signal, not an error."""

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    args = ["embed", "notes", str(raw), str(tmp_path / "out"), "--backend=hashing"]
    assert data_main.main(args) == 6
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    assert data_main.main(args) == 0
