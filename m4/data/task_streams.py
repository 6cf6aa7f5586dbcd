"""Task streams: every row of a batch is there for one task.

A schedule deals slots (rows, or whole batches) to tasks; each task walks through the rows that
carry its label in fresh permutations. Task and row of a slot are functions of (seed, slot) alone.

- 'rows': the rows of every batch are dealt out in the given ratio;
- 'batches': every batch has one task, batches are dealt out in the ratio;
- 'sequential': every batch has one task; all batches of a task's pass come before the next
  task's, in the order of the schema (FlexCare's release). Rows left over by a pass begin the
  next one; the release drops them.

Letters: N rows of the split, K tasks, G rows of a global batch.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

HOW = ("rows", "batches", "sequential")
CYCLE = 1000  # slots in which a ratio is realised


class TaskStreams:
    """Which rows a step takes, and for which task."""

    def __init__(
        self,
        tasks: Sequence[str],
        labelled_KN: np.ndarray,
        batch_size: int,
        seed: int,
        *,
        how: str,
        ratio: Mapping[str, float] | None = None,
    ):
        """Deal the slots; `labelled_KN` says which rows carry which label.

        `ratio` holds relative shares of the tasks, equal if empty, 0 where a task is left out.

        Raises:
          ValueError: an unknown kind or task, a negative share, a task without labels.
        """
        if how not in HOW:
            raise ValueError(f"streams={how!r}; choose one of {', '.join(HOW)}")
        share_K = _shares(tasks, labelled_KN, ratio or {})
        self._unit = 1 if how == "rows" else batch_size
        self._batch_size, self._seed = batch_size, seed
        self._rows = [np.flatnonzero(labelled_N) for labelled_N in labelled_KN]
        if how == "sequential":
            batches_K = np.maximum(labelled_KN.sum(-1) // batch_size, 1) * (share_K > 0)
            self._cycle = np.repeat(np.arange(len(tasks)), batches_K)
        else:
            self._cycle = _interleave(share_K)
        self._count_K = np.bincount(self._cycle, minlength=len(tasks))
        dealt_SK = np.cumsum(self._cycle[:, None] == np.arange(len(tasks)), axis=0)
        self._before = dealt_SK[np.arange(len(self._cycle)), self._cycle] - 1
        self._epoch = functools.lru_cache(maxsize=4 * len(tasks))(self._permutation)

    def take(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows i64 and tasks i32 of positions in the endless stream of rows."""
        lap, place = np.divmod(positions // self._unit, len(self._cycle))
        task = self._cycle[place]
        turn = lap * self._count_K[task] + self._before[place]
        element = turn * self._unit + positions % self._unit
        return np.array([*map(self._row, task, element)], np.int64), task.astype(np.int32)

    def _row(self, task: int, element: int) -> int:
        epoch, position = divmod(int(element), len(self._rows[task]))
        return self._epoch(int(task), epoch)[position]

    def _permutation(self, task: int, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, epoch, task)).permutation(self._rows[task])


def _shares(tasks, labelled_KN, ratio) -> np.ndarray:
    unknown = sorted({*ratio} - {*tasks})
    if unknown:
        raise ValueError(f"stream_ratio: {unknown} are no tasks; tasks are {', '.join(tasks)}")
    share_K = np.array([ratio.get(task, 0.0 if ratio else 1.0) for task in tasks], float)
    if not (np.isfinite(share_K).all() and (share_K >= 0).all() and share_K.any()):
        raise ValueError(f"stream_ratio={dict(ratio)}: shares must be at least 0, one above")
    empty = [t for t, s, n in zip(tasks, share_K, labelled_KN.sum(-1), strict=True) if s and not n]
    if empty:
        raise ValueError(f"task streams: no row carries a label of {', '.join(empty)}")
    return share_K


def _interleave(share_K: np.ndarray) -> np.ndarray:
    """Task of every slot of a cycle: counts by largest remainder, each task evenly spread."""
    exact_K = share_K / share_K.sum() * CYCLE
    count_K = np.maximum(np.floor(exact_K), share_K > 0).astype(int)
    lack = CYCLE - count_K.sum()
    if lack > 0:
        count_K[np.argsort(count_K - exact_K)[:lack]] += 1
    tasks = np.repeat(np.arange(len(count_K)), count_K)
    place = np.concatenate([(np.arange(n) + 0.5) / n for n in count_K if n])
    return tasks[np.argsort(place, kind="stable")]
