"""The training loop: iterate, log, evaluate, save. Knows no method, data set or config file."""

import collections
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from m4.errors import DivergedError, Preempted
from m4.specs import LOWER_IS_BETTER
from m4.train import guard
from m4.train.step import State, Totals
from m4.train.telemetry import Writer
from m4.train.watchdog import Watchdog
from m4.types import Batch

IN_FLIGHT = 4  # steps that the host may run ahead

Evaluate = Callable[[State], Mapping[str, float]]


class Interrupted(Exception):
    """Raised by `evaluate` when it was told to stop; a resumed run evaluates again."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """When to do what, in steps."""

    steps: int
    batch_size: int
    log_every: int
    eval_every: int
    save_every: int
    select: str  # the evaluation number that is watched, '<task>/<metric>'
    choose: Literal["best", "last"] = "best"  # evaluated step for which `save_best` is called
    max_bad: int = 10  # skipped steps in a row after which a run has diverged


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What the loop calls. `save(step, state, progress)` and `save_best(step, state, value)`,
    whose value is None where nobody is held out to give one.

    `stop(step)` is asked after every step.
    """

    put: Callable[[Any], Batch]
    evaluate: Evaluate
    save: Callable[[int, State, dict[str, Any]], None]
    save_best: Callable[[int, State, float | None], None]
    writer: Writer
    stop: Callable[[int], bool] = lambda step: False
    explain: Callable[[int, State], list[str]] = lambda step, state: []  # a bad step, in lines
    # What the others get of a state that `step` returns, where that has another form.
    whole: Callable[[State], State] = lambda state: state
    watchdog: Watchdog = Watchdog(0, Path())  # off
    # What an evaluation changes, and a resumed run needs: goes into its progress.
    after: Callable[[Mapping[str, float]], dict[str, Any]] = lambda metrics: {}


def run(
    step: Callable[[State, Totals, Batch], tuple[State, Totals]],
    state: State,
    batches: Iterator[Any],
    *,
    zeros: Callable[[], Totals],
    plan: Plan,
    hooks: Hooks,
    progress: Mapping[str, Any] | None = None,
) -> State:
    """Runs from `state.step` to `plan.steps` and returns the last state.

    Args:
      step: compiled train step.
      state: where to start; its buffers are donated.
      batches: host batches from `state.step` on.
      zeros: fresh totals on the device.
      plan: when to log, evaluate and save.
      hooks: what to call for it.
      progress: what `hooks.save` was given, for a resumed run.

    Numbers are fetched one log interval late, so the host never waits for the device except to
    evaluate, save, or stay at most a few steps ahead. Raises DivergedError after `plan.max_bad`
    skipped steps in a row or once the state itself is not finite (which is never saved),
    Preempted when `hooks.stop(step)` says so (after saving).
    """
    log = _Log(plan, hooks)
    hooks = log.hooks
    totals, running = zeros(), collections.deque()
    first, progress = int(state.step), dict(progress or {"best": None, "evaluated": 0})
    progress = _make_up(first, state, plan, hooks, progress)
    log.restart()
    for number in range(first + 1, plan.steps + 1):
        batch = hooks.put(log.timed(next, batches))
        state, totals = step(state, totals, batch)
        running.append(totals.bad)
        if len(running) > IN_FLIGHT:
            jax.block_until_ready(running.popleft())
        hooks.watchdog.step()
        last = number == plan.steps
        stop = hooks.stop(number) and not last
        evaluate = not stop and (number % plan.eval_every == 0 or last)
        save = number % plan.save_every == 0 or last or stop
        if number % plan.log_every == 0 or evaluate or save:
            log.push(number, totals, state)
            totals = zeros()
        if evaluate or save:
            log.flush(state)
        if evaluate:
            try:
                progress = _evaluate(number, state, plan, hooks, progress)
            except Interrupted:
                save = stop = True
        if save:
            hooks.save(number, state, progress)
        if stop:
            raise Preempted(f"stopped at step {number}, saved; run the same command to go on")
        if evaluate or save:
            log.restart()
    return state


def _make_up(
    first: int, state: State, plan: Plan, hooks: Hooks, progress: dict[str, Any]
) -> dict[str, Any]:
    """The evaluation that a stop prevented, if one did."""
    over = first >= plan.steps
    if not (over or first % plan.eval_every == 0) or progress["evaluated"] >= first:
        return progress
    try:
        progress = _evaluate(first, state, plan, hooks, progress)
    except Interrupted:
        raise Preempted(f"stopped again at step {first}, which is saved") from None
    if over:  # no step will save it
        hooks.save(first, state, progress)
    return progress


def _of_whole(hooks: Hooks) -> Hooks:
    """Hooks that get `hooks.whole` of a state in the place of it."""
    whole = hooks.whole
    return dataclasses.replace(
        hooks,
        evaluate=lambda state: hooks.evaluate(whole(state)),
        save=lambda number, state, progress: hooks.save(number, whole(state), progress),
        save_best=lambda number, state, value: hooks.save_best(number, whole(state), value),
        explain=lambda number, state: hooks.explain(number, whole(state)),
    )


def better(metric: str, value: float, best: float | None) -> bool:
    """Whether `value` of '<task>/<metric>' beats `best`."""
    if not math.isfinite(value):
        return False
    lower = metric.rpartition("/")[2] in LOWER_IS_BETTER
    return best is None or (value < best if lower else value > best)


def _evaluate(
    number: int, state: State, plan: Plan, hooks: Hooks, progress: dict[str, Any]
) -> dict[str, Any]:
    start = time.perf_counter()
    with hooks.watchdog.patient():
        metrics = dict(hooks.evaluate(state))
    scalars = {f"val/{name}": value for name, value in metrics.items()}
    hooks.writer.write_scalars(number, scalars | {"time/eval_s": time.perf_counter() - start})
    value, best = metrics.get(plan.select, math.nan), progress["best"]
    unjudged = not metrics and number == plan.steps  # nobody is held out: the last step is taken
    last = plan.choose == "last" and (math.isfinite(value) or unjudged)
    if last or better(plan.select, value, best):
        hooks.save_best(number, state, None if unjudged else value)
        best = None if unjudged else value
    return {"best": best, "evaluated": number} | hooks.after(metrics)


class _Log:
    """Totals that are still on the device, and where the time went since the last line."""

    def __init__(self, plan: Plan, hooks: Hooks):
        self._plan, self._saving = plan, 0.0
        hooks = _of_whole(hooks)
        timed = {name: self._timed_save(getattr(hooks, name)) for name in ("save", "save_best")}
        self.hooks = dataclasses.replace(hooks, **timed)
        self._pending: tuple[int, int, Totals, dict[str, float]] | None = None
        self.restart()

    def restart(self) -> None:
        """Starts the clock again (after evaluation or saving)."""
        self._clock, self._wait, self._steps = time.perf_counter(), 0.0, 0

    def _timed_save(self, function: Callable) -> Callable:
        """`function` with its time counted as spent in saving; the watchdog waits for it."""

        def timed(*args: Any) -> None:
            start = time.perf_counter()
            with self.hooks.watchdog.patient():
                function(*args)
            self._saving += time.perf_counter() - start

        return timed

    def timed(self, function: Callable, *args: Any) -> Any:
        """Calls `function` and counts the time as waiting for input."""
        start = time.perf_counter()
        result = function(*args)
        self._wait += time.perf_counter() - start
        self._steps += 1
        return result

    def push(self, number: int, totals: Totals, state: State) -> None:
        """Takes the totals up to step `number` and writes those before."""
        self.flush(state)
        seconds = max(time.perf_counter() - self._clock, 1e-9)
        times = {
            "time/examples_per_s": self._steps * self._plan.batch_size / seconds,
            "time/input_wait": self._wait / seconds,
        }
        if self._saving:  # since the last line, and not part of its seconds
            times["time/save_s"], self._saving = self._saving, 0.0
        self._pending = (number, self._steps, totals, times)
        self.restart()

    def flush(self, state: State) -> None:
        """Writes what is pending. Raises DivergedError; `state` is the newest one."""
        if self._pending is None:
            return
        number, steps, totals, times = self._pending
        self._pending = None
        totals = jax.device_get(totals)
        self.hooks.writer.write_scalars(number, scalars(totals, steps) | times)
        if totals.bad >= self._plan.max_bad:
            why = guard.reasons(totals.nonfinite, totals.spikes)
            raise DivergedError(
                f"step {totals.last_bad}: {totals.bad} updates in a row were skipped because {why};"
                " try a lower optim.lr",
                *self.hooks.explain(int(totals.last_bad), state),
            )
        if any(totals.damaged.values()):
            parts = [name for name, count in totals.damaged.items() if count]
            names = ", ".join(list(guard.nonfinite_leaves(self.hooks.whole(state)))[:4])
            raise DivergedError(
                f"step {number}: {', '.join(parts)} of the state not finite ({names}); it is not"
                " saved: run the same command again to go on from the last checkpoint"
            )


def scalars(totals: Totals, steps: int) -> dict[str, float]:
    """Means over the interval; an expert-load vector becomes its coefficient of variation."""
    out: dict[str, float] = {}
    for name, mean in sorted(totals.means.items()):
        value = np.asarray(mean.total) / mean.weight if mean.weight else np.full((), np.nan)
        if value.ndim == 0:
            out[f"train/{name}"] = float(value)
        else:
            out[f"train/{name}_cv"] = float(value.std() / max(value.mean(), 1e-30))
    out["train/skipped"] = steps - round(float(totals.means["loss"].weight))
    out["train/spikes"] = int(totals.spikes)
    return out
