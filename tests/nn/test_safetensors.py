"""The format by hand, round trips, damage, and agreement with the reference implementation."""

import json

import numpy as np
import pytest

from m4.nn.pretrained import safetensors

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.c": np.array(3.5),
    "empty": np.zeros((0, 4), np.int64),
    "half": np.array([1.5, -2], np.float16),
}


def test_layout_by_hand(tmp_path):
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                         "__metadata__": {"format": "pt"}})  # fmt: skip
    data = np.array([1.0, -2.5], "<f4").tobytes()
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header.encode() + data)
    found = safetensors.read(tmp_path / "x")
    assert list(found) == ["x"]
    np.testing.assert_array_equal(found["x"], [1.0, -2.5])


def test_bfloat16_becomes_float32(tmp_path):
    header = json.dumps({"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}})
    data = np.array([0x3FC0, 0xC000], "<u2").tobytes()  # 1.5 and -2
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header.encode() + data)
    found = safetensors.read(tmp_path / "x")["x"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [1.5, -2.0])


def test_round_trip(tmp_path):
    safetensors.write(TENSORS, tmp_path / "x")
    found = safetensors.read(tmp_path / "x")
    assert found.keys() == TENSORS.keys()
    for name, x in TENSORS.items():
        assert found[name].dtype == x.dtype and found[name].shape == x.shape
        np.testing.assert_array_equal(found[name], x)


def test_agrees_with_the_reference(tmp_path):
    theirs = pytest.importorskip("safetensors.numpy", reason="needs the package safetensors")
    safetensors.write(TENSORS, tmp_path / "ours")
    theirs.save_file(TENSORS, tmp_path / "theirs")
    for found in (theirs.load_file(tmp_path / "ours"), safetensors.read(tmp_path / "theirs")):
        for name, x in TENSORS.items():
            np.testing.assert_array_equal(found[name], x)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-1],
        lambda raw: raw[:5],
        lambda raw: b"",
        lambda raw: b"\xff" * 8 + raw[8:],
        lambda raw: raw[:8] + b"[" + raw[9:],
        lambda raw: raw.replace(b'"F32"', b'"F99"'),
        lambda raw: raw.replace(b'"shape": [2, 3]', b'"shape": [9, 3]'),
        lambda raw: raw.replace(b'"shape": [2, 3]', b'"shape": [2,-3]'),
    ],
)
def test_damaged_files_are_refused(tmp_path, damage):
    safetensors.write({"a": TENSORS["a"]}, tmp_path / "x")
    raw = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(damage(raw))
    with pytest.raises(ValueError, match="x: "):
        safetensors.read(tmp_path / "x")
