"""One mixture-of-experts layer: gate, route, dispatch.

Letters: N tokens, D input, F hidden and O output width, E experts, G gate groups (1, or one per
modality), M modalities, B rows.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict

from m4.moe import declare, diagnostics, experts
from m4.moe.dispatch import apply_experts
from m4.resolve import resolve
from m4.types import Array, MoeAux, Routing

Sharing = Literal["joint", "permod", "disjoint"]


class MoE(nn.Module):
    """y_n = sum over the chosen experts e of weight_ne * expert_e(x_n).

    `gate`, `router` and `losses` are names in `m4.moe.gates`, `.routing` and `.balance`, or
    'package.module:name'. `sharing` is FuseMoE's router type: 'joint' has one gate, 'permod' one
    gate per modality over the same experts, 'disjoint' one per modality over its own
    num_experts / num_modalities experts. Losses are returned unweighted in `MoeAux.losses`.
    Noise comes from the rng stream 'gate', and only when training.
    """

    num_experts: int
    top_k: int
    hidden: int
    out: int | None = None  # output width; None: the input's
    gate: str = "laplace"
    router: str = "top_k"
    sharing: Sharing = "joint"
    num_modalities: int = 1
    dispatch: str = "auto"
    capacity_factor: float | None = None
    activation: str = "gelu"
    output: str | None = None  # function on every expert's output vector before mixing
    losses: tuple[str, ...] = ()
    rank: int = 8  # R of the low-rank gates
    gate_options: Mapping[str, Any] = FrozenDict()
    router_options: Mapping[str, Any] = FrozenDict()

    @nn.compact
    def __call__(
        self,
        x_ND: Array,
        *,
        valid_N: Array,
        modality_N: Array | None = None,
        num_rows: int | None = None,
        train: bool,
        **inputs: Array | None,
    ) -> tuple[Array, MoeAux]:
        """Output [N, O] in the dtype of `x_ND`, zero on invalid tokens; losses and stats.

        `modality_N` is i32[N] in [0, num_modalities). With `num_rows` the tokens are ordered by
        row, (b t) -> N, and `stats['by_row']` f32[B, M, E] is returned when not training.
        Further `inputs` reach the gates, routers and losses that name them.

        Raises ValueError for impossible sizes and for inputs that a function needs and lacks.
        """
        num_groups = self._check(modality_N)
        if modality_N is None:
            modality_N = jnp.zeros(x_ND.shape[0], jnp.int32)
        x_ND = jnp.where(valid_N[:, None], x_ND, 0)
        inputs |= {
            "x_ND": x_ND.astype(jnp.promote_types(x_ND.dtype, jnp.float32)),
            "modality_N": modality_N,
            "num_modalities": self.num_modalities,
        }
        if train and inputs.get("noise_NE") is None and self._random():
            inputs["key"] = self.make_rng("gate")

        routing = self._route(valid_N, num_groups, inputs)
        y_NO, dropped = apply_experts(
            x_ND,
            routing,
            self._experts(x_ND.shape[-1]),
            strategy=self.dispatch,
            capacity_factor=self.capacity_factor,
            activation=resolve(self.activation, "m4.moe.experts"),
            output=self.output and resolve(self.output, "m4.moe.experts"),
        )
        y_NO = jnp.where(valid_N[:, None], y_NO, 0).astype(x_ND.dtype)
        stats = diagnostics.step_stats(routing, dropped)
        stats["by_modality"] = diagnostics.counts(routing, modality_N, self.num_modalities)
        if num_rows is not None and not train:
            stats["by_row"] = diagnostics.counts_by_row(
                routing, modality_N, self.num_modalities, num_rows
            )
        return y_NO, MoeAux(self._losses(routing, num_groups, inputs), stats)

    def _check(self, modality_N):
        """Number of gate groups, after refusing impossible sizes."""
        if self.sharing not in ("joint", "permod", "disjoint"):
            raise ValueError(f"sharing={self.sharing!r}; choose joint, permod or disjoint")
        if self.sharing == "joint":
            num_groups, reachable = 1, self.num_experts
        elif modality_N is None:
            raise ValueError(f"sharing={self.sharing!r} needs modality_N")
        else:
            num_groups, reachable = self.num_modalities, self.num_experts
        if self.sharing == "disjoint":
            reachable = self.num_experts // num_groups
            if self.num_experts % num_groups:
                raise ValueError(
                    f"{self.num_experts} experts cannot be split over {num_groups} modalities; "
                    f"choose a multiple of {num_groups}"
                )
        if not 1 <= self.top_k <= reachable:
            raise ValueError(f"top_k={self.top_k} must be in [1, {reachable}] experts")
        return num_groups

    def _random(self):
        """Whether the gate or the router draws random numbers when training."""
        gate, router = resolve(self.gate, "m4.moe.gates"), resolve(self.router, "m4.moe.routing")
        return any("key" in inspect.signature(function).parameters for function in (gate, router))

    def _route(self, valid_N, num_groups, inputs) -> Routing:
        """Score and choose, with one gate per group."""
        gate, router = resolve(self.gate, "m4.moe.gates"), resolve(self.router, "m4.moe.routing")
        local = self.num_experts // (num_groups if self.sharing == "disjoint" else 1)
        dims = {"D": inputs["x_ND"].shape[-1], "E": local, "R": self.rank, "M": self.num_modalities}
        gate_params = self._learned(gate, "gate", dims, num_groups)
        router_params = self._learned(router, "router", dims, num_groups)

        def one_group(gate_params, router_params, valid_N):
            scored = inputs | gate_params
            logits_NE = declare.call(gate, inputs["x_ND"], options=self.gate_options, **scored)
            options = {"k": self.top_k, **self.router_options}
            routed = inputs | router_params
            return declare.call(router, logits_NE, valid_N, options=options, **routed)

        if num_groups == 1:
            first = jax.tree.map(lambda p: p[0], (gate_params, router_params))
            return one_group(*first, valid_N)
        group_N = inputs["modality_N"]
        member_GN = (group_N == jnp.arange(num_groups)[:, None]) & valid_N
        routings = jax.vmap(one_group)(gate_params, router_params, member_GN)
        routing = jax.tree.map(lambda a_GN: a_GN[group_N, jnp.arange(group_N.size)], routings)
        return routing if local == self.num_experts else _widen(routing, group_N, num_groups)

    def _learned(self, function: Callable, prefix: str, dims, num_groups) -> dict[str, Array]:
        """The declared parameters of `function`, each with a leading group dimension."""
        params = {}
        for argument, (shape, init) in declare.parameters(function, dims).items():

            def init_groups(key, shape, dtype=jnp.float32, init=init):
                return jnp.stack(
                    [init(k, shape[1:], dtype) for k in jax.random.split(key, shape[0])]
                )

            stem = argument.rpartition("_")[0] or argument
            params[argument] = self.param(f"{prefix}_{stem}", init_groups, (num_groups, *shape))
        return params

    def _experts(self, width) -> experts.ExpertParams:
        shapes = experts.shapes(self.num_experts, width, self.hidden, self.out or width)
        init = {"w1": experts.kernel_init, "w2": experts.kernel_init}
        return experts.ExpertParams(
            **{
                name: self.param(name, init.get(name, nn.initializers.zeros), shape)
                for name, shape in shapes.items()
            }
        )

    def _losses(self, routing, num_groups, inputs) -> dict[str, Array]:
        allowed_GE = jnp.ones((num_groups, self.num_experts), bool)
        if self.sharing == "disjoint":
            block_E = jnp.arange(self.num_experts) // (self.num_experts // num_groups)
            allowed_GE = block_E == jnp.arange(num_groups)[:, None]
        group_N = inputs["modality_N"] if num_groups > 1 else jnp.zeros_like(inputs["modality_N"])
        inputs = inputs | {"group_N": group_N, "allowed_GE": allowed_GE}
        return {
            name: declare.call(resolve(name, "m4.moe.balance"), routing, options={}, **inputs)
            for name in self.losses
        }


def _widen(routing: Routing, group_N: Array, num_groups: int) -> Routing:
    """From a group's own experts, numbered from 0, to all experts."""
    local = routing.logits.shape[-1]
    own_NE = (jnp.arange(local * num_groups) // local) == group_N[:, None]

    def spread(a_NE, fill):
        return jnp.where(own_NE, jnp.tile(a_NE, (1, num_groups)), fill)

    real_NK = routing.experts < local
    return routing.replace(
        experts=jnp.where(real_NK, routing.experts + local * group_N[:, None], local * num_groups),
        probs=spread(routing.probs, 0.0),
        logits=spread(routing.logits, -jnp.inf),
        load=None if routing.load is None else spread(routing.load, 0.0),
    )
