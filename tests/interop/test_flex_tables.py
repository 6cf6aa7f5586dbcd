"""Flex-MoE's and FlexCare's tables: exact round trips, places, refusals."""

import dataclasses

import numpy as np
import pytest

from m4.errors import ConfigError, DataError
from m4.interop import convert
from m4.methods.flexcare import torch_layout as flexcare
from m4.methods.flexcare.released import ReleasedFlexCare
from m4.methods.flexmoe import torch_layout as flexmoe
from m4.methods.flexmoe.released import ReleasedFlexMoE
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from tests.interop import shared

ADNI = DataSpec(
    (ModalitySpec("image", "image", (12, 12, 12, 1)), ModalitySpec("genomic", "table", (20,))),
    (TaskSpec("diagnosis", "multiclass", dim=3),),
)
MIMIC = DataSpec(
    (
        ModalitySpec("vitals", "series", (5, 3)),
        ModalitySpec("cxr", "image", (1, 32, 32, 3)),
        ModalitySpec("notes", "vectors", (4, 6)),
    ),
    (TaskSpec("los", "multiclass", dim=10), TaskSpec("ihm48", "binary")),
)


def flex_moe(data=ADNI, **moe):
    options = {"num_experts": 3, "hidden": 6, "top_k": 2, **moe}
    options = dataclasses.replace(ReleasedFlexMoE.moe, **options)
    return ReleasedFlexMoE(data, moe=options, width=8, num_patches=2, depth=2)


def flex_care(data=MIMIC, **moe):
    options = dataclasses.replace(ReleasedFlexCare.moe, num_experts=3, hidden=6, **moe)
    return ReleasedFlexCare(data, moe=options, width=8, depth=1, mlp=10)


def test_flexmoe_round_trip_is_exact():
    m = flex_moe()
    shared.round_trip(flexmoe.layout(m), shared.shapes(m))


def test_flexmoe_reads_channels_last():
    """Its volume's `fc` reads (channel, place); ours (place, channel)."""
    m = flex_moe(
        DataSpec(
            (ModalitySpec("image", "image", (48, 24, 24, 1)),) + ADNI.modalities[1:], ADNI.tasks
        )
    )
    layout, shapes = flexmoe.layout(m), shared.shapes(m)
    theirs = shared.tensors(layout, shapes)
    got = convert.to_m4(layout, theirs, shapes, "x")
    fc, places = theirs["encoder_dict.image.0.fc.weight"], 2  # 48 / (2 * 3 * 4), 1, 1
    assert fc.shape == (8, 8 * places)
    for place, channel in ((0, 3), (1, 5)):
        expected = fc[:, channel * places + place]
        np.testing.assert_array_equal(got["image_volume/out/kernel"][place * 8 + channel], expected)
    kernel = theirs["encoder_dict.image.0.conv2.weight"]
    np.testing.assert_array_equal(
        got["image_volume/conv_1/kernel"][0, 1, 2], kernel[:, :, 0, 1, 2].T
    )


def test_flexmoe_copies_must_agree():
    m = flex_moe()
    layout, shapes = flexmoe.layout(m), shared.shapes(m)
    theirs = shared.tensors(layout, shapes)
    theirs["fusion_model.network.0.mlp.gate.w_gate"] = np.zeros((8, 3), np.float32)
    with pytest.raises(DataError, match="gate.w_gate must be equal to"):
        convert.to_m4(layout, theirs, shapes, "x")


def test_flexcare_round_trip_is_exact():
    m = flex_care()
    unread = ("task_embedding.weight", "ehr_pos_embed", "cxr_pos_embed", "note_pos_embed")
    shared.round_trip(flexcare.layout(m), shared.shapes(m), unread=unread)


def test_flexcare_tasks_find_their_rows():
    m = flex_care()
    layout, shapes = flexcare.layout(m), shared.shapes(m)
    theirs = shared.tensors(layout, shapes)
    ignored = {"dense_layer_drg.weight": 0, "dense_layer_ph.bias": 0, "note_projection.x": 0}
    theirs |= {name: np.zeros(1, np.float32) for name in ignored}
    got = convert.to_m4(layout, theirs, shapes, "x")
    np.testing.assert_array_equal(got["task"], theirs["task_embedding.weight"][[3, 0]])
    np.testing.assert_array_equal(got["combination"][1:4], theirs["cross_cls_tokens"][:, 0])
    head = theirs["dense_layer_mortality.weight"].T
    np.testing.assert_array_equal(got["heads/ihm48/kernel"], head)
    assert sum(convert.dropped(layout, theirs).values()) == 3


TURNED = DataSpec(MIMIC.modalities[::-1], MIMIC.tasks)
OTHER = DataSpec(MIMIC.modalities, ADNI.tasks)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: flexmoe.layout(flex_moe(gate="laplace")), "gate='laplace'"),
        (lambda: flexmoe.layout(flex_moe(DataSpec(ADNI.modalities, MIMIC.tasks))), "has one"),
        (lambda: flexcare.layout(flex_care(router="top_k")), "router='top_k'"),
        (lambda: flexcare.layout(flex_care(TURNED)), "in this order"),
        (lambda: flexcare.layout(flex_care(OTHER)), "tasks diagnosis"),
    ],
)  # fmt: skip
def test_what_the_releases_lack_is_refused(make, match):
    with pytest.raises(ConfigError, match=match):
        make()
