"""One train step of FuseMoE enters few files: what a reader has to open to follow it."""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

import m4
from m4.methods.fusemoe.model import FuseMoE
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from m4.train import optim
from m4.train.step import init_params, init_state, make_step
from tests import properties

SPEC = DataSpec(
    modalities=(
        ModalitySpec("vitals", "series", (5, 3)),
        ModalitySpec("notes", "vectors", (2, 5)),
        ModalitySpec("static", "table", (4,)),
        ModalitySpec("icd", "codes", (3,), dtype="int32", vocab=7),
    ),
    tasks=(TaskSpec("death", "binary"),),
)
LIMIT = 20


def entered(function) -> list[str]:
    """Files of m4 whose functions run during a call, in the order of first entry.

    Module bodies and class bodies do not count, nor do the methods that dataclasses write.
    """
    root, files = f"{Path(m4.__file__).parent}/", {}

    def note(frame, event, arg):
        del arg
        name, file = frame.f_code.co_name, frame.f_code.co_filename
        if event == "call" and name != "<module>" and file.startswith(root):
            files.setdefault(file.removeprefix(root))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
    return list(files)


def test_a_train_step_enters_at_most_twenty_files():
    moe = dataclasses.replace(FuseMoE.moe, num_experts=4, hidden=4)
    method = FuseMoE(SPEC, moe, width=8, num_queries=3, embed_time=4, num_heads=2)
    batch = properties.random_batch(SPEC)
    tx = optim.make_optimiser("adamw", lambda _: 1e-3, clip_norm=1.0)
    state = jax.eval_shape(
        lambda: init_state(init_params(method, batch, seed=0), tx, ema=0.0, spike_window=0)
    )
    step = make_step(method, tx, seed=0)
    totals = jax.eval_shape(step.zeros, state, batch)
    jax.clear_caches()  # the gradient's trace is shared with `zeros`
    files = entered(lambda: jax.eval_shape(step.apply, state, totals, batch))
    assert {"train/step.py", "methods/fusemoe/model.py", "moe/layer.py", "types.py"} <= set(files)
    assert len(files) <= LIMIT, "\n".join(files)


def test_entered_counts_each_file_once():
    batch = properties.random_batch(SPEC)
    assert entered(lambda: [batch.present(SPEC) for _ in range(2)]) == ["types.py", "specs.py"]
    assert entered(lambda: jnp.zeros(3)) == []
