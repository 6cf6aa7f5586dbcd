"""Files that PyTorch would not write end in one line, without PyTorch and whatever they ask for."""

import collections
import os
import pickle
import pickletools
import sys
import time
import types
import zipfile

import numpy as np
import pytest

from m4.errors import DataError
from m4.interop import state_dicts, torch_file

# A tensor of one number.
TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQK\x00K\x01\x85K\x01\x85\x89}tR"
)


def file_of(tmp_path, code):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        file.writestr("x/data.pkl", code)
        file.writestr("x/data/0", bytes(4))
    return tmp_path / "x.pt"


def text(word):
    return b"X" + len(word).to_bytes(4, "little") + word.encode()


def dictionary(*pairs):
    return b"}(" + b"".join(key + value for key, value in pairs) + b"u"


def deep(depth):
    return b"\x80\x02})" + b"\x85" * depth + b"K\x01s."  # {((((),),),): 1}


def circle():
    tree = {}
    tree["a"] = {"b": tree}
    return pickle.dumps(tree, 2)


def nested(depth):
    tree = {}
    for _ in range(depth):
        tree = {"a": tree}
    return tree


def shared(depth):
    tree = {}
    for _ in range(depth):
        tree = {"a": tree, "b": tree}
    return tree


@pytest.mark.parametrize(
    "code",
    [
        deep(10**6),  # hashed, it ended the process
        deep(2000),
        b"\x80\x02})" + b"\x85q\x00" * 10**5 + b"K\x01s.",  # kept in the memo at every step
        b"\x80\x02ccollections\nOrderedDict\n]]()" + b"\x85" * 10**5 + b"K\x01ea\x85R.",
        b"\x80\x02}r\x00\x00\x00\x08.",  # a memo of 2 GB
        b"\x80\x05\x96" + (2**62).to_bytes(8, "little") + b".",
        circle(),
        pickle.dumps(nested(400), 2),
        pickle.dumps(shared(60), 2),
    ],
    ids=[
        "deep",
        "deeper than repr",
        "deep with a memo",
        "deep in pairs",
        "memo",
        "bytes",
        "circle",
        "dictionaries",
        "shared",
    ],
)
def test_what_a_pickle_asks_for_is_refused(tmp_path, code):
    with pytest.raises(DataError, match="x.pt") as error:
        state_dicts.read(file_of(tmp_path, code))
    if b"\x85" * 10 in code or b"\x85q" in code:
        assert "neither numbers nor texts" in str(error.value)


def test_what_lies_beside_weights_is_read_by_the_names_of_protocol_2(tmp_path):
    beside = {"seen": {1, 2}, "count": collections.defaultdict(list, a=[1]), "tuple": (1, (2, 3))}
    tree = torch_file.read(file_of(tmp_path, pickle.dumps(beside, 2)))
    assert tree["seen"] == [1, 2] and tree["tuple"] == (1, (2, 3))


UNWRITTEN = [op for op in pickletools.opcodes if op.name not in torch_file.INSTRUCTIONS]


@pytest.mark.parametrize("op", UNWRITTEN, ids=[op.name for op in UNWRITTEN])
def test_an_instruction_that_torch_never_writes_is_named(tmp_path, op):
    asks = (1 << 40).to_bytes(8, "little")
    path = file_of(tmp_path, b"\x80\x05" + op.code.encode("latin1") + asks + b".")
    with pytest.raises(DataError, match=f"the instruction {op.name}, which torch.save never"):
        state_dicts.read(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_that_torch_can_write_is_read(tmp_path, protocol):
    beside = {"seen": {1, 2}, "frozen": frozenset({"a"}), "bytes": b"x" * 300, "none": None}
    beside |= {"numbers": (1, -1, 300, 70_000, 2**40, 0.5, True, False), "list": [*range(2000)]}
    beside |= {"text": "ä" * 300, "n": np.int64(3), "ordered": collections.OrderedDict(a=1)}
    if protocol < 5:  # an array is a bytearray there, which makes room for what it says
        beside["array"] = np.ones(300)
    found = torch_file.read(file_of(tmp_path, pickle.dumps(beside, protocol)))
    assert {*found["seen"]} == {1, 2} and found["numbers"] == beside["numbers"]
    assert found["text"] == beside["text"] and found["list"] == beside["list"]
    assert found["ordered"] == {"a": 1}


def test_the_kind_of_a_storage_is_looked_at_before_it_is_hashed(tmp_path):
    kind = b")" + b"\x85" * 10**6  # a tuple so deep that hashing it ended the process
    pid = b"(" + text("storage") + kind + text("0") + text("cpu") + b"K\x01tQ"
    with pytest.raises(DataError, match="records of an unknown kind"):
        state_dicts.read(file_of(tmp_path, b"\x80\x02" + pid + b"."))


def test_wrappers_around_each_other_end(tmp_path):
    model = b"\x80\x02}q\x01(" + text("model") + b"q\x00"
    around = model + b"h\x01" + text("a") + TENSOR + b"u."  # it is its own model
    many = model + b"}h\x00" * 9999 + dictionary((text("a"), TENSOR)) + b"s" * 9999 + b"u."
    for code in (around, many):
        begun = time.process_time()
        with pytest.raises(DataError, match="more than 10 wrappers around each other"):
            state_dicts.read(file_of(tmp_path, code))
        assert time.process_time() - begun < 3


def test_what_lies_beside_weights_in_many_places_is_looked_at_once(tmp_path):
    count = 4000
    numbers = [b"M" + i.to_bytes(2, "little") for i in range(1, count)]
    shared = dictionary(*[(n, b"K\x01") for n in numbers]) + b"q\x00"
    places = [(b"K\x00", shared), *[(n, b"h\x00") for n in numbers], (text("a"), TENSOR)]
    begun = time.process_time()
    found = state_dicts.read(file_of(tmp_path, b"\x80\x02" + dictionary(*places) + b"."))
    assert list(found.tensors) == ["a"] and time.process_time() - begun < 3


def test_names_that_share_a_long_part_take_no_room(tmp_path):
    inner = dictionary((text("a"), TENSOR), (text("b"), TENSOR))
    for length in (990, 10**6):
        path = file_of(tmp_path, b"\x80\x02" + dictionary((text("k" * length), inner)) + b".")
        if length < 1000:
            assert len(state_dicts.read(path).tensors) == 2
            continue
        with pytest.raises(DataError, match="a name of more than 1000 characters"):
            state_dicts.read(path)


def test_nothing_can_be_set_on_a_dictionary(tmp_path):
    ordered = b"ccollections\nOrderedDict\n)R"
    state = dictionary((text("items"), ordered), (text("_metadata"), b"}"))
    code = b"\x80\x02" + ordered + text("a") + TENSOR + b"s" + state + b"b."
    assert list(state_dicts.read(file_of(tmp_path, code)).tensors) == ["a"]


@pytest.mark.parametrize("axes", [65, 20_000])
def test_a_tensor_of_endless_axes_is_refused_before_they_are_multiplied(tmp_path, axes):
    large = b"(" + (b"\x8a\xff" + b"\x01" * 255) * axes + b"t"
    code = TENSOR.replace(b"K\x01\x85K\x01\x85", large + large)
    with pytest.raises(DataError, match=f"a tensor of {axes} sizes"):
        state_dicts.read(file_of(tmp_path, b"\x80\x02}" + text("a") + code + b"s."))


def test_records_of_one_name_and_encrypted_ones_are_refused(tmp_path):
    path = file_of(tmp_path, b"\x80\x02}" + text("a") + TENSOR + b"s.")
    content = bytearray(path.read_bytes())
    at = -1
    while (at := content.find(b"PK\x01\x02", at + 1)) >= 0:
        content[at + 8] |= 1
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as file:
        file.writestr("x/data/0", np.full(1, 7, np.float32).tobytes())
    with pytest.raises(DataError, match="two of its records have one name"):
        state_dicts.read(path)
    path.write_bytes(content)
    with pytest.raises(DataError, match="its records are encrypted"):
        state_dicts.read(path)


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_what_is_no_file_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name}: cannot be read \(is no regular file\)"):
        state_dicts.read(tmp_path / name)


def test_an_old_file_whose_dictionaries_lie_in_many_places(tmp_path, monkeypatch):
    """As torch itself reads it; a stand-in, since what it returns is the question."""
    torch = types.SimpleNamespace(load=lambda *_, **__: shared(60))
    monkeypatch.setitem(sys.modules, "torch", torch)
    (tmp_path / "x.pt").write_bytes(b"\x80\x02")
    with pytest.raises(DataError, match="holds no tensors"):
        state_dicts.read(tmp_path / "x.pt")
