"""Digests: the formula in Python integers, sums over shards, every bit and position counts."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from m4 import sharding
from m4.train import digest

M64 = 2**64 - 1


def by_hand(words):
    """The formula of the module's docstring, one element after the other."""
    total = 0
    for place, bits in enumerate(words):
        word = bits ^ ((place * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) & M64)
        word = word * 0xBF58476D1CE4E5B9 & M64
        word ^= word >> 32
        word = word * 0x94D049BB133111EB & M64
        total += word ^ word >> 29
    return total & M64


def whole(array):
    return digest.partial_sum(array, (0,) * array.ndim, array.shape)


def test_formula_in_python_integers():
    bits = [0, 1, 0x3F800000, 0xFFFFFFFF]
    assert whole(np.array(bits, np.uint32).view(np.float32)) == by_hand(bits)
    assert whole(np.array(True)) == by_hand([1])
    half = np.asarray(jnp.array([[1.0, -2.0]], jnp.bfloat16))
    assert whole(half) == by_hand([0x3F80, 0xC000])
    assert whole(np.zeros((3, 0), np.float32)) == 0


@pytest.mark.parametrize("cuts", [(2, 1, 1), (1, 3, 1), (1, 1, 4), (2, 3, 2)])
def test_parts_add_up_whatever_the_split(cuts, monkeypatch):
    monkeypatch.setattr(digest, "CHUNK", 5)  # several pieces per part, in both directions
    array = np.random.default_rng(0).normal(size=(4, 6, 8)).astype(np.float32)
    sizes = [n // c for n, c in zip(array.shape, cuts, strict=True)]
    total = 0
    for number in itertools.product(*map(range, cuts)):
        start = tuple(i * s for i, s in zip(number, sizes, strict=True))
        block = array[tuple(slice(a, a + s) for a, s in zip(start, sizes, strict=True))]
        total += digest.partial_sum(block, start, array.shape)
    assert total % 2**64 == whole(array) == by_hand(array.ravel().view(np.uint32).tolist())


def test_every_bit_and_every_position_counts():
    array = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    right, found = whole(array), set()
    for place, bit in itertools.product(range(20), range(32)):
        other = array.copy()
        other.view(np.uint32).reshape(-1)[place] ^= 1 << bit
        found.add(whole(other))
    assert right not in found and len(found) == 640
    assert whole(array[::-1]) != right and whole(array.T) != right
    assert whole(np.zeros(4, np.float32)) != whole(-np.zeros(4, np.float32))


def test_digests_do_not_depend_on_the_mesh():
    array = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    expected = {"a.0": ["float32", [8, 4], f"{whole(array):016x}"], "b": ["int32", [], "?"]}
    expected["b"][2] = f"{by_hand([7]):016x}"
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    for spec in (PartitionSpec(), PartitionSpec("fsdp"), PartitionSpec("tensor", "data")):
        placed = jax.device_put(array, NamedSharding(mesh, spec))
        assert digest.of_tree({"a": (placed,), "b": jnp.int32(7)}) == expected
    assert digest.of_tree({"a": (array,), "b": np.int32(7)}) == expected
