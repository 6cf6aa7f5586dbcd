"""Notes, X-rays and ECGs -> vectors of a frozen encoder, once, before training.

    python -m m4.data embed notes RAW OUT --backend=transformers --encoder=FOLDER --pooling=mean
    python -m m4.data embed cxr   RAW OUT --backend=onnx --encoder=MODEL.onnx --scale=xrv
    python -m m4.data embed ecg   RAW OUT --backend=bands
    python -m m4.main --config=... --config.data.options.embeddings.notes=OUT

Only this command needs an encoder's library, and only the backend that is asked for is imported:

| backend | for | needs | encoder is |
|---|---|---|---|
| `transformers` | notes | torch, transformers | folder of a saved model (nothing is downloaded) |
| `onnx` | all | onnxruntime; tokenizers for notes | .onnx file; tokenizer.json beside it |
| `torchscript` | cxr, ecg | torch | .pt file |
| `hashing` | notes | nothing more | - (signed hashed words; to try the path) |
| `bands` | ecg | nothing more | - (power of every lead by frequency) |

An encoder of ECGs takes millivolts [n, 12, 5000]: 10 s of the leads of `m4.data.wfdb`.

OUT gets `vectors.npy` (float16), `ids.npy` (sorted numbers of the identifiers) and `embed.json`
with encoder, revision, pooling and digests. Notes longer than `--max_tokens` are cut into pieces
whose vectors are averaged by their length. Only patients with an ICU stay are encoded. Every
`PART` items are saved, so that a second start goes on after the last part.

Letters: n items, d width, L tokens.
"""

import argparse
import hashlib
from pathlib import Path

from m4 import local
from m4.data.sets.mimiciv.embeddings import folder, items
from m4.data.sets.mimiciv.embeddings.backends import BACKENDS, SCALES, Plan
from m4.errors import ConfigError


def main(argv: list[str]) -> int:
    """Parse options and write the vectors; returns the exit code."""
    parser = argparse.ArgumentParser("python -m m4.data embed", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", choices=["notes", "cxr", "ecg"])
    parser.add_argument("raw_dir", type=lambda text: local.folder(text, "RAW_DIR"))
    parser.add_argument("out", type=lambda text: local.folder(text, "OUT"))
    parser.add_argument("--backend", choices=[*BACKENDS], required=True)
    parser.add_argument("--encoder", default="", help="file or folder of the model")
    parser.add_argument("--revision", default="", help="noted; default: digest of the model")
    parser.add_argument("--pooling", choices=["mean", "cls", "pooler"], default="mean")
    parser.add_argument("--max_tokens", type=int, default=512)
    parser.add_argument("--scale", choices=[*SCALES], default="unit")
    parser.add_argument("--batch_size", type=int, default=16)
    args = vars(parser.parse_args(argv))
    raw_dir, out, size = args.pop("raw_dir"), args.pop("out"), args.pop("batch_size")
    args["revision"] = args["revision"] or _digest(args["encoder"])
    plan = Plan(**args)
    make, reads = BACKENDS[plan.backend]
    if plan.what not in reads:
        what = " and ".join(reads)
        raise ConfigError(f"embed: --backend={plan.backend} reads {what}, not {plan.what}")
    number = folder.write(out, plan, items.read(plan.what, raw_dir), make(plan), size)
    print(f"{out}: {number} vectors")
    return 0


def _digest(encoder: str) -> str:
    """First digits of the SHA-256 of a model's files, in the order of their names."""
    if not encoder:
        return ""  # the path of no name is the current folder
    path, digest = Path(encoder), hashlib.sha256()
    if not path.exists():
        raise ConfigError(f"embed: --encoder={encoder}: no such file or folder")
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        if file.is_file():
            with open(file, "rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:16]
