"""Small formulas that several rooms need, once each, and what of them a mesh must be told.

Letters: N rows, E entries of a row, K largest of them, G blocks of J entries; B rows, M modalities,
C combinations of them.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from types import EllipsisType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.extend.random import define_prng_impl
from jax.sharding import AxisType, PartitionSpec

from m4.axes import LAYERS as LAYERS
from m4.axes import ROWS, RULES

Array = jax.Array
EXACT = "m4_exact"  # in the name stack of what `exact` covers

# --- precision ----------------------------------------------------------------------------------


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Products inside keep float32, their gradients too, whatever `train.precision` says.

    JAX forgets the precision asked for where it traces later: the rules of a `jax.custom_vjp`.
    It keeps names.
    """
    with jax.default_matmul_precision("highest"), jax.named_scope(EXACT):
        yield


# --- activations and distributions --------------------------------------------------------------


def gelu(x: Array) -> Array:
    """Exact GELU (with erf), PyTorch's default; JAX's own, by erfc, takes a CPU twice as long."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5))


def softmax(scores: Array, mask: Array | None = None, *, axis: int = -1) -> Array:
    """Softmax along `axis` among `mask` (broadcastable; None: all), in at least float32.

    What is masked or has a score of -inf gets 0, and so has its gradient, even where that is
    everything.
    """
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    # The result does not depend on the peak. Its gradient compares recomputed scores with their
    # maximum: where rounding differs that is 0 / 0.
    peak = jax.lax.stop_gradient(scores.max(axis, keepdims=True))
    powers = jnp.exp(scores - jnp.where(peak == -jnp.inf, 0.0, peak))
    total = powers.sum(axis, keepdims=True)
    return powers / jnp.where(total == 0.0, 1.0, total)


def logsumexp(scores: Array) -> Array:
    """Logarithm of the sum of exp(scores) over the last dimension; -inf where all are -inf.

    The gradient is 0 there, where that of JAX's is NaN.
    """
    none = jnp.all(scores == -jnp.inf, axis=-1)
    total = jax.nn.logsumexp(jnp.where(none[..., None], 0.0, scores), axis=-1)
    return jnp.where(none, -jnp.inf, total)


def entropy(probs: Array) -> Array:
    """-sum p log p over the last dimension in nats, with 0 log 0 = 0 and gradient 0 there."""
    safe = jnp.where(probs > 0.0, probs, 1.0)
    return -jnp.sum(safe * jnp.log(safe), -1)


# --- the largest of a row -------------------------------------------------------------------------

MOST_ROUNDS = 4  # largest K that XLA:CPU finds faster in rounds than by sorting
FEW = 16  # entries of a row that XLA:CPU searches in registers
LOWEST = jnp.iinfo(jnp.int32).min


def largest(scores: Array, k: int) -> Array:
    """Indices i32[N, ..., K] of the K largest of [N, ..., E], largest first; ties go to the lower.

    As `jax.lax.top_k`, in the same total order (NaN above infinity, 0 above -0). On a CPU, where
    that partially sorts every row, a small K is found in K rounds of maxima instead. On a mesh
    every device searches its own rows; `top_k` by itself would be run on all rows everywhere.
    """

    def sort(scores):
        return jax.lax.top_k(scores, k)[1]

    def rounds(scores):
        found = _in_two_stages(scores.reshape(-1, scores.shape[-1]), k=k)
        return found.reshape(*scores.shape[:-1], k)

    def search(scores):
        return jax.lax.platform_dependent(scores, cpu=rounds, default=sort)

    few = k <= MOST_ROUNDS and scores.dtype == jnp.float32
    return by_rows(search if few else sort, jax.lax.stop_gradient(scores))


def _in_two_stages(scores_NE, *, k):
    """The K blocks of entries with the largest maxima, then the K largest of their entries.

    The only pass over all scores is the one for the blocks' maxima. Blocks are contiguous and
    are searched in order of their index, so that ties still go to the lower entry.
    """
    num_rows, num = scores_NE.shape
    if num <= FEW or num <= 2 * k:
        return _in_rounds(_ordered(scores_NE), k)
    size = min(max(num // FEW, 2), FEW)
    num_blocks = -(-num // size)
    padding = ((0, 0), (0, num_blocks * size - num))
    padded_NE = jnp.pad(scores_NE, padding, constant_values=-jnp.inf)
    scores_NGJ = rearrange(padded_NE, "n (g j) -> n g j", n=num_rows, j=size)
    blocks_NK = _ascending(_in_rounds(_ordered(scores_NGJ).max(-1), min(k, num_blocks)))
    within_NKJ = jnp.take_along_axis(scores_NGJ, blocks_NK[:, :, None], axis=1)
    best_NK = _in_rounds(_ordered(rearrange(within_NKJ, "n k j -> n (k j)")), k)
    return jnp.take_along_axis(blocks_NK, best_NK // size, axis=1) * size + best_NK % size


def _in_rounds(keys_NE, k):
    """Indices of the K largest integers: the first maximum, K times, each time without the last."""
    entry_E = jnp.arange(keys_NE.shape[-1], dtype=jnp.int32)
    chosen = []
    for _ in range(k):
        chosen.append(jax.lax.argmax(keys_NE, 1, jnp.int32))
        keys_NE = jnp.where(entry_E == chosen[-1][:, None], LOWEST, keys_NE)
    return jnp.stack(chosen, axis=-1)


def _ascending(index_NK):
    """Sorted rows, by exchanges: for a few columns `jnp.sort` costs as much as a search."""
    columns = list(index_NK.T)
    for last in range(len(columns) - 1, 0, -1):
        for i in range(last):
            low, high = columns[i], columns[i + 1]
            columns[i], columns[i + 1] = jnp.minimum(low, high), jnp.maximum(low, high)
    return jnp.stack(columns, axis=-1)


def _ordered(scores):
    """Integers in the total order of float32 scores, above `LOWEST`: -inf can still be chosen."""
    bits = jax.lax.bitcast_convert_type(scores, jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


# --- on a mesh ----------------------------------------------------------------------------------


def lie(x: Array, *names: str | EllipsisType | None) -> Array:
    """`x`, whose dimensions lie on the mesh axes that these names have in `m4.axes.RULES`.

    `...` and None leave dimensions to the compiler, as does an axis that doesn't divide one.
    Without a mesh of several devices, and inside `shard_map`, nothing.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:
        return x
    middle = names.index(...) if ... in names else len(names)
    fill = (None,) * (x.ndim - len(names) + (... in names))
    every = (*names[:middle], *fill, *names[middle + 1 :])
    rules: dict[Any, tuple[str, ...]] = dict(RULES)
    wanted = [rules.get(name, ()) for name in every]
    axes = [_axes_of(names, size) for names, size in zip(wanted, x.shape, strict=True)]
    if not any(axes):
        return x
    free = PartitionSpec.UNCONSTRAINED
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(a or free for a in axes)))


def row_axes() -> tuple[str, ...]:
    """Axes of the mesh, of more than one device, over which rows are split; inside them none."""
    return _axes_of(ROWS, 0)


def by_rows(function: Callable[..., Any], *arrays: Array) -> Any:
    """`function(*arrays)`, that treats rows [N, ...] apart, on every device's own rows.

    What the compiler cannot split, such as a sort, it would do with all rows on every device. The
    result is any tree of arrays [N, ...]; it has no gradient.
    """
    axes, num = row_axes(), arrays[0].shape[0]
    arrays = jax.tree.map(jax.lax.stop_gradient, arrays)
    if not axes:
        return function(*arrays)
    mesh, spec = jax.sharding.get_abstract_mesh(), PartitionSpec(axes)
    padding = -num % math.prod(mesh.shape[axis] for axis in axes)
    padded = [jnp.pad(a, ((0, padding), *((0, 0),) * (a.ndim - 1))) for a in arrays]
    apart = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return jax.tree.map(lambda a: a[:num], apart(*padded))


def _axes_of(axes: tuple[str, ...], size: int) -> tuple[str, ...]:
    """Those of several devices that the compiler still splits by, if they divide `size`."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    there = tuple(a for a in axes if mesh.shape.get(a, 1) > 1 and kinds[a] == AxisType.Auto)
    return () if size % math.prod(mesh.shape[axis] for axis in there) else there


# --- random numbers -----------------------------------------------------------------------------


def murmur3(bits: Array) -> Array:
    """Avalanche of u32: the finaliser of MurmurHash3, a bijection."""
    bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def lowbias32(bits: Array) -> Array:
    """Avalanche of u32: `lowbias32` of Wellons' hash-prospector, a bijection."""
    bits = (bits ^ (bits >> 16)) * np.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * np.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


def uniform_bits(words: Array, shape: tuple[int, ...]) -> Array:
    """u32 of a shape, from the first and last of some random words: a hash of each index.

    A bijection of 32 bits before and after the second word. Equal indices of two calls are
    independent as far as their words are. Elements beyond 2^32 have words of their own.
    """
    if math.prod(shape) > MOST_INDICES:
        rows = _split(words, (shape[0],))
        return jax.vmap(lambda words: uniform_bits(words, shape[1:]))(rows)
    index = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for dim in range(len(shape) - 1, -1, -1):
        step = jax.lax.broadcasted_iota(jnp.uint32, shape, dim)
        index += step * np.uint32(stride % 2**32)
        stride *= shape[dim]
    words = jax.lax.platform_dependent(words, cpu=_apart, default=lambda words: words)
    return lowbias32(lowbias32(index ^ words[0]) + words[-1])


def _apart(words):
    """The same words, computed once and before what reads them: XLA:CPU fuses nothing with a sort.

    A key is a chain of hashes of seed, step and place in the model. Fused into a loop over elements
    it is computed anew for each of them, and LLVM's vectoriser follows every path through it, 2^36
    of them: the step of M3H compiled for 7 minutes. XLA:CPU drops optimization barriers too early.
    """
    order = jnp.arange(words.shape[0], dtype=jnp.uint32)
    return jax.lax.sort((order, words), num_keys=1)[1]


def _seed(seed):
    return lowbias32(jnp.asarray(seed).astype(jnp.uint32) + _WORDS)


def _fold_in(words, data):
    # Words are hashed again: those of a seed are made as these of `data`, and of two that are made
    # alike the exclusive or does not know the order: seed 3 at step 5 would be seed 5 at step 3.
    data = lowbias32(jnp.asarray(data).astype(jnp.uint32) + _WORDS)
    return lowbias32(lowbias32(words + np.uint32(0x27D4EB2F)) ^ data)


def _split(words, shape):
    index = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(*shape, 1)
    return _fold_in(lowbias32(words + np.uint32(0x632BE5AB)), index)


def _random_bits(words, width, shape):
    if width > 32:
        low, high = (uniform_bits(w, shape).astype(jnp.uint64) for w in _split(words, (2,)))
        return low | (high << 32)
    return (uniform_bits(words, shape) >> (32 - width)).astype(f"uint{width}")


MOST_INDICES = 2**32  # elements that one pair of words can number
_WORDS = np.array([0x9E3779B9, 0x85EBCA77], np.uint32)
# `jax.random.key(seed, impl=HASHED)` gives keys with which all of `jax.random` is hashed, 64 bits
# of state a key. JAX's own, threefry, is twenty rounds a number: 20 ns on a CPU core, a loop in
# the program at every use, and a quarter of the time that a train step took to compile.
HASHED = define_prng_impl(
    key_shape=(2,), seed=_seed, split=_split, random_bits=_random_bits, fold_in=_fold_in,
    name="m4_hashed", tag="m4",
)  # fmt: skip


def torch_uniform(fan_in: int | None = None) -> Callable[..., Array]:
    """U(-b, b), b = 1 / sqrt(fan_in): PyTorch's default for linear maps and convolutions.

    `fan_in` None: that of the kernel's own shape; biases need it.
    """
    if fan_in is None:
        return jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


# --- combinations of modalities -----------------------------------------------------------------
# A combination is a non-empty set. They are numbered by decreasing size, in lexicographic order
# within a size, as in Flex-MoE: of I, G, C and B, 0 is all four, 1 IGC, 2 IGB, 3 ICB, 4 GCB, 5 IG,
# ... and 14 is B alone.


def combination_index(present_BM: Array, *, modulo: int | None = None) -> Array:
    """Number of each row's combination, i32[B], modulo `modulo`; 2^M - 1 for an empty row.

    Computed from binomial coefficients, without a table of 2^M entries: with `modulo` any number
    of modalities is possible, without it up to 30.
    """
    num = present_BM.shape[-1]
    if modulo is None and num > 30:
        raise ValueError(f"{num} modalities have more combinations than 32 bits can count")

    def shrink(n):
        return n if modulo is None else n % modulo

    # Of sets of size k, the last one: all larger sets, and its own size, come before.
    until_K = [sum(math.comb(num, s) for s in range(k, num + 1)) - 1 for k in range(num + 1)]
    after_MK = [[shrink(math.comb(num - 1 - m, k)) for k in range(num + 1)] for m in range(num)]
    here_BM = present_BM.astype(jnp.int32)
    rest_BM = jnp.cumsum(here_BM[:, ::-1], axis=-1)[:, ::-1]  # present here and later
    after_BM = jnp.array(after_MK, jnp.int32)[jnp.arange(num), rest_BM]
    last_B = jnp.array([shrink(n) for n in until_K], jnp.int32)[here_BM.sum(-1)]
    index_B = last_B - jnp.sum(after_BM * here_BM, axis=-1)
    return index_B if modulo is None else index_B % modulo


def combinations(num: int, *, max_size: int | None = None) -> np.ndarray:
    """All combinations in order, bool[C, M]; with `max_size` the full set and the small ones."""
    sizes = [num, *range(min(max_size or num, num - 1), 0, -1)]
    sets = [chosen for size in sizes for chosen in itertools.combinations(range(num), size)]
    return np.array([[m in chosen for m in range(num)] for chosen in sets])
