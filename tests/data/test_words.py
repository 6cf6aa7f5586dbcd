"""Titles, units and definitions: read from every data set, and no part of what identifies it."""

from typing import Any

import pytest

from m4.data import data_sets, manifest
from m4.data.sets.declared import dataset, definition, parse, wording
from m4.errors import ConfigError
from m4.specs import About, DataSpec, ModalitySpec, TaskSpec, wordless, words

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


@pytest.mark.parametrize("name", ["physionet2012", "mimiciv", "synthetic", "support2", "eicu_demo"])
def test_shipped_cohorts_say_what_they_ask(name):
    spec = data_sets.find(name).spec()
    assert all(vars(spec.about).values()), name
    for task in spec.tasks:
        assert task.kind == "cluster" or (task.title and task.definition), task.name
        assert task.unit or task.kind != "regression", task.name
