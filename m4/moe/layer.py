"""One mixture-of-experts layer: gate, route, dispatch.

Letters: N tokens, D input, F hidden and O output width, E experts, G gates (1, or one per
modality), M modalities, B rows.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from m4.moe import declare, experts, share
from m4.moe import stats as diagnostics
from m4.moe.engine import dispatch, mesh, slots
from m4.moe.options import MoEOptions
from m4.resolve import resolve
from m4.types import Array, MoeAux, Routing, SoftRouting

MAX_COACTIVATION = 512  # experts, above which [E, E] would be too much to fetch with every batch


class MoE(nn.Module):
    """y_n = sum over the chosen experts e of weight_ne * expert_e(x_n).

    `losses` are names in `m4.moe.losses` or 'package.module:name'. `options.share` is FuseMoE's
    router type: 'joint' has one gate, 'permod' one
    gate per modality over the same experts, 'disjoint' one per modality over its own
    num_experts / num_modalities experts; give `modality_N` as a NumPy array then, so that every
    gate sees its own tokens alone (`m4.moe.share`). Losses are returned unweighted in
    `MoeAux.losses`. Noise comes from the rng stream 'gate', and only when training.
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
        valid_N: Array,
        modality_N: Array | np.ndarray | None = None,
        num_rows: int | None = None,
        train: bool,
        **inputs: Any,
    ) -> tuple[Array, MoeAux]:
        """Output [N, O] in the dtype of `x_ND`, zero on invalid tokens; losses and stats.

        `modality_N` is i32[N] in [0, num_modalities). With `num_rows` the tokens are ordered by
        row, (b t) -> N, and `stats['by_row']` f32[B, M, E] is returned when not training, as is
        'coactivation' f32[E, E] of up to 512 experts. Where experts have a capacity,
        'dropped_by_modality' f32[M], 'dropped_by_task' f32[tasks] and 'dropped_by_row' f32[B]
        count the assignments lost.
        Further `inputs` reach the gates, routers and losses that name them, such as
        `temperature`, `query_NQ`, `pattern_N`, or `task_N` with `num_tasks`. Without `query_NQ` a
        token's query is its modality, one-hot.

        Raises ValueError for impossible sizes and for inputs that a function needs and lacks.
        """
        num_gates = self._check(modality_N)
        num_tokens = x_ND.shape[0]
        modality_N = jnp.zeros(num_tokens, jnp.int32) if modality_N is None else modality_N
        x_ND = jnp.where(valid_N[:, None], x_ND, 0)
        if inputs.get("query_NQ") is None:
            inputs["query_NQ"] = jax.nn.one_hot(modality_N, self.num_modalities)
        inputs |= {
            "x_ND": x_ND.astype(jnp.promote_types(x_ND.dtype, jnp.float32)),
            "modality_N": modality_N,
            "num_modalities": self.num_modalities,
            "num_rows": num_rows,
            "num_groups": self.options.num_groups,
            "slot_N": jnp.arange(num_tokens) % (num_tokens // (num_rows or 1)),
            "k": self.options.top_k,
            "train": train,
        }
        if train and inputs.get("noise_NE") is None and self._random():
            inputs["key"] = self.make_rng("gate")

        routing, learned = self._route(valid_N, num_gates, inputs)
        y_NO, dropped = self._run(x_ND, routing)
        y_NO = jnp.where(valid_N[:, None], y_NO, 0).astype(x_ND.dtype)
        seen = slots.as_routing(routing, valid_N) if isinstance(routing, SoftRouting) else routing
        losses = self._losses(seen, num_gates, inputs | learned)
        chosen = isinstance(routing, Routing)
        return y_NO, MoeAux(losses, self._stats(seen, dropped, inputs, chosen=chosen))

    def _check(self, modality_N) -> int:
        """Number of gates, after refusing impossible sizes."""
        if self.options.share not in ("joint", "permod", "disjoint"):
            raise ValueError(f"share={self.options.share!r}; choose joint, permod or disjoint")
        if self.options.share != "joint" and modality_N is None:
            raise ValueError(f"share={self.options.share!r} needs modality_N")
        if self.options.share == "disjoint" and self.options.num_experts % self.num_modalities:
            raise ValueError(
                f"{self.options.num_experts} experts cannot be split over {self.num_modalities} "
                f"modalities; choose a multiple of {self.num_modalities}"
            )
        if not 1 <= self.options.top_k <= self._reach():
            raise ValueError(f"top_k={self.options.top_k} must be in [1, {self._reach()}] experts")
        return 1 if self.options.share == "joint" else self.num_modalities

    def _reach(self):
        """Number of experts that one gate chooses from."""
        return self.options.num_experts // (
            self.num_modalities if self.options.share == "disjoint" else 1
        )

    def _functions(self):
        return resolve(self.options.gate, "m4.moe.gates"), resolve(
            self.options.router, "m4.moe.routers"
        )

    def _random(self):
        """Whether the gate or the router draws random numbers when training."""
        return any("key" in inspect.signature(f).parameters for f in self._functions())

    def _route(self, valid_N, num_gates, inputs) -> tuple[Any, dict[str, Array]]:
        """The routing, with one gate per modality where asked, and the router's parameters."""
        gate, router = self._functions()
        reach = self._reach()
        inputs = inputs | {"num_experts": reach}
        dims = {
            "D": inputs["x_ND"].shape[-1],
            "E": reach * self.options.num_slots,
            "R": self.options.rank,
        }
        dims |= {"Q": inputs["query_NQ"].shape[-1], "G": self.options.num_groups}
        gate_params = self._learned(gate, "gate", dims, num_gates)
        outer, outer_params = None, {}
        if "outer_NG" in inspect.signature(router).parameters:
            outer = resolve(self.options.outer_gate, "m4.moe.gates")
            outer_dims = dims | {"E": self.options.num_groups}
            outer_params = self._learned(outer, "outer", outer_dims, num_gates)
        router_params = self._learned(router, "router", dims, num_gates)

        def one_gate(params, valid_N, inputs):
            gate_params, outer_params, router_params = params
            score = lambda f, params: declare.call(  # noqa: E731
                f, inputs["x_ND"], options=self.options.gate_options, **inputs, **params
            )
            logits_NE = score(gate, gate_params)
            extra = (
                router_params
                if outer is None
                else {**router_params, "outer_NG": score(outer, outer_params)}
            )
            routing = declare.call(
                router, logits_NE, valid_N, options=self.options.router_options, **inputs, **extra
            )
            if num_gates > 1 and not isinstance(routing, Routing):
                raise ValueError(
                    f"router={self.options.router!r} cannot have one gate per modality; "
                    "share must be 'joint'"
                )
            return routing

        params = gate_params, outer_params, router_params
        if num_gates == 1:
            first = jax.tree.map(lambda p: p[0], params)
            return one_gate(first, valid_N, inputs), router_params
        routing = share.route_by_modality(one_gate, params, valid_N, inputs, num_gates=num_gates)
        if reach < self.options.num_experts:
            routing = _widen(routing, inputs["modality_N"], num_gates)
        return routing, router_params

    def _learned(
        self, function: Callable, prefix: str, dims: Mapping[str, int], num_gates: int
    ) -> dict[str, Array]:
        """The declared parameters of `function`, each with a leading gate dimension."""
        learned = {}
        for argument, (shape, init) in declare.parameters(function, dims).items():
            name = f"{prefix}_{declare.stem(argument)}"
            shape, init = (num_gates, *shape), _per_gate(self.gate_init or init)
            fixed = self.fixed_gates
            learned[argument] = (
                init(jax.random.key(0), shape) if fixed else self.param(name, init, shape)
            )
        return learned

    def _run(self, x_ND, routing) -> tuple[Array, Array]:
        """Experts on their tokens: output [N, O] and the share of assignments dropped."""
        shapes = experts.shapes(
            self.options.num_experts, x_ND.shape[-1], self.options.hidden, self.out
        )
        init = {name: experts.init(name, self.kernel_init) for name in shapes}
        params = experts.ExpertParams(
            **{name: self.param(name, init[name], shape) for name, shape in shapes.items()}
        )
        if self.options.dtype is not None:
            x_ND, params = jax.tree.map(lambda a: a.astype(self.options.dtype), (x_ND, params))
        functions = {
            "activation": resolve(self.options.activation, "m4.moe.experts"),
            "output": None
            if self.options.output is None
            else resolve(self.options.output, "m4.moe.experts"),
        }
        y_NO, dropped = self._routed(x_ND, routing, params, functions)
        if self.options.num_shared:
            shared = experts.SharedExperts(
                self.options.num_shared,
                self.options.hidden,
                y_NO.shape[-1],
                self.kernel_init,
                name="shared",
            )
            y_NO += shared(x_ND, **functions)
        return y_NO, dropped

    def _routed(self, x_ND, routing, params, functions) -> tuple[Array, Array]:
        """What the chosen experts say."""
        if isinstance(routing, SoftRouting):
            return slots.apply_soft(x_ND, routing, params, **functions), jnp.zeros(())
        if isinstance(routing, slots.ExpertChoice):
            return slots.apply_choice(x_ND, routing, params, **functions), jnp.zeros(())
        options = functions | {
            "strategy": self.options.engine,
            "capacity_factor": self.options.capacity,
        }
        # On a mesh the partitioner must not see the dispatch: it would gather all expert weights.
        if jax.sharding.get_abstract_mesh().size > 1:
            replicas = self.options.replicas
            return mesh.apply_experts(x_ND, routing, params, num_replicas=replicas, **options)
        return dispatch.apply_experts(x_ND, routing, params, **options)

    def _losses(self, routing, num_gates, inputs) -> dict[str, Array]:
        block_E = np.arange(self.options.num_experts) // self._reach()
        inputs["allowed_GE"] = (block_E == np.arange(num_gates)[:, None]) | (
            self.options.share != "disjoint"
        )
        gate_N = inputs["modality_N"]
        inputs["gate_N"] = gate_N if num_gates > 1 else jnp.zeros_like(gate_N)
        return {
            name: declare.call(resolve(name, "m4.moe.losses"), routing, options={}, **inputs)
            for name in self.losses
        }

    def _stats(self, routing, dropped, inputs, *, chosen) -> dict[str, Array]:
        modality_N, num_rows = inputs["modality_N"], inputs["num_rows"]
        by_row = num_rows is not None and not inputs["train"]
        stats = diagnostics.step_stats(routing, dropped)
        stats["by_modality"] = diagnostics.counts(routing, modality_N, self.num_modalities)
        if by_row:
            stats["by_row"] = diagnostics.counts_by_row(
                routing, modality_N, self.num_modalities, num_rows
            )
        if by_row and chosen and self.options.num_experts <= MAX_COACTIVATION:
            stats["coactivation"] = diagnostics.coactivation(routing)
        if chosen and self.options.engine.startswith("capacity"):
            lost = diagnostics.unserved(
                routing, strategy=self.options.engine, capacity_factor=self.options.capacity
            )
            groups = {"modality": (modality_N, self.num_modalities)}
            if inputs.get("task_N") is not None:
                groups["task"] = inputs["task_N"], inputs["num_tasks"]
            if by_row:
                row_N = jnp.arange(modality_N.size) // (modality_N.size // num_rows)
                groups["row"] = row_N, num_rows
            for name, (index_N, num) in groups.items():
                stats[f"dropped_by_{name}"] = diagnostics.counts(lost, index_N, num).sum(-1)
        return stats


def _per_gate(init: Callable) -> Callable:
    """Initialiser of a stack [G, ...] whose every entry is drawn on its own."""

    def stacked(key, shape, dtype=jnp.float32):
        return jnp.stack([init(k, shape[1:], dtype) for k in jax.random.split(key, shape[0])])

    return stacked


def _widen(routing: Routing, gate_N: Array, num_gates: int) -> Routing:
    """From a gate's own experts, numbered from 0, to all experts."""
    reach = routing.logits.shape[-1]
    own_NE = (jnp.arange(reach * num_gates) // reach) == gate_N[:, None]

    def spread(a_NE, fill):
        return jnp.where(own_NE, jnp.tile(a_NE, (1, num_gates)), fill)

    wide_NK = routing.experts + reach * gate_N[:, None]
    return routing.replace(
        experts=jnp.where(routing.experts < reach, wide_NK, reach * num_gates),
        probs=spread(routing.probs, 0.0),
        logits=spread(routing.logits, -jnp.inf),
        load=None if routing.load is None else spread(routing.load, 0.0),
    )
