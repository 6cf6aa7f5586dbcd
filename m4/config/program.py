"""A configuration file is a program: it is run here, with a limit of time and files beside it."""

import ast
import contextlib
import difflib
import importlib.util
import inspect
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from m4.errors import ConfigError

LIMIT_S = 8.0  # seconds that a configuration file may run


def load_file(target: str | None, *, studies: bool = False) -> Mapping[str, Any]:
    """`"configs/x.py:variant"` -> what its `get_config(variant)` returns.

    One that is shipped is found from anywhere, `fusemoe_mimic:tiny` or `configs/fusemoe_mimic.py`;
    if none is named, the shipped ones are, or the lab's `studies`.

    Raises ConfigError if there is no such file, function or variant, or if the file fails.
    """
    if not target:
        raise ConfigError("--config: is missing; shipped: " + ", ".join(shipped(studies)))
    if "://" in target:
        raise ConfigError(f"--config={target}: must be a local file (it is run as a program)")
    path_text, _, variant = target.partition(":")
    path = locate(path_text)
    if path is None:
        raise ConfigError(f"--config={path_text}: {_why_not(Path(path_text))}")
    module = _run(path)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ConfigError(f"--config={path}: has no function get_config(variant='')")
    _check_variant(path_text, module, variant)
    config = _call(path, lambda: get_config(variant) if variant else get_config())
    if not isinstance(config, Mapping) and not hasattr(config, "to_dict"):
        raise ConfigError(
            f"--config={path}: get_config returned {type(config).__name__}, not a ConfigDict"
        )
    return config


def variants(path: str) -> tuple[str, ...]:
    """Named variants of a configuration file; none if it can't be read."""
    try:
        found = locate(path)
        return tuple(getattr(_run(found), "VARIANTS", ())) if found else ()
    except ConfigError:
        return ()


def folder() -> Path:
    """Where the shipped configurations are: in the package, or beside it in a clone."""
    inside = Path(__file__).parents[1] / "shipped" / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "configs"


def shipped(studies: bool = False) -> list[str]:
    """Names of the shipped configurations, or studies, as `--config` takes them from anywhere."""
    return sorted(
        f"configs/{p.name}"
        for p in folder().glob("*.py")
        if p.name.startswith("lab_") == studies and "def get_config" in p.read_text()
    )


def purpose(path: str) -> str:
    """What a configuration file says of itself in its first line; nothing of it is run."""
    found = locate(path)
    text = ast.get_docstring(ast.parse(found.read_text(encoding="utf-8"))) if found else None
    return (text or "").partition("\n")[0]


def locate(text: str) -> Path | None:
    """The file that a name stands for: itself, or `x`, `x.py` and `configs/x.py` a shipped one."""
    path = Path(text)
    try:
        if path.is_file() and path.suffix == ".py":
            return path
        inside = folder() / f"{path.stem}.py"
        known = path.suffix in ("", ".py") and path.parent in (Path(), Path("configs"))
        if known and path.stem and inside.is_file() and "def get_config" in inside.read_text():
            return inside
    except (OSError, ValueError):  # a name that is too long, or with a NUL
        pass
    return None


def _why_not(path: Path) -> str:
    known = shipped()
    stems = {Path(s).stem: s for s in known}
    close = [stem for stem in stems if path.stem in stem.split("_", 1)][:3]
    close = close or difflib.get_close_matches(path.stem, list(stems), n=1)
    if path.suffix in (".json", ".toml", ".yaml", ".yml") and path.is_file():
        also = "; --config_json reads this one" if path.suffix == ".json" else ""
        return f"is no configuration file, which ends in .py{also}"
    meant = " or ".join(stems[stem] for stem in close)
    hint = f"; did you mean {meant}?" if close else f"; shipped: {', '.join(known)}"
    return f"no such configuration file{hint}"


def _run(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"m4_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None, path  # the name ends in .py
    module, loader = importlib.util.module_from_spec(spec), spec.loader
    _call(path, lambda: loader.exec_module(module))
    return module


def _check_variant(path: str, module: ModuleType, variant: str) -> None:
    variants = getattr(module, "VARIANTS", None)
    if not variant or variants is None and inspect.signature(module.get_config).parameters:
        return
    if variant not in (variants or ()):
        close = difflib.get_close_matches(variant, variants or (), n=1)
        hint = f"; did you mean {path}:{close[0]}?" if close else ""
        listed = ", ".join(variants) if variants else "(none)"
        raise ConfigError(f"--config={path}:{variant}: no such variant; it has: {listed}{hint}")


def _call(path: Path, function):
    """Runs foreign code; its failure is a line about the file, not a traceback of ours."""
    try:
        late = ConfigError(f"--config={path}: does not return within {LIMIT_S:g} s")
        with time_limit(LIMIT_S, late), _beside(path):
            return function()
    except SyntaxError as error:
        raise ConfigError(f"--config={path}: line {error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        if isinstance(error, ConfigError):
            raise
        line = _line(path, error)
        raise ConfigError(f"--config={path}:{line} {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[None]:
    """Lets a configuration file import the files beside it, and forgets them again.

    So that files of one name in two folders are not mistaken for each other.
    """
    folder, before = str(path.parent.absolute()), {*sys.modules}
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        for name in {*sys.modules} - before:
            if str(Path(getattr(sys.modules[name], "__file__", None) or "").parent) == folder:
                del sys.modules[name]


@contextlib.contextmanager
def time_limit(seconds: float, error: Exception) -> Iterator[None]:
    """Raises `error` in what never returns; only the main thread can be interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        raise error

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _line(path: Path, error: BaseException) -> str:
    lines, trace = [], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f" line {lines[-1]}:" if lines else ""
