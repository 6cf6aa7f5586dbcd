"""FuseMoE's release (aaronhan223/FuseMoE, `MULTCrossModel` with `cross_method` 'moe')."""

import numpy as np

from m4.errors import ConfigError
from m4.methods.fusemoe.released import NOTES, ReleasedFuseMoE
from m4.nn.encoders.modalities import length_limit
from m4.nn.torch_table import (
    LAST,
    LEAD,
    SAME,
    SWAP,
    Entry,
    Layout,
    blocks,
    concat,
    linears,
    norms,
    one,
    packed,
    stack,
    take,
)
from m4.specs import ModalitySpec

# Order of the release's type table, and of its fusion by the modalities there are.
TYPES = ("ts", "text", "cxr", "ecg")
FUSIONS = (("text", "ts"), ("cxr", "ts"), ("ts", "cxr", "text"), ("ts", "cxr", "text", "ecg"))
GATES = {"linear": "gate_w", "laplace": "gate_centre", "gaussian": "gate_centre"}
TRANSFORMER = "trans_self_cross_ts_txt"
IGNORED = {
    "bertrep.*": "language model: m4 reads embeddings computed beforehand",
    f"{TRANSFORMER}.layers.*.cross_attn_[12].*": "cross-attention that the mixture replaces",
    f"{TRANSFORMER}.layers.*.post_self_attn_layer_norm.*": "layer norm that is never called",
    f"{TRANSFORMER}.layers.*.post_encoder_attn_layer_norm.*": "layer norm that is never called",
}


def layout(method: ReleasedFuseMoE) -> Layout:
    """Every tensor; the release has one series, one task and four sets of modalities.

    Routers of 'permod' and 'disjoint' are in no file: the release neither trains nor saves them.
    """
    data = method.data
    roles = [_role(m) for m in data.modalities]
    fusion = next((f for f in FUSIONS if sorted(f) == sorted(roles)), None)
    if len(data.tasks) != 1:
        raise ConfigError(
            f"tasks {', '.join(data.task_names)}: the release has one; choose it with"
            " data.options.tasks"
        )
    if fusion is None:
        raise ConfigError(
            f"modalities {', '.join(data.modality_names)}: the release fuses one series with"
            " notes, with cxr, with both, or with both and ecg; choose with data.options.modalities"
        )
    if "ecg" in roles and roles[1] != "text":
        raise ConfigError("modalities: notes must come second, as in the release's type table")
    if method.moe.gate not in GATES or method.moe.router != "noisy_top_k":
        raise ConfigError(
            f"method.moe.gate={method.moe.gate!r}, method.moe.router={method.moe.router!r}: the"
            f" release has gates {', '.join(GATES)} and router 'noisy_top_k'"
        )
    order = [fusion.index(role) for role in roles]  # of the release, per slot of m4
    types = sorted(roles, key=TYPES.index)
    by_slot, task = blocks(order), data.task_names[0]
    position = f"{TRANSFORMER}.embed_positions_q_1.weight"
    entries = [
        *_embedding(method, roles),
        one("type", "token_type_embeddings.weight", take([types.index(role) for role in roles])),
        one("position", position),
        *norms("norm", [f"{TRANSFORMER}.layer_norm.{a}" for a in order]),
        one(f"heads/{task}/kernel", "out_layer.weight", SWAP, by_slot),
        one(f"heads/{task}/bias", "out_layer.bias"),
    ]
    for path, name in (("head_up", "proj1"), ("head_down", "proj2")):
        entries.append(one(f"{path}/kernel", f"{name}.weight", SWAP, by_slot, blocks(order, 1)))
        entries.append(one(f"{path}/bias", f"{name}.bias", by_slot))
    constants = {}
    for i in range(method.depth):
        entries += _layer(method, i, order)
        moe = f"{TRANSFORMER}.layers.{i}.moe"
        constants |= {f"{moe}.mean": np.zeros(1, np.float32), f"{moe}.std": np.ones(1, np.float32)}
    copies = {f"{TRANSFORMER}.embed_positions_q.{m}.weight": position for m in range(len(order))}
    return Layout(entries, copies, constants, IGNORED)


def _role(m: ModalitySpec) -> str:
    """The release's name of a modality; others keep theirs and fit no fusion."""
    if m.kind != "vectors":
        return "ts" if m.kind == "series" else m.kind
    return "text" if m.name in NOTES else m.name


def _embedding(method: ReleasedFuseMoE, roles: list[str]) -> list[Entry]:
    """Time embedding, mTAND of every modality, UTDE of the series."""
    sizes = (1, method.embed_time - 1)
    entries = [
        concat("grid/time/weight", ("linear.weight", "periodic.weight"), sizes, LAST),
        concat("grid/time/bias", ("linear.bias", "periodic.bias"), sizes),
    ]
    for modality, role in zip(method.data.modalities, roles, strict=True):
        at = f"grid/{modality.name}"
        if role == "ts":
            at = f"grid/series_{length_limit(modality)}"
            entries.append(stack(f"{at}/imputed/kernel", ["proj_ts.weight"], LAST, SWAP))
            entries += linears(f"{at}/gate_up", ["moe.gate.1"])
            entries += linears(f"{at}/gate_out", ["moe.gate.3"])
        for number, part in enumerate(("query", "key", "out")):
            entries += linears(f"{at}/mtand/{part}", [f"time_attn_{role}.linears.{number}"])
    return entries


def _layer(method: ReleasedFuseMoE, i: int, order: list[int]) -> list[Entry]:
    """Self-attention, experts and MLP; everything but the experts per modality."""
    at = f"{TRANSFORMER}.layers.{i}"
    moe = method.moe

    def each(name: str) -> list[str]:
        return [f"{at}.{name}.{a}" for a in order]

    return [
        *norms(f"time_{i}/norm", each("pre_self_attn_layer_norm")),
        *packed(f"time_{i}/attention", each("self_attns")),
        *norms(f"norm_{i}", each("pre_encoder_attn_layer_norm")),
        *experts(f"layer_{i}/moe", f"{at}.moe", order, moe.share, moe.num_experts, moe.gate),
        *norms(f"mlp_{i}/norm", each("pre_ffn_layer_norm")),
        *linears(f"mlp_{i}/mlp/up", each("fc1")),
        *linears(f"mlp_{i}/mlp/down", each("fc2")),
    ]


def experts(
    path: str, at: str, order: list[int], share: str, num_experts: int, gate: str
) -> list[Entry]:
    """Experts write to all modalities, 'joint' ones also read all: blocks in m4's order."""
    joint, own = share == "joint", num_experts // len(order)
    names = [f"{at}.experts.{e}" for e in range(num_experts)]
    if share == "disjoint":
        names = [f"{at}.experts.{a}.{e}" for a in order for e in range(own)]

    def each(name: str) -> list[str]:
        return [f"{expert}.{name}" for expert in names]

    reads = [blocks(order, dim) if joint else SAME for dim in (0, 1)]
    entries = [
        stack(f"{path}/w1", each("fc1.weight"), reads[1]),
        stack(f"{path}/b1", each("fc1.bias")),
        stack(f"{path}/w2", each("fc2.weight"), SWAP, blocks(order, 1)),
        stack(f"{path}/b2", each("fc2.bias"), blocks(order)),
    ]
    if joint:
        entries.append(one(f"{path}/{GATES[gate]}", f"{at}.w_gate", reads[0], LEAD))
        entries.append(one(f"{path}/router_noise", f"{at}.w_noise", reads[0], LEAD))
    return entries
