"""The format by hand, round trips, damage and hostile headers."""

import errno
import json
import os
import time

import numpy as np
import pytest

from m4.nn.pretrained import safetensors

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.c": np.array(3.5),
    "empty": np.zeros((0, 4), np.int64),
    "half": np.array([1.5, -2], np.float16),
}


def of_header(path, header, data=b""):
    """A file by hand."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


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


def test_arrays_in_any_order_of_memory_are_written_as_they_read(tmp_path):
    turned = {"t": TENSORS["a"].T, "every_other": TENSORS["a"][:, ::2]}
    safetensors.write(turned, tmp_path / "x", metadata={"use": "tests"})
    assert b'"__metadata__":{"use":"tests"}' in (tmp_path / "x").read_bytes()
    for name, x in safetensors.read(tmp_path / "x").items():
        np.testing.assert_array_equal(x, turned[name])
    with pytest.raises(ValueError, match="cannot hold word of dtype <U1"):
        safetensors.write({"word": np.array(["a"])}, tmp_path / "x")


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-1],
        lambda raw: raw[:5],
        lambda raw: b"",
        lambda raw: b"\xff" * 8 + raw[8:],
        lambda raw: raw[:8] + b"[" + raw[9:],
        lambda raw: raw.replace(b'"F32"', b'"F99"'),
        lambda raw: raw.replace(b'"F32"', b'"F4" '),  # a dtype that NumPy has not
        lambda raw: raw.replace(b"[2,3]", b"[9,3]"),
        lambda raw: raw.replace(b"[2,3]", b"[-6] "),
        lambda raw: raw.replace(b"[0,24]", b"[8,24]"),  # bytes that no tensor owns
        lambda raw: raw.replace(b"[0,24]", b"[0,99]"),  # bytes beyond the end
        lambda raw: (2**60).to_bytes(8, "little") + raw[8:],
    ],
)
def test_damaged_files_are_refused(tmp_path, damage):
    safetensors.write({"a": TENSORS["a"]}, tmp_path / "x")
    raw = (tmp_path / "x").read_bytes()
    assert damage(raw) != raw
    (tmp_path / "x").write_bytes(damage(raw))
    with pytest.raises(ValueError, match="x: not a safetensors file, or damaged") as error:
        safetensors.read(tmp_path / "x")
    assert "\n" not in str(error.value)


def test_a_longer_file_and_a_name_twice_are_refused(tmp_path):
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    header += b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
    twice = len(header).to_bytes(8, "little") + header + bytes(8)
    (tmp_path / "x.safetensors").write_bytes(twice)
    with pytest.raises(ValueError, match="a is there twice"):
        safetensors.read(tmp_path / "x.safetensors")
    safetensors.write({"a": np.ones(3, np.float32)}, tmp_path / "x.safetensors")
    with (tmp_path / "x.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match="1 bytes follow the last tensor"):
        safetensors.read(tmp_path / "x.safetensors")


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":' * 100_000,
        b"[" * 100_000,
        {"a": ONE | {"data_offsets": [0, "x"]}},
        {"a": ONE | {"data_offsets": [0, None]}},
        {"a": ONE | {"data_offsets": [False, 4]}},
        {"a": ONE | {"data_offsets": {"0": 4}}},
        {"a": ONE | {"shape": [True]}},
        {"a": ONE | {"shape": [1.0]}},
        {"a": ONE | {"shape": "1"}},
        {"a": ONE | {"dtype": ["F32"]}},
        {"a": ONE | {"dtype": "F8_E4M3", "shape": [4]}},  # NumPy has no such
        {"a": ONE | {"dtype": "F8_E8M0", "shape": [2, 2]}},
        {"a": ONE, "b": ONE | {"shape": [0, 2**64 - 1], "data_offsets": [4, 4]}},
        {"a": ONE, "b": ONE | {"shape": [0] * 65, "data_offsets": [4, 4]}},
        {"a": ONE, "__metadata__": {"x": [1]}},
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,' + b"9" * 5000 + b"]}}",
    ],
    ids=range(16),
)
def test_headers_of_other_kinds_are_refused_as_damage_is(tmp_path, header):
    path = of_header(tmp_path / "x", header, bytes(4))
    with pytest.raises(ValueError, match="x: not a safetensors file, or damaged") as error:
        safetensors.read(path)
    assert "\n" not in str(error.value)


def test_a_header_of_many_names_is_read_in_a_moment(tmp_path):
    none = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    path = of_header(tmp_path / "x", {f"t{i}": none for i in range(20_000)})
    begun = time.process_time()
    assert len(safetensors.read(path)) == 20_000
    assert time.process_time() - begun < 4  # every name among all others took 9


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(OSError, match=r"is no regular file.*x\.safetensors") as caught:
        safetensors.read(tmp_path / "x.safetensors")
    assert caught.value.errno == errno.EINVAL
