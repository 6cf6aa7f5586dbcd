"""The MoE benchmark as a user runs it, tiny; its numbers mean nothing here, their form does."""

import json

from m4.bench import moe


def test_rows_name_bound_rivals_and_memory(tmp_path, capsys):
    path = tmp_path / "moe.json"
    sizes = ["--tokens=64", "--dim=8", "--hidden=16", "--top_k=2", "--experts=4"]
    moe.main([*sizes, "--repeats=1", "--cores=1", f"--json={path}"])
    (row,) = json.loads(path.read_text())
    assert (row["experts"], row["strategy"], row["dropped"]) == (4, "auto", 0.0)
    assert row["ratio_dense"] > 0 and row["peak_bytes"] > 0
    assert {"ratio_torch_loop", "ratio_torch_sorted"} <= row.keys()
    assert "experts strategy" in capsys.readouterr().out
