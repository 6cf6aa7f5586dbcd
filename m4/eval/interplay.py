"""How modalities and tasks compete: what the analyses of M4oE measure (Wu et al., ICLR 2025).

- `utilisation`: shares of modalities in the routing, per task, and their evenness;
- `probe`: what an encoder's features tell, after joint training or after its own;
- `decompose`: redundant, unique and synergistic information of two features about a label
  (Bertschinger et al. 2014; Liang et al. 2023);
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

from m4.eval.specialisation import mutual_information
from m4.types import Array


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
    """In bits. `unique` is of the first and of the second feature."""

    redundant: float
    unique: tuple[float, float]
    synergy: float


def decompose(joint_XZY: np.ndarray, *, num_steps: int = 200) -> Information:
    """Partial information of X and Z about Y.

    q has the pairwise marginals (X, Y) and (Z, Y) of the joint and the largest H(Y | X, Z). It
    minimises the divergence of q from r(x, z) uniform in y, with r its own marginal: r and q are
    improved in turn, q by fitting its two marginals.
    """
    p = np.asarray(joint_XZY, np.float64) / np.sum(joint_XZY)
    p_xy, p_zy = p.sum(1), p.sum(0)
    q = np.einsum("xy,zy->xzy", p_xy, p_zy) / np.maximum(p.sum((0, 1)), 1e-300)
    for _ in range(num_steps):
        q = np.broadcast_to(q.sum(2, keepdims=True), q.shape) * (q > 0)
        for _ in range(20):
            q = q * _ratio(p_xy, q.sum(1))[:, None]
            q = q * _ratio(p_zy, q.sum(0))[None]
    whole, least = (bits(joint.reshape(-1, joint.shape[2])) for joint in (p, q))
    first, second = bits(p_xy), bits(p_zy)
    return Information(first + second - least, (least - second, least - first), whole - least)


def bits(joint_XY: np.ndarray) -> float:
    """I(X; Y) of a table of probabilities."""
    return mutual_information(joint_XY)[0] / np.log(2)


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
