import numpy as np
import pytest

from tests.modes.test_buckets_run import CONFIG
from tests.timing import __main__ as timing
from tests.timing import buckets


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("M4_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "c.py").write_text(CONFIG)
    return f"--config={tmp_path / 'c.py'}"


def test_nothing_to_compare_is_one_line(config, capsys):
    assert timing.main(["buckets", config, "--config.train.buckets=()"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "train.buckets: is (); there is nothing to compare" in line


def test_variants_share_their_rows_and_differ_in_padding(config, monkeypatch):
    monkeypatch.setattr(buckets, "ROUNDS", 1)
    result = buckets.measure(buckets.configs.load(buckets.configs.parse([config])))
    assert result["steps"] == 6 and result["lengths"] == (3, 5)  # of 16 rows, of some 110
    assert 0 < result["padded"]["buckets"] < result["padded"]["whole"] < 1
    whole, cut = (result["seconds"][name][0] for name in ("whole", "buckets"))
    np.testing.assert_allclose(result["ratios"], [whole / cut])
    table = buckets.table(result)
    assert f"{result['padded']['whole']:.1%}" in table and f"{whole / cut:.2f} x" in table
