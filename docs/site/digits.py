"""The table of docs/digits.md, and docs/images/digits.svg of it.

    python docs/site/digits.py runs/digits runs/digits_late    # prints the table
    python docs/site/digits.py                                 # draws it as it stands in the page

The folders are of runs, or hold those of folds, with `eval.subsets=all`: the mixture's first, late
fusion's second, of the same recordings. Intervals are of 2,000 draws of recordings within each
speaker, the same draws for both; they do not say how speakers differ.
"""

import itertools
import json
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

DOCS = Path(__file__).parents[1]
HEADING = "## Digits of unseen speakers, by what is left"
SOURCES = {  # in the picture -> its modalities; the sound is one thing heard
    "sound": {"waveform", "spectrogram"},
    "pixels": {"pixels"},
    "word": {"word"},
    "profile": {"profile"},
}
DRAWS = 2000
VALUE = re.compile(r"(-?\d\.\d+) \[(-?\d\.\d+), (-?\d\.\d+)\]")
LEFT, TOP, STEP, WIDE = 250, 64, 22, 520
LOWEST, HIGHEST = 0.4, 1.0
COLOURS = "#1b6ca8", "#b3541e"  # of the mixture and of late fusion


def right(folder):
    """Of every recording of a folder's runs: {subset: bool[N]}, its speaker [N] and digit [N]."""
    parts = [one_run(path) for path in sorted(Path(folder).glob("**/results/test_subsets.parquet"))]
    if not parts:
        sys.exit(f"{folder}: has no results/test_subsets.parquet")
    goods, speakers, digits = zip(*parts, strict=True)
    good = {keep: np.concatenate([one[keep] for one in goods]) for keep in goods[0]}
    return good, np.concatenate(speakers), np.concatenate(digits)


def one_run(path):
    """The same of one run, in the order of its split."""
    table = pq.read_table(path)
    note = json.loads(table.schema.metadata[b"m4.subset_table"])
    rows = table.num_rows // len(note["subsets"])
    answers = [name for name in table.column_names if name.startswith("answer/digit/")]
    said = np.stack([table[name].to_numpy() for name in answers], 1).argmax(1)
    good = (said == table["label/digit"].to_numpy()).reshape(-1, rows)
    found = {
        frozenset(itertools.compress(note["modalities"], keep)): good[s]
        for s, keep in enumerate(note["subsets"])
    }
    first = table.slice(0, rows)
    return found, np.array(first["group/speaker"].to_pylist()), first["label/digit"].to_numpy()


def drawn(speaker_N, seed=0):
    """How often each recording is in each draw, as shares, f64[DRAWS, N]."""
    rng, times = np.random.default_rng(seed), np.zeros((DRAWS, len(speaker_N)))
    for speaker in np.unique(speaker_N):
        own = np.flatnonzero(speaker_N == speaker)
        times[:, own] = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), DRAWS)
    return times / len(speaker_N)


def table(ours, late):
    """Lines of the page's tables, by what is there and by speaker, from two folders."""
    (good, speaker_N, digit_N), (other, *same) = right(ours), right(late)
    if not all(map(np.array_equal, (speaker_N, digit_N), same)):
        sys.exit(f"{late}: is of other recordings than {ours}")
    share_DN = drawn(speaker_N)
    out = ["| what is there | the mixture | late fusion | difference |", "|---|---|---|---|"]
    named = [
        (" + ".join(kept), frozenset().union(*(SOURCES[name] for name in kept)))
        for size in range(len(SOURCES), 0, -1)
        for kept in itertools.combinations(SOURCES, size)
    ]
    named += [(f"{name} alone", frozenset({name})) for name in sorted(SOURCES["sound"])]
    for label, keep in named:
        a, b = good[keep].astype(float), other[keep].astype(float)
        out.append(f"| {label} | {cell(a, share_DN)} | {cell(b, share_DN)} | ")
        out[-1] += f"{cell(a - b, share_DN)} |"
    whole, sound = named[0][1], frozenset(SOURCES["sound"])
    out += ["", "| speaker | everything, mixture | late fusion | sound, mixture | late fusion |"]
    out.append("|---|---|---|---|---|")
    for speaker in np.unique(speaker_N):
        own = speaker_N == speaker
        share_Dn = drawn(speaker_N[own])
        cells = [
            cell(one[keep][own].astype(float), share_Dn)
            for keep in (whole, sound)
            for one in (good, other)
        ]
        out.append(f"| {speaker} | {' | '.join(cells)} |")
    return out


def cell(x_N, share_DN):
    """A mean with its interval."""
    low, high = np.quantile(share_DN @ x_N, (0.025, 0.975))
    return f"{x_N.mean():.3f} [{low:.3f}, {high:.3f}]"


def rows(page):
    """(what is there, [(value, low, high) of the mixture, of late fusion]) of the page's table."""
    lines = page[page.index(HEADING) :].partition("\n\n|")[2].partition("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [
        (one[0], [tuple(map(float, found)) for c in one[1:3] for found in VALUE.findall(c)])
        for one in cells
        if len(one) == 4 and VALUE.match(one[1]) and "alone" not in one[0]
    ]


def svg(found):
    """The picture: a row for what is left, the fewest at the bottom."""
    high, wide = TOP + STEP * len(found) + 60, LEFT + WIDE + 30
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" role="img"'
        ' font-family="sans-serif" font-size="13" fill="#444">',
        "<title>Digits of unseen speakers by modalities left: the mixture and late fusion</title>",
        f'<rect width="{wide}" height="{high}" fill="#fff"/>',
        '<text x="12" y="22" font-size="15" font-weight="bold">Which digit? Speakers nobody heard'
        " before, by what is left of a record</text>",
    ]
    for k, name in enumerate(("FuseMoE", "late fusion of the same encoders")):
        out.append(f'<circle cx="{LEFT + 8 + 110 * k}" cy="40" r="5" fill="{COLOURS[k]}"/>')
        out.append(f'<text x="{LEFT + 18 + 110 * k}" y="44">{name}</text>')

    def place(value):
        return LEFT + WIDE * (max(value, LOWEST) - LOWEST) / (HIGHEST - LOWEST)

    bottom = TOP + STEP * len(found) + 24
    for k in range(7):
        tick = LOWEST + k * (HIGHEST - LOWEST) / 6
        out.append(f'<path d="M{place(tick):.0f} {TOP - 8}V{bottom}" stroke="#e4e4e4"/>')
        out.append(
            f'<text x="{place(tick):.0f}" y="{bottom + 18}" text-anchor="middle">{tick:.1f}</text>'
        )
    before, y = None, TOP
    for label, values in found:
        size = label.count("+")
        y += 8 * (before is not None and size != before)
        before = size
        out.append(f'<text x="{LEFT - 12}" y="{y + 6}" text-anchor="end">{label}</text>')
        for k, (mean, low, top) in enumerate(values):
            at = y - 2 + 7 * k
            out.append(
                f'<path d="M{place(low):.1f} {at}H{place(top):.1f}" stroke="{COLOURS[k]}"'
                ' stroke-width="2" opacity=".5"/>'
                f'<circle cx="{place(mean):.1f}" cy="{at}" r="4" fill="{COLOURS[k]}"/>'
            )
        y += STEP
    return "\n".join([*out, "</svg>"]) + "\n"


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(*table(*sys.argv[1:]), sep="\n")
    else:
        found = rows((DOCS / "digits.md").read_text())
        if not found:
            sys.exit("docs/digits.md: no table")
        (DOCS / "images/digits.svg").write_text(svg(found))
