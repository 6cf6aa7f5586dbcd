"""The loop: what it calls and when, resuming bit for bit, stopping, diverging."""

import json

import chex
import jax
import numpy as np
import pytest

from m4 import seal
from m4.errors import DivergedError, Preempted
from m4.train import loop, optim, telemetry
from m4.train.step import init_params, init_state, make_step
from tests import toy

METHOD = toy.Toy(data=toy.SPEC)
TX = optim.make_optimiser("adamw", optim.make_schedule(0.01, steps=6), weight_decay=0.01)


@pytest.fixture(scope="module")
def rig():
    step = make_step(METHOD, TX, seed=0, ema=0.9)
    first = toy.batch(0)
    fresh = jax.jit(lambda: init_state(init_params(METHOD, first, seed=0), TX, ema=0.9))
    state = fresh()
    totals = step.zeros(state, first)
    zeros = jax.device_get(totals)
    compiled = jax.jit(step.apply, donate_argnums=0).lower(state, totals, first).compile()
    return compiled, fresh, lambda: jax.device_put(zeros)


class Recorder:
    """Hooks that remember what was called; `values` are the selection metric per evaluation."""

    def __init__(self, tmp_path, *, resume=0, values=(), stop_at=None):
        self.saved, self.best, self.evaluated = {}, {}, []
        self._values, self._stop_at = list(values), stop_at
        self.writer = telemetry.JsonLines(tmp_path / "metrics.jsonl", resume=resume)
        self._seen = resume

    def hooks(self):
        return loop.Hooks(
            put=self.put,
            evaluate=self.evaluate,
            save=lambda n, state, progress: self.saved.update(
                {n: (jax.device_get(state), progress)}
            ),
            save_best=lambda n, state, value: self.best.update({n: value}),
            writer=self.writer,
            stop=lambda step: self._stop_at is not None and self._seen >= self._stop_at,
        )

    def put(self, batch):
        self._seen += 1
        return batch

    def evaluate(self, state):
        self.evaluated.append(int(state.step))
        value = (
            self._values.pop(0)
            if self._values
            else float(np.abs(state.params["norm"]["scale"]).sum())
        )
        return {"death/auroc": value}


def plan(**changes):
    fields = {"steps": 6, "batch_size": 16, "log_every": 2, "eval_every": 3, "save_every": 3}
    return loop.Plan(**fields | {"select": "death/auroc"} | changes)


def go(rig, recorder, state=None, *, batches=None, start=0, progress=None, **changes):
    step, fresh, zeros = rig
    state = fresh() if state is None else state
    hooks, when = recorder.hooks(), plan(**changes)
    batches = toy.batches(start) if batches is None else batches
    try:
        return loop.run(
            step, state, batches, zeros=zeros, plan=when, hooks=hooks, progress=progress
        )
    finally:
        recorder.writer.close()


def lines(tmp_path):
    """metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "time/" not in k and k != seal.SUM} for row in rows]


def test_calls_and_lines(rig, tmp_path):
    recorder = Recorder(tmp_path, values=[0.7, 0.6])
    state = go(rig, recorder)
    assert recorder.evaluated == [3, 6]
    assert list(recorder.saved) == [3, 6]
    assert recorder.best == {3: 0.7}  # 0.6 at step 6 isn't better
    assert recorder.saved[6][1] == {"best": 0.7, "evaluated": 6}
    assert [row["step"] for row in lines(tmp_path)] == [2, 3, 3, 4, 6, 6]
    assert int(state.step) == 6
    times = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert times["time/examples_per_s"] > 0 and 0 <= times["time/input_wait"] <= 1


def test_the_last_step_can_be_chosen_whatever_its_value(rig, tmp_path):
    recorder = Recorder(tmp_path, values=[0.7, 0.6])
    go(rig, recorder, choose="last")
    assert recorder.best == {3: 0.7, 6: 0.6}


def test_a_lower_error_is_better(rig, tmp_path):
    assert loop.better("los/mae", 1.0, 2.0) and not loop.better("los/mae", 3.0, 2.0)
    assert loop.better("death/auroc", 0.6, 0.5) and loop.better("death/auroc", 0.1, None)
    assert not loop.better("death/auroc", float("nan"), None)


def test_resumed_run_equals_uninterrupted_run_bit_for_bit(rig, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = Recorder(tmp_path / "a")
    end = go(rig, whole)
    first = Recorder(tmp_path / "b")
    go(rig, first, steps=3)
    # The run died after step 3's checkpoint but had already written a line for step 4.
    with open(tmp_path / "b" / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "train/loss": 123.0}\n')
    state, progress = first.saved[3]
    second = Recorder(tmp_path / "b", resume=3)
    resumed = go(rig, second, jax.device_put(state), start=3, progress=progress)
    chex.assert_trees_all_equal(end, resumed)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


def test_stop_saves_and_the_missed_evaluation_is_made_up(rig, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    end = go(rig, Recorder(tmp_path / "a"))
    first = Recorder(tmp_path / "b", stop_at=3)
    with pytest.raises(Preempted, match="step 3"):
        go(rig, first)
    assert first.evaluated == [] and list(first.saved) == [3]
    state, progress = first.saved[3]
    second = Recorder(tmp_path / "b", resume=3)
    resumed = go(rig, second, jax.device_put(state), start=3, progress=progress)
    assert second.evaluated == [3, 6]
    chex.assert_trees_all_equal(end, resumed)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


def test_diverged_after_ten_bad_steps_names_the_term(rig, tmp_path):
    def poisoned():
        for step, batch in enumerate(toy.batches()):
            if step >= 4:
                batch.targets["los"].value[:] = np.nan
            yield batch

    recorder = Recorder(tmp_path)
    rare = {"steps": 40, "log_every": 5, "eval_every": 100, "save_every": 100}
    with pytest.raises(DivergedError, match="task/los") as error:
        go(rig, recorder, batches=poisoned(), **rare)
    assert "task/death" not in str(error.value)
    assert [row["train/skipped"] for row in lines(tmp_path)] == [1, 5, 5]
    assert recorder.saved == {}  # the last good checkpoint stays the newest


def test_an_interrupted_evaluation_saves_and_is_made_up(rig, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    end = go(rig, Recorder(tmp_path / "a"), eval_every=4)

    class Interrupted(Recorder):
        def evaluate(self, state):
            if int(state.step) == at:
                raise loop.Interrupted
            return super().evaluate(state)

    state, progress, start = None, None, 0
    for at in (4, 6):  # on the way, and at the very end
        recorder = Interrupted(tmp_path / "b", resume=start)
        with pytest.raises(Preempted, match=f"step {at}, saved"):
            go(rig, recorder, state, start=start, progress=progress, eval_every=4)
        state, progress = recorder.saved[at]
        assert progress["evaluated"] == (0 if at == 4 else 4)
        state, start = jax.device_put(state), at
    last = Recorder(tmp_path / "b", resume=6)
    chex.assert_trees_all_equal(end, go(rig, last, state, start=6, progress=progress))
    assert last.evaluated == [6] and last.saved[6][1]["evaluated"] == 6
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


def test_nothing_is_compiled_while_the_loop_runs(rig, tmp_path):
    compiled = []

    def listen(name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    state = jax.block_until_ready(rig[1]())
    jax.monitoring.register_event_duration_secs_listener(listen)
    jax.jit(lambda x: x * 3.25)(1.5)
    assert len(compiled) == 1  # the listener hears a compile when there is one
    go(rig, Recorder(tmp_path, values=[0.1, 0.2]), state)
    assert len(compiled) == 1
