"""How rows travel between the devices of a mesh axis and back, inside `shard_map`.

A `Route` is one round of an exchange: every device receives at most R rows. It is made from the
device's own plan of destinations (`m4.moe.engine.grouped`, with devices in the place of experts):

- `buckets`: a bucket of S = R/p rows for every destination, padded, by `all_to_all`;
- `ragged`: only the rows that there are, one behind the other, by `ragged_all_to_all`. A receiver
  takes what fits in R in all, however uneven its senders. Counts of rows (p^2 int32) are gathered
  first. XLA:CPU lacks this collective; there an `all_gather` stands in for it, which moves p times
  as much and is meant for tests.

What does not fit travels in the next round. Backwards, gradients of rows take the same way back.

Letters: N tokens of one device, K choices, A = K*N assignments, p and P devices on the axis, R rows
received, X any width.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from m4.moe.engine.grouped import Plan, slots
from m4.moe.engine.rows import empty_slots, fill_slots, sort_rows, unsort_rows
from m4.types import Array


class Route(NamedTuple):
    """One round."""

    label: Callable[[Array, int], Array]  # i32[A] of assignments, fill -> i32[R] of received rows
    there: Callable[[Array], Array]  # tokens [N, X] -> received rows [R, X], zeros where none is
    back: Callable[[Array], Array]  # rows [R, X] -> [K, N, X], zeros for what did not travel


def buckets(plan: Plan, nth: Array | int, *, axis: str, rows: int) -> Route:
    """Round `nth` of the padded exchange."""
    devices = plan.num_experts
    plan = plan.replace(skip=nth * (rows // devices))
    swap = partial(lax.all_to_all, axis_name=axis, split_axis=0, concat_axis=0, tiled=True)

    def label(own_A, fill):
        placed = own_A.at[slots(plan, rows // devices)].get(mode="fill", fill_value=fill)
        return swap(placed).reshape(-1)

    def there(x_NX):
        return swap(fill_slots(rows // devices, plan, x_NX)).reshape(rows, -1)

    def back(y_RX):
        return empty_slots(plan, swap(y_RX.reshape(devices, rows // devices, -1)))

    return Route(label, there, back)


def ragged(plan: Plan, nth: Array | int, *, axis: str, rows: int) -> Route:
    """Round `nth` of the exchange without padding."""
    to, fro = _paths(plan, nth, axis, rows)

    def label(own_A, fill):
        return _send(axis, own_A[plan.order_A], jnp.full(rows, fill, own_A.dtype), to)

    def there(x_NX):
        return _carry(axis, (plan.size, rows), to, fro, sort_rows(plan, x_NX))

    def back(y_RX):
        return unsort_rows(plan, _carry(axis, (rows, plan.size), fro, to, y_RX))

    return Route(label, there, back)


def bucket_rounds(plan: Plan, *, axis: str, rows: int) -> Array:
    """Rounds until this device has sent all its rows, i32[]."""
    del axis
    return -(-jnp.max(plan.count_E) // (rows // plan.num_experts))


def ragged_rounds(plan: Plan, *, axis: str, rows: int) -> Array:
    """Rounds until this device has received all its rows, i32[]."""
    return -(-jnp.sum(lax.all_gather(plan.count_E, axis)[:, lax.axis_index(axis)]) // rows)


def bucket_sizes(plan: Plan, *, axis: str, rows: int) -> Array:
    """Rows of this device that reach each receiver in the first round at most, i32[p]."""
    del axis
    return jnp.full(plan.num_experts, rows // plan.num_experts)


def ragged_sizes(plan: Plan, *, axis: str, rows: int) -> Array:
    """As `bucket_sizes`."""
    return _paths(plan, 0, axis, rows)[0].send_sizes


class Exchange(NamedTuple):
    """A way to travel: the route of a round, how many rounds, and how many rows the first takes."""

    route: Callable[..., Route]
    rounds: Callable[..., Array]
    sizes: Callable[..., Array]


EXCHANGES = {
    "all_to_all": Exchange(buckets, bucket_rounds, bucket_sizes),
    "ragged_all_to_all": Exchange(ragged, ragged_rounds, ragged_sizes),
}


class Path(flax.struct.PyTreeNode):
    """Arguments of `lax.ragged_all_to_all`, i32[p] each."""

    input_offsets: Array
    send_sizes: Array
    output_offsets: Array
    recv_sizes: Array


def _paths(plan, nth, axis, rows):
    """Ways of the rows of round `nth` from this device's sorted rows to the receivers, and back.

    Receiver q sees the rows of all senders as one stream; the round moves its places
    [nth R, (nth + 1) R).
    """
    me = lax.axis_index(axis)
    count_PP = lax.all_gather(plan.count_E, axis)  # from sender, to receiver
    stream_PP = jnp.cumsum(count_PP, axis=0) - count_PP
    first_PP = jnp.clip(nth * rows - stream_PP, 0, count_PP)
    size_PP = jnp.clip((nth + 1) * rows - stream_PP, 0, count_PP) - first_PP
    sorted_PP = jnp.cumsum(count_PP, axis=1) - count_PP + first_PP
    place_PP = jnp.clip(stream_PP + first_PP - nth * rows, 0, rows)
    to = Path(sorted_PP[me], size_PP[me], place_PP[me], size_PP[:, me])
    fro = Path(place_PP[:, me], size_PP[:, me], sorted_PP[:, me], size_PP[me])
    return to, fro


def _move(axis, sizes, path, reverse, rows_X) -> Array:
    """Rows moved along `path` into sizes[1] rows, zeros where none arrives."""
    del reverse
    return _send(axis, rows_X, jnp.zeros((sizes[1], rows_X.shape[1]), rows_X.dtype), path)


_carry = jax.custom_vjp(_move, nondiff_argnums=(0, 1))
_carry.defvjp(
    lambda axis, sizes, path, reverse, rows_X: (
        _carry(axis, sizes, path, reverse, rows_X),
        (path, reverse),
    ),
    lambda axis, sizes, ways, g_X: (None, None, _carry(axis, sizes[::-1], *ways[::-1], g_X)),
)


def _send(axis, rows, out, path):
    """`lax.ragged_all_to_all`, or its stand-in on a CPU."""
    return lax.platform_dependent(
        rows,
        out,
        path.input_offsets,
        path.send_sizes,
        path.output_offsets,
        path.recv_sizes,
        cpu=partial(_stand_in, axis),
        default=partial(lax.ragged_all_to_all, axis_name=axis),
    )


def _stand_in(axis, rows, out, input_offsets, send_sizes, output_offsets, recv_sizes):
    del send_sizes
    me = lax.axis_index(axis)
    all_rows = lax.all_gather(rows, axis)
    from_P, to_P = (lax.all_gather(o, axis)[:, me] for o in (input_offsets, output_offsets))
    place_R1 = jnp.arange(out.shape[0])[:, None]
    inside_RP = (place_R1 >= to_P) & (place_R1 < to_P + recv_sizes)
    sender_R = jnp.argmax(inside_RP, axis=1)
    source_R = from_P[sender_R] + place_R1[:, 0] - to_P[sender_R]
    arrived = inside_RP.any(1).reshape(-1, *[1] * (out.ndim - 1))
    return jnp.where(arrived, all_rows.at[sender_R, source_R].get(mode="clip"), out)
