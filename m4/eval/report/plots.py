"""Plots of the report: plain data in, inline SVG out. Free of JAX, no global state.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; marks also differ in form
or position wherever colour carries meaning.
"""

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

INK, SOFT, GRID = "#1f2937", "#6b7280", "#e5e7eb"
BLUE, ORANGE, GREEN, RED, SKY, PURPLE = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#d55e00",
    "#56b4e9",
    "#cc79a7",
)
# What the page's style may change; "white" is the face of a hollow mark.
PAGE_COLOURS = {INK: "ink", SOFT: "soft", GRID: "line", "#ffffff": "paper"}
CYCLE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, SOFT)
KIND_COLOUR = {"full": INK, "without": BLUE, "only": ORANGE, "pattern": GREEN, "other": SKY}
WIDTH = 10.3  # inches: the page's 992 pixels
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may hold dollars
}
MAX_POINTS = 400


def draw(paint: Callable[[Figure], None], width: float, height: float, alt: str) -> str:
    """An inline SVG of `width` by `height` inches that `paint` fills; `alt` is its description."""
    style: dict[Any, Any] = STYLE | {"svg.hashsalt": alt}
    with mpl.rc_context(style):  # ids: reproducible, unique in a page
        layout = ConstrainedLayoutEngine(h_pad=0.09, w_pad=0.09)
        figure = Figure(figsize=(width, height), layout=layout, facecolor="none")
        FigureCanvasSVG(figure)
        paint(figure)
        buffer = io.StringIO()
        empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=empty, transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)  # figure_1, axes_1: not unique in a page
    svg = re.sub(r"font: (\d)", r"font-family: inherit; font: \1", svg)
    svg = svg.replace("'sans-serif'", "sans-serif")
    for colour, name in PAGE_COLOURS.items():  # in style attributes: a dark page has its own
        svg = re.sub(rf"(?<=: ){colour}\b", f"var(--{name}, {colour})", svg)
    label = html.escape(alt, quote=True)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def curves(
    panels: Sequence[Mapping[str, Any]], *, mark: int | None = None, alt: str = "curves"
) -> str:
    """Small multiples over steps. A panel is {title, lines: {name: (steps, values)}, log?}.

    `mark` draws a vertical line, at the step that was selected.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    last = max(max(steps) for panel in panels for steps, _ in panel["lines"].values())

    def paint(figure: Figure) -> None:
        for i, panel in enumerate(panels):
            axes = figure.add_subplot(rows, columns, i + 1)
            for colour, (name, (steps, values)) in zip(
                CYCLE * 9, panel["lines"].items(), strict=False
            ):
                keep = np.unique(np.linspace(0, len(steps) - 1, MAX_POINTS).astype(int))
                steps, values = np.asarray(steps)[keep], np.asarray(values, float)[keep]
                dot = "o" if len(steps) < 30 else None
                axes.plot(steps, values, color=colour, lw=1.5, marker=dot, ms=3, label=name)
            if mark is not None:
                axes.axvline(mark, color=SOFT, lw=1, ls=":")
            axes.set_title(panel["title"])
            axes.grid(axis="y")
            axes.set_xlim(0, 1.02 * last)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            if i + columns >= len(panels):
                axes.set_xlabel("step")
            if len(panel["lines"]) > 1:
                axes.legend(ncols=1 + (len(panel["lines"]) > 5))

    return draw(paint, WIDTH / 3 * columns, 2.4 * rows + 0.2, alt)


def subsets(
    rows: Sequence[Mapping[str, Any]], modalities: Sequence[str], metric: str, *, alt: str
) -> str:
    """Dot and interval per modality subset, next to a matrix that shows what was kept.

    A row is {keep: [name], kind, value, low, high, text}; rows are drawn from top to bottom.
    """

    def paint(right: Any) -> None:
        for y, row in enumerate(rows):
            _interval(right, y, row, KIND_COLOUR[row["kind"]])
        full = next((row for row in rows if row["kind"] == "full"), None)
        if full is not None and full["value"] is not None:
            right.axvline(full["value"], color=SOFT, lw=1, ls=":", zorder=1)
        right.set_xlabel(metric)

    texts = [row["text"] for row in rows]
    return _beside_matrix(paint, rows, texts, modalities, alt)


def presence(rows: Sequence[Mapping[str, Any]], modalities: Sequence[str], *, alt: str) -> str:
    """Combinations of modalities, {keep: [name], count}: which are there, and how many rows."""
    counts = [row["count"] for row in rows]

    def paint(right: Any) -> None:
        right.barh(range(len(rows)), counts, color=BLUE, height=0.6)
        right.set_xlabel("rows")

    return _beside_matrix(paint, rows, [f"{count:,}" for count in counts], modalities, alt)


def drops(panels: Sequence[Mapping[str, Any]], *, alt: str) -> str:
    """Loss by removing a modality: {title, xlabel, rows: [{label, drop: E, drop_if_present: E}]}.

    Filled: beyond chance. The pale diamond below is among patients who have it.
    """
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)

    def paint(figure: Figure) -> None:
        for i, panel in enumerate(panels):
            axes = figure.add_subplot(rows, columns, i + 1)
            for y, row in enumerate(panel["rows"]):
                sure = beyond_chance(row["drop"])
                _interval(axes, y - 0.12, row["drop"], BLUE if sure else SOFT, hollow=not sure)
                _interval(axes, y + 0.2, row["drop_if_present"], SKY, marker="D", size=3, width=1)
            axes.axvline(0, color=INK, lw=1)
            axes.set_yticks(range(len(panel["rows"])), [row["label"] for row in panel["rows"]])
            axes.set_ylim(len(panel["rows"]) - 0.4, -0.6)
            axes.set_title(panel["title"])
            axes.set_xlabel(panel["xlabel"])
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x")

    height = max(len(panel["rows"]) for panel in panels)
    return draw(paint, WIDTH / 2 * columns, (0.36 * height + 0.95) * rows, alt)


def beyond_chance(drop: Mapping[str, Any]) -> bool:
    """Whether a drop is above 0 in spite of all the drops that were tried (Holm, 5 %)."""
    return drop["low"] is not None and drop["value"] > 0 and drop.get("p_holm", 1.0) <= 0.05


def calibration(panels: Sequence[Mapping[str, Any]], *, alt: str) -> str:
    """Reliability diagrams: {title, curve: [{predicted, observed, low, high}]}."""
    columns = min(4, len(panels))

    def paint(figure: Figure) -> None:
        for i, panel in enumerate(panels):
            axes = figure.add_subplot(-(-len(panels) // columns), columns, i + 1)
            x, y, low, high = (
                np.array([point[key] for point in panel["curve"]])
                for key in ("predicted", "observed", "low", "high")
            )
            top = min(1.0, 1.08 * max(x.max(), y.max(), min(high.max(), 1.5 * y.max() + 0.02)))
            axes.plot([0, top], [0, top], color=SOFT, lw=1, ls=":")
            axes.vlines(x, low, high, color=BLUE, lw=1.2, alpha=0.6)
            axes.plot(x, y, color=BLUE, lw=1.2, marker="o", ms=4, clip_on=False)
            axes.set(xlim=(0, top), ylim=(0, top), aspect="equal")
            axes.set_title(panel["title"], fontsize=9.5)
            axes.grid()
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(4))
            if i + columns >= len(panels):
                axes.set_xlabel("predicted")
            if i % columns == 0:
                axes.set_ylabel("observed")

    return draw(paint, WIDTH / 4 * columns, 2.8 * -(-len(panels) // columns), alt)


def heat(
    groups: Sequence[tuple[str, Sequence[Mapping[str, Any]]]],
    experts: Sequence[int],
    num_experts: int,
    *,
    alt: str,
) -> str:
    """Expert load, one block of rows per group: (title, [{label, share: [per expert]}])."""
    total = sum(len(rows) for _, rows in groups)
    top = max(2.0, max(max(row["share"]) for _, rows in groups for row in rows) * num_experts)

    def paint(figure: Figure) -> None:
        ratios = [len(rows) for _, rows in groups]
        panels = np.atleast_1d(figure.subplots(len(groups), 1, sharex=True, height_ratios=ratios))
        for axes, (title, rows) in zip(panels, groups, strict=True):
            shares = np.array([row["share"] for row in rows]) * num_experts
            image = axes.imshow(
                shares, cmap="Blues", vmin=0, vmax=top, aspect="auto", interpolation="none"
            )
            axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
            axes.set_title(title, fontsize=9.5)
            axes.tick_params(length=0)
            for spine in axes.spines.values():
                spine.set_visible(False)
        step = max(1, len(experts) // 16)
        panels[-1].set_xticks(range(0, len(experts), step), experts[::step])
        panels[-1].set_xlabel("expert")
        bar = figure.colorbar(image, ax=list(panels), shrink=min(1.0, 1.6 / total + 0.3), aspect=12)
        bar.set_label("× even share", fontsize=8.5)
        bar.outline.set_visible(False)

    return draw(paint, WIDTH, 0.24 * total + 0.42 * len(groups) + 0.7, alt)


def _interval(axes, y, row, colour, *, marker="o", size=5.5, width=1.8, hollow=False) -> None:
    if row["value"] is None:
        return
    if row["low"] is not None:
        axes.plot([row["low"], row["high"]], [y, y], color=colour, lw=width, solid_capstyle="butt")
    face = "white" if hollow else colour
    axes.plot(row["value"], y, marker, color=colour, ms=size, mfc=face, zorder=5)


def _beside_matrix(
    paint: Callable[[Any], None],
    rows: Sequence[Mapping[str, Any]],
    texts: Sequence[str],
    modalities: Sequence[str],
    alt: str,
) -> str:
    """Dots for what each row keeps, what `paint` puts into the axes beside them, and the texts."""

    def paint_all(figure: Figure) -> None:
        widths = [max(1.0, 0.34 * len(modalities)), 6.5]
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=widths)
        for y, row in enumerate(rows):
            kept = [m for m, name in enumerate(modalities) if name in row["keep"]]
            colour = KIND_COLOUR[row["kind"]] if "kind" in row else INK
            left.scatter(range(len(modalities)), [y] * len(modalities), s=26, color=GRID, zorder=2)
            left.plot(kept, [y] * len(kept), "o-", ms=26**0.5, color=colour, lw=1.3, zorder=3)
        paint(right)
        _matrix(left, modalities, len(rows))
        _beside(right, texts)

    longest = max(map(len, modalities))
    return draw(paint_all, WIDTH, 0.26 * len(rows) + 0.8 + 0.055 * longest, alt)


def _matrix(axes, modalities: Sequence[str], num_rows: int) -> None:
    """Names of the columns above, nothing else around the dots."""
    axes.set_xticks(range(len(modalities)), modalities, rotation=45, ha="left")
    for label in axes.get_xticklabels():
        label.set_rotation_mode("anchor")
    axes.xaxis.tick_top()
    axes.set_xlim(-0.6, len(modalities) - 0.4)
    axes.set_ylim(num_rows - 0.4, -0.6)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, labelleft=False)


def _beside(axes, texts: Sequence[str]) -> None:
    """Text to the right of every row, in a column of its own."""
    twin = axes.secondary_yaxis("right")
    twin.set_yticks(range(len(texts)), texts, fontsize=8.5)
    twin.tick_params(length=0)
    for side in (axes.spines["left"], twin.spines["right"]):
        side.set_visible(False)
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.grid(axis="x")
