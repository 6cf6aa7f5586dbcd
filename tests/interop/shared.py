"""Random states of a release, and the round trip that every table must pass."""

import zlib

import numpy as np
from flax import traverse_util

from m4.interop import convert
from m4.nn.torch_table import Layout
from tests import properties


def shapes(method):
    """Path -> shape of every parameter, without computing any."""
    return traverse_util.flatten_dict(properties.parameter_shapes(method), sep="/")


def tensors(layout: Layout, shapes):
    """Every tensor of the release, each with numbers of its own."""
    found = {}
    for name, words in convert.expected(layout, shapes).items():
        shape = tuple(int(n) for n in words.partition("[")[2].rstrip("]").split(",") if n)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        found[name] = rng.standard_normal(shape).astype(np.float32)
    found |= {name: found[source] for name, source in layout.copies.items()}
    return found | layout.constants


def same(found, expected):
    """Equal names and bits."""
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].dtype == x.dtype, name
        np.testing.assert_array_equal(found[name], x, err_msg=name)


def round_trip(layout: Layout, shapes, *, unread=()):
    """Both ways, bit for bit; of the tensors `unread` only what the model reads comes back."""
    theirs = tensors(layout, shapes)
    ours = convert.to_m4(layout, theirs, shapes, "x")
    assert {p: x.shape for p, x in ours.items()} == {p: x.shape for p, x in shapes.items()}
    back = convert.to_torch(layout, ours)
    same(convert.to_m4(layout, back, shapes, "x"), ours)
    same({n: x for n, x in back.items() if n not in unread},
         {n: x for n, x in theirs.items() if n not in unread})  # fmt: skip
    for name in unread:
        assert back[name].shape == theirs[name].shape
        kept = back[name] != 0
        np.testing.assert_array_equal(back[name][kept], theirs[name][kept])


def params_from(layout: Layout, state):
    """Our parameters, nested, of the arrays whose tensors are all in `state`."""
    flat = {
        e.path: e.join([np.asarray(state[n], np.float32) for n in e.names])
        for e in layout.entries
        if set(e.names) <= state.keys()
    }
    return traverse_util.unflatten_dict(flat, sep="/")
