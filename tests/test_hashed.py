"""The hashed generator: draws are uniform, and keys, sites, steps, rows and devices independent.

Shares and correlations are held to 4.5 standard errors.
"""

from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from m4 import maths
from m4.maths import HASHED, torch_uniform
from m4.nn.layers import Dropout
from m4.train.step import init_params
from tests import toy

KEY = jax.random.key(0, impl=HASHED)
NUM = 2**16


def unrelated(draws):
    """Whether every pair of rows of draws is uncorrelated, neighbours in a row too."""
    draws = np.asarray(draws, np.float64).reshape(len(draws), -1)
    found = np.corrcoef(np.concatenate([draws, np.roll(draws, 1, axis=1)]))
    np.fill_diagonal(found, 0.0)
    return np.abs(found).max() < 4.5 / np.sqrt(draws.shape[1])


def test_keys_of_neighbouring_seeds_steps_sites_and_parts_are_unrelated():
    steps = [jax.random.fold_in(KEY, step) for step in range(8)]
    seeds = [jax.random.key(seed, impl=HASHED) for seed in range(1, 9)]
    parts = [*jax.random.split(KEY, 8)]
    twice = [*jax.random.split(steps[1], 2), jax.random.fold_in(parts[1], 1)]
    keys = [KEY, *steps, *seeds, *parts, *twice]
    words = {tuple(map(int, jax.random.key_data(key))) for key in keys}
    assert len(words) == len(keys)
    assert unrelated([jax.random.bits(key, (NUM,)) for key in keys])


def test_seeds_steps_and_sites_cannot_be_exchanged():
    """Seed 3 at step 5 is not seed 5 at step 3, nor is a key of a number with itself any other."""
    seeds = [jax.random.key(seed, impl=HASHED) for seed in range(16)]

    def folded(key):
        return jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.arange(16))

    once = jnp.stack([folded(key) for key in seeds])
    twice = jnp.stack([folded(key) for key in once[3]])
    for keys in (once, twice):
        words = np.asarray(jax.random.key_data(keys)).reshape(-1, 2)
        assert all(len(np.unique(word)) == 16**2 for word in words.T)


def test_no_two_of_many_keys_are_alike_in_either_word():
    """Of 2^16 steps and 2^8 sites: as few as chance has, 2^16 / 2^17 of 2^16 in a word."""
    steps = jax.vmap(lambda step: jax.random.fold_in(KEY, step))(jnp.arange(2**8))
    sites = jax.vmap(lambda k: jax.random.key_data(jax.random.split(k, 2**8)))(steps)
    for word in np.asarray(sites).reshape(-1, 2).T:
        assert len(word) - len(np.unique(word)) < 8


@pytest.mark.parametrize("width", [8, 16, 32])
def test_bits_are_uniform(width):
    bits = np.asarray(jax.random.bits(KEY, (NUM,), f"uint{width}"))
    assert bits.dtype == f"uint{width}"
    for bit in range(width):
        assert abs(((bits >> bit) & 1).mean() - 0.5) < 4.5 * 0.5 / np.sqrt(NUM)
    count = np.bincount(bits >> (width - 8), minlength=256)
    chi = np.square(count - NUM / 256).sum() / (NUM / 256)
    assert abs(chi - 255) < 4.5 * np.sqrt(2 * 255)


def test_wide_bits_come_from_two_draws():
    low, high = maths._split(jnp.array([1, 2], jnp.uint32), (2,))
    assert (maths.uniform_bits(low, (9,)) != maths.uniform_bits(high, (9,))).all()


def test_what_one_pair_of_words_cannot_number_has_more(monkeypatch):
    words = jnp.array([1, 2], jnp.uint32)
    whole = maths.uniform_bits(words, (4, 1000))
    monkeypatch.setattr(maths, "MOST_INDICES", 1000)
    parts = maths.uniform_bits(words, (4, 1000))
    assert unrelated([*parts, *whole])


@pytest.mark.parametrize(
    ("init", "sd"),
    [
        (nn.initializers.lecun_normal(), 200**-0.5),
        (nn.initializers.normal(0.02), 0.02),
        (nn.initializers.xavier_uniform(), (2 / 500) ** 0.5),
        (torch_uniform(), 200**-0.5 / 3**0.5),
        (torch_uniform(12), 12**-0.5 / 3**0.5),
    ],
)
def test_initial_values_have_the_moments_and_quantiles_of_the_published_ones(init, sd):
    """The generator may change, the distribution not: beside the same initialiser's by threefry."""
    ours, theirs = (
        np.sort(np.asarray(init(key, (200, 300))).ravel()) for key in (KEY, jax.random.key(0))
    )
    error = ours.size**-0.5
    assert abs(ours.mean()) < 4.5 * sd * error
    assert abs(ours.std() / sd - 1.0) < 4.5 * error
    distance = np.abs(np.searchsorted(theirs, ours) / ours.size - np.arange(ours.size) / ours.size)
    assert distance.max() < 1.95 * (2 / ours.size) ** 0.5  # Kolmogorov-Smirnov, p = 0.001


def test_parameters_and_seeds_have_values_of_their_own():
    method = toy.Toy(data=toy.SPEC, width=64)
    found = [init_params(method, toy.batch(0), seed=seed)["encode_vitals"] for seed in range(3)]
    kernels = [np.asarray(x["kernel"]).ravel() for x in found]
    wide = init_params(toy.Toy(data=toy.SPEC, width=64), toy.batch(0), seed=0)
    kernels += [np.asarray(x["kernel"]).ravel() for n, x in wide.items() if "encode" in n]
    size = min(map(len, kernels))
    again = kernels.pop(3)
    np.testing.assert_array_equal(again, kernels[0])  # the same seed, the same parameter
    assert unrelated([kernel[:size] for kernel in kernels])


class Sites(nn.Module):
    """Dropout in two places of one module, twice in one of them, and in another module."""

    @nn.compact
    def __call__(self, x):
        once = Dropout(0.5, deterministic=False, name="once")
        twice = Dropout(0.5, deterministic=False, name="twice")
        return [once(x), twice(x), twice(x), Inside(name="inside")(x)]


class Inside(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Dropout(0.5, deterministic=False, name="once")(x)


def masks(step, x):
    return Sites().apply({}, x, rngs={"dropout": jax.random.fold_in(KEY, step)})


def test_dropout_differs_between_sites_calls_steps_and_rows():
    x = jnp.ones((4, NUM // 4))
    found = [mask for step in range(2) for mask in masks(step, x)]
    assert unrelated([row for mask in found for row in np.asarray(mask)])


def test_draws_do_not_depend_on_the_mesh():
    x, mesh = jnp.ones((16, 40)), Mesh(np.array(jax.devices()[:8]), ("rows",))

    def draw(x):
        noise = jax.random.normal(jax.random.split(KEY)[1], x.shape)
        return noise, *masks(3, x)

    rows = NamedSharding(mesh, PartitionSpec("rows"))
    many = jax.jit(draw, in_shardings=rows, out_shardings=rows)(x)
    for one, other in zip(jax.jit(draw)(x), many, strict=True):
        np.testing.assert_array_equal(one, other)


def test_shared_dimensions_have_one_fate():
    x = jnp.ones((3, 4, 5, 6))
    y = Dropout(0.5, deterministic=False, shared=(1, 2)).apply({}, x, rngs={"dropout": KEY})
    assert {*np.unique(y)} == {0.0, 2.0}
    np.testing.assert_array_equal(y, jnp.broadcast_to(y[:, :1, :1], x.shape))


def test_no_module_draws_in_the_slow_way():
    """Flax's dropout and a key of JAX's own generator put loops into the step."""
    root = Path(maths.__file__).parent
    for path in root.rglob("*.py"):
        text = path.read_text()
        assert "nn.Dropout(" not in text, path
        if path.parts[-2:] in (("train", "step.py"), ("run", "programs.py")):
            assert text.count("jax.random.key(") == text.count("impl=HASHED)"), path


def test_a_key_is_not_computed_again_for_every_element():
    """Fused into a loop over elements a long chain of hashes compiles for minutes."""

    def drawn(seed, x_ND):
        key = jax.random.key(seed, impl=HASHED)
        for place in range(6):
            key = jax.random.fold_in(key, place)
        return jnp.where(maths.uniform_bits(jax.random.key_data(key), x_ND.shape) > 2**30, x_ND, 0)

    text = jax.jit(drawn).lower(0, jnp.ones((64, 130))).compile().as_text()
    loops = [part for part in text.split("\n\n") if "-> f32[64,130]" in part.split("\n")[0]]
    shifts = [part.count("shift-right-logical(") for part in loops]
    assert text.count("shift-right-logical(") > 24 and 0 < sum(shifts) <= 6, shifts
