"""Flex-MoE's and FlexCare's tables: exact round trips, places, refusals."""

import dataclasses
import itertools

import numpy as np
import pytest
from flax import traverse_util

from m4.errors import ConfigError, DataError
from m4.interop import convert, state_dicts
from m4.methods.flexcare import torch_layout as flexcare
from m4.methods.flexcare.released import ReleasedFlexCare
from m4.methods.flexmoe import torch_layout as flexmoe
from m4.methods.flexmoe.released import ReleasedFlexMoE
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from m4.types import Batch, Stream, Target
from tests.interop import shared
from tests.interop.test_torch_file import W, save
from tests.interop.test_torch_file import tensor as torch_tensor

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


FOUR = ("image", "genomic", "clinical", "biospecimen")
SETS = [s for size in (2, 3, 4) for s in itertools.combinations(FOUR, size)]


def adni(names, **fields):
    tables = tuple(ModalitySpec(name, "table", (9 + FOUR.index(name),)) for name in names)
    return flex_moe(DataSpec(tables, ADNI.tasks), num_experts=16, **fields)


@pytest.mark.parametrize("names", SETS, ids="-".join)
def test_every_published_set_of_adni_has_a_bank_of_four(names):
    """The authors' bank has a column for all four, whatever was chosen (`n_full_modalities`)."""
    assert len(SETS) == 11
    m = adni(names)
    layout, shapes = flexmoe.layout(m), shared.shapes(m)
    theirs = shared.tensors(layout, shapes)
    assert theirs["missing_embeds"].shape == (2 ** len(names) - 1, 4, 2, 8)
    shared.round_trip(layout, shapes)
    # A row that has the first alone reads the others' columns of its own row of the bank.
    ordered = [set(s) for k in range(len(names), 0, -1) for s in itertools.combinations(names, k)]
    cells = theirs["missing_embeds"]
    read = np.zeros_like(cells)
    for name in names[1:]:
        at = ordered.index({names[0]}), FOUR.index(name)
        read[at] = cells[at]
    batch = batch_of(m, np.array([[True] + [False] * (len(names) - 1)]))
    found = [
        m.apply({"params": shared.params_from(layout, state)}, batch, train=False)
        for state in (theirs, theirs | {"missing_embeds": read}, theirs | {"missing_embeds": -read})
    ]
    logits = [out.logits["diagnosis"] for out in found]
    np.testing.assert_array_equal(logits[0], logits[1])
    assert (logits[0] != logits[2]).any()


def batch_of(m, present):
    """Rows of tables, present or not."""
    rng, rows = np.random.default_rng(0), np.arange(len(present), dtype=np.int32)
    inputs = {}
    for i, modality in enumerate(m.data.modalities):
        here = present[:, i]
        x = rng.normal(size=(len(rows), *modality.shape)).astype(np.float32) * here[:, None]
        inputs[modality.name] = Stream(x, here[:, None], here, None, x != 0)
    label = {"diagnosis": Target(rows % 3, np.ones(len(rows), np.float32))}
    return Batch(inputs, label, rows * 0 - 1, np.ones(len(rows), np.float32), rows)


@pytest.mark.parametrize("order", list(itertools.permutations(("a", "b", "c")))[1:], ids="".join)
def test_flexmoe_takes_the_order_of_modalities_from_the_file(order):
    """The same file in data sets of two orders: equal logits, and equal losses of the routers."""
    rng = np.random.default_rng(1)
    sizes = {"a": 5, "b": 7, "c": 9}
    task = TaskSpec("diagnosis", "multiclass", dim=3)
    make = lambda names: flex_moe(  # noqa: E731
        DataSpec(tuple(ModalitySpec(n, "table", (sizes[n],)) for n in names), (task,)),
        num_experts=8,
    )
    first, other = make("abc"), make(order)
    names = [f"encoder_dict.{n}.projection.weight" for n in "abc"]
    layout = flexmoe.layout(first, names)
    theirs = shared.tensors(layout, shared.shapes(first))
    present = rng.random((6, 3)) < 0.6
    present[0], present[1] = True, [False, True, True]
    present[~present.any(1), 0] = True
    batch = batch_of(first, present)
    outs = []
    for m in (first, other):
        table = flexmoe.layout(m, names)
        params = convert.to_m4(table, theirs, shared.shapes(m), "x")
        shared.same(convert.to_torch(table, params), theirs)  # and back under the file's order
        outs.append(
            m.apply(
                {"params": traverse_util.unflatten_dict(params, sep="/")},
                dataclasses.replace(
                    batch, inputs={n: batch.inputs[n] for n in m.data.modality_names}
                ),
                train=False,
            )
        )
    np.testing.assert_allclose(outs[0].logits["diagnosis"], outs[1].logits["diagnosis"], rtol=2e-4)
    for name, x in outs[0].aux_losses.items():
        np.testing.assert_allclose(x, outs[1].aux_losses[name], rtol=1e-4, err_msg=name)


def test_a_file_without_an_order_is_refused_unless_the_names_tell():
    m = flex_moe(
        DataSpec((ModalitySpec("x", "table", (3,)), ModalitySpec("y", "table", (4,))), ADNI.tasks)
    )
    with pytest.raises(ConfigError, match="in which order the file has them only torch.save's"):
        flexmoe.layout(m, [])
    turned = adni(("clinical", "image"))
    note = flexmoe.layout(turned, []).notes[0]
    assert note == "modalities, in the release's order: image, clinical"


def test_the_order_is_read_from_torch_files_alone(tmp_path):
    """Also where all names share a prefix; a .safetensors file is sorted as it is written."""
    tasks = (TaskSpec("diagnosis", "multiclass", dim=3),)
    m = flex_moe(DataSpec(tuple(ModalitySpec(n, "table", (3,)) for n in "xy"), tasks))
    theirs = {"encoder_dict.y.projection.weight": W, "encoder_dict.x.projection.weight": W}
    state_dicts.write(tmp_path / "c.safetensors", theirs)
    assert not state_dicts.read(tmp_path / "c.safetensors").ordered
    for name, prefix in {"plain": "", "wrapped": "ours."}.items():
        path = tmp_path / f"{name}.pt"
        save(path, {f"{prefix}{n}": torch_tensor(x) for n, x in theirs.items()})
        file = state_dicts.read(path)
        tensors, _ = convert.without_prefix(flexmoe.layout(m), file.tensors)
        assert file.ordered and [*tensors] == [*theirs]
        note = flexmoe.layout(m, [*tensors]).notes[0]
        assert note == "modalities, in the release's order: y, x"


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


def test_a_prefix_of_all_names_is_taken_off():
    m = flex_care()
    layout, shapes = flexcare.layout(m), shared.shapes(m)
    theirs = shared.tensors(layout, shapes)
    found, said = convert.without_prefix(layout, {f"net.m.{n}": x for n, x in theirs.items()})
    shared.same(found, theirs)
    assert said == ["prefix net.m. was taken off"]
    for mixed in (theirs, {**theirs, "net.extra": theirs["ehr_pos_embed"]}):
        assert convert.without_prefix(layout, mixed) == (mixed, [])


def test_flexcare_takes_the_tasks_of_mimic_by_their_names():
    tasks = (
        TaskSpec("readmission", "binary"),
        TaskSpec("los_remaining", "multiclass", dim=10),
        TaskSpec("chexpert", "multilabel", dim=14),
        TaskSpec("decompensation", "binary"),
        TaskSpec("phe", "multilabel", dim=25),
        TaskSpec("ihm48", "binary"),
    )
    vectors = (ModalitySpec("flexcare", "vectors", (48, 76)), *MIMIC.modalities[1:])
    m = flex_care(DataSpec(vectors, tasks))
    layout, shapes = flexcare.layout(m), shared.shapes(m)
    theirs = shared.tensors(layout, shapes)
    assert theirs["ehr_projection.weight"].shape == (8, 76)
    got = convert.to_m4(layout, theirs, shapes, "x")
    expected = theirs["task_embedding.weight"][[4, 3, 5, 1, 2, 0]]
    np.testing.assert_array_equal(got["task"], expected)
    for ours, name in (("readmission", "readm"), ("chexpert", "diag"), ("los_remaining", "los")):
        weight = theirs[f"dense_layer_{name}.weight"]
        np.testing.assert_array_equal(got[f"heads/{ours}/kernel"], weight.T)


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
