"""One gate per modality: every gate scores and routes its own tokens.

Letters: N tokens, E experts, K chosen experts, G gates (one per modality), B rows, T tokens per
row, C tokens of one modality in a row.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from m4.moe import declare
from m4.types import Array, Routing


def route_by_modality(
    one_gate: Callable[..., Routing],
    params: Any,
    valid_N: Array,
    inputs: Mapping[str, Any],
    *,
    num_gates: int,
) -> Routing:
    """`one_gate(params, valid_N, inputs)` by each token's own gate; its experts count from 0.

    `params` have a leading gate dimension. In `inputs`, what has a name whose suffix starts with N
    belongs to the tokens, and `key` is split over the gates. If `modality_N` is a NumPy array, the
    same in each of the `num_rows` rows, it is part of the program: every gate sees its own tokens
    alone, and the cost is that of one gate. Otherwise every gate sees all tokens, those of others
    as invalid, at G times the cost. Both give the same routing, but for the draws from `key`.
    """
    gate_T = static_pattern(inputs["modality_N"], inputs.get("num_rows") or 1)
    keys = None if inputs.get("key") is None else jax.random.split(inputs["key"], num_gates)
    if gate_T is None:
        gate_N = inputs["modality_N"]
        member_GN = (gate_N == jnp.arange(num_gates)[:, None]) & valid_N
        route = jax.vmap(lambda p, valid_N, key: one_gate(p, valid_N, {**inputs, "key": key}))
        routings = route(params, member_GN, keys)
        return jax.tree.map(lambda a_GN: a_GN[gate_N, jnp.arange(gate_N.size)], routings)
    if gate_T.max() >= num_gates:
        raise ValueError(f"modality_N holds {gate_T.max()}, but there are {num_gates} modalities")
    return _by_own_tokens(one_gate, params, keys, valid_N, inputs, gate_T, num_gates)


def static_pattern(modality_N: Array | np.ndarray, num_rows: int) -> np.ndarray | None:
    """The modality of every position of a row, i[T], if known to the program; else None."""
    if not isinstance(modality_N, np.ndarray):
        return None
    pattern_BT = modality_N.reshape(num_rows, -1)
    return pattern_BT[0] if (pattern_BT == pattern_BT[0]).all() else None


def _by_own_tokens(one_gate, params, keys, valid_N, inputs, gate_T, num_gates):
    """Gates with equally many tokens run as one batch, so that nothing is padded."""
    rows = valid_N.shape[0] // gate_T.size
    size_G = np.bincount(gate_T, minlength=num_gates)
    batches = [np.flatnonzero(size_G == size) for size in np.unique(size_G[size_G > 0])]
    order_T = np.concatenate([np.flatnonzero(gate_T == g) for gates in batches for g in gates])

    def sort(a_N):
        # Rows stay the leading dimension: on a mesh no token leaves its device.
        return _permute(order_T, rearrange(a_N, "(b t) ... -> b t ...", b=rows))

    sorted_BT = {
        name: sort(jnp.asarray(value))
        for name, value in inputs.items()
        if declare.shape_of(name).startswith("N") and value is not None
    }
    valid_BT, routings, start = sort(valid_N), [], 0
    for gates in batches:
        stop = start + size_G[gates].sum()

        def own(a_BT, part=slice(start, stop), num=gates.size):
            return rearrange(a_BT[:, part], "b (g c) ... -> g (b c) ...", g=num)

        route = jax.vmap(lambda p, v, mine, key: one_gate(p, v, {**inputs, **mine, "key": key}))
        routing = route(
            jax.tree.map(lambda p, gates=gates: p if gates.size == num_gates else p[gates], params),
            own(valid_BT),
            jax.tree.map(own, sorted_BT),
            None if keys is None else keys[gates],
        )
        back = jax.tree.map(lambda a: rearrange(a, "g (b c) ... -> b (g c) ...", b=rows), routing)
        routings.append(back)
        start = stop
    inverse_T = np.argsort(order_T)

    def merge(*parts):
        a_BT = _permute(inverse_T, jnp.concatenate(parts, axis=1))
        return rearrange(a_BT, "b t ... -> (b t) ...")

    return jax.tree.map(merge, *routings)


def _permute(order_T, a_BT):
    """`a_BT[:, order_T]`, whose gradient is a gather too; a scatter is slow on every backend."""
    if not jnp.issubdtype(a_BT.dtype, jnp.floating):
        return a_BT[:, order_T]
    move = jax.custom_vjp(lambda a_BT: a_BT[:, order_T])
    move.defvjp(
        lambda a_BT: (a_BT[:, order_T], None), lambda _, g_BT: (g_BT[:, np.argsort(order_T)],)
    )
    return move(a_BT)
