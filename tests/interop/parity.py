"""m4 with the weights of a PyTorch model against that model: forward, losses, gradients."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from m4.interop import convert

REASON = "needs torch: pip install 'm4-moe[torch]'"
torch = pytest.importorskip("torch", reason=REASON)
RNGS = {"gate": jax.random.key(0), "dropout": jax.random.key(0)}


def noise(shape):
    """Standard normal numbers of a shape, always the same ones."""
    rng = np.random.default_rng(zlib.crc32(str(tuple(shape)).encode()))
    return rng.standard_normal(tuple(shape)).astype(np.float32)


def torch_noise(shape):
    """The same as a tensor."""
    return torch.from_numpy(noise(shape))


@pytest.fixture
def same_noise(monkeypatch):
    """`jax.random.normal` gives `noise`, so that both draw the same."""
    monkeypatch.setattr(jax.random, "normal", lambda key, shape=(), *_: jnp.asarray(noise(shape)))


def randomise(model, seed=0, scale=1.0):
    """Weights off their initial values, at scales that keep every part of the model awake.

    The model then computes in double precision: what m4 differs by is m4's own rounding.
    """
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            size = scale * (1.5 * p.shape[-1] ** -0.5 if p.ndim > 1 else 0.3)
            offset = 1.0 if "norm" in name and name.endswith("weight") and p.ndim == 1 else 0.0
            p.copy_(torch.from_numpy(rng.normal(offset, size, p.shape).astype(np.float32)))
    return model.double()


def scale(model, size):
    """All weights times `size`."""
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(size)


def state(model):
    """The state dict as NumPy arrays, in single precision."""
    return {name: x.detach().numpy().astype(np.float32) for name, x in model.state_dict().items()}


def tensors(tree):
    """NumPy arrays of a nested dictionary as tensors, numbers in double precision."""
    if isinstance(tree, dict):
        return {name: tensors(x) for name, x in tree.items()}
    x = torch.from_numpy(np.ascontiguousarray(tree))
    return x.double() if x.is_floating_point() else x


def run(method, params, batch):
    """Outputs, loss terms with 'total', and gradients by path, of m4."""

    def objective(params):
        out = method.apply({"params": params}, batch, train=True, rngs=RNGS)
        total, terms = method.loss(out, batch, jnp.zeros((), jnp.int32))
        terms = {name: term.value() for name, term in terms.items()}
        return total, (out.logits, out.aux_losses, terms | {"total": total})

    gradient = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (_, found), grads = gradient(params)
    return *found, traverse_util.flatten_dict(grads, sep="/")


def imported(method, layout, model, shapes):
    """m4's parameters from the model's state dict, checked as by the command line."""
    arrays = convert.to_m4(layout, state(model), shapes, "state dict")
    return traverse_util.unflatten_dict(arrays, sep="/")


def close(found, expected, name, rtol=1e-5):
    """Equal within `rtol` of the array's size (norm over norm)."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, name
    error = np.linalg.norm(found - expected)
    assert error <= rtol * np.linalg.norm(expected), (name, error / np.linalg.norm(expected))


def same_gradients(layout, model, grads, rtol=1e-5):
    """Of every m4 array, within `rtol` of its norm, or a tenth of that of the whole gradient's.

    The latter is for nearly cancelling sums, such as a softmax's logits have: there float32 in
    PyTorch is as far from double precision as m4 is, or farther.
    """
    theirs = {n: p.grad for n, p in model.named_parameters(remove_duplicate=False)}
    least = 0.1 * rtol * np.sqrt(sum(np.square(g).sum() for g in grads.values()))
    sizes = {name: x.shape for name, x in model.state_dict().items()}
    for entry in layout.entries:
        parts = [
            np.zeros(sizes[n]) if theirs[n] is None else theirs[n].numpy() for n in entry.names
        ]
        expected, found = entry.join(parts), np.asarray(grads[entry.path], np.float64)
        assert found.shape == expected.shape, entry.path
        error, size = np.linalg.norm(found - expected), np.linalg.norm(expected)
        assert error <= rtol * size + least, (entry.path, error, size)
