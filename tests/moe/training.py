"""A few steps of training of one layer, for the tests of large expert counts."""

import jax
import numpy as np
import optax
from flax import linen as nn

KEY = jax.random.key(0)


def train_steps(layer, *, width, num_tokens, steps):
    """Losses of `steps` Adam steps towards a fixed random target, state donated."""
    x = np.random.default_rng(0).normal(size=(num_tokens, width)).astype(np.float32)
    target = np.roll(x, 1, axis=1)
    given = {"valid_N": np.ones(num_tokens, bool)}
    tx = optax.adam(3e-3)

    def loss(params):
        y, _ = layer.apply({"params": params}, x, **given, train=True, rngs={"gate": KEY})
        return ((y - target) ** 2).mean()

    def step(params, opt):
        value, grads = jax.value_and_grad(loss)(params)
        updates, opt = tx.update(grads, opt)
        return optax.apply_updates(params, updates), opt, value

    init = jax.jit(lambda: nn.unbox(layer.init(KEY, x, **given, train=False))["params"])
    params = init()
    opt, step = jax.jit(tx.init)(params), jax.jit(step, donate_argnums=(0, 1))
    losses = []
    for _ in range(steps):
        params, opt, value = step(params, opt)
        losses.append(float(value))
    return losses
