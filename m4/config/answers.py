"""What the command answers at once: its help, its version, and what there is to choose from."""

import importlib.metadata
import platform
import textwrap

from m4 import __version__
from m4.config import code, completion, flags, program
from m4.data import data_sets

PARTS = {
    "gates": "gate",
    "routers": "router",
    "losses": "losses",
    "activations": "activation",
}  # of a layer, and the fields that name them


def of(found: flags.Flags) -> str | None:
    """The answer to `--help`, `--version`, `--list` or `--completion`; None for other commands."""
    if found.help:
        return flags.USAGE
    if found.version:
        return _version()
    if found.list:
        return "\n".join(_lines())
    return completion.SCRIPTS[found.completion] if found.completion else None


def _version() -> str:
    return f"m4 {__version__} (jax {_installed('jax')}, Python {platform.python_version()})"


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _lines() -> list[str]:
    """Configurations with their variants; methods, parts of a layer and data sets, by name."""
    found = ["configurations (--config=NAME[:VARIANT])"]
    for path in program.shipped():
        name = path.removeprefix("configs/").removesuffix(".py")
        variants = " ".join(f":{v}" for v in program.variants(path))
        found += [
            f"  {name:24} {program.purpose(path)}",
            *([f"  {'':24} {variants}"] * (variants != "")),
        ]
    found += ["", "methods (--set method.name=, method.fidelity=)"]
    for name in code.method_names():
        found.append(f"  {name:24} {', '.join(code.method_modules(name))}")
    for title, field in PARTS.items():
        names = ", ".join(code.layer().choices(field))
        where = "method.aux_weights" if field == "losses" else f"method.moe.{field}"
        found += ["", f"{title} ({where})", *_wrapped(names)]
    found += ["", "data sets (--set data.name=)", *_wrapped(", ".join(data_sets.names()))]
    return found


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 96, initial_indent="  ", subsequent_indent="  ")
