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
import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from m4 import atomic
from m4.data import wfdb
from m4.data.cohort import patient_number
from m4.data.sets.mimiciv import files, linked, studies
from m4.errors import ConfigError, DataError, UserError

PART = 1024
FILE = "embed.json"
PARTS = ".parts"
SCALES = {  # grey 0..1 -> what an encoder was trained on
    "unit": lambda x: x,
    "xrv": lambda x: (2 * x - 1) * 1024,  # torchxrayvision
    "imagenet": lambda x: (x - 0.449) / 0.226,  # mean over its three channels
}
ECG = {"rate": 500, "length": 5000}  # of MIMIC-IV-ECG
BANDS = np.geomspace(0.5, 100, 21)  # Hz
Encode = Callable[[list], np.ndarray]  # n texts, images f32[h, w] or ECGs f32[12, t] -> f32[n, d]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is encoded by what; all of it is written to `embed.json`."""

    what: str
    backend: str
    encoder: str
    revision: str
    pooling: str = "mean"
    max_tokens: int = 512
    scale: str = "unit"


def main(argv: list[str]) -> int:
    """Parse options and write the vectors; returns the exit code."""
    parser = argparse.ArgumentParser("python -m m4.data embed", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", choices=["notes", "cxr", "ecg"])
    parser.add_argument("raw_dir", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--backend", choices=[*BACKENDS], required=True)
    parser.add_argument("--encoder", default="", help="file or folder of the model")
    parser.add_argument("--revision", default="", help="noted; default: digest of the model")
    parser.add_argument("--pooling", choices=["mean", "cls", "pooler"], default="mean")
    parser.add_argument("--max_tokens", type=int, default=512)
    parser.add_argument("--scale", choices=[*SCALES], default="unit")
    parser.add_argument("--batch_size", type=int, default=16)
    args = vars(parser.parse_args(argv))
    raw_dir, out, size = args.pop("raw_dir"), args.pop("out"), args.pop("batch_size")
    try:
        args["revision"] = args["revision"] or _digest(args["encoder"])
        plan = Plan(**args)
        if plan.what not in READS[plan.backend]:
            reads = " and ".join(READS[plan.backend])
            raise ConfigError(f"embed: --backend={plan.backend} reads {reads}, not {plan.what}")
        number = write(out, plan, items(plan, raw_dir), BACKENDS[plan.backend](plan), size)
    except UserError as error:
        print("\n".join(error.lines()), file=sys.stderr)
        return error.exit_code
    print(f"{out}: {number} vectors")
    return 0


def write(out: Path, plan: Plan, stream: Iterator, encode: Encode, batch_size: int) -> int:
    """Encode (identifier, item) pairs into `out`, going on where an earlier start stopped.

    Raises ConfigError if `out` is complete or was begun with another plan.
    """
    if (out / FILE).exists():
        raise ConfigError(f"embed: {out} is complete; choose another folder")
    parts, begun = out / PARTS, dataclasses.asdict(plan)
    parts.mkdir(parents=True, exist_ok=True, mode=0o700)
    out.chmod(0o700)
    note = parts / "plan.json"
    if note.exists() and json.loads(note.read_text()) != begun:
        raise ConfigError(f"embed: {out} was begun with other options: {note.read_text()}")
    note.write_text(json.dumps(begun))
    number = 0
    while chunk := [*itertools.islice(stream, PART)]:
        path = parts / f"{number:06d}.npz"
        if not path.exists():
            ids = [patient_number(identifier) for identifier, _ in chunk]
            batches = [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
            vectors = [encode([_load(item) for _, item in batch]) for batch in batches]
            _save(path, ids=np.array(ids, np.int64), vectors=_finite(np.concatenate(vectors)))
        number += 1
    paths = sorted(parts.glob("*.npz"))[:number]
    if not paths:
        raise DataError(f"embed: no {plan.what} of a patient with an ICU stay")
    ids, vectors = _join(paths, out)
    facts = {**begun, "count": len(ids), "width": int(vectors.shape[1])}
    with open(out / "vectors.npy", "rb") as handle:
        facts["sha256"] = hashlib.file_digest(handle, "sha256").hexdigest()
    (out / FILE).write_text(json.dumps(facts, indent=1) + "\n")  # last: now it is complete
    shutil.rmtree(parts)
    return len(ids)


def _join(paths: list[Path], out: Path) -> tuple[np.ndarray, np.ndarray]:
    """All parts as ids.npy and vectors.npy in the order of the ids, part by part in memory."""
    every = np.concatenate([_part(path)["ids"] for path in paths])
    ids, first = np.unique(every, return_index=True)
    target = np.full(len(every), -1)
    target[first] = np.arange(len(ids))
    width = _part(paths[0])["vectors"].shape[1]
    shape = (len(ids), width)
    vectors = np.lib.format.open_memmap(out / "vectors.npy", "w+", np.float16, shape)
    start = 0
    for path in paths:
        part = _part(path)["vectors"]
        place = target[start : start + len(part)]
        vectors[place[place >= 0]] = part[place >= 0]
        start += len(part)
    vectors.flush()
    np.save(out / "ids.npy", ids)
    return ids, vectors


def _part(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def items(plan: Plan, raw_dir: Path) -> Iterator[tuple[str, object]]:
    """(identifier, text or image file) of all patients with an ICU stay, in a fixed order."""
    kind = linked.KIND[plan.what]
    root = linked.find(raw_dir, kind)
    mimic = files.find_root(raw_dir, demo=False) or files.find_root(raw_dir, demo=True)
    if root is None or mimic is None:
        raise DataError(f"embed: {raw_dir} has no MIMIC-IV or no {linked.TITLE[kind]} folder")
    stays = files.read(mimic, "icustays", {"subject_id": "int"})
    ours = {*stays["subject_id"].to_pylist()}
    return {"notes": _notes, "cxr": _images, "ecg": _ecgs}[plan.what](root, ours)


def _notes(root: Path, ours: set[int]) -> Iterator[tuple[str, str]]:
    columns = {"note_id": "text", "subject_id": "int", "text": "text"}
    for name in dict.fromkeys(linked.NOTES.values()):
        path = linked.table(root, f"note/{name}")
        for batch in files.stream(path, columns) if path else ():
            for row in batch.to_pylist():
                if row["subject_id"] in ours:
                    yield row["note_id"], row["text"]


def _images(root: Path, ours: set[int]) -> Iterator[tuple[str, Path]]:
    columns = {"dicom_id": "text", "subject_id": "int", "study_id": "int", "ViewPosition": "text"}
    for batch in files.stream(linked.table(root, f"{linked.CXR_FILE}metadata"), columns):
        for row in batch.to_pylist():
            if row["subject_id"] in ours and row["ViewPosition"].strip() in studies.FRONTAL:
                path = studies.image_path(root, row["subject_id"], row["study_id"], row["dicom_id"])
                if path.exists():
                    yield row["dicom_id"], path


def _ecgs(root: Path, ours: set[int]) -> Iterator[tuple[str, Path]]:
    columns = {"subject_id": "int", "study_id": "text", "path": "text"}
    for batch in files.stream(linked.table(root, "record_list"), columns):
        for row in batch.to_pylist():
            header = (root / row["path"]).with_suffix(".hea")
            if row["subject_id"] in ours and header.exists():
                yield row["study_id"], header


def _load(item):
    """A text as it is; an image file as f32[h, w] in 0..1; an ECG as f32[12, t] in mV."""
    if isinstance(item, Path) and item.suffix == ".hea":
        return wfdb.twelve_leads(item, **ECG)
    return studies.grey_square(item) / np.float32(255) if isinstance(item, Path) else item


def _finite(vectors: np.ndarray) -> np.ndarray:
    wrong = ~(np.abs(vectors) <= np.finfo(np.float16).max)
    if wrong.any():
        raise DataError(f"embed: the encoder gave {int(wrong.sum())} numbers beyond float16")
    return vectors.astype(np.float16)


def _save(path: Path, **arrays) -> None:
    with atomic.replaced(path) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)


def _digest(encoder: str) -> str:
    """First digits of the SHA-256 of a model's files, in the order of their names."""
    path, digest = Path(encoder), hashlib.sha256()
    if encoder and not path.exists():
        raise ConfigError(f"embed: --encoder={encoder}: no such file or folder")
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        if file.is_file():
            with open(file, "rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:16] if encoder else ""


# --- backends -----------------------------------------------------------------------------------


def pieces(ids: list[int], limit: int, first: int, last: int) -> list[list[int]]:
    """Token ids without special ones -> pieces of at most `limit` that have them; at least one."""
    room = limit - 2
    cuts = [ids[i : i + room] for i in range(0, max(len(ids), 1), room)]
    return [[first, *cut, last] for cut in cuts]


def pool(hidden_nLd: np.ndarray, mask_nL: np.ndarray, pooling: str) -> np.ndarray:
    """f32[n, d]: the first token's state, or the mean over tokens."""
    if pooling == "cls":
        return hidden_nLd[:, 0]
    weight_nL1 = mask_nL[..., None].astype(np.float32)
    return (hidden_nLd * weight_nL1).sum(1) / weight_nL1.sum(1)


def by_pieces(tokenize, run, limit: int) -> Encode:
    """Encode texts through `run(ids_nL, mask_nL) -> f32[n, d]`, averaged over their pieces."""

    def encode(texts: list) -> np.ndarray:
        cut = [tokenize(text) for text in texts]
        flat = [piece for one in cut for piece in one]
        length = max(map(len, flat))
        ids_nL = np.array([piece + [0] * (length - len(piece)) for piece in flat], np.int64)
        mask_nL = np.array([[1] * len(p) + [0] * (length - len(p)) for p in flat], np.int64)
        assert length <= limit, (length, limit)
        vectors = run(ids_nL, mask_nL)
        owner = np.repeat(np.arange(len(cut)), [len(one) for one in cut])
        weight = mask_nL.sum(1)
        total = np.zeros((len(cut), vectors.shape[1]), np.float32)
        np.add.at(total, owner, vectors * weight[:, None])
        return total / np.bincount(owner, weight)[:, None]

    return encode


def _hashing(plan: Plan) -> Encode:
    encode = linked.Hashing(768)
    return lambda texts: encode(texts)[1]


def _bands(plan: Plan) -> Encode:
    """Per lead: log of the power in 20 bands, and of its whole, f32[n, 12 * 21]."""
    frequency = np.fft.rfftfreq(ECG["length"], 1 / ECG["rate"])

    def encode(signals: list) -> np.ndarray:
        wave_nCT = np.stack(signals) - np.mean(signals, axis=-1, keepdims=True)
        power_nCF = np.abs(np.fft.rfft(wave_nCT)) ** 2 / ECG["length"]
        parts = [(frequency >= a) & (frequency < b) for a, b in itertools.pairwise(BANDS)]
        sums = [power_nCF[..., inside].sum(-1) for inside in [*parts, frequency > 0]]
        return np.log1p(np.stack(sums, axis=-1)).reshape(len(signals), -1).astype(np.float32)

    return encode


def _transformers(plan: Plan) -> Encode:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(plan.encoder, local_files_only=True)
    model = AutoModel.from_pretrained(plan.encoder, local_files_only=True).eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)

    def tokenize(text):
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
        return pieces(ids, plan.max_tokens, first, last)

    def run(ids_nL, mask_nL):
        with torch.inference_mode():
            ids, mask = (torch.from_numpy(a).to(device) for a in (ids_nL, mask_nL))
            out = model(input_ids=ids, attention_mask=mask)
        if plan.pooling == "pooler":
            return out.pooler_output.float().cpu().numpy()
        return pool(out.last_hidden_state.float().cpu().numpy(), mask_nL, plan.pooling)

    return by_pieces(tokenize, run, plan.max_tokens)


def _onnx(plan: Plan) -> Encode:
    import onnxruntime

    session = onnxruntime.InferenceSession(plan.encoder)
    names = [entry.name for entry in session.get_inputs()]
    if plan.what == "ecg":
        return lambda signals: session.run(None, {names[0]: np.stack(signals)})[0]
    if plan.what == "cxr":
        channels = session.get_inputs()[0].shape[1]
        return lambda images: session.run(None, {names[0]: _images_in(images, channels, plan)})[0]
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(plan.encoder).with_name("tokenizer.json")))
    first, last = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))

    def run(ids_nL, mask_nL):
        feed = {"input_ids": ids_nL, "attention_mask": mask_nL, "token_type_ids": ids_nL * 0}
        outputs = session.run(None, {name: feed[name] for name in names})
        return outputs[1] if plan.pooling == "pooler" else pool(outputs[0], mask_nL, plan.pooling)

    def tokenize(text):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        return pieces(ids, plan.max_tokens, first, last)

    return by_pieces(tokenize, run, plan.max_tokens)


def _torchscript(plan: Plan) -> Encode:
    import torch

    model = torch.jit.load(plan.encoder).eval()

    def encode(images: list) -> np.ndarray:
        with torch.inference_mode():
            whole = np.stack(images) if plan.what == "ecg" else _images_in(images, 1, plan)
            return model(torch.from_numpy(whole)).float().numpy()

    return encode


def _images_in(images: list, channels: int, plan: Plan) -> np.ndarray:
    """f32[n, channels, h, w]."""
    stacked = SCALES[plan.scale](np.stack(images).astype(np.float32))[:, None]
    return np.repeat(stacked, channels, axis=1).astype(np.float32)


BACKENDS = {
    "transformers": _transformers,
    "onnx": _onnx,
    "torchscript": _torchscript,
    "hashing": _hashing,
    "bands": _bands,
}

READS = {
    "transformers": ("notes",),
    "onnx": ("notes", "cxr", "ecg"),
    "torchscript": ("cxr", "ecg"),
    "hashing": ("notes",),
    "bands": ("ecg",),
}

if __name__ == "__main__":
    os.umask(0o077)  # what is derived from patients is for its owner only
    sys.exit(main(sys.argv[1:]))
