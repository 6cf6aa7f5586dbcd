"""A plan in lines for a person, and as plain data."""

import dataclasses
import math
from collections import Counter
from typing import Any

from m4.plan import fits, roofline
from m4.plan.facts import Facts
from m4.plan.topology import DATE, Topology

VIRTUAL = (
    "this libtpu's program cannot be printed: FLOPs and collectives are those of the same step"
    " partitioned for virtual CPU devices"
)


def lines(found: Facts, chips: Topology, save_every: int, across: str) -> list[str]:
    """What was found, figures of one chip and one step."""
    size, model = fits.gigabytes, found.model
    mesh = " ".join(f"{axis}={n}" for axis, n in found.mesh.items() if n > 1) or "one device"
    step = roofline.time(found, chips, across=across)
    good = roofline.goodput(found, chips, step.worst, save_every)
    rest = found.peak_bytes - found.argument_bytes
    return [
        f"topology     {chips.name}: {chips.count} x {chips.kind}, mesh {mesh}",
        *([f"note         {chips.note()}"] if chips.note() else []),
        *(["note         " + VIRTUAL] if found.program == "virtual" else []),
        *([f"warning      {_idle(found, chips)}"] if found.idle else []),
        f"rows         {found.rows} a step, in {_rows(found)} equal shares",
        f"parameters   {found.parameters:,} ({size(found.parameter_bytes)})",
        "one chip, one step               compiler    closed form   ratio",
        _row("matrix FLOPs", found.flops, model["flops"], _flops),
        _row("state, batch (arguments)", found.argument_bytes, model["argument_bytes"], size),
        _row("peak", found.peak_bytes, model["peak_bytes"], size),
        *_wire_rows(found),
        f"memory       state {size(found.state_bytes)}, all else at the peak {size(rest)}; a chip"
        f" has {size(chips.chip.memory) if math.isfinite(chips.chip.memory) else 'its host'}",
        f"replicated   {100 * found.replicated_bytes / max(found.parameter_bytes, 1):.1f} % of"
        " parameter bytes",
        *(f"             {size(n)} {path}" for path, n in [*found.replicated.items()][:4]),
        *_collectives(found),
        f"host calls   {found.callbacks}; loops of a length that data decide {found.loops}",
        f"time         {_ms(step.best)} to {_ms(step.worst)} a step, bound by {step.bound}; MFU"
        f" {100 * step.mfu:.0f} % at the slowest ({_terms(step)})",
        f"goodput      {100 * good['goodput']:.1f} %: saving every {save_every} steps takes"
        f" {100 * good['saving']:.2g} %, failures {100 * good['failures']:.2g} %; best every"
        f" {good['best_save_every']:.0f} steps",
        f"             rates of {DATE} ({chips.chip.source}), {roofline.CHIP_HOURS:,.0f} chip hours"
        f" between failures, {roofline.SAVE_BANDWIDTH / 1e9:g} GB/s a host to save",
        f"compiled in  {found.compile_s:.0f} s of the processor",
    ]


def document(
    found: Facts | None, chips: Topology, save_every: int, across: str, **more: Any
) -> dict[str, Any]:
    """The same as plain data, with everything that was found."""
    base = {"topology": chips.name, "chips": chips.count, "slices": chips.slices}
    base |= {"compiler": chips.compiler, "note": chips.note()}
    if found is None:
        return base | more
    step = roofline.time(found, chips, across=across)
    ratios = {row.name: row.ratio for row in fits.compared(found, chips)}
    return base | {
        "facts": dataclasses.asdict(found),
        "ratios": ratios,
        "time_s": dataclasses.asdict(step),
        "goodput": roofline.goodput(found, chips, step.worst, save_every),
        **more,
    }


def _rows(found: Facts) -> int:
    return found.mesh["data"] * found.mesh["fsdp"] * found.mesh["expert"]


def _idle(found: Facts, chips: Topology) -> str:
    return (
        f"{found.idle} of {chips.count} chips are idle: {found.rows} rows cannot be split further;"
        " --rows=N plans N rows on each"
    )


def _row(name: str, measured: float, expected: float, words: Any) -> str:
    ratio = f"{measured / expected:7.2f}" if expected else "      -"
    return f"  {name:28s} {words(measured):>11s} {words(expected):>14s} {ratio}"


def _wire_rows(found: Facts) -> list[str]:
    if found.program == "none":
        return []
    sent = roofline.wire(found.collectives)
    expected = found.model["wire_bytes"]
    total, known = sum(sent.values()), sum(expected.values())
    rows = [_row("sent, all axes", total, known, fits.gigabytes)]
    for axes, n in sorted(sent.items(), key=lambda pair: -pair[1]):
        rows.append(f"    along {axes:20s} {fits.gigabytes(n):>13s}")
    return rows


def _collectives(found: Facts) -> list[str]:
    if found.program == "none":
        return ["collectives  not readable: this compiler's program cannot be printed"]
    counts: Counter = Counter()
    sizes: Counter = Counter()
    for one in found.collectives:
        key = (one["kind"], "*".join(one["axes"]))
        counts[key] += one["times"]
        sizes[key] += one["times"] * one["wire"]
    out = [
        f"             {number} {kind} along {axes}, {fits.gigabytes(sizes[kind, axes])} sent"
        for (kind, axes), number in sorted(counts.items())
    ]
    return ["collectives" + (out[0][11:] if out else "  none"), *out[1:]]


def _flops(n: float) -> str:
    for unit, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if n >= scale:
            return f"{n / scale:.3g} {unit}FLOP"
    return f"{n:.3g} FLOP"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _terms(step: roofline.Time) -> str:
    parts = {"arithmetic": step.arithmetic, "memory": step.memory} | step.messages
    return ", ".join(f"{name} {_ms(seconds)}" for name, seconds in parts.items())
