"""The laws that every method obeys, on every file of every method in m4/methods.

A new method is found by itself. What a published version breaks stands below; it has to.
"""

import functools

import pytest

from m4.audit import laws
from m4.config import code
from tests import properties

# What we ship takes everything; the first schema that a published version takes is asked.
SCHEMAS = {"m4": (properties.SPEC,), "published": (properties.THREE, properties.IMAGES)}
# The authors' code mixes the patients of a batch (`test_released_mixes_patients_of_a_batch`).
BROKEN = {
    "ReleasedFuseMoE": (
        properties.batch_composition_invariance,
        properties.patient_permutation_equivariance,
        properties.every_modality_matters,
        laws.absence_stays_in_its_row,
    ),
    # Their losses are means over all rows of a batch, also over such as have nothing.
    "ReleasedFlexCare": (properties.empty_row_counts_nowhere,),
    "ReleasedM4oE": (properties.empty_row_counts_nowhere,),
}


@functools.cache
def probe_of(name, fidelity):
    specs = SCHEMAS.get(fidelity, SCHEMAS["published"])
    return properties.probe(properties.first_small(code.method_class(name, fidelity), *specs))


# Baselines made of parts that another file here has, too: asked where there is time for it.
ALIKE = ("i2moe", "latefusion", "medfuse", "simmlm")


def cases():
    for file in properties.method_files():
        marks = [pytest.mark.slow] if file[0] in ALIKE else []
        yield pytest.param(file, marks=marks, id="-".join(file))


@pytest.mark.parametrize("check", properties.CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("file", [*cases()])
def test_law(file, check):
    probe = probe_of(*file)
    if check in BROKEN.get(type(probe.method).__name__, ()):
        with pytest.raises(AssertionError):
            check(probe)
    else:
        check(probe)
