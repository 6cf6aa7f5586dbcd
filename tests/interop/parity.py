"""m4 with the weights of a PyTorch model against that model: forward, losses, gradients."""

import contextlib
import functools
import zlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from m4.interop import convert
from m4.methods.flexmoe import patches
from m4.nn.encoders.volume import VolumeEncoder
from tests.interop import shared

REASON = "needs torch: pip install 'm4-moe[torch]'"
torch = pytest.importorskip("torch", reason=REASON)
RNGS = {"gate": jax.random.key(0), "dropout": jax.random.key(0)}
RTOL = 1e-5  # of the array's size: the bar


def noise(shape):
    """Standard normal numbers of a shape, always the same ones."""
    rng = np.random.default_rng(zlib.crc32(str(tuple(shape)).encode()))
    return rng.standard_normal(tuple(shape)).astype(np.float32)


@contextlib.contextmanager
def same_draws():
    """`jax.random.normal` gives `noise`, and volumes drop nothing: both draw the same."""
    volume = functools.partial(VolumeEncoder, dropout=0.0)
    with (
        mock.patch.object(
            jax.random, "normal", lambda key, shape=(), *_: jnp.asarray(noise(shape))
        ),
        mock.patch.object(patches, "VolumeEncoder", volume),
    ):
        yield


def draw(model, seed=0, size=1.0):
    """Weights with `size` times the spread that PyTorch's own have initially, as of a seed.

    What starts at zero or one moves, too. The model then computes in double precision.
    """
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            fan = p[0].numel() if p.ndim > 1 else 100
            offset = 1.0 if "norm" in name and name.endswith("weight") and p.ndim == 1 else 0.0
            found = offset + rng.uniform(-1, 1, p.shape) * fan**-0.5
            p.copy_(torch.from_numpy((size * found).astype(np.float32)))
    return model.double()


def state(model):
    """The state dict as NumPy arrays, in single precision."""
    return {name: x.detach().numpy().astype(np.float32) for name, x in model.state_dict().items()}


def tensors(tree):
    """NumPy arrays of a nested dictionary as tensors, numbers in double precision."""
    if isinstance(tree, dict):
        return {name: tensors(x) for name, x in tree.items()}
    x = torch.from_numpy(np.ascontiguousarray(tree))
    return x.double() if x.is_floating_point() else x


@functools.cache
def compiled(method):
    """Shapes of the parameters, and their gradient on a batch: (total, outputs), gradients."""

    def objective(params, batch):
        out = method.apply({"params": params}, batch, train=True, rngs=RNGS)
        total, terms = method.loss(out, batch, jnp.zeros((), jnp.int32))
        terms = {name: term.value() for name, term in terms.items()}
        return total, (out.logits, out.aux_losses, terms | {"total": total})

    shapes = {
        n: jax.ShapeDtypeStruct(x.shape, np.float32) for n, x in shared.shapes(method).items()
    }
    return shapes, jax.jit(jax.value_and_grad(objective, has_aux=True))


def imported(method, layout, model):
    """m4's parameters from the model's state dict, checked as by the command line."""
    shapes, _ = compiled(method)
    arrays = convert.to_m4(layout, state(model), shapes, "state dict")
    return traverse_util.unflatten_dict(arrays, sep="/")


def of_m4(case, convert=lambda x: x):
    """Outputs and losses by name, and gradients by path; `convert` is of every array inside."""
    params = jax.tree.map(convert, imported(case.method, case.layout, case.model))
    with same_draws():
        _, gradient = compiled(case.method)
        (_, found), grads = gradient(params, jax.tree.map(convert, case.batch))
    return case.ours(*found), traverse_util.flatten_dict(grads, sep="/")


def of_torch(case, *, single=False):
    """The same of the original, in double precision or in its own."""
    model, batch = case.model.double(), case.theirs
    if single:
        model, batch = model.float(), _single(batch)
    model.zero_grad()
    found = case.expected(model, batch)
    found["total"].backward()
    grads = {n: p.grad for n, p in model.named_parameters(remove_duplicate=False)}
    sizes = {name: x.shape for name, x in model.state_dict().items()}

    def part(name):
        return np.zeros(sizes[name]) if grads[name] is None else grads[name].double().numpy()

    entries = {e.path: e.join([part(name) for name in e.names]) for e in case.layout.entries}
    return {name: x.detach().numpy() for name, x in found.items()}, entries


def _single(tree):
    if isinstance(tree, dict):
        return {name: _single(x) for name, x in tree.items()}
    if isinstance(tree, list):
        return [_single(x) for x in tree]
    return tree.float() if isinstance(tree, torch.Tensor) and tree.is_floating_point() else tree


def error(found, expected, least=1e-30):
    """Norm of the difference over the norm, or over `least` if that is larger."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return np.linalg.norm(found - expected) / max(np.linalg.norm(expected), least)


def errors(found, expected, least):
    """Relative errors by name, of the whole gradient ('gradient') and of every array of it.

    Of an array whose gradient is less than a tenth of 1e-5 of the whole nothing is asked: there are
    nearly cancelling sums, such as a softmax's logits have, and some that are 0.
    """
    (values, grads), (true_values, true_grads) = found, expected
    every = {n: error(values[n], x, least.get(n, 1e-30)) for n, x in true_values.items()}
    flat = [np.concatenate([np.ravel(x[n]) for n in true_grads]) for x in (grads, true_grads)]
    every["gradient"] = error(*flat)
    slack = 0.1 * RTOL * np.linalg.norm(flat[1])
    for name, x in true_grads.items():
        size = max(np.linalg.norm(x), 1e-30)
        every[f"gradient of {name}"] = max(0.0, error(grads[name], x) - slack / size)
    return every


def compare(case):
    """(m4's relative errors, those of the original in its own single precision), by name."""
    expected = of_torch(case)
    ours = errors(of_m4(case), expected, case.least)
    return ours, errors(of_torch(case, single=True), expected, case.least)


def close(found, expected, name, rtol=RTOL):
    """Equal within `rtol` of the array's size (norm over norm)."""
    assert error(found, expected) <= rtol, (name, error(found, expected))
