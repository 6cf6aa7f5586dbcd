"""Shipped `:released` configurations at the published sizes, by shapes alone: no array is made."""

import dataclasses

import numpy as np
import pytest

from m4 import config as configs
from m4.interop import convert
from m4.interop.__main__ import layout_of
from m4.run import preflight
from m4.run.method import make_method
from tests.interop import shared


def released(name, *overrides):
    """The method of a shipped configuration on its data set's schema."""
    flags = [f"--config=configs/{name}.py:released", *overrides]
    config = configs.load(configs.parse(flags))
    return config, make_method(config.method.to_dict(), preflight.schema(config))


def expected(name, method):
    """Shapes of the authors' tensors, by name."""
    words = convert.expected(layout_of(name)(method), shared.shapes(method))
    shapes = {n: w.partition("[")[2].rstrip("]").split(",") for n, w in words.items()}
    return {n: tuple(int(x) for x in shape if x) for n, shape in shapes.items()}


def test_flexcare_on_mimic():
    _, method = released("flexcare_mimic")
    assert method.data.modality_names == ("flexcare", "cxr_image", "notes")
    found = expected("flexcare", method)
    known = {
        "mm_cls_token": (1, 1, 128), "cross_cls_tokens": (3, 1, 128), "note_cls_token": (1, 1, 128),
        "ehr_pos_embed": (1, 600, 128), "cxr_pos_embed": (1, 197, 128),
        "note_pos_embed": (1, 600, 128), "task_embedding.weight": (40, 128),
        "ehr_projection.weight": (128, 76), "note_fc.weight": (128, 768),
        "patch_projection.proj.weight": (128, 3, 16, 16),
        "transformer_fusion.layers.3.self_attn.in_proj_weight": (384, 128),
        "transformer_fusion.layers.0.linear1.weight": (512, 128),
        "transformer_fusion.layers.2.linear2.weight": (128, 512),
        "moe.w_gate": (128, 10), "moe.w_noise": (128, 10), "moe.task_gate": (128, 10),
        "moe.experts.9.fc1.weight": (128, 128), "mm_choose.weight": (128, 256),
        "mm_choose2.weight": (1, 128), "mm_layernorm.weight": (128,),
        "dense_layer_mortality.weight": (1, 256), "dense_layer_ph.weight": (25, 256),
        "dense_layer_readm.weight": (1, 256),
    }  # fmt: skip
    assert {n: found.get(n) for n in known} == known
    # All that is alive but the heads of tasks that are not here (decomp, los, diag).
    numbers = sum(
        int(np.prod(shape)) for n, shape in found.items() if n not in ("moe.mean", "moe.std")
    )
    assert numbers == 1_565_236 - sum(257 * dim for dim in (1, 10, 14))


@pytest.mark.parametrize("chosen", ["image,genomic,clinical,biospecimen", "clinical,biospecimen"])
def test_flexmoe_on_adni(chosen):
    names = chosen.split(",")
    _, method = released("flexmoe_adni", f"--config.data.options.modalities={tuple(names)}")
    data = method.data  # widths are those of the files: here of 320 features
    tables = tuple(dataclasses.replace(m, shape=(320,)) for m in data.modalities)
    method = method.clone(data=dataclasses.replace(data, modalities=tables))
    found = expected("flexmoe", method)
    num = len(names)
    known = {
        "missing_embeds": (2**num - 1, 4, 16, 128),
        "fusion_model.pos_embed": (1, 16 * num, 128),
        "fusion_model.network.0.attn.kv.weight": (256, 128),
        "fusion_model.network.0.mlp.gate.w_gate": (128, 16),
        "fusion_model.network.0.mlp.experts.htoh4.weight": (16, 256, 128),
        "fusion_model.network.0.mlp.experts.h4toh.bias": (16, 128),
        "fusion_model.network.1.network.0.weight": (3, 128 * num),
        f"encoder_dict.{names[-1]}.projection.weight": (128, 20),
    }
    assert {n: found.get(n) for n in known} == known
    fusion = {
        n: s for n, s in found.items() if n.startswith("fusion_model") and ".mlp.gate." not in n
    }
    whole = {2: 1_129_859, 4: 1_134_723}[num]
    assert sum(int(np.prod(shape)) for shape in fusion.values()) == whole


def test_m4oe_on_embed():
    config, method = released("m4oe_embed")
    assert method.dropout == 0.0 and not method.aux_weights
    found = expected("m4oe", method)
    heads = {f"head{h}.weight": (dim, 768) for h, dim in ((1, 4), (2, 2), (7, 3))}
    assert {n: found.get(n) for n in heads} == heads
    assert sum(int(np.prod(shape)) for shape in found.values()) == 2_341_380_886 - 5_332_994
    assert found["blocks.0.mlp.phi"] == (768, 128, 3)
