"""Flex-MoE's release (UNITES-Lab/flex-moe): bank, fusion model and encoders in one dictionary."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from m4.errors import ConfigError
from m4.maths import combination_index, combinations
from m4.methods.flexmoe.released import ADNI, ReleasedFlexMoE
from m4.nn import torch_table as table
from m4.nn.torch_table import Codec, Entry, Layout

FUSION = "fusion_model"


def layout(method: ReleasedFlexMoE, names: Sequence[str] | None = None) -> Layout:
    """Every tensor; the release has one task, and encoders go by m4's names of modalities.

    `names` are a file's tensors in its own order, none of a file that keeps no order: the order
    of the encoders is that of positions, head and combinations.
    """
    if len(method.data.tasks) != 1:
        raise ConfigError(
            f"tasks {', '.join(method.data.task_names)}: the release has one; choose it with"
            " data.options.tasks"
        )
    gate, router = method.moe.gate, method.moe.router
    if (gate, router) != ("linear", "noisy_top_k"):
        raise ConfigError(
            f"method.moe.gate={gate!r}, method.moe.router={router!r}: the release has 'linear' and"
            " 'noisy_top_k'"
        )
    ours, patches, width = method.data.modality_names, method.num_patches, method.width
    num, theirs = len(ours), _order(ours, names)
    place = [theirs.index(name) for name in ours]
    numbers = _numbers(place)  # of our combinations, there
    experts = table.take([*numbers, *range(len(numbers), method.moe.num_experts)])
    columns = [table.take(place, 1)] if method.full_modalities() == ours else []
    flat = table.shape((1, num * patches, width), (num, patches, width))
    kernel, bias = table.linear(
        f"heads/{method.data.task_names[0]}", f"{FUSION}.network.{method.depth}.network.0"
    )
    entries = [
        table.one("bank/cells", "missing_embeds", table.take(numbers), *columns),
        table.one("position", f"{FUSION}.pos_embed", flat, table.take(place)),
        kernel.then(table.blocks(place)),
        bias,
    ]
    for modality in method.data.modalities:
        at = f"encoder_dict.{modality.name}"
        volume = modality.kind == "image"
        entries += table.linear(
            f"{modality.name}/project", f"{at}.1.projection" if volume else f"{at}.projection"
        )
        entries += _volume(f"{modality.name}_volume", f"{at}.0", width) if volume else []
    copies: dict[str, str] = {}
    for i in range(method.depth):
        entries += _layer(i, width, copies, experts)
    sections = (FUSION, "encoder_dict")
    sections += tuple(f"encoder_dict.{name}" for name in method.data.modality_names)
    notes = (f"modalities, in the release's order: {', '.join(theirs)}",)
    return Layout(entries, copies, sections=sections, notes=notes)


def _order(ours: Sequence[str], names: Sequence[str] | None) -> Sequence[str]:
    """The modalities as the file has them. Raises ConfigError where nothing tells."""
    if names is None or len(ours) == 1:
        return ours
    theirs = dict.fromkeys(n.split(".")[1] for n in names if n.startswith("encoder_dict."))
    if {*theirs} == {*ours}:
        return list(theirs)
    if {*ours} <= {*ADNI}:
        return sorted(ours, key=ADNI.index)
    if names:
        return ours  # other encoders, which will be listed
    raise ConfigError(
        f"modalities {', '.join(ours)}: in which order the file has them only torch.save's file"
        " tells, a .safetensors file does not; import that"
    )


def _numbers(place: Sequence[int]) -> list[int]:
    """The release's number of every combination of ours, where our i is its `place[i]`."""
    sets_CM = combinations(len(place))
    theirs_CM = np.zeros_like(sets_CM)
    theirs_CM[:, list(place)] = sets_CM
    return np.asarray(combination_index(jnp.asarray(theirs_CM))).tolist()


def _layer(i: int, width: int, copies: dict[str, str], experts: Codec) -> list[Entry]:
    """Attention, then experts in even layers and an MLP in odd ones."""
    at = f"{FUSION}.network.{i}"
    qkv = [f"{at}.attn.q.weight", f"{at}.attn.kv.weight"]
    entries = [
        *table.norms(f"norm_{i}_0", [f"{at}.norm1"]),
        *table.norms(f"norm_{i}_1", [f"{at}.norm2"]),
        table.concat(f"attention_{i}/qkv/kernel", qkv, (width, 2 * width)).then(
            table.SWAP, table.LEAD
        ),
        *table.linears(f"attention_{i}/out", [f"{at}.attn.proj"]),
    ]
    if i % 2:
        entries += table.linears(f"mlp_{i}/up", [f"{at}.mlp.network.0"])
        return entries + table.linears(f"mlp_{i}/down", [f"{at}.mlp.network.3"])
    path, columns = f"layer_{i // 2}", (table.SWAP, experts, table.SWAP)
    for ours, theirs in (("gate_w", "w_gate"), ("router_noise", "w_noise")):
        name = f"{at}.mlp.all_gates.0.{theirs}"
        entries.append(table.one(f"{path}/{ours}", name, *columns, table.LEAD))
        copies[f"{at}.mlp.gate.{theirs}"] = name
    for number, theirs, codec in (("1", "htoh4", table.SAME), ("2", "h4toh", table.SWAP)):
        name = f"{at}.mlp.experts.{theirs}"
        entries.append(table.one(f"{path}/w{number}", f"{name}.weight", codec, experts))
        entries.append(table.one(f"{path}/b{number}", f"{name}.bias", experts))
    return entries


def _volume(path: str, at: str, width: int) -> list[Entry]:
    """Convolutions, and an affine map: of (channel, place) there, of (place, channel) here."""

    def turn(x, first):  # (first * second, out) -> (second * first, out)
        return x.reshape(first, -1, x.shape[-1]).swapaxes(0, 1).reshape(x.shape)

    places = table.Codec(lambda x: turn(x, width), lambda x: turn(x, x.shape[0] // width))
    entries = [e for i in range(6) for e in table.conv(f"{path}/conv_{i}", f"{at}.conv{i + 1}")]
    kernel, bias = table.linear(f"{path}/out", f"{at}.fc")
    return [*entries, kernel.then(places), bias]
