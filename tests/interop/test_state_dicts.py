"""Tensor files: both formats, nested dictionaries, what is refused."""

import builtins
import os

import numpy as np
import pytest

from m4.errors import ConfigError, DataError
from m4.interop import state_dicts

RNG = np.random.default_rng(0)
TENSORS = {
    "scale": np.float32(RNG.standard_normal(())).reshape(()),
    "bias": RNG.standard_normal(3).astype(np.float32),
    "enc.a.weight": RNG.standard_normal((3, 2)).astype(np.float32),
    "enc.b.weight": RNG.standard_normal((2, 3)).astype(np.float32).T,  # not contiguous
}


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is not installed")


def same(found):
    assert found.keys() == TENSORS.keys()
    for name, x in TENSORS.items():
        assert found[name].dtype == np.float32 and found[name].shape == x.shape
        np.testing.assert_array_equal(found[name], x)


def test_safetensors_need_no_torch(tmp_path, monkeypatch):
    actual = builtins.__import__

    def without_torch(name, *args, **kwargs):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is blocked")
        return actual(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    path = tmp_path / "x.safetensors"
    state_dicts.write(path, {name: np.array(x, order="C") for name, x in TENSORS.items()})
    same(state_dicts.read(path).tensors)
    header = path.read_bytes()[8:]
    assert header.startswith(b'{"__metadata__":{"use":"research use only; not a medical device"}')
    with pytest.raises(ConfigError, match="torch files need torch"):
        state_dicts.write(tmp_path / "x.pt", TENSORS)
    (tmp_path / "x.pt").write_bytes(b"\x80\x02")  # of torch before 1.6
    with pytest.raises(ConfigError, match="torch files need torch"):
        state_dicts.read(tmp_path / "x.pt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pt", "x.safetensors"]


def test_damaged_safetensors(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(DataError, match="cannot be read as tensors alone"):
        state_dicts.read(tmp_path / "x.safetensors")


def test_torch_files_hold_dictionaries(tmp_path, torch):
    path = tmp_path / "x.pt"
    state_dicts.write(path, TENSORS, sections=("enc", "enc.a"))
    tree = torch.load(path, weights_only=True)
    assert list(tree) == ["scale", "bias", "enc"] and list(tree["enc"]) == ["a", "b.weight"]
    assert tree._metadata == {"": {"use": "research use only; not a medical device"}}
    same(state_dicts.read(path).tensors)
    linear = torch.nn.Linear(2, 3)
    state_dicts.write(path, {"weight": np.ones((3, 2), np.float32), "bias": np.ones(3, np.float32)})
    linear.load_state_dict(torch.load(path, weights_only=True), strict=True)
    assert linear.weight.sum() == 6
    state_dicts.write(path, TENSORS, sections=("enc", "enc.a"))
    torch.save({"network": tree, "epoch": 3, "best": {"f1": 0.5}}, path)
    found = state_dicts.read(path)
    same(found.tensors)
    assert found.notes == [
        "the state dict is under 'network'",
        "beside it, not taken: best, epoch",
    ]
    with pytest.raises(DataError, match=r"bias is torch.bfloat16, expected float32"):
        torch.save({"bias": torch.zeros(2, dtype=torch.bfloat16)}, path)
        state_dicts.read(path)
    with pytest.raises(DataError, match="holds no tensors"):
        torch.save({"epoch": 1}, path)
        state_dicts.read(path)
    with pytest.raises(DataError, match="holds a list"):
        torch.save([1], path)
        state_dicts.read(path)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_that_runs_code_is_refused_unrun(tmp_path, torch):
    bad = tmp_path / "was_run"
    torch.save({"weight": torch.zeros(1), "x": Malicious(str(bad))}, tmp_path / "x.pt")
    with pytest.raises(DataError, match="nothing in it was executed"):
        state_dicts.read(tmp_path / "x.pt")
    assert not bad.exists()
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert bad.exists()  # it would have run


def test_no_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        state_dicts.read(tmp_path / "x.safetensors")
