"""docs/images/methods.svg from the table of docs/results.md: `python docs/site/picture.py`."""

import re
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1]
HEADING = "## PhysioNet 2012, all five methods"
VALUE = re.compile(r"(\d\.\d+) ± (\d\.\d+)(?: \[(\d\.\d+), (\d\.\d+)\])?")
LEFT, TOP, STEP, WIDE, GAP = 150, 62, 30, 270, 60
REFERENCES = ("boosting", "default boosting", "late fusion", "linear")
PANELS = (("AUROC", 0.80, 0.90), ("AUPRC", 0.40, 0.65))


def rows(page):
    """(method, [(mean, deviation, low, high) of AUROC, of AUPRC]) as the page has them."""
    table = page[page.index(HEADING) :].partition("\n\n|")[2].partition("\n\n")[0]
    found = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        values = [VALUE.match(cell) for cell in cells[2:4]]
        if len(cells) >= 4 and all(values) and cells[0] != "presence":  # it is far below
            name = cells[0].replace("_physionet2012", "").partition(" (")[0]
            found.append(
                (name, [tuple(float(x) if x else None for x in v.groups()) for v in values])
            )
    return found


def svg(found):
    """The picture: a panel per metric, a row per method; bars are 95 % over patients."""
    high = TOP + STEP * len(found) + 34
    wide = LEFT + 2 * WIDE + GAP + 20
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" role="img"'
        ' font-family="sans-serif" font-size="13" fill="#444">',
        "<title>Death on PhysioNet 2012: five methods, references and blends</title>",
        f'<rect width="{wide}" height="{high}" fill="#fff"/>',
        '<text x="12" y="22" font-size="15" font-weight="bold">Death in hospital, PhysioNet 2012:'
        " trained on set A, tested on 1,980 stays of set B</text>",
    ]
    for p, (metric, low, top) in enumerate(PANELS):
        x0 = LEFT + p * (WIDE + GAP)

        def place(value, x0=x0, low=low, top=top):
            return x0 + WIDE * (value - low) / (top - low)

        out.append(f'<text x="{x0}" y="{TOP - 16}" font-weight="bold">{metric}</text>')
        for k in range(6):
            tick = low + k * (top - low) / 5
            x = place(tick)
            out.append(f'<path d="M{x:.0f} {TOP - 8}V{high - 24}" stroke="#e4e4e4"/>')
            out.append(f'<text x="{x:.0f}" y="{high - 8}" text-anchor="middle">{tick:.2f}</text>')
        for r, (name, values) in enumerate(found):
            y, (mean, spread, left, right) = TOP + STEP * r + 8, values[p]
            colour = "#b3541e" if name in REFERENCES else "#1b6ca8"
            if p == 0:
                out.append(f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end">{name}</text>')
            if left is not None:
                out.append(
                    f'<path d="M{place(left):.1f} {y}H{place(right):.1f}" stroke="{colour}"'
                    ' stroke-width="2" opacity=".45"/>'
                )
            out.append(
                f'<path d="M{place(mean - spread):.1f} {y}H{place(mean + spread):.1f}"'
                f' stroke="{colour}" stroke-width="7" opacity=".5"/>'
                f'<circle cx="{place(mean):.1f}" cy="{y}" r="5" fill="{colour}"/>'
            )
    return "\n".join([*out, "</svg>"]) + "\n"


if __name__ == "__main__":
    found = rows((DOCS / "results.md").read_text())
    if not found:
        sys.exit("docs/results.md: no table of methods")
    (DOCS / "images/methods.svg").write_text(svg(found))
