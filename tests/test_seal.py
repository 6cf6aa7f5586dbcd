"""Sealed documents: every change is noticed, none that JSON itself makes."""

import json

import pytest

from m4 import seal

DOCUMENT = {"b": (1, 2.5), 3: None, "a": {"y": 0.1 + 0.2, "x": "é"}}


def test_a_sealed_document_survives_the_way_through_a_file():
    sealed = seal.sealed(DOCUMENT)
    assert {k: v for k, v in sealed.items() if k != seal.KEY} == json.loads(json.dumps(DOCUMENT))
    assert seal.intact(sealed) and seal.intact(json.loads(json.dumps(sealed, indent=2)))
    assert seal.intact(dict(reversed(sealed.items())))  # the order of keys is no content
    assert seal.sealed(sealed) == sealed


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["a"].update(y=0.30000000000000010),
        lambda d: d["b"].append(3),
        lambda d: d.update(new=1),
        lambda d: d.pop("3"),
        lambda d: d.pop(seal.KEY),
        lambda d: d.update({seal.KEY: "0" * 64}),
    ],
)
def test_a_change_is_noticed(change):
    sealed = seal.sealed(DOCUMENT)
    change(sealed)
    assert not seal.intact(sealed)


def test_what_is_no_document_is_not_intact():
    assert not any(map(seal.intact, (None, [], "text", {}, {seal.KEY: None})))


def test_every_flipped_bit_of_a_file_is_noticed_or_harmless():
    sealed = seal.sealed(DOCUMENT)
    text = json.dumps(sealed).encode()
    for place in range(8 * len(text)):
        data = bytearray(text)
        data[place // 8] ^= 1 << place % 8
        try:
            found = json.loads(data)
        except ValueError:
            continue
        assert not seal.intact(found) or found == sealed
