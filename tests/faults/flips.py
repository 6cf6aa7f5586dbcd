"""Bits flipped and files cut in checkpoints: a restore must give right bits or an older step.

Two steps are saved; a file of the newer one is damaged. Survived: the newer step came back bit for
bit (the damage touched nothing that matters), or it was set aside and the older one came back
bit for bit, within `LIMIT` seconds. The `best` folder and a run's own state go through the same
code.
"""

import contextlib
import io
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from m4 import sharding
from m4.errors import UserError
from m4.train.checkpoint import Checkpoints, abstract
from tests.faults.harness import Bench, Outcome

LIMIT = 2.0  # seconds of this process for a restore that has to fall back

Damage = Callable[[Path, random.Random], None]


def bits(bench: Bench) -> Outcome:
    """One bit of one file, each bit of the step as likely as any other."""
    return _trials(bench, [flip], bench.number(100, 2000))


def cuts(bench: Bench) -> Outcome:
    """One file cut short, emptied or deleted."""
    return _trials(bench, [_truncate, _empty, _delete], bench.number(20, 200))


def flip(path: Path, rng: random.Random) -> None:
    """Flips one bit of a file."""
    data = bytearray(path.read_bytes())
    place = rng.randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)


def _trials(bench: Bench, damages: list[Damage], count: int) -> Outcome:
    rng = random.Random(bench.seed)
    checkpoints = Checkpoints(bench.work / "steps", keep=2)
    states = {step: _state(step) for step in (1, 2)}
    for step, state in states.items():
        checkpoints.save(step, state, {"step": step})
    checkpoints.wait()
    one = sharding.replicated(sharding.make_mesh())
    like = abstract(states[1], jax.tree.map(lambda _: one, states[1]))
    files = sorted(p for p in (bench.work / "steps/2").rglob("*") if p.is_file())
    sizes = [p.stat().st_size for p in files]
    caught = lost = 0
    slowest = 0.0
    for _ in range(count):
        weights = sizes if damages == [flip] else None
        path = rng.choices(files, weights)[0]
        before = path.read_bytes()
        rng.choice(damages)(path, rng)
        start = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):  # a warning each
            step = _restored(checkpoints, like, states)
        taken = time.process_time() - start  # whatever else the machine is busy with
        slowest = max(slowest, taken)
        aside = [*(bench.work / "steps").glob("2.corrupt-*")]
        caught += step == 1
        lost += step is None or bool(aside) != (step == 1) or taken > LIMIT
        for folder in aside:
            folder.rename(bench.work / "steps/2")
        path.write_bytes(before)
    checkpoints.close()
    note = f"{caught} fell back, {count - caught} harmless, slowest restore {slowest:.2f} s of CPU"
    return Outcome(count, count - lost, lost, note)


def _restored(checkpoints: Checkpoints, like: Any, states: dict[int, Any]) -> int | None:
    """The step whose every bit came back, None if no step's did."""
    try:
        state, note = checkpoints.restore(like)
    except UserError:
        return None
    right = states[note["step"]]
    same = jax.tree.map(lambda a, b: _bytes(a) == _bytes(b), state, right)
    return note["step"] if all(jax.tree.leaves(same)) else None


def _state(seed: int) -> dict[str, Any]:
    """Weights, moments (one still all zeros), half precision, counters."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(96, 33)).astype(np.float32)
    return {
        "params": {"a": jnp.asarray(weights), "b": jnp.asarray(weights[:5], jnp.bfloat16)},
        "moments": {"a": jnp.zeros((96, 33)), "b": jnp.asarray(weights[0] ** 2)},
        "step": jnp.asarray(seed, jnp.int32),
        "flags": jnp.asarray(rng.random(7) < 0.5),
    }


def _bytes(array: Any) -> bytes:
    return np.asarray(array).tobytes()


def _truncate(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(max(1, len(data)))])


def _empty(path: Path, rng: random.Random) -> None:
    del rng
    path.write_bytes(b"")


def _delete(path: Path, rng: random.Random) -> None:
    del rng
    path.unlink()
