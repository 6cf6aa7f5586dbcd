"""Titles, units and definitions of a definition: words that change no record.

[about]                    title, source, setting, period, participants, use, not_for, limits
[tasks.NAME]               title, unit, definition
[modalities.NAME]          title
[modalities.NAME.units]    feature = "unit"; [modalities.NAME.titles] likewise
feature = { codes = "hr", unit = "/min", title = "heart rate" }
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from m4.data.sets.declared.keys import Keys
from m4.specs import LONGEST_WORDS, About, words_problem

OF_TASK, OF_FEATURE = ("title", "unit", "definition"), ("title", "unit")
OF_MODALITY = ("title", "titles", "units")


def without(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content as it would be if nobody had written words into it."""
    found = {key: value for key, value in content.items() if key != "about"}
    for key, words in (("tasks", OF_TASK), ("modalities", OF_MODALITY)):
        if isinstance(found.get(key), Mapping):
            found[key] = {name: _less(own, words) for name, own in found[key].items()}
    for name, own in found.get("modalities", {}).items():
        if isinstance(own, Mapping) and isinstance(own.get("features"), Mapping):
            features = {f: _feature(value) for f, value in own["features"].items()}
            found["modalities"][name] = {**own, "features": features}
    return found


def _less(value: Any, words: Sequence[str]) -> Any:
    return (
        {k: v for k, v in value.items() if k not in words} if isinstance(value, Mapping) else value
    )


def _feature(value: Any) -> Any:
    """'hr' of {codes = 'hr', unit = '/min'}: as it is written without a unit."""
    less = _less(value, OF_FEATURE)
    return less["codes"] if less != value and [*less] == ["codes"] else less


def text(keys: Keys, key: str) -> str:
    """A title, unit or definition; '' and a problem for what cannot be printed."""
    found = keys.text(key)
    most = LONGEST_WORDS if key == "definition" else None
    if wrong := words_problem(found) if most is None else words_problem(found, most):
        keys.problem(key, wrong)
        return ""
    return found


def of_task(keys: Keys) -> dict[str, str]:
    """The words of a task."""
    return {key: text(keys, key) for key in OF_TASK}


def of_features(keys: Keys, own: Mapping[str, Sequence[tuple[str, str]]]) -> dict[str, Any]:
    """Words of a modality: title, titles and units.

    `own` has, by name of a feature as written, (title, unit) of each that is made of it.
    """
    columns: dict[str, list[str]] = {"titles": [], "units": []}
    for i, key in enumerate(columns):
        table = keys.section(key)
        for name, pairs in own.items():
            shared = text(table, name)
            columns[key] += [pair[i] or shared for pair in pairs]
        table.finish()
    found = {key: tuple(column) if any(column) else () for key, column in columns.items()}
    return {"title": text(keys, "title"), **found}


def about(keys: Keys) -> About:
    """The table [about]."""
    found = {}
    for field in dataclasses.fields(About):
        value = keys.text(field.name)
        if wrong := words_problem(value, LONGEST_WORDS):
            keys.problem(field.name, wrong)
            value = ""
        found[field.name] = value
    keys.finish()
    return About(**found)
