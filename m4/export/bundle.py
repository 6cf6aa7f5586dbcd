"""A work directory -> a bundle, tried before it is written.

The file is made of stored members with a fixed date: the same model gives the same bytes, but for
the date of its card, and so the same digest. Before it gets its name its predictions are compared
with those of m4's own program; one that differs is not written.
"""

import dataclasses
import functools
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from m4 import USE, __version__, atomic, local
from m4 import config as configs
from m4.config import Flags, trust
from m4.data import set_aside
from m4.data.apply import Trained
from m4.data.batch import empty
from m4.data.manifest import spec_from
from m4.errors import CheckpointError, ConfigError
from m4.eval.predictions import Predictions
from m4.export import card, contract, decisions, lowering, standalone
from m4.export.trial import compare
from m4.modes import eval as eval_mode
from m4.run import preflight, programs, trained
from m4.run.devices import make_mesh
from m4.run.setup import Model, context, make_model
from m4.run.workspace import open_incomplete, prepare, use_cache
from m4.specs import DataSpec
from m4.train import retention

Say = Callable[[str], Any]
DATE = (1980, 1, 1, 0, 0, 0)  # the first that a ZIP file can tell


def write(
    workdir: str | Path,
    to: str | Path,
    *,
    platforms: Sequence[str] = lowering.PLATFORMS,
    trust_code: bool = False,
    say: Say = lambda line: None,
) -> str:
    """Writes a bundle of the best parameters of a run; returns its digest.

    Args:
      workdir: of a run, or of a fold of a cross-validation.
      to: the file.
      platforms: what it is to run on, of 'cpu', 'cuda', 'tpu' and 'rocm'.
      trust_code: as of `m4.load`.
      say: is told what happens, by lines.

    Raises a `m4.errors.UserError`: ConfigError for a model whose predictions are no function of one
    row, or that cannot be lowered; CheckpointError without parameters.
    """
    folder = local.folder(str(workdir), "workdir")
    target = local.folder(str(to), "out")
    if target.is_dir() or not target.parent.is_dir():
        raise ConfigError(f"out={target}: must be a file in a folder that is there")
    content = pack(folder, platforms=platforms, trust_code=trust_code, say=say)
    with atomic.replaced(target) as partial:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(partial, flags, 0o666), "wb") as file:
            file.write(content)
    digest = standalone.digest_of(target)
    say(f"bundle   {target}, {len(content):,} bytes, sha256 {digest}")
    return digest


def pack(folder: Path, *, platforms: Sequence[str], trust_code: bool, say: Say) -> bytes:
    """A bundle's bytes, compared with m4's own predictions. See `write`."""
    config = _config(folder, trust_code)
    known = trained.read(folder)
    spec = spec_from(known.manifest["schema"])
    method = lowering.portable(config, spec)  # what it refuses comes first
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        use_cache(folder)
    rows, mesh = config.eval.batch_size, make_mesh(config)
    place = Path(known.manifest["fingerprint"])  # of the checkpoints' data; never read
    model = make_model(config, place, spec, empty(spec, rows), mesh)
    params = eval_mode.best_params(config, model, folder, say=say)
    plain = jax.tree.map(np.asarray, params)
    cuts, precision = model.cuts, config.train.precision
    lowered = lowering.lower(method, spec, cuts, plain, precision, platforms)
    say(f"lowered  {', '.join(platforms)}; {len(cuts)} program{'s' * (len(cuts) > 1)}")
    with context(mesh):
        predict = functools.partial(programs.compile_predict(model, rows), params)
        apart = _calibration(config, model, predict)
        schema = _schema(config, folder, spec, known, lowered, apart)
        results = decisions.results(folder)
        if results is None:
            say("m4: warning: no results of the test split: no cuts, and a card without scores")
        worded = _worded(config, spec)
        told = card.make(config, folder, worded, known, results)
        content = _zipped(schema, told, card.markdown(told, worded), lowered, [plain])
        compare(content, model, predict, rows, say)
    return content


def _config(folder: Path, trust_code: bool) -> ml_collections.ConfigDict:
    """The stored configuration of a run that has parameters."""
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder}: holds no run (no config.json)")
    if trained.per_fold(folder):
        raise CheckpointError(f"{folder}: holds a model per fold; export {folder / 'fold_0'}")
    if not retention.complete(folder / "checkpoints/best"):
        raise CheckpointError(f"{folder}: holds no trained parameters; --mode=train trains them")
    flags = Flags(workdir=folder, trust_code=trust_code)
    trust.require_of(flags)
    return configs.load(flags)


def _calibration(config, model: Model, predict) -> Predictions | None:
    """Predictions of the patients set aside; None for a run without."""
    if not config.data.calibration:
        return None
    data = prepare(config)
    if data.name != model.data.name:
        raise CheckpointError(f"{data}: is not what this model was trained on; see --mode=check")
    store = open_incomplete(config, data, set_aside.SPLIT)
    whole = np.ones((1, len(model.spec.modalities)), bool)
    return eval_mode.sweep(config, model, store, predict, whole)


def _worded(config, spec: DataSpec) -> DataSpec:
    """The schema with the words that the data set has for it, if it can be asked."""
    try:
        said = preflight.schema(config)
    except (ConfigError, OSError):
        return spec
    modalities = {m.name: m for m in said.modalities}
    tasks = {t.name: t for t in said.tasks}
    return dataclasses.replace(
        spec,
        about=said.about,
        modalities=tuple(_with(m, modalities.get(m.name)) for m in spec.modalities),
        tasks=tuple(_with(t, tasks.get(t.name)) for t in spec.tasks),
    )


def _with(own: Any, said: Any) -> Any:
    """A modality or task with the words of another of the same name and features."""
    if said is None or getattr(own, "features", ()) != getattr(said, "features", ()):
        return own
    words = [f for f in ("title", "titles", "units", "unit", "definition") if hasattr(own, f)]
    return dataclasses.replace(own, **{name: getattr(said, name) for name in words})


def _schema(config, folder: Path, spec, known: Trained, lowered, apart) -> dict[str, Any]:
    worded, document = _worded(config, spec), decisions.results(folder)
    sets = decisions.prediction_sets(apart, spec, config.eval.alpha) if apart is not None else {}
    tasks = []
    for t in lowering.predicted(worded):
        one = contract.task(t) | decisions.cuts(t, document)
        tasks.append(one | ({"conformal": sets[t.name]} if t.name in sets else {}))
    return {
        "format": standalone.FORMAT,
        "use": USE,
        "m4": __version__,
        "jax": jax.__version__,
        "method": config.method.name,
        "hours": spec.hours,
        "modalities": contract.modalities(worded, known, config.data.name),
        "tasks": tasks,
        "members": [{"file": "member_0.bin", "scaling": contract.scaling(spec, known)}],
        "program": {
            **lowered.program,
            "cuts": [
                {**cut, "file": f"program_{i}.stablehlo"}
                for i, cut in enumerate(lowered.program["cuts"])
            ],
        },
    }


def _zipped(schema, told, text: str, lowered, members: Sequence[Any]) -> bytes:
    parts: dict[str, bytes] = {
        "__main__.py": Path(standalone.__file__).read_bytes(),
        "schema.json": json.dumps(schema, ensure_ascii=False).encode(),
        "card.json": json.dumps(told, ensure_ascii=False, indent=1).encode(),
        "card.md": text.encode(),
    }
    parts |= {f"program_{i}.stablehlo": code for i, code in enumerate(lowered.modules)}
    for i, params in enumerate(members):
        leaves = jax.tree.leaves(params)
        parts[f"member_{i}.bin"] = b"".join(np.ascontiguousarray(x).tobytes() for x in leaves)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as file:
        for name, content in parts.items():
            file.writestr(zipfile.ZipInfo(name, DATE), content)
        file.comment = standalone.MARK + b"0" * 64
    body = made.getvalue()[:-64]
    return body + hashlib.sha256(body).hexdigest().encode()
