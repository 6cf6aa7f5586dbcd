"""Image volumes -> one vector (Flex-MoE's encoder of T1 MRI).

Letters: B rows, V slices, h and w pixels, c channels, D model width.
"""

import flax.linen as nn
import jax.numpy as jnp

from m4.maths import torch_uniform
from m4.nn.layers import Dropout
from m4.types import Array, Stream

POOLS = (2, 3, 4)


class VolumeEncoder(nn.Module):
    """Three times: two 3x3x3 convolutions with ReLU, max-pooling by 2, 3 and 4; then affine.

    Published for volumes of 91 x 91 x 109 with channels (32, 64, 128). A dimension smaller than
    a pool is pooled whole, so that single images pass, too. Dropout takes whole channels.
    """

    features: int
    channels: tuple[int, int, int] = (32, 64, 128)
    dropout: float = 0.2

    @nn.compact
    def __call__(self, stream: Stream, *, train: bool) -> Array:
        """[B, V, h, w, c] -> [B, D]; absent slices are zeros, bytes become shares of 255."""
        mask_BV = stream.mask & stream.present[:, None]
        x = jnp.where(mask_BV[..., None, None, None], stream.values, 0).astype(jnp.float32)
        x = x / 255 if stream.values.dtype == jnp.uint8 else x
        init = torch_uniform()
        outs = (*self.channels[:2], self.features)
        for i, (first, second) in enumerate(zip(self.channels, outs, strict=True)):
            for j, channels in enumerate((first, second)):
                conv = nn.Conv(channels, (3, 3, 3), kernel_init=init, name=f"conv_{2 * i + j}")
                x = nn.relu(conv(x))
            window = tuple(min(POOLS[i], size) for size in x.shape[1:4])
            x = nn.max_pool(x, window, window)
            drop = Dropout(
                self.dropout, deterministic=not train, shared=(1, 2, 3), name=f"drop_{i}"
            )
            x = drop(x)
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(self.features, kernel_init=init, name="out")(x)
