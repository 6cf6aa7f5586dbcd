"""A compiled program as text: what one device multiplies and what it sends, loops included.

Bodies of loops count as often as the compiler knows them to run. A loop whose length depends on
the data counts once in `loops` and not in sums: m4's run only for what overflows. Of branches the
dearest counts.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16}
BITS |= {"s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "token": 0}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all")
KINDS += ("collective-permute", "collective-broadcast")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\(")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?.*\{$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|called_computations)=\{?%?([\w.\-]+)")
_BRANCHES = re.compile(
    r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+))"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program, as often as it runs."""

    kind: str
    axes: tuple[str, ...]  # of the mesh, between which it moves
    times: int
    bytes: int  # of its result on one device, of one run
    wire: float  # bytes that one device sends, of one run: a ring's
    where: str  # in the source


@dataclasses.dataclass(frozen=True)
class Program:
    """What one device does in one call."""

    products: dict[str, float]  # FLOPs of matrix products by their operands' dtype
    collectives: tuple[Collective, ...]
    callbacks: int  # calls of the host
    loops: int  # of unknown length


@dataclasses.dataclass
class _Line:
    name: str
    shape: str
    op: str
    text: str


def read(text: str, mesh: Mapping[str, int]) -> Program:
    """What a program's text says; `mesh` has the sizes of the axes in their order."""
    entry, computations = _computations(text)
    shapes = {line.name: line.shape for lines in computations.values() for line in lines}
    products: dict[str, float] = {}
    collectives, callbacks, loops = [], 0, 0
    for line, times in _walk(entry, computations):
        kind = line.op.removesuffix("-start")
        if line.op in ("dot", "convolution"):
            dtype, flops = _flops(line, shapes)
            products[dtype] = products.get(dtype, 0.0) + times * flops
        elif kind in KINDS and not line.op.endswith("-done"):
            collectives.append(_collective(line, kind, times, mesh))
        elif line.op == "custom-call" and "callback" in line.text:
            callbacks += 1
        loops += line.op == "while" and not _TRIPS.search(line.text)
    return Program(products, tuple(c for c in collectives if c.axes), callbacks, loops)


def _computations(text: str) -> tuple[str, dict[str, list[_Line]]]:
    entry, name, found = "", "", {}
    for raw in text.splitlines():
        if raw.endswith("{") and not raw.startswith((" ", "HloModule")):
            head = _COMPUTATION.match(raw)
            name = head.group(2) if head else ""
            found[name] = []
            entry = name if head and head.group(1) else entry
        elif name and (match := _INSTRUCTION.match(raw)):
            found[name].append(_Line(*match.groups(), text=raw[match.end() :]))
    return entry, found


def _walk(name: str, computations: Mapping[str, list[_Line]]) -> Iterator[tuple[_Line, int]]:
    """Every instruction that runs, and how often."""
    stack = [(name, 1)]
    while stack:
        current, times = stack.pop()
        for line in computations.get(current, ()):
            yield line, times
            trips = _TRIPS.search(line.text)
            if line.op == "while":
                body = re.search(r"body=%?([\w.\-]+)", line.text)
                if body and trips:
                    stack.append((body.group(1), times * int(trips.group(1))))
            elif line.op == "conditional":
                names = [n for pair in _BRANCHES.findall(line.text) for n in pair if n]
                branches = [n.strip(" %") for part in names for n in part.split(",")]
                if branches:
                    largest = max(branches, key=lambda n: _weight(n, computations))
                    stack.append((largest, times))
            elif line.op in ("fusion", "call", "async-start", "custom-call"):
                stack += [(n, times) for n in _CALLED.findall(line.text)]


def _weight(name: str, computations: Mapping[str, list[_Line]]) -> int:
    return sum(times for _, times in _walk(name, computations))


def _flops(line: _Line, shapes: Mapping[str, str]) -> tuple[str, float]:
    """(dtype of the operands, FLOPs) of a dot or convolution."""
    operands = re.findall(r"%([\w.\-]+)", line.text.split(")")[0])
    left, right = (_parts(shapes.get(name, ""))[0] for name in operands[:2])
    result = _parts(line.shape)[0][1]
    if line.op == "convolution":
        return left[0], _convolution(line.text, left[1], right[1], result)
    dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line.text)
    contracted = _numbers(dims.group(1)) if dims else []
    return left[0], 2.0 * math.prod(result) * math.prod(left[1][d] for d in contracted)


def _convolution(text: str, left: list[int], kernel: list[int], result: list[int]) -> float:
    """FLOPs of a convolution; a TPU's compiler writes every product as one.

    Dimensions of a batch become dilated windows, of which most positions fall on nothing: only
    those that meet an input count.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", text)
    if labels is None:
        return 0.0
    ins, kernels, outs = labels.groups()
    window = dict(re.findall(r"(size|stride|pad|lhs_dilate|rhs_dilate)=([\w\-]+)", text))
    fields = {name: value.split("x") for name, value in window.items()}
    groups = re.search(r"batch_group_count=(\d+)", text)
    total = 2.0 * result[outs.index("b")] * result[outs.index("f")] * kernel[kernels.index("i")]
    total /= int(groups.group(1)) if groups else 1
    for number in range(len(ins) - 2):

        def of(name: str, default: int, number: int = number) -> int:
            return int(fields[name][number]) if name in fields else default

        low = int(fields["pad"][number].split("_")[0]) if "pad" in fields else 0
        size, spatial = left[ins.index(str(number))], str(number)
        at = np.arange(result[outs.index(spatial)])[:, None] * of("stride", 1) - low
        at = at + np.arange(kernel[kernels.index(spatial)]) * of("rhs_dilate", 1)
        dilate = of("lhs_dilate", 1)
        met = (at >= 0) & (at <= (size - 1) * dilate) & (at % dilate == 0)
        total *= int(met.sum())
    return total


def _collective(line: _Line, kind: str, times: int, mesh: Mapping[str, int]) -> Collective:
    sizes = [BITS.get(d, 32) // 8 * math.prod(dims) for d, dims in _parts(line.shape)]
    if line.op.endswith("-start") and len(sizes) > 1 and kind != "all-reduce":
        sizes = sizes[len(sizes) // 2 :]  # (operands, results)
    groups = _groups(line.text, mesh)
    n = max((len(group) for group in groups), default=1)
    size = sum(sizes)
    ring = (n - 1) / n
    wire = {
        "all-reduce": 2 * ring * size,
        "reduce-scatter": ring * size * n,
        "collective-permute": size if groups else 0,
    }.get(kind, ring * size)
    where = re.search(r'op_name="([^"]*)"', line.text)
    axes = _axes(groups, mesh)
    return Collective(kind, axes, times, size, float(wire), where.group(1) if where else "")


def _groups(text: str, mesh: Mapping[str, int]) -> list[list[int]]:
    """Positions in the mesh of the devices that talk to each other."""
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}?", text)
    if pairs:
        found = re.findall(r"\{?(\d+),(\d+)", pairs.group(0))
        return [[int(a), int(b)] for a, b in found if a != b]
    named = re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}", text)
    if named:
        return _named(*named.groups())
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota:
        shape, dims, order = (_numbers(part) for part in iota.groups())
        ids = np.arange(math.prod(dims)).reshape(dims)
        return (ids.transpose(order) if order else ids).reshape(shape).tolist()
    listed = re.search(r"replica_groups=\{(.*?)\}\}?[,\s]", f"{text} ")
    found = [_numbers(g) for g in re.findall(r"\{([\d,]+)\}?", listed.group(0))] if listed else []
    return found or [[*range(math.prod(mesh.values()))]]


def _named(axes: str, order: str | None, chosen: str) -> list[list[int]]:
    """Groups along named axes: "'a'=4,'b'=2", "[2,4]T(1,0)" and "'a'" or "'a':(1)2", a part."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    ids = np.arange(math.prod(sizes.values()))
    if order:
        dims, turned = re.findall(r"\[([\d,]*)\](?:T\(([\d,]*)\))?", order)[0]
        ids = ids.reshape(_numbers(dims))
        ids = ids.transpose(_numbers(turned)) if turned else ids
    shape, inside = [], []
    picked = dict(re.findall(r"'(\w+)'(?::\((\d+\)\d+))?", chosen))
    for name, size in sizes.items():
        before, part = map(int, picked[name].split(")")) if picked.get(name) else (1, size)
        inside += [len(shape) + 1] if name in picked else []
        shape += [before, part, size // before // part]
    outside = [d for d in range(len(shape)) if d not in inside]
    width = math.prod(shape[d] for d in inside)
    return ids.reshape(shape).transpose(outside + inside).reshape(-1, width).tolist()


def axes_of(text: str, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Axes of the mesh along which a collective's groups lie, given its text."""
    return _axes(_groups(text, mesh), mesh)


def _axes(groups: Sequence[Sequence[int]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Axes along which members of a group differ."""
    shape, names = tuple(mesh.values()), tuple(mesh)
    differs: set[str] = set()
    for group in groups:
        places = np.stack(np.unravel_index(np.asarray(group), shape), axis=-1)
        differs |= {n for n, column in zip(names, places.T, strict=True) if np.ptp(column)}
    return tuple(name for name in names if name in differs)


def _parts(shape: str) -> list[tuple[str, list[int]]]:
    return [(dtype, _numbers(dims)) for dtype, dims in _SHAPE.findall(shape)]


def _numbers(text: Any) -> list[int]:
    return [int(n) for n in (text or "").split(",") if n]
