"""ViT or ResNet in front of a method: pixels, freezing, absence, every method, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from m4.errors import ConfigError
from m4.nn import front
from m4.nn.pretrained import bert, images, resnet, safetensors, vit_file
from m4.run.method import make_method
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from m4.train import optim
from m4.train.step import init_params
from m4.types import Stream
from tests import properties, toy
from tests.nn import test_bert, test_resnet, test_vit_file

VIT = vit_file.ViTSizes(4, 6, 1, 2, patch=2, grid=2, channels=3, pooler=0)
RESNET = resnet.ResNetSizes(3, 2, (1,) * 4, (2, 2, 2, 4), (2, 2, 2, 4), 0)
SPEC = DataSpec(
    (
        ModalitySpec("labs", "table", (2,)),
        ModalitySpec("cc", "image", (2, 4, 4, 3)),
        ModalitySpec("cup", "image", (1, 4, 4, 1), dtype="uint8"),
        ModalitySpec("mlo", "image", (2, 4, 4, 3)),
    ),
    (TaskSpec("death", "binary"),),
)
PICTURES = ("cc", "cup", "mlo")
FLOATS = DataSpec((SPEC.modalities[0], *SPEC.modalities[1::2]), SPEC.tasks)
TOY = {"name": "tests.toy:Toy", "width": 4, "dropout": 0.0}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    tensors = {
        "vit": test_vit_file.weights(VIT),
        "resnet": test_resnet.weights(RESNET),
        "bert": test_bert.weights(),
    }
    for name, some in tensors.items():
        safetensors.write(some, folder / f"{name}.safetensors")
    return {name: str(folder / f"{name}.safetensors") for name in tensors}


def make_batch():
    batch = properties.random_batch(SPEC, rows=4)
    cup = batch.inputs["cup"]
    grey = np.random.default_rng(0).integers(0, 256, (4, 1, 4, 4, 1)).astype(np.uint8)
    return batch.replace(inputs=batch.inputs | {"cup": cup.replace(values=grey)})


def built(file, data=SPEC, text=None, method=None, **image):
    image = {"file": file, "num_heads": 2} | image
    return make_method(dict(method or TOY), data, text=text or {}, image=image)


def params(file):
    _, readers = images.load(file, 2)
    return traverse_util.unflatten_dict({p: f() for p, f in readers.items()}, sep="/")


def test_pixels():
    # 51 of 255 is 0.2: (0.2 - 0.5) / 0.5, and (0.2 - mean) / deviation of ImageNet's channels.
    here = np.array([True, True, False])
    grey = Stream(np.full((3, 1, 1, 1, 1), 51, np.uint8), here[:, None], here)
    expected = {
        "unit": [0.2, 0.2, 0.2],
        "half": [-0.6, -0.6, -0.6],
        "imagenet": [-0.285 / 0.229, -0.256 / 0.224, -0.206 / 0.225],
    }
    for scale, channels in expected.items():
        x, mask = jax.device_get(images.pixels([grey], channels=3, scale=scale))
        assert x.shape == (3, 1, 1, 1, 1, 3) and mask[:, 0, 0].tolist() == here.tolist()
        np.testing.assert_allclose(x[1, 0, 0, 0, 0], channels, rtol=1e-5)
        assert not x[2].any()
    colour = Stream(np.float32([[[[[1, 2, 3]]]]] * 3), here[:, None], here)
    x, _ = images.pixels([colour], channels=3, scale="imagenet")  # floats stay as they are
    np.testing.assert_array_equal(x[0].ravel(), [1, 2, 3])


def test_views_become_vectors_in_order(files):
    module, streams = RESNET.module(0.0, None), make_batch().inputs
    model = jax.jit(lambda x: module.apply({"params": params(files["resnet"])}, x, train=False))
    some = [streams["cc"], streams["mlo"]]
    options = {"channels": 3, "scale": "unit", "pooling": "tokens"}
    found = jax.device_get(images.read(lambda x, train: model(x), some, **options, train=False))
    for stream, vectors in zip(some, found, strict=True):
        assert vectors.values.shape == (4, 2, 4)  # one place of the last map, 1 x 1
        np.testing.assert_array_equal(vectors.mask, stream.mask)
        for row, view in np.argwhere(stream.mask):
            alone = np.asarray(model(stream.values[row, view][None])["tokens"])[0, 0]
            np.testing.assert_allclose(vectors.values[row, view], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "tuning"),
    [
        ("vit", "frozen"),
        ("resnet", "tuned"),
        pytest.param("vit", "tuned", marks=pytest.mark.slow),
        pytest.param("resnet", "frozen", marks=pytest.mark.slow),
    ],
)
def test_weights_are_the_files_and_frozen_ones_stay(files, kind, tuning):
    method = built(files[kind], FLOATS, tuning=tuning)
    batch = properties.random_batch(FLOATS, rows=4)
    start = jax.device_get(jax.jit(lambda: init_params(method, batch, seed=0))())
    name = method.part
    jax.tree.map(np.testing.assert_array_equal, start[name], params(files[kind]))
    tx = optim.make_optimiser("sgd", lambda _: 0.1, weight_decay=0.1)

    @jax.jit
    def update(params, batch):
        def objective(params):
            out = method.apply(
                {"params": params}, batch, train=True, rngs={"dropout": jax.random.key(0)}
            )
            return method.loss(out, batch, jnp.zeros((), jnp.int32))[0]

        grads = jax.grad(objective)(params)
        updates = tx.update(grads, tx.init(params), params)[0]
        return grads, jax.tree.map(jnp.add, params, updates)

    grads, after = jax.device_get(update(start, batch))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), start[name], after[name])
    pulled = [bool(g.any()) for g in jax.tree.leaves(grads[name])]
    assert any(jax.tree.leaves(moved)) == any(pulled) == (tuning == "tuned")
    assert all(bool(g.any()) for g in jax.tree.leaves(grads["method"]))
    inputs = dict(batch.inputs)
    for picture in ("cc", "mlo"):
        stream = inputs[picture]
        assert not stream.mask.all()  # absent images, and views that there are not
        values = np.where(stream.mask[..., None, None, None], stream.values, np.float32(np.nan))
        inputs[picture] = stream.replace(values=values)
    spoilt = update(start, batch.replace(inputs=inputs))
    jax.tree.map(np.testing.assert_array_equal, (grads, after), spoilt)


SMALL = {
    "fusemoe": {"moe": {"num_experts": 4}, "width": 8},
    "flexmoe": {"moe": {"num_experts": 8, "hidden": 8}, "width": 8},
    "flexcare": {"width": 8},
    "m3h": {"width": 4, "task_width": 3},
    "m4oe": {"moe": {"num_experts": 4}, "width": 8, "num_heads": 2},
}


@pytest.mark.parametrize(
    ("name", "kind"), [*zip(SMALL, ("vit", "resnet", "vit", "resnet", "vit"), strict=True)]
)
def test_every_method_takes_it(files, name, kind):
    method = built(files[kind], method={"name": name} | SMALL[name], pooling="tokens")
    inner, batch = front.bare(method), make_batch()
    per_view = {"vit": 5, "resnet": 1}[kind]
    for picture in PICTURES:
        modality = inner.data.modality(picture)
        assert modality.kind == "vectors"
        assert modality.shape == (SPEC.modality(picture).length * per_view, 4)
    rngs = {name: jax.random.key(0) for name in ("params", "dropout", "gate")}
    out, made = jax.eval_shape(lambda: method.init_with_output(rngs, batch, train=True))
    assert out.logits["death"].shape == (4, 1)
    found = traverse_util.flatten_dict(made["params"]["frozen_image"], sep="/")
    assert {path: x.shape for path, x in found.items()} == {
        path: read().shape for path, read in images.load(files[kind], 2)[1].items()
    }


def test_texts_and_images_at_once(files):
    note = ModalitySpec("note", "text", (9,), vocab=11)
    data = DataSpec((*SPEC.modalities, note), SPEC.tasks)
    method = built(files["vit"], data, {"file": files["bert"], "num_heads": 2}, tuning="tuned")
    assert type(front.bare(method)) is toy.Toy
    batch = properties.random_batch(data, rows=5)
    start = jax.jit(lambda: init_params(method, batch, seed=0))()
    jax.tree.map(np.testing.assert_array_equal, start["method"]["image"], params(files["vit"]))
    _, readers = bert.load(files["bert"], 2)
    word = start["frozen_text"]["word"]["embedding"]
    np.testing.assert_array_equal(word, readers["word/embedding"]())


def wide(shape):
    return DataSpec((ModalitySpec("cxr", "image", shape),), SPEC.tasks)


@pytest.mark.parametrize(
    ("kind", "data", "options", "match"),
    [
        ("vit", SPEC, {"num_heads": 3}, "3 heads cannot split a width of 4"),
        ("vit", wide((1, 6, 4, 3)), {}, "modality cxr: images of 6 x 4, but its .* for 4 x 4"),
        ("vit", wide((1, 4, 4, 2)), {}, "modality cxr: 2 channels, but .*vit.safetensors has 3"),
        ("vit", SPEC, {"pooling": "pooler"}, "'pooler', but for first, mean, tokens"),
        ("resnet", SPEC, {"pooling": "first"}, "'first', but for mean, tokens"),
        ("bert", SPEC, {}, "bert.safetensors: no ViT, it lacks .* no ResNet, it lacks layer1"),
        ("vit", test_bert.SPEC, {}, "no modality is an image: labs, note"),
    ],
)
def test_refusals_are_configuration_errors(files, kind, data, options, match):
    with pytest.raises(ConfigError, match=f"^image.file: .*{match}"):
        built(files[kind], data, **options)


def test_imagenet_scale_needs_three_channels(tmp_path):
    grey = vit_file.ViTSizes(4, 6, 1, 2, patch=2, grid=2, channels=1, pooler=0)
    safetensors.write(test_vit_file.weights(grey), tmp_path / "g.safetensors")
    with pytest.raises(ConfigError, match="scale 'imagenet' is of 3 channels, it has 1"):
        built(str(tmp_path / "g.safetensors"), wide((1, 4, 4, 1)), scale="imagenet")
