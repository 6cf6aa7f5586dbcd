"""How modalities and tasks compete: what the analyses of M4oE measure (Wu et al., ICLR 2025).

- `utilisation`: shares of modalities in the routing, per task, and their evenness;
- `probe`: what an encoder's features tell, after joint training or after its own;
- `decompose`, `partial_information`: what two features tell about a label, redundant, unique and
  synergistic (Bertschinger et al. 2014; Liang et al. 2023);
- `gradient_conflict`: angles between the gradients of tasks.

Letters: N rows, M modalities, P tasks, D width, X, Z values of two features, Y labels.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from m4.eval.specialisation import Exchange
from m4.types import Array

ROWS_PER_CELL = 50  # of a table of two features and a label: with fewer the bits are noise


def utilisation(share_NMP: np.ndarray, weight_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean P(modality | task) over rows, f64[M, P], and its entropy / log M, f64[P].

    `share_NMP` is `extra['utilisation']` of M4oE. An entropy of 1 means equal shares, which is
    where the information loss pushes whatever the signal is.
    """
    share_MP = np.average(np.asarray(share_NMP, np.float64), axis=0, weights=weight_N)
    log_MP = np.log(np.where(share_MP > 0, share_MP, 1.0))
    entropy_P = -(share_MP * log_MP).sum(0)
    return share_MP, entropy_P / np.log(max(len(share_MP), 2))


def probe(train_ND, train_y) -> Pipeline:
    """A fitted linear classifier on frozen features."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(train_ND, train_y)


class Information(NamedTuple):
    """In bits. `unique` is of the first and of the second feature. Arrays f64[B] of B tables."""

    redundant: Any
    unique: tuple[Any, Any]
    synergy: Any


def decompose(joint_XZY: np.ndarray, *, num_steps: int = 200) -> Information:
    """Partial information of X and Z about Y, of one table [X, Z, Y] or of many [B, X, Z, Y].

    q has the pairwise marginals (X, Y) and (Z, Y) of the joint and the largest H(Y | X, Z). It
    minimises the divergence of q from r(x, z) uniform in y, with r its own marginal: r and q are
    improved in turn, q by fitting its two marginals.
    """
    p = np.asarray(joint_XZY, np.float64)
    p = p / p.sum((-1, -2, -3), keepdims=True)
    p_xy, p_zy = p.sum(-2, keepdims=True), p.sum(-3, keepdims=True)
    q = p_xy * p_zy / np.maximum(p.sum((-2, -3), keepdims=True), 1e-300)
    for _ in range(num_steps):
        q = np.broadcast_to(q.sum(-1, keepdims=True), q.shape) * (q > 0)
        for _ in range(20):
            q = q * _ratio(p_xy, q.sum(-2, keepdims=True))
            q = q * _ratio(p_zy, q.sum(-3, keepdims=True))
    whole, least = (bits(joint.reshape(*joint.shape[:-3], -1, joint.shape[-1])) for joint in (p, q))
    first, second = bits(p_xy.squeeze(-2)), bits(p_zy.squeeze(-3))
    return Information(first + second - least, (least - second, least - first), whole - least)


def bits(joint_XY: np.ndarray) -> Any:
    """I(X; Y) of a table of probabilities [X, Y], or of each of many [B, X, Y]."""
    apart = joint_XY.sum(-1, keepdims=True) * joint_XY.sum(-2, keepdims=True)
    known = (joint_XY > 0) & (apart > 0)
    ratio = np.where(known, joint_XY, 1.0) / np.where(known, apart, 1.0)
    return np.where(known, joint_XY * np.log2(ratio), 0.0).sum((-1, -2))


def partial_information(
    x_N: np.ndarray,
    z_N: np.ndarray,
    y_N: np.ndarray,
    patient_N: np.ndarray,
    *,
    draws: int = 200,
    seed: int = 0,
) -> dict[str, Any] | None:
    """`decompose` of rows, less what chance gives; None with under `ROWS_PER_CELL` rows a cell.

    The null exchanges the labels between patients. {rows, redundant, unique, synergy, null: {the
    same three, means of the null}, p: of synergy}; the first three are less their null.
    """
    codes = [np.unique(values, return_inverse=True) for values in (x_N, z_N, y_N)]
    shape = tuple(len(known) for known, _ in codes)
    if len(y_N) < ROWS_PER_CELL * np.prod(shape):
        return None
    rng, (x, z, y) = np.random.default_rng(seed), (code.reshape(-1) for _, code in codes)
    exchange = Exchange(patient_N)
    labels = [y, *(y[exchange.permuted(rng)] for _ in range(draws))]
    cells = (np.ravel_multi_index((x, z, label), shape) for label in labels)
    counts = [np.bincount(cell, minlength=np.prod(shape)).reshape(shape) for cell in cells]
    found = decompose(np.stack(counts))
    parts = {"redundant": found.redundant, "unique": found.unique, "synergy": found.synergy}
    own = {name: np.array(part)[..., 0] for name, part in parts.items()}
    null = {name: np.array(part)[..., 1:].mean(axis=-1) for name, part in parts.items()}
    p = (1 + (found.synergy[1:] >= found.synergy[0] - 1e-9).sum()) / (1 + draws)
    less = {name: (own[name] - null[name]).tolist() for name in parts}
    return {"rows": len(y_N), **less, "null": {n: x.tolist() for n, x in null.items()}, "p": p}


def _ratio(wanted: np.ndarray, present: np.ndarray) -> np.ndarray:
    return np.where(present > 0, wanted / np.where(present > 0, present, 1.0), 0.0)


def gradient_conflict(
    task_losses: Callable[[Any], dict[str, Array]], params: Any
) -> dict[tuple[str, str], Array]:
    """Cosine of every two tasks' gradients with respect to `params`; negative means conflict.

    `task_losses` maps the parameters of interest (a part of the tree) to a loss per task. A task
    without gradient has cosine 0 with every other.
    """
    jacobian = jax.jacrev(task_losses)(params)
    flat = {
        name: jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)])
        for name, tree in jacobian.items()
    }
    unit = {name: g / jnp.maximum(jnp.linalg.norm(g), 1e-30) for name, g in flat.items()}
    return {(a, b): jnp.vdot(unit[a], unit[b]) for a, b in itertools.combinations(unit, 2)}
