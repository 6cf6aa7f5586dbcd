"""torch.save's files read without torch: what they hold, what is refused, nothing executed."""

import argparse
import collections
import io
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from m4.errors import DataError
from m4.interop import state_dicts, torch_file
from m4.interop.__main__ import main
from m4.nn.pretrained import safetensors

RNG = np.random.default_rng(0)
W = RNG.standard_normal((3, 2)).astype(np.float32)


class Storage:
    """A stand-in for a storage, which a pickler names as torch does."""

    def __init__(self, values, kind="FloatStorage"):
        self.values, self.kind = values, kind


class Global:
    """A name in a pickle."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """A call of a name with arguments, in a pickle."""

    def __init__(self, module, name, *args):
        self.function, self.args = Global(module, name), args


class Pickler(pickle._Pickler):
    """Writes `Storage`, `Global` and `Call` as torch.save would, without torch."""

    dispatch = dict(pickle._Pickler.dispatch)

    def __init__(self, file, storages):
        super().__init__(file, 2)
        self.storages = storages

    def persistent_id(self, x):
        if isinstance(x, Storage):
            self.storages.append(x)
            kind = Global("torch", x.kind)
            return "storage", kind, str(len(self.storages) - 1), "cpu", len(x.values)
        return None

    def save_global_(self, x):
        self.write(pickle.GLOBAL + f"{x.module}\n{x.name}\n".encode())

    def save_call(self, x):
        self.save_global_(x.function)
        self.save(x.args)
        self.write(pickle.REDUCE)


Pickler.dispatch[Global] = Pickler.save_global_
Pickler.dispatch[Call] = Pickler.save_call


def tensor(x, kind="FloatStorage", offset=0, stride=None):
    """As `torch._utils._rebuild_tensor_v2` is called."""
    x = np.asarray(x)
    stride = stride or tuple(s // x.itemsize for s in x.strides)
    flat = Storage(np.concatenate([np.zeros(offset, x.dtype), x.ravel()]), kind)
    args = flat, offset, x.shape, stride, False, collections.OrderedDict()
    return Call("torch._utils", "_rebuild_tensor_v2", *args)


def save(path: Path, tree):
    """A file as torch.save writes it."""
    storages: list[Storage] = []
    out = io.BytesIO()
    Pickler(out, storages).dump(tree)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", out.getvalue())
        file.writestr("x/byteorder", "little")
        for i, storage in enumerate(storages):
            file.writestr(f"x/data/{i}", storage.values.tobytes())
        file.writestr("x/version", "3\n")
    return path


def test_the_authors_container_needs_no_torch(tmp_path):
    """Options as a Namespace, scores as NumPy's numbers, an optimiser beside the weights."""
    args = argparse.Namespace(lr=1e-4, seeds=[0, 1], folder=Path("/x"))
    state = collections.OrderedDict(
        {
            "module.a.weight": tensor(W),
            "module._orig_mod.a.bias": Call(
                "torch._utils", "_rebuild_parameter", tensor(W[:, 0].copy(), offset=2), True, {}
            ),
            "module.turned": tensor(W, stride=(1, 3)),
        }
    )
    moments = {"state": {0: {"step": tensor(np.float32(3)), "exp_avg": tensor(W)}}}
    tree = {
        "network": state, "args": args, "best_val": {"f1": np.float64(0.5), "all": W},
        "optimizer_state_dict": moments, "epoch": 7,
    }  # fmt: skip
    found = state_dicts.read(save(tmp_path / "c.pth.tar", tree))
    assert list(found.tensors) == ["a.weight", "a.bias", "turned"] and found.ordered
    np.testing.assert_array_equal(found.tensors["a.weight"], W)
    np.testing.assert_array_equal(found.tensors["a.bias"], W[:, 0])
    np.testing.assert_array_equal(found.tensors["turned"], W.ravel().reshape(2, 3).T)
    assert found.notes == [
        "the state dict is under 'network'",
        "beside it, not taken: args, best_val, epoch, optimizer_state_dict",
        "prefixes module. and _orig_mod. were taken off",
    ]


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
def test_wrappers_are_entered(tmp_path, wrapper):
    path = save(tmp_path / "c.pt", {wrapper: {"a": tensor(W)}, "optimizer": {"b": tensor(W)}})
    assert list(state_dicts.read(path).tensors) == ["a"]


def test_two_wrappers_are_not_guessed_between(tmp_path):
    path = save(tmp_path / "c.pt", {"model": {"a": tensor(W)}, "state_dict": {"a": tensor(W)}})
    with pytest.raises(DataError, match="under 'state_dict' and 'model': save one of them"):
        state_dicts.read(path)


def test_a_name_that_is_there_twice(tmp_path):
    path = save(tmp_path / "c.pt", {"a": tensor(W), "module.a": tensor(W)})
    with pytest.raises(DataError, match="a is there twice, with and without a prefix"):
        state_dicts.read(path)


def test_a_tensor_is_the_model_s_whatever_its_name(tmp_path):
    """Layers may be called as an optimiser's companions are."""
    state = {"scaler.weight": tensor(W), "optim": tensor(W[0]), "schedule_embed.bias": tensor(W)}
    path = save(tmp_path / "c.pt", state | {"scaler": {"scale": tensor(W)}})
    found = state_dicts.read(path)
    assert list(found.tensors) == list(state)
    assert found.notes == ["beside it, not taken: scaler"]


def test_expanded_tensors_are_read_and_take_no_room(tmp_path):
    """As `torch.zeros(1).expand(...)` is saved: one number, strides of 0."""
    wide = (10**6, 10**6)
    one = Storage(np.float32([7.0]))
    names = {"a": (3, 2), "b": wide}
    made = {
        n: Call("torch._utils", "_rebuild_tensor_v2", one, 0, size, (0, 0), False, {})
        for n, size in names.items()
    }
    found = state_dicts.read(save(tmp_path / "c.pt", made)).tensors
    np.testing.assert_array_equal(found["a"], np.full((3, 2), 7.0, np.float32))
    assert found["b"].shape == wide and found["b"][-1, -1] == 7.0


def test_a_record_is_read_once_however_many_tensors_share_it(tmp_path, monkeypatch):
    shared = tensor(W)
    path = save(tmp_path / "c.pt", {f"t{i}": shared for i in range(5)})
    reads, read = [], zipfile.ZipFile.read
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda f, n: (reads.append(n), read(f, n))[1])
    assert len(state_dicts.read(path).tensors) == 5
    assert len(reads) == len(set(reads))


def test_records_that_would_take_more_room_than_the_file_are_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda _: pytest.fail("read"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/data.pkl", bytes(10**6))
    with pytest.raises(DataError, match="its records are compressed"):
        state_dicts.read(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", b"x" * 1000)
        file.filelist += [file.filelist[0]] * 50  # entries that share their bytes
    with pytest.raises(DataError, match=r"is damaged .*records have 51000 bytes, the file only"):
        state_dicts.read(path)


def test_keys_that_are_no_texts_are_written_as_python_does(tmp_path):
    tree = {0: tensor(W), ("a", 1): tensor(W), b"\x1b[31m": tensor(W), True: {"n": tensor(W)}}
    tree |= {("note", "\x1b[2J"): 1, "frozen": frozenset({1})}
    found = state_dicts.read(save(tmp_path / "c.pt", tree))
    assert list(found.tensors) == ["0", "('a', 1)", r"b'\x1b[31m'", "True.n"]
    assert found.notes == [r"beside it, not taken: ('note', '\x1b[2J'), frozen"]


@pytest.mark.parametrize("suffix", [".pt", ".pth.tar", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "pointer of Git LFS",
        ),
        (b"<!DOCTYPE html><html>not found</html>", "is a web page"),
        (b"\x1f\x8b\x08\x08abcdefgh" * 9, "is compressed by gzip"),
        (b"epoch,loss\n1,0.5\n", None),
    ],
)
def test_other_files_are_named_without_torch(tmp_path, monkeypatch, content, suffix, says):
    monkeypatch.setitem(sys.modules, "torch", None)
    path = tmp_path / f"c{suffix}"
    path.write_bytes(content)
    safe = (
        "cannot be read as tensors alone" if suffix == ".safetensors" else "no file of torch.save"
    )
    with pytest.raises(DataError, match=says or safe) as error:
        state_dicts.read(path)
    assert len(error.value.args) == 1


class Malicious:
    def __reduce__(self):
        return eval, ("1 / 0",)


def set_on(target, name, value):
    """A pickle that sets an attribute of what a name stands for."""

    class Set:
        pass

    def write(pickler, _):
        pickler.save_global_(target)
        pickler.save((None, {name: value}))
        pickler.write(pickle.BUILD)

    Pickler.dispatch[Set] = write
    return Set()


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (Malicious(), "it names (builtins|__builtin__).eval"),
        (Global("os", "system"), "it names os.system"),
        (Call("builtins", "getattr", Global("os", "system"), "x"), "names builtins.getattr"),
        (Global("torch._utils", "_rebuild_tensor"), "it names torch._utils._rebuild_tensor"),
        (Global("torch.nn.modules.linear", "Linear"), "names torch.nn.modules.linear.Linear"),
    ],
)
def test_any_other_name_is_refused_unrun(tmp_path, x, match):
    path = save(tmp_path / "c.pt", {"a": tensor(W), "x": x})
    with pytest.raises(DataError, match=f"{match}.*nothing in it was executed"):
        state_dicts.read(path)


@pytest.mark.parametrize("target", sorted(torch_file.NAMES))
def test_nothing_can_be_set_on_a_name(tmp_path, target):
    before = vars(torch_file.Inert).copy()
    path = save(tmp_path / "c.pt", {"a": tensor(W), "x": set_on(Global(*target), "__call__", 1)})
    with pytest.raises(DataError):
        state_dicts.read(path)
    assert vars(torch_file.Inert) == before


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (tensor(W, "BFloat16Storage"), None),
        (Call("torch._utils", "_rebuild_meta_tensor_no_storage", 1, (2, 3), (3, 1), False),
         "b is on the meta device"),
        (Call("torch._utils", "_rebuild_sparse_tensor", 1, 2), "b is sparse, expected a dense"),
        (tensor(np.zeros(4, np.uint16), "BFloat16Storage"), "b is torch.bfloat16, expected"),
        (tensor(W, stride=(2, 2)), "reaches beyond its 6 numbers"),
        (tensor(W, stride=(-2, 1)), "is damaged .*strides"),
        (tensor(np.zeros(3, np.float64), "FloatStorage"), "has 6 numbers, expected 3"),
    ],
)  # fmt: skip
def test_tensors_without_numbers(tmp_path, x, match):
    path = save(tmp_path / "c.pt", {"a": tensor(W), "b": x, "c": x})
    with pytest.raises(DataError, match=match) as error:
        state_dicts.read(path)
    if match and match.startswith("b is"):  # all at once
        assert len(error.value.args) == 2


def test_every_flipped_bit_of_the_numbers_is_found(tmp_path):
    path = save(tmp_path / "c.pt", {"a": tensor(W)})
    whole = path.read_bytes()
    at = whole.index(W.tobytes())
    for place in (at, at + W.nbytes - 1):
        bad = bytearray(whole)
        bad[place] ^= 1
        path.write_bytes(bytes(bad))
        with pytest.raises(DataError, match="is damaged: the checksum of x/data/0 is wrong"):
            state_dicts.read(path)


def test_any_damage_is_one_line(tmp_path):
    path = save(tmp_path / "c.pt", {"a": tensor(W), "n": {"b": tensor(W[0])}})
    whole = path.read_bytes()
    for i in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[i] ^= 0x55
        for content in (whole[:i], bytes(flipped)):
            path.write_bytes(content)
            try:
                found = state_dicts.read(path).tensors
            except DataError as error:
                assert str(path) in error.args[0]
            except Exception as error:
                assert "need torch" in str(error), (i, error)  # no zip any more
            else:  # what was flipped says nothing of the numbers
                np.testing.assert_array_equal(found["a"], W)


def test_folders_and_other_zips(tmp_path):
    (tmp_path / "d.pt").mkdir()
    with pytest.raises(DataError, match="d.pt: is a folder, expected a file"):
        state_dicts.read(tmp_path / "d.pt")
    with zipfile.ZipFile(tmp_path / "z.pt", "w") as file:
        file.writestr("x", "y")
    with pytest.raises(DataError, match="zip without one data.pkl"):
        state_dicts.read(tmp_path / "z.pt")


def test_torch_agrees(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    model[0](torch.ones(1, 3)).sum().backward()
    adam = torch.optim.Adam(model.parameters())
    adam.step()
    args = argparse.Namespace(device=torch.device("cpu"), dtype=torch.float32, seed=np.int64(3))
    tree = {"state_dict": model.state_dict(), "optimizer": adam.state_dict(), "args": args}
    tree |= {"best": np.float64(0.5), "p": torch.nn.Parameter(torch.ones(2))}
    torch.save(tree | {"scores": np.zeros(3)}, tmp_path / "c.pt")
    found = state_dicts.read(tmp_path / "c.pt").tensors
    assert list(found) == list(model.state_dict())
    for name, x in model.state_dict().items():
        np.testing.assert_array_equal(found[name], x.numpy())
    torch.save(model.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert list(state_dicts.read(tmp_path / "old.pt").tensors) == list(found)
    for bad in (torch.zeros(2, 2, device="meta"), torch.zeros(2).to_sparse()):
        torch.save({"a": bad}, tmp_path / "c.pt")
        with pytest.raises(DataError, match="a is (on the meta device|sparse)"):
            state_dicts.read(tmp_path / "c.pt")


def test_bad_files_end_the_command_in_one_line_before_data_are_built(tmp_path, capsys):
    meta = Call("torch._utils", "_rebuild_meta_tensor_no_storage", 1, (2, 3), (3, 1), False)
    save(tmp_path / "meta.pt", {"model": {"a": meta}})
    (tmp_path / "folder.pt").mkdir()
    whole = save(tmp_path / "cut.pt", {"a": tensor(W)}).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    safetensors.write({"a": W}, tmp_path / "long.safetensors")
    with (tmp_path / "long.safetensors").open("ab") as file:
        file.write(bytes(64))
    out = tmp_path / "out"
    for name, says in {
        "meta.pt": "a is on the meta device: it has a shape, but no numbers",
        "folder.pt": "is a folder, expected a file",
        "cut.pt": "is damaged",
        "long.safetensors": "64 bytes follow the last tensor",
    }.items():
        args = [f"--torch={tmp_path / name}", f"--out={out}", "--config=configs/flexmoe_adni.py"]
        code = main(["import", "--method=flexmoe", "--config.method.fidelity=released", *args])
        (line,) = capsys.readouterr().err.splitlines()
        assert (
            code == 3 and line.startswith(f"m4: data error: {tmp_path / name}: ") and says in line
        )
        assert not out.exists()
