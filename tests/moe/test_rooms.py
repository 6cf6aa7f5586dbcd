"""One layer is read in few files: what its trace enters, with a gate for each modality."""

import jax
import numpy as np
import pytest

from m4.moe.layer import MoE
from m4.moe.options import MoEOptions
from tests.test_rooms_step import entered

LIMIT = 10
OPTIONS = {
    "joint": MoEOptions(num_experts=6, hidden=4),
    "permod": MoEOptions(router="noisy_top_k", share="permod", num_experts=6, hidden=4),
    "shared": MoEOptions(gate="cosine", router="hierarchical", num_groups=2, num_shared=1),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_layer_enters_few_files(name):
    layer = MoE(OPTIONS[name], num_modalities=2, losses=("importance", "load", "z"))
    x_ND = np.ones((8, 4), np.float32)
    given = {"valid_N": np.ones(8, bool), "modality_N": np.arange(8) % 2, "num_rows": 4}
    rngs = {"params": jax.random.key(0), "gate": jax.random.key(1)}
    params = jax.eval_shape(lambda: layer.init(rngs, x_ND, **given, train=True))

    def loss(params):
        y_ND, aux = layer.apply(params, x_ND, **given, train=True, rngs=rngs)
        return y_ND.sum() + sum(aux.losses.values())

    jax.clear_caches()
    files = entered(lambda: jax.eval_shape(jax.grad(loss), params))
    assert {"moe/layer.py", "moe/gates.py", "moe/routers.py", "resolve.py"} <= set(files)
    assert len(files) <= LIMIT, "\n".join(files)
