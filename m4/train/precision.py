"""bfloat16 where it pays, float32 where it counts: `train.precision`.

With 'bfloat16' every matrix product and convolution of a program, forwards and backwards, reads
bfloat16 and adds up in float32. Nothing else changes: parameters, norms, softmax, losses, times,
statistics, sums of gradients and the state stay float32. A product that asks for a precision
(`jax.default_matmul_precision("highest")` around it) keeps float32 too, and so does one inside a
hand-written kernel or of what is `m4.maths.exact`, as gates, routers and losses are.

It is one pass over the traced program, so a method needs no line for it, wherever it comes from.
A CPU has no such products; there the numbers are rounded to bfloat16 and multiplied in float32,
which gives the same results and saves nothing.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.extend import core

from m4.maths import EXACT

Precision = Literal["float32", "bfloat16"]
PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot_general")
KERNELS = ("pallas_call", "custom_call", "ffi_call")  # what they hold is not ours to change
_BFLOAT16, _FLOAT32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
# What rounds an operand: a primitive, the dtype that comes out of it, and its parameters.
_ROUND = (
    (
        core.primitives.convert_element_type_p,
        _BFLOAT16,
        {"new_dtype": _BFLOAT16, "weak_type": False, "sharding": None},
    ),
    (core.primitives.reduce_precision_p, _FLOAT32, {"exponent_bits": 8, "mantissa_bits": 7}),
)


def in_precision(precision: Precision, function: Callable, *, platform: str) -> Callable:
    """`function` of trees of arrays, with its matrix products in `precision` on `platform`."""
    if precision == "float32":
        return function

    def narrow(*args: Any) -> Any:
        traced, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        flat = core.jaxpr_as_fun(_narrowed(traced, _ROUND[platform == "cpu"]))
        return jax.tree.unflatten(jax.tree.structure(shapes), flat(*jax.tree.leaves(args)))

    return narrow


def _narrowed(program: Any, rounding: tuple[core.Primitive, Any, dict[str, Any]]) -> Any:
    """A jaxpr, closed or open, whose products read rounded numbers.

    What it takes and returns is the same.
    """
    if isinstance(program, core.ClosedJaxpr):
        return program.replace(jaxpr=_narrowed(program.jaxpr, rounding))
    primitive, dtype, options = rounding
    equations, narrow = [], {}  # variable -> the same, rounded

    def operand(x, product):
        if x.aval.dtype != jnp.float32:
            return x
        if isinstance(x, core.Var) and x in narrow:
            return narrow[x]
        y = core.Var(x.aval.update(dtype=dtype, weak_type=False))
        parts = {"primitive": primitive, "invars": [x], "outvars": [y], "params": options}
        equations.append(product.replace(**parts))
        if isinstance(x, core.Var):
            narrow[x] = y
        return y

    for equation in program.eqns:
        if EXACT in str(equation.source_info.name_stack):
            equations.append(equation)
            continue
        if _is_wide_product(equation):
            invars = [operand(x, equation) for x in equation.invars[:2]] + equation.invars[2:]
            params = equation.params | {"preferred_element_type": equation.outvars[0].aval.dtype}
            equation = equation.replace(invars=invars, params=params)
        elif equation.primitive.name not in KERNELS:
            equation = equation.replace(params=_inside(equation.params, rounding))
        equations.append(equation)
    return program.replace(eqns=equations)


def _dtype(variable: Any) -> Any:
    return variable.aval.dtype


def _is_wide_product(equation: core.JaxprEqn) -> bool:
    """Whether it multiplies float32 and doesn't ask for a precision."""
    if equation.primitive.name not in PRODUCTS:
        return False
    asked = equation.params["precision"]
    free = asked is None or asked in ((jax.lax.Precision.DEFAULT,) * 2, jax.lax.Precision.DEFAULT)
    return free and any(_dtype(x) == jnp.float32 for x in equation.invars[:2])


def _inside(params: dict[str, Any], rounding: Any) -> dict[str, Any]:
    """An equation's parameters with the programs among them narrowed: loops, branches, calls."""

    def narrowed(value):
        if isinstance(value, core.Jaxpr | core.ClosedJaxpr):
            return _narrowed(value, rounding)
        return tuple(map(narrowed, value)) if type(value) is tuple else value

    return {name: narrowed(value) for name, value in params.items()}
