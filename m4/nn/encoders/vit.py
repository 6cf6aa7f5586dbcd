"""Vision transformer (Dosovitskiy et al. 2021), one per stack of images.

Letters: B rows, S stacks (modalities), V views, h, w, c image, N patches, T tokens, D width.
"""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange

from m4.maths import gelu
from m4.nn.layers import AttentionBlock, MLPBlock, StackedDense, StackedLayerNorm, repeat
from m4.types import Array, Stream


class ViT(nn.Module):
    """Final-normalised tokens: the class token, then patches in reading order.

    The sizes of ViT-B/16 are width 768, depth 12, num_heads 12, patch 16; its layer norms have
    epsilon 1e-12 in the published weights.
    """

    width: int
    depth: int
    num_heads: int
    patch: int
    num_stacks: int = 1
    dropout: float = 0.0
    epsilon: float = 1e-6
    hidden: int = 0  # 0: four times the width
    scan: bool = False  # blocks as a loop (`m4.nn.layers`)

    @nn.compact
    def __call__(self, image_BShwc: Array, *, train: bool) -> Array:
        """[B, S, h, w, c] -> [B, S, 1 + N, D]. ValueError unless patches tile the image."""
        rows, stacks, height, width = image_BShwc.shape[:4]
        if height % self.patch or width % self.patch:
            raise ValueError(f"patch={self.patch} does not tile images of {height} x {width}")
        patches = rearrange(
            image_BShwc, "b s (y p) (x q) c -> b s (y x) (p q c)", p=self.patch, q=self.patch
        )
        x_BSND = StackedDense(self.width, self.num_stacks, name="patch")(patches)
        init = nn.initializers.normal(0.02)
        first_SD = self.param("class_token", init, (self.num_stacks, self.width))
        first = jnp.broadcast_to(first_SD[:, None], (rows, stacks, 1, self.width))
        x_BSTD = jnp.concatenate([first, x_BSND], 2)
        x_BSTD += self.param("position", init, (self.num_stacks, *x_BSTD.shape[2:]))
        everything = jnp.ones(x_BSTD.shape[:3], bool)
        shared = {"num_stacks": self.num_stacks, "dropout": self.dropout, "epsilon": self.epsilon}
        hidden = self.hidden or 4 * self.width

        def layer(i: int, x_BSTD: Array) -> tuple[Array, None]:
            attention = AttentionBlock(self.num_heads, **shared, name=f"attention_{i}")
            x_BSTD = attention(x_BSTD, everything, train=train)
            mlp = MLPBlock(hidden, **shared, activation=gelu, name=f"mlp_{i}")
            return mlp(x_BSTD, train=train), None

        x_BSTD, _ = repeat(layer, self.depth, x_BSTD, scan=self.scan)
        return StackedLayerNorm(self.num_stacks, self.epsilon, name="norm")(x_BSTD)


def clean_images(streams: list[Stream]) -> tuple[Array, Array]:
    """Images of equal shape, [B, S, V, h, w, c], zeros where there is none, and bool[B, S, V].

    uint8 is mapped to [-1, 1]; floats stay as they are.
    """
    mask_BSV = jnp.stack([s.mask & s.present[:, None] for s in streams], 1)
    values = jnp.stack([s.values for s in streams], 1)
    if values.dtype == jnp.uint8:
        values = values.astype(jnp.float32) / 127.5 - 1.0
    return jnp.where(mask_BSV[..., None, None, None], values, 0.0).astype(jnp.float32), mask_BSV
