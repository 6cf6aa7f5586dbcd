"""FuseMoE's release through the command line: import, evaluation, export, refusals.

Letters as in `m4.methods.fusemoe.released`.
"""

import json
import os

import numpy as np
import pytest
from flax import traverse_util

from m4 import config as configs
from m4.errors import ConfigError, DataError
from m4.interop import convert, state_dicts
from m4.interop.__main__ import main
from m4.main import main as m4_main
from m4.methods.fusemoe import torch_layout as fusemoe
from m4.methods.fusemoe.released import ReleasedFuseMoE
from m4.moe.options import MoEOptions
from m4.run import preflight
from m4.run.method import make_method
from m4.run.setup import make_setup
from m4.run.workspace import prepare
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from tests.interop import shared

TASK = (TaskSpec("death", "binary"),)
MODALITIES = {
    "ts": ModalitySpec("vitals", "series", (5, 3)),
    "text": ModalitySpec("notes", "vectors", (2, 5)),
    "cxr": ModalitySpec("cxr", "vectors", (2, 4)),
    "ecg": ModalitySpec("ecg", "vectors", (2, 3)),
}
SIZES = {"width": 8, "depth": 2, "num_queries": 3, "embed_time": 8, "num_heads": 2}
CONFIG = """
import ml_collections
def get_config(variant=''):
    return ml_collections.ConfigDict(dict(
        data=dict(name='synthetic', options=dict(
            modalities=('vitals', 'notes', 'cxr', 'ecg'), tasks=('ihm48',), num_patients=120,
            steps=8, dims=dict(notes=4, cxr=4, ecg=4))),
        method=dict(name='fusemoe', fidelity='released', width=8, num_queries=3, embed_time=8,
                    num_heads=2, moe=dict(share='joint', hidden=6, num_experts=3, top_k=2)),
        optim=dict(lr=0.01),
        train=dict(steps=6, batch_size=16, select='ihm48/auroc'),
        eval=dict(batch_size=16, bootstrap=10, baselines=False, subsets=False),
    ))
"""


def method(*roles, depth=2, **moe):
    data = DataSpec(tuple(MODALITIES[r] for r in roles), TASK)
    moe = {"router": "noisy_top_k", "hidden": 6, "num_experts": 12} | moe
    return ReleasedFuseMoE(data, moe=MoEOptions(**moe), **(SIZES | {"depth": depth}))


@pytest.mark.parametrize("share", ["joint", "permod", "disjoint"])
@pytest.mark.parametrize("roles", [("ts", "text"), ("cxr", "ts"), ("ts", "text", "cxr", "ecg")])
def test_round_trip_is_exact(roles, share):
    m = method(*roles, share=share)
    shared.round_trip(fusemoe.layout(m), shared.shapes(m))


def test_published_names_and_shapes():
    """Of `MULTCrossModel` with 4 modalities and the joint router, at the published widths."""
    data = DataSpec(
        (
            ModalitySpec("vitals", "series", (48, 30)),
            ModalitySpec("notes", "vectors", (5, 768)),
            ModalitySpec("cxr", "vectors", (5, 1024)),
            ModalitySpec("ecg", "vectors", (5, 256)),
        ),
        TASK,
    )
    moe = MoEOptions(router="noisy_top_k", num_experts=2, top_k=1, hidden=64)
    m = ReleasedFuseMoE(
        data, moe, width=128, depth=1, num_heads=8, num_queries=48, embed_time=64, utde="batch"
    )
    found = convert.expected(fusemoe.layout(m), shared.shapes(m))
    layer = "trans_self_cross_ts_txt.layers.0"
    for name, shape in {
        "token_type_embeddings.weight": [4, 128],
        "periodic.weight": [63, 1],
        "linear.bias": [1],
        "time_attn_ts.linears.0.weight": [64, 64],
        "time_attn_ts.linears.2.weight": [128, 480],
        "time_attn_cxr.linears.2.weight": [128, 8192],
        "proj_ts.weight": [128, 60, 1],
        "moe.gate.1.weight": [128, 256],
        "moe.gate.3.weight": [1, 128],
        "trans_self_cross_ts_txt.embed_positions_q_1.weight": [48, 128],
        "trans_self_cross_ts_txt.embed_positions_q.3.weight": [48, 128],
        f"{layer}.self_attns.3.in_proj_weight": [384, 128],
        f"{layer}.fc1.0.weight": [512, 128],
        f"{layer}.moe.w_gate": [24576, 2],
        f"{layer}.moe.experts.1.fc1.weight": [64, 24576],
        f"{layer}.moe.mean": [1],
        "proj2.weight": [512, 512],
        "out_layer.weight": [2, 512],
    }.items():
        assert found[name] == f"float32{shape}", name


def test_modalities_go_to_their_places():
    """The release fuses (ts, cxr, text) and numbers types (ts, text, cxr); here cxr is first."""
    m = method("cxr", "ts", "text", num_experts=3, depth=1)
    layout, shapes = fusemoe.layout(m), shared.shapes(m)
    tensors = shared.tensors(layout, shapes)
    got = convert.to_m4(layout, tensors, shapes, "x")
    types = tensors["token_type_embeddings.weight"]
    np.testing.assert_array_equal(got["type"], types[[2, 0, 1]])
    at = "trans_self_cross_ts_txt.layers.0"
    fc1 = tensors[f"{at}.fc1.0.weight"]  # of ts
    np.testing.assert_array_equal(got["mlp_0/mlp/up/kernel"][1], fc1.T)
    unit = 3 * 8  # Q * D numbers of a modality
    gate = tensors[f"{at}.moe.w_gate"]  # (ts, cxr, text) -> (cxr, ts, text)
    expected = np.concatenate([gate[unit : 2 * unit], gate[:unit], gate[2 * unit :]])
    np.testing.assert_array_equal(got["layer_0/moe/gate_centre"][0], expected)
    w2 = tensors[f"{at}.moe.experts.1.fc2.weight"].T
    np.testing.assert_array_equal(got["layer_0/moe/w2"][1][:, :unit], w2[:, unit : 2 * unit])
    proj = tensors["proj1.weight"]
    np.testing.assert_array_equal(got["head_up/kernel"][:8, 8:16], proj[:8, 8:16].T)


@pytest.mark.parametrize(
    ("roles", "fields", "match"),
    [
        (("text", "cxr"), {}, "one series"),
        (("ts", "cxr", "text", "ecg"), {}, "notes must come second"),
        (("ts", "text"), {"gate": "cosine"}, "gate='cosine'"),
    ],
)
def test_what_the_release_lacks_is_refused(roles, fields, match):
    with pytest.raises(ConfigError, match=match):
        fusemoe.layout(method(*roles, **fields))


# --- the command line ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a configuration; data sets are built in it."""
    folder = tmp_path_factory.mktemp("interop")
    (folder / "c.py").write_text(CONFIG)
    os.environ["M4_DATA_DIR"] = str(folder / "data")
    return folder


@pytest.fixture
def disk(monkeypatch, place):
    """Tensor files as a dictionary, so that neither torch nor safetensors is needed."""
    files: dict = {}

    def read(path):
        if path.name not in files:
            raise DataError(f"{path}: no such file")
        return state_dicts.StateDict(dict(files[path.name]))

    monkeypatch.setattr("m4.interop.state_dicts.read", read)
    monkeypatch.setattr(
        "m4.interop.state_dicts.write", lambda path, x, sections: files.update({path.name: x})
    )
    (place / "theirs.pt").touch()
    return files


def run(folder, command, *args):
    return main([command, "--method=fusemoe", *map(str, args)])


def tensors_of(folder):
    """Random weights of the release at the configuration's sizes."""
    config = configs.load(configs.parse([f"--config={folder / 'c.py'}"]))
    made = make_setup(config, prepare(config))
    shapes = traverse_util.flatten_dict(made.state.eval_params, sep="/")
    return shared.tensors(fusemoe.layout(made.method), shapes)


def test_import_evaluates_and_export_gives_every_bit_back(place, disk, capsys):
    theirs = tensors_of(place)
    dead = {f"trans_self_cross_ts_txt.layers.0.cross_attn_{i}.in_proj_bias": 0 for i in (1, 2)}
    disk["theirs.pt"] = theirs | {name: np.zeros(24, np.float32) for name in dead}
    file, out = place / "theirs.pt", place / "w"
    assert (
        run(place, "import", f"--torch={file}", f"--config={place / 'c.py'}", f"--out={out}") == 0
    )
    assert "not taken: 2 tensors: cross-attention" in capsys.readouterr().out
    assert json.loads((out / "config.json").read_text())["method"]["fidelity"] == "released"
    assert m4_main(["--mode=eval", f"--workdir={out}"]) == 0
    found = json.loads((out / "results/test.json").read_text())
    assert "ihm48" in json.dumps(found)
    assert m4_main(["--mode=predict", f"--workdir={out}"]) == 0
    assert run(place, "export", f"--torch={place / 'back.pt'}", f"--workdir={out}") == 0
    shared.same(disk["back.pt"], theirs)


def test_every_misfit_is_listed_and_nothing_is_written(place, disk, capsys):
    theirs = tensors_of(place)
    at = "trans_self_cross_ts_txt"
    disk["theirs.pt"] = theirs | {
        "extra.weight": np.zeros((2, 3), np.float32),
        "proj1.weight": np.zeros((2, 3), np.float32),
        "proj1.bias": theirs["proj1.bias"].astype(np.float64),
        "proj2.bias": np.full_like(theirs["proj2.bias"], np.nan),
        f"{at}.embed_positions_q.0.weight": np.zeros((3, 8), np.float32),
        f"{at}.layers.0.moe.std": np.full(1, 2, np.float32),
    }
    del disk["theirs.pt"]["out_layer.bias"]
    out = place / "refused"
    file = place / "theirs.pt"
    assert (
        run(place, "import", f"--torch={file}", f"--config={place / 'c.py'}", f"--out={out}") == 3
    )
    lines = capsys.readouterr().err.splitlines()
    assert [line.removeprefix(f"m4: data error: {file}: ") for line in lines] == [
        "extra.weight float32[2, 3] is surplus",
        "out_layer.bias is missing, expected float32[2]",
        "proj1.bias is float64[32], expected float32[32]",
        "proj1.weight is float32[2, 3], expected float32[32, 32]",
        "proj2.bias holds numbers that are not finite",
        f"{at}.embed_positions_q.0.weight must be equal to {at}.embed_positions_q_1.weight",
        f"{at}.layers.0.moe.std must be [1.0]",
    ]
    assert not (out / "checkpoints").exists() and not (out / "config.json").exists()


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["import", "--method=fusemoe"], "--torch: is missing"),
        (["import", "--method=vilt", "--torch=a", "--out=b"], "--method=vilt"),
        (["convert"], "convert: must be import or export"),
        (["import", "--method=fusemoe", "--torch=a", "--out=b"], "--config: is missing"),
    ],
)
def test_usage(args, match, capsys):
    assert main(args) == 2
    assert match in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "match", "code"),
    [
        ("--config.method.fidelity=paper", "add --config.method.fidelity=released", 2),
        ("--config.image.file=vit.safetensors", "image.file='vit.safetensors': the authors'", 2),
        ("--config.seed=0", "no such file", 3),
    ],
)
def test_refusals_before_data_are_built(place, flag, match, code, capsys):
    args = (f"--torch={place / 'none.pt'}", f"--out={place / 'x'}", f"--config={place / 'c.py'}")
    assert run(place, "import", *args, flag) == code
    assert match in capsys.readouterr().err
    assert not (place / "x").exists()


def released_on_mimic(*overrides):
    """The method of the shipped configuration, on the schema of MIMIC-IV."""
    target = "--config=configs/fusemoe_mimic.py:released"
    config = configs.load(configs.parse([target, *overrides]))
    return make_method(config.method, preflight.schema(config))


SMALL_EXPERTS = [f"--config.method.moe.{s}" for s in ("num_experts=3", "top_k=2", "hidden=4")]


def test_the_release_fits_mimic_by_its_names():
    # Abstract: shapes are computed, and no array of 1.2 billion numbers is made.
    whole = shared.shapes(released_on_mimic())
    assert whole["layer_2/moe/w1"].shape == (16, 512, 4 * 48 * 128)
    m = released_on_mimic(*SMALL_EXPERTS)
    assert m.data.modality_names == ("fusemoe", "notes", "cxr", "ecg")
    found = convert.expected(fusemoe.layout(m), shared.shapes(m))
    inputs = {"ts": 2 * 30, "text": 768, "cxr": 1024, "ecg": 256}
    for role, channels in inputs.items():
        name = f"time_attn_{role}.linears.2.weight"
        assert found[name] == f"float32{[128, 8 * channels]}"
    assert found["proj_ts.weight"] == f"float32{[128, 60, 1]}"
    assert found["out_layer.weight"] == f"float32{[2, 512]}"


def test_published_shapes_on_mimic_are_the_original_s():
    torch = pytest.importorskip("torch")
    from tests.rivals.fusemoe import Model

    channels = {"ts": 30, "text": 768, "cxr": 1024, "ecg": 256}
    with torch.device("meta"):
        model, small = (
            Model(channels=channels),
            Model(channels=channels, num_experts=3, top_k=2, hidden=4),
        )
    theirs = sum(p.numel() for p in model.parameters())
    ours = shared.shapes(released_on_mimic())
    assert sum(np.prod(x.shape) for x in ours.values()) == theirs > 10**9
    m = released_on_mimic(*SMALL_EXPERTS)
    layout = fusemoe.layout(m)
    expected = {n: f"float32{list(x.shape)}" for n, x in small.state_dict().items()}
    found = convert.expected(layout, shared.shapes(m))
    found |= {n: f"float32{list(x.shape)}" for n, x in layout.constants.items()}
    found |= {n: found[source] for n, source in layout.copies.items()}
    assert found == expected
