"""Run the chosen experts on their tokens and mix the outputs.

    y_n = sum over k of weights_nk * output(expert_{experts_nk}(x_n))

Assignments to expert E (invalid or forbidden) contribute nothing.

Engines, equal in value and in every gradient where nothing is dropped:

- 'dense': every expert on every token. The definition, and the oracle of the others.
- 'dropless': C slots per expert through batched matmuls, an exact loop over blocks of rows for
  what does not fit. C only decides the speed.
- 'capacity': the slots alone. An expert serves its first C assignments (all first choices before
  second choices, then in token order) and drops the others.
- 'capacity_prioritised': the same, tokens with a larger best weight first (V-MoE).
- 'ragged': `jax.lax.ragged_dot`, refused where the compiler expands it over all experts.
- 'grouped': Triton kernels over tiles of each expert's rows, on NVIDIA GPUs (extra `triton`). Exact
  for any load, without slots; the experts' gradients have the dtype of the computation.
- 'auto': 'dropless' on a CPU; elsewhere 'dense' if most experts are chosen anyway, 'ragged' on a
  TPU whose compiler has a kernel for it and its gradients, else 'dropless'. Never drops.

Letters: N tokens, E experts, K chosen experts, D input, F hidden and O output width.
"""

import dataclasses
import functools
import importlib
import math
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from einops import rearrange

from m4.moe.engine import ragged, tiles
from m4.moe.engine.grouped import Layout, grouped_mlp, make_plan
from m4.moe.experts import ExpertParams, Functions, cast
from m4.types import Array, Routing

Engine = Literal[
    "auto", "dense", "dropless", "capacity", "capacity_prioritised", "ragged", "grouped"
]
LIMITED = ("capacity", "capacity_prioritised")  # may drop assignments
FEW = 8  # experts of a token, up to which `dense` compares each with every expert


@dataclasses.dataclass(frozen=True)
class Target:
    """The kind of device that a program is compiled for, which decides engine and layouts.

    Asked once for a model, before anything is traced, and handed down in `MoEOptions.target`: so
    the program for a pod that is only described is the same as on the pod itself.
    """

    platform: str  # cpu, cuda, tpu, ...
    grouped: bool  # its compiler spends FLOPs on a group's own rows alone (`ragged.pays`)
    triton: int = 0  # compute capability for which `triton_kernels` can be had; 0: they cannot


def apply_experts(
    x_ND: Array,
    routing: Routing,
    params: ExpertParams,
    functions: Functions,
    *,
    engine: str = "auto",
    capacity: float | None = None,
    expected: int | None = None,
    target: Target | None = None,
) -> tuple[Array, Array | None]:
    """Mixture of the chosen experts' outputs [N, O], and which assignments were lost.

    The latter is bool[N, K], or None where the engine never drops. Computes in the dtype of `x_ND`;
    weight gradients are summed in at least float32. `capacity` is C / (N*K/E): how many rows an
    expert can serve, or with 'dropless' how many it serves fast. None: 1.25 where the rest is
    dropped, else a choice by backend and size. `expected` replaces N*K where many assignments are
    known to be invalid; `target` is what the program is meant for (None: the devices at hand).

    Raises ValueError for an unknown engine, for a capacity that is not positive, for 'ragged' where
    it would cost E times the work, and for 'grouped' where its kernels or widths are missing.
    """
    if engine not in (engines := get_args(Engine)):
        raise ValueError(f"moe.engine={engine!r}; choose one of {', '.join(engines)}")
    if capacity is not None and not capacity > 0:
        raise ValueError(f"moe.capacity={capacity} must be positive")
    num_tokens, k = routing.experts.shape
    num_experts, target = params.w1.shape[0], target or current_target()
    if engine == "auto":
        engine = choose_engine(k, num_experts, target)
    if engine == "dense":
        return dense(x_ND, routing, params, functions), None
    if engine == "ragged":
        if not target.grouped:
            where = f"a {target.platform} with this compiler"
            raise ValueError(f"moe.engine='ragged' costs E times the work on {where}; choose auto")
        plan, params = make_plan(routing.experts, num_experts), cast(params, x_ND.dtype)
        return ragged.ragged_mlp(functions, x_ND, plan, routing.weights, params), None
    if engine == "grouped":
        plan, params = make_plan(routing.experts, num_experts), cast(params, x_ND.dtype)
        return tiles.tiled_mlp(
            _kernels(target), functions, x_ND, plan, routing.weights, params
        ), None
    layout = choose_layout(
        num_tokens * k,
        num_experts,
        engine=engine,
        capacity=capacity,
        expected=expected,
        backend=target.platform,
    )
    priority_N = routing.weights.max(axis=1) if engine == "capacity_prioritised" else None
    plan = make_plan(routing.experts, num_experts, priority_N=priority_N)
    y_NO = grouped_mlp(layout, functions, x_ND, plan, routing.weights, params)
    if engine == "dropless":
        return y_NO, None
    lost_A = plan.valid_A & (plan.rank_A >= layout.capacity)
    return y_NO, rearrange(lost_A, "(k n) -> n k", n=num_tokens)


def dense(x_ND: Array, routing: Routing, params: ExpertParams, functions: Functions) -> Array:
    """Every expert on every token: the definition, and the oracle of the other engines."""
    y_ENO = functions.apply(jnp.broadcast_to(x_ND, (params.w1.shape[0], *x_ND.shape)), params)
    return jnp.einsum("ne,eno->no", _mix(routing, params.w1.shape[0]).astype(y_ENO.dtype), y_ENO)


def _mix(routing: Routing, num_experts: int) -> Array:
    """The weight of every expert for every token, [N, E]."""
    num_tokens, k = routing.experts.shape
    if k <= FEW:
        onehot_NKE = jax.nn.one_hot(routing.experts, num_experts, dtype=routing.weights.dtype)
        return jnp.einsum("nk,nke->ne", routing.weights, onehot_NKE)
    # N K E numbers would be E times what there is to say: 3 GB for 12,000 tokens, 256 of 256.
    mix_NE = jnp.zeros((num_tokens, num_experts + 1), routing.weights.dtype)
    mix_NE = mix_NE.at[jnp.arange(num_tokens)[:, None], routing.experts].add(routing.weights)
    return mix_NE[:, :num_experts]  # the last are assignments to nobody


@functools.cache
def target_of(device: Any) -> Target:
    """The target that a `jax.Device` is, also one that is only described (`topologies`)."""
    if device.platform != "tpu":  # no other compiler has a kernel for groups of rows
        there = all(map(find_spec, ("triton", "jax_triton")))
        major, _, minor = str(getattr(device, "compute_capability", "")).partition(".")
        capability = int(major) * 10 + int(minor or 0) if major.isdecimal() else 0
        return Target(device.platform, False, capability if there else 0)
    # In a thread of its own, which no mesh is set for and nothing is traced in: with a mesh of
    # several devices JAX refuses a program for one of them.
    with ThreadPoolExecutor(1) as thread:
        return Target(device.platform, thread.submit(ragged.pays, device).result())


def current_target() -> Target:
    """The target of the mesh that is set, or else of the default backend.

    For layers that were handed none. What is only described and not here is not asked.
    """
    kind, own = jax.sharding.get_abstract_mesh().abstract_device, jax.local_devices()[0]
    if kind is None or (kind.platform, kind.device_kind) == (own.platform, own.device_kind):
        return target_of(own)
    return Target(kind.platform, False)


def _kernels(target: Target) -> tiles.Kernels:
    """The Triton kernels. Raises ValueError where there are none."""
    if not target.triton:
        where = (
            f"here is a {target.platform}, which has none"
            if target.platform == "cpu"
            else ("install m4-moe[triton]")
        )
        raise ValueError(
            f"moe.engine='grouped' needs Triton on an NVIDIA GPU: {where}; choose auto"
        )
    return importlib.import_module("m4.moe.engine.triton_kernels").kernels(target.triton)


def choose_engine(k: int, num_experts: int, target: Target) -> str:
    """What 'auto' means; see the top of the file."""
    if target.platform == "cpu":
        return "dropless"
    if num_experts <= 1.25 * k:
        return "dense"
    return "ragged" if target.grouped else "dropless"


def choose_layout(
    size: int,
    num_experts: int,
    *,
    engine: str = "dropless",
    capacity: float | None = None,
    expected: int | None = None,
    backend: str,
) -> Layout:
    """Slots per expert and rows per block, for `size` assignments (`expected` valid ones)."""
    mean = (size if expected is None else expected) / num_experts
    form = "columns" if backend == "cpu" else "rows"
    if engine != "dropless":
        return Layout(min(math.ceil((capacity or 1.25) * mean), size), None, form)
    slack = _free_slots(mean, backend) if capacity is None else (capacity - 1) * mean
    multiple = 8 if mean < 256 else 32 if backend == "cpu" else 64
    if mean + slack <= (4 if backend == "cpu" else 8):
        # Hardly a row an expert, as where there are thousands: on a CPU 4 slots take 0.89 to 0.94
        # of the time of 8 (E = 1,024), where 2 or 3, and 12 rather than 16, take longer.
        multiple = 4 if backend == "cpu" else 2
    slots = multiple * max(1, math.ceil((mean + slack) / multiple))
    if slots >= size:
        return Layout(size, None, form)  # nothing can overflow
    smallest, largest = (16, 128) if backend == "cpu" else (128, 512)
    block = 2 ** math.ceil(math.log2(max(mean / 8, 1)))
    return Layout(slots, min(max(smallest, block), largest, size), form)


def _free_slots(mean, backend):
    """Slots beyond the mean load.

    On a CPU an overflowing expert costs as much as some 40 free slots: one standard deviation of
    a uniform load is best. An accelerator stalls while it decides to run the loop: four.
    """
    return (1 if backend == "cpu" else 4) * math.sqrt(mean)
