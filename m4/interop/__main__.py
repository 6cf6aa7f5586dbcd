"""`python -m m4.interop import --method=fusemoe --torch=ckpt.pt --config=... --out=DIR`."""

from m4 import cli

if __name__ == "__main__":  # above what takes long to import
    cli.alone("interop.__main__")

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import jax
import ml_collections
from flax import traverse_util

from m4 import atomic, local, methods
from m4 import config as configs
from m4.config import code, trust
from m4.errors import MAX_LINE, ConfigError
from m4.interop import convert, state_dicts
from m4.modes import eval as eval_mode
from m4.nn.torch_table import Layout
from m4.run import trained
from m4.run.setup import Setup, make_setup
from m4.run.workspace import prepare, use_cache
from m4.train import retention, workdir
from m4.train.checkpoint import Checkpoints

# Options on which no tensor's shape depends.
UNTOLD = ("num_heads", "vit_heads", "moe.top_k", "temperature")
FOLDER = Path(methods.__file__).parent
USAGE = """usage: python -m m4.interop import --method=NAME --torch=FILE --config=FILE --out=DIR
       python -m m4.interop export --method=NAME --torch=FILE --workdir=DIR [--config=...]

  --method        {names}
  --torch         the PyTorch file: .safetensors, or what torch.save wrote
  --config        FILE[:VARIANT] as of m4.main, with --config.a.b=v for single fields
  --out           new work directory for `m4.main --mode=eval --workdir=DIR`
  --workdir       work directory whose best checkpoint is exported

exit codes: 0 done, 2 usage or configuration, 3 the file does not fit (nothing is written),
            4 no usable checkpoint, 6 could not save, 75 told to stop"""


@dataclasses.dataclass(frozen=True)
class Job:
    """A parsed command line."""

    command: str
    method: str
    file: Path
    folder: Path  # the work directory read or written
    flags: configs.Flags


def names() -> tuple[str, ...]:
    """The methods whose folder has a `torch_layout.py`."""
    return tuple(sorted(path.parent.name for path in FOLDER.glob("*/torch_layout.py")))


def layout_of(name: str) -> Callable[..., Layout]:
    """The function `layout` of a method's `torch_layout.py`."""
    return importlib.import_module(f"m4.methods.{name}.torch_layout").layout


def fidelity_of(name: str) -> str:
    """The fidelity whose class a method's layout is for, as the annotation of its argument says."""
    cls = get_type_hints(layout_of(name))["method"]
    return next(f for f in code.method_modules(name) if code.method_class(name, f) is cls)


def main(args: Sequence[str]) -> int:
    """Runs one command and returns its exit code; a UserError becomes lines on stderr."""
    return cli.guard(run, args)


def run(args: Sequence[str]) -> int:
    """Runs one command. Raises a UserError if it can't."""
    if not args or {"--help", "-h"} & {*args}:
        print(USAGE.format(names=", ".join(names())))
        return 0 if args else 2
    job = parse(args)
    trust.require_of(job.flags)
    config = configs.load(job.flags)
    check(config, job)
    {"import": import_, "export": export}[job.command](config, job)
    return 0


def parse(args: Sequence[str]) -> Job:
    """Arguments -> Job. Raises ConfigError."""
    command, *rest = args
    if command not in ("import", "export"):
        raise ConfigError(f"{command}: must be import or export; see --help")
    folder = {"import": "out", "export": "workdir"}[command]
    own = dict.fromkeys(("method", "torch", folder), "")
    others = []
    for arg in rest:
        name, _, value = arg.removeprefix("--").partition("=")
        if arg.startswith("--") and name in own:
            own[name] = value
        else:
            others.append(arg)
    lines = [f"--{name}: is missing, --{name}=..." for name, value in own.items() if not value]
    if own["method"] and own["method"] not in names():
        lines.append(f"--method={own['method']}: must be one of {', '.join(names())}")
    if lines:
        raise ConfigError(*lines)
    file, work = (local.folder(own[name], f"--{name}") for name in ("torch", folder))
    flags = configs.parse([*others, f"--workdir={work}"])
    if command == "import" and flags.config is None:
        raise ConfigError("--config: is missing, --config=FILE[:VARIANT]")
    return Job(command, own["method"], file, work, flags)


def check(config: ml_collections.ConfigDict, job: Job) -> None:
    """Raises ConfigError if the configuration is of another method, fidelity or layout."""
    lines, fidelity = [], config.method.get("fidelity", "m4")
    fits = fidelity_of(job.method)
    if config.method.name != job.method:
        lines.append(f"--method={job.method}: but method.name={config.method.name!r}")
    elif fidelity != fits:
        lines.append(
            f"method.fidelity={fidelity!r}: the authors' weights fit {fits!r} only;"
            f" add --config.method.fidelity={fits}"
        )
    if config.method.get("scan"):
        lines.append("method.scan=True: the authors' files have layers apart; choose False")
    lines += [
        f"{section}.file={config[section].file!r}: the authors' files hold no such encoder"
        for section in ("text", "image")
        if config[section].file
    ]
    folder = job.folder / "checkpoints"
    begun = any(retention.complete(path) for path in folder.glob("*/"))  # not half written
    if begun if job.command == "import" else job.file.exists():
        flag, taken = ("--out", folder) if job.command == "import" else ("--torch", job.file)
        lines.append(f"{flag}: {taken} exists; choose another")
    if lines:
        raise ConfigError(*lines)


def import_(config: ml_collections.ConfigDict, job: Job) -> None:
    """Writes a work directory with the file's weights as its best checkpoint."""
    file = state_dicts.read(job.file)  # before data are built
    setup, shapes = _setup(config, job)
    make = layout_of(job.method)
    layout = make(setup.method)
    tensors, prefix = convert.without_prefix(layout, file.tensors)
    if "names" in get_type_hints(make):  # where the order of a file's tensors tells something
        layout = make(setup.method, names=list(tensors) if file.ordered else [])
    arrays = convert.to_m4(layout, tensors, _flat(shapes), str(job.file))
    params = traverse_util.unflatten_dict(arrays, sep="/")
    params = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), params, shapes)
    with workdir.locked(job.folder):
        atomic.write(job.folder / "config.json", configs.to_json(config))
        trust.mark(job.folder, config.to_dict())
        trained.keep(setup.data, job.folder)
        best = Checkpoints(job.folder / "checkpoints/best", keep=1)
        note = {"seed": config.seed, "data": setup.data.name, "step": 0, "value": None}
        try:
            best.save(0, {"params": params}, note | {"imported": job.file.name})
            best.wait()
        finally:
            best.close()
    print(f"{len(tensors)} tensors -> {len(arrays)} arrays in {job.folder}")
    for note in (*file.notes, *prefix, *layout.notes):
        print("".join(c if c.isprintable() else " " for c in note)[:MAX_LINE])  # names are a file's
    for why, count in convert.dropped(layout, tensors).items():
        print(f"not taken: {count} tensors: {why}")
    for name in convert.holes(layout, _flat(shapes)):
        print(f"not taken: rows of {name} that these data do not reach; an export has zeros there")
    options = {name: _option(setup.method, name) for name in UNTOLD}
    told = ", ".join(f"{name}={x}" for name, x in options.items() if x is not None)
    print(f"the file cannot tell, and the configuration says: {told}")


def export(config: ml_collections.ConfigDict, job: Job) -> None:
    """Writes the best checkpoint of a work directory under the authors' names."""
    setup, _ = _setup(config, job)
    layout = layout_of(job.method)(setup.method)
    params = jax.device_get(eval_mode.best_params(config, setup, job.folder))
    tensors = convert.to_torch(layout, _flat(params))
    state_dicts.write(job.file, tensors, sections=layout.sections)
    print(f"{len(tensors)} tensors in {job.file}")
    for pattern, why in layout.ignored.items():
        print(f"not written: {pattern}: {why}")
    for name in convert.holes(layout, _flat(params)):
        print(f"zeros: rows of {name} that nothing here reads; keep those of the original")


def _setup(config, job: Job) -> tuple[Setup, Any]:
    """The run's objects and the shapes of the parameters."""
    use_cache(job.folder)
    setup = make_setup(config, prepare(config))
    return setup, setup.state.eval_params


def _option(method: Any, name: str) -> Any:
    """Of a method, or None if it has no such."""
    for part in name.split("."):
        method = getattr(method, part, None)
    return method


def _flat(tree: Any) -> dict[str, Any]:
    return {"/".join(path): x for path, x in traverse_util.flatten_dict(tree).items()}
