"""One vocabulary: fields, pages and code use the words of docs/architecture.md, no older ones."""

import dataclasses
import re
from pathlib import Path

import pytest

from m4.config import code, rules
from m4.moe.options import MoEOptions, SoftOptions

ROOT = Path(__file__).parents[1]
TABLE = (ROOT / "docs/architecture.md").read_text().partition("## Words")[2]
WORDS = set(re.findall(r"[`\w]+", "\n".join(re.findall(r"^\| ([^|]+) \|", TABLE, flags=re.M))))
OLD = {"sharing", "routing", "routing_options", "dispatch", "capacity_factor", "num_replicas"}
LAYER = {field.name for field in dataclasses.fields(MoEOptions)}
# In text: an old field, a field of the layer that is not below `moe`, a share called a router.
OLD_TEXT = re.compile(
    r"\b(sharing|num_replicas|capacity_factor|routing_options)\b"
    r"|\bmethod\.(routing|sharing|dispatch|gate|router|share|engine|num_experts|top_k)\b"
    r"|\b(routing|dispatch)=['\"]"
    r"|\brouter=['\"]?(joint|permod|disjoint)\b"
)
TEXTS = [
    path
    for pattern in ("*.md", "docs/**/*.md", "configs/*.py", "m4/**/*.py", "notebooks/*.ipynb")
    for path in sorted(ROOT.glob(pattern))
    if path.relative_to(ROOT).as_posix() != "m4/config/hints.py"  # which knows the old words
]
METHODS = [
    (name, fidelity) for name in code.method_names() for fidelity in code.method_modules(name)
]


def old_words(text):
    return [found[0] for found in OLD_TEXT.finditer(text)]


def test_the_table_has_the_words():
    need = "gate router share engine losses capacity slot `present` `observed` `mask` `valid`"
    need += " `weight` `axis` `dim` fidelity mode task token"
    assert set(need.split()) <= WORDS


@pytest.mark.parametrize(("name", "fidelity"), METHODS, ids=lambda value: value)
def test_fields_use_the_words(name, fidelity):
    fields = rules.method_rules(code.method_class(name, fidelity))
    assert len(fields) >= 3
    parts = {part for path in fields for part in path.split(".")}
    assert not parts & OLD
    beside = {path.removeprefix("method.") for path in fields if path.count(".") == 1}
    assert not beside & (LAYER - {"hidden", "dtype"}), "a field of the layer belongs into moe"


def test_options_of_the_layer_use_the_words():
    assert {"gate", "router", "share", "engine", "capacity"} <= LAYER
    soft = {field.name for field in dataclasses.fields(SoftOptions)}
    assert not (LAYER | soft) & OLD


def test_no_text_uses_an_older_word():
    assert len(TEXTS) > 200
    found = {str(p.relative_to(ROOT)): old_words(p.read_text()) for p in TEXTS}
    assert {name: words for name, words in found.items() if words} == {}


@pytest.mark.parametrize(
    "text",
    [
        "`method.router`",
        "capacity_factor=2",
        "router='permod'",
        "--config.method.gate=x",
        "sharing",
    ],
)
def test_older_words_are_seen(text):
    assert old_words(text) and not old_words("method.moe.router=top_k, share='permod', a Routing")
