"""How fast a mixture's parameters are found as data grow, by maximum likelihood, gate by gate.

y | x ~ sum_k g_k(x) N(a_k x + b_k, s_k^2) with x uniform in [-2, 2] and gates

    softmax   exp(w x + c)         Nguyen, Nguyen and Ho, NeurIPS 2023
    laplace   exp(-|x - w| + c)    Han et al., NeurIPS 2024 (FuseMoE), section 4
    gaussian  exp(-(x - w)^2 + c)  Nguyen et al., AISTATS 2024
    sigmoid   1 / (1 + exp(-(w x + c)))  Nguyen et al., NeurIPS 2024, here normalised

divided by their sum. The distance to the truth is a Voronoi loss: each fitted expert belongs to the
true one that is nearest; a true expert with one fitted costs its errors, one with several the
powers in `SPLIT` of them, both weighted by the gates' exp(c), and what their weights miss. With as
many experts as the truth has it falls as n^-1/2 (log-log slope -0.5). Starts are near the truth:
this measures estimation, not the search for the right optimum. With one expert more the start
splits one; a slope of such a fit says little unless its start is spread along the flat directions,
which is why starts differ by repeat.

Letters: K experts, N rows.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from m4 import atomic
from m4.config.program import load_file
from m4.errors import ConfigError

GATES = ("softmax", "laplace", "gaussian", "sigmoid")
MOST = 100_000_000  # rows of a data set
NAMES = ("w", "c", "a", "b", "log_s")
TRUTH = np.array([[-1.5, 0.3, 1.0, 1.0, np.log(0.3)], [1.5, 0.0, -1.0, -1.0, np.log(0.25)]])
# Powers of the errors in (w, a, b, s) where several experts were fitted to one.
SPLIT = {"softmax": (4, 2, 4, 2), "laplace": (2, 2, 2, 2), "gaussian": (4, 2, 4, 2)}
SPLIT |= {"sigmoid": (2, 2, 2, 2)}


@dataclasses.dataclass(frozen=True)
class Bench:
    """The fields of its configuration."""

    gates: Sequence[str] = GATES
    sizes: Sequence[int] = (3_000, 17_000, 100_000)
    repeats: int = 48
    extra: Sequence[int] = (0, 1)  # experts fitted beyond the truth's
    cross: bool = True  # every gate fitted on data of every gate, at the smallest size
    seed: int = 0


def load(target: str) -> Bench:
    """The bench of a configuration file. Raises ConfigError for what it cannot be."""
    given = dict(load_file(target, studies=True))
    known = {field.name for field in dataclasses.fields(Bench)}
    problems = [f"{name}: no such field; it has: {', '.join(known)}" for name in {*given} - known]
    found = Bench(**{k: v for k, v in given.items() if k in known})
    problems += _problems(found)
    if problems:
        raise ConfigError(*problems)
    return found


def _problems(found: Bench) -> list[str]:
    """What a bench cannot be, a line a field."""

    def numbers(value: Any, low: int, high: int) -> bool:
        right = isinstance(value, Sequence) and all(type(n) is int for n in value)
        return right and all(low <= n <= high for n in value)

    problems = []
    gates = found.gates if isinstance(found.gates, Sequence) else ()
    if not gates or any(gate not in GATES for gate in gates):
        problems.append(f"gates: must be some of {', '.join(GATES)}")
    if not numbers(found.sizes, 100, MOST) or len({*found.sizes}) < 2:
        problems.append(f"sizes: must be two or more different numbers from 100 to {MOST:,}")
    if not numbers(found.extra, 0, 8) or not found.extra:
        problems.append("extra: must be numbers of experts from 0 to 8")
    if not isinstance(found.cross, bool):
        problems.append("cross: must be True or False")
    for name, low, high in (("repeats", 1, 100_000), ("seed", 0, 2**32 - 1)):
        if not numbers([getattr(found, name)], low, high):
            problems.append(f"{name}: must be a number from {low} to {high:,}")
    return problems


def log_gates(gate: str, theta_K5, x_N):
    """Log of the normalised gates, [N, K]."""
    w_K, c_K, z_N1 = theta_K5[:, 0], theta_K5[:, 1], x_N[:, None]
    scores = {
        "softmax": lambda: z_N1 * w_K + c_K,
        "laplace": lambda: -jnp.abs(z_N1 - w_K) + c_K,
        "gaussian": lambda: -jnp.square(z_N1 - w_K) + c_K,
        "sigmoid": lambda: jax.nn.log_sigmoid(z_N1 * w_K + c_K),
    }
    return jax.nn.log_softmax(scores[gate](), axis=1)


def loss(gate: str, theta_K5, x_N, y_N):
    """Mean minus log-likelihood."""
    a_K, b_K, log_s_K = theta_K5[:, 2:].T
    z_NK = (y_N[:, None] - x_N[:, None] * a_K - b_K) * jnp.exp(-log_s_K)
    log_p_NK = -0.5 * jnp.square(z_NK) - log_s_K - 0.5 * jnp.log(2 * jnp.pi)
    return -jax.nn.logsumexp(log_gates(gate, theta_K5, x_N) + log_p_NK, axis=1).mean()


def draw(gate: str, number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows (x, y) of the true mixture with this gate."""
    x_N = rng.uniform(-2, 2, number)
    g_NK = np.exp(np.asarray(log_gates(gate, TRUTH, x_N)))
    k_N = (rng.random(number)[:, None] > g_NK.cumsum(1)).sum(1).clip(max=len(TRUTH) - 1)
    a_N, b_N, log_s_N = TRUTH[k_N, 2:].T
    return x_N, a_N * x_N + b_N + np.exp(log_s_N) * rng.standard_normal(number)


def free(gate: str, experts: int) -> np.ndarray:
    """Which parameters are estimated, bool[K, 5]: what a shift of all scores hides is held."""
    out = np.ones((experts, 5), bool)
    if gate != "sigmoid":
        out[-1, 1] = False
    if gate in ("softmax", "gaussian"):
        out[-1, 0] = False
    return out


def fit(gate: str, x_N, y_N, start_K5: np.ndarray) -> np.ndarray:
    """The maximum of the likelihood near a start, f64[K, 5]."""
    mask, grad = free(gate, len(start_K5)), _gradient(gate)

    def objective(free_P):
        theta = start_K5.copy()
        theta[mask] = free_P
        value, slope = grad(theta, x_N, y_N)
        return float(value), np.asarray(slope)[mask]

    found = minimize(objective, start_K5[mask], jac=True, method="BFGS", options={"gtol": 1e-7})
    out = start_K5.copy()
    out[mask] = found.x
    return out


@functools.cache
def _gradient(gate: str):
    return jax.jit(jax.value_and_grad(functools.partial(loss, gate)))


def start(gate: str, extra: int, rng: np.random.Generator) -> np.ndarray:
    """Near the truth; experts beyond it are copies of the first, which share its weight."""
    theta = np.concatenate([TRUTH[:1]] * extra + [TRUTH])
    theta[: extra + 1, 1] -= np.log(extra + 1)
    spread = np.where(np.arange(len(theta)) <= extra, 0.3 if extra else 0.05, 0.05)
    return theta + spread[:, None] * rng.standard_normal(theta.shape) * free(gate, len(theta))


def voronoi(gate: str, theta_K5: np.ndarray) -> float:
    """The Voronoi loss of a fit (see the first lines)."""
    error = theta_K5[:, None] - TRUTH[None]
    error[..., 4] = np.exp(theta_K5[:, None, 4]) - np.exp(TRUTH[None, :, 4])
    own = np.abs(error[..., [0, 2, 3, 4]])
    cell = own.sum(-1).argmin(1)
    weight, total = np.exp(theta_K5[:, 1]), 0.0
    for k, true in enumerate(TRUTH):
        members = np.flatnonzero(cell == k)
        powers = SPLIT[gate] if len(members) > 1 else (1, 1, 1, 1)
        total += (weight[members, None] * own[members, k] ** np.array(powers)).sum()
        total += abs(weight[members].sum() - np.exp(true[1]))
    return float(total)


def run(bench: Bench) -> dict[str, Any]:
    """{rates: [{gate, extra, sizes, means, slope}], cross: {data: {gate: excess loss}}}."""
    with jax.enable_x64(True):
        rates = [_rate(bench, gate, extra) for extra in bench.extra for gate in bench.gates]
        return {"rates": rates, "cross": _cross(bench) if bench.cross else {}}


def _rate(bench: Bench, gate: str, extra: int) -> dict[str, Any]:
    means = []
    for size in bench.sizes:
        losses = []
        for repeat in range(bench.repeats):
            rng = np.random.default_rng([bench.seed, GATES.index(gate), size, repeat])
            rows = draw(gate, size, rng)
            losses.append(voronoi(gate, fit(gate, *rows, start(gate, extra, rng))))
        means.append(float(np.exp(np.mean(np.log(losses)))))  # less noisy than the median
    slope = float(np.polyfit(np.log(bench.sizes), np.log(means), 1)[0])
    print(f"{gate:9} {'+' + str(extra) if extra else 'exact':6} slope {slope:+.3f}", flush=True)
    sizes = list(bench.sizes)
    return {"gate": gate, "extra": extra, "sizes": sizes, "means": means, "slope": slope}


def _cross(bench: Bench) -> dict[str, dict[str, float]]:
    """Expected loss of each gate fitted to data of each, less that of the truth, in nats."""
    out: dict[str, dict[str, float]] = {}
    for data in bench.gates:
        rng = np.random.default_rng([bench.seed, 7, GATES.index(data)])
        rows, fresh = draw(data, min(bench.sizes), rng), draw(data, 50_000, rng)
        truth = float(loss(data, TRUTH, *fresh))
        out[data] = {}
        for gate in bench.gates:
            fits = [fit(gate, *rows, start(gate, 0, rng)) for _ in range(3)]
            best = min(fits, key=lambda theta: float(loss(gate, theta, *rows)))
            out[data][gate] = float(loss(gate, best, *fresh)) - truth
    return out


def write(found: Mapping[str, Any], out: Path) -> list[str]:
    """Writes rates.json; returns it as lines of text."""
    out.mkdir(parents=True, exist_ok=True)
    atomic.write(out / "rates.json", json.dumps(found, indent=1) + "\n")
    lines = [f"{'gate':10}{'experts':>10}{'slope':>9}  geometric mean of the loss by size"]
    for rate in found["rates"]:
        means = ", ".join(f"{m:.3g}" for m in rate["means"])
        lines.append(f"{rate['gate']:10}{2 + rate['extra']:>10}{rate['slope']:>+9.3f}  {means}")
    if found["cross"]:
        lines.append("loss above the truth's, gate (column) on data of gate (row), nats / 1000")
        lines.append(" " * 10 + "".join(f"{gate:>10}" for gate in found["cross"]))
        for data, by_gate in found["cross"].items():
            lines.append(f"{data:10}" + "".join(f"{1e3 * v:>10.2f}" for v in by_gate.values()))
    return lines
