"""Gates under an intervention: experts that are gone, the best one dropped, choices shuffled.

`m4.lab.interventions:laplace` is the gate `laplace` with three more arguments that count as
learned, so that a trained model takes them like parameters and one compiled program asks every
question:

    ablated_E   above 0: the expert is gone, nobody may choose it
    dropping    above 0: every token's best expert is forbidden to it
    shuffling   above 0: every token gets another's experts, at the scores that it had

A gate from outside is written with dots alone: `m4.lab.interventions:mylab.gates.mine`.

Letters: N tokens, E experts, D width.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_type_hints

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from m4.maths import murmur3
from m4.moe.route import stem
from m4.resolve import resolve
from m4.types import Array

_Off = Annotated[Array, nn.initializers.zeros]
ADDED = dict.fromkeys(("ablated_E", "dropping", "shuffling"), _Off)


def name_of(gate: str) -> str:
    """What a configuration calls a gate under intervention."""
    return f"m4.lab.interventions:{gate.replace(':', '.')}"


def __getattr__(name: str) -> Callable[..., Array]:
    if name.startswith("__"):
        raise AttributeError(name)
    place, _, attribute = name.rpartition(".")
    return intervened(resolve(f"{place}:{attribute}" if place else attribute, "m4.moe.gates"))


def ablates(name: str, layer: str) -> bool:
    """Whether a parameter says which experts of `layer` (of any, if '') are gone."""
    return name.endswith("_ablated") and (not layer or layer in name.split("."))


def leaves(
    shapes: Mapping[str, Any], params: Mapping[str, Any], layer: str, change: Mapping[str, Any]
) -> list[Any]:
    """Every parameter under an intervention, in the order of `shapes`: a change, or as trained.

    `change` is of `ADDED`; experts are ablated in `layer` alone.
    """

    def leaf(name: str, shape: tuple[int, ...]) -> Any:
        if name in params:
            return params[name]
        asked = {k: v for k, v in change.items() if name.endswith(f"_{stem(k)}")}
        if name.endswith("_ablated") and not ablates(name, layer):
            asked = {}
        value = next(iter(asked.values()), 0.0)
        return np.broadcast_to(np.asarray(value, np.float32), shape)

    return [leaf(name, found.shape) for name, found in shapes.items()]


def intervened(gate: Callable[..., Array]) -> Callable[..., Array]:
    """The gate with the arguments of `ADDED`; at their start, 0, it is the gate bit for bit."""

    def under(
        x_ND: Array, *, ablated_E: Array, dropping: Array, shuffling: Array, **given: Any
    ) -> Array:
        logits_NE = gate(x_ND, **given)
        num_tokens, num_experts = logits_NE.shape
        expert_E = jnp.arange(num_experts)
        shift_N = murmur3(jnp.arange(num_tokens, dtype=jnp.uint32)) % jnp.uint32(num_experts)
        moved_NE = (expert_E + shift_N[:, None].astype(jnp.int32)) % num_experts
        shuffled_NE = jnp.take_along_axis(logits_NE, moved_NE, axis=1)
        logits_NE = jnp.where(shuffling > 0, shuffled_NE, logits_NE)
        best_NE = expert_E == jnp.argmax(logits_NE, axis=1)[:, None]
        gone_NE = (ablated_E > 0) | ((dropping > 0) & best_NE)
        return jnp.where(gone_NE, -jnp.inf, logits_NE)

    signature = inspect.signature(gate)
    more = [
        inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, annotation=a) for n, a in ADDED.items()
    ]
    under.__name__ = f"intervened_{gate.__name__}"
    under.__annotations__ = get_type_hints(gate, include_extras=True) | ADDED
    under.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *more])  # pyright: ignore
    return under
