"""The code on the pages: every block and its language, every command, and what is not executed.

A block is fenced and names its language, so nothing escapes: `sh`, `python`, `toml`, `json`, and
`text` or `mermaid` for what no program reads. tests/test_docs.py parses all of it;
tests/test_docs_run.py (slow) executes what `NOT_RUN` does not name.
"""

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LANGUAGES = ("sh", "python", "toml", "json", "text", "mermaid")
FENCE = re.compile(r"^( *)```(\S*)[^\n]*\n(.*?)^\1```", re.M | re.S)
INLINE = re.compile(r"`((?:python -m (?:m4|tests)[\w.]*|m4-moe|make) [^`\n]+)`")

# What is not executed, by page and by how the line (of Python: the block) begins. It is parsed all
# the same. An entry that fits nothing any more fails tests/test_docs.py.
NOT_RUN = {
    "installs or downloads; .ci/extras installs every extra, .ci/newcomer makes the environment": [
        ("docs/start.md", "python -m pip install -e ."),
        ("docs/scale.md", "pip install"),
        ("docs/training.md", "pip install"),
        ("docs/results.md", "pip install"),
        ("docs/digits.md", "git clone"),
        ("README.md", "python -m m4.data download"),
        ("docs/start.md", "python -m m4.data download"),
    ],
    "needs the extras that the line above it installs": [
        ("docs/training.md", "m4-moe --config=fusemoe_mimic:tiny --set"),
    ],
    "run by .ci/run at full length": [
        ("README.md", "make demo"),
        ("README.md", "make test"),
        ("docs/start.md", "make demo"),
        ("docs/results.md", "make demo"),
    ],
    "ten minutes to hours of a core; parts of it are executed from other pages and tests": [
        ("docs/accuracy.md", "make results"),
        ("docs/methods/baselines.md", "python -m m4.main --mode=sweep"),
        ("docs/methods/m3h.md", "python -m m4.main --mode=tim"),
        ("docs/lab.md", "python -m m4.lab --config=configs/lab_gates.py:laptop --out=runs/lab  "),
        ("docs/lab.md", "python -m m4.lab --config=configs/lab_gates.py:laptop --out=runs/lab --s"),
        ("docs/lab.md", "python -m m4.lab --out=runs/lab --report"),
        ("docs/lab.md", "python -m m4.lab theory"),
        ("docs/results.md", "python -m m4.main --mode=sweep"),
        ("docs/scale.md", "python -m m4.main --config=configs/m3h_mimic.py:synthetic --mode=scale"),
        ("docs/results.md", "python -m pytest -m slow tests/moe"),
        ("docs/results.md", "JAX_PLATFORMS=cpu"),
    ],
    "timings of minutes, beside torch; tests/timing has tests of its own": [
        ("docs/data.md", "python -m tests.timing"),
        ("docs/performance.md", "python -m tests.timing"),
        ("docs/results.md", "python -m tests.timing"),
        ("docs/scale.md", "python -m m4.bench device"),
    ],
    "needs files that cannot be passed on": [
        ("README.md", "python -m m4.main --config=configs/fusemoe_mimic.py --workdir=runs/mimic"),
        ("docs/data.md", "python -m m4.data embed"),
        ("docs/data.md", "python -m m4.main --config=configs/fusemoe_mimic.py --config.data.opt"),
        ("docs/datasets.md", "import pathlib, pickle"),
        ("docs/interop.md", "python -m m4"),
    ],
    "a form: its files, runs or classes are the reader's": [
        ("docs/accuracy.md", "python -m m4.main --mode=ensemble --members"),
        ("docs/accuracy.md", "python -m m4.main --workdir=runs/cv --on=NEW_DATA"),
        ("docs/audit.md", "python -m m4.audit --workdir=runs/mimic"),
        ("docs/audit.md", "python -m m4.audit --config=FILE"),
        ("docs/data.md", "python -m m4.main --workdir=runs/x --on=FOLDER"),
        ("docs/data.md", "python -m m4.data draft raw/ward"),
        ("docs/data.md", "python -m m4.main --config=configs/own.py:meds"),
        ("docs/data.md", "python -m m4.data describe data/meds"),
        ("docs/data.md", "python -m m4.main --workdir=runs/study --on"),
        ("docs/lab.md", "m4-moe compare"),
        ("docs/scale.md", "pip install xprof"),
        ("docs/training.md", "python -m m4.main --mode=eval --workdir=runs/a"),
        ("docs/training.md", "m4-moe compare runs/*"),
    ],
}
# Whole pages whose blocks a test of their own executes, with the files that they speak of.
ELSEWHERE = {
    "docs/adding-things.md": "tests/test_docs.py",
    "docs/follow-a-batch.md": "tests/test_docs.py",
    "docs/library.md": "tests/api/test_library_page.py",
}


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page, or the commands in its running text (`inline`)."""

    page: str
    line: int
    language: str
    text: str


@dataclasses.dataclass(frozen=True)
class Command:
    """One command of a page: whole, with lines that go on joined and its comment taken off."""

    page: str
    text: str
    whole: str  # with the comment

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"

    @property
    def words(self) -> list[str]:
        """Without what a shell sets before it and does after it; m4.main is m4-moe."""
        words = shlex.split(self.text)
        words = words[: next((i for i, w in enumerate(words) if w in ("|", ">", "&&")), None)]
        while re.match(r"[A-Z_0-9]+=", words[0]):
            words = words[1:]
        if words[:2] == ["python", "-m"] and words[2] in ("m4", "m4.main"):
            return ["m4-moe", *words[3:]]
        return words


def pages() -> dict[str, str]:
    """Every page and its text: the README, then the site's in the order of its navigation."""
    order = ["README.md"]
    order += [f"docs/{n}" for n in re.findall(r": ([\w/-]+\.md)$", nav(), flags=re.M)]
    return {name: (ROOT / name).read_text() for name in order}


def nav() -> str:
    """The part of mkdocs.yml that names the pages."""
    return (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]


def of(page: str, text: str) -> list[Block]:
    """The blocks of a page, in order."""
    return [
        Block(
            page,
            text.count("\n", 0, m.start()) + 1,
            m[2],
            re.sub(rf"^{m[1]}", "", m[3], flags=re.M),
        )
        for m in FENCE.finditer(text)
    ]


def unfenced(text: str) -> list[str]:
    """Code by indentation, which has no language."""
    return re.findall(r"(?:\A|\n\n)( {4}[^\n]*)", FENCE.sub("", text))


def commands(block: Block) -> Iterator[Command]:
    """The commands of a block of shell; a loop over one word stands for its first round."""
    text = re.sub(
        r"^for (\w+) in (\S+) .*; do\n(.*?)^done$", first_round, block.text, flags=re.M | re.S
    )
    for line in text.replace("\\\n", " ").splitlines():
        plain = re.sub(r"\s#.*", "", line).strip()
        if plain:
            yield Command(block.page, re.sub(r"  +", " ", plain), line.strip())


def first_round(loop: re.Match) -> str:
    """The body of `for s in 0 1 2; do ... done` for s = 0."""
    return loop[3].replace(f"${loop[1]}", loop[2])


def inline(page: str, text: str) -> list[Command]:
    """Commands in the running text."""
    return [Command(page, found, found) for found in INLINE.findall(FENCE.sub("", text))]


def why_not(page: str, start: str) -> str | None:
    """Why a line of a page is not executed; None if it is."""
    for reason, entries in NOT_RUN.items():
        if any(page == p and start.startswith(s) for p, s in entries):
            return reason
    return None
