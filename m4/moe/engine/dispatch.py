"""Dispatch: run the chosen experts on their tokens and mix the outputs.

The one interface of this file:

    apply_experts(x_ND, routing, params, *, strategy='auto', capacity_factor=None, activation,
                  output=None) -> (y_NO, dropped f32[])

y_n = sum_k weights_nk * output(expert_{experts_nk}(x_n)). Assignments to expert E (invalid or
forbidden) contribute nothing. `dropped` is the share of valid assignments that were not served.
`output` is a function on an expert's output vector before mixing (None: identity).

Strategies, equal in value and in every gradient where nothing is dropped:

- 'dense': every expert on every token. The definition, and the oracle of the others.
- 'dropless': C slots per expert through batched matmuls, an exact loop over blocks of rows for
  what does not fit. C only decides the speed.
- 'capacity': the slots alone. An expert serves its first C assignments (all first choices before
  second choices, then in token order) and drops the others, counted in `dropped`.
- 'capacity_prioritised': the same, tokens with a larger best weight first (V-MoE).
- 'ragged': `jax.lax.ragged_dot`, refused where the compiler expands it over all experts.
- 'auto': 'dropless' on a CPU; elsewhere 'dense' if most experts are chosen anyway, 'ragged' on a
  TPU whose compiler has a kernel for it and its gradients, else 'dropless'. Never drops.

Letters: N tokens, E experts, K chosen experts, D input, F hidden and O output width.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from m4.moe.engine import ragged
from m4.moe.engine.grouped import Functions, Layout, cast, dropped_share, grouped_mlp
from m4.moe.engine.plan import make_plan
from m4.moe.experts import ExpertParams, apply_stacked
from m4.types import Array, Routing

STRATEGIES = ("auto", "dense", "dropless", "capacity", "capacity_prioritised", "ragged")


def apply_experts(
    x_ND: Array,
    routing: Routing,
    params: ExpertParams,
    *,
    strategy: str = "auto",
    capacity_factor: float | None = None,
    activation: Callable[[Array], Array],
    output: Callable[[Array], Array] | None = None,
    expected: int | None = None,
    device: jax.Device | None = None,
) -> tuple[Array, Array]:
    """Mixture of the chosen experts' outputs, and the share of assignments dropped.

    Computes in the dtype of `x_ND`; weight gradients are summed in at least float32.
    `capacity_factor` is C / (N*K/E): how many rows an expert can serve, or with 'dropless' how
    many it serves fast. None: 1.25 where the rest is dropped, else a choice by backend and size.
    `expected` replaces N*K where many assignments are known to be invalid; `device` is what the
    program is meant for (None: the first of the default backend).

    Raises ValueError for an unknown strategy, for a capacity factor that is not positive, and for
    'ragged' where it would cost E times the work.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy={strategy!r}; choose one of {', '.join(STRATEGIES)}")
    if capacity_factor is not None and not capacity_factor > 0:
        raise ValueError(f"capacity_factor={capacity_factor} must be positive")
    num_experts, functions = params.w1.shape[0], Functions(activation, output)
    device = device or jax.local_devices()[0]
    if strategy == "auto":
        strategy = choose_strategy(routing.experts.shape[1], num_experts, device)
    if strategy == "dense":
        params = cast(params, x_ND.dtype)
        return dense(x_ND, routing, params, activation=activation, output=output)
    if strategy == "ragged":
        if not ragged.pays(device):
            raise ValueError(f"strategy='ragged' costs E times the work on {device}; choose auto")
        plan = make_plan(routing.experts, num_experts)
        params = cast(params, x_ND.dtype)
        return ragged.ragged_mlp(functions, x_ND, plan, routing.weights, params), jnp.zeros(())
    layout = choose_layout(
        routing.experts.size,
        num_experts,
        strategy=strategy,
        capacity_factor=capacity_factor,
        expected=expected,
        backend=device.platform,
    )
    priority_N = routing.weights.max(axis=1) if strategy == "capacity_prioritised" else None
    plan = make_plan(routing.experts, num_experts, priority_N=priority_N)
    y_NO = grouped_mlp(layout, functions, x_ND, plan, routing.weights, params)
    return y_NO, dropped_share(layout, plan)


def dense(x_ND, routing, params, *, activation, output=None):
    """Every expert on every token: the definition, and the oracle of the other strategies."""
    num_experts = params.w1.shape[0]
    x_END = jnp.broadcast_to(x_ND, (num_experts, *x_ND.shape))
    y_ENO = apply_stacked(x_END, params, activation=activation)
    y_ENO = y_ENO if output is None else output(y_ENO)
    onehot_NKE = jax.nn.one_hot(routing.experts, num_experts, dtype=routing.weights.dtype)
    mix_NE = jnp.einsum("nk,nke->ne", routing.weights, onehot_NKE).astype(y_ENO.dtype)
    return jnp.einsum("ne,eno->no", mix_NE, y_ENO), jnp.zeros(())


def choose_strategy(k: int, num_experts: int, device: jax.Device) -> str:
    """What 'auto' means; see the top of the file."""
    if device.platform == "cpu":
        return "dropless"
    if num_experts <= 1.25 * k:
        return "dense"
    return "ragged" if device.platform == "tpu" and ragged.pays(device) else "dropless"


def choose_layout(
    size: int,
    num_experts: int,
    *,
    strategy: str = "dropless",
    capacity_factor: float | None = None,
    expected: int | None = None,
    backend: str,
) -> Layout:
    """Slots per expert and rows per block, for `size` assignments (`expected` valid ones)."""
    mean = (size if expected is None else expected) / num_experts
    form = "columns" if backend == "cpu" else "rows"
    if strategy != "dropless":
        capacity = math.ceil((capacity_factor or 1.25) * mean)
        return Layout(min(capacity, size), None, form)
    slack = _free_slots(mean, backend) if capacity_factor is None else (capacity_factor - 1) * mean
    multiple = 8 if mean < 256 else 32 if backend == "cpu" else 64
    capacity = multiple * max(1, math.ceil((mean + slack) / multiple))
    if capacity >= size:
        return Layout(size, None, form)  # nothing can overflow
    smallest, largest = (16, 128) if backend == "cpu" else (128, 512)
    block = 2 ** math.ceil(math.log2(max(mean / 8, 1)))
    return Layout(capacity, min(max(smallest, block), largest, size), form)


def _free_slots(mean, backend):
    """Slots beyond the mean load.

    On a CPU an overflowing expert costs as much as some 40 free slots: one standard deviation of
    a uniform load is best. An accelerator stalls while it decides to run the loop: four.
    """
    return (1 if backend == "cpu" else 4) * math.sqrt(mean)
