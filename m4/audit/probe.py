"""A method with parameters, a batch, and its compiled functions, which all checks share."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from m4.audit import random_rows
from m4.nn import front
from m4.types import Batch


class Defect(AssertionError):
    """What a check has found, in one line without a value of a patient."""


class LeftOut(Exception):
    """Why a check cannot be asked of this, without a fault of anybody."""


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far numbers of the same algorithm may lie apart.

    With `to_scale`, `atol` is in units of the largest number of the array, if that is above 1.
    """

    rtol: float = 1e-5
    atol: float = 1e-6
    to_scale: bool = False


@dataclasses.dataclass
class Probe:
    """A method with parameters and its two compiled functions.

    `predict(batch)` -> logits by task in evaluation. `grads(batch)` -> (loss, gradients) of the
    task losses in training, with fixed rngs; auxiliary losses count unless the method says 0.
    `routing(batch)` -> statistics by layer. `others(seed)` are other rows in a batch of the same
    shape. `random` says whether rows are invented: of those everything is asked of every row.
    """

    method: Any
    params: Any
    batch: Batch
    predict: Callable[[Batch], dict]
    grads: Callable[[Batch], tuple]
    routing: Callable[[Batch], dict] = lambda batch: {}
    others: Callable[[int], Batch] | None = None
    tolerance: Tolerance = Tolerance()
    random: bool = True

    def another(self, seed: int) -> Batch:
        """Other rows, as many."""
        if self.others is not None:
            return self.others(seed)
        return random_rows.random_batch(self.method.data, seed, rows=len(self.batch.uid))


@dataclasses.dataclass(frozen=True)
class Programs:
    """The two programs of a method, which take parameters: compiled once for each batch shape."""

    predict: Callable[[Any, Batch], tuple[dict, dict]]  # logits by task, statistics by layer
    grads: Callable[[Any, Batch], tuple]

    @classmethod
    def of(cls, method: Any, options: Mapping[str, Any] | None = None) -> "Programs":
        """`options` are the compiler's."""
        fixed = {name: jax.random.key(5) for name in eval_rngs(method)}
        rngs = {"dropout": jax.random.key(1), "gate": jax.random.key(2)}

        def predict(params, batch):
            out = method.apply({"params": params}, batch, train=False, rngs=fixed)
            return out.logits, {layer: aux.stats for layer, aux in out.moe.items()}

        def grads(params, batch):
            def loss(params):
                out = method.apply({"params": params}, batch, train=True, rngs=rngs)
                return method.loss(out, batch, jnp.zeros((), jnp.int32))[0]

            return jax.value_and_grad(loss)(params)

        how: dict[str, Any] = {"compiler_options": dict(options)} if options else {}
        return cls(jax.jit(predict, **how), jax.jit(grads, **how))

    def probe(self, method: Any, params: Any, batch: Batch, **fields: Any) -> Probe:
        """What is asked of these parameters and rows."""
        return Probe(
            method,
            params,
            batch,
            predict=lambda batch: self.predict(params, batch)[0],
            grads=lambda batch: self.grads(params, batch),
            routing=lambda batch: self.predict(params, batch)[1],
            **fields,
        )


def eval_rngs(method: Any) -> tuple[str, ...]:
    """The random streams that a method says it needs in evaluation."""
    return tuple(getattr(front.bare(method), "eval_rngs", ()))


def without_aux(method: Any) -> Any:
    """The method without auxiliary losses, which may be of a batch as a whole."""
    if isinstance(method, front.Front):
        return method.clone(method=without_aux(method.method))
    if not hasattr(method, "aux_weights"):
        return method
    none: Any = {"aux_weights": FrozenDict()}
    linen = isinstance(method, nn.Module)
    return method.clone(**none) if linen else dataclasses.replace(method, **none)


def probe(
    method: Any,
    *,
    seed: int = 0,
    compiled: Programs | None = None,
    params: Any = None,
    tolerance: Tolerance = Tolerance(),
) -> Probe:
    """Random rows, and parameters unless given; compiles what is not compiled yet."""
    batch = random_rows.random_batch(method.data, seed)
    compiled = Programs.of(method) if compiled is None else compiled
    params = random_params(method, seed) if params is None else params
    return compiled.probe(method, params, batch, tolerance=tolerance)


def random_params(method, seed: int = 0):
    """As `random_like`; nothing is compiled."""
    return random_like(parameter_shapes(method), seed)


def random_like(shapes, seed: int = 0):
    """Parameters off their initial values, so that no zero hides a path.

    Kernels get their fan-in's scale, everything else N(0.5, 0.5^2).
    """
    rng = np.random.default_rng(seed)

    def leaf(x):
        scale = x.shape[-2] ** -0.5 if x.ndim > 1 else 0.5
        return (rng.normal(size=x.shape) * scale + (0.5 if x.ndim < 2 else 0.0)).astype(x.dtype)

    return jax.tree.map(leaf, shapes)


def parameter_shapes(method):
    """The parameter tree as shapes, without running anything."""
    batch = random_rows.random_batch(method.data)
    rngs = {"params": jax.random.key(0), "gate": jax.random.key(0)}
    return nn.unbox(jax.eval_shape(lambda: method.init(rngs, batch, train=False)))["params"]


def path_of(path: Any) -> str:
    """A parameter's name."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def real_probe(
    programs: Programs, method: Any, params: Any, rows_of: Callable[[int], Batch], **fields: Any
) -> Probe:
    """Rows of the data: `rows_of(seed)` are as many of them, seed 0 those that are looked at."""
    first = rows_of(0)
    return programs.probe(method, params, first, others=rows_of, random=False, **fields)
