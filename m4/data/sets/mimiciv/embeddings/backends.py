"""The back ends of encoders: what turns texts, images or ECGs into vectors.

Only the one that is asked for is imported. Letters: n items, d width, L tokens.
"""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

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


class Hashing:
    """Vectors of texts without any encoder, in the place of `Embeddings`."""

    def __init__(self, width: int):
        from sklearn.feature_extraction.text import HashingVectorizer

        self._encode = HashingVectorizer(n_features=width, ngram_range=(1, 2)).transform

    def __call__(self, texts) -> tuple[np.ndarray, np.ndarray]:
        """All positions, and their vectors."""
        if not len(texts):
            return np.zeros(0, int), np.zeros((0, 1), np.float16)
        counts: Any = self._encode(texts)
        return np.arange(len(texts)), counts.toarray().astype(np.float16)


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


def by_pieces(tokenize, run) -> Encode:
    """Encode texts through `run(ids_nL, mask_nL) -> f32[n, d]`, averaged over their pieces."""

    def encode(texts: list) -> np.ndarray:
        cut = [tokenize(text) for text in texts]
        flat = [piece for one in cut for piece in one]
        ids_nL = np.array([*itertools.zip_longest(*flat, fillvalue=0)], np.int64).T
        mask_nL = (np.arange(ids_nL.shape[1]) < [[len(piece)] for piece in flat]).astype(np.int64)
        vectors = run(ids_nL, mask_nL)
        starts, weight_n1 = np.cumsum([0, *map(len, cut[:-1])]), mask_nL.sum(1, keepdims=True)
        return np.add.reduceat(vectors * weight_n1, starts) / np.add.reduceat(weight_n1, starts)

    return encode


def _hashing(plan: Plan) -> Encode:
    encode = Hashing(768)
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

    return by_pieces(tokenize, run)


def _onnx(plan: Plan) -> Encode:
    import onnxruntime

    session = onnxruntime.InferenceSession(plan.encoder)
    names = [entry.name for entry in session.get_inputs()]
    if plan.what != "notes":
        channels = session.get_inputs()[0].shape[1]
        return lambda items: session.run(None, {names[0]: stacked(items, channels, plan)})[0]
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

    return by_pieces(tokenize, run)


def _torchscript(plan: Plan) -> Encode:
    import torch

    model = torch.jit.load(plan.encoder).eval()

    def encode(images: list) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(stacked(images, 1, plan))).float().numpy()

    return encode


def stacked(items: list, channels: int, plan: Plan) -> np.ndarray:
    """Images as f32[n, channels, h, w], scaled; ECGs as they are."""
    if plan.what == "ecg":
        return np.stack(items)
    scaled = SCALES[plan.scale](np.stack(items).astype(np.float32))[:, None]
    return np.repeat(scaled, channels, axis=1).astype(np.float32)


BACKENDS = {  # name -> what makes an encoder, and what that reads
    "transformers": (_transformers, ("notes",)),
    "onnx": (_onnx, ("notes", "cxr", "ecg")),
    "torchscript": (_torchscript, ("cxr", "ecg")),
    "hashing": (_hashing, ("notes",)),
    "bands": (_bands, ("ecg",)),
}
