"""FlexCare's release (mhxu1998/FlexCare): a plain state dict for 3 modalities and 6 tasks."""

import numpy as np

from m4.errors import ConfigError
from m4.methods.flexcare.released import ReleasedFlexCare
from m4.nn import torch_table as table
from m4.nn.torch_table import Entry, Layout
from m4.specs import DataSpec

# Heads by the row of the release's task embedding, and m4's names of the same tasks.
TASKS = ("mortality", "decomp", "ph", "los", "readm", "diag")
SAME_TASK = {
    "ihm48": "mortality", "phe": "ph", "phenotypes": "ph", "readmission": "readm",
    "decompensation": "decomp", "los_remaining": "los", "chexpert": "diag",
}  # fmt: skip
ROLES = {"series": "ehr", "image": "cxr"}
NAMES = {"notes": "note", "text": "note", "flexcare": "ehr"}
POSITIONS = {"ehr": 600, "cxr": 197, "note": 600}  # rows of the release's tables
IGNORED = {
    "note_projection.*": "language model: m4 reads embeddings computed beforehand",
    "encoder_layer_fusion.*": "template of the transformer's layers, never called",
    "dense_layer_drg.*": "head of a task that is never trained",
}
MEMBERS = ("mm_cls_token", "cross_cls_tokens", "ehr_cls_token", "cxr_cls_token", "note_cls_token")
SINGLE = table.Codec(lambda x: x[:, 0], lambda x: x[:, None])  # without a second dimension of 1
GATES = {"gate_w": "w_gate", "gate_query": "task_gate", "router_noise": "w_noise"}


def layout(method: ReleasedFlexCare) -> Layout:
    """Every tensor, of the modalities (ehr, cxr, note) in this order and any of the tasks.

    Positions beyond the data set's and embeddings of tasks that it lacks are not read.
    """
    roles, tasks = _roles(method.data), _tasks(method.data)
    if roles != ["ehr", "cxr", "note"] or method.max_size not in (None, 3):
        raise ConfigError(
            f"modalities {', '.join(method.data.modality_names)}: the release has a series 'ehr',"
            " an image 'cxr' and notes, in this order, and all their combinations"
        )
    gate, router = method.moe.gate, method.moe.router
    if (gate, router) != ("task_additive", "noisy_top_k"):
        raise ConfigError(
            f"method.moe.gate={gate!r}, method.moe.router={router!r}: the release has"
            " 'task_additive' and 'noisy_top_k'"
        )
    entries = [
        table.one("task", "task_embedding.weight", table.pick([TASKS.index(t) for t in tasks], 40)),
        table.concat("combination", MEMBERS, (1, 3, 1, 1, 1), SINGLE),
        *_modalities(method),
        table.one("choose/kernel", "mm_choose.weight", table.SWAP),
        table.one("score/kernel", "mm_choose2.weight", table.SWAP),
        *table.norms("fused_norm", ["mm_layernorm"]),
        *_experts(method),
    ]
    for ours, theirs in zip(method.data.task_names, tasks, strict=True):
        entries += table.linear(f"heads/{ours}", f"dense_layer_{theirs}")
    for i in range(method.depth):
        at = f"transformer_fusion.layers.{i}"
        entries += table.packed(f"attention_{i}", [f"{at}.self_attn"])
        entries += table.linears(f"mlp_{i}/up", [f"{at}.linear1"])
        entries += table.linears(f"mlp_{i}/down", [f"{at}.linear2"])
        entries += table.norms(f"norm_{i}_0", [f"{at}.norm1"]) + table.norms(
            f"norm_{i}_1", [f"{at}.norm2"]
        )
    constants = {"moe.mean": np.zeros(1, np.float32), "moe.std": np.ones(1, np.float32)}
    absent = {
        f"dense_layer_{task}.*": "head of a task that the data set does not have"
        for task in TASKS
        if task not in tasks
    }
    return Layout(entries, constants=constants, ignored=IGNORED | absent)


def _roles(data: DataSpec) -> list[str]:
    return [NAMES.get(m.name, ROLES.get(m.kind, m.name)) for m in data.modalities]


def _tasks(data: DataSpec) -> list[str]:
    """The release's name of every task."""
    names = [SAME_TASK.get(name, name) for name in data.task_names]
    unknown = sorted(set(names) - set(TASKS))
    if unknown:
        raise ConfigError(
            f"tasks {', '.join(unknown)}: the release has {', '.join((*SAME_TASK, *TASKS))}"
        )
    return names


def _modalities(method: ReleasedFlexCare) -> list[Entry]:
    """One map per token and positions, which the release has for longer records."""
    ehr, cxr, note = method.data.modalities
    _, *size, _ = cxr.shape
    lengths = {
        "ehr": ehr.shape[0] if ehr.kind == "vectors" else max(1, round(method.data.hours)),
        "cxr": cxr.shape[0] * int(np.prod([n // min(method.patch, n) for n in size])),
        "note": note.shape[0],
    }
    names = (ehr.name, cxr.name, note.name)
    entries = [
        *table.linear(f"{ehr.name}/project", "ehr_projection"),
        *table.conv(f"{cxr.name}/project", "patch_projection.proj"),
        *table.linear(f"{note.name}/project", "note_fc"),
    ]
    for name, (role, length) in zip(names, lengths.items(), strict=True):
        if length > POSITIONS[role]:
            raise ConfigError(
                f"modality {name}: {length} tokens, the release has {POSITIONS[role]} positions"
            )
        wide = (POSITIONS[role], method.width)
        rows = table.chain(
            table.shape((1, *wide), wide), table.pick(range(length), POSITIONS[role])
        )
        entries.append(table.one(f"{name}/position", f"{role}_pos_embed", rows))
    return entries


def _experts(method: ReleasedFlexCare) -> list[Entry]:
    entries = [
        table.one(f"layer_0/{ours}", f"moe.{name}", table.LEAD) for ours, name in GATES.items()
    ]
    for number, codec in ((1, table.SAME), (2, table.SWAP)):
        layers = [f"moe.experts.{e}.fc{number}" for e in range(method.moe.num_experts)]
        entries.append(table.stack(f"layer_0/w{number}", [f"{at}.weight" for at in layers], codec))
        entries.append(table.stack(f"layer_0/b{number}", [f"{at}.bias" for at in layers]))
    return entries
