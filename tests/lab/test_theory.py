"""The bench of rates: gates, likelihood and loss against what can be computed by hand."""

import json

import jax
import numpy as np
import pytest

from m4.errors import ConfigError
from m4.lab import theory
from m4.lab.__main__ import main


def test_gates_as_by_hand():
    x_N, (w, c) = np.array([-1.0, 0.5]), theory.TRUTH[:, :2].T
    by_hand = {
        "softmax": np.exp(x_N[:, None] * w + c),
        "laplace": np.exp(-abs(x_N[:, None] - w) + c),
        "gaussian": np.exp(-((x_N[:, None] - w) ** 2) + c),
        "sigmoid": 1 / (1 + np.exp(-(x_N[:, None] * w + c))),
    }
    assert set(by_hand) == set(theory.GATES)
    for gate, score_NK in by_hand.items():
        found = np.exp(theory.log_gates(gate, theory.TRUTH, x_N))
        assert found == pytest.approx(score_NK / score_NK.sum(1, keepdims=True), rel=1e-5), gate


def test_the_truth_has_no_loss_and_a_split_expert_costs_less_than_a_wrong_one():
    assert theory.voronoi("softmax", theory.TRUTH) == 0.0
    split = np.concatenate([theory.TRUTH[:1]] * 2 + [theory.TRUTH[1:]])
    split[:2, 1] -= np.log(2)
    assert theory.voronoi("softmax", split) == pytest.approx(0.0, abs=1e-12)
    moved = theory.TRUTH + [0.1, 0, 0, 0, 0]
    apart = split + np.array([[0.1], [-0.1], [0]]) * [1, 0, 0, 0, 0]
    assert theory.voronoi("softmax", moved) == pytest.approx(0.1 * (np.exp(0.3) + 1))
    assert theory.voronoi("softmax", apart) == pytest.approx(1e-4 * np.exp(0.3))


@pytest.mark.parametrize("gate", ["softmax", "laplace"])
def test_the_fit_is_a_maximum(gate):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        rows = theory.draw(gate, 1000, rng)
        found = theory.fit(gate, *rows, theory.start(gate, 0, rng))
        best = float(theory.loss(gate, found, *rows))
        assert best <= float(theory.loss(gate, theory.TRUTH, *rows))
        for k, p in np.argwhere(theory.free(gate, 2)):
            for step in (-0.05, 0.05):
                near = found.copy()
                near[k, p] += step
                assert float(theory.loss(gate, near, *rows)) > best


def test_the_command(tmp_path, capsys):
    config = "--config=configs/lab_rates.py:tiny"
    assert main(["theory", config, f"--out={tmp_path}"]) == 0
    found = json.loads((tmp_path / "rates.json").read_text())
    assert [rate["gate"] for rate in found["rates"]] == ["softmax", "laplace"]
    assert set(found["cross"]) == {"softmax", "laplace"}
    assert min(found["cross"]["softmax"].values()) > -1e-3
    assert "slope" in capsys.readouterr().out


@pytest.mark.slow
def test_rates_are_those_of_theory():
    bench = theory.Bench(gates=("softmax", "laplace"), extra=(0,), cross=False)
    for rate in theory.run(bench)["rates"]:
        assert -0.55 <= rate["slope"] <= -0.45, rate


WRONG = ["sizes=5", "sizes=('x', 'y')", "sizes=(100, 100)", "sizes=(100, 10**30)", "repeats='2'"]
WRONG += ["gates=5", "gates=()", "gates=([],)", "cross='no'", "cross=()"]
WRONG += ["seed=-1", "extra=(-1,)", "extra=()"]


@pytest.mark.parametrize("field", WRONG)
def test_fields_that_cannot_be_are_one_line(tmp_path, field):
    (tmp_path / "r.py").write_text(f"def get_config():\n    return dict({field})\n")
    with pytest.raises(ConfigError) as error:
        theory.load(str(tmp_path / "r.py"))
    assert [line.partition(":")[0] for line in error.value.args] == [field.partition("=")[0]]
