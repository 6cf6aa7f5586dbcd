import json

import pytest

from tests.timing import __main__ as timing
from tests.timing import loader


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    return ["--data_dir", str(folder), "--options", '{"num_patients": 60}', "--steps", "2"]


def test_unknown_benchmark_lists_the_known(capsys):
    assert timing.main(["nothing"]) == 2 and timing.main([]) == 2
    assert "loader" in capsys.readouterr().err


def test_missing_data_is_one_error_line_and_exit_code_3(tmp_path, capsys):
    code = timing.main(
        ["loader", "--data=physionet2012", f"--raw_dir={tmp_path}", f"--data_dir={tmp_path}/d"]
    )
    lines = capsys.readouterr().err.splitlines()
    assert code == 3 and len(lines) == 5
    assert all(line.startswith("m4: data error: ") for line in lines)


def test_json_result_is_consistent(options, capsys):
    assert timing.main(["loader", *options, "--batch_size=8", "--step_rate=10", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    for name in ("memory", "disk"):
        assert (
            result[name] > 0 and result[f"{name}_to_copy"] > 0
        )  # how much is not a test's business
    assert result["times_the_step"] == pytest.approx(result["memory"] / 10)


def test_records_of_one_size(tmp_path, capsys):
    line = ["loader", "--data=small", f"--data_dir={tmp_path}", "--steps=2", "--batch_size=8"]
    assert timing.main([*line, "--options", '{"rows": 16}', "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    # series: 48 x 30 numbers of 4 bytes and marks of 1, 48 times of 4 and marks, presence;
    # note: 768 numbers, a time, a mark, presence; label and its mask; patient
    assert result["row_bytes"] == 48 * 30 * 5 + 48 * 5 + 1 + 768 * 4 + 4 + 2 + 8 + 8
    assert result["rows"] == 16 and "torch" not in result


class Rival:
    """In the place of torch: always as long."""

    def ask(self, run):
        return {"wall": 2.0}


def test_the_rival_is_asked_every_round(options, tmp_path):
    folder = loader.build.prepare("tests.timing.loader_data", "", tmp_path, options={"rows": 16})
    result = loader.measure(folder, batch_size=8, steps=2, rival=Rival())
    assert result["torch"] == 8.0  # 2 batches of 8 in 2 s
    assert result["memory_to_torch"] == pytest.approx(result["memory"] / 8)
    result |= {"data": "small", "batch_size": 8, "step_rate": None}
    assert "x torch from memory" in loader.table(result)


@pytest.mark.parametrize(("step_rate", "verdict"), [(300, "met"), (400, "MISSED")])
def test_verdict(step_rate, verdict):
    # 1,000 examples/s against 3 x 300 = 900 and 3 x 400 = 1,200
    table = loader.table(
        {
            **{"data": "toy", "rows": 1, "row_bytes": 1, "batch_size": 1, "copy": 1e6},
            **{"memory": 1000.0, "memory_to_copy": 0.1, "disk": 9.0, "disk_to_copy": 0.01},
            **{"step_rate": step_rate, "times_the_step": 1000 / step_rate},
        }
    )
    assert f"bar 3 x: {verdict}" in table
