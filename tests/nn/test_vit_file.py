"""ViT from safetensors: against NumPy in double precision and transformers, names, refusals."""

import math
import re

import jax
import numpy as np
import pytest
from flax import traverse_util

from m4.nn.pretrained import images, safetensors, vit_file

SIZES = vit_file.ViTSizes(
    width=8, hidden=12, depth=2, num_heads=2, patch=2, grid=3, channels=3, pooler=1
)
IMAGE = np.random.default_rng(1).normal(size=(2, 6, 6, 3)).astype(np.float32)
TIMM = (  # transformers' names in timm's
    (r"^embeddings\.cls_token", "cls_token"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.", "blocks."),
    (r"attention\.output\.dense", "attn.proj"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"(\d)\.output\.dense", r"\1.mlp.fc2"),
)


def weights(sizes=SIZES, seed=0):
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in vit_file.tables(sizes)[1].items():
        centre = 1.0 if re.search(r"layernorm\w*\.weight", name) else 0.0
        found[name] = rng.normal(centre, 0.4, shape).astype(np.float32)
    return found


def timm_names(tensors):
    """As timm would save them: query, key and value are one tensor."""
    found = {}
    for name, x in tensors.items():
        if "attention.attention" in name or name.startswith("pooler"):
            continue
        for pattern, new in TIMM:
            name = re.sub(pattern, new, name)
        found[name] = x
    for i in range(SIZES.depth):
        at = f"encoder.layer.{i}.attention.attention"
        for part in ("weight", "bias"):
            rows = [tensors[f"{at}.{n}.{part}"] for n in ("query", "key", "value")]
            found[f"blocks.{i}.attn.qkv.{part}"] = np.concatenate(rows)
    return found


def by_hand(w, image_Nhwc):
    """Dosovitskiy et al. 2021, equations 1 to 4, an image and a patch at a time."""
    w = {name: x.astype(np.float64) for name, x in w.items()}
    affine = lambda x, name: x @ w[f"{name}.weight"].T + w[f"{name}.bias"]  # noqa: E731

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def attend(x, at):
        q, k, v = (
            affine(x, f"{at}.attention.{p}").reshape(-1, 2, 4).swapaxes(0, 1)
            for p in ("query", "key", "value")
        )
        score = np.exp(q @ k.swapaxes(1, 2) / 2)
        a = score / score.sum(-1, keepdims=True) @ v
        return affine(a.swapaxes(0, 1).reshape(-1, 8), f"{at}.output.dense")

    gelu = np.vectorize(lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))))
    kernel = w["embeddings.patch_embeddings.projection.weight"]
    found = []
    for image in image_Nhwc:
        rows = [w["embeddings.cls_token"][0, 0]]
        for y in range(3):
            for x in range(3):
                patch = image[2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
                pixels = np.einsum("dcpq,pqc->d", kernel, patch)
                rows.append(pixels + w["embeddings.patch_embeddings.projection.bias"])
        x = np.stack(rows) + w["embeddings.position_embeddings"][0]
        for i in range(SIZES.depth):
            at = f"encoder.layer.{i}"
            x = x + attend(norm(x, f"{at}.layernorm_before"), f"{at}.attention")
            up = affine(norm(x, f"{at}.layernorm_after"), f"{at}.intermediate.dense")
            x = x + affine(gelu(up), f"{at}.output.dense")
        found.append(norm(x, "layernorm"))
    tokens = np.stack(found)
    return tokens, np.tanh(affine(tokens[:, 0], "pooler.dense"))


def load(tensors, path, num_heads=2):
    safetensors.write(tensors, path)
    images.load.cache_clear()
    sizes, readers = images.load(str(path), num_heads)
    return sizes, {p: f() for p, f in readers.items()}


def run(sizes, arrays, image=IMAGE):
    params = traverse_util.unflatten_dict(arrays, sep="/")
    apply = sizes.module(0.0, None).apply
    return jax.jit(lambda p: apply({"params": p}, image, train=False))(params)


def test_equals_the_equations(tmp_path):
    sizes, arrays = load(weights(), tmp_path / "v.safetensors")
    assert sizes == SIZES
    found = run(sizes, arrays)
    tokens, pooled = by_hand(weights(), IMAGE)
    np.testing.assert_allclose(found["tokens"], tokens, atol=2e-5)
    np.testing.assert_allclose(found["first"][:, 0], tokens[:, 0], atol=2e-5)
    np.testing.assert_allclose(found["mean"][:, 0], tokens[:, 1:].mean(1), atol=2e-5)
    np.testing.assert_allclose(found["pooler"][:, 0], pooled, atol=2e-5)


def test_equals_transformers(tmp_path):
    """Its own model, as it saves it and as its state dict names it."""
    reason = "needs torch and transformers"
    torch = pytest.importorskip("torch", reason=reason)
    transformers = pytest.importorskip("transformers", reason=reason)
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
        image_size=6, patch_size=2, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.ViTModel(config).eval()
    for p in model.parameters():
        p.data = p.data + 0.3 * torch.randn_like(p)
    model.save_pretrained(tmp_path / "saved")
    state = {name: x.numpy().copy() for name, x in model.state_dict().items()}
    file = safetensors.read(tmp_path / "saved/model.safetensors")
    sizes, saved = load(file, tmp_path / "a.safetensors")
    _, direct = load({f"vit.{n}": x for n, x in state.items()}, tmp_path / "b.safetensors")
    assert sizes == SIZES
    jax.tree.map(np.testing.assert_array_equal, saved, direct)
    with torch.no_grad():
        expected = model.double()(torch.from_numpy(IMAGE.transpose(0, 3, 1, 2)).double())
    found = run(sizes, saved)
    np.testing.assert_allclose(found["tokens"], expected.last_hidden_state, atol=2e-5)
    np.testing.assert_allclose(found["pooler"][:, 0], expected.pooler_output, atol=2e-5)


def test_names_of_three_origins_are_the_same_parameters(tmp_path):
    usual = weights()
    sizes, expected = load(usual, tmp_path / "a.safetensors")
    ours = {f"module.vit.{name}": x for name, x in usual.items()}
    ours["module.vit.embeddings.mask_token"] = np.zeros((1, 1, 8), np.float32)
    prefixed, arrays = load(ours, tmp_path / "b.safetensors")
    assert prefixed == sizes
    jax.tree.map(np.testing.assert_array_equal, arrays, expected)
    theirs = timm_names(usual) | {"head.weight": np.zeros((5, 8), np.float32)}
    timm, arrays = load(theirs, tmp_path / "c.safetensors")
    assert (timm.pooler, timm.epsilon, timm.depth) == (0, 1e-6, 2)
    assert expected.keys() - arrays.keys() == {"pooler/kernel", "pooler/bias"}
    for path, x in arrays.items():
        np.testing.assert_array_equal(x, expected[path])


def test_published_size():
    base = vit_file.ViTSizes(768, 3072, 12, 12, 16, 14, 3, 0)
    total = sum(math.prod(shape) for shape in vit_file.tables(base)[1].values())
    assert total == 86_567_656 - 1000 * 769  # ViT-B/16 without its classifier


def test_every_misfit_is_named(tmp_path):
    w = weights()
    del w["encoder.layer.1.output.dense.bias"]
    w["encoder.layer.0.attention.attention.key.weight"] = np.zeros((8, 7), np.float32)
    w["encoder.layer.0.layer_scale1.lambda1"] = np.ones(8, np.float32)  # DINOv2
    w["layernorm.bias"] = np.full(8, np.inf, np.float32)
    safetensors.write(w, tmp_path / "m.safetensors")
    with pytest.raises(ValueError) as error:
        images.load(str(tmp_path / "m.safetensors"), 2)
    for line in (
        "encoder.layer.1.output.dense.bias is missing",
        "encoder.layer.0.attention.attention.key.weight is float32[8, 7], expected [8, 8]",
        "encoder.layer.0.layer_scale1.lambda1 is surplus",
        "layernorm.bias has numbers that are not finite",
    ):
        assert line in str(error.value)


def test_what_is_no_encoder_is_refused(tmp_path):
    odd, flat = weights(), weights()
    odd["embeddings.position_embeddings"] = np.zeros((1, 9, 8), np.float32)
    flat["embeddings.position_embeddings"] = np.zeros((9, 8), np.float32)
    flat["encoder.layer.0.intermediate.dense.weight"] = np.float32(1)
    for name, tensors, match in (
        ("a", {"x": np.zeros(2, np.float32)}, "no ViT, it lacks embeddings.cls_token and .*layer1"),
        ("b", odd, "position_embeddings has 9 rows, expected 1 \\+ a square"),
        ("c", flat, "it lacks embeddings.patch_embeddings.projection.weight"),
        ("d", weights(), "3 heads cannot split a width of 8"),
    ):
        safetensors.write(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(ValueError, match=match):
            images.load(str(tmp_path / f"{name}.safetensors"), 3)
    with pytest.raises(ValueError, match="must be a .safetensors file"):
        images.load(str(tmp_path / "x.pth"))
    with pytest.raises(OSError):
        images.load(str(tmp_path / "none.safetensors"))
