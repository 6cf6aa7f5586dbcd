"""What a configuration says of a mixture-of-experts layer: the section `method.moe`.

A method hands it to the layer whole, so a new option is a field here and a line where it acts.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from flax.core import FrozenDict


@dataclasses.dataclass(frozen=True)
class MoEOptions:
    """Gate, router, share, sizes of the experts, and the engine that runs them.

    `gate` and `router` are names in `m4.moe.gates` and `.routers`, `activation` and `output` in
    `m4.moe.experts`, or 'package.module:name'.
    """

    gate: str = "laplace"  # scores
    router: str = "top_k"  # choice
    share: Literal["joint", "permod", "disjoint"] = "joint"  # of one gate, or one per modality
    num_experts: int = 16
    top_k: int = 2  # experts that a token visits
    hidden: int = 128  # units of an expert
    num_shared: int = 0  # further experts that every token visits at weight 1
    activation: str = "gelu"
    output: str | None = None  # function on every expert's output before mixing
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # of the experts' arithmetic
    # None: that of the input and the parameters
    rank: int = 8  # of the low-rank gates
    num_slots: int = 1  # slots per expert, of the 'soft' router
    num_groups: int = 1  # groups of experts, of the 'group_limited' and 'hierarchical' routers
    outer_gate: str = "laplace"  # between groups, of the 'hierarchical' router
    gate_options: Mapping[str, Any] = FrozenDict()
    router_options: Mapping[str, Any] = FrozenDict()
    engine: Literal["auto", "dense", "dropless", "capacity", "capacity_prioritised", "ragged"] = (
        "auto"  # see `m4.moe.engine.dispatch`
    )
    capacity: float | None = None  # rows that an expert serves over the mean load N K / E
    exchange: Literal["auto", "all_to_all", "ragged_all_to_all", "all_gather", "replicated"] = (
        "auto"  # of rows between devices, see `m4.moe.engine.mesh`
    )
    slack: float = 1.25  # rows of a bucket that travels, over the mean
    overflow: Literal["exact", "drop"] = "exact"  # what becomes of rows that fit in no bucket
    replicas: int = 0  # hot experts that every device of a mesh runs for its own tokens


@dataclasses.dataclass(frozen=True)
class SoftOptions:
    """The same of a soft mixture (`m4.moe.soft`): every token reaches every slot of every expert.

    So there is no router, no capacity and no engine to choose.
    """

    gate: str = "m4.moe.soft:scaled_cosine"  # any gate that needs no more than the tokens
    num_experts: int = 16
    hidden: int = 128
    activation: str = "gelu"
    output: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    rank: int = 8
    gate_options: Mapping[str, Any] = FrozenDict()
    inputs: Literal["raw", "unit"] = "raw"  # tokens that slots mix: as they are, as Soft-MoE's
    # authors do, or of length 1, as M4oE's release does
