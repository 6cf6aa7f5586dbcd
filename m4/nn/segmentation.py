"""From patch tokens to a map of logits, its loss and the Dice score.

Letters: B rows, y, x places of the patch grid, h, w places of the map, C channels, D width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from m4.types import Array


class SegHead(nn.Module):
    """Stages of bilinear doubling, 3 x 3 convolution, group norm and GELU, then 1 x 1."""

    channels: int
    widths: tuple[int, ...] = (384, 192, 96, 48)

    @nn.compact
    def __call__(self, x_ByxD: Array, *, size: tuple[int, int]) -> Array:
        """[B, y, x, D] -> [B, h, w, channels]; what does not end at `size` is resized to it."""
        x = x_ByxD
        for i, width in enumerate(self.widths):
            rows, height, across, inputs = x.shape
            x = jax.image.resize(x, (rows, 2 * height, 2 * across, inputs), "bilinear")
            x = nn.Conv(width, (3, 3), name=f"conv_{i}")(x)
            x = nn.gelu(nn.GroupNorm(min(8, width), name=f"norm_{i}")(x))
        x = nn.Conv(self.channels, (1, 1), name="out")(x)
        return jax.image.resize(x, (x.shape[0], *size, self.channels), "bilinear")


def loss(logits_BhwC: Array, target_BhwC: Array) -> Array:
    """Cross-entropy plus 1 - (2 sum pg + 1) / (sum p + sum g + 1), per row."""
    logits = logits_BhwC.astype(jnp.float32)
    p = jax.nn.sigmoid(logits)
    over = (1, 2, 3)
    cross = optax.sigmoid_binary_cross_entropy(logits, target_BhwC).mean(over)
    both = 2.0 * jnp.sum(p * target_BhwC, over) + 1.0
    return cross + 1.0 - both / (jnp.sum(p, over) + jnp.sum(target_BhwC, over) + 1.0)


def scores(logits_BhwC: Array, target_BhwC: Array) -> Array:
    """Dice of what is more likely than not, per row and channel [B, C]; 1 where both are empty."""
    map_BhwC, target_BhwC = (logits_BhwC > 0).astype(jnp.float32), target_BhwC.astype(jnp.float32)
    both = 2.0 * jnp.sum(map_BhwC * target_BhwC, (1, 2))
    total = jnp.sum(map_BhwC, (1, 2)) + jnp.sum(target_BhwC, (1, 2))
    return jnp.where(total > 0, both / jnp.where(total > 0, total, 1.0), 1.0)
