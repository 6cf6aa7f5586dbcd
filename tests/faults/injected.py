"""The commands that `injection.py` strikes: what is there before each, and the bits it leaves."""

import gzip
import hashlib
import json
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

from m4 import main
from m4.data import __main__ as data_main
from m4.data import build
from m4.export import __main__ as export_main
from tests.data import meds_folder, mimiciv_toy
from tests.faults import canaries, config, runs

STEPS = 3
REPEATED = ("is complete; choose another", "exists; choose another")  # said where all is done
FLEX = """
import ml_collections
def get_config(variant=''):
    return ml_collections.ConfigDict(dict(
        data=dict(name='tests.interop.cli_data', options=dict(kind='tables')),
        method=dict(name='flexmoe', fidelity='released', width=8, num_heads=2, num_patches=2,
                    moe=dict(hidden=6, num_experts=4, top_k=2)),
        optim=dict(lr=0.01),
        train=dict(steps=2, batch_size=4, select='diagnosis/auroc_macro'),
        eval=dict(batch_size=4, bootstrap=5, baselines=False, subsets=False),
    ))
"""
NOTES = "note_id,subject_id,hadm_id,note_type,note_seq,charttime,storetime,text\n" + "".join(
    f"1-RR-{n},1,101,RR,{n},2150-01-01 12:00:00,2150-01-01 13:00:00,No effusion {n}\n"
    for n in range(20)
)


def save(folder: Path) -> int:
    """A loop that saves, and goes on from the newest sound step."""
    import jax.numpy as jnp

    from m4.train import digest
    from m4.train.checkpoint import Checkpoints

    like = {"w": jnp.zeros((64, 8)), "n": jnp.zeros((), jnp.int32)}
    checkpoints = Checkpoints(folder / "last", keep=2)
    try:
        state = checkpoints.restore(like)[0] if checkpoints.used() else like
        for step in range(int(state["n"]) + 1, STEPS + 1):
            state = {"w": state["w"] + step / 7, "n": state["n"] + 1}
            checkpoints.save(step, state, {"step": step})
        checkpoints.wait()
    finally:
        checkpoints.close()
    (folder / "found").write_text(json.dumps(digest.of_tree(state)))
    return 0


def log(folder: Path) -> int:
    """A log that is taken up again in the middle."""
    from m4.train.telemetry import JsonLines

    for first, last in ((0, 4), (2, 6)):
        writer = JsonLines(folder / "metrics.jsonl", resume=first)
        for step in range(first + 1, last + 1):
            writer.write_scalars(step, {"train/loss": 1 / step})
        writer.close()
    return 0


def lock(folder: Path) -> int:
    """Holds a work directory."""
    from m4.train import workdir

    with workdir.locked(folder):
        (folder / "held").write_text("held")
    return 0


def train(folder: Path) -> int:
    """Goes on with a run of M3H."""
    return main.main([f"--config={config.__file__}:m3h", f"--workdir={folder}"])


def ask(mode: str) -> Callable[[Path], int]:
    """A mode that works on a finished run."""
    return lambda folder: main.main([f"--workdir={folder}", f"--mode={mode}"])


def make(data: str) -> Callable[[Path], int]:
    """Builds a small data set: MEDS, or one's own CSV tables."""

    def command(folder: Path) -> int:
        definition = folder / "raw" / ("spec.toml" if data == "meds" else "s.toml")
        options = {"file": str(definition)}
        build.prepare(data, folder / "raw", folder / "data", options=options)
        return 0

    return command


def export(folder: Path) -> int:
    """Packs a finished run into a file."""
    args = [f"--workdir={folder}", f"--out={folder / 'model.m4'}", "--platforms=cpu"]
    return export_main.main(args)


def take(folder: Path) -> int:
    """Imports a release's weights."""
    from m4.interop.__main__ import main as interop

    args = [
        f"--{name}={folder / file}" for name, file in (("torch", "t.safetensors"), ("out", "w"))
    ]
    return interop(["import", "--method=flexmoe", f"--config={folder / 'c.py'}", *args])


def embed(folder: Path) -> int:
    """Encodes notes."""
    places = map(str, (folder / "raw", folder / "out"))
    return data_main.main(["embed", "notes", *places, "--backend=hashing"])


COMMANDS: dict[str, Callable[[Path], int]] = {
    "save": save, "log": log, "lock": lock, "report": ask("report"), "build": make("meds"),
    "table": make("tables"), "embed": embed, "export": export, "import": take,
    "train": train, "eval": ask("eval"), "predict": ask("predict"),
}  # fmt: skip


def prepare(name: str, kept: Path) -> None:
    """Makes what a command reads and no run has, once."""
    kept.mkdir(parents=True)
    if name == "build":
        (kept / "raw").mkdir()
        meds_folder.write(kept / "raw", meds_folder.cohort_tables(30))
    elif name == "table":
        canaries.plant(kept / "raw", random.Random(0), patients=40)
    elif name == "embed":
        root = mimiciv_toy.write(kept / "raw/mimiciv/2.2").parents[1]
        path = root / "mimic-iv-note/2.2/note/radiology.csv.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress(NOTES.encode()))
    elif name == "import":
        _release(kept)


def _release(folder: Path) -> None:
    """A configuration, and a file of weights that fits it."""
    from flax import traverse_util

    from m4 import config as configs
    from m4.interop import state_dicts
    from m4.interop.__main__ import layout_of
    from m4.run.setup import make_setup
    from m4.run.workspace import prepare as built
    from tests.interop import shared

    (folder / "c.py").write_text(FLEX)
    found = configs.load(configs.parse([f"--config={folder / 'c.py'}"]))
    made = make_setup(found, built(found))
    shapes = traverse_util.flatten_dict(made.state.eval_params, sep="/")
    tensors = shared.tensors(layout_of("flexmoe")(made.method), shapes)
    state_dicts.write(folder / "t.safetensors", tensors)


def fresh(name: str, folder: Path, right: Path, kept: Path) -> None:
    """What is there before a command: of a finished run `right`, or what was `kept`."""
    shutil.rmtree(folder, ignore_errors=True)
    if name in ("build", "table", "embed", "import"):
        shutil.copytree(kept, folder)
    elif name in ("report", "eval", "export", "predict"):
        shutil.copytree(right, folder)
        (folder / "key").write_bytes(bytes(32))  # of hashes, drawn at random otherwise
    elif name == "train":  # resumed in the middle
        shutil.copytree(right, folder)
        for path in folder.glob("checkpoints/*/*"):
            if int(path.name) > 16:
                shutil.rmtree(path)
        shutil.rmtree(folder / "results")
    else:
        folder.mkdir(mode=0o700)


def bits(name: str, folder: Path) -> str:
    """A digest of what a command is for."""
    found = hashlib.sha256()
    if name == "train":
        found.update("".join(runs.numbers(folder)).encode())
        found.update(json.dumps(runs.final_digests(folder)).encode())
    wanted = {"report": ["report.html"], "predict": ["predictions/test.parquet"]}
    wanted |= {"eval": ["results/test.json"], "train": ["results/test.json"], "lock": ["held"]}
    wanted |= {"save": ["found"], "log": ["metrics.jsonl"]}
    wanted |= {"embed": [f"out/{file}" for file in ("vectors.npy", "ids.npy", "embed.json")]}
    if name in ("build", "table"):  # but for stamps, which are of the source files' inodes
        paths = sorted(p for p in folder.glob("data/*/*/**/*") if p.name != build.STAMPS)
        wanted[name] = [p.relative_to(folder).as_posix() for p in paths if p.is_file()]
        found.update("\n".join(wanted[name]).encode())
    if name == "export" and (folder / "model.m4").is_file():  # but for its card, which has a date
        with zipfile.ZipFile(folder / "model.m4") as pack:
            for member in sorted(n for n in pack.namelist() if not n.startswith("card.")):
                found.update(member.encode() + pack.read(member))
    if name == "import":
        meta = folder / "w/checkpoints/best/0/meta/metadata"
        leaves = json.loads(meta.read_text())["leaves"] if meta.exists() else None
        found.update(json.dumps(leaves).encode())
    for file in wanted.get(name, ()):
        path = folder / file
        found.update(path.read_bytes() if path.is_file() else b"-")
    return found.hexdigest()
