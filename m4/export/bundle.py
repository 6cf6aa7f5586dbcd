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
from m4.errors import CheckpointError, ConfigError, SaveError
from m4.eval import averages, calibrated
from m4.eval.predictions import Predictions
from m4.export import card, contract, decisions, lowering, standalone
from m4.export.trial import compare
from m4.modes import eval as eval_mode
from m4.run import beside, members, preflight, trained
from m4.run.devices import make_mesh
from m4.run.setup import Model, context, make_model
from m4.run.workspace import open_split, trained_on, use_cache
from m4.specs import DataSpec
from m4.train import retention, verify

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
      workdir: of a run, an ensemble (its members are averaged), a cross-validation or its fold.
      to: the file.
      platforms: what it is to run on, of 'cpu', 'cuda', 'tpu' and 'rocm'.
      trust_code: as of `m4.load`.
      say: is told what happens, by lines.

    Raises a `m4.errors.UserError`: ConfigError for a model whose predictions are no function of one
    row, or that cannot be lowered, and for a file that is there and no bundle; CheckpointError
    without parameters; SaveError for a file that cannot be written.
    """
    folder = local.folder(str(workdir), "workdir")
    target = local.folder(str(to), "out")
    _require_free(target)
    content = pack(folder, platforms=platforms, trust_code=trust_code, say=say)
    try:
        with atomic.replaced(target) as partial:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with open(os.open(partial, flags, 0o666), "wb") as file:
                file.write(content)
    except OSError as error:
        raise SaveError(f"{target}: not written ({error.strerror or error})") from error
    digest = standalone.digest_of(target)
    say(f"bundle   {target}, {len(content):,} bytes, sha256 {digest}")
    return digest


def _require_free(target: Path) -> None:
    """Raises ConfigError unless a bundle may have this name: that of nothing, or of a bundle."""
    there = os.path.exists(target)
    if (there and not os.path.isfile(target)) or not os.path.isdir(target.parent):
        raise ConfigError(f"out={target}: must be a file in a folder that is there")
    if there and os.path.getsize(target):
        try:
            standalone.digest_of(target)
        except standalone.Refused:
            raise ConfigError(f"out={target}: is there, and no bundle; choose another") from None


@dataclasses.dataclass(frozen=True)
class Member:
    """One model of a bundle: of most the only one."""

    config: ml_collections.ConfigDict
    known: Trained
    spec: DataSpec
    model: Model
    params: Any
    predict: Callable[..., Any]


def pack(folder: Path, *, platforms: Sequence[str], trust_code: bool, say: Say) -> bytes:
    """A bundle's bytes, compared with m4's own predictions. See `write`."""
    config = _config(folder, trust_code)
    places = (
        [(folder, config)] if not members.folders(folder) else members.configs_of(config, folder)
    )
    for place, own in places:  # what is refused comes first
        _require_trained(place)
        lowering.portable(own, spec_from(trained.read(place).manifest["schema"]))
    results = decisions.results(folder, say)
    alpha, rules = decisions.thresholds(folder, results, config.eval.alpha)
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        use_cache(folder)
    mesh, made = make_mesh(config), members.Programs()
    with context(mesh):
        found = [_member(place, own, mesh, made, say) for place, own in places]
        _require_alike(found)
        lowered, which = _lowered(found, platforms)
        count = sum(len(one.modules) for one in lowered)
        say(f"lowered  {', '.join(platforms)}; {count} program{'s' * (count > 1)}")
        if results is None:
            say("m4: warning: no results of the test split: no cuts, and a card without scores")
        first, worded = found[0], _worded(config, found[0].spec)
        if rules is None:
            rules = _rules(folder, config, worded, found, alpha, say)
        schema = _schema(config, worded, found, results, rules)
        schema |= _programs(lowered, which, found)
        told = card.make(config, worded, first.known, results)
        parts = {"schema.json": json.dumps(schema, ensure_ascii=False)}
        parts["card.json"] = json.dumps(told, ensure_ascii=False, indent=1)
        parts["card.md"] = card.markdown(told, worded)
        content = _zipped(parts, lowered, [member.params for member in found])
        pairs = [(member.model, member.predict) for member in found]
        compare(content, pairs, config.eval.batch_size, say)
    return content


def _config(folder: Path, trust_code: bool) -> ml_collections.ConfigDict:
    """The stored configuration of a run."""
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder}: holds no run (no config.json)")
    flags = Flags(workdir=folder, trust_code=trust_code)
    trust.require_of(flags)
    return configs.load(flags)


def _require_trained(place: Path) -> None:
    if not retention.complete(place / "checkpoints/best"):
        raise CheckpointError(f"{place}: holds no trained parameters; --mode=train trains them")
    verify.best_step(place)  # scores and cuts are those of the step that the run chose


def _member(place: Path, config, mesh, made: members.Programs, say: Say) -> Member:
    known = trained.read(place)
    spec = spec_from(known.manifest["schema"])
    data = Path(known.manifest["fingerprint"])  # of the checkpoints' data; never read
    model = make_model(config, data, spec, empty(spec, config.eval.batch_size), mesh)
    params = eval_mode.best_params(config, model, place, say=say)
    predict = functools.partial(made.of(config, model), params)
    return Member(config, known, spec, model, jax.tree.map(np.asarray, params), predict)


def _require_alike(found: Sequence[Member]) -> None:
    """Raises ConfigError unless all members read the same rows into the same records."""
    members.require_same({f"member {k}": member.spec for k, member in enumerate(found)})
    for k, member in enumerate(found):
        if dict(member.known.vocabularies) != dict(found[0].known.vocabularies):
            raise ConfigError(
                f"member {k}: has another vocabulary than the first, since it was trained on other"
                " patients; a bundle has one. Export the members one by one"
            )


def _lowered(found: Sequence[Member], platforms) -> tuple[list[lowering.Lowered], list[int]]:
    """Programs, and which one each member has: those that differ in numbers alone share one."""
    known: list[tuple[Any, lowering.Lowered]] = []
    which = []
    for member in found:
        config, cuts = member.config, member.model.cuts
        parts = [config[name].to_dict() for name in ("method", "text", "image")]
        key = parts, config.train.precision, config.train.buckets
        same = [i for i, (other, _) in enumerate(known) if other == key]
        if not same:
            method = lowering.portable(config, member.model.spec)
            precision = config.train.precision
            args = (method, member.spec, cuts, member.params, precision, platforms)
            known.append((key, lowering.lower(*args)))
        which.append(same[0] if same else len(known) - 1)
    return [one for _, one in known], which


def _rules(folder: Path, config, spec: DataSpec, found: Sequence[Member], alpha: float, say: Say):
    """Thresholds of prediction sets by the patients set aside, {} for a run without.

    For runs whose evaluation wrote none of these parameters; `spec` is the one with words.
    """
    if not config.data.calibration or len({m.model.data.name for m in found}) > 1:
        return {}
    again = "--mode=eval writes it, and results of these parameters"
    say(f"m4: warning: no {beside.FILE} of these parameters; calibrated anew. {again}")
    return calibrated.rules(_calibration(folder, config, found), spec, alpha)


def _calibration(folder: Path, config, found: Sequence[Member]) -> Predictions:
    """Predictions of the patients set aside, of all that they have."""
    data, first = trained_on(config, (members.folders(folder) or (folder,))[0]), found[0].model
    if data.name != first.data.name:
        raise CheckpointError(f"{data}: is not what this model was trained on; see --mode=check")
    store = open_split(data, set_aside.SPLIT, config.eval.batch_size)
    whole = np.ones((1, len(first.spec.modalities)), bool)
    each = [eval_mode.sweep(config, m.model, store, m.predict, whole) for m in found]
    return averages.mean(each, first.spec)


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


def _schema(config, spec: DataSpec, found: Sequence[Member], results, sets) -> dict[str, Any]:
    """`schema.json` but for programs and members; `spec` is the one with words."""
    tasks = []
    for t in lowering.predicted(spec):
        one = contract.task(t) | decisions.cuts(t, results)
        tasks.append(one | ({"conformal": sets[t.name]} if t.name in sets else {}))
    return {
        "format": standalone.FORMAT,
        "use": USE,
        "m4": __version__,
        "jax": jax.__version__,
        "method": config.method.name,
        "hours": spec.hours,
        "modalities": contract.modalities(spec, found[0].known, config.data.name),
        "tasks": tasks,
    }


def _programs(lowered, which: Sequence[int], found: Sequence[Member]) -> dict[str, Any]:
    several = [
        {"file": f"member_{k}.bin", "program": p, "scaling": contract.scaling(m.spec, m.known)}
        for k, (p, m) in enumerate(zip(which, found, strict=True))
    ]
    programs = [
        {
            **one.program,
            "cuts": [{**c, "file": _code(p, i)} for i, c in enumerate(one.program["cuts"])],
        }
        for p, one in enumerate(lowered)
    ]
    return {"members": several, "programs": programs}


def _code(program: int, cut: int) -> str:
    return f"program_{program}_{cut}.stablehlo"


def _zipped(texts: dict[str, str], lowered, params: Sequence[Any]) -> bytes:
    parts = {"__main__.py": Path(standalone.__file__).read_bytes()}
    parts |= {name: text.encode() for name, text in texts.items()}
    for p, one in enumerate(lowered):
        parts |= {_code(p, i): code for i, code in enumerate(one.modules)}
    for k, tree in enumerate(params):
        leaves = jax.tree.leaves(tree)
        parts[f"member_{k}.bin"] = b"".join(np.ascontiguousarray(x).tobytes() for x in leaves)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as file:
        for name, content in parts.items():
            file.writestr(zipfile.ZipInfo(name, DATE), content)
        file.comment = standalone.MARK + b"0" * 64
    body = made.getvalue()[:-64]
    return body + hashlib.sha256(body).hexdigest().encode()
