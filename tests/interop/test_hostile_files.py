"""Files that PyTorch would not write end in one line, without PyTorch and whatever they ask for."""

import collections
import pickle
import zipfile

import pytest

from m4.errors import DataError
from m4.interop import state_dicts, torch_file


def file_of(tmp_path, code):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        file.writestr("x/data.pkl", code)
    return tmp_path / "x.pt"


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
