"""The MoE benchmark: its arithmetic, its reading of programs, and one small run."""

import json
import types

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from m4.bench import aot_case
from m4.bench import compiled as programs
from m4.errors import ConfigError
from tests.timing import moe, moe_case, moe_mesh

TEXT = """HloModule step
%body (p: f32[2]) -> f32[2] {
  %a2a = (f32[1,8,4]{2,1,0}, f32[1,8,4]{2,1,0}) all-to-all(%x, %y), channel_id=9
}
ENTRY %main {
  %a = (f32[1,8,4]{2,1,0}, f32[1,8,4]{2,1,0}) all-to-all(%x, %y), channel_id=1
  %i = (s32[1,8]{1,0}, s32[1,8]{1,0}) all-to-all(%x, %y), channel_id=2
  %g = bf16[16,4]{1,0} all-gather(%z), channel_id=3
  %r = f32[] all-reduce(%w), channel_id=4
  %n = f32[4] add(%w, %w)
}
"""


def compiled(text):
    return types.SimpleNamespace(as_text=lambda: text)


def test_collectives_outside_loops_with_their_bytes():
    # Two parts of 1*8*4 float32: 2 * 32 * 4 = 256 bytes; 2 * 8 * 4 = 64; 16 * 4 * 2 = 128; 4.
    assert programs.collectives(compiled(TEXT)) == [
        ("all-to-all", "2 x f32[1,8,4]", 256),
        ("all-to-all", "2 x s32[1,8]", 64),
        ("all-gather", "bf16[16,4]", 128),
        ("all-reduce", "f32[]", 4),
    ]
    assert len(programs.collectives(compiled(TEXT), loops=True)) == 5


def test_cases_are_the_same_everywhere_and_skew_skews():
    case = {"tokens": 200, "dim": 4, "hidden": 8, "experts": 16, "top_k": 2, "seed": 0, "zipf": 0.0}
    one, two = moe_case.make_case(case), moe_case.make_case(case)
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert (one["experts"][:, 0] != one["experts"][:, 1]).all()
    np.testing.assert_allclose(one["weights"].sum(1), 1, rtol=1e-6)
    skewed = moe_case.make_case(case | {"zipf": 2.0})
    busiest = [np.bincount(c["experts"].ravel(), minlength=16).max() for c in (one, skewed)]
    assert busiest[0] < 50 < 100 < busiest[1]


def test_growth_is_the_slope_of_time_per_row():
    # Four times the experts and rows, eight times the time: 2 per row, slope log 2 / log 4 = 0.5.
    rows = [
        {"engine": "auto", "experts": e, "seconds": s, "case": {"tokens": 16 * e}}
        for e, s in ((64, 1.0), (256, 8.0))
    ]
    assert moe.growth(rows) == pytest.approx(0.5)


def test_ratios_are_medians_of_rounds():
    times = {"auto": [2.0, 3.0, 9.0], "dense_1": [1.0, 2.0, 3.0], "torch_loop": [4.0, 3.0, 1.0]}
    case = {"experts": 8, "tokens": 10, "top_k": 1, "dim": 2, "hidden": 5, "gate": ""}
    about = {
        "jax": {"facts": {"auto": {"loss": 1.0}}, "jax": "0", "backend": "cpu", "device": "cpu"}
        | {"split": 1}
    }
    row = moe._row("auto", times, "dense_1", about, case, "wall")
    # Per round 2, 1.5 and 3 of dense; 0.5, 1 and 9 of the loop; no sorted rival.
    assert row["ratio_dense"] == 2.0
    assert row["ratio_torch_loop"] == 1.0
    assert row["ratio_torch_sorted"] is None
    assert row["ratio_dense_spread"] == [1.5, 3.0]
    assert row["flops_per_second"] == 12 * 10 * 2 * 5 / 3.0


def test_different_results_stop_the_benchmark():
    facts = {"a": {"loss": 1.0, "dropped": 0.0}, "b": {"loss": 1.1, "dropped": 0.0}}
    about = {"jax": {"facts": facts}}
    with pytest.raises(RuntimeError, match="do not compute the same"):
        moe._check_losses(about, {"dtype": "float32"})
    facts["b"]["dropped"] = 0.1  # what drops may differ
    moe._check_losses(about, {"dtype": "float32"})


def test_rows_name_bound_rivals_and_memory(tmp_path, capsys):
    path = tmp_path / "moe.json"
    sizes = ["--tokens=64", "--dim=8", "--hidden=16", "--top_k=2", "--experts=4"]
    moe.main([*sizes, "--repeats=1", "--cores=1", f"--json={path}"])
    (row,) = json.loads(path.read_text())
    assert (row["experts"], row["engine"], row["dropped"]) == (4, "auto", 0.0)
    assert row["ratio_dense"] > 0 and row["peak_bytes"] > 0
    assert {"ratio_torch_loop", "ratio_torch_sorted"} <= row.keys()
    assert "experts split engine" in capsys.readouterr().out


def test_the_router_is_timed_against_its_bound(tmp_path, capsys):
    path = tmp_path / "router.json"
    sizes = ["--tokens=64", "--dim=8", "--top_k=2", "--experts=32", "--repeats=1", "--cores=1"]
    moe.main(["--part=router", "--gate=linear,laplace", *sizes, f"--json={path}"])
    rows = json.loads(path.read_text())
    assert [(row["experts"], row["gate"]) for row in rows] == [(32, "linear"), (32, "laplace")]
    assert all(row["ratio"] > 0 and row["spread"][0] <= row["ratio"] for row in rows)
    assert "/ bound" in capsys.readouterr().out


def test_impossible_options_are_named():
    with pytest.raises(ConfigError, match="--top_k=2"):
        moe.main(["--experts=1"])
    with pytest.raises(ConfigError, match="DATAxEXPERT"):
        moe.main(["--mesh=8"])


@pytest.mark.parametrize(("exchange", "number"), [("all_to_all", 4), ("all_gather", 0)])
def test_the_checks_of_a_pod_on_virtual_devices(exchange, number):
    """What `m4.bench aot` checks passes here, and the number of exchanges is really counted."""
    mesh = jax.make_mesh((2, 4), ("data", "expert"), (AxisType.Auto,) * 2)
    case = {"experts": 8, "tokens": 256, "dim": 16, "hidden": 32, "top_k": 2, "dtype": "float32"}
    program = aot_case.compile_layer(mesh, case, exchange=exchange, engine="dropless")
    row = aot_case.examine(program, "8x64", (2, 4), 32, case)
    assert row["exchanges"] == number
    assert row["checks"]["exchanges"] == (number == 4)
    # Here a gather of the tokens is larger than an expert matrix: the check sees it.
    assert row["checks"]["weights_stay"] == (number == 4)
    assert row["checks"]["gradient_split"]
    # 2 experts a device of 2*16*32 + 32 + 16 numbers are 8,576 bytes, 32 tokens of 16 numbers and 2
    # weights 2,304: both twice, and 256 of choices. 4 buckets of 24 rows (1.25 * 32 * 2 / 4 = 20,
    # rounded to 8) of 3 * 32 + 4 * 16 numbers, 2 matrices of 16 * 32, and 2 outputs of 32 tokens.
    temporary = 4 * (96 * (3 * 32 + 4 * 16) + 2 * 16 * 32 + 2 * 32 * 16)
    assert row["model_bytes"] == 2 * (8576 + 2304) + 256 + temporary
    assert row["checks"]["memory"] == (abs(row["peak_bytes"] / row["model_bytes"] - 1) <= 0.05)


def test_bytes_on_a_mesh_follow_the_documented_formula():
    mesh = jax.make_mesh((2, 4), ("data", "expert"), (AxisType.Auto,) * 2)
    case = {"experts": 8, "tokens": 256, "dim": 16, "hidden": 32, "top_k": 2, "dtype": "float32"}
    for exchange in ("all_to_all", "all_gather"):
        program = aot_case.compile_layer(mesh, case, exchange=exchange, engine="dropless")
        sent = {}
        for kind, shapes, size in programs.collectives(program):
            if not shapes.endswith("[]"):
                sent[kind] = sent.get(kind, 0) + size
        expected = moe_mesh.formula((2, 4), case, exchange=exchange)
        assert set(sent) == set(expected)
        for kind, size in expected.items():
            assert abs(sent[kind] / size - 1) <= 0.05, (exchange, kind, sent[kind], size)
