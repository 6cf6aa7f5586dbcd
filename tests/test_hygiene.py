"""What the source must not do: run data, import what data name, leave files open to others."""

import ast
import fnmatch
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FOLDERS = ("m4", "configs", "launch")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "imp"}
CALLS = {"eval", "exec", "compile", "__import__", "input", "breakpoint"}
METHODS = {  # attribute -> keyword that makes the call safe, None if nothing does
    "torch.load": ("weights_only", True),
    "os.system": None,
    "os.popen": None,
    "tempfile.mktemp": None,
}
CONFIGURATION_FILES = "m4/config/program.py"  # a configuration file is a program, and says so
CONVERTER = "m4/interop/state_dicts.py"
UNPICKLER = "m4/interop/torch_file.py"  # knows a fixed list of names, all of them inert


def dotted(node):
    return ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""


def keyword(call, name):
    return next((k.value for k in call.keywords if k.arg == name), None)


def is_constant(node, value):
    return isinstance(node, ast.Constant) and node.value is value


def problems(text, name):
    """What a source file does that it must not."""
    found = []
    for node in ast.walk(ast.parse(text)):
        line = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            names = [alias.name.partition(".")[0] for alias in node.names]
            allowed = {"pickle"} if name == UNPICKLER else set()
            found += [f"{line}: imports {n}" for n in names if n in MODULES - allowed]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES:
            found.append(f"{line}: imports {node.module}")
        elif isinstance(node, ast.Call):
            found += [f"{line}: {problem}" for problem in call_problems(node, name)]
    return found


def call_problems(call, name):
    called = dotted(call.func)
    if called in CALLS:
        yield f"calls {called}"
    if called in METHODS:
        safe = METHODS[called]
        if safe is None or not is_constant(keyword(call, safe[0]), safe[1]):
            yield f"calls {called} unsafely"
        elif name != CONVERTER:
            yield f"calls {called} outside {CONVERTER}"
    for flag in ("allow_pickle", "shell"):
        if keyword(call, flag) is not None and not is_constant(keyword(call, flag), False):
            yield f"passes {flag}"
    if called.endswith(("extractall", "unpack_archive")) and keyword(call, "filter") is None:
        yield "unpacks without a filter"
    if called.endswith(".exec_module") and name != CONFIGURATION_FILES:
        yield "runs a file"
    if called.endswith("import_module") and name != "m4/resolve.py" and not of_m4(call.args[0]):
        yield "imports a module that the source does not name"


def of_m4(node):
    """Whether a name can only be one of m4's own modules: f"m4.room.{...}"."""
    first = node.values[0] if isinstance(node, ast.JoinedStr) else node
    return isinstance(first, ast.Constant) and str(first.value).startswith("m4.")


def test_the_source_runs_no_data():
    assert len(FILES) > 100
    found = [p for f in FILES for p in problems(f.read_text(), str(f.relative_to(ROOT)))]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from dill import loads",
        "import yaml",
        "eval(x)",
        "exec(x)",
        "__import__(x)",
        "np.load(x, allow_pickle=True)",
        "np.load(x, allow_pickle=flag)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "torch.load(x, weights_only=True)",  # right, but not in the converter
        "subprocess.run(x, shell=True)",
        "os.system(x)",
        "archive.extractall(x)",
        "importlib.import_module(x)",
        "importlib.import_module(f'{x}.y')",
        "spec.loader.exec_module(module)",
    ],
)
def test_the_check_sees(text):
    assert problems(text, "m4/data/x.py"), text


def test_the_check_lets_safe_calls_pass():
    safe = "np.load(x, allow_pickle=False); ast.literal_eval(x); re.compile(x)"
    assert problems(f"{safe}; importlib.import_module(f'm4.modes.{{x}}')", "m4/data/x.py") == []
    assert problems("torch.load(x, weights_only=True)", CONVERTER) == []


# Commands that write nothing derived from patients: launch files (what they start sets its own
# mask), benchmarks.
HARMLESS = ("launch/", "m4/bench/", "m4/config/reference.py")  # the last prints a page of docs


def is_command(path):
    body = ast.parse(path.read_text()).body
    return any(isinstance(n, ast.If) and ast.unparse(n.test).startswith("__name__") for n in body)


def test_every_command_writes_for_its_owner_only():
    commands = [f for f in FILES if is_command(f)]
    names = {str(f.relative_to(ROOT)): f.read_text() for f in commands}
    assert {"m4/main.py", "m4/data/__main__.py", "m4/interop/__main__.py"} <= set(names)
    own, guard = "os.umask(0o077)", (ROOT / "m4/cli.py").read_text().partition("def guard(")[2]
    assert own in guard
    for name, text in names.items():
        assert name.startswith(HARMLESS) or own in text or "return cli.guard(run, " in text, name


def test_no_address_is_opened_as_a_configuration():
    command = [sys.executable, "-m", "m4.main", "--config=gs://bucket/x.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2 and "must be a local file" in done.stderr


def locked():
    """Name -> (version, has a hash) of requirements.lock."""
    text = (ROOT / "requirements.lock").read_text().replace("\\\n", " ")
    found = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, version = re.match(r"([A-Za-z0-9._-]+)(?:\[.*?\])?==([^ ;]+)", line).groups()
        found.setdefault(canonicalize_name(name), []).append((version, "--hash=sha256:" in line))
    return found


def test_the_lock_pins_with_hashes_and_names_no_host():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text and "index-url" not in text
    versions = locked()
    assert len(versions) > 50
    assert all(hashed for pins in versions.values() for _, hashed in pins)


def test_the_ranges_contain_the_lock():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["dev"], *extras["tensorboard"]]
    versions = locked()
    for requirement in map(Requirement, wanted):
        if requirement.marker and not requirement.marker.evaluate():
            continue
        pins = versions[canonicalize_name(requirement.name)]
        assert all(requirement.specifier.contains(version) for version, _ in pins), requirement


def test_research_use_is_said_where_results_are():
    for path in ("README.md", "m4/eval/report/templates/report.html.j2", "m4/__init__.py"):
        text = (ROOT / path).read_text().lower()
        assert "research use only" in text and "not a medical device" in text, path


def wheel(pyproject):
    """Top folders of packages that go into the wheel, by the patterns of pyproject.toml."""
    found = pyproject["tool"]["setuptools"]["packages"]["find"]
    folders = [path.name for path in ROOT.iterdir() if path.is_dir() and path.name.isidentifier()]
    return {f for f in folders for pattern in found["include"] if fnmatch.fnmatch(f, pattern)}


def test_the_wheel_holds_what_users_run():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert wheel(project) == {"m4"}
    # known bad: the same patterns without a limit take the tests, faults and rivals along
    everything = {"tool": {"setuptools": {"packages": {"find": {"include": ["*"]}}}}}
    assert {"m4", "tests", "configs"} <= wheel(everything)
    folders = {path.name for path in (ROOT / "m4").rglob("*") if path.is_dir()}
    assert not folders & {"faults", "reliability", "rivals", "timing", "tests"}
    bench = {path.stem for path in (ROOT / "m4/bench").glob("[!_]*.py")}
    device = {"device", "device_stages", "device_runs", "device_torch", "clock"}
    assert bench == {"aot", "aot_case", "compiled"} | device  # what users run, and its parts
