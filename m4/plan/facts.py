"""One configuration compiled for described chips, in a process of its own, and what is found.

    python -m m4.plan.facts < request.json    # configuration, topology, partitioned

The product's own functions make the model and compile its step. The process prints one line of
JSON: facts, or what was refused.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from m4.config import plain
from m4.data.batch import empty
from m4.errors import ConfigError, UserError
from m4.plan import closed_form, hlo, topology
from m4.run import devices, preflight, programs, setup
from m4.train import children

LARGEST = 8  # replicated parameters that are named


@dataclasses.dataclass(frozen=True)
class Facts:
    """Of one chip in one step; `model` is the closed form beside them."""

    mesh: dict[str, int]
    idle: int  # chips without work
    rows: int  # of a batch, on all chips
    flops: float  # matrix products
    products: dict[str, float]  # the same by dtype of the operands
    state_bytes: int
    argument_bytes: int
    temporary_bytes: int
    peak_bytes: int
    memory_traffic: float  # bytes read and written, as the compiler counts
    parameters: int  # on all chips together, each once
    parameter_bytes: int
    replicated_bytes: int  # of parameters that no axis splits
    replicated: dict[str, int]  # the largest of them
    collectives: tuple[dict[str, Any], ...]
    callbacks: int
    loops: int
    compile_s: float  # of the processor
    program: str  # whose text the products and collectives are of: 'own', 'virtual', or 'none'
    model: dict[str, Any]


def ask(config: ml_collections.ConfigDict, chips: topology.Topology) -> Facts | str:
    """Facts, or in words why there are none: it does not fit, say. Raises ConfigError.

    Where the program of the chips' own compiler cannot be printed, what is read from its text is
    that of the same step partitioned for as many virtual devices.
    """
    found = _ask(config, chips)
    if isinstance(found, str) or found.program == "own" or chips.compiler == "cpu":
        return found
    other = _ask(config, dataclasses.replace(chips, partitioned=True))
    if isinstance(other, str) or other.program == "none" or other.mesh != found.mesh:
        return found
    read = {name: getattr(other, name) for name in ("flops", "products", "collectives")}
    seconds = found.compile_s + other.compile_s
    return dataclasses.replace(found, **read, program="virtual", compile_s=seconds)


def _ask(config: ml_collections.ConfigDict, chips: topology.Topology) -> Facts | str:
    request = json.dumps(
        {"config": config.to_dict(), "topology": chips.name, "partitioned": chips.partitioned}
    )
    env = os.environ | chips.environment() | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "m4.plan.facts"]
    done = children.run(
        command, env=env, given=request, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    if done.returncode < 0 and chips.compiler == "tpu":
        raise ConfigError(f"--topology={chips.name}: {topology.died(done.returncode)}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        said = last[0] if last else f"ended with {done.returncode}"
        raise ConfigError(f"--topology={chips.name}: the compiler failed: {said}")
    answer = json.loads(lines[-1])
    if "refused" in answer:
        raise ConfigError(*answer["refused"])
    return answer["too_large"] if "too_large" in answer else Facts(**answer)


def find(config: ml_collections.ConfigDict, chips: topology.Topology) -> Facts:
    """Compiles the train step. Raises ConfigError for what the method or the mesh refuses."""
    rows, start = config.train.batch_size, time.process_time()
    described = chips.devices()
    mesh = devices.make_mesh(config, described)
    spec = preflight.schema(config)
    model = setup.make_model(config, Path("."), spec, empty(spec, rows), mesh)
    model = dataclasses.replace(model, cuts=model.cuts[-1:])  # of lengths the longest
    with setup.context(mesh):
        compiled = programs.compile_step(model, rows)[0].program
    idle, seconds = len(described) - mesh.size, time.process_time() - start
    return examine(model, compiled, rows, idle=idle, seconds=seconds)


def examine(model: setup.Model, compiled: Any, rows: int, *, idle: int, seconds: float) -> Facts:
    """Facts of a compiled step; `seconds` of the processor went into it."""
    mesh, params = model.mesh, model.state.params
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
    program = _program(compiled, dict(mesh.shape))
    sizes = {path: np.prod(p.shape, dtype=int) * p.dtype.itemsize for path, p in _named(params)}
    whole = [path for path, p in _named(params) if p.sharding.is_fully_replicated]
    copied = {path: int(sizes[path]) for path in whole}
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    total = arguments + memory.output_size_in_bytes - memory.alias_size_in_bytes + temporary
    largest = sorted(copied.items(), key=lambda pair: -pair[1])[:LARGEST]
    tracked = mesh.devices.flat[0].platform == "tpu"  # others report the arguments alone, or 0
    return Facts(
        mesh=dict(mesh.shape),
        idle=idle,
        rows=rows,
        flops=sum(program.products.values()) if program else float(costs.get("flops", 0)),
        products=program.products if program else {},
        state_bytes=sum(map(closed_form.local_bytes, jax.tree.leaves(model.state))),
        argument_bytes=arguments,
        temporary_bytes=temporary,
        peak_bytes=max(0 if tracked else total, _peak(memory), arguments),
        memory_traffic=float(costs.get("bytes accessed", 0)),
        parameters=sum(int(np.prod(p.shape)) for _, p in _named(params)),
        parameter_bytes=int(sum(sizes.values())),
        replicated_bytes=sum(copied.values()),
        replicated=dict(largest),
        collectives=tuple(map(dataclasses.asdict, program.collectives)) if program else (),
        callbacks=program.callbacks if program else 0,
        loops=program.loops if program else 0,
        compile_s=seconds,
        program="own" if program else "none",
        model=dataclasses.asdict(form(model, rows)),
    )


def form(model: setup.Model, rows: int) -> closed_form.Model:
    """The closed form of a step of `rows`."""
    with setup.context(model.mesh):
        *args, given = programs.like_step(model, rows)
        args = *args, given[0]
        return closed_form.count(model.step.apply, args, model.mesh, model.state.params)


def _program(compiled: Any, mesh: Mapping[str, int]) -> hlo.Program | None:
    """What the program's text says; None where this compiler's text cannot be printed."""
    try:
        return hlo.read(compiled.as_text(), mesh)
    except (RuntimeError, jax.errors.JaxRuntimeError):
        return None


def _peak(memory: Any) -> int:
    return getattr(memory, "peak_memory_in_bytes", 0)


def _named(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(p, simple=True, separator="/"), leaf) for p, leaf in leaves]


def _too_large(error: Exception) -> str | None:
    """What a TPU's compiler says of memory, if that is what it complains of."""
    found = re.search(r"Used ([\d.]+[KMGT]?) of ([\d.]+[KMGT]?) hbm", str(error))
    if found:
        return f"needs {found.group(1)} of {found.group(2)} of memory"
    return "does not fit in memory" if "RESOURCE_EXHAUSTED" in str(error) else None


def main() -> int:
    """Answers one request."""
    os.umask(0o077)
    request = json.load(sys.stdin)
    config = ml_collections.ConfigDict(plain.tuples(request["config"])).lock()
    try:
        chips = topology.parse(request["topology"])
        chips = dataclasses.replace(chips, partitioned=request["partitioned"])
        answer = dataclasses.asdict(find(config, chips))
    except UserError as error:
        answer = {"refused": error.args}
    except jax.errors.JaxRuntimeError as error:
        said = _too_large(error)
        if said is None:
            raise
        answer = {"too_large": said}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
