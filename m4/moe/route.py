"""From tokens to a routing: the gate, then the router; one gate for all tokens or one per modality.

A gate, router or loss says what it needs by its signature, and adding one is writing a function:

    def gaussian(x_ND, centre_DE: Annotated[Array, nn.initializers.normal(0.1)]): ...

An argument annotated with an initialiser is learned, here an array `centre` of shape (D, E); the
suffix of a name is its shape, one capital letter a dimension, and a name without one is a scalar.
Every other argument is an option, or an input of the layer (`key`, `modality_N`, ...), which gets
to every function that names it.

Letters: N tokens, D width, E experts, K chosen experts, G gates (one per modality) or groups of
experts, R rank, Q width of a query token, B rows, T tokens per row, C tokens of one modality in a
row.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_origin, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from m4.resolve import resolve
from m4.types import Array, Routing

Initialiser = Callable[..., Array]

# --- what a function declares -------------------------------------------------------------------


def shape_of(name: str) -> str:
    """The suffix that spells the shape: `centre_DE` -> `DE`, `log_tau` -> nothing."""
    stem, _, suffix = name.rpartition("_")
    return suffix if stem and suffix.isupper() else ""


def stem(name: str) -> str:
    """The name without its shape: `centre_DE` -> `centre`, `log_tau` -> `log_tau`."""
    return name.removesuffix(f"_{letters}") if (letters := shape_of(name)) else name


def parameters(
    function: Callable, dims: Mapping[str, int]
) -> dict[str, tuple[tuple[int, ...], Initialiser]]:
    """Learned arguments of `function`: name -> (shape, initialiser).

    Raises ValueError for a shape that is not made of the letters of `dims`: unknown ones, and
    small ones, by which one array of all experts would become a single number.
    """
    declared = {}
    for name, hint in get_type_hints(function, include_extras=True).items():
        if name == "return" or get_origin(hint) is not Annotated:
            continue
        letters, suffix = shape_of(name), name.rpartition("_")[2]
        small = not letters and "_" in name and set(suffix.upper()) <= set(dims)
        if set(letters) - set(dims) or small or (not letters and name != name.lower()):
            raise ValueError(
                f"{function.__name__}: the shape of parameter {name} has unknown dimensions; spell "
                f"it with {', '.join(sorted(dims))}, as in bias_E, or name a scalar in small "
                "letters that are no dimensions"
            )
        declared[name] = (tuple(dims[d] for d in letters), hint.__metadata__[0])
    return declared


class MissingInput(ValueError):
    """A function asks for what it was not given."""


def call(
    function: Callable, *args: Any, options: Mapping[str, Any] | None = None, **available: Any
) -> Any:
    """Call `function` with `args`, the user's `options` and those of `available` that it names.

    Raises ValueError for an option that the function does not take, and for a required argument
    that is missing or None.
    """
    signature, options = inspect.signature(function).parameters, options or {}
    names = list(signature)[len(args) :]
    own = [n for n in names if n not in available]
    if unknown := sorted(set(options) - set(own)):
        raise ValueError(
            f"{function.__name__} takes no option {', '.join(unknown)}; it has: "
            + (", ".join(own) or "none")
        )
    given = {n: available[n] for n in names if available.get(n) is not None} | dict(options)
    empty = inspect.Parameter.empty
    if missing := [n for n in names if signature[n].default is empty and n not in given]:
        raise MissingInput(f"{function.__name__} needs {', '.join(missing)}, which was not given")
    return function(*args, **given)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the gate, router and losses of one layer may name."""

    tokens: dict[str, Array]  # [N, ...]: a gate for one modality sees its part of them
    others: dict[str, Any]

    @classmethod
    def sort(cls, num_tokens: int, given: Mapping[str, Any]) -> "Inputs":
        """By the shapes in the names, which have to be true: `pattern_N` belongs to the tokens.

        Raises ValueError for an array that has not as many dimensions as its name has letters,
        and for a first dimension that is N by name or by size, but not by both.
        """
        given = {name: value for name, value in given.items() if value is not None}
        for name, value in given.items():
            letters, shape = shape_of(name), np.shape(value)
            named, sized = letters[:1] == "N", shape[:1] == (num_tokens,)
            if len(letters) != len(shape) or (named and not sized) or "N" in letters[1:]:
                raise ValueError(
                    f"input {name} has shape {shape}, which its name does not spell; the "
                    f"{num_tokens} tokens are N and come first, as in pattern_N"
                )
        own = {name for name in given if shape_of(name)[:1] == "N"}
        return cls(
            {n: v for n, v in given.items() if n in own},
            {n: v for n, v in given.items() if n not in own},
        )

    def given(self) -> dict[str, Any]:
        """Everything by name."""
        return {**self.others, **self.tokens}


# --- one layer's gate and router ----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Parts:
    """The functions of one layer, with the user's options for them."""

    gate: Callable[..., Array]
    router: Callable[..., Routing]
    outer: Callable[..., Array] | None  # gate between groups, if the router asks for its scores
    gate_options: Mapping[str, Any]
    router_options: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        gate: str,
        router: str,
        outer_gate: str,
        gate_options: Mapping[str, Any],
        router_options: Mapping[str, Any],
    ) -> "Parts":
        """Raises ValueError for names that there are not."""
        chooses = named("router", router, "routers")
        between = "outer_NG" in inspect.signature(chooses).parameters
        outer = named("outer_gate", outer_gate, "gates") if between else None
        return cls(named("gate", gate, "gates"), chooses, outer, gate_options, router_options)

    def declared(self, dims: Mapping[str, int]) -> dict[str, dict]:
        """Learned arguments of 'gate', 'outer' and 'router', as `parameters` gives them."""
        between = {**dims, "E": dims["G"]}
        return {
            "gate": parameters_of("gate", self.gate, dims),
            "outer": {} if self.outer is None else parameters_of("outer_gate", self.outer, between),
            "router": parameters_of("router", self.router, dims),
        }

    def random(self) -> bool:
        """Whether the gate or the router draws random numbers when training."""
        return any("key" in inspect.signature(f).parameters for f in (self.gate, self.router))

    def route(self, params: Mapping[str, Any], valid_N: Array, inputs: Inputs) -> Routing:
        """The routing of tokens by one gate; raises ValueError that names the field at fault."""
        given, x_ND = inputs.given(), inputs.tokens["x_ND"]
        options, extra = self.gate_options, dict(params["router"])
        logits_NE = call_for("gate", self.gate, x_ND, options=options, **given, **params["gate"])
        if self.outer is not None:  # perhaps another gate, with other options
            taken = inspect.signature(self.outer).parameters
            options = {n: v for n, v in options.items() if n in taken}
            extra["outer_NG"] = call_for(
                "outer_gate", self.outer, x_ND, options=options, **given, **params["outer"]
            )
        args, options = (self.router, logits_NE, valid_N), self.router_options
        routing = call_for("router", *args, options=options, **given, **extra)
        if (num := routing.logits.shape[-1]) != (own := inputs.others.get("num_experts", num)):
            raise ValueError(
                f"moe.router: {self.router.__name__} got scores of {num} experts, not of {own}; "
                "num_slots is for the router 'soft' alone"
            )
        return routing


def named(field: str, name: str, room: str) -> Any:
    """The function of that name in `m4.moe.<room>`; raises ValueError that names the field."""
    try:
        return resolve(name, f"m4.moe.{room}")
    except (ValueError, ImportError) as error:
        raise ValueError(f"moe.{field}={name!r}: {error}") from None


def parameters_of(field: str, function: Callable, dims: Mapping[str, int]) -> dict[str, tuple]:
    """`parameters`; raises ValueError that names the field at fault."""
    try:
        return parameters(function, dims)
    except ValueError as error:
        raise ValueError(f"moe.{field}: {error}") from None


def call_for(field: str, function: Callable, *args: Any, **given: Any) -> Any:
    """`call`; raises ValueError that names the field at fault."""
    try:
        return call(function, *args, **given)
    except ValueError as error:
        raise type(error)(f"moe.{field}: {error}") from None


def reach(num_experts: int, top_k: int, parts: int) -> int:
    """Experts that one gate chooses from, where `parts` gates have experts of their own.

    Raises ValueError for impossible sizes.
    """
    if num_experts % parts:
        raise ValueError(
            f"moe.num_experts={num_experts} cannot be split over {parts} modalities; choose a "
            f"multiple of {parts}"
        )
    if not 1 <= top_k <= num_experts // parts:
        raise ValueError(f"moe.top_k={top_k} must be in [1, {num_experts // parts}] experts")
    return num_experts // parts


# --- one gate per modality ----------------------------------------------------------------------


def by_modality(
    one: Callable[[Any, Array, Inputs], Routing],
    params: Any,
    valid_N: Array,
    inputs: Inputs,
    *,
    num_gates: int,
) -> Routing:
    """`one(params, valid_N, inputs)` by each token's own gate; its experts count from 0.

    `params` have a leading gate dimension; the input `key` is split over the gates. If `modality_N`
    is a NumPy array, the same in each of the `num_rows` rows, it is part of the program: every gate
    sees its own tokens alone, and the cost is that of one gate. Otherwise every gate sees all
    tokens, those of others as invalid, at G times the cost. Both give the same routing, but for the
    draws from `key`. Raises ValueError for a router whose experts choose.
    """

    def routed(p, valid_N, tokens, key):
        routing = one(p, valid_N, Inputs(tokens, {**inputs.others, "key": key}))
        if routing.tokens is not None or routing.combine is not None:
            raise ValueError("moe.share must be 'joint': this router cannot have several gates")
        return routing

    gate_N, rows = inputs.tokens["modality_N"], inputs.others.get("num_rows") or 1
    key = inputs.others.get("key")
    keys = None if key is None else jax.random.split(key, num_gates)
    gate_T = static_pattern(gate_N, rows)
    if gate_T is None:
        member_GN = (gate_N == jnp.arange(num_gates)[:, None]) & valid_N
        every = jax.vmap(routed, in_axes=(0, 0, None, 0))
        routings = every(params, member_GN, inputs.tokens, keys)
        return jax.tree.map(functools.partial(_own_gates, jnp.asarray(gate_N)), routings)
    if gate_T.max() >= num_gates:
        raise ValueError(f"modality_N holds {gate_T.max()}, but there are {num_gates} modalities")
    return _by_own_tokens(jax.vmap(routed), params, keys, valid_N, inputs.tokens, gate_T, num_gates)


def _own_gates(gate_N, a_GN):
    """Every token's entry of its own gate, by a gather that leaves tokens on their devices."""
    index_1N = gate_N.reshape(1, -1, *(1,) * (a_GN.ndim - 2))
    return jnp.take_along_axis(a_GN, index_1N, axis=0)[0]


def static_pattern(modality_N: Array | np.ndarray, num_rows: int) -> np.ndarray | None:
    """The modality of every position of a row, i[T], if known to the program; else None."""
    if not isinstance(modality_N, np.ndarray):
        return None
    pattern_BT = modality_N.reshape(num_rows, -1)
    return pattern_BT[0] if (pattern_BT == pattern_BT[0]).all() else None


def _by_own_tokens(routed, params, keys, valid_N, tokens, gate_T, num_gates):
    """Gates with equally many tokens run as one batch, so that nothing is padded."""
    rows = valid_N.shape[0] // gate_T.size
    size_G = np.bincount(gate_T, minlength=num_gates)
    batches = [np.flatnonzero(size_G == size) for size in np.unique(size_G[size_G > 0])]
    order_T = np.concatenate([np.flatnonzero(gate_T == g) for gates in batches for g in gates])

    def sort(a_N):
        # Rows stay the leading dimension: on a mesh no token leaves its device.
        return _permute(order_T, rearrange(jnp.asarray(a_N), "(b t) ... -> b t ...", b=rows))

    valid_BT, sorted_BT = sort(valid_N), jax.tree.map(sort, tokens)
    routings, start = [], 0
    for gates in batches:
        stop = start + size_G[gates].sum()

        def own(a_BT, part=slice(start, stop), num=gates.size):
            return rearrange(a_BT[:, part], "b (g c) ... -> g (b c) ...", g=num)

        routing = routed(
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


def widen(routing: Routing, gate_N: Array, num_gates: int) -> Routing:
    """From a gate's own experts, numbered from 0, to all experts ('disjoint')."""
    own = routing.logits.shape[-1]
    own_NE = (jnp.arange(own * num_gates) // own) == gate_N[:, None]

    def spread(a_NE, fill):
        return jnp.where(own_NE, jnp.tile(a_NE, (1, num_gates)), fill)

    wide_NK = routing.experts + own * gate_N[:, None]
    return routing.replace(
        experts=jnp.where(routing.experts < own, wide_NK, own * num_gates),
        probs=spread(routing.probs, 0.0),
        logits=spread(routing.logits, -jnp.inf),
        load=None if routing.load is None else spread(routing.load, 0.0),
    )
