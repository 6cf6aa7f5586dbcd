"""docs/configuration.md, made of the fields by `python -m m4.config.reference`.

Type, default and allowed values are those that a configuration is checked by; what a method's field
means is the comment beside it in the code.
"""

import dataclasses
import inspect
import io
import re
import sys
import tokenize

from m4.config import code, rules
from m4.config.meanings import MEANINGS, METHOD
from m4.config.rules import Rule

HEAD = """# Configuration reference

<!-- Made by `python -m m4.config.reference`; edit m4/config/meanings.py, not this page. -->

Every field of a configuration, as `--config.PATH=VALUE` and in a file. A wrong name, type, value or
combination is refused in one line before anything is built. Where the default is a dash, a
configuration has to say. [What a configuration is](adding-things.md) and [how to run
one](start.md) are other pages.
"""
SECTIONS = {
    "seed": "Seed",
    "data": "Data",
    "method": "Method",
    "text": "Text encoder",
    "image": "Image encoder",
    "conv": "Encoders of images and signals that are trained from scratch",
    "optim": "Optimiser",
    "train": "Training",
    "eval": "Evaluation",
    "mesh": "Devices",
}
TABLE = "| field | type | default | allowed | meaning | unit |\n|---|---|---|---|---|---|"
SHORT = "| field | type | default | allowed | meaning |\n|---|---|---|---|---|"


def lines() -> list[str]:
    """The page."""
    out = [HEAD]
    for section, title in SECTIONS.items():
        out += [f"## {title}", "", TABLE]
        for path, rule in rules.FIELDS.items():
            if path.partition(".")[0] == section:
                meaning, unit = MEANINGS.get(path, ("", ""))
                out.append(_row(path, rule, meaning, unit))
        out.append("")
    out += ["## Fields of the methods", ""]
    for name in code.method_names():
        cls = code.method_class(name)
        out += [f"### {name}", "", SHORT]
        said = _comments(cls)
        for path, rule in rules.method_rules(cls).items():
            field = path.removeprefix("method.")
            if not field.startswith("moe."):
                out.append(_row(path, rule, said.get(field) or METHOD.get(field, "")))
        out.append("")
    out += [
        "### The layer of experts, `method.moe`",
        "",
        "Of every method that has one.",
        "",
        SHORT,
    ]
    said = _comments(code.layer().MoEOptions)
    for path, rule in rules.method_rules(code.method_class("flexmoe")).items():
        if path.startswith("method.moe."):
            name = path.removeprefix("method.moe.")
            out.append(_row(path, rule, said.get(name) or METHOD.get(f"moe.{name}", "")))
    return "\n".join(out).rstrip().split("\n")


def _row(path: str, rule: Rule, *others: str) -> str:
    kind = getattr(rule.kind, "__name__", "any").replace("object", "any")
    default = (
        "-" if rule.default is rules.REQUIRED or rule.default is ... else f"`{rule.default!r}`"
    )
    cells = [f"`{path}`", kind, default.replace("FrozenDict", ""), _allowed(rule), *others]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _allowed(rule: Rule) -> str:
    if rule.names is not None:
        return rule.allowed().removeprefix("one of ")
    if rule.also:
        return ", ".join(["True", "False", *rule.also] if rule.kind is bool else rule.also)
    words = rule.allowed()
    limits = re.search(r"(at least|above|at most|below).*", words)
    return limits[0] if limits else ""


def _comments(cls: type) -> dict[str, str]:
    """Field -> the comment beside it in the source of its class, or of one that it extends."""
    bases = [base for base in cls.__mro__[1:] if base.__module__.startswith("m4.")]
    said = {k: v for base in reversed(bases) for k, v in _beside(base).items()}
    return said | _beside(cls)


def _beside(cls: type) -> dict[str, str]:
    if not dataclasses.is_dataclass(cls):
        return {}
    source, said = inspect.getsource(cls), {}
    fields = {field.name for field in dataclasses.fields(cls)}
    rows = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            name = rows[token.start[0] - 1].strip().partition(":")[0]
            if name in fields:
                said[name] = token.string.lstrip("# ")
    return said


if __name__ == "__main__":
    sys.stdout.write("\n".join(lines()) + "\n")
