"""Topologies by name: what they are made of, and what is refused in words."""

import math

import pytest

from m4.errors import ConfigError
from m4.plan import topology


@pytest.mark.parametrize(
    ("name", "count", "slices"),
    [
        ("v5p:8x8x16", 1024, 1),
        ("v5p:4x4x4+4x4x4", 128, 2),
        ("v6e:16x16", 256, 1),
        ("h200:8", 8, 1),
        ("h200:4", 4, 1),
        ("h100:64", 64, 8),
        ("cpu:8", 8, 1),
    ],
)
def test_names(name, count, slices):
    found = topology.parse(name)
    assert (found.count, found.slices) == (count, slices)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v9:2x2", "must begin with one of v4, v5e"),
        ("v5p", "must be v5p:4x4x4"),
        ("v5p:8", "must be v5p:4x4x4"),
        ("v6e:4x4x4", "must be v6e:4x4,"),
        ("v5p:4x4x4+2x2x2", "equal slices"),
        ("v5p:0x4x4", "must be v5p"),
        ("h200:12", "whole nodes of 8"),
        ("cpu:-1", "must be cpu:NUMBER"),
        ("cpu:8x8", "must be cpu:NUMBER"),
        ("", "must begin with one of"),
    ],
)
def test_refusals(name, says):
    with pytest.raises(ConfigError, match=says):
        topology.parse(name)


def test_the_table_is_plausible():
    for name, chip in topology.CHIPS.items():
        assert chip.bfloat16 >= chip.float32 > 1e9, name
        assert chip.link * chip.links > chip.network > 0, name
        assert math.isinf(chip.memory) == (name == "cpu")
        assert chip.source


def test_without_a_compiler_it_says_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    pod = topology.parse("v5p:16x16x16")
    assert pod.compiler == "cpu" and pod.virtual == topology.VIRTUAL
    assert pod.note().startswith("no libtpu") and "1024 of them" in pod.note()
    assert "device_count=1024" in pod.environment()["XLA_FLAGS"]
    assert "no compiler for GPUs" in topology.parse("h200:8").note()
    assert topology.parse("cpu:8").note() == ""
