"""Which updates a run accepts, and what it says of those it refuses.

`W` steps of history. The jitted step calls `accept`; everything below it runs on the host, after
a run has given up.
"""

import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from m4.train import digest
from m4.types import Array

LOSS_SPREADS = 6.0  # median absolute deviations above the median
NORM_FACTOR = 10.0  # times the median
MAX_ROWS = 16  # row numbers that a message lists


@flax.struct.dataclass
class History:
    """Losses and gradient norms of the last accepted steps, NaN until there are that many."""

    losses_W: Array
    norms_W: Array


def empty(window: int) -> History | None:
    """History of no steps; None for `window` 0, which turns the spike guard off."""
    if not window:
        return None
    nans_W = jnp.full((window,), jnp.nan, jnp.float32)
    return History(nans_W, jnp.copy(nans_W))


def accept(
    history: History | None, loss: Array, norm: Array
) -> tuple[Array, Array, History | None]:
    """(update is taken, refused as a spike, history after this step).

    Refused is what is not finite and, once the history is full, a loss above its median + 6
    median absolute deviations or a gradient norm above 10 times its median. A loss that never
    varied judges nothing. Refused steps leave the history as it was.
    """
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    if history is None:
        return finite, jnp.zeros((), bool), None
    middle = jnp.median(history.losses_W)  # NaN until full, and a comparison with NaN is false
    spread = jnp.median(jnp.abs(history.losses_W - middle))
    high = (spread > 0) & (loss > middle + LOSS_SPREADS * spread)
    steep = norm > NORM_FACTOR * jnp.median(history.norms_W)
    spike = finite & (high | steep)
    ok = finite & ~spike

    def push(old_W, value):
        return jnp.where(ok, jnp.append(old_W[1:], value), old_W)

    return ok, spike, History(push(history.losses_W, loss), push(history.norms_W, norm))


def all_finite(tree: Any) -> Array:
    """Whether every number of a tree is finite; whole numbers are.

    Their sum is not, if one is not, and a CPU computes it 7 times as fast as `isfinite(x).all()`,
    which makes an array of booleans. False, too, where finite numbers add up to more than 3e38.
    """
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.isfinite(jnp.stack([jnp.sum(x) for x in leaves] or [jnp.zeros(())])).all()


def nonfinite_leaves(tree: Any) -> dict[str, np.ndarray]:
    """Name of every array with a number that is not finite -> where, on the host."""
    found = {}
    for name, leaf in digest.named(tree).items():
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            continue  # another process has it
        array = np.asarray(leaf)
        inexact = jnp.issubdtype(array.dtype, jnp.inexact)  # NumPy's own does not know bfloat16
        bad = ~np.isfinite(array) if inexact else np.zeros(1, bool)
        if bad.any():
            found[name] = bad
    return found


def rows_of(batch: Any) -> str:
    """The rows of a host batch that hold a non-finite number, else all: "rows 3, 17 of ..."."""
    uid, found = np.asarray(batch.uid), nonfinite_leaves(batch)
    bad = np.zeros(len(uid), bool)
    for where in found.values():
        bad |= where.reshape(len(uid), -1).any(1)
    chosen = uid[bad if bad.any() else np.asarray(batch.weight) > 0]
    listed = ", ".join(map(str, chosen[:MAX_ROWS])) + (", ..." if len(chosen) > MAX_ROWS else "")
    fields = f" (not finite: {', '.join(found)})" if found else ""
    return f"rows {listed} of the train split{fields}"


def culprit(gradient: Callable[..., Any], params: Any, batch: Any, step: int) -> str:
    """Runs the loss and gradient of one step again and names what made the first bad number."""
    damaged = nonfinite_leaves(params)
    if damaged:
        return f"the parameters themselves are not finite: {', '.join(list(damaged)[:4])}"
    for what, checks in (("nan", jax.debug_nans), ("inf", jax.debug_infs)):
        try:
            with checks(True), _quiet():
                jax.block_until_ready(gradient(params, batch, jnp.int32(step)))
        except FloatingPointError as error:
            primitive = str(error).split(" encountered in ")[-1].split(".")[0].split("\n")[0]
            return f"the first {what} comes out of {primitive}{_place(error)}"
    return "nothing is wrong with it in a second run from the parameters of now"


def reasons(nonfinite: Mapping[str, Any], spikes: int) -> str:
    """Why steps were refused, by the names of the loss terms."""
    names = [name for name, count in nonfinite.items() if count]
    words = [f"{', '.join(names)} was not finite"] if names else []
    words += ["the loss or its gradient jumped"] if spikes else []
    return " and ".join(words)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """JAX says on standard output that it runs a function again; the message here is enough."""
    with open("/dev/null", "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _place(error: BaseException) -> str:
    """The innermost line of ours that an error went through, in brackets."""
    root = Path(__file__).parents[1]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _within(f.filename, root)]
    frames = [f for f in frames if not f.filename.startswith(str(root / "train"))]
    if not frames:
        return ""
    last = frames[-1]
    where = Path(last.filename).relative_to(root.parent)
    return f" ({where}:{last.lineno}, {last.name})"


def _within(filename: str, root: Path) -> bool:
    return filename.startswith(f"{root}/")
