"""PyTorch's files without PyTorch: a zip of one pickle and one record of bytes per storage.

The pickle is read by an unpickler that knows a fixed list of names and makes inert objects of
them; any other name is refused before it is looked up, so nothing in a file can be executed.
`argparse.Namespace` and NumPy's scalars and arrays, which the authors' scripts save beside their
weights, are on the list. So are the instructions that torch.save writes; any other is refused,
above all those that make room for as much as they say.
"""

import dataclasses
import io
import math
import os
import pickle
import pickletools
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from m4 import regular
from m4.errors import DataError

STORAGES = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16,
    "BFloat16Storage": np.uint16, "LongStorage": np.int64, "IntStorage": np.int32,
    "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_, "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
}  # fmt: skip
CODE = pickle.UnpicklingError
PYTHON: Any = pickle._Unpickler
SCALARS = (str, bytes, int, float, type(None))  # bool is an int
# What Python's pickler writes of the objects below, in any protocol from 2 on: no instruction as
# text, none that doubles or drops what lies on the stack, none of a length of eight bytes.
INSTRUCTIONS = {
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1",
    "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES",
    "SHORT_BINBYTES", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST",
    "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_SET", "ADDITEMS",
    "FROZENSET", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GLOBAL",
    "STACK_GLOBAL", "REDUCE", "BUILD", "NEWOBJ", "BINPERSID",
}  # fmt: skip
MOST_AXES = 64  # of a tensor, as NumPy has


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """Numbers of a tensor, or why there are none."""

    values: np.ndarray | None
    lacks: str = ""


class Inert:
    """What stands for an object that is no tensor; whatever its pickle says is only kept."""

    __slots__ = ("state",)

    def __init__(self, *_: Any):
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        """Keeps it."""
        self.state = state


class _Ordered(dict):
    """An OrderedDict on which a pickle can set nothing; torch sets versions of modules, unread."""

    __slots__ = ()

    def __setstate__(self, _: Any) -> None:
        """Passes over it."""


class _Function:
    """A function on the list, without anything that a pickle could set."""

    __slots__ = ("function",)

    def __init__(self, function):
        object.__setattr__(self, "function", function)

    def __call__(self, *args):
        return self.function(*args)

    def __setattr__(self, name, value):
        raise CODE(f"sets {name} of a function")


def read(path: Path) -> Any:
    """The tree of a file: dictionaries, lists, numbers, `Tensor` and `Inert`.

    Raises DataError for a file that is damaged (every record's CRC-32 is checked), holds another
    name or instruction than those on the lists, or is no such zip.
    """
    try:
        with regular.opened(path) as raw, zipfile.ZipFile(raw) as file:
            _check(file, os.fstat(raw.fileno()).st_size)
            broken = file.testzip()
            if broken is not None:
                raise DataError(f"{path}: is damaged: the checksum of {broken} is wrong")
            return _tree(file)
    except DataError:
        raise
    except CODE as error:
        raise DataError(
            f"{path}: cannot be read as tensors alone ({error}); nothing in it was executed. If"
            " you trust it, save its state dict by itself with torch.save"
        ) from None
    except Exception as error:  # of a damaged zip or pickle there is no end
        why = " ".join(str(error).split())[:160]
        raise DataError(f"{path}: is damaged ({type(error).__name__}: {why})") from None


def _check(file: zipfile.ZipFile, size: int) -> None:
    """Raises for records that would take more room than the file has, before any is read.

    Also for two of one name, of which every reader takes the one that it likes.
    """
    if any(info.compress_type != zipfile.ZIP_STORED for info in file.infolist()):
        raise CODE("its records are compressed, which torch.save never does")
    total = sum(info.file_size for info in file.infolist())
    if total > size:
        raise ValueError(f"its records have {total} bytes, the file only {size}")
    if any(info.flag_bits & 1 for info in file.infolist()):
        raise CODE("its records are encrypted, which torch.save never does")
    if len({*file.namelist()}) < len(file.namelist()):
        raise CODE("two of its records have one name, which torch.save never writes")


def _tree(file: zipfile.ZipFile) -> Any:
    pickles = [name for name in file.namelist() if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1:
        raise CODE("it is a zip without one data.pkl, so no file of torch.save")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in file.namelist() and file.read(f"{folder}byteorder") != b"little":
        raise CODE("its numbers are big-endian")
    return _Unpickler(file, folder).load()


def _plain(keys: Iterable[Any]) -> None:
    """Raises UnpicklingError for keys but numbers, texts and short tuples of them.

    Others are not hashed: a tuple that lies deep in itself would end the process.
    """
    for key in keys:
        parts = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(part, SCALARS) for part in parts):
            raise CODE("its dictionaries have keys that are neither numbers nor texts")


def _ordered(pairs=()) -> _Ordered:
    pairs = [*pairs]
    _plain(key for key, _ in pairs)
    return _Ordered(pairs)


class _Unpickler(PYTHON):
    """Names on the list become inert objects, and every key is looked at before it is hashed.

    The one in Python: that in C makes room for any place that a pickle names, and hashes unasked.
    """

    dispatch: dict[int, Any] = {}

    def __init__(self, file: zipfile.ZipFile, folder: str):
        super().__init__(io.BytesIO(file.read(f"{folder}data.pkl")))
        self.file, self.folder = file, folder
        self.records: dict[str, bytes] = {}  # each is read once, however many tensors share it

    def find_class(self, module: str, name: str) -> Any:
        """The inert object of a name. Raises UnpicklingError for any other."""
        if module == "torch" and name in STORAGES:
            return name
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        try:
            return NAMES[module, name]
        except KeyError:
            raise CODE(f"it names {module}.{name}") from None

    def persistent_load(self, pid: Any) -> tuple[str, np.ndarray]:
        """Kind and numbers of a storage."""
        kind, name, key, _, count = pid
        plain = all(isinstance(one, str) for one in (kind, name, key))  # others are not hashed
        if not plain or kind != "storage" or name not in STORAGES:
            raise CODE("it has records of an unknown kind")
        if key not in self.records:
            self.records[key] = self.file.read(f"{self.folder}data/{key}")
        values = np.frombuffer(self.records[key], STORAGES[name])
        if len(values) != count:
            raise ValueError(f"record {key} has {len(values)} numbers, expected {count}")
        return name, values


def _looking_first(step, keys: slice):
    """A step of the unpickler that hashes what lies in `keys` of its stack."""

    def load(self):
        _plain(self.stack[keys])
        step(self)

    return load


def _refused(name: str):
    """The step of an instruction that torch.save never writes."""

    def load(self):
        raise CODE(f"its pickle has the instruction {name}, which torch.save never writes")

    return load


HASHING = {  # instruction -> where the keys are that it hashes
    "SETITEM": slice(-2, -1),
    "SETITEMS": slice(None, None, 2),
    "ADDITEMS": slice(None),
    "FROZENSET": slice(None),
}
for _code in pickletools.opcodes:
    _step = PYTHON.dispatch[ord(_code.code)]
    if _code.name in HASHING:
        _step = _looking_first(_step, HASHING[_code.name])
    if _code.name not in INSTRUCTIONS:
        _step = _refused(_code.name)
    _Unpickler.dispatch[ord(_code.code)] = _step


def _tensor(stored, offset, size, stride, *_) -> Tensor:
    """`torch._utils._rebuild_tensor_v2`: a view, so that an expanded tensor takes no room."""
    name, storage = stored
    if name == "BFloat16Storage":  # NumPy has no such numbers
        return Tensor(None, "is torch.bfloat16, expected float32")
    size, stride = tuple(size), tuple(stride)
    if len(size) != len(stride) or len(size) > MOST_AXES:
        raise ValueError(f"a tensor of {len(size)} sizes and {len(stride)} strides")
    if any(type(n) is not int or not 0 <= n < 2**63 for n in (offset, *size, *stride)):
        raise ValueError(f"a tensor of size {size} and strides {stride}")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if offset > len(storage) or (math.prod(size) and last >= len(storage)):
        raise ValueError(f"a tensor of size {size} reaches beyond its {len(storage)} numbers")
    steps = tuple(s * storage.itemsize for s in stride)
    return Tensor(np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False))


def _meta(*_) -> Tensor:
    return Tensor(None, "is on the meta device: it has a shape, but no numbers")


def _sparse(*_) -> Tensor:
    return Tensor(None, "is sparse, expected a dense tensor")


def _quantised(*_) -> Tensor:
    return Tensor(None, "is quantised, expected float32")


def _nothing(*_) -> Inert:
    return Inert()


def _text(text, encoding="latin1"):
    """`codecs.encode`, by which protocol 2 stores bytes."""
    return text.encode(encoding if encoding == "latin1" else "utf-8")


NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Function(_ordered),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(lambda data, *_: data),
    ("torch._utils", "_rebuild_parameter_with_state"): _Function(lambda data, *_: data),
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): _Function(_meta),
    ("torch._utils", "_rebuild_sparse_tensor"): _Function(_sparse),
    ("torch._utils", "_rebuild_qtensor"): _Function(_quantised),
    ("torch", "Size"): _Function(lambda size=(): tuple(size)),
    ("torch", "device"): _Function(_nothing),
    ("torch.serialization", "_get_layout"): _Function(_nothing),
    ("argparse", "Namespace"): Inert,
    ("numpy", "dtype"): Inert,
    ("numpy", "ndarray"): Inert,
    ("collections", "defaultdict"): _Function(lambda *_: {}),
    ("collections", "Counter"): _Function(lambda *_: {}),
    ("_codecs", "encode"): _Function(_text),
    ("builtins", "set"): _Function(lambda items=(): list(items)),
    ("builtins", "frozenset"): _Function(lambda items=(): list(items)),
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    NAMES[_module, "scalar"] = NAMES[_module, "_reconstruct"] = _Function(_nothing)
for _name in ("dict", "int", "float", "list", "tuple", "str", "bool"):  # of defaultdicts
    NAMES["builtins", _name] = _Function(_nothing)
for _name in ("float16", "bfloat16", "float32", "float64", "int64", "int32", "uint8", "bool"):
    NAMES["torch", _name] = _Function(_nothing)
for _name in ("Path", "PosixPath", "PurePosixPath", "WindowsPath"):
    NAMES["pathlib", _name] = _Function(_nothing)
