"""ViT, token grids with images, and segmentation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m4.methods.m4oe.grid import GridTokens, modality_of_token
from m4.nn import segmentation
from m4.nn.encoders.vit import ViT, clean_images
from m4.specs import DataSpec, ModalitySpec, TaskSpec
from m4.types import Stream
from tests import properties


def test_vit_reads_patches_in_reading_order():
    # Identity projection, no blocks, no positions: a patch's token is its normalised pixels.
    vit = ViT(width=4, depth=0, num_heads=1, patch=2)
    image = np.arange(16.0).reshape(1, 1, 4, 4, 1)
    params = {
        "patch": {"kernel": np.eye(4)[None], "bias": np.zeros((1, 4))},
        "class_token": np.zeros((1, 4)),
        "position": np.zeros((1, 5, 4)),
        "norm": {"scale": np.ones((1, 4)), "bias": np.zeros((1, 4))},
    }
    tokens = vit.apply({"params": params}, image, train=False)
    second = np.array([2.0, 3.0, 6.0, 7.0])  # the upper right patch
    expected = (second - second.mean()) / second.std()
    np.testing.assert_allclose(tokens[0, 0, 2], expected, rtol=1e-5)
    np.testing.assert_allclose(tokens[0, 0, 0], 0.0, atol=1e-6)


def test_stacked_vits_are_separate_vits():
    image = np.random.default_rng(0).normal(size=(2, 2, 4, 4, 1)).astype(np.float32)
    both = ViT(width=4, depth=1, num_heads=2, patch=2, num_stacks=2)
    params = both.init(jax.random.key(0), image, train=False)["params"]
    out = both.apply({"params": params}, image, train=False)
    one = ViT(width=4, depth=1, num_heads=2, patch=2)
    for s in range(2):
        own = jax.tree.map(lambda x, s=s: x[s : s + 1], params)
        alone = one.apply({"params": own}, image[:, s : s + 1], train=False)
        np.testing.assert_allclose(out[:, s], alone[:, 0], rtol=1e-5, atol=1e-5)


def test_patches_must_tile():
    with pytest.raises(ValueError, match="patch=3 does not tile images of 4 x 4"):
        ViT(4, 1, 1, 3).init(jax.random.key(0), np.zeros((1, 1, 4, 4, 1)), train=False)


def test_bytes_become_minus_one_to_one_and_absent_images_zero():
    values = np.array([[[[[0], [255]]]]] * 2, np.uint8)
    present = np.array([True, False])
    stream = Stream(values, present[:, None], present)
    images, mask = clean_images([stream])
    np.testing.assert_allclose(images[0].ravel(), [-1.0, 1.0])
    assert not images[1].any() and mask[:, 0, 0].tolist() == [True, False]


def test_grid_pads_to_the_longest_modality():
    spec = DataSpec(
        (
            ModalitySpec("static", "table", (3,)),
            ModalitySpec("cxr", "image", (2, 4, 4, 1)),
            ModalitySpec("report", "text", (5,), dtype="int32", vocab=7),
            ModalitySpec("labs", "series", (4, 2)),
        ),
        (TaskSpec("death", "binary"),),
    )
    encoder = GridTokens(spec, width=4, num_heads=2, vit_depth=1, patch=2, num_queries=3)
    batch = properties.random_batch(spec)

    def run():
        params = encoder.init(jax.random.key(0), batch, train=False)
        return encoder.apply(params, batch, train=False)

    grid = jax.eval_shape(run)
    assert grid.x.shape == (6, 4, 10, 4)  # two views of 1 + 4 tokens
    np.testing.assert_array_equal(modality_of_token(grid), np.repeat([0, 1, 2, 3], 10))
    mask = np.asarray(jax.jit(run)().mask)
    assert mask[:, 0].sum(1).tolist() == [1] * 6 and mask[:, 2].sum(1).tolist() == [1] * 6
    assert mask[:, 3].sum(1).tolist() == [4] * 6  # a summary and three query times
    views = np.asarray(batch.inputs["cxr"].mask).sum(1)
    there = np.asarray(batch.inputs["cxr"].present)
    np.testing.assert_array_equal(mask[there, 1].sum(1), 5 * views[there])


def test_dice_and_its_loss_by_hand():
    target = np.zeros((2, 2, 2, 1), np.float32)
    target[0, 0] = 1.0  # two of four pixels
    guess = np.zeros_like(target)
    guess[0, :, 0] = 1.0  # one of them, and another
    np.testing.assert_allclose(
        segmentation.scores(guess - 0.5, target), [[0.5], [1.0]]
    )  # both empty: 1
    np.testing.assert_allclose(segmentation.scores(target - 0.5, target), 1.0)
    # At logit 0: cross-entropy log 2; p g = 1, sums 2 and 2: 1 - (2 + 1) / (2 + 2 + 1).
    loss = segmentation.loss(jnp.zeros((2, 2, 2, 1)), target)
    np.testing.assert_allclose(loss, [np.log(2) + 0.4, np.log(2) + 1 - 1 / 3], rtol=1e-5)
