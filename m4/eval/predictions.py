"""What a sweep yields, on the host. Free of JAX.

Letters: S modality subsets, N rows, M modalities, E experts, C labels, classes or values,
L label columns (C, but 1 for multiclass, 2 for
survival: time and event), R rows whose routing was kept.
"""

import dataclasses

import numpy as np

from m4.specs import DataSpec, TaskSpec

SCORED_KINDS = ("binary", "multilabel", "multiclass", "regression", "survival", "segmentation")


@dataclasses.dataclass(frozen=True)
class LayerRouting:
    """Routing of one MoE layer on the complete input, summed over the split.

    `by_modality` counts assignments; `entropy` (nats) and `dropped` (share of assignments) are
    means weighted by each batch's assignments; None where the layer does not report them.
    `by_row` holds the counts of R rows, drawn at random so that memory stays bounded.
    """

    by_modality: np.ndarray | None  # f64[M, E]
    load: np.ndarray  # f64[E]
    entropy: float | None
    dropped: float | None
    by_row: np.ndarray | None  # f32[R, M, E]
    rows: np.ndarray | None = None  # i64[R], which of the N rows; None: the first R
    # Assignments of each row, and those that no expert took, f32[N, 2]; None: none can be lost.
    lost: np.ndarray | None = None

    def kept(self) -> np.ndarray:
        """The rows of `by_row`, i64[R]."""
        some = 0 if self.by_row is None else len(self.by_row)
        return np.arange(some) if self.rows is None else self.rows


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions of every row of a split under every modality subset.

    `patient` stays in memory: it is the unit of the bootstrap and never written to a result.
    `label_mask` is False where the label is unknown or belongs to another task's row.
    """

    subsets: np.ndarray  # bool[S, M]
    uid: np.ndarray  # i64[N]
    patient: np.ndarray  # [N]
    present: np.ndarray  # bool[N, M]
    prediction: dict[str, np.ndarray]  # task -> f32[S, N, C]; of a map its Dice score
    label: dict[str, np.ndarray]  # task -> f64[N, L], 0 where unknown; of a map its mean
    label_mask: dict[str, np.ndarray]  # task -> bool[N, L]
    counted: np.ndarray  # bool[S, N]
    routing: dict[str, LayerRouting]
    fold: np.ndarray | None = None  # [N], which network predicted a row; None: the same for all
    # group column -> category of each row, str[N], '' where unknown; beside the data, no input
    groups: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def full(self) -> int:
        """Index of the subset that keeps every modality; ValueError if it was not swept."""
        return self.index(np.ones(self.subsets.shape[1], bool))

    def index(self, keep_M: np.ndarray) -> int:
        """Index of the subset `keep_M`; ValueError if it was not swept."""
        (found,) = np.nonzero((self.subsets == keep_M).all(axis=1))
        if not found.size:
            raise ValueError(f"subset {keep_M} is not one of the {len(self.subsets)} swept")
        return int(found[0])

    def scored(self, spec: DataSpec, task: TaskSpec, subset: int) -> np.ndarray:
        """Label cells that count for `task` under `subset`, bool[N, L].

        A row counts when something is present after masking, and so is all that the task needs.
        """
        return self.label_mask[task.name] & self.asked(spec, task, subset)[:, None]

    def asked(self, spec: DataSpec, task: TaskSpec, subset: int) -> np.ndarray:
        """Rows that have something under `subset`, and all that the task needs, bool[N]."""
        row_N = self.counted[subset].copy()
        for name in task.needs:
            m = spec.modality_names.index(name)
            row_N &= self.present[:, m] & self.subsets[subset, m]
        return row_N
