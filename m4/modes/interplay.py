"""`--mode=interplay`: how modalities and tasks compete in training, as M4oE's authors analyse it.

    python -m m4.main --mode=interplay --config=configs/m4oe_views.py --workdir=runs/interplay

Trains the configuration once with all modalities and once with each alone (`train.steps` steps;
the modalities kept are an input, so one compiled step trains all), prints tables and writes
`interplay.json` into the work directory (`m4.eval.interplay`):

- utilisation: shares of modalities in the routing per task on the test split, and their evenness;
- competition: accuracy of a linear probe on the features of a modality's encoder, trained alone
  less trained jointly, per binary and multiclass task; above 0 the modality lost out;
- information: redundant, unique and synergistic bits of two modalities about a label, from what the
  probes of encoders trained alone predict, less the mean of 200 exchanges of labels between
  patients; none with fewer than 50 rows for each cell of the table;
- conflict: cosines between the gradients of tasks with respect to all parameters, mean over some
  training batches, after joint training.

The method must return `extra['features']` [B, M, D] and `extra['utilisation']` [B, M, P].

Letters: B, N rows, M modalities, P tasks, D width.
"""

import dataclasses
import functools
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from rich.console import Console
from rich.table import Table

from m4 import seal, sharding
from m4.config import Flags
from m4.data.store import Store
from m4.errors import ConfigError
from m4.eval import evaluate, interplay
from m4.modes import tim
from m4.run import placed
from m4.run.setup import Setup, context, make_setup
from m4.run.workspace import open_split, owned, prepare, use_cache

PROBED = ("binary", "multiclass")
MAX_ROWS = 10_000  # of a split that are read
NUM_BATCHES = 8  # whose gradients are averaged
MIN_ROWS = 10  # to fit a probe, and to score one


class Split(NamedTuple):
    """Rows of a split as one model sees them."""

    features: np.ndarray  # f32[N, M, D]
    utilisation: np.ndarray  # f32[N, M, P]
    present: np.ndarray  # bool[N, M]
    labels: dict[str, tuple[np.ndarray, np.ndarray]]  # task -> label i64[N], known bool[N]
    patient: np.ndarray  # [N]


@dataclasses.dataclass(frozen=True)
class Kept:
    """A method whose batch is (batch, mask of the modalities that it may see)."""

    method: Any
    spec: Any

    def apply(self, variables, batch, **kwargs):
        """As the method's."""
        return self.method.apply(variables, self._masked(batch), **kwargs)

    def loss(self, out, batch, step):
        """As the method's."""
        return self.method.loss(out, self._masked(batch), step)

    def _masked(self, batch):
        whole, keep_M = batch
        return evaluate.mask_modalities(whole, keep_M, self.spec)


def run(config: ml_collections.ConfigDict, folder: Path, flags: Flags) -> None:
    """Trains, analyses, prints, writes. See `m4.main`."""
    del flags
    tim.require_plain(config, "interplay")
    with owned(folder):
        use_cache(folder)
        setup = make_setup(config, prepare(config))
        with context(setup.mesh):
            analyses = analyse(config, setup)
        seal.write(folder, "interplay.json", json.dumps(analyses, indent=1) + "\n")
    _print(analyses)


def analyse(config: Any, setup: Setup) -> dict[str, Any]:
    """What `interplay.json` holds; None where too few rows have the modality and the label."""
    spec, names = setup.spec, setup.spec.modality_names
    read = _reader(config, setup)
    whole = np.ones(len(names), bool)
    fit = tim.fitter(config, setup, Kept(setup.method, spec), whole)
    params = fit(whole).eval_params
    print("trained on all modalities", flush=True)
    joint = read(params, "train"), read(params, "test")
    share_MP, even_P = interplay.utilisation(
        joint[1].utilisation, np.asarray(joint[1].present.any(1), np.float64)
    )
    conflict = _conflict(setup, params)
    probes: dict[str, dict[str, Any]] = {
        task.name: {} for task in spec.tasks if task.kind in PROBED
    }
    competition = {task: {} for task in probes}
    for m, name in enumerate(names):
        params = fit(np.arange(len(names)) == m).eval_params
        print("trained on", name, "alone", flush=True)
        alone = read(params, "train"), read(params, "test")
        for task in probes:
            own, shared = _probed(*alone, task, m), _probed(*joint, task, m)
            probes[task][name] = own
            competition[task][name] = (
                None
                if own is None or shared is None
                else {"alone": own[0], "joint": shared[0], "lost": own[0] - shared[0]}
            )
    return {
        "modalities": list(names),
        "tasks": list(spec.task_names),
        "utilisation": dict(zip(spec.task_names, share_MP.T.tolist(), strict=True)),
        "evenness": dict(zip(spec.task_names, even_P.tolist(), strict=True)),
        "conflict": conflict,
        "competition": competition,
        "information": {
            task: _information(joint[1], task, found, names) for task, found in probes.items()
        },
    }


def _reader(config, setup: Setup):
    """`(params, split) -> Split`; compiles once."""

    @functools.partial(jax.jit, out_shardings=sharding.replicated(setup.mesh))
    def forward(params, batch):
        extra = setup.method.apply({"params": params}, batch, train=False).extra
        lacks = sorted({"features", "utilisation"} - extra.keys())
        if lacks:
            raise ConfigError(
                f"method.name={config.method.name!r}: returns no {' and no '.join(lacks)} in"
                " `extra`; m4oe does"
            )
        return extra["features"], extra["utilisation"], batch.present(setup.spec)

    jax.eval_shape(forward, setup.state.eval_params, setup.loader.batch(0))  # or it is refused now

    def read(params, split):
        store = open_split(setup.data, split, config.eval.batch_size)
        found = []
        for known, batch in itertools.islice(
            placed.batches(store, config.eval.batch_size, setup.mesh),
            -(-MAX_ROWS // config.eval.batch_size),
        ):
            arrays = jax.device_get(forward(params, batch))
            found.append([array[np.asarray(known.uid) >= 0] for array in arrays])
        features, used, present = (np.concatenate(part) for part in zip(*found, strict=True))
        patient = store.columns(["patient"])["patient"][: len(present)]
        return Split(features, used, present, _labels(store, setup.spec, len(present)), patient)

    return read


def _labels(store: Store, spec, num_rows: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    names = [task.name for task in spec.tasks if task.kind in PROBED]
    found = store.columns([*(f"y/{n}" for n in names), *(f"y/{n}/mask" for n in names)])
    first = {key: column[:num_rows].reshape(-1) for key, column in found.items()}
    return {n: (first[f"y/{n}"].astype(np.int64), first[f"y/{n}/mask"] > 0) for n in names}


def _probed(train: Split, test: Split, task: str, m: int):
    """Accuracy on the test rows and the prediction of every one; None with too few rows."""
    (train_y, known), (test_y, test_known) = train.labels[task], test.labels[task]
    rows, test_rows = known & train.present[:, m], test_known & test.present[:, m]
    few = min(rows.sum(), test_rows.sum()) < MIN_ROWS
    if few or len(np.unique(train_y[rows])) < 2:
        return None
    model = interplay.probe(train.features[rows, m], train_y[rows])
    predicted = model.predict(test.features[:, m])
    return float(np.mean(predicted[test_rows] == test_y[test_rows])), predicted


def _information(test: Split, task: str, found: dict[str, Any], names) -> dict[str, Any]:
    """In bits, for every two modalities, on the test rows that have both."""
    y, known = test.labels[task]
    pairs = {}
    for (a, first), (b, second) in itertools.combinations(enumerate(names), 2):
        rows, both = known & test.present[:, a] & test.present[:, b], (found[first], found[second])
        pairs[f"{first} {second}"] = None
        if None not in both and rows.any():
            x, z = (predicted[rows] for _, predicted in both)
            pairs[f"{first} {second}"] = interplay.partial_information(
                x, z, y[rows], test.patient[rows]
            )
    return pairs


def _conflict(setup: Setup, params: Any) -> dict[str, float]:
    @jax.jit
    def cosines(params, batch):
        def task_losses(params):
            out = setup.method.apply({"params": params}, batch, train=False)
            terms = setup.method.loss(out, batch, jnp.zeros((), jnp.int32))[1]
            return {name: term.value() for name, term in terms.items()}

        return interplay.gradient_conflict(task_losses, params)

    batches = itertools.islice(setup.loader.iter(0), NUM_BATCHES)
    found = [jax.device_get(cosines(params, sharding.put_batch(b, setup.mesh))) for b in batches]
    # A dictionary's keys come back sorted from JAX, the pairs keep the order of the tasks.
    return {" ".join(pair): float(np.mean([f[pair] for f in found])) for pair in found[0]}


def _print(analyses: dict[str, Any]) -> None:
    console = Console(width=None if Console().is_terminal else 100, markup=False)
    shares = Table("task", *analyses["modalities"], "evenness", title="utilisation")
    for task in analyses["tasks"]:
        row = [f"{x:.3f}" for x in analyses["utilisation"][task]]
        shares.add_row(task, *row, f"{analyses['evenness'][task]:.3f}")
    lost = Table("task", *analyses["modalities"], title="accuracy lost in joint training")
    for task, row in analyses["competition"].items():
        lost.add_row(task, *("" if x is None else f"{x['lost']:+.3f}" for x in row.values()))
    conflict = Table("tasks", "cosine", title="gradients")
    for pair, value in analyses["conflict"].items():
        conflict.add_row(pair, f"{value:+.3f}")
    bits = Table("task", "modalities", "redundant", "unique", "synergy", title="bits")
    for task, pairs in analyses["information"].items():
        for pair, x in pairs.items():
            if x is not None:
                unique = " ".join(f"{u:.3f}" for u in x["unique"])
                synergy = f"{x['synergy']:.3f} (p {x['p']:.3f})"
                bits.add_row(task, pair, f"{x['redundant']:.3f}", unique, synergy)
    for table in (shares, lost, conflict, bits):
        console.print(table)
