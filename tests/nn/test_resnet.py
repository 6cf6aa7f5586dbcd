"""ResNet from safetensors: by hand, against PyTorch, published sizes, refusals."""

import math

import numpy as np
import pytest
from flax import traverse_util

from m4.nn.pretrained import images, resnet, safetensors

BASIC = resnet.ResNetSizes(3, 4, (2, 1, 1, 1), (4, 6, 6, 8), (4, 6, 6, 8), 0)
BOTTLENECK = resnet.ResNetSizes(2, 4, (1, 2, 1, 1), (3, 3, 4, 4), (8, 8, 12, 16), 1)
RESNET_18 = resnet.ResNetSizes(3, 64, (2,) * 4, (64, 128, 256, 512), (64, 128, 256, 512), 0)
RESNET_34 = resnet.ResNetSizes(3, 64, (3, 4, 6, 3), RESNET_18.inner, RESNET_18.outer, 0)
RESNET_50 = resnet.ResNetSizes(3, 64, (3, 4, 6, 3), RESNET_18.inner, (256, 512, 1024, 2048), 1)


def weights(sizes, seed=0):
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in resnet.expected(sizes).items():
        x = rng.normal(0, 1 / math.sqrt(np.prod(shape[1:])), shape)
        if name.endswith("running_var"):
            x = rng.uniform(0.5, 2, shape)
        found[name] = x.astype(np.float32)
    return found


def run(tensors, image, path):
    safetensors.write(tensors, path)
    images.load.cache_clear()
    sizes, readers = images.load(str(path))
    params = traverse_util.unflatten_dict({p: f() for p, f in readers.items()}, sep="/")
    found = sizes.module(0.0, None).apply({"params": params}, image, train=False)
    return sizes, found


def test_one_pixel_by_hand(tmp_path):
    # Of every kernel only the centre meets the pixel: the rest (100) must never count.
    def conv(size, centre):
        kernel = np.full((1, 1, size, size), 100.0, np.float32)
        kernel[0, 0, size // 2, size // 2] = centre
        return kernel

    tensors = {}

    def put(conv_name, norm_name, size, centre, weight=1.0, bias=0.0, mean=0.0, deviation=1.0):
        tensors[f"{conv_name}.weight"] = conv(size, centre)
        parts = weight, bias, mean, deviation**2 - 1e-5
        for part, value in zip(resnet.STATISTICS, parts, strict=True):
            tensors[f"{norm_name}.{part}"] = np.array([value], np.float32)

    put("conv1", "bn1", 7, 2.0, weight=3, bias=1, mean=2, deviation=2)  # (2 * 3 - 2) / 2 * 3 + 1
    put("layer1.0.conv1", "layer1.0.bn1", 3, -1.0)  # relu(-7) = 0
    put("layer1.0.conv2", "layer1.0.bn2", 3, 5.0, bias=0.5)  # 7 + 0.5
    put("layer2.0.conv1", "layer2.0.bn1", 3, 2.0)  # 15
    put("layer2.0.conv2", "layer2.0.bn2", 3, -1.0)  # -15
    put("layer2.0.downsample.0", "layer2.0.downsample.1", 1, 3.0)  # 22.5 - 15 = 7.5
    put("layer3.0.conv1", "layer3.0.bn1", 3, 0.0)
    put("layer3.0.conv2", "layer3.0.bn2", 3, 1.0, bias=10)
    put("layer3.0.downsample.0", "layer3.0.downsample.1", 1, -1.0)  # 10 - 7.5 = 2.5
    put("layer4.0.conv1", "layer4.0.bn1", 3, 1.0)
    put("layer4.0.conv2", "layer4.0.bn2", 3, 1.0)
    put("layer4.0.downsample.0", "layer4.0.downsample.1", 1, 1.0)  # 2.5 + 2.5
    sizes, found = run(tensors, np.full((1, 1, 1, 1), 3.0), tmp_path / "r.safetensors")
    assert sizes == resnet.ResNetSizes(1, 1, (1,) * 4, (1,) * 4, (1,) * 4, 0)
    np.testing.assert_allclose(found["mean"], [[[5.0]]], rtol=1e-5)


def test_convolutions_are_padded_on_both_sides():
    # Sums over the 3 x 3 neighbourhood at every second place: 1+2+4+5, 2+3+5+6, 4+5+7+8, 5+6+8+9;
    # XLA's own padding ("SAME") would pad on one side where the stride is 2.
    image = np.arange(1.0, 10).reshape(1, 3, 3, 1)
    params = {
        "conv": {"kernel": np.ones((3, 3, 1, 1))},
        "scale": np.array([2.0]),
        "bias": np.ones(1),
    }
    y = resnet.ConvAffine(1, 3, 2).apply({"params": params}, image)
    np.testing.assert_allclose(y[0, ..., 0], 2 * np.array([[12, 16], [24, 28]]) + 1)
    even = resnet.ConvAffine(1, 3, 2).apply({"params": params}, image[:, :2, :2])
    np.testing.assert_allclose(even[0, ..., 0], [[2 * (1 + 2 + 4 + 5) + 1]])


def by_torch(torch, tensors, image_nchw, sizes):
    """From He et al. 2016, with the stride in the 3 x 3 convolution; no class of torchvision."""
    w = {name: torch.from_numpy(x).double() for name, x in tensors.items()}
    f = torch.nn.functional

    def layer(x, conv, norm, stride):
        kernel = w[f"{conv}.weight"]
        y = f.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        parts = (w[f"{norm}.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
        return f.batch_norm(y, *parts, training=False, eps=1e-5)

    x = f.relu(layer(torch.from_numpy(image_nchw).double(), "conv1", "bn1", 2))
    x = f.max_pool2d(x, 3, 2, 1)
    for k in range(4):
        for i in range(sizes.blocks[k]):
            at, stride = f"layer{k + 1}.{i}", 2 if k > 0 and i == 0 else 1
            strides = (1, stride, 1) if sizes.bottleneck else (stride, 1)
            y = x
            for j, s in enumerate(strides):
                y = layer(f.relu(y) if j else y, f"{at}.conv{j + 1}", f"{at}.bn{j + 1}", s)
            if f"{at}.downsample.0.weight" in w:
                x = layer(x, f"{at}.downsample.0", f"{at}.downsample.1", stride)
            x = f.relu(x + y)
    return x.numpy()


@pytest.mark.parametrize(("sizes", "shape"), [(BASIC, (35, 32)), (BOTTLENECK, (40, 64))])
def test_equals_pytorch(sizes, shape, tmp_path):
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'm4-moe[torch]'")
    image = np.random.default_rng(1).normal(size=(2, sizes.channels, *shape)).astype(np.float32)
    expected = by_torch(torch, weights(sizes), image, sizes)
    path = tmp_path / "r.safetensors"
    found_sizes, found = run(weights(sizes), image.transpose(0, 2, 3, 1), path)
    assert found_sizes == sizes
    assert found["tokens"].shape == (2, sizes.count(*shape), sizes.width)
    tokens = expected.reshape(2, sizes.width, -1).swapaxes(1, 2)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found["tokens"], tokens, atol=1e-5 * scale)
    np.testing.assert_allclose(found["mean"][:, 0], expected.mean((2, 3)), atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("sizes", "published", "classifier"),
    [
        (RESNET_18, 11_689_512, 1000 * 513),
        (RESNET_34, 21_797_672, 1000 * 513),
        (RESNET_50, 25_557_032, 1000 * 2049),
    ],
)
def test_published_sizes(sizes, published, classifier):
    shapes = resnet.expected(sizes)
    trained = sum(math.prod(s) for n, s in shapes.items() if "running" not in n)
    assert trained == published - classifier


def test_prefix_counter_and_classifier_are_passed_over(tmp_path):
    tensors = {f"module.{name}": x for name, x in weights(BASIC).items()}
    tensors["module.fc.weight"] = np.zeros((5, 8), np.float32)
    tensors["module.bn1.num_batches_tracked"] = np.array(7)
    safetensors.write(tensors, tmp_path / "m.safetensors")
    sizes, readers = images.load(str(tmp_path / "m.safetensors"))
    assert sizes == BASIC
    kernel = weights(BASIC)["layer2.0.downsample.0.weight"]
    np.testing.assert_array_equal(
        readers["block_1_0/project/conv/kernel"](), kernel.transpose(2, 3, 1, 0)
    )


def test_every_misfit_is_named(tmp_path):
    tensors = weights(BASIC)
    del tensors["layer1.1.bn2.running_mean"]
    tensors["layer2.0.conv2.weight"] = np.zeros((6, 3, 3, 3), np.float32)  # two groups
    tensors["layer3.0.se.fc.weight"] = np.zeros((2, 2), np.float32)  # of another architecture
    tensors["bn1.bias"][0] = np.nan
    safetensors.write(tensors, tmp_path / "m.safetensors")
    with pytest.raises(ValueError) as error:
        images.load(str(tmp_path / "m.safetensors"))
    for line in (
        "layer1.1.bn2.running_mean is missing",
        "layer2.0.conv2.weight is float32[6, 3, 3, 3], expected [6, 6, 3, 3]",
        "layer3.0.se.fc.weight is surplus",
        "bn1.bias has numbers that are not finite",
    ):
        assert line in str(error.value)


def test_what_cannot_be_is_refused(tmp_path):
    tensors = weights(BASIC)
    tensors["layer1.0.bn1.running_var"][0] = -1
    safetensors.write(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"layer1\.0\.bn1\.running_var: a variance is negative"):
        images.load(str(tmp_path / "a.safetensors"))
    del tensors["layer3.0.conv1.weight"]
    tensors["conv1.weight"] = np.float32(3)
    safetensors.write(tensors, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"it lacks conv1\.weight, layer3\.0\.conv1\.weight of 4"):
        images.load(str(tmp_path / "b.safetensors"))
