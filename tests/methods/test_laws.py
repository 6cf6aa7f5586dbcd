"""The laws that every method obeys, on every file of every method in m4/methods.

A new method is found by itself. What a published version is known to break stands below, each with
the test of the method that shows it.
"""

import functools

import pytest

from m4.config import code
from tests import properties

SPECS = (properties.SPEC, properties.THREE, properties.IMAGES)
BROKEN = {}


@functools.cache
def probe_of(name, fidelity):
    """Of the first schema that the class takes; a method that takes none of them fails here."""
    cls, refusals = code.method_class(name, fidelity), []
    for spec in SPECS:
        method = properties.small(cls, spec)
        try:
            properties.parameter_shapes(method)
        except ValueError as error:
            refusals.append(str(error))
            continue
        return properties.probe(method)
    raise AssertionError(refusals)


@pytest.mark.parametrize("check", properties.CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("file", properties.method_files(), ids="-".join)
def test_law(file, check):
    name = code.method_class(*file).__name__
    if check.__name__ in BROKEN.get(name, ()):
        pytest.skip(f"{name}: {BROKEN[name]}")
    check(probe_of(*file))


def test_what_is_excused_is_there():
    names = {code.method_class(*file).__name__ for file in properties.method_files()}
    assert set(BROKEN) <= names
    assert {c for broken in BROKEN.values() for c in broken} <= {
        c.__name__ for c in properties.CHECKS
    }
