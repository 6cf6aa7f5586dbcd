"""BERT from safetensors: against NumPy in double precision and PyTorch, refusals, freezing."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from m4.errors import ConfigError
from m4.methods.m3h.model import M3H
from m4.nn.pretrained import bert, safetensors
from m4.run.method import make_method
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from m4.train import optim
from m4.train.step import init_params
from m4.types import Batch, Stream, Target

SIZES = bert.BertSizes(
    vocab=11, positions=6, types=2, width=8, hidden=12, depth=2, num_heads=2, pooler=1
)
TOKENS = np.array([[1, 5, 3, 10, 0, 0], [2, 2, 9, 4, 8, 7], [0, 0, 0, 0, 0, 0]], np.int32)
MASK = np.array([[1, 1, 1, 1, 0, 0], [1] * 6, [0] * 6], bool)


def weights(sizes=SIZES, seed=0):
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in bert.tables(sizes)[1].items():
        centre = 1.0 if name.endswith("LayerNorm.weight") else 0.0
        found[name] = rng.normal(centre, 0.4, shape).astype(np.float32)
    return found


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.write(weights(), path)
    return str(path)


def by_hand(w, token_BT, mask_BT):
    """The published equations, a row at a time, without its padding."""
    w = {name: x.astype(np.float64) for name, x in w.items()}
    affine = lambda x, name: x @ w[f"{name}.weight"].T + w[f"{name}.bias"]  # noqa: E731

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    gelu = np.vectorize(lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))))
    hidden, pooled = [], []
    for token, mask in zip(token_BT, mask_BT, strict=True):
        n = mask.sum()
        x = w["embeddings.word_embeddings.weight"][token[:n]]
        x = x + w["embeddings.position_embeddings.weight"][:n]
        x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for i in range(SIZES.depth):
            at = f"encoder.layer.{i}"
            q, k, v = (
                affine(x, f"{at}.attention.self.{p}").reshape(n, 2, 4).swapaxes(0, 1)
                for p in ("query", "key", "value")
            )
            score = np.exp(q @ k.swapaxes(1, 2) / 2)
            a = (score / score.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(n, 8)
            x = norm(
                x + affine(a, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm"
            )
            y = affine(gelu(affine(x, f"{at}.intermediate.dense")), f"{at}.output.dense")
            x = norm(x + y, f"{at}.output.LayerNorm")
        hidden.append(x)
        pooled.append(np.tanh(affine(x[0], "pooler.dense")))
    return hidden, pooled


def params(file):
    sizes, readers = bert.load(file, 2)
    assert sizes == SIZES
    return traverse_util.unflatten_dict({p: f() for p, f in readers.items()}, sep="/")


def test_equals_the_equations(file):
    model = bert.Bert(SIZES)
    apply = jax.jit(lambda p: model.apply({"params": p}, TOKENS, MASK, train=False))
    x, pooled = apply(params(file))
    expected, expected_pooled = by_hand(weights(), TOKENS[:2], MASK[:2])
    np.testing.assert_allclose(x[0, :4], expected[0], atol=1e-5)
    np.testing.assert_allclose(x[1], expected[1], atol=1e-5)
    np.testing.assert_allclose(pooled[:2], expected_pooled, atol=1e-5)
    assert np.isfinite(x).all()


def test_equals_pytorch(file):
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'm4-moe[torch]'")
    w = {name: torch.from_numpy(x).double() for name, x in weights().items()}
    layers = []
    for i in range(2):
        layer = torch.nn.TransformerEncoderLayer(
            8, 2, 12, 0.0, "gelu", batch_first=True, layer_norm_eps=1e-12, dtype=torch.float64
        )
        at = f"encoder.layer.{i}"
        qkv = [f"{at}.attention.self.{p}" for p in ("query", "key", "value")]
        names = {"self_attn.out_proj": f"{at}.attention.output.dense"}
        names |= {"linear1": f"{at}.intermediate.dense", "linear2": f"{at}.output.dense"}
        names |= {"norm1": f"{at}.attention.output.LayerNorm", "norm2": f"{at}.output.LayerNorm"}
        state = {f"{a}.{p}": w[f"{b}.{p}"] for a, b in names.items() for p in ("weight", "bias")}
        state |= {f"self_attn.in_proj_{p}": torch.cat([w[f"{n}.{p}"] for n in qkv])
                  for p in ("weight", "bias")}  # fmt: skip
        layer.load_state_dict(state)
        layers.append(layer)
    names = [f"embeddings.{n}_embeddings.weight" for n in ("word", "position", "token_type")]
    word, position, kind = (w[n] for n in names)
    x = word[torch.from_numpy(TOKENS).long()] + position + kind[0]
    ends = [w[f"embeddings.LayerNorm.{p}"] for p in ("weight", "bias")]
    x = torch.nn.functional.layer_norm(x, (8,), *ends, eps=1e-12)
    for layer in layers:
        x = layer(x, src_key_padding_mask=torch.from_numpy(~MASK))
    found, _ = bert.Bert(SIZES).apply({"params": params(file)}, TOKENS, MASK, train=False)
    np.testing.assert_allclose(found[:2][MASK[:2]], x.detach().numpy()[MASK], atol=1e-5)


def test_prefixes_and_old_names(tmp_path):
    old = {}
    for name, x in weights().items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        old["bert." + name.replace("LayerNorm.bias", "LayerNorm.beta")] = x
    old["bert.embeddings.position_ids"] = np.arange(6)[None]
    old["cls.predictions.bias"] = np.zeros(11, np.float32)
    safetensors.write(old, tmp_path / "old.safetensors")
    sizes, readers = bert.load(str(tmp_path / "old.safetensors"), 2)
    assert sizes == SIZES
    np.testing.assert_array_equal(
        readers["norm_1_0/scale"]()[0],
        weights()["encoder.layer.1.attention.output.LayerNorm.weight"],
    )


@pytest.mark.parametrize("other", ["gamma", "bert"])
def test_one_tensor_under_two_names_is_refused(tmp_path, other):
    """Which of the two was meant nobody can tell."""
    name = "embeddings.LayerNorm.weight"
    same = name.replace("weight", "gamma") if other == "gamma" else f"bert.{name}"
    safetensors.write(weights() | {same: np.zeros(8, np.float32)}, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=f"holds {name} under two names"):
        bert.load(str(tmp_path / "m.safetensors"), 2)


def test_every_misfit_is_named(tmp_path):
    w = weights()
    del w["encoder.layer.1.output.dense.bias"]
    w["encoder.layer.0.attention.self.key.weight"] = np.zeros((8, 7), np.float32)
    w["pooler.extra"] = np.zeros(1, np.float32)
    safetensors.write(w, tmp_path / "m.safetensors")
    with pytest.raises(ValueError) as error:
        bert.load(str(tmp_path / "m.safetensors"), 2)
    for line in (
        "encoder.layer.1.output.dense.bias is missing",
        "encoder.layer.0.attention.self.key.weight is float32[8, 7], expected [8, 8]",
        "pooler.extra is surplus",
    ):
        assert line in str(error.value)


def test_what_is_no_bert_is_refused(tmp_path):
    safetensors.write({"a": np.zeros(2, np.float32)}, tmp_path / "a.safetensors")
    position = "embeddings.position_embeddings.weight"
    for name, x in (("d", np.float32(1)), ("e", np.zeros((0, 8), np.float32))):
        safetensors.write(weights() | {position: x}, tmp_path / f"{name}.safetensors")
    far = weights()  # a layer's number says nothing about how many there are
    far["encoder.layer.999999999.output.dense.bias"] = far.pop("encoder.layer.1.output.dense.bias")
    safetensors.write(far, tmp_path / "f.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"\x80\x04what is this")
    for name, match in (
        ("a.safetensors", "lacks embeddings.word_embeddings.weight"),
        ("b.safetensors", "not a safetensors file"),
        ("c.bin", "must be a .safetensors file"),
        ("d.safetensors", f"no BERT, it lacks {position}"),
        ("e.safetensors", f"{position} is empty"),
        ("f.safetensors", "encoder.layer.999999999.output.dense.bias is surplus"),
    ):
        with pytest.raises(ValueError, match=match):
            bert.load(str(tmp_path / name))
    with pytest.raises(OSError):
        bert.load(str(tmp_path / "none.safetensors"))


# --- in front of a method -----------------------------------------------------------------------

SPEC = DataSpec(
    (ModalitySpec("labs", "table", (2,)), ModalitySpec("note", "text", (9,), vocab=11)),
    (TaskSpec("death", "binary"),),
)


def make_batch(token_BT=None, present=(1, 1, 0)):
    """Texts of 9, 4 and no tokens: two chunks of 6 positions."""
    rng, here = np.random.default_rng(0), np.array(present, bool)
    usual_BT = rng.integers(1, 11, (3, 9))
    token_BT = usual_BT if token_BT is None else token_BT
    mask = (np.arange(9) < np.array([[9], [4], [9]])) & here[:, None]
    labs = rng.normal(size=(3, 2)).astype(np.float32)
    ones = np.ones(3, bool)
    inputs = {
        "labs": Stream(labs, ones[:, None], ones, None, np.ones((3, 2), bool)),
        "note": Stream(token_BT.astype(np.int32), mask, here),
    }
    target = Target(np.array([[0], [1], [1]], np.float32), np.ones(3, np.float32))
    rows = np.arange(3, dtype=np.int32)
    return Batch(inputs, {"death": target}, rows * 0 - 1, np.ones(3, np.float32), rows)


def built(file, **text):
    config = {"name": "m3h", "width": 4, "task_width": 3, "dropout": 0.0}
    return make_method(config, SPEC, text={"file": file, "num_heads": 2} | text)


def test_reads_in_chunks_for_any_method(file):
    method = built(file)
    assert isinstance(method.method, M3H)
    assert method.method.data.modality("note").shape == (2, 8)
    batch = make_batch()
    note = batch.inputs["note"]

    class Seen(nn.Module):
        @nn.compact
        def __call__(self, batch, *, train):
            return batch.inputs["note"]

    behind = bert.with_text(lambda data: Seen(), SPEC, file=file, num_heads=2)
    stream = behind.apply({"params": {behind.part: params(file)}}, batch, train=False)
    first, _ = by_hand(weights(), [note.values[0, :6]], np.ones((1, 6), bool))
    second, _ = by_hand(weights(), [note.values[0, 6:]], np.ones((1, 3), bool))
    np.testing.assert_allclose(stream.values[0], [first[0][0], second[0][0]], atol=1e-5)
    np.testing.assert_array_equal(stream.mask, [[1, 1], [1, 0], [0, 0]])


@pytest.mark.parametrize("tuning", ["frozen", "tuned"])
def test_weights_are_the_files_and_frozen_ones_stay(file, tuning):
    method, batch = built(file, tuning=tuning), make_batch()
    start = jax.jit(lambda: init_params(method, batch, seed=0))()
    name = method.part
    jax.tree.map(np.testing.assert_array_equal, start[name], params(file))
    tx = optim.make_optimiser("adamw", lambda _: 0.1, weight_decay=0.1, clip_norm=1.0)

    @jax.jit
    def update(params, batch):
        def objective(params):
            out = method.apply(
                {"params": params}, batch, train=True, rngs={"dropout": jax.random.key(0)}
            )
            return method.loss(out, batch, jnp.zeros((), jnp.int32))[0]

        grads = jax.grad(objective)(params)
        return jax.tree.map(jnp.add, params, tx.update(grads, tx.init(params), params)[0])

    after = update(start, batch)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), start[name], after[name])
    assert any(jax.tree.leaves(moved)) == (tuning == "tuned")
    garbage = batch.inputs["note"].values.copy()
    garbage[2], garbage[1, 4:] = 10**6, -5  # an absent text, and padding
    for a, b in zip(
        *map(jax.tree.leaves, (after, update(start, make_batch(garbage)))), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ({"pooling": "tokens", "num_heads": 3}, "3 heads cannot split a width of 8"),
        ({"file": "none.safetensors"}, "text.file: .*none.safetensors"),
    ],
)
def test_refusals_are_configuration_errors(file, text, match):
    with pytest.raises(ConfigError, match=match):
        built(**({"file": file} | text))


def test_vocabulary_and_text_are_checked(file):
    wide = DataSpec((ModalitySpec("note", "text", (9,), vocab=12),), SPEC.tasks)
    with pytest.raises(ValueError, match=r"modality note: vocab=12, but .* has 11"):
        bert.with_text(M3H, wide, file=file, num_heads=2)
    none = DataSpec(SPEC.modalities[:1], SPEC.tasks)
    with pytest.raises(ValueError, match="no modality is text: labs"):
        bert.with_text(M3H, none, file=file, num_heads=2)
