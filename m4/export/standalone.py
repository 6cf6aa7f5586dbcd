"""A trained model in one file: reads rows in raw units, refuses what it does not know, predicts.

    python model.m4 --in=rows.json [--out=predictions.json]    --in=rows.npz takes arrays
    python model.m4 --example > rows.json                      an invented row, to begin with
    python model.m4 --schema | --card | --help

This file is `__main__.py` of every bundle, and all that runs there: it needs JAX and NumPy alone,
and imports nothing of m4. `m4.export.open` reads a bundle with m4's own copy of it instead, so that
of the bundle nothing but data is used.

A bundle is a ZIP file of stored, uncompressed members. Its comment holds the SHA-256 of every byte
before the digest:

    schema.json           inputs, tasks and programs: what this file goes by
    program_0_0.stablehlo the prediction, portable StableHLO, one per bucket of lengths
    member_0.bin          parameters, one after the other; several members are an ensemble
    card.json, card.md    what it is for, whom it was tried on, how well it did
    __main__.py           this file

Letters: N rows, T positions of a modality, t those of one row, f features, C outputs, k members.
"""

import collections
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import stat
import sys
import tempfile
import traceback
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np
from jax import export

FORMAT = 1
MARK = b"m4 bundle, sha256 "  # of a ZIP file's comment, before 64 hexadecimal digits
MOST_JSON = 1 << 28  # bytes of a file of rows, which take ten times as many in memory; schema.json
MOST_ARRAYS = 1 << 30  # bytes of what an .npz file unpacks to
MOST_ROWS = 1_000_000
SIZES = (1, 8, 64)  # of batches; a program is compiled once for each size that is needed
# What a program may call besides the operations of StableHLO, none of which leaves the device.
CALLS = ("shape_assertion", "mhlo.topk", "mhlo.erf")
RAGGED = ("series", "vectors", "codes", "text")
TIMED = ("series", "vectors")
AXES = {"series": 2, "table": 1, "vectors": 2, "codes": 1, "text": 1, "signal": 2}
MAYBE = (int, float, type(None))
ROW_KEYS = ("id", "inputs")
LEAST = 1e-7  # the smallest probability of which a logarithm is taken
WORD = re.compile(r"[^\W\d_]+|\d+(?:\.\d+)?")
USAGE = """usage: python model.m4 --in=ROWS [--out=FILE] [--as_trained] [--digest=SHA256]
       python model.m4 --example | --schema | --card | --help

Needs JAX and NumPy alone; on a CPU, or on an accelerator that JAX finds.

  --in          rows as JSON ('-': standard input) or as arrays (.npz), in raw units
  --out         where predictions are written as JSON, for you alone to read; else printed
  --as_trained  drop, as training did, values outside their plausible range or the time window,
                positions beyond the length (the last are kept) and tokens outside the vocabulary;
                each row's `notes` count them. Without it such a row is refused
  --digest      refuse any other bundle than this one
  --example     print an invented row of every modality
  --schema      print inputs, units, tasks and outputs
  --card        print what the model is for, and how well it did

exit codes: 0 done, 1 bug, 2 usage, 3 rows that are refused, 4 bundle that is refused or cannot run
            here"""


class Refused(Exception):
    """What is wrong, in one line; `code` is the command's exit code."""

    def __init__(self, line: str, code: int = 3):
        super().__init__(line if line.isprintable() else re.sub(r"\W", " ", line))
        self.code = code


# --- the file -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path: str | Path, code: int, most: int = sys.maxsize) -> Iterator[BinaryIO]:
    """A regular file of at most `most` bytes. A pipe in its place is not waited for.

    Raises Refused, with this code.
    """
    at_once = getattr(os, "O_NONBLOCK", 0)  # which Windows lacks
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | at_once)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Refused(f"{path}: is no regular file", code)
            if status.st_size > most:
                raise Refused(f"{path}: is larger than {most} bytes", code)
            yield file
    except OSError as error:
        raise Refused(f"{path}: cannot be read ({error.strerror or 'damaged'})", code) from None


def digest_of(path: Path) -> str:
    """The digest that a bundle bears, once its bytes are seen to have it. Raises Refused."""
    with _opened(path, 4) as file:
        return _digest(file, path)


def _digest(file: BinaryIO, path: Path) -> str:
    length = len(MARK) + 64
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - length))
    comment = file.read()
    file.seek(0)
    found, left = hashlib.sha256(), max(0, size - 64)
    while left and (part := file.read(min(left, 1 << 24))):
        found.update(part)
        left -= len(part)
    if not comment.startswith(MARK):
        raise Refused(f"{path}: is no bundle of m4", 4)
    if comment[len(MARK) :] != found.hexdigest().encode():
        raise Refused(f"{path}: is damaged; take another copy", 4)
    return found.hexdigest()


def _require_plain(file: zipfile.ZipFile, size: int) -> None:
    """Raises ValueError for members that would take more room than the file, or share a name."""
    members = file.infolist()
    if any(one.compress_type != zipfile.ZIP_STORED for one in members):
        raise ValueError("compressed")
    if sum(one.file_size for one in members) > size or len({*file.namelist()}) < len(members):
        raise ValueError("members that overlap")


class Bundle:
    """A bundle's model. `schema` and `card` are what it says of itself, `digest` names it."""

    def __init__(self, path: str | Path, *, digest: str | None = None):
        """Reads and checks the file. Raises Refused unless it is sound (and has this digest)."""
        self.path = Path(path)
        with _opened(self.path, 4) as raw:  # what is read is what was digested, whatever follows it
            self.digest = _digest(raw, self.path)
            if digest is not None and digest.lower() != self.digest:
                raise Refused(f"{self.path}: is another bundle than the one asked for", 4)
            with (
                _sound(f"{self.path}: is no bundle that can be read"),
                zipfile.ZipFile(raw) as file,
            ):
                _require_plain(file, os.fstat(raw.fileno()).st_size)
                self.schema = _json(file, "schema.json")
                if self.schema["format"] != FORMAT:
                    raise Refused(f"{self.path}: has format {int(self.schema['format'])}", 4)
                self.card = _json(file, "card.json")
                self._text = file.read("card.md").decode()
                programs = self.schema["programs"]
                self.members = [
                    _member(file.read(one["file"]), one, programs[one["program"]])
                    for one in self.schema["members"]
                ]
                if len({one["file"] for one in self.schema["members"]}) < len(self.members):
                    raise ValueError("members that share a file")
                cuts = [cut for program in programs for cut in program["cuts"]]
                self._code = {cut["file"]: file.read(cut["file"]) for cut in cuts}
                self._modalities = [Modality(m) for m in self.schema["modalities"]]
        self._compiled: dict[tuple[int, int], Any] = {}

    @property
    def card_text(self) -> str:
        """The card as Markdown."""
        return self._text

    def predict(self, rows: Any, *, as_trained: bool = False) -> list[dict[str, Any]]:
        """A result per row: `id`, `present`, and per task what is predicted.

        Args:
          rows: [{"id": ..., "inputs": {modality: payload}}], as `--schema` describes; also
            {"rows": [...]}, one row alone, or the arrays of an .npz file.
          as_trained: see `--help`.

        Raises Refused, with the number of the row (from 1) and the field, never with a value.
        """
        rows = rows_of(rows, self._modalities)
        names = [m.name for m in self._modalities]
        payloads: list[list[Any]] = [[] for _ in names]
        results = []
        for number, row in enumerate(rows, start=1):
            notes: dict[str, int] | None = {} if as_trained else None
            found = _row(row, self._modalities, f"row {number}", notes)
            for kept, payload in zip(payloads, found, strict=True):
                kept.append(payload)
            here = [name for name, payload in zip(names, found, strict=True) if payload is not None]
            result: dict[str, Any] = {"id": row.get("id", number), "present": here}
            results.append(result | ({"notes": notes} if notes else {}))
        present_NM = np.array([[p is not None for p in kept] for kept in payloads], bool).T
        with _sound(f"{self.path}: says what cannot be followed"):  # rows are sound by now
            outputs = self._outputs(payloads, len(rows))
            for n, result in enumerate(results):
                if not present_NM[n].any():
                    result["tasks"] = None
                    continue
                result["tasks"] = {
                    task["name"]: told(task, outputs[task["name"]][n], present_NM[n], names)
                    for task in self.schema["tasks"]
                }
        return results

    def read(self, row: Mapping[str, Any], *, as_trained: bool = False) -> dict[str, Any]:
        """Modality -> (values, times or None) of one row's record, in raw units, where present."""
        (row,) = rows_of(row, self._modalities)
        found = _row(row, self._modalities, "row 1", {} if as_trained else None)
        pairs = zip(self._modalities, found, strict=True)
        return {m.name: payload for m, payload in pairs if payload is not None}

    def _outputs(self, payloads: list[list[Any]], num: int) -> dict[str, np.ndarray]:
        """Task -> f32[N, C], the average over members; NaN of a row with nothing to go by."""
        longest_N, present_N = np.zeros(num, int), np.zeros(num, bool)
        for m, kept in zip(self._modalities, payloads, strict=True):
            present_N |= np.array([p is not None for p in kept], bool)
            if m.kind in RAGGED:
                lengths = [0 if p is None else len(p[0]) for p in kept]
                longest_N = np.maximum(longest_N, np.array(lengths, int))
        found = [self._of(k, payloads, longest_N, present_N) for k in range(len(self.members))]
        outputs = {}
        for task in self.schema["tasks"]:
            value_NC = averaged(task, np.stack([one[task["name"]] for one in found]))
            if not np.isfinite(value_NC[present_N]).all():
                raise Refused(f"{task['name']}: predictions are not finite", 4)
            outputs[task["name"]] = value_NC
        return outputs

    def _of(self, k: int, payloads: list[list[Any]], longest_N, present_N) -> dict[str, Any]:
        """What a member predicts of every row that has something, NaN of the others."""
        member, num = self.members[k], len(longest_N)
        cuts = self.schema["programs"][member.program]["cuts"]
        ends = [cut["length"] for cut in cuts[:-1]]
        cut_N = np.searchsorted(ends, longest_N) if ends else np.zeros(num, int)
        outputs = {
            t["name"]: np.full((num, t["outputs"]), np.nan, np.float32)
            for t in self.schema["tasks"]
        }
        for number, cut in enumerate(cuts):
            own = np.flatnonzero(present_N & (cut_N == number))
            for start in range(0, len(own), SIZES[-1]):
                part = own[start : start + SIZES[-1]]
                size = next(size for size in SIZES if size >= len(part))
                arrays = {}
                for m, kept in zip(self._modalities, payloads, strict=True):
                    fitted, chosen = member.scaling.get(m.name), [kept[n] for n in part]
                    arrays[m.name] = m.stacked(chosen, size, cut["length"], fitted)
                for name, value_nC in self.call(k, number, arrays).items():
                    outputs[name][part] = value_nC[: len(part)]
        return outputs

    def call(self, k: int, number: int, arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Task -> f32[N, C] of member k, by its program of a bucket.

        `arrays` are its own: modality -> part -> [N, ...], scaled and padded.
        """
        member = self.members[k]
        program = self.schema["programs"][member.program]
        if (member.program, number) not in self._compiled:
            run = jax.jit(self._exported(program, number).call)
            self._compiled[member.program, number] = run
        given = [arrays[name][part] for name, part in program["inputs"]]
        try:
            values = self._compiled[member.program, number](*member.arrays(), *given)
        except Exception as error:
            why = type(error).__name__
            raise Refused(f"{self.path}: cannot run here ({why})", 4) from error
        names = [task["name"] for task in self.schema["tasks"]]
        return dict(zip(names, map(np.asarray, values), strict=True))

    def _exported(self, program: Mapping[str, Any], number: int) -> export.Exported:
        """The program of a bucket, as JAX calls it."""
        here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
        if here not in program["platforms"]:
            listed = ", ".join(program["platforms"])
            raise Refused(f"{self.path}: runs on {listed}; set JAX_PLATFORMS=cpu", 4)
        low = export.minimum_supported_calling_convention_version
        high = export.maximum_supported_calling_convention_version
        if not low <= program["convention"] <= high:
            raise Refused(
                f"{self.path}: is of JAX {self.schema['jax']}, and JAX {jax.__version__} here"
                " cannot run it; install a JAX of about the same time",
                4,
            )
        with _sound(f"{self.path}: holds a program that cannot be read"):
            return exported(program, number, self._code[program["cuts"][number]["file"]])


def exported(program: Mapping[str, Any], number: int, code: bytes) -> export.Exported:
    """A module of StableHLO as JAX's `Exported`.

    The signature is that of an empty function of the same arguments, which this JAX exports anew;
    so nothing but the module, which is portable, is read from the file. Raises Refused for one that
    calls what is not StableHLO.
    """
    (rows,) = export.symbolic_shape("b")

    def like(shape, dtype):
        return jax.ShapeDtypeStruct(tuple(rows if n is None else n for n in shape), np.dtype(dtype))

    given = [like(*one) for one in program["params"]] + [like((), "float32")] * program["scalars"]
    given += [like(*one) for one in program["cuts"][number]["arrays"]]
    made = [tuple(one[0][1:]) for one in program["outputs"]]

    def nothing(*args):
        return tuple(jax.numpy.zeros((args[-1].shape[0], *shape), "float32") for shape in made)

    empty = export.export(
        jax.jit(nothing, keep_unused=True), platforms=tuple(program["platforms"])
    )(*given)
    whole = dataclasses.replace(
        empty,
        mlir_module_serialized=code,
        calling_convention_version=program["convention"],
        module_kept_var_idx=tuple(range(len(given))),
    )
    require_pure(whole.mlir_module())
    return whole


def require_pure(text: str) -> None:
    """Raises Refused for a program that calls anything outside itself but `CALLS`."""
    known = "|".join(map(re.escape, CALLS))
    allowed = len(re.findall(rf'stablehlo\.custom_call @"?(?:{known})"?\(', text))
    if text.count("custom_call") != allowed or re.search(r"\b(infeed|outfeed|send|recv)\b", text):
        raise Refused("the program calls what is not StableHLO", 4)


@dataclasses.dataclass
class Member:
    """One model's parameters, and how its training split scales inputs and regression targets."""

    params: list[Any]
    targets: list[np.ndarray]  # loc and scale of every regression task
    scaling: dict[str, list[dict[str, Any]]]  # of every modality that is scaled, by feature
    program: int

    def arrays(self) -> list[Any]:
        """What a program takes before the inputs; parameters are put on the device once."""
        self.params = [x if isinstance(x, jax.Array) else jax.device_put(x) for x in self.params]
        return [*self.params, *self.targets]


def _member(raw: bytes, known: Mapping[str, Any], program: Mapping[str, Any]) -> Member:
    """A member of its bytes. Raises ValueError for another number of them."""
    found, start = [], 0
    for shape, dtype in program["params"]:
        kind, count = np.dtype(dtype), int(np.prod(shape, dtype=np.int64))
        found.append(np.frombuffer(raw, kind, count, start).reshape(shape))
        start += count * kind.itemsize
    if start != len(raw):
        raise ValueError("another number of parameters")
    scaling = known["scaling"]
    targets = [np.asarray(number, np.float32) for pair in scaling["targets"] for number in pair]
    return Member(found, targets, scaling["inputs"], known["program"])


# --- inputs -------------------------------------------------------------------------------------


class Modality:
    """What a modality's payloads are, and how they become arrays; the schema says all of it."""

    def __init__(self, known: Mapping[str, Any]):
        """Raises ValueError, or what Python does, for one that no export writes."""
        _require_modality(known)
        self.name: str = known["name"]
        self.kind: str = known["kind"]
        self.shape: tuple[int, ...] = tuple(known["shape"])
        self.dtype = np.dtype(known["dtype"])
        self.features: list[dict[str, Any]] = known["features"]
        self.names = [feature["name"] for feature in self.features]
        self.length = 1 if self.kind == "table" else self.shape[0]
        self.window: tuple[float | None, float | None] = tuple(known.get("window", (None, None)))
        self.every: float = known.get("every", 0.0)
        self.vocab: int | None = known.get("vocab")
        self.tokens: dict[str, Any] | None = known.get("tokens")
        self._ids = {t: i for i, t in enumerate((self.tokens or {}).get("known", ()), start=1)}

    def token(self, token: str) -> int | None:
        """The id of a token; None outside the vocabulary."""
        if (self.tokens or {}).get("hashed"):
            number = int.from_bytes(
                hashlib.blake2b(token.encode(), digest_size=8).digest(), "little"
            )
            return 1 + number % max(1, (self.vocab or 1) - 1)
        return self._ids.get(token)

    def stacked(self, payloads: Sequence[Any], size: int, length: int | None, fitted) -> dict:
        """Padded, scaled arrays of `size` rows; those beyond the payloads are absent."""
        cut = self.length if length is None or self.kind not in RAGGED else min(length, self.length)
        shape = self.shape if self.kind == "table" else (cut, *self.shape[1:])
        parts: dict[str, np.ndarray] = {
            "values": np.zeros((size, *shape), self.dtype),
            "mask": np.zeros((size, cut), bool),
            "present": np.zeros(size, bool),
        }
        if self.kind in TIMED:
            parts["times"] = np.zeros((size, cut), np.float32)
        if self.kind in ("series", "table"):
            parts["observed"] = np.zeros((size, *shape), bool)
        for n, payload in enumerate(payloads):
            if payload is not None:
                _fill(self, parts, n, *payload)
        values = parts["values"]
        if fitted is not None:
            scale(values, fitted)
        if self.kind in ("series", "table"):
            np.multiply(values, parts["observed"], out=values)
        elif self.kind == "signal":
            values *= parts["mask"][..., None]
        return parts


def _require_modality(known: Mapping[str, Any]) -> None:
    shape, features = known["shape"], known["features"]
    optional = [(known.get("every"), MAYBE), (known.get("vocab"), (int, type(None)))]
    optional += [(end, MAYBE) for end in known.get("window", (None, None))]
    optional += [(f.get(end), MAYBE) for f in features for end in ("low", "high")]
    optional += [(f.get(word, ""), str) for f in features for word in ("name", "unit", "take")]
    tokens = known.get("tokens") or {}
    optional += [(token, str) for token in tokens.get("known", ())]
    sound = (
        isinstance(known["name"], str)
        and (known["kind"] == "image" or len(shape) == AXES[known["kind"]])
        and len(shape) > 0
        and all(type(n) is int and n > 0 for n in shape)
        and np.dtype(known["dtype"]).kind in "fiu"
        and len(features) in (0, shape[-1])
        and len(known.get("window", (None, None))) == 2
        and all(isinstance(value, types) for value, types in optional)
    )
    if not sound:
        raise ValueError("a modality of no kind that is known")


def _fill(m: Modality, parts: dict[str, np.ndarray], n: int, values, times) -> None:
    count = 1 if m.kind == "table" else len(values)
    place: Any = ... if m.kind == "table" else slice(count)
    parts["present"][n] = True
    parts["mask"][n, :count] = True
    if m.kind in ("series", "table"):
        known = ~np.isnan(values)
        parts["observed"][n][place] = known
        values = np.where(known, values, 0)
    parts["values"][n][place] = values
    if times is not None:
        parts["times"][n, :count] = times


def scale(values: np.ndarray, fitted: Sequence[Mapping[str, Any]]) -> None:
    """Raw units -> z units, in place, by what was fitted on training values of each feature."""
    log_f = np.array([f["transform"] == "log1p" for f in fitted])
    mean_f, std_f, low_f, high_f = (
        np.array([f[key] for f in fitted], np.float32) for key in ("mean", "std", "low", "high")
    )
    if log_f.any():
        values[..., log_f] = np.log1p(np.maximum(values[..., log_f], 0))
    values -= mean_f
    values /= std_f
    np.clip(values, low_f, high_f, out=values)


def rows_of(given: Any, modalities: Sequence[Modality]) -> list[dict[str, Any]]:
    """Rows in whatever form they were given. Raises Refused."""
    if isinstance(given, Mapping) and any(isinstance(v, np.ndarray) for v in given.values()):
        return rows_of_arrays(given, modalities)
    if isinstance(given, Mapping) and "inputs" in given:
        given = [given]
    elif isinstance(given, Mapping):
        if [*given] != ["rows"]:
            raise Refused('rows: must be a list of rows, {"rows": [...]} or one row')
        given = given["rows"]
    if not isinstance(given, list) or not given:
        raise Refused("rows: must be a list of at least one row")
    if len(given) > MOST_ROWS:
        raise Refused(f"rows: {len(given)} rows, at most {MOST_ROWS} at once")
    for number, row in enumerate(given, start=1):
        if not isinstance(row, Mapping) or not isinstance(row.get("inputs"), Mapping):
            raise Refused(f'row {number}: must be {{"id": ..., "inputs": {{modality: ...}}}}')
        if unknown := [key for key in row if key not in ROW_KEYS]:
            raise Refused(f"row {number}: {_name(unknown[0])} is none of {', '.join(ROW_KEYS)}")
        if not isinstance(row.get("id", 0), str | int):
            raise Refused(f"row {number}: id must be a text or a whole number")
    return [*given]


def rows_of_arrays(given: Mapping[str, Any], modalities: Sequence[Modality]) -> list[dict]:
    """Rows of arrays, `<modality>/values` [N, T, ...] and so on; see `--schema`."""
    known = {m.name: m for m in modalities}
    lengths, arrays = set(), {}
    for key, array in given.items():
        name, _, part = str(key).rpartition("/")
        wanted = _array_parts(known[name]) if name in known else ()
        if key != "id" and part not in wanted:
            raise Refused(f"{_name(key)}: is no array of the schema; see --schema")
        if not isinstance(array, np.ndarray) or not array.ndim:
            raise Refused(f"{_name(key)}: must be an array with a dimension of rows")
        if array.dtype.kind not in ("biufUS" if key == "id" else "biuf"):
            raise Refused(f"{_name(key)}: must be of numbers{' or text' * (key == 'id')}")
        if array.ndim > 1 and (key == "id" or part == "present"):
            raise Refused(f"{_name(key)}: must have the dimension of rows alone")
        arrays[key] = array
        lengths.add(len(array))
    if len(lengths) != 1 or not 0 < max(lengths) <= MOST_ROWS:
        raise Refused(f"arrays: of {sorted(lengths)} rows; all need the same number, at least 1")
    rows = []
    for n in range(lengths.pop()):
        inputs = {}
        for name, m in known.items():
            own = {p: arrays[f"{name}/{p}"][n] for p in _array_parts(m) if f"{name}/{p}" in arrays}
            if own:
                inputs[name] = _of_arrays(m, own, f"row {n + 1}: {name}")
        rows.append({"inputs": inputs} | ({"id": arrays["id"][n].item()} if "id" in arrays else {}))
    return rows_of(rows, modalities)


def _array_parts(m: Modality) -> tuple[str, ...]:
    parts = ["values", "present"] + ["mask"] * (m.kind != "table")
    parts += ["times"] * (m.kind in TIMED) + ["observed"] * (m.kind in ("series", "table"))
    return tuple(parts)


def _of_arrays(m: Modality, own: dict[str, np.ndarray], where: str) -> Any:
    """One row's payload of its padded arrays; what is masked or not present is not looked at."""
    for part in ("present", "mask", "observed"):
        if part in own and own[part].dtype != bool:
            raise Refused(f"{where}/{part}: must be of bool")
    if not bool(own.get("present", True)):
        return None
    if "values" not in own:
        raise Refused(f"{where}/values: is missing")
    values = own["values"]
    if "observed" in own:
        if own["observed"].shape != values.shape:
            raise Refused(f"{where}/observed: must have the shape of the values")
        values = np.where(own["observed"], values.astype(np.float64), np.nan)
    if m.kind == "table":
        return {"values": values}
    keep = own.get("mask", np.ones(values.shape[:1], bool))
    if values.shape[:1] != keep.shape or keep.shape != own.get("times", keep).shape:
        raise Refused(f"{where}: values, mask and times must have the same number of positions")
    if not keep.any():
        return None
    parts = {"values": values[keep]}
    return parts | ({"times": own["times"][keep]} if "times" in own else {})


def _row(row, modalities: Sequence[Modality], where: str, notes) -> list[Any]:
    """(values, times) of every modality in order, None where absent. Raises Refused."""
    names = [m.name for m in modalities]
    for name in row["inputs"]:
        if name not in names:
            raise Refused(f"{where}: {_name(name)} is no modality; there are {', '.join(names)}")
    found = []
    for m in modalities:
        given = row["inputs"].get(m.name)
        there = given.get("present", True) if isinstance(given, Mapping) else given is not None
        if not isinstance(there, bool | np.bool_):  # 0 and "false" would be taken for true
            raise Refused(f"{where}: {m.name}/present: must be true or false")
        absent = not there
        at = Place(m, f"{where}: {m.name}", notes)
        found.append(None if absent else _READERS.get(m.kind, _positions)(given, at))
    return found


@dataclasses.dataclass
class Place:
    """A payload's modality and row, and what to do about what does not belong in it."""

    m: Modality
    where: str
    notes: dict[str, int] | None  # None: it is refused

    def drop(self, count: int, of: str, why: str) -> None:
        """Counts what training would have dropped, or raises Refused."""
        if count and self.notes is None:
            raise Refused(f"{self.where}{of}: {count} {why}; --as_trained drops them")
        if count and self.notes is not None:
            key = f"{self.m.name}{of}: {why}, dropped"
            self.notes[key] = self.notes.get(key, 0) + count


def _series(given: Any, at: Place) -> Any:
    """{"times": [t], "values": [t][f] or {variable: [t]}}, or {variable: {times, values}}."""
    if not isinstance(given, Mapping):
        raise Refused(f"{at.where}: must be an object of times and values")
    m = at.m
    if {*given} - {"present"} == {"times", "values"} and not isinstance(given["times"], Mapping):
        return _by_rows(given, at)
    columns = []
    for name, one in given.items():
        if name == "present":
            continue
        if name not in m.names:
            raise Refused(
                f"{at.where}: {_name(name)} is no variable; there are {', '.join(m.names)}"
            )
        if not isinstance(one, Mapping) or {*one} != {"times", "values"}:
            raise Refused(f'{at.where}.{name}: must be {{"times": [...], "values": [...]}}')
        times = _numbers(one["times"], 1, f"{at.where}.{name}.times")
        values = _numbers(one["values"], 1, f"{at.where}.{name}.values", gaps=True)
        if len(times) != len(values):
            raise Refused(f"{at.where}.{name}: {len(values)} values at {len(times)} times")
        f = m.names.index(name)
        values = _plausible(values[:, None], at, [f])[:, 0]
        keep = _inside(times, at, f".{name}") & ~np.isnan(values)
        order = np.argsort(times[keep], kind="stable")
        columns.append((f, times[keep][order], values[keep][order]))
    if not sum(len(times) for _, times, _ in columns):
        return None
    with np.errstate(over="ignore"):
        values, times = merged(columns, m)
    if np.isinf(values).any():
        raise Refused(f"{at.where}: {int(np.isinf(values).sum())} values are too large")
    return _cut(values, times, at)


def merged(columns: Sequence[tuple[int, np.ndarray, np.ndarray]], m: Modality):
    """(values f32[t, f], times f32[t]) of single variables: a row for every time that any has.

    With `every` a row is a cell of so many hours, stamped with its end.
    """
    hours = [times for _, times, _ in columns]
    if m.every:
        first = 1.0 if min(times[0] for times in hours if len(times)) >= 0 else -np.inf
        hours = [np.maximum(np.ceil(times / m.every), first) * m.every for times in hours]
    times_t, row_n = np.unique(np.concatenate(hours), return_inverse=True)
    values_tf = np.full((len(times_t), len(m.features)), np.nan, np.float32)
    start = 0
    for (f, times, values), _ in zip(columns, hours, strict=True):
        own = row_n[start : start + len(times)]
        start += len(times)
        if len(own):
            values_tf[:, f] = taken(values, own, len(times_t), m.features[f].get("take", "last"))
    return values_tf, times_t.astype(np.float32)


def taken(value_n: np.ndarray, row_n: np.ndarray, num: int, take: str) -> np.ndarray:
    """One number per row of its values in order of time, NaN where there is none."""
    out = np.full(num, np.nan)
    if take == "last":
        out[row_n] = value_n
    elif take == "first":
        out[row_n[::-1]] = value_n[::-1]
    elif take in ("min", "max"):
        {"min": np.fmin, "max": np.fmax}[take].at(out, row_n, value_n)
    else:
        count = np.bincount(row_n, minlength=num)
        total = np.bincount(row_n, weights=value_n, minlength=num)
        out = np.where(count > 0, total / (np.maximum(count, 1) if take == "mean" else 1), np.nan)
    return out


def _by_rows(given: Mapping, at: Place) -> Any:
    m = at.m
    times = _numbers(given["times"], 1, f"{at.where}.times")
    values = given["values"]
    if isinstance(values, Mapping):
        columns = np.full((len(times), len(m.names)), np.nan)
        for name, one in values.items():
            if name not in m.names:
                listed = ", ".join(m.names)
                raise Refused(f"{at.where}: {_name(name)} is no variable; there are {listed}")
            column = _numbers(one, 1, f"{at.where}.{name}", gaps=True)
            if len(column) != len(times):
                raise Refused(f"{at.where}.{name}: {len(column)} values at {len(times)} times")
            columns[:, m.names.index(name)] = column
        values = columns
    values = _numbers(values, 2, f"{at.where}.values", gaps=True, width=m.shape[-1])
    if len(values) != len(times):
        raise Refused(f"{at.where}: {len(values)} rows of values at {len(times)} times")
    values = _plausible(values, at, range(m.shape[-1]))
    keep = _inside(times, at, "")
    order = np.argsort(times[keep], kind="stable")
    values, times = values[keep][order], times[keep][order]
    return None if np.isnan(values).all() else _cut(_single(values, at), times, at)


def _table(given: Any, at: Place) -> Any:
    """{feature: number or null}, or {"values": [f]}."""
    m = at.m
    if isinstance(given, Mapping) and ({*given} - {"present"} != {"values"} or "values" in m.names):
        columns = np.full(len(m.names), np.nan)
        for name, one in given.items():
            if name == "present" and name not in m.names:
                continue
            if name not in m.names:
                listed = ", ".join(m.names)
                raise Refused(f"{at.where}: {_name(name)} is no variable; there are {listed}")
            columns[m.names.index(name)] = _numbers([one], 1, f"{at.where}.{name}", gaps=True)[0]
        given = {"values": columns}
    if not isinstance(given, Mapping):
        raise Refused(f"{at.where}: must be an object of variables")
    values = _numbers(given["values"], 1, f"{at.where}.values", gaps=True)
    if values.shape != m.shape:
        raise Refused(f"{at.where}: {len(values)} values for {m.shape[0]} variables")
    values = _plausible(values[None], at, range(len(values)))[0]
    return None if np.isnan(values).all() else (_single(values, at), None)


def _positions(given: Any, at: Place) -> Any:
    """Vectors, views of an image, samples: {"values": [t][...]}, vectors with "times"."""
    m = at.m
    wanted = {"values", "times"} if m.kind == "vectors" else {"values"}
    if not isinstance(given, Mapping) or {*given} - {"present"} != wanted:
        raise Refused(f"{at.where}: must be an object of {', '.join(sorted(wanted))}")
    values = given["values"]
    if not isinstance(values, np.ndarray) and isinstance(values, list) and not values:
        return None
    values = _numbers(values, len(m.shape), f"{at.where}.values")
    if values.shape[1:] != m.shape[1:]:
        shape = " x ".join(map(str, ("t", *m.shape[1:])))
        raise Refused(f"{at.where}: values of shape {values.shape}, expected {shape}")
    if m.dtype.kind in "iu":
        values = _whole(values, 0 if m.dtype == np.uint8 else None, 255, at)
    times = None
    if m.kind == "vectors":
        times = _numbers(given["times"], 1, f"{at.where}.times")
        if len(times) != len(values):
            raise Refused(f"{at.where}: {len(values)} vectors at {len(times)} times")
        keep = _inside(times, at, "")
        order = np.argsort(times[keep], kind="stable")
        values, times = values[keep][order], times[keep][order]
    return None if not len(values) else _cut(_single(values, at), times, at)


def _ids(given: Any, at: Place) -> Any:
    """Tokens of codes or text: a list of ids, or of words where the bundle has a vocabulary."""
    m = at.m
    if isinstance(given, Mapping):
        given = given.get("values") if {*given} - {"present"} == {"values"} else given
    if isinstance(given, str):
        if not m.tokens or not m.tokens.get("split"):
            raise Refused(f"{at.where}: must be a list of ids; how text is split is not known here")
        words = WORD.findall(given.lower()) if m.tokens["split"] == "words" else [given]
        given = [" ".join(word.lower().split()) for word in words if word.strip()]
    if not isinstance(given, list) and not (isinstance(given, np.ndarray) and given.ndim):
        raise Refused(f"{at.where}: must be a list of tokens or ids")
    if len(given) and all(isinstance(one, str) for one in given):
        if m.tokens is None:
            raise Refused(f"{at.where}: must be ids; the bundle has no vocabulary of it")
        try:
            found = [m.token(one) for one in given]
        except UnicodeEncodeError:
            raise Refused(f"{at.where}: has a token of half a letter, which is no text") from None
        at.drop(found.count(None), "", "tokens outside the vocabulary")
        ids = np.array([one or 0 for one in found], np.int32)
    else:
        ids = _numbers(given, 1, f"{at.where}.values") if len(given) else np.zeros(0)
        ids = _whole(ids, 0, (m.vocab or 2**31) - 1, at).astype(m.dtype)
    if m.tokens and m.tokens.get("distinct"):  # in the order of their last appearance
        _, from_end = np.unique(ids[::-1], return_index=True)
        ids = ids[::-1][np.sort(from_end)][::-1]
    return _cut(ids, None, at) if len(ids) else None


_READERS = {"series": _series, "table": _table, "codes": _ids, "text": _ids}


def _numbers(given: Any, ndim: int, where: str, *, gaps: bool = False, width: int | None = None):
    """f64 of so many dimensions; with `gaps` null is NaN. Raises Refused for anything else."""
    try:
        found = np.asarray(given)
        if found.dtype.kind == "O":
            if not all(x is None or isinstance(x, int | float) for x in found.ravel().tolist()):
                raise TypeError
            found = found.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        raise Refused(f"{where}: must be numbers, in lists of the same length") from None
    if not found.size and found.ndim <= ndim:
        found = np.zeros((0,) if ndim == 1 else (0, width or 0))
    if found.dtype.kind not in "biuf":
        raise Refused(f"{where}: must be numbers")
    if found.ndim != ndim:
        raise Refused(f"{where}: has {found.ndim} dimensions, expected {ndim}")
    if width is not None and found.shape[-1] != width:
        raise Refused(f"{where}: {found.shape[-1]} variables, expected {width}")
    found = found.astype(np.float64)
    if np.isinf(found).any() or (not gaps and np.isnan(found).any()):
        raise Refused(f"{where}: {int((~np.isfinite(found)).sum())} are not finite")
    return found


def _whole(values: np.ndarray, low: int | None, high: int, at: Place) -> np.ndarray:
    if (values != np.floor(values)).any():
        raise Refused(f"{at.where}: must be whole numbers")
    low = -high - 1 if low is None else low
    if values.size and not low <= values.min() <= values.max() <= high:
        raise Refused(f"{at.where}: must be within {low}..{high}")
    return values


def _single(values: np.ndarray, at: Place) -> np.ndarray:
    """In the dtype of the model, which must hold the numbers."""
    with np.errstate(over="ignore"):
        cast = values.astype(at.m.dtype)
    if cast.dtype.kind == "f" and np.isinf(cast).any():
        raise Refused(f"{at.where}: {int(np.isinf(cast).sum())} values are too large")
    return cast


def _plausible(values_nf: np.ndarray, at: Place, columns: Sequence[int]) -> np.ndarray:
    """Without what is outside the plausible range of its variable, which is NaN then."""
    out = values_nf.copy()
    for place, f in enumerate(columns):
        feature = at.m.features[f] if at.m.features else {}
        low, high = feature.get("low"), feature.get("high")
        wrong = np.zeros(len(out), bool)
        with np.errstate(invalid="ignore"):
            # An end may have been rounded to float32, or come from there.
            wrong |= out[:, place] < low - 1e-6 * abs(low) if low is not None else False
            wrong |= out[:, place] > high + 1e-6 * abs(high) if high is not None else False
        if wrong.any():
            ends = ["" if end is None else f"{end:g}" for end in (low, high)]
            unit = f" {feature['unit']}" if feature.get("unit") else ""
            why = f"values outside {ends[0]}..{ends[1]}{unit}"
            at.drop(int(wrong.sum()), f".{feature['name']}", why)
            out[wrong, place] = np.nan
    return out


def _inside(times: np.ndarray, at: Place, of: str) -> np.ndarray:
    """Which times are in the window that the model reads."""
    low, high = (-np.inf if at.m.window[0] is None else at.m.window[0]), at.m.window[1]
    if (np.abs(times) > np.finfo(np.float32).max).any():
        raise Refused(f"{at.where}{of}: has times that are too large")
    keep = (times >= low - 1e-6) & (times <= (np.inf if high is None else high) + 1e-6)
    ends = ["" if end is None else f"{end:g}" for end in at.m.window]
    at.drop(int((~keep).sum()), of, f"times outside {ends[0]}..{ends[1]} hours")
    return keep


def _cut(values: np.ndarray, times: np.ndarray | None, at: Place) -> Any:
    """At most as many positions as the model has; the last ones stay."""
    length = at.m.length
    at.drop(max(0, len(values) - length), "", f"positions more than the {length} that it has")
    return values[-length:], None if times is None else times[-length:].astype(np.float32)


def _name(text: Any) -> str:
    """Somebody's word for something, short and printable."""
    text = str(text)[:60]
    return repr(text) if text.isprintable() else "a name that cannot be printed"


# --- outputs ------------------------------------------------------------------------------------


def averaged(task: Mapping[str, Any], value_kC: np.ndarray) -> np.ndarray:
    """The average of members' predictions [k, ..., C] before the last function: of log-odds.

    Of a regression that of values on the scale of its transform. One member is itself.
    """
    if len(value_kC) == 1:
        return value_kC[0].astype(np.float32)
    value_kC = value_kC.astype(np.float64)
    if task["kind"] == "regression":
        if task["transform"] != "log1p":
            return value_kC.mean(axis=0).astype(np.float32)
        return np.expm1(np.log1p(np.maximum(value_kC, LEAST - 1)).mean(axis=0)).astype(np.float32)
    if task["kind"] == "multiclass":
        log_C = np.log(value_kC.clip(LEAST, None)).mean(axis=0)
        share_C = np.exp(log_C - log_C.max(axis=-1, keepdims=True))
        return (share_C / share_C.sum(axis=-1, keepdims=True)).astype(np.float32)
    value_kC = value_kC.clip(LEAST, 1 - LEAST)
    logit_C = (np.log(value_kC) - np.log1p(-value_kC)).mean(axis=0)
    return (1 / (1 + np.exp(-logit_C))).astype(np.float32)


def told(task: Mapping[str, Any], value_C: np.ndarray, present_M, modalities) -> dict[str, Any]:
    """What is said of a row by one task: numbers, a decision, a prediction set."""
    kind, labels = task["kind"], task["labels"]
    numbers = [float(value) for value in value_C]
    cuts = task.get("threshold")
    decided = (
        [None if c is None else v >= c for v, c in zip(numbers, cuts, strict=True)]
        if cuts
        else None
    )
    sets = [conformal(task, q, value_C, present_M) for q in task.get("conformal", ())]
    if kind == "binary" and len(numbers) == 1:
        out: dict[str, Any] = {"probability": numbers[0]}
        out |= {"decision": decided[0]} if decided else {}
    elif kind in ("binary", "multilabel"):
        out = {"probabilities": dict(zip(labels, numbers, strict=True))}
        out |= {"decisions": dict(zip(labels, decided, strict=True))} if decided else {}
    elif kind == "multiclass":
        out = {"probabilities": dict(zip(labels, numbers, strict=True))}
        out |= {"class": labels[int(np.argmax(value_C))]}
    elif kind == "survival":
        out = {"event_by": dict(zip(labels, numbers, strict=True))}
    elif len(numbers) == 1:
        out = {"value": numbers[0]}
    else:
        out = {"values": dict(zip(labels, numbers, strict=True))}
    if len(sets) == 1:
        out |= sets[0]
    elif sets:
        out["sets"] = {
            q["label"]: one["set"] for q, one in zip(task["conformal"], sets, strict=True)
        }
    lacks = [name for name in task["needs"] if not present_M[modalities.index(name)]]
    return out | ({"lacks": lacks} if lacks else {})


def conformal(task: Mapping[str, Any], question: Mapping[str, Any], value_C, present_M) -> dict:
    """The prediction set or interval of a question: by thresholds of patients like this one."""
    if question["classes"]:
        answer_K = value_C.astype(np.float64)
        if task["kind"] != "multiclass":
            p = answer_K[question["column"]]
            answer_K = np.array([1 - p, p])
        limit_K = [limit(question["levels"], k, present_M) for k in range(len(answer_K))]
        inside = [1 - p <= q for p, q in zip(answer_K, limit_K, strict=True)]
        return {"set": [c for c, keep in zip(question["classes"], inside, strict=True) if keep]}
    width, log = limit(question["levels"], 0, present_M), task["transform"] == "log1p"
    if not np.isfinite(width):
        return {"interval": [None, None]}
    middle = float(value_C[0])
    middle = np.log1p(max(middle, 0.0)) if log else middle
    ends = [middle - width, middle + width]
    return {"interval": [float(np.expm1(max(end, 0.0))) if log else float(end) for end in ends]}


def limit(levels: Sequence[Mapping[str, Any]], k: int, present_M) -> float:
    """Threshold of a class at the first level that knows this pattern of modalities."""
    for level in levels:
        key = "".join("1" if present_M[m] else "0" for m in level["among"])
        found = level["cells"].get(key, [None] * (k + 1))[k]
        if found is not None:
            return np.inf if found == "all" else float(found)
    return np.inf


def example(schema: Mapping[str, Any]) -> dict[str, Any]:
    """An invented row that has every modality, to begin with."""
    scaling = schema["members"][0]["scaling"]["inputs"]
    inputs: dict[str, Any] = {}
    for m in map(Modality, schema["modalities"]):
        low, high = m.window
        hour = (low or 0.0) if high is None else min(high, max(low or 0.0, high - 1.0))
        usual = [_usual(f, m.features[i : i + 1]) for i, f in enumerate(scaling.get(m.name, ()))]
        if m.kind == "series" and m.names:
            one = zip(m.names, usual, strict=True)
            inputs[m.name] = {n: {"times": [hour], "values": [v]} for n, v in one}
        elif m.kind == "series":
            inputs[m.name] = {"times": [hour], "values": [usual]}
        elif m.kind == "table":
            pairs = dict(zip(m.names, usual, strict=True)) if m.names else {"values": usual}
            inputs[m.name] = pairs
        elif m.kind in ("codes", "text"):
            inputs[m.name] = [*(m.tokens or {}).get("known", ())][:2] or [1, 0]
        else:
            values = np.zeros((1, *m.shape[1:]), m.dtype).tolist()
            inputs[m.name] = {"values": values} | ({"times": [hour]} if m.kind in TIMED else {})
    return {"rows": [{"id": "invented", "inputs": inputs}]}


def _usual(fitted: Mapping[str, Any], feature: Sequence[Mapping[str, Any]]) -> float:
    """A number near the middle of the training values, in the plausible range."""
    value = float(np.expm1(fitted["mean"]) if fitted["transform"] == "log1p" else fitted["mean"])
    value = float(f"{value:.3g}")
    low, high = (feature[0].get(end) if feature else None for end in ("low", "high"))
    value = value if low is None else max(value, low)
    return value if high is None else min(value, high)


# --- the command --------------------------------------------------------------------------------


@contextlib.contextmanager
def _sound(line: str):
    """What reading damaged or foreign bytes ends in -> Refused."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        raise Refused(f"{line} ({type(error).__name__})", 4) from error


def _json(file: zipfile.ZipFile, name: str) -> dict[str, Any]:
    if file.getinfo(name).file_size > MOST_JSON:
        raise ValueError("too long")
    found = json.loads(file.read(name))
    if not isinstance(found, dict):
        raise ValueError("no object")
    return found


ODD = (TypeError, AttributeError, LookupError, RuntimeError)  # of damaged arrays and archives


def read(path: str) -> Any:
    """Rows of a JSON file or arrays of an .npz file. Raises Refused."""
    try:
        if path == "-":
            raw = sys.stdin.buffer.read(MOST_JSON + 1)
            if len(raw) > MOST_JSON:
                raise Refused(f"standard input: is larger than {MOST_JSON} bytes")
            return _parsed(raw)
        most = MOST_ARRAYS if path.endswith(".npz") else MOST_JSON
        with _opened(path, 3, most) as file:
            return _arrays(file, path) if path.endswith(".npz") else _parsed(file.read())
    except MemoryError:
        raise Refused(f"{path}: asks for more memory than there is") from None
    except (ValueError, RecursionError, zipfile.BadZipFile, zlib.error, EOFError, *ODD):
        raise Refused(f"{path}: is no JSON, nor an .npz file of plain arrays") from None


def _parsed(raw: bytes) -> Any:
    return json.loads(raw, parse_constant=_no_number, object_pairs_hook=_once)


def _arrays(file: BinaryIO, path: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, whose size is known before any is unpacked."""
    with zipfile.ZipFile(file) as parts:
        for one in parts.infolist():
            if one.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError("unpacks to what it likes")  # the others know no end of their own
        total = sum(one.file_size for one in parts.infolist())
    if total > MOST_ARRAYS:
        raise Refused(f"{path}: unpacks to more than {MOST_ARRAYS} bytes; split it")
    file.seek(0)
    with np.load(file, allow_pickle=False) as found:
        _require_once(found.files)
        return {name: found[name] for name in found.files}


def _no_number(word: str) -> None:
    raise Refused(f"rows: {word} is no number of JSON; null stands for what was not measured")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        _require_once([name for name, _ in pairs])
    return found


def _require_once(names: Sequence[str]) -> None:
    for name, count in collections.Counter(names).most_common(1):
        if count > 1:
            raise Refused(f"rows: {_name(name)} is there twice in one object")


def write(path: str, text: str) -> None:
    """Replaces a file, which its owner alone can read. Raises Refused."""
    partial = ""
    if os.path.exists(path) and not os.path.isfile(path):  # a device would be replaced, by root
        raise Refused(f"{path}: cannot be written (is no regular file)")
    try:
        handle, partial = tempfile.mkstemp(dir=Path(path).parent, prefix=".m4-")  # mode 0600
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # it holds predictions
            os.unlink(partial)
        raise Refused(f"{path}: cannot be written ({error.strerror})") from None


def run(path: str, args: Sequence[str]) -> None:
    """The command on a bundle. Raises Refused."""
    found = {}
    for arg in args:
        name, equals, value = arg.removeprefix("--").partition("=")
        takes = name in ("in", "out", "digest")
        switch = name in ("as_trained", "example", "schema", "card", "help")
        if not arg.startswith("--") or not (takes or switch) or name in found:
            raise Refused(f"{_name(arg)}: unknown, or given twice; see --help", 2)
        if takes != bool(equals and value):
            raise Refused(f"--{name}: {'needs a value' if takes else 'takes no value'}", 2)
        found[name] = value
    if "help" in found or not found:
        print(USAGE)
        return
    for name, other in (("the bundle", path), ("--in", found.get("in", ""))):
        if "out" in found and _same(found["out"], other):
            raise Refused(f"--out={found['out']}: is {name}; choose another", 2)
    bundle = Bundle(path, digest=found.get("digest"))
    if "card" in found:
        print(bundle.card_text, end="")
    elif "schema" in found:
        hidden = ("members", "programs")
        print(json.dumps({k: v for k, v in bundle.schema.items() if k not in hidden}, indent=1))
    elif "example" in found:
        print(json.dumps(example(bundle.schema), indent=1))
    elif "in" not in found:
        raise Refused("--in: is missing; see --help", 2)
    else:
        rows = bundle.predict(read(found["in"]), as_trained="as_trained" in found)
        head = {"model": bundle.digest, "use": bundle.schema["use"]}
        text = json.dumps(head | {"rows": rows}, indent=1, allow_nan=False) + "\n"
        if "out" in found:
            write(found["out"], text)
            print(f"{len(rows)} rows in {found['out']}")
        else:
            print(text, end="")


def _same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def main(path: str, args: Sequence[str]) -> int:
    """The command's exit code; what is refused is said in one line on stderr.

    So is what was not foreseen: by its place alone, since its words may quote a row.
    """
    try:
        run(path, args)
        sys.stdout.flush()
    except Refused as error:
        print(f"m4: refused: {error}", file=sys.stderr)
        return error.code
    except BrokenPipeError:
        sys.stdout = io.StringIO()
    except OSError as error:
        sys.stdout = io.StringIO()
        print(f"m4: refused: output: cannot be written ({error.strerror})", file=sys.stderr)
        return 3
    except Exception as error:
        own = [f for f in traceback.walk_tb(error.__traceback__) if f[0].f_globals is globals()]
        place = f"{own[-1][0].f_code.co_name}:{own[-1][1]}"
        print(f"m4: internal error: {type(error).__name__} in {place}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    os.umask(0o077)  # what is said of patients is for its owner only
    if isinstance(sys.stdout, io.TextIOWrapper):  # of a terminal that lacks a letter of the card
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(main(sys.argv[0], sys.argv[1:]))
