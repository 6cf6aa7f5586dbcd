"""The train step of a configuration compiled on virtual devices, and what its program says."""

import re
from collections import Counter
from pathlib import Path

import jax
import numpy as np

from m4 import config as configs
from m4 import sharding
from m4.config import code
from m4.data.batch import empty
from m4.run import programs, setup

KINDS = "all-to-all|all-gather|all-reduce|reduce-scatter|collective-permute"


def compile_step(words, sizes, rows, spec=None):
    """(model, compiled step) of a command line's configuration on a mesh of `sizes`."""
    flags = [f"--config.train.batch_size={rows}", f"--config.eval.batch_size={rows}"]
    config = configs.load(configs.parse([*words, *flags]))
    mesh = sharding.make_mesh(sizes)
    if spec is None:
        spec = code.data_module(config.data.name).spec(**config.data.options.to_dict())
    model = setup.make_model(config, Path("."), spec, empty(spec, rows), mesh)
    with setup.context(mesh):
        step, _ = programs.compile_step(model, rows)
    return model, step.program


def collectives(text):
    """Counter of (kind, 'f32[8,4]') in a program, loops included."""
    found = re.findall(rf"= (.*?) ({KINDS})(?:-start)?\(", text)
    return Counter((kind, s) for ss, kind in found for s in re.findall(r"\w+\[[\d,]*\]", ss))


def facts(words, sizes, rows, spec=None):
    """FLOPs of a device, bytes of its part of the state and of all parameters, collectives."""
    model, step = compile_step(words, sizes, rows, spec)
    state = sum(
        np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(model.state)
    )
    return {
        "flops": step.cost_analysis()["flops"],
        "state": int(state),
        "params": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(model.state.params)),
        "collectives": collectives(step.as_text()),
    }
