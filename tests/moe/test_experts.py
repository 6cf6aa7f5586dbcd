"""Every form of the batched experts computes the same, and so do their gradients."""

import chex
import jax
import jax.numpy as jnp
import pytest

from m4.moe import experts
from m4.moe.experts import FORMS, Functions

E, C, D, F, OUT = 3, 5, 4, 6, 2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("activation", [jax.nn.relu, jax.nn.softmax], ids=["relu", "softmax"])
def test_forms_agree_with_the_definition(form, activation):
    """Softmax mixes the entries of a row: a form that works on columns must not mix rows."""
    keys = iter(jax.random.split(jax.random.key(0), 9))
    params = experts.ExpertParams(
        **{
            name: jax.random.normal(next(keys), shape)
            for name, shape in experts.shapes(E, D, F, OUT).items()
        }
    )
    x_ECD = jax.random.normal(next(keys), (E, C, D))
    dy_ECO = jax.random.normal(next(keys), (E, C, OUT))

    @jax.jit
    def run(x_ECD, params):
        y_ECO, saved = FORMS[form].forward(x_ECD, params, activation)
        return y_ECO, *FORMS[form].backward(saved, dy_ECO, params, activation, jnp.float32)

    def definition(x_ECD, p):
        hidden_ECF = activation(jnp.einsum("ecd,efd->ecf", x_ECD, p.w1) + p.b1[:, None])
        return jnp.einsum("ecf,efo->eco", hidden_ECF, p.w2) + p.b2[:, None]

    expected_ECO, vjp = jax.vjp(definition, x_ECD, params)
    chex.assert_trees_all_close(
        run(x_ECD, params), (expected_ECO, *vjp(dy_ECO)), rtol=1e-5, atol=1e-5
    )
    if form == "rows":
        y_ECO, vjp_rows = jax.vjp(Functions(activation).apply, x_ECD, params)
        found = (y_ECO, *vjp_rows(dy_ECO))
        chex.assert_trees_all_close(found, (expected_ECO, *vjp(dy_ECO)), rtol=1e-5, atol=1e-5)
