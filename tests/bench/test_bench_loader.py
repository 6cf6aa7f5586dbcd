import json

import pytest

from m4.bench import __main__ as bench
from m4.bench import loader


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    return ["--data_dir", str(folder), "--options", '{"num_patients": 60}', "--steps", "2"]


def test_unknown_benchmark_lists_the_known(capsys):
    assert bench.main(["nothing"]) == 2 and bench.main([]) == 2
    assert "loader" in capsys.readouterr().err


def test_missing_data_is_one_error_line_and_exit_code_3(tmp_path, capsys):
    code = bench.main(
        ["loader", "--data=physionet2012", f"--raw_dir={tmp_path}", f"--data_dir={tmp_path}/d"]
    )
    lines = capsys.readouterr().err.splitlines()
    assert code == 3 and len(lines) == 5
    assert all(line.startswith("m4: data error: ") for line in lines)


def test_json_result_is_consistent(options, capsys):
    assert bench.main(["loader", *options, "--batch_size=8", "--step_rate=10", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    for name in ("memory", "disk"):
        assert (
            result[name] > 0 and result[f"{name}_to_copy"] > 0
        )  # how much is not a test's business
    assert result["times_the_step"] == pytest.approx(result["memory"] / 10)


@pytest.mark.parametrize(("step_rate", "verdict"), [(300, "met"), (400, "MISSED")])
def test_verdict(step_rate, verdict):
    # 1,000 examples/s against 3 x 300 = 900 and 3 x 400 = 1,200
    table = loader._table(
        {
            **{"data": "toy", "rows": 1, "row_bytes": 1, "batch_size": 1, "copy": 1e6},
            **{"memory": 1000.0, "memory_to_copy": 0.1, "disk": 9.0, "disk_to_copy": 0.01},
            **{"step_rate": step_rate, "times_the_step": 1000 / step_rate},
        }
    )
    assert f"bar 3 x: {verdict}" in table
