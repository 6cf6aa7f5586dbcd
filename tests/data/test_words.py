"""Titles, units and definitions: read from every data set, and no part of what identifies it."""

import re
from typing import Any

import pytest

from m4.data import data_sets, manifest
from m4.data.sets import mfeat, ptbxl
from m4.data.sets.declared import dataset, definition, parse, wording
from m4.data.sets.mimiciv import catalogue
from m4.errors import ConfigError
from m4.specs import About, DataSpec, ModalitySpec, TaskSpec, wordless, words

PLAIN_WORDS = re.compile("[a-z]{4,}(_[a-z]{2,})*|age|[0-9]+ Hz|(row|column) [0-9]")
PLAIN = {
    "rows": {"files": "a.csv", "subject": "id"},
    "tasks": {"died": {"kind": "binary", "labels": "a.csv", "subject": "id", "column": "died"}},
    "modalities": {
        "vitals": {
            "kind": "table",
            "features": {"hr": "hr", "sex": {"codes": "s", "values": ["f"]}},
        },
        "labs": {"kind": "table", "features": ["k", "na"]},
    },
}
SAID = {
    "about": {"title": "A study", "setting": "One hospital <b>", "limits": "Small."},
    "rows": PLAIN["rows"],
    "tasks": {"died": {**PLAIN["tasks"]["died"], "title": "Death", "definition": "By day 30."}},
    "modalities": {
        "vitals": {
            "kind": "table",
            "title": "Vital signs",
            "features": {
                "hr": {"codes": "hr", "unit": "/min", "title": "heart rate"},
                "sex": {"codes": "s", "values": ["f"], "title": "sex"},
            },
        },
        "labs": {"kind": "table", "features": ["k", "na"], "units": {"k": "mmol/l"}},
    },
}


def read(content):
    return parse.parse(content, "my.toml", meds=False).data_spec()


def test_words_of_a_definition_reach_the_spec():
    assert words(read(SAID)) == {
        "about": SAID["about"],
        "tasks": {"died": {"title": "Death", "definition": "By day 30."}},
        "modalities": {
            "vitals": {
                "title": "Vital signs",
                "features": {
                    "hr": {"title": "heart rate", "unit": "/min"},
                    "sex=f": {"title": "sex: f"},
                },
            },
            "labs": {"features": {"k": {"unit": "mmol/l"}}},
        },
    }


def test_words_identify_nothing():
    assert wording.without(SAID) == PLAIN and wording.without(PLAIN) == PLAIN
    assert wordless(read(SAID)) == read(PLAIN)
    assert manifest.schema(read(SAID)) == manifest.schema(read(PLAIN))
    assert manifest.spec_from(manifest.schema(read(SAID))) == read(PLAIN)
    declared: Any = dataset.Declared(meds=False, file="support2")
    assert "about" in definition.load("support2") and "about" not in declared.resolved()
    assert declared.resolved()["modalities"]["demographics"]["features"]["age"] == "age"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["about"].update(titel="x"), "about.titel: no such key; did you mean 'title'?"),
        (lambda c: c["about"].update(use="a\x1b[2J"), "about.use: must be text of at most 2000"),
        (lambda c: c["tasks"]["died"].update(unit=3), "tasks.died.unit: must be a string"),
        (lambda c: c["modalities"]["labs"]["units"].update(cl="x"), "labs.units.cl: no such key"),
        (lambda c: c["modalities"]["labs"].update(title="x" * 300), "labs.title: must be text of"),
    ],
)
def test_wrong_words_are_named(change, said):
    content = {k: dict(v) for k, v in SAID.items()}
    content["tasks"] = {"died": dict(SAID["tasks"]["died"])}
    labs = {**SAID["modalities"]["labs"], "units": dict(SAID["modalities"]["labs"]["units"])}
    content["modalities"] = {**SAID["modalities"], "labs": labs}
    change(content)
    with pytest.raises(ConfigError) as caught:
        read(content)
    assert [line for line in caught.value.args if said in line], caught.value.args


def test_specs_check_their_words():
    with pytest.raises(ValueError, match="1 units of 2 features"):
        ModalitySpec("m", "table", (2,), ("a", "b"), units=("x",))
    with pytest.raises(ValueError, match="task t: 'a\\\\nb' must be text"):
        TaskSpec("t", "binary", title="a\nb")
    with pytest.raises(ValueError, match="about.use"):
        DataSpec((), (), about=About(use="x" * 3000))


def shipped():
    """(data set, options) of every schema that ships: its layouts, modalities and tasks."""
    more = {"imaging": [{"layout": "rsna", "tasks": ("density", "birads", "cancer")}]}
    more["imaging"] += [{"layout": name} for name in ("vindr", "gamma")]
    more |= {"mosi": [{"dataset": "mosei"}], "mfeat": [{"views": tuple(mfeat.VIEWS)}]}
    more |= {"adni": [{"image": "volume"}], "ptbxl": [{"modalities": (*ptbxl.LEADS, "report")}]}
    more["support2"] = [{"modalities": ["prognosis"], "tasks": ["phenotype", "hospital_death"]}]
    for name in data_sets.names():
        if name not in ("meds", "tables"):  # what the user's definition says
            yield from ((name, options) for options in ({}, *more.get(name, ())))


@pytest.mark.parametrize(("name", "options"), [*shipped()])
def test_every_data_set_says_what_it_is_and_asks(name, options):
    lacking = unsaid(data_sets.find(name).spec(**options))
    assert not lacking, f"{name}: nothing says what {', '.join(lacking)} is"


def test_everything_of_mimic_is_said():
    names, every = catalogue.MODALITIES, catalogue.TASK_SPECS
    assert not unsaid(catalogue.data_spec(names, every))
    assert not any(catalogue.data_spec(["flexcare"], every).modality("flexcare").units)


def unsaid(spec):
    """What of a schema has no words: title, definition, unit of a number, or words of a feature.

    A feature whose name is a word or a few, "heart_rate", explains itself, but not without a unit
    where others of its modality have one. 'among=this' is one of what a table tells apart.
    """
    found = [f"about.{field}" for field, text in vars(spec.about).items() if not text]
    for task in spec.tasks:
        wanted = ["title", *(["unit"] if task.kind == "regression" else [])]
        wanted += [] if task.kind == "cluster" else ["definition"]
        found += [f"{task.name}.{part}" for part in wanted if not getattr(task, part)]
    for m in spec.modalities:
        found += [] if m.title else [m.name]
        blank = ("",) * len(m.features)
        for name, title, unit in zip(m.features, m.titles or blank, m.units or blank, strict=True):
            if not (title or unit or "=" in name or PLAIN_WORDS.fullmatch(name)):
                found.append(f"{m.name}.{name}")
    return found


def test_what_is_unsaid_is_found():
    silent = DataSpec(
        (ModalitySpec("m", "table", (3,), ("bun", "heart_rate", "s=f")),),
        (TaskSpec("t", "regression"), TaskSpec("c", "cluster", title="Clusters")),
        about=About(*"abcdefg"),
    )
    assert unsaid(silent) == ["about.limits", "t.title", "t.unit", "t.definition", "m", "m.bun"]
