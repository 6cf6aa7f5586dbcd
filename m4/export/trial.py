"""A bundle tried: what its programs say of invented rows, against m4's own program.

Alone and among others a row must be predicted the same; so it is seen, too, whether a prediction is
a function of its row at all.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from m4 import sharding
from m4.audit.random_rows import random_batch
from m4.data.store import layout
from m4.errors import ConfigError
from m4.export import lowering, standalone
from m4.run.setup import Model
from m4.run.workspace import lent
from m4.specs import TaskSpec
from m4.types import Batch

ROWS = 64  # at most, of each bucket
CLOSE = 1e-5  # of a number's size, see `apart`; what differs in rounding alone is some 1e-7


def compare(content: bytes, found: Sequence[tuple[Model, Callable]], rows: int, say) -> None:
    """Raises ConfigError if a member of a bundle predicts something else than its own program.

    `found` are every member's model and compiled function of batches of so many `rows`.
    """
    worst = 0.0
    with lent() as place:  # weights can remember patients
        path = place / "model.m4"
        path.write_bytes(content)
        bundle = standalone.Bundle(path)
        for k, (model, predict) in enumerate(found):
            for number, cut in enumerate(model.cuts):
                batch = random_batch(cut, rows=rows)
                placed = sharding.put_whole(batch, sharding.rows(model.mesh))
                ours, _ = jax.device_get(predict(placed, np.ones(len(cut.modalities), bool)))
                theirs = bundle.call(k, number, _arrays(cut, batch))
                for task in lowering.predicted(cut):
                    own = np.asarray(ours[task.name])[:ROWS]
                    worst = max(worst, apart(task, own, theirs[task.name]))
    if worst > CLOSE:
        raise ConfigError(
            f"method: a row alone is predicted otherwise than among others (by {worst:.2g}), so a"
            " prediction is no function of its row; this model cannot be exported"
        )
    say(f"tried    on invented rows: {worst:.1e} from the run's own program")


def apart(task: TaskSpec, own_NC: np.ndarray, theirs_NC: np.ndarray) -> float:
    """How far predictions are apart at most, in parts of their size: the number's own, or 1.

    Those of a regression are made of `loc` and `scale`, in whose size they are rounded: near 0 the
    number itself would be too small a measure.
    """
    size_NC = np.maximum(1.0, np.abs(own_NC))
    if task.kind == "regression" and task.transform != "log1p":
        size_NC = np.maximum(size_NC, max(abs(task.loc), abs(task.scale)))
    gap_NC = np.abs(own_NC - theirs_NC) / size_NC
    return float(np.nan_to_num(gap_NC, nan=np.inf).max(initial=0.0))


def _arrays(spec: Any, batch: Batch) -> dict[str, dict[str, Any]]:
    return {
        m.name: {part: np.asarray(getattr(batch.inputs[m.name], part))[:ROWS] for part in layout(m)}
        for m in spec.modalities
    }
