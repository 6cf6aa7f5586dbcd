"""Layers of every method: affine maps, norms, dropout, attention, residual blocks, heads.

Thirteen modalities as thirteen modules cost thirteen graphs to compile. Here their parameters
are stacked on a leading axis and one einsum serves all; a stack of 1 is shared by all.

Letters: B rows, M modalities, S stacks (M, or 1 when shared), i input, o output width, T tokens of
a modality (tasks in heads), Q queries, L keys (layers in `repeat`), H heads, c width of a head,
D model width.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from m4.maths import LAYERS, lie, softmax, torch_uniform, uniform_bits
from m4.specs import TaskSpec
from m4.types import Array

Initializer = nn.initializers.Initializer
Layer = Callable[[int, Any], tuple[Any, Any]]  # (its number, carry) -> (carry, by-product)
# Of stacked kernels [S, i, o].
LECUN = nn.initializers.lecun_normal(batch_axis=(0,))
XAVIER = nn.initializers.xavier_uniform(batch_axis=(0,))
GENERIC = ("binary", "multilabel", "multiclass", "regression", "survival")
LARGE = 2**16  # numbers in the input of an affine map from which the order of operands matters
HAT_EDGES = (-2.07, -1.38, -0.67, -0.21, 0.21, 0.67, 1.38)  # cut the normal evenly; one tail below


class StackedDense(nn.Module):
    """y[b, m, ..., o] = x[b, m, ..., i] W[m] + b[m], with W shared where `num_stacks` is 1."""

    features: int
    num_stacks: int = 1
    kernel_init: Initializer = LECUN
    bias_init: Initializer | None = nn.initializers.zeros  # None: no bias

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, M, ..., i] -> [B, M, ..., features]; M must be `num_stacks` unless that is 1."""
        shape = (self.num_stacks, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        x, kernel = jnp.asarray(x), jnp.asarray(kernel)  # vmap takes no NumPy array in a jit
        if self.num_stacks == 1:
            y = linear(x, kernel[0])
        elif x.size < LARGE:
            y = jnp.einsum("bm...i,mio->bm...o", x, kernel)
        else:
            y = jax.vmap(linear, in_axes=(1, 0), out_axes=1)(x, kernel)
        if self.bias_init is None:
            return y
        bias = self.param("bias", self.bias_init, (self.num_stacks, self.features))
        return y + expand(bias, y.ndim)


@jax.custom_vjp
def linear(x: Array, kernel_io: Array) -> Array:
    """[..., i] -> [..., o], with the order of operands that suits XLA:CPU, forwards and backwards.

    An einsum over stacks puts the kernel first, its gradient the outputs: either way a product is
    stored transposed and turned afterwards, at half the speed.
    """
    return jnp.matmul(x, kernel_io)


def _linear_forward(x, kernel_io):
    return linear(x, kernel_io), (x, kernel_io)


def _linear_backward(saved, dy):
    x, kernel_io = saved
    if x.shape[-1] <= dy.shape[-1]:  # XLA:CPU turns the first operand: the narrower is cheaper
        dkernel_io = jnp.einsum("...i,...o->io", x, dy)
    else:
        dkernel_io = jnp.einsum("...o,...i->oi", dy, x).T
    return jnp.matmul(dy, kernel_io.T).astype(x.dtype), dkernel_io.astype(kernel_io.dtype)


linear.defvjp(_linear_forward, _linear_backward)


class StackedLayerNorm(nn.Module):
    """Layer norm over the last dimension with one scale and bias per modality."""

    num_stacks: int = 1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, M, ..., D] -> the same shape."""
        shape = (self.num_stacks, x.shape[-1])
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        centred = x - x.mean(-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.epsilon)
        return normed * expand(scale, x.ndim) + expand(bias, x.ndim)


def expand(param_SD: Array, ndim: int) -> Array:
    """[S, D] -> [S, 1, ..., D], which broadcasts against [B, M, ..., D] of `ndim` dimensions."""
    stacks, width = param_SD.shape
    return param_SD.reshape(stacks, *(1,) * (ndim - 3), width)


def hats(x_BN: Array) -> Array:
    """[x, piecewise-linear encoding of x], [B, 7 N], for inputs in z units.

    Gorishniy, Rubachev and Babenko (NeurIPS 2022), section 3.1, with edges at quantiles of the
    normal distribution rather than of the data: nothing is fitted.
    """
    low, high = np.array(HAT_EDGES[:-1]), np.array(HAT_EDGES[1:])
    share_BNK = jnp.clip((x_BN[..., None] - low) / (high - low), 0.0, 1.0) - 0.5
    return jnp.concatenate([x_BN, share_BNK.reshape(*x_BN.shape[:-1], -1)], axis=-1)


class Dropout(nn.Module):
    """As `nn.Dropout`: zeros with probability `rate`, everything else over 1 - rate.

    An element's number is a hash of its index and of the site's key (`m4.maths.uniform_bits`):
    a few operations beside those that read it, on any mesh the same.
    """

    rate: float
    deterministic: bool
    shared: Sequence[int] = ()  # dimensions along which all have one fate

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Any shape; draws from the rng stream 'dropout' unless `deterministic` or rate is 0."""
        if self.deterministic or self.rate == 0:
            return x
        if self.rate >= 1:
            return jnp.zeros_like(x)
        shared = {range(x.ndim)[dim] for dim in self.shared}
        shape = tuple(1 if dim in shared else size for dim, size in enumerate(x.shape))
        bits = uniform_bits(jax.random.key_data(self.make_rng("dropout")), shape)
        keep = bits >= np.uint32(min(round(self.rate * 2**32), 2**32 - 1))
        return jnp.where(keep, x / (1.0 - self.rate), 0).astype(x.dtype)


# --- what is absent -------------------------------------------------------------------------------


def masked_mean(x: Array, mask: Array, *, dim: int) -> Array:
    """Mean over dimension `dim` of what `mask` keeps; 0 where it keeps nothing.

    `mask` has the dimensions of `x` but the last.
    """
    kept = mask[..., None]
    total = jnp.where(kept, x, 0).sum(dim)
    return total / jnp.maximum(kept.sum(dim), 1)


class MissingIndicator(nn.Module):
    """Replaces absent modalities by a learned vector Z_m (FuseMoE section 3.1).

    Replaced by `where`: nothing of an absent slot survives, and its gradient is zero.
    """

    num_modalities: int

    @nn.compact
    def __call__(self, x: Array, present_BM: Array) -> Array:
        """[B, M, ..., D], bool[B, M] -> the same shape as x."""
        init = nn.initializers.normal(0.02)
        z_MD = self.param("embedding", init, (self.num_modalities, x.shape[-1]))
        lift = (1,) * (x.ndim - 3)
        present = present_BM.reshape(*present_BM.shape, *lift, 1)
        return jnp.where(present, x, z_MD.reshape(z_MD.shape[0], *lift, z_MD.shape[1]))


# --- attention ------------------------------------------------------------------------------------


def attend(
    q_BMQHc: Array, k_BMLHc: Array, v_BMLHc: Array, mask_BML: Array, drop, bias_QL=None
) -> Array:
    """Scaled dot-product attention; `drop` is applied to the attention weights.

    `bias_QL` is added to the scores; -inf in it forbids a pair.
    """
    scores_BMHQL = jnp.einsum("bmqhc,bmlhc->bmhql", q_BMQHc, k_BMLHc) * q_BMQHc.shape[-1] ** -0.5
    kept_BMHQL = mask_BML[:, :, None, None]
    if bias_QL is not None:  # -inf is masked, not added: it would make a NaN gradient
        open_QL = bias_QL > -jnp.inf
        scores_BMHQL = scores_BMHQL + jnp.where(open_QL, bias_QL, 0.0)
        kept_BMHQL = kept_BMHQL & open_QL
    weights_BMHQL = drop(softmax(scores_BMHQL, kept_BMHQL))
    return jnp.einsum("bmhql,bmlhc->bmqhc", weights_BMHQL.astype(v_BMLHc.dtype), v_BMLHc)


class SelfAttention(nn.Module):
    """Multi-head self-attention within each modality, parameters per modality or shared.

    Initialised as in PyTorch: Xavier-uniform with the three input projections as one matrix, zero
    biases.
    """

    num_heads: int
    num_stacks: int = 1
    dropout: float = 0.0
    kernel_init: Initializer = XAVIER
    qkv_bias_init: Initializer | None = nn.initializers.zeros  # None: no bias
    bias_init: Initializer = nn.initializers.zeros  # of the output map

    @nn.compact
    def __call__(
        self, x_BMTD: Array, mask_BMT: Array, *, train: bool, bias_TT: Array | None = None
    ) -> Array:
        """[B, M, T, D] -> [B, M, T, D]; keys outside the mask are never read.

        `bias_TT` is added to the scores of every head; -inf in it forbids a pair.
        """
        width, init = x_BMTD.shape[-1], self.kernel_init
        if width % self.num_heads:
            raise ValueError(f"{self.num_heads} heads cannot split a width of {width}")
        qkv = StackedDense(3 * width, self.num_stacks, init, self.qkv_bias_init, name="qkv")
        packed = qkv(x_BMTD)
        q, k, v = rearrange(packed, "b m t (n h c) -> n b m t h c", n=3, h=self.num_heads)
        q, k, v = (lie(x, "batch", ..., "heads", None) for x in (q, k, v))
        drop = Dropout(self.dropout, deterministic=not train, name="drop")
        y_BMTD = rearrange(attend(q, k, v, mask_BMT, drop, bias_TT), "b m t h c -> b m t (h c)")
        return StackedDense(width, self.num_stacks, init, self.bias_init, name="out")(y_BMTD)


class MLP(nn.Module):
    """W2 drop(act(W1 x)) per modality or shared, PyTorch's default initialisation."""

    hidden: int
    num_stacks: int = 1
    dropout: float = 0.0
    activation: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, M, ..., D] -> the same shape."""
        up, down = torch_uniform(x.shape[-1]), torch_uniform(self.hidden)
        h = StackedDense(self.hidden, self.num_stacks, up, up, name="up")(x)
        h = self.activation(lie(h, "batch", ..., "mlp"))
        h = Dropout(self.dropout, deterministic=not train, name="drop")(h)
        return StackedDense(x.shape[-1], self.num_stacks, down, down, name="down")(h)


class AttentionBlock(nn.Module):
    """x + drop(self-attention(layer norm(x))) within each modality."""

    num_heads: int
    num_stacks: int = 1
    dropout: float = 0.0
    epsilon: float = 1e-5  # of the layer norm

    @nn.compact
    def __call__(self, x_BMTD: Array, mask_BMT: Array, *, train: bool) -> Array:
        """[B, M, T, D], bool[B, M, T] -> [B, M, T, D]."""
        y_BMTD = StackedLayerNorm(self.num_stacks, self.epsilon, name="norm")(x_BMTD)
        attend = SelfAttention(self.num_heads, self.num_stacks, self.dropout, name="attention")
        drop = Dropout(self.dropout, deterministic=not train, name="drop")
        return x_BMTD + drop(attend(y_BMTD, mask_BMT, train=train))


class MLPBlock(nn.Module):
    """x + drop(MLP(layer norm(x)))."""

    hidden: int
    num_stacks: int = 1
    dropout: float = 0.0
    activation: Callable[[Array], Array] = nn.relu
    epsilon: float = 1e-5  # of the layer norm

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, M, ..., D] -> the same shape."""
        y = StackedLayerNorm(self.num_stacks, self.epsilon, name="norm")(x)
        mlp = MLP(self.hidden, self.num_stacks, self.dropout, self.activation, name="mlp")
        drop = Dropout(self.dropout, deterministic=not train, name="drop")
        return x + drop(mlp(y, train=train))


# --- heads ----------------------------------------------------------------------------------------


class TaskHeads(nn.Module):
    """Logits of every task from its representation; `two_logits` for the authors' binary head.

    With `two_logits` a binary task has two outputs and the logit is their difference: softmax
    cross-entropy of the two is then the sigmoid cross-entropy of the difference, exactly.
    """

    tasks: Sequence[TaskSpec]
    two_logits: bool = False
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, h: Array | Mapping[str, Array]) -> dict[str, Array]:
        """[..., D] of all tasks, or task name -> [..., D], to task name -> [..., dim].

        What all tasks read is multiplied once. Raises ValueError for task kinds that need a head
        of their own method.
        """
        _require_generic(self.tasks)
        if not self.tasks:
            return {}
        each = h if isinstance(h, Mapping) else {task.name: h for task in self.tasks}
        doubled = [self.two_logits and task.kind == "binary" for task in self.tasks]
        sizes = [(1 + double) * t.dim for t, double in zip(self.tasks, doubled, strict=True)]
        maps = [
            _Affine(size, self.kernel_init, name=task.name)(each[task.name].shape[-1])
            for size, task in zip(sizes, self.tasks, strict=True)
        ]
        if isinstance(h, Mapping):
            outputs = [h[t.name] @ k + b for t, (k, b) in zip(self.tasks, maps, strict=True)]
        else:
            kernel, bias = (jnp.concatenate(parts, -1) for parts in zip(*maps, strict=True))
            outputs = jax.lax.split(h @ kernel + bias, sizes, axis=h.ndim - 1)
        logits = {}
        for task, double, y in zip(self.tasks, doubled, outputs, strict=True):
            logits[task.name] = y[..., task.dim :] - y[..., : task.dim] if double else y
        return logits


class _Affine(nn.Module):
    """Parameters of an affine map, as `nn.Dense` has them."""

    features: int
    kernel_init: Initializer

    @nn.compact
    def __call__(self, width: int) -> tuple[Array, Array]:
        """Kernel [width, features] and bias [features]."""
        kernel = self.param("kernel", self.kernel_init, (width, self.features))
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


class StackedHeads(nn.Module):
    """One affine map per task on a representation of its own, tasks of equal `dim` at once.

    Forty binary tasks are one einsum.
    """

    tasks: Sequence[TaskSpec]

    @nn.compact
    def __call__(self, h_BTD: Array) -> dict[str, Array]:
        """[B, T, D] in the order of `tasks` -> task name -> [B, dim].

        Raises ValueError for task kinds that need a head of their own method.
        """
        _require_generic(self.tasks)
        logits = {}
        for dim in sorted({task.dim for task in self.tasks}):
            chosen = [t for t, task in enumerate(self.tasks) if task.dim == dim]
            heads = StackedDense(dim, len(chosen), name=f"dim_{dim}")
            y_BTC = heads(h_BTD[:, np.array(chosen)])
            logits |= {self.tasks[t].name: y_BTC[:, i] for i, t in enumerate(chosen)}
        return {task.name: logits[task.name] for task in self.tasks}


def _require_generic(tasks):
    for t in tasks:
        if t.kind not in GENERIC:
            what = f"task {t.name}: no generic head for kind {t.kind!r}"
            raise ValueError(f"{what}; known: {GENERIC}")


def repeat(
    layer: Layer, depth: int, carry: Any, *, scan: bool, prefix: str = ""
) -> tuple[Any, list[Any]]:
    """The carry after `depth` equal layers, one after the other, and what each said besides.

    Sixteen layers as sixteen copies take eight times as long to compile as two. As a loop they are
    one, the same program for every depth; its parameters are stacked, with a leading dimension of
    layers, and its random numbers are others than those of the copies.

    To be called inside a compact method. `layer` makes its submodules, with its number in their
    names; it must not do so by methods of a module, whose submodules they would become. With `scan`
    it is traced once, as number 0, and they are found under `<prefix>layers`.
    """
    if not scan or not depth:
        said = []
        for i in range(depth):
            carry, one = layer(i, carry)
            said.append(one)
        return carry, said
    loop = nn.scan(
        _Layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True, "gate": True},
        length=depth,
        metadata_params={nn.PARTITION_NAME: None},  # no axis of a mesh splits layers
    )
    carry, said_L = loop(layer, name=prefix + LAYERS)(carry, None)
    return carry, [jax.tree.map(lambda x, i=i: x[i], said_L) for i in range(depth)]


class _Layer(nn.Module):
    """What the loop repeats."""

    layer: Layer

    @nn.compact
    def __call__(self, carry: Any, _: None) -> tuple[Any, Any]:
        return self.layer(0, carry)
