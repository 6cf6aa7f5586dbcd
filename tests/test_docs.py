"""The pages that promise to work are executed."""

import ast
import importlib
import importlib.util
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from m4 import config as configs
from m4.config import flags, program, reference, rules
from m4.config.meanings import MEANINGS
from m4.data.__main__ import main as data_main
from m4.errors import UserError
from m4.main import main
from m4.modes import report

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


ROOT = Path(__file__).parents[1]
PAGES = {p.relative_to(ROOT).as_posix(): p.read_text() for p in sorted(ROOT.glob("docs/**/*.md"))}
PAGES["README.md"] = (ROOT / "README.md").read_text()
SHELL = re.compile(r"^```(?:sh|bash)\n(.*?)^```|((?:^    .*\n)+)", re.M | re.S)
EXECUTED = ("docs/adding-things.md", "docs/follow-a-batch.md")  # whole, above


def commands():
    """(page, words) of every command of a page: whole lines, continued ones joined."""
    found = []
    for page, text in PAGES.items():
        for fenced, indented in SHELL.findall(text):
            for line in (fenced or indented).replace("\\\n", " ").splitlines():
                line = re.sub(r"\s#.*", "", line).strip()
                start = re.match(
                    r"(?:[A-Z_0-9]+=\S+ )*(python -m|make|m4-moe|pip|python launch)\b", line
                )
                if start and "..." not in line:
                    found.append((page, line))
    return found


COMMANDS = commands()


FORM = re.compile(r"=(C|W|FILE|A,B|TASK/METRIC|THIS_FILE|NEW_DATA|FOLDER)\b|[\[\]]|\$")


def words_of(line):
    """Without what a shell sets before it and does after it; `python -m m4.main` is m4-moe."""
    line = re.split(r" [|>&] ?|;", line)[0]
    words = shlex.split(line)
    while re.match(r"[A-Z_0-9]+=", words[0]):
        words = words[1:]
    if words[:2] == ["python", "-m"] and words[2] in ("m4", "m4.main"):
        return ["m4-moe", *words[3:]]
    return words


def is_run(line):
    words = words_of(line)
    return words[0] == "m4-moe" and words[1] not in flags.TOOLS


def test_there_are_commands():
    assert len(COMMANDS) > 60 and {page for page, _ in COMMANDS} > {"README.md", "docs/start.md"}
    assert sum(is_run(line) for _, line in COMMANDS) > 40


@pytest.mark.parametrize("page, line", [c for c in COMMANDS if is_run(c[1])])
def test_every_command_is_accepted(page, line, monkeypatch):
    """As far as that costs nothing: its flags, its configuration, variant and fields."""
    monkeypatch.chdir(ROOT)
    given = words_of(line)[1:]
    if any(FORM.search(word) for word in given):  # a form, not a command: its flags are there
        names = [re.match(r"--([a-z_]+)", word) for word in given]
        assert {n[1] for n in names if n} <= {*flags.NAMES, "set", "config"}
        return
    parsed = configs.parse(given)
    several = parsed.mode == "sweep" and parsed.config
    for name in parsed.config.split(",") if several else [parsed.config]:
        if name is None or page in EXECUTED or name.startswith("lab/"):
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


@pytest.mark.parametrize("page, line", [c for c in COMMANDS if not is_run(c[1])])
def test_every_other_command_is_of_something_that_is_there(page, line, capsys):
    words = words_of(line)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
        assert words[1] in targets
    elif words[:2] == ["python", "-m"] and words[2].startswith(("m4", "tests")):
        assert importlib.util.find_spec(words[2]), line
        if words[2] == "m4.data":
            assert words[3] in ("--help", *data_help(capsys)), line
    elif words[:3] == ["python", "-m", "pytest"]:
        assert all((ROOT / w).exists() for w in words if w.startswith("tests/")), line
    elif words[0] == "pip" or words[2:3] == ["pip"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for extra in re.findall(r"m4-moe\[(\w+)\]", line):
            assert extra in extras["optional-dependencies"]
    elif words[:2] == ["m4-moe", "data"]:
        assert words[2] in ("--help", *data_help(capsys)), line
    elif words[0] == "m4-moe":
        tools = f"m4.{words[1]}.__main__"
        assert words[1] in ("launch", "compare") or importlib.util.find_spec(tools), line
    else:
        assert (ROOT / words[1]).is_file(), line


def data_help(capsys):
    assert data_main(["--help"]) == 0
    return re.findall(r"^(\w+) ", capsys.readouterr().out, flags=re.M)


def test_every_block_of_code_is_one():
    """TOML and JSON are read, Python compiled, and what it imports of m4 is there."""
    for page, text in PAGES.items():
        for kind, block in re.findall(
            r"^```(toml|json|python)\n(.*?)^```", text, flags=re.M | re.S
        ):
            if kind == "toml":
                assert tomllib.loads(block), page
            elif kind == "json":
                json.loads(block)
            else:
                for node in ast.walk(ast.parse(block, page)):
                    known(node, page)


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


def test_the_picture_is_of_the_table():
    """`python docs/site/picture.py` draws it again."""
    spec = importlib.util.spec_from_file_location("picture", ROOT / "docs/site/picture.py")
    picture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(picture)
    found = picture.rows(PAGES["docs/results.md"])
    assert len(found) >= 5 and all(0 < v[0] < 1 for _, values in found for v in values)
    assert picture.svg(found).count("<circle") == 2 * len(found)
