"""Less memory for more arithmetic: what the backward pass computes again, `train.remat`.

- 'layer': every numbered layer (`time_0`, `msoe_0_experts`: a submodule with a number in its
  name, norms and dropout aside) from its inputs;
- 'dots': everything but the results of matrix products;
- 'offload': the same, and these results wait in the host's memory.

Random numbers are drawn again alike, so losses and gradients are those of 'none'.
"""

import contextlib
import re
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax

Remat = Literal["none", "layer", "dots", "offload"]
_LAYER = re.compile(r"(?!drop|norm)([a-z]\w*?)_(\d+)(?:_(?!drop|norm)[a-z]\w*)?")


def rematerialised(remat: Remat, forward: Callable) -> Callable:
    """`forward(params, ...)`, of which the backward pass keeps less."""
    if remat == "none":
        return forward
    policies = jax.checkpoint_policies
    if remat == "dots":
        return jax.checkpoint(forward, policy=policies.dots_saveable)
    if remat == "offload":
        return jax.checkpoint(forward, policy=_products_on_host)

    def layered(*args: Any) -> Any:
        with nn.intercept_methods(_Layers()):
            return forward(*args)

    return layered


def _products_on_host(operation: Any, *args: Any, **how: Any) -> Any:
    """JAX's policy of this kind leaves batched products out, which here are most of all."""
    if "dimension_numbers" in how and operation.name == "dot_general":
        how["dimension_numbers"] = ((), ()), ((), ())
    there = jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host")
    return there(operation, *args, **how)


def layers(params: Any) -> list[str]:
    """Names of the numbered layers that a tree of parameters has, counted from 0."""
    paths = jax.tree_util.tree_leaves_with_path(params)
    names = {str(getattr(part, "key", part)) for path, _ in paths for part in path}
    found = {name: match for name in names if (match := _LAYER.fullmatch(name))}
    firsts = {match[1] for match in found.values() if match[2] == "0"}
    return sorted(name for name, match in found.items() if match[1] in firsts)


class _Layers:
    """Interceptor of method calls: a numbered layer is checkpointed, what is inside it is not."""

    def __init__(self):
        self._inside = False

    def __call__(
        self, call: Callable, args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        """The call as it was, or computed again in the backward pass."""
        layer = context.method_name == "__call__" and _LAYER.fullmatch(context.module.name or "")
        if self._inside or not layer:
            return call(*args, **kwargs)
        # Only arrays of the program go through: NumPy's and Python's are part of the layer's shape.
        leaves, structure = jax.tree.flatten((args, kwargs))
        traced = [isinstance(leaf, jax.Array) for leaf in leaves]

        def again(module, arrays):
            arrays = iter(arrays)
            whole = [next(arrays) if t else leaf for t, leaf in zip(traced, leaves, strict=True)]
            args, kwargs = jax.tree.unflatten(structure, whole)
            return module(*args, **kwargs)

        with self._within():
            arrays = [leaf for t, leaf in zip(traced, leaves, strict=True) if t]
            return nn.remat(again)(context.module, arrays)

    @contextlib.contextmanager
    def _within(self):
        self._inside = True
        try:
            yield
        finally:
            self._inside = False
