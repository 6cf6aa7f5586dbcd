"""M4oE's table: exact round trip, places, published names, refusals."""

import dataclasses

import numpy as np
import pytest

from m4.errors import ConfigError
from m4.interop import convert
from m4.methods.m4oe import torch_layout as m4oe
from m4.methods.m4oe.released import ReleasedM4oE
from m4.moe.options import SoftOptions
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from tests.interop import shared

SPEC = DataSpec(
    tuple(ModalitySpec(name, "image", (1, 8, 8, 3)) for name in ("a", "b", "c", "d")),
    (
        TaskSpec("density", "multiclass", dim=4),
        TaskSpec("risk", "multiclass", dim=2),
        TaskSpec("birads", "multiclass", dim=4),
    ),
)
MOE = SoftOptions(num_experts=3, hidden=6, inputs="unit")
METHOD = ReleasedM4oE(
    SPEC, MOE, width=8, num_heads=2, modality_experts=2, fusion_experts=2, vit_depth=1, vit_heads=2,
    patch=4, depth=2,
)  # fmt: skip


def test_round_trip_and_places():
    layout, shapes = m4oe.layout(METHOD), shared.shapes(METHOD)
    shared.round_trip(layout, shapes)
    theirs = shared.tensors(layout, shapes)
    got = convert.to_m4(layout, theirs, shapes, "x")
    vit = "tokens/vit_1x8x8x3"
    query = theirs["vit_2dcc.encoder.layer.0.attention.attention.key.weight"]
    kernel = got[f"{vit}/attention_0/attention/qkv/kernel"]
    np.testing.assert_array_equal(kernel[2][:, 8:16], query.T)
    pixel = theirs["vit_mlo.embeddings.patch_embeddings.projection.weight"][:, 2, 3, 1]
    np.testing.assert_array_equal(got[f"{vit}/patch/kernel"][1][(3 * 4 + 1) * 3 + 2], pixel)
    phi = theirs["blocks.0.mlp.phi"][:, 2, 1]  # expert 2, slot 1
    np.testing.assert_array_equal(got["mtoe_experts/gate_phi"][0][:, 2 * 3 + 1], phi)
    fc1 = theirs["blocks3.1.mlp.experts.1.fc1.weight"]  # modality 2, expert 1 of 2
    np.testing.assert_array_equal(got["msoe_1_experts/w1"][2 * 2 + 1], fc1)
    np.testing.assert_array_equal(got["heads/dim_4/bias"][1], theirs["head7.bias"])


@pytest.mark.parametrize(
    ("images", "tasks"),
    [
        (("cview_cc", "cview_mlo", "ffdm_cc", "ffdm_mlo"), ("density", "birads", "risk_1y")),
        (("2dmlo", "cc", "2dcc", "mlo"), ("birads", "risk", "density")),
    ],
)
def test_heads_and_images_go_by_name(images, tasks):
    """EMBED's tasks as the data set has them; a binary risk has the release's two rows."""
    kinds = {"density": ("multiclass", 4), "birads": ("multiclass", 3)}
    spec = DataSpec(
        tuple(ModalitySpec(name, "image", (1, 8, 8, 3)) for name in images),
        tuple(
            TaskSpec(n, kinds.get(n, ("binary", 1))[0], dim=kinds.get(n, ("binary", 1))[1])
            for n in tasks
        ),
    )
    m = METHOD.clone(data=spec)
    layout, shapes = m4oe.layout(m), shared.shapes(m)
    shared.round_trip(layout, shapes)
    theirs = shared.tensors(layout, shapes)
    assert [theirs[f"head{h}.weight"].shape[0] for h in (1, 2, 7)] == [4, 2, 3]
    got = convert.to_m4(layout, theirs, shapes, "x")
    heads = {"d": (1, 1), "r": (2, 2), "b": (7, 3)}  # head, and number among the tasks
    vits = {"cc": "vit_cc", "mlo": "vit_mlo", "2dcc": "vit_2dcc", "2dmlo": "vit_2dmlo"}
    vits |= {"cview_cc": "vit_cc", "cview_mlo": "vit_mlo"}
    vits |= {"ffdm_cc": "vit_2dcc", "ffdm_mlo": "vit_2dmlo"}
    for t, name in enumerate(tasks):
        head, number = heads[name[0]]
        projection = theirs[f"proj{head}.bias"]
        np.testing.assert_array_equal(got["project/bias"][t], projection)
        np.testing.assert_array_equal(got["norm/bias"][t], theirs[f"norm{number}.bias"])
        embedding = theirs[f"blocks.0.mlp.task_embedding{number}"]
        np.testing.assert_array_equal(got["task"][t], embedding)
        phi = theirs["blocks.0.mlp.phi"][:, 1, number - 1]  # expert 1
        np.testing.assert_array_equal(got["mtoe_experts/gate_phi"][0][:, 3 + t], phi)
        dim = theirs[f"head{head}.bias"].shape[0]
        np.testing.assert_array_equal(got[f"heads/dim_{dim}/bias"][0], theirs[f"head{head}.bias"])
    for i, name in enumerate(images):
        bias = theirs[f"{vits[name]}.layernorm.bias"]
        np.testing.assert_array_equal(got["tokens/vit_1x8x8x3/norm/bias"][i], bias)
        own = list(dict.fromkeys(vits.values())).index(vits[name]) + 1
        norm = theirs[f"blocks{own}.0.norm1.bias"]
        np.testing.assert_array_equal(got["msoe_0_attention/norm/bias"][i], norm)
    assert layout.notes[0].startswith("by name: ")


def test_other_data_are_refused():
    two = ReleasedM4oE(DataSpec(SPEC.modalities[:2], SPEC.tasks))
    with pytest.raises(ConfigError, match="four images of one shape"):
        m4oe.layout(two)


def test_other_gates_and_experts_are_refused():
    for fields in ({"gate": "linear"}, {"activation": "relu"}, {"inputs": "raw"}):
        method = METHOD.clone(moe=dataclasses.replace(MOE, **fields))
        with pytest.raises(ConfigError, match="only num_experts, hidden and dtype can vary"):
            m4oe.layout(method)
