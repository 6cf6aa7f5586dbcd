"""One mixture-of-experts layer: gate, router, engine, losses, statistics.

Letters: N tokens, D input, F hidden and O output width, E experts, K chosen experts, G gates (1,
or one per modality), M modalities, B rows, Q width of a query token.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from m4.maths import exact
from m4.moe import experts, route
from m4.moe.engine import dispatch, mesh, slots
from m4.moe.losses import statistics
from m4.moe.options import MoEOptions
from m4.moe.product_keys import ProductKeys
from m4.types import Array, MoeAux, Routing


class MoE(nn.Module):
    """y_n = sum over the chosen experts e of weight_ne * expert_e(x_n).

    `losses` are names in `m4.moe.losses` or 'package.module:name'. `options.share` is FuseMoE's
    router type: 'joint' has one gate, 'permod' one gate per modality over the same experts,
    'disjoint' one per modality over its own num_experts / num_modalities experts; give `modality_N`
    as a NumPy array then, so that every gate sees its own tokens alone (`m4.moe.route`). Losses are
    returned unweighted in `MoeAux.losses`. Noise comes from the rng stream 'gate', and only when
    training.
    """

    options: MoEOptions = MoEOptions()
    num_modalities: int = 1
    out: int | None = None  # output width; None: the input's
    losses: tuple[str, ...] = ()
    kernel_init: nn.initializers.Initializer | None = None  # of the experts; None: LeCun normal
    gate_init: nn.initializers.Initializer | None = None  # of gate and router; None: their own
    fixed_gates: bool = False  # gate and router are no parameters and stay as `gate_init` has them

    @nn.compact
    def __call__(
        self,
        x_ND: Array,
        *,
        valid_N: Array | None = None,
        modality_N: Array | np.ndarray | None = None,
        num_rows: int | None = None,
        train: bool = False,
        **inputs: Any,
    ) -> tuple[Array, MoeAux]:
        """Output [N, O] in the dtype of `x_ND`, zero on invalid tokens; losses and stats.

        Tokens may have any leading dimensions, [..., D], in `x_ND` and in every input by token; the
        output has them too. Without `valid_N` all are valid.

        `modality_N` is i32[N] in [0, num_modalities). With `num_rows` the tokens are ordered by
        row, (b t) -> N, and `stats['by_row']` f32[B, M, E] is returned when not training, as is
        'coactivation' f32[E, E] of up to 512 experts. Where experts have a capacity, which they
        have in training alone, 'dropped_by_modality' f32[M], 'dropped_by_task' f32[tasks] and
        'dropped_by_row' f32[B] count the assignments lost.
        Further `inputs` reach the gates, routers and losses that name them, such as
        `temperature`, `query_NQ`, `pattern_N`, or `task_N` with `num_tasks`. Without `query_NQ` a
        token's query is its modality, one-hot.

        Raises ValueError for impossible sizes, for inputs that a function needs and lacks, and for
        arrays whose name does not spell their shape.
        """
        if (lead := x_ND.shape[:-1]) != x_ND.shape[:1]:
            given = {"valid_N": valid_N, "modality_N": modality_N, **inputs}
            flat = {name: _flat(name, value, lead) for name, value in given.items()}
            whole = {"num_rows": num_rows, "train": train}
            y_NO, aux = self(x_ND.reshape(-1, x_ND.shape[-1]), **flat, **whole)
            return y_NO.reshape(*lead, -1), aux
        valid_N = jnp.ones(len(x_ND), bool) if valid_N is None else valid_N
        if self.options.router == "product_keys":  # in the place of gate, router and engine
            keys = ProductKeys.of(self.options, self.losses, self.num_modalities, self.out)
            return keys(x_ND, valid_N, modality_N)
        parts = self._parts()
        x_ND = jnp.where(valid_N[:, None], x_ND, 0)
        known = self._inputs(parts, x_ND, modality_N, num_rows, train, inputs)
        with exact():  # of any gate and router, also from outside
            routing, learned = self._route(parts, valid_N, known)
        y_NO, lost_NK = self._experts(x_ND, routing, train)
        y_NO = jnp.where(valid_N[:, None], y_NO, 0).astype(x_ND.dtype)
        stats = route.call(statistics, routing, lost_NK, **known.given())
        return y_NO, MoeAux(self._losses(routing, known, learned), stats)

    # --- gate and router ------------------------------------------------------------------------

    def _parts(self) -> route.Parts:
        o = self.options
        if o.share not in ("joint", "permod", "disjoint"):
            raise ValueError(f"moe.share={o.share!r}; choose joint, permod or disjoint")
        return route.Parts.of(o.gate, o.router, o.outer_gate, o.gate_options, o.router_options)

    @property
    def _num_gates(self) -> int:
        return 1 if self.options.share == "joint" else self.num_modalities

    def _reach(self) -> int:
        """Number of experts that one gate chooses from."""
        o = self.options
        return route.reach(
            o.num_experts, o.top_k, self.num_modalities if o.share == "disjoint" else 1
        )

    def _inputs(self, parts, x_ND, modality_N, num_rows, train, inputs) -> route.Inputs:
        """All that gate, router and losses can ask for by name."""
        num = x_ND.shape[0]
        if modality_N is None and self.options.share != "joint":
            raise ValueError(f"moe.share={self.options.share!r} needs modality_N")
        modality_N = jnp.zeros(num, jnp.int32) if modality_N is None else modality_N
        if inputs.get("query_NQ") is None:
            inputs["query_NQ"] = jax.nn.one_hot(modality_N, self.num_modalities)
        known = route.Inputs.sort(
            num,
            inputs
            | {
                "x_ND": x_ND.astype(jnp.promote_types(x_ND.dtype, jnp.float32)),
                "modality_N": modality_N,
                "slot_N": jnp.arange(num) % (num // (num_rows or 1)),
                "num_modalities": self.num_modalities,
                "num_rows": num_rows,
                "num_experts": self._reach(),
                "num_groups": self.options.num_groups,
                "k": self.options.top_k,
                "train": train,
            },
        )
        if train and "noise_NE" not in known.tokens and parts.random():
            known.others["key"] = self.make_rng("gate")
        return known

    def _route(self, parts, valid_N, known) -> tuple[Routing, dict[str, Array]]:
        """The routing, with one gate per modality where asked, and the router's parameters."""
        dims = {"E": self._reach() * self.options.num_slots, "R": self.options.rank}
        dims |= {"D": known.tokens["x_ND"].shape[-1], "Q": known.tokens["query_NQ"].shape[-1]}
        declared = parts.declared(dims | {"G": self.options.num_groups})
        params = {part: self._learned(part, arrays) for part, arrays in declared.items()}
        num_gates = self._num_gates
        if num_gates == 1:
            first = jax.tree.map(lambda p: p[0], params)
            return parts.route(first, valid_N, known), params["router"]
        routing = route.by_modality(parts.route, params, valid_N, known, num_gates=num_gates)
        if self.options.share == "disjoint":
            routing = route.widen(routing, known.tokens["modality_N"], num_gates)
        return routing, params["router"]

    def _learned(self, part: str, declared: Mapping[str, Any]) -> dict[str, Array]:
        """The arrays that a part declares, each with a leading gate dimension."""
        learned = {}
        for argument, (shape, init) in declared.items():
            name, shape = f"{part}_{route.stem(argument)}", (self._num_gates, *shape)
            init = partial(_per_gate, self.gate_init or init)
            fixed = self.fixed_gates
            learned[argument] = (
                init(jax.random.key(0), shape) if fixed else self.param(name, init, shape)
            )
        return learned

    # --- engine ---------------------------------------------------------------------------------

    def _experts(self, x_ND, routing, train) -> tuple[Array, Array | None]:
        """Experts on their tokens: output [N, O] and which assignments were lost, bool[N, K].

        Limits hold in training alone: a patient's prediction must not depend on who else is asked
        about, on how many, or on how many devices.
        """
        o, width = self.options, x_ND.shape[-1]
        if not train:
            engine = "dropless" if o.engine in dispatch.LIMITED else o.engine
            capacity = None if o.engine in dispatch.LIMITED else o.capacity
            o = dataclasses.replace(o, engine=engine, capacity=capacity, overflow="exact")
        out = width if self.out is None else self.out
        params = experts.create(self, o.num_experts, width, o.hidden, out, self.kernel_init)
        x_ND = x_ND if o.dtype is None else x_ND.astype(o.dtype)
        functions = experts.Functions.named(o.activation, o.output)
        args, lost_NK = (x_ND, routing, params, functions), None
        limits = {"engine": o.engine, "capacity": o.capacity, "target": o.target}
        if routing.tokens is not None or routing.combine is not None:
            y_NO = slots.apply_experts(*args)
        elif jax.sharding.get_abstract_mesh().size > 1:
            # The partitioner must not see the engine: it would gather all expert weights.
            travel = {"exchange": o.exchange, "slack": o.slack, "overflow": o.overflow}
            y_NO, lost_NK = mesh.apply_experts(*args, replicas=o.replicas, **travel, **limits)
        else:
            y_NO, lost_NK = dispatch.apply_experts(*args, **limits)
        if o.num_shared:
            shared = experts.SharedExperts(
                o.num_shared, o.hidden, out, self.kernel_init, name="shared"
            )
            y_NO += shared(x_ND, functions)
        return y_NO, lost_NK

    # --- losses ---------------------------------------------------------------------------------

    def _losses(self, routing, known, learned) -> dict[str, Array]:
        gate_N, num_gates = known.tokens["modality_N"], self._num_gates
        block_E = np.arange(self.options.num_experts) // self._reach()
        own_GE = block_E == np.arange(num_gates)[:, None]
        given = known.given() | learned
        given |= {"allowed_GE": own_GE | (self.options.share != "disjoint")}
        given |= {"gate_N": gate_N if num_gates > 1 else jnp.zeros_like(gate_N)}
        functions = {name: route.named("losses", name, "losses") for name in self.losses}
        return {name: route.call(f, routing, **given) for name, f in functions.items()}


def _per_gate(init: Callable, key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """A stack [G, ...] whose every entry is drawn on its own."""
    return jnp.stack([init(k, shape[1:], dtype) for k in jax.random.split(key, shape[0])])


def _flat(name: str, value: Any, lead: tuple[int, ...]) -> Any:
    """An input by token [..., *] as [N, *]; any other as it is."""
    if not name.rpartition("_")[2].startswith("N") or np.shape(value)[: len(lead)] != lead:
        return value
    return value.reshape(-1, *np.shape(value)[len(lead) :])
