"""Arrays that others wrote: damaged, of a lying header, of text, or no arrays at all."""

import gzip
import io
import os
import zipfile

import numpy as np
import pytest

from m4.data import foreign
from m4.data.sets import adni, mosi, pam
from m4.data.sets.mimiciv.embeddings import folder as vectors
from m4.errors import DataError

SECRET = "JOHN DOE 1953"


def lying(path):
    """An archive of which a member says that it holds a petabyte."""
    with zipfile.ZipFile(path) as file:
        kept = {name: file.read(name) for name in file.namelist() if name != "text.npy"}
    head, about = io.BytesIO(), {"descr": "<f8", "fortran_order": False, "shape": (3, 50, 1 << 40)}
    np.lib.format.write_array_header_1_0(head, about)
    with zipfile.ZipFile(path, "w") as file:
        for name, content in {"text.npy": head.getvalue(), **kept}.items():
            file.writestr(name, content)


def encrypted(path):
    content = bytearray(path.read_bytes())
    place = -1
    while (place := content.find(b"PK\x01\x02", place + 1)) >= 0:
        content[place + 8] |= 1
    path.write_bytes(content)


def inflated_wrongly(path):
    np.savez_compressed(path, **dict(np.load(path)))
    content = bytearray(path.read_bytes())
    content[200:260] = b"\xff" * 60
    path.write_bytes(content)


def changed(**arrays):
    return lambda path: np.savez(path, **dict(np.load(path)) | arrays)


def pipe(path):
    path.unlink()
    os.mkfifo(path)


DAMAGE = {
    "empty": (lambda path: path.write_bytes(b""), "no array of plain numbers"),
    "damaged": (inflated_wrongly, "no array of plain numbers"),
    "encrypted": (encrypted, "no array of plain numbers"),
    "lying": (lying, "more memory than there is"),
    "pipe": (pipe, "is no regular file"),
    "text": (changed(text=np.full((3, 50, 4), SECRET)), "text: text, not numbers"),
    "complex": (changed(audio=np.full((3, 50, 4), 1 + 5j)), "audio: complex numbers, not numbers"),
    "large": (changed(vision=np.full((3, 50, 4), 1e300)), "too large for float32"),
    "text labels": (changed(labels=np.full((3, 1, 1), SECRET)), "labels: text, not numbers"),
    "no axis": (changed(labels=np.zeros(())), "no arrays as docs/datasets.md says"),
    "no width": (changed(id=np.zeros((3, 0), str)), "no arrays as docs/datasets.md says"),
    "many axes": (changed(id=np.zeros((3, 2, 2), str)), "id has shape"),
    "not UTF-8": (changed(id=np.array([b"\xff", b"a", b"b"])), "an id is not UTF-8"),
    "objects": (changed(text=np.array([{}], object)), "no array of plain numbers"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_segments_that_are_no_arrays_are_one_line(tmp_path, kind):
    path = mosi.invent(tmp_path, patients=1, seed=0) / "train.npz"
    change, said = DAMAGE[kind]
    change(path)
    with pytest.raises(DataError, match=said) as caught:
        mosi.cohort(tmp_path, seed=0)
    assert str(path) in str(caught.value) and SECRET not in str(caught.value)


WINDOWS = {
    "empty": (None, "no array of plain numbers"),
    "archive": ("archive", "no array of plain numbers"),
    "no axis": (np.zeros(()), "is one number"),
    "text": (np.full((3, 600, 17), SECRET), "window 0: text, not numbers"),
    "complex": (np.full((3, 600, 17), 1 + 5j), "window 0: complex numbers, not numbers"),
    "large": (np.full((3, 600, 17), 1e300), "window 0: 10200 values are too large for float32"),
}


@pytest.mark.parametrize("kind", WINDOWS)
def test_windows_that_are_no_numbers_are_one_line(tmp_path, kind):
    values, said = WINDOWS[kind]
    np.save(tmp_path / pam.CLASSES, np.zeros((3, 1)))
    path = tmp_path / pam.VALUES
    if values is None:
        path.write_bytes(b"")
    elif kind == "archive":
        with open(path, "wb") as file:
            np.savez(file, a=np.zeros(3))
    else:
        np.save(path, values)
    with pytest.raises(DataError, match=said) as caught:
        next(pam._windows(tmp_path, pam.spec(), {})[1]())
    assert SECRET not in str(caught.value)


def test_classes_that_are_text_are_one_line(tmp_path):
    np.save(tmp_path / pam.CLASSES, np.full((3, 1), SECRET))
    np.save(tmp_path / pam.VALUES, np.zeros((3, 600, 17)))
    with pytest.raises(DataError, match="a label: text, not numbers"):
        pam._windows(tmp_path, pam.spec(), {})


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (None, "no embeddings .*no array of plain numbers"),
        (np.array([SECRET]), "no embeddings .*text, not numbers"),
        (np.array([0.5]), "no embeddings .*not whole numbers"),
        (np.zeros(()), "no embeddings"),
        (np.array([2, 1]), "must be sorted"),
        (np.array([-(2**63), 2**63 - 1]), ""),  # sorted, whatever their difference is
    ],
)
def test_identifiers_of_vectors_are_whole_numbers(tmp_path, ids, said):
    (tmp_path / "ids.npy").write_bytes(b"")
    if ids is not None:
        np.save(tmp_path / "ids.npy", ids)
    np.save(tmp_path / "vectors.npy", np.zeros((2, 3), np.float16))
    if not said:
        vectors.Embeddings(tmp_path)
        return
    with pytest.raises(DataError, match=said) as caught:
        vectors.Embeddings(tmp_path)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("vector", [np.full(3, SECRET), np.full(3, 1 + 5j), np.full(3, 1e5)])
def test_vectors_that_float16_does_not_hold_are_one_line(tmp_path, vector):
    ids = np.array([vectors.patient_number("7")])
    np.save(tmp_path / "ids.npy", ids)
    np.save(tmp_path / "vectors.npy", vector[None])
    with pytest.raises(DataError, match="not numbers|too large for float16") as caught:
        vectors.Embeddings(tmp_path)(["7"])
    assert "vectors.npy" in str(caught.value) and SECRET not in str(caught.value)


@pytest.mark.parametrize("content", ["array", "archive", "word"])
def test_only_arrays_are_read_out_of_an_archive(tmp_path, content):
    path = tmp_path / "x.npz"
    if content == "array":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    else:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a.npy" if content == "word" else "b.npy", b"no array")
    if content == "archive":
        assert foreign.members(path, ("a",)) == {}
        return
    with pytest.raises(DataError, match="no array of plain numbers"):
        foreign.members(path, ("a",))


@pytest.mark.parametrize("content", [b"", b"no image", gzip.compress(b"no image", mtime=0)])
def test_a_mask_that_is_no_image_is_one_line(tmp_path, content):
    pytest.importorskip("nibabel")
    (tmp_path / "mask.nii.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"mask\.nii\.gz: no array of plain numbers"):
        adni._volumes(tmp_path, (4, 4, 4), set())
