"""Which rows of a batch are the same input under several subsets, so that each is asked once.

Under a subset a row is what it has of the modalities that are kept: a patient without notes is the
same input whether notes are kept or not. `pack` finds the distinct inputs of a batch and puts them
side by side into batches of the same shape, each row with a mask of its own. Free of JAX.

Letters: B rows of a batch, S subsets, M modalities, D distinct inputs, n rows under subsets,
K packed batches, W bytes.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Calls:
    """Batches to predict, and where the answer of every row under every subset stands.

    First the batch itself under each of the subsets `plain`, then the packed ones. Answers of all
    are numbered through, B of each.
    """

    plain: tuple[int, ...]
    row_KB: np.ndarray  # i32, of the batch; 0 with nothing kept where a packed batch is filled up
    keep_KBM: np.ndarray  # bool
    place_SB: np.ndarray  # i64

    def __len__(self) -> int:
        return len(self.plain) + len(self.row_KB)


def loop(rows: int, subsets_SM: np.ndarray) -> Calls:
    """Every subset is a call of its own."""
    count, num_modalities = subsets_SM.shape
    return Calls(
        tuple(range(count)),
        np.zeros((0, rows), np.int32),
        np.zeros((0, rows, num_modalities), bool),
        np.arange(count * rows).reshape(count, rows),
    )


def pack(present_BM: np.ndarray, real_B: np.ndarray, subsets_SM: np.ndarray, whole: int) -> Calls:
    """The subset `whole` is a call of its own; other inputs of rows with `real_B` are packed."""
    rows = len(present_BM)
    seen_SBM = present_BM & subsets_SM[:, None]
    other_SB = (seen_SBM != seen_SBM[whole]).any(axis=-1) & real_B
    s_n, row_n = np.nonzero(other_SB)
    place_SB = np.tile(np.arange(rows), (len(subsets_SM), 1))
    if not len(s_n):
        empty = loop(rows, subsets_SM[:0])
        return dataclasses.replace(empty, plain=(whole,), place_SB=place_SB)
    input_nW = np.packbits(seen_SBM[s_n, row_n], axis=1)
    input_nW = np.concatenate([row_n.astype(np.uint32)[:, None].view(np.uint8), input_nW], axis=1)
    input_n = np.ascontiguousarray(input_nW).view(f"V{input_nW.shape[1]}")[:, 0]
    _, first_D, which_n = np.unique(input_n, return_index=True, return_inverse=True)
    place_SB[s_n, row_n] = rows + which_n.reshape(-1)
    row_D, keep_DM = row_n[first_D], subsets_SM[s_n[first_D]]
    packed = -(-len(first_D) // rows)
    spare = packed * rows - len(first_D)
    return Calls(
        (whole,),
        np.pad(row_D, (0, spare)).astype(np.int32).reshape(packed, rows),
        np.pad(keep_DM, ((0, spare), (0, 0))).reshape(packed, rows, -1),
        place_SB,
    )
