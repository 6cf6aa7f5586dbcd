"""The pages that promise to work are executed."""

import ast
import contextlib
import functools
import importlib
import importlib.util
import io
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from m4 import config as configs
from m4.config import flags, program, reference, rules
from m4.config.meanings import MEANINGS
from m4.errors import UserError
from m4.main import main
from m4.modes import report
from tests import doc_blocks

PAGE = (Path(__file__).parents[1] / "docs/adding-things.md").read_text()
QUICK = [
    "--config.train.steps=2",
    "--config.eval.bootstrap=5",
    "--config.eval.subsets=false",
    "--config.eval.baselines=false",
]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.M | re.S)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """The page's files in a package outside the tree, which is the working directory."""
    for text in blocks("python"):
        path = tmp_path / re.match(r"# (lab/\w+\.py)\n", text)[1]
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    for name in [n for n in sys.modules if n.partition(".")[0] == "lab"]:
        del sys.modules[name]


def test_adding_things(lab, monkeypatch, capsys):
    monkeypatch.setattr(report, "build", lambda folder: None)  # a third of the time
    assert len(list((lab / "lab").glob("*.py"))) == len(blocks("python")) == 4
    commands = [shlex.split(line) for text in blocks("sh") for line in text.splitlines()]
    assert [c[:3] for c in commands] == [["python", "-m", "m4.main"]] * 2
    for command in commands:
        assert main([*command[3:], *QUICK]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "method   lab.mean:Mean" in printed and "all is well" in printed
    assert (lab / "runs/mean/results/test.json").stat().st_size > 0
    assert "layer_0/gate_w" in printed  # of the gate on the page: laplace has centres


BATCH = (Path(__file__).parents[1] / "docs/follow-a-batch.md").read_text()


def test_follow_a_batch(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names = {}
    steps = re.findall(r"^```python\n(.*?)^```", BATCH, flags=re.M | re.S)
    assert len(steps) == 8 and all("assert " in step for step in steps if "kept =" not in step)
    for step in steps:
        exec(compile(step, "docs/follow-a-batch.md", "exec"), names)  # noqa: S102 (our own page)


def test_follow_a_batch_names_few_files_that_are_there():
    files = set(re.findall(r"`(m4/[\w/]+\.py)`", BATCH))
    assert len(files) == 15
    assert [f for f in files if not (Path(__file__).parents[1] / f).is_file()] == []


ROOT = doc_blocks.ROOT
PAGES = doc_blocks.pages()
BLOCKS = [b for page, text in PAGES.items() for b in doc_blocks.of(page, text)]
SHELL = [c for b in BLOCKS if b.language == "sh" for c in doc_blocks.commands(b)]
COMMANDS = {c.text: c for c in SHELL} | {
    c.text: c for page, text in PAGES.items() for c in doc_blocks.inline(page, text)
}
# What a reader puts in the place of these: then the flags alone can be looked at.
FORM = re.compile(r"=(FILE|NEW_DATA|FOLDER)\b|mylab\.|\bruns/\*")
LOCAL = ("lab/config.py", "lab_small.py")  # configurations that stand on the pages


def test_there_are_pages_and_commands():
    assert {p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/**/*.md")} < {*PAGES}
    assert len(SHELL) > 100 and sum(c.words[0] == "m4-moe" for c in SHELL) > 60


def test_every_block_has_a_language():
    """So that none escapes: no indented code, no nameless fence."""
    for page, text in PAGES.items():
        assert doc_blocks.unfenced(text) == [], page
    assert [b for b in BLOCKS if b.language not in doc_blocks.LANGUAGES] == []


def test_what_is_not_executed_is_still_there():
    starts = [(c.page, c.whole) for c in SHELL]
    starts += [(b.page, b.text) for b in BLOCKS if b.language == "python"]
    for reason, entries in doc_blocks.NOT_RUN.items():
        for page, start in entries:
            fits = [s for p, s in starts if p == page and s.startswith(start)]
            assert fits, f"{page}: no line begins with {start!r} any more ({reason})"
    for page, test in doc_blocks.ELSEWHERE.items():
        assert page in PAGES and Path(page).name in (ROOT / test).read_text()


def test_pages_do_not_train_different_runs_in_one_folder():
    """Somebody who follows several pages would be refused: another configuration is there."""
    places = {}
    for words in (c.words for c in SHELL if c.words[0] == "m4-moe" and c.words[1] not in TOOLS):
        flags_of = configs.parse([w for w in words[1:] if not FORM.search(w)])
        if flags_of.config and flags_of.mode in ("train", "crossval", "ensemble"):
            what = (Path(flags_of.config).stem, flags_of.mode)
            what += tuple(v for k, v in flags_of.overrides.items() if k.startswith("method"))
            places.setdefault(flags_of.workdir, set()).add(what)
    assert len(places) > 20
    assert {k: v for k, v in places.items() if len(v) > 1} == {}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=str)
def test_every_command_is_accepted(command, monkeypatch):
    """As far as that costs nothing: its flags, its configuration, variant and fields, its files."""
    monkeypatch.chdir(ROOT)
    words = command.words
    if words[0] == "m4-moe" and words[1] not in TOOLS:
        run_is_accepted(words[1:])
    elif words[0] == "m4-moe" or words[:2] == ["python", "-m"] and words[2] not in NOT_OURS:
        tool_is_accepted(*tool_of(words))
    elif words[0] == "python" and words[1].startswith("launch/"):
        own, _, rest = " ".join(words[2:]).partition(" -- ")
        has_flags(words[1], script_help(words[1]), own.split())
        if rest and "--module=m4.lab" not in own:
            run_is_accepted(rest.split())
    else:
        assert is_known(words), words


def run_is_accepted(given):
    """The arguments of `m4.main`: by its own parser, rules and methods."""
    if any(FORM.search(word) for word in given):
        has_flags("m4.main", flags.USAGE, given)
        return
    parsed = configs.parse(given)
    several = parsed.mode in ("sweep", "ensemble") and parsed.config
    for name in parsed.config.split(",") if several else [parsed.config]:
        if name is None or name in LOCAL:
            continue
        found = program.load_file(name)
        overrides = {k: v for k, v in parsed.overrides.items() if k != "data.options.file"}
        try:
            configs.check(found, overrides | file_of(parsed), name, say=lambda line: None)
        except UserError as error:  # what a reader of this page brings along
            assert re.search(r"no such file|file.*is missing|not installed", str(error)), error


def file_of(parsed):
    """A definition that is there, in the place of a reader's."""
    file = parsed.overrides.get("data.options.file")
    if file is None:
        return {}
    return {"data.options.file": file if (ROOT / file).is_file() else "support2"} | (
        {} if (ROOT / file).is_file() else {"train.select": "hospital_death/auroc"}
    )


TOOLS = flags.TOOLS
NOT_OURS = ("pytest", "pip")


def tool_of(words):
    """The module of a tool and its arguments."""
    if words[0] == "m4-moe":
        name = "lab" if words[1] == "compare" else words[1]
        return f"m4.{name}", words[1 if words[1] == "compare" else 2 :]
    return words[2], words[3:]


def tool_is_accepted(module, given):
    """Its subcommand and flags are of its own help; a configuration is one that can be loaded."""
    if [*given[:1]] == ["buckets"]:  # takes the arguments of m4.main
        run_is_accepted(given[1:])
        return
    nested = module in ("m4.bench", "tests.timing") or given[:1] in (["embed"], ["fake"])
    text = help_of(module, *given[:1] if nested else ())
    has_flags(module, text, given)
    for word in given[: 0 if nested or not given else 1]:
        assert word.startswith("-") or re.search(rf"\b{word}\b", text), (module, word)
    for word in given:
        if word.startswith("--config=") and not FORM.search(word):
            name = word.removeprefix("--config=")
            assert name in LOCAL or program.load_file(name) is not None


def has_flags(of, text, given):
    names = {m[0] for word in given if (m := re.match(r"--[a-z_]+", word))} - {"--help"}
    assert {n for n in names if n not in text} == set(), f"{of} --help has no such flag"


@functools.cache
def help_of(module, *given):
    """What `--help` of a tool, or of one of its commands, prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        assert importlib.import_module(f"{module}.__main__").main([*given, "--help"]) == 0
    return out.getvalue()


@functools.cache
def script_help(path):
    told = [sys.executable, str(ROOT / path), "--help"]
    return subprocess.run(told, check=True, capture_output=True, text=True).stdout


def is_known(words):
    """A command that is not of m4: what it names is there."""
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
        return words[1] in targets
    if words[:3] == ["python", "-m", "pytest"]:
        return all((ROOT / w).exists() for w in words if w.startswith("tests/"))
    if "pip" in words[:3]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        named = re.findall(r"m4-moe\[([\w,]+)\]", " ".join(words))
        return {n for e in named for n in e.split(",")} <= {*extras["optional-dependencies"]}
    if words[:2] == ["python", "-c"]:
        return known_names(ast.parse(words[2]), "-c")
    if words[:2] == ["python", "ward.m4"]:
        return set(words[2:]) <= {"--example", "--in=rows.json", "--out=predictions.json"}
    return words[:2] in (["git", "clone"], [".", ".venv/bin/activate"])


def test_every_block_of_code_is_one():
    """TOML and JSON are read, Python compiled, and what it imports of m4 is there."""
    for block in BLOCKS:
        if block.language == "toml":
            assert tomllib.loads(block.text), block
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "python":
            known_names(ast.parse(block.text, block.page), block.page)


def known_names(tree, page):
    for node in ast.walk(tree):
        known(node, page)
    return True


def known(node, page):
    """`import m4...`, `from m4.a import b` and `m4.a.b` name what is there."""
    names = []
    if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "m4":
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    elif isinstance(node, ast.Attribute):
        name = ast.unparse(node)
        names = [name] if re.fullmatch(r"m4(\.\w+)+", name) else []
    for name in names:
        found = importlib.import_module("m4")
        for part in name.split(".")[1:]:
            try:
                found = getattr(found, part)
            except AttributeError:
                found = importlib.import_module(f"{found.__name__}.{part}")
        assert found is not None, (page, name)


def test_links_lead_somewhere_and_every_page_is_in_the_navigation():
    for page, text in PAGES.items():
        plain = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", plain):
            path, _, anchor = target.partition("#")
            if re.match(r"https?:|mailto:", target):
                continue
            place = (ROOT / page).parent / path if path else ROOT / page
            assert place.exists(), f"{page}: {target}"
            if anchor and place.suffix == ".md":
                heads = re.findall(r"^#+ (.*)", place.read_text(), flags=re.M)
                assert anchor in map(slug, heads), f"{page}: {target}"
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert [
        p for p in PAGES if p.startswith("docs/") and p.removeprefix("docs/") not in navigation
    ] == []


def slug(head):
    head = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", head).lower()
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", head).strip())


def test_the_configuration_reference_is_of_these_fields():
    again = "see m4/config/meanings.py, then python -m m4.config.reference > docs/configuration.md"
    assert [p for p in rules.FIELDS if p not in MEANINGS] == [], again
    assert [p for p in MEANINGS if p not in rules.FIELDS] == []
    written = (ROOT / "docs/configuration.md").read_text().splitlines()
    assert written == shipped_lines(), again
    assert not [line for line in written if line.endswith("|  |") and line.count("|") == 6]


def shipped_lines():
    """The page of the fields as they are shipped: tests use one device (conftest.py)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(rules.FIELDS, "mesh.data", rules.Rule(int, -1, low=-1))
        return reference.lines()


def test_environment_variables_are_all_on_their_page():
    sources = "".join(p.read_text() for p in (ROOT / "m4").rglob("*.py"))
    named = {*re.findall(r"\bM4_[A-Z_]+[A-Z]\b", sources)}
    assert named and [n for n in named if n not in PAGES["docs/environment.md"]] == []


def test_the_readme_is_short_and_shows_results():
    lines = PAGES["README.md"].splitlines()
    assert len(lines) <= 120
    assert any("methods.svg" in line for line in lines[:40])


@pytest.mark.parametrize(
    ("name", "page", "image", "keys"),
    [("picture", "results", "methods", 0), ("digits", "digits", "digits", 2)],
)
def test_the_pictures_are_of_the_tables(name, page, image, keys):
    """`python docs/site/picture.py` and `python docs/site/digits.py` draw them again."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/site/{name}.py")
    picture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(picture)
    found = picture.rows(PAGES[f"docs/{page}.md"])
    assert len(found) >= 5 and all(0 < v[0] <= 1 for _, values in found for v in values)
    drawn = picture.svg(found)
    assert drawn.count("<circle") == 2 * len(found) + keys
    assert drawn == (ROOT / f"docs/images/{image}.svg").read_text()
