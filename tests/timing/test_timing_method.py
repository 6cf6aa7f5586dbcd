"""`tests.timing method`: cases, the m4 worker, medians of interleaved steps."""

import sys
import textwrap

import numpy as np
import pytest

from tests.timing import method, method_cases, method_jax

TINY = {"width": 4, "task_width": 3, "dropout": 0.1}


def test_case_of_replaces_rows_and_depth():
    case = method_cases.case_of("m4oe", rows=3, depth=1)
    assert case["rows"] == 3 and case["sizes"]["vit_depth"] == 1
    assert method_cases.CASES["m4oe"]["sizes"]["vit_depth"] == 12
    assert method_cases.CASES.keys() == method_cases.NOTES.keys()


def test_m4_worker_trains():
    case = method_cases.CASES["m3h"] | {"name": "m3h", "rows": 6, "sizes": TINY}
    case |= {"features": [2, 3], "tasks": [["binary", 1], ["multiclass", 3], ["regression", 1]]}
    variants, facts = method_jax.setup(case)
    losses = [variants["m4"]() for _ in range(3)]
    assert np.isfinite(losses).all() and losses[2] != losses[0]
    # Encoders (2 + 1) 4 + (3 + 1) 4 + 2 (4 + 1) 4, W 3 * 8 * 3, task 3 * 3, q k v 3 * 3 * 3, heads
    # (3 + 1) (1 + 3 + 1).
    assert facts["params"] == 12 + 16 + 40 + 72 + 9 + 27 + 20
    assert facts["inputs"] == {"m0": [6, 2], "m1": [6, 3]}


def test_release_batches_have_present_modalities():
    case = method_cases.case_of("flexmoe", rows=40)
    here = method_jax.present(case)
    assert here.any(1).all() and here.any(0).all() and 0.6 < here.mean() < 0.85


def worker(tmp_path, name, seconds):
    """A worker that burns so much CPU time per step."""
    script = tmp_path / f"step_{name}.py"
    script.write_text(
        textwrap.dedent(f"""
        import time
        from tests.timing.worker_process import serve

        def run():
            end = time.process_time() + {seconds}
            while time.process_time() < end:
                pass

        serve(lambda case: ({{"{name}": run}}, {{"params": 1, "version": "0", "inputs": {{}}}}))
        """)
    )
    return [sys.executable, str(script)]


@pytest.mark.parametrize("apart", [False, True])
def test_ratio_is_of_cpu_times(tmp_path, monkeypatch, apart):
    monkeypatch.setenv("PYTHONPATH", ".")
    commands = {"m4": worker(tmp_path, "m4", 0.01), "torch": worker(tmp_path, "torch", 0.04)}
    case = method_cases.case_of("m3h") | {"cores": 1}
    found = method.measure(commands, case, 3, malloc="default", apart=apart)
    assert len(found["m4"]["cpu_ms"]) == 3 and found["together"] is not apart
    assert found["ratio"] > 2  # of CPU time burnt: 4
    assert "CPU time of torch over m4" in method.table(found)


@pytest.mark.parametrize("name", ["flexmoe", "flexcare", "m3h"])
def test_rival_has_as_many_parameters(name):
    """The two that are large are compared at small sizes by tests/interop."""
    pytest.importorskip("torch", reason="needs torch: pip install 'm4-moe[torch]'")
    import jax

    from tests.rivals import flexcare, flexmoe, m3h
    from tests.timing import method_torch

    case = method_cases.case_of(name, rows=4)
    module = {"flexmoe": flexmoe, "flexcare": flexcare, "m3h": m3h}[name]
    sizes, _ = getattr(method_torch, name)(case)
    theirs = sum(p.numel() for p in module.Model(**sizes).parameters())
    built, batch = getattr(method_jax, name)(case)
    shapes = jax.eval_shape(
        lambda: built.init({"params": jax.random.key(0)}, batch, train=False)["params"]
    )
    ours = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))
    if name == "flexcare":  # rows of tables that the data do not reach: hours, words, tasks
        ours += 128 * ((600 - 48) + (600 - 51) + 1 + (40 - 6))
    assert ours == theirs
