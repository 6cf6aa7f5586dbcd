"""The smaller pods compiled for real; the larger ones by `python -m m4.bench aot`."""

import importlib.util

import pytest

from m4.bench import aot


@pytest.mark.slow
@pytest.mark.parametrize("exchange", aot.EXCHANGES)
@pytest.mark.parametrize("name", ["8x64", "64x64"])
def test_pod_program(name, exchange):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the TPU compiler: pip install 'm4-moe[tpu]'")
    row = aot.compile_case(name, exchange)
    assert all(row["checks"].values()), row


def test_without_the_compiler_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    aot.main(["--cases=8x64"])
    assert "skipped: no libtpu" in capsys.readouterr().out
