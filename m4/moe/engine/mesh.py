"""Expert parallelism: `dispatch.apply_experts` on a mesh whose `expert` axis splits the experts.

One `shard_map` around exchange, experts, exchange; the rest of the model stays with the
partitioner, which must never see the dispatch (left alone it gathers all expert weights).
Expert weights and their gradients stay where they are; tokens travel.

Exchanges, equal in value and gradient:

- 'all_to_all': tokens split over the axis too. Every device fills one bucket of
  S = slack * N_local*K/p rows per destination device (not per expert: at many experts a
  capacity per expert would be mostly padding), the buckets travel, the receiver runs its own
  experts on the rows by `dispatch`, and the outputs travel back. What does not fit goes in further
  rounds, whose number is known only at run time (overflow='exact'), or is dropped and counted
  (overflow='drop').
- 'ragged_all_to_all': the same without padding, where the backend has that collective: rows of all
  senders share the p*S places of a receiver (`engine.exchange`). Compiled for TPUs and equal to
  the others through a stand-in on a CPU; not yet run on an accelerator, so 'auto' does not choose
  it.
- 'all_gather': every device of the axis sees all tokens of its group, runs its own experts, and
  the partial sums are scattered back. Moves less than an exchange of copies when K >= 4.
- 'replicated': the tokens are the same along the axis; partial sums are added. What splits the
  work over the cores of one host.

With `replicas` = R every device also runs the R experts with most assignments, of this step
and of all devices, on its own tokens: their rows do not travel and fill no bucket. Same result;
the R experts' weights are fetched from their owners and their gradients summed back.

Bytes per device and layer in forward + backward, with b bytes per number and p devices on the axis:

    all_to_all:  4 exchanges of p*S*D*b (D = O), and one of p*S int32
    ragged_...:  4 exchanges of the rows that there are, at most p*S; p^2 int32 of counts
    all_gather:  (forward) gather of p*N_local*(D*b + 8K), scatter of p*N_local*O*b; the same back
    weights:     all-reduce of the local gradient over `data`; gather and scatter over `fsdp`
    replicas:    all-reduce of R experts' weights, of their gradients, and of E int32 loads

Letters: N tokens of one device, K choices, E experts, L experts of one device, p devices on the
axis, S rows of a bucket, D input, F hidden, O output width.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from m4.moe.engine import dispatch
from m4.moe.engine import exchange as routes
from m4.moe.engine.grouped import make_plan
from m4.moe.experts import ExpertParams, Functions, cast
from m4.types import Array, Routing

Exchange = Literal["auto", "all_to_all", "ragged_all_to_all", "all_gather", "replicated"]
Overflow = Literal["exact", "drop"]


@dataclass(frozen=True)
class Axes:
    """Names of the mesh axes; those that the mesh lacks count as size 1."""

    expert: str | None = "expert"
    tokens: tuple[str, ...] = ("data", "fsdp", "expert")
    # Splits the weights' D and O; gathered here, gradient scattered back.
    fsdp: str | tuple[str, ...] | None = "fsdp"
    tensor: str | None = "tensor"  # splits F

    def on(self, mesh: Mesh | AbstractMesh, params: ExpertParams) -> "Axes":
        """Without axes that `mesh` lacks, of one device, or that do not divide what they split."""
        _, hidden, width = params.w1.shape

        def there(axis, *dims):
            size = mesh.shape.get(axis, 1)
            return axis if size > 1 and all(d % size == 0 for d in dims) else None

        return Axes(
            there(self.expert),
            tuple(filter(there, self.tokens)),
            there(self.fsdp, width, params.w2.shape[2]),
            there(self.tensor, hidden),
        )

    def weights(self) -> ExpertParams:
        """Partition of every expert parameter."""
        matrix = P(self.expert, self.tensor, self.fsdp)
        biases = {"b1": P(self.expert, self.tensor), "b2": P(self.expert, self.fsdp)}
        specs: dict[str, Any] = {"w1": matrix, "w2": matrix, **biases}
        return ExpertParams(**specs)


@dataclass(frozen=True)
class Local:
    """What is static on one device."""

    axes: Axes
    mesh: Mesh | AbstractMesh
    exchange: Exchange
    exact: bool
    slack: float
    num_experts: int  # E of the whole model
    replicas: int
    functions: Functions
    engine: str
    capacity: float | None
    target: dispatch.Target | None

    def size(self, axis: str | None) -> int:
        """Devices along an axis."""
        return self.mesh.shape[axis] if axis else 1


def apply_experts(
    x_ND: Array,
    routing: Routing,
    params: ExpertParams,
    functions: Functions,
    *,
    mesh: Mesh | AbstractMesh | None = None,
    axes: Axes = Axes(),  # noqa: B008 (frozen)
    exchange: Exchange = "auto",
    slack: float = 1.25,
    overflow: Overflow = "exact",
    engine: str = "auto",
    capacity: float | None = None,
    replicas: int = 0,
    target: dispatch.Target | None = None,
) -> tuple[Array, Array | None]:
    """`dispatch.apply_experts`, with experts split over `axes.expert` of the mesh.

    `mesh` None is the one of `jax.set_mesh`. Arrays are global: x [N, D] split over
    `axes.tokens`, weights as `axes.weights()` says (the axis of experts out of `axes.tokens`
    with 'replicated'). Works under `jit` and `grad`.

    Tokens that do not divide over the devices are padded with tokens that name no expert.

    Raises ValueError for experts that do not divide over the devices, for an unknown option, and
    for an output function with the hidden dimension split (it needs whole outputs).
    """
    mesh = mesh or jax.sharding.get_abstract_mesh()
    params = cast(params, x_ND.dtype)  # before it travels
    axes = axes.on(mesh, params)
    devices = mesh.shape[axes.expert] if axes.expert else 1
    if exchange == "auto":
        exchange = choose_exchange(routing.experts.shape[1], devices, slack)
    if exchange == "replicated":
        axes = replace(axes, tokens=tuple(a for a in axes.tokens if a != axes.expert))
    num_experts = params.w1.shape[0]
    local = Local(
        axes=axes,
        mesh=mesh,
        exchange=exchange,
        exact=overflow == "exact",
        slack=slack,
        num_experts=num_experts,
        replicas=0 if exchange == "replicated" or devices == 1 else replicas,
        functions=functions,
        engine=engine,
        capacity=capacity,
        target=target,
    )
    _check(local, overflow)
    args = _pad(local, (x_ND, routing.experts, routing.weights), (0, num_experts, 0))
    run: Any = jax.shard_map(
        partial(_on_device, local),
        mesh=mesh,
        in_specs=(*[P(axes.tokens)] * 3, axes.weights()),
        out_specs=(P(axes.tokens),) * 2,
        # The custom gradients below are not typed by varying axes; one device is the test.
        check_vma=False,
    )
    return jax.tree.map(lambda a_N: a_N[: x_ND.shape[0]], run(*args, params))


def apply_slots(x_ECD: Array, params: ExpertParams, functions: Functions) -> Array:
    """`functions.apply` where all experts have equally many slots, split over rows as tokens are.

    On the mesh that is set. Every device sends the slots of other devices' experts there and gets
    the outputs back: 4 exchanges of E*C/n*D numbers a step, with n devices, whatever the routing.
    Experts that the axis does not divide stay where their rows are: their weights, split over the
    axis by width, are gathered as over `fsdp`.

    Raises ValueError for an output function with the hidden dimension split.
    """
    mesh, slots = jax.sharding.get_abstract_mesh(), x_ECD.shape[1]
    params = cast(params, x_ECD.dtype)
    axes = Axes().on(mesh, params)
    if axes.expert and params.w1.shape[0] % mesh.shape[axes.expert]:
        both = tuple(axis for axis in (axes.fsdp, axes.expert) if isinstance(axis, str))
        parts = math.prod(mesh.shape[axis] for axis in both)
        wide = params.w1.shape[2] % parts == params.w2.shape[2] % parts == 0
        axes = replace(axes, expert=None, fsdp=both if wide else axes.fsdp)
    tensor = mesh.shape[axes.tensor] if axes.tensor else 1
    _require_whole_outputs(functions, axes.tensor, tensor)

    def on_device(x_ECD, params):
        params = _whole_width(axes, tensor, params)
        if axes.expert:
            x_ECD = lax.all_to_all(x_ECD, axes.expert, 0, 1, tiled=True)
        y_ECO = functions.apply(x_ECD, params)
        if axes.expert:
            y_ECO = lax.all_to_all(y_ECO, axes.expert, 1, 0, tiled=True)
        return _sum(axes.tensor, y_ECO)

    padding = -slots % math.prod(mesh.shape[axis] for axis in axes.tokens)
    # Not zeros, of which the gradient of an output function may be NaN, as of y / |y|.
    x_ECD = jnp.pad(x_ECD, ((0, 0), (0, padding), (0, 0)), constant_values=1)
    rows = P(None, axes.tokens)
    run: Any = jax.shard_map(
        on_device, mesh=mesh, in_specs=(rows, axes.weights()), out_specs=rows, check_vma=False
    )
    return run(x_ECD, params)[:, :slots]


def _pad(local, arrays, fills):
    """Further rows, so that they divide over the devices."""
    padding = -arrays[0].shape[0] % math.prod(map(local.size, local.axes.tokens))
    if not padding:
        return arrays
    return tuple(
        jnp.pad(a, ((0, padding), (0, 0)), constant_values=fill)
        for a, fill in zip(arrays, fills, strict=True)
    )


def choose_exchange(k: int, num_devices: int, slack: float = 1.25) -> Exchange:
    """What 'auto' means: the one that moves fewer bytes, p - 1 copies or slack*k*(p - 1)/p."""
    return "all_gather" if slack * k >= num_devices else "all_to_all"


def bucket_rows(num_tokens: int, k: int, num_devices: int, slack: float = 1.25) -> int:
    """Rows S of a bucket from `num_tokens` tokens of one device to each of `num_devices`."""
    rows = math.ceil(slack * num_tokens * k / num_devices)
    return min(8 * math.ceil(rows / 8), num_tokens * k)


def _check(local, overflow):
    if local.exchange not in (exchanges := get_args(Exchange)):
        raise ValueError(f"moe.exchange={local.exchange!r}; choose one of {', '.join(exchanges)}")
    if overflow not in get_args(Overflow):
        raise ValueError(f"moe.overflow={overflow!r}; choose exact or drop")
    if not 0 <= local.replicas <= local.num_experts:
        raise ValueError(f"moe.replicas={local.replicas} must be in [0, {local.num_experts}]")
    devices = local.size(local.axes.expert)
    if local.num_experts % devices:
        raise ValueError(
            f"moe.num_experts={local.num_experts} cannot be split over {devices} devices on axis "
            f"{local.axes.expert!r}; choose a multiple of {devices}"
        )
    tensor = local.axes.tensor
    _require_whole_outputs(local.functions, tensor, local.size(tensor))


def _require_whole_outputs(functions, tensor, size):
    if functions.output is not None and size > 1:
        raise ValueError(
            f"moe.output={functions.output!r} needs whole expert outputs: set the axis "
            f"{tensor!r} to 1 (now {size})"
        )


def _on_device(local, x_ND, experts_NK, weights_NK, params):
    """The body of the shard_map; shapes are those of one device."""
    params = _whole_width(local.axes, local.size(local.axes.tensor), params)
    axis, y_hot_NO, lost_hot_NK = local.axes.expert, 0, None
    if local.replicas:
        y_hot_NO, lost_hot_NK, experts_NK = _replicas(local, x_ND, experts_NK, weights_NK, params)
    if local.exchange in routes.EXCHANGES and local.size(axis) > 1:
        y_NO, lost_NK = _exchanged(local, x_ND, experts_NK, weights_NK, params)
    elif local.exchange == "all_gather" and local.size(axis) > 1:
        gather = partial(lax.all_gather, axis_name=axis, tiled=True)
        gathered = gather(x_ND), gather(experts_NK), gather(weights_NK)
        y_PO, lost_PK = _own_experts(local, *gathered, params)
        y_NO = lax.psum_scatter(y_PO, axis, tiled=True)
        lost_NK = _map(lambda a: lax.psum_scatter(a.astype(int), axis, tiled=True) > 0, lost_PK)
    else:
        y_NO, lost_NK = _own_experts(local, x_ND, experts_NK, weights_NK, params)
        if local.exchange == "replicated" and axis:
            y_NO = _sum(axis, y_NO)
            lost_NK = _map(lambda a: lax.psum(a.astype(int), axis) > 0, lost_NK)
    if lost_NK is not None and lost_hot_NK is not None:
        lost_NK |= lost_hot_NK
    return _sum(local.axes.tensor, y_NO + y_hot_NO), lost_NK


def _map(function, array):
    return None if array is None else function(array)


def _sum_forward(axis, part_NO) -> Array:
    """Sum of the devices' parts, which all of them get.

    The transpose of `psum` is another `psum`. It isn't needed: the cotangent of an output that is
    equal along an axis arrives on every device as its p-th part, so p times it is the sum.
    """
    return lax.psum(part_NO, axis) if axis else part_NO


_sum = jax.custom_vjp(_sum_forward, nondiff_argnums=(0,))
_sum.defvjp(
    lambda axis, part_NO: (_sum(axis, part_NO), None),
    lambda axis, _, g_NO: (g_NO * lax.axis_size(axis) if axis else g_NO,),
)


def _whole_width(axes, tensor, params):
    """Undo the split over `fsdp`; the bias b2 enters once among the `tensor` parts of a split F."""
    if fsdp := axes.fsdp:
        gather = partial(lax.all_gather, axis_name=fsdp, tiled=True)
        params = params.replace(
            w1=gather(params.w1, axis=2), w2=gather(params.w2, axis=2), b2=gather(params.b2, axis=1)
        )
    if tensor > 1:
        first = lax.axis_index(axes.tensor) == 0
        params = params.replace(b2=jnp.where(first, params.b2, 0))
    return params


def _replicas(local, x_ND, experts_NK, weights_NK, params):
    """The most loaded experts on this device's tokens, what they lost, and what remains."""
    axis, num_local = local.axes.expert, params.w1.shape[0]
    load_E = jnp.zeros(local.num_experts, jnp.int32).at[experts_NK].add(1, mode="drop")
    hot_R = lax.top_k(lax.psum(load_E, local.axes.tokens), local.replicas)[1]
    index_R = hot_R - num_local * lax.axis_index(axis)
    own_R = (index_R >= 0) & (index_R < num_local)

    def fetch(p):
        mine_R = jnp.where(own_R.reshape(-1, *[1] * (p.ndim - 1)), p[index_R % num_local], 0)
        return lax.psum(mine_R, axis)  # whose transpose sums the gradients of all devices

    replica_E = jnp.full(local.num_experts + 1, local.replicas, jnp.int32)
    replica_NK = replica_E.at[hot_R].set(jnp.arange(local.replicas))[experts_NK]
    hot = jax.tree.map(fetch, params)
    # The load is not known when compiling; experts this hot are taken to have twice the mean.
    expected = 2 * experts_NK.size * local.replicas // local.num_experts
    expected = min(max(expected, 1), experts_NK.size)
    y_NO, lost_NK = _run(local, x_ND, replica_NK, weights_NK, hot, expected)
    rest_NK = jnp.where(replica_NK < local.replicas, local.num_experts, experts_NK)
    return y_NO, lost_NK, rest_NK


def _run(local, x_ND, experts_NK, weights_NK, params, expected):
    """This device's experts, numbered from 0, on rows that may name none (L)."""
    empty = jnp.zeros((x_ND.shape[0], 0))
    routing = Routing(experts_NK, weights_NK, empty, empty, experts_NK[:, 0] >= 0)
    return dispatch.apply_experts(
        x_ND,
        routing,
        params,
        local.functions,
        engine=local.engine,
        capacity=local.capacity,
        expected=expected,
        target=local.target,
    )


def _own_experts(local, x_ND, experts_NK, weights_NK, params):
    """Partial sums over this device's experts."""
    devices = local.size(local.axes.expert)
    num_local = local.num_experts // devices
    if devices > 1:
        experts_NK = experts_NK - num_local * lax.axis_index(local.axes.expert)
        own_NK = (experts_NK >= 0) & (experts_NK < num_local)
        experts_NK = jnp.where(own_NK, experts_NK, num_local)
    return _run(local, x_ND, experts_NK, weights_NK, params, experts_NK.size // devices)


def _exchanged(local, x_ND, experts_NK, weights_NK, params):
    """One round of exchange, and as many more as the fullest of all devices needs."""
    devices, axis = local.size(local.axes.expert), local.axes.expert
    num_local = local.num_experts // devices
    plan = make_plan(experts_NK // num_local, devices)  # expert E goes to device p: nowhere
    travel = routes.EXCHANGES[local.exchange]
    num_tokens, k = experts_NK.shape
    rows = devices * bucket_rows(num_tokens, k, devices, local.slack)
    if local.exact:
        number = lax.pmax(travel.rounds(plan, axis=axis, rows=rows), local.axes.tokens)
        y_NO, served_NK = _rounds(local, rows, plan, number, experts_NK, x_ND, weights_NK, params)
    else:
        y_NO, served_NK = _round(local, rows, plan, 0, experts_NK, x_ND, weights_NK, params)
        if served_NK is None:  # all that arrived was
            sizes = travel.sizes(plan, axis=axis, rows=rows)
            served_A = plan.rank_A < sizes.at[plan.expert_A].get(mode="clip")
            served_NK = served_A.reshape(experts_NK.shape[::-1]).T
    valid_NK = experts_NK < local.num_experts
    return y_NO, _map(lambda served_NK: valid_NK & (served_NK == 0), served_NK)


def _sum_of_rounds(local, rows, plan, number, experts_NK, x_ND, weights_NK, params):
    """Sum of `number` rounds, which is known only at run time (hence the hand-written gradient)."""
    return _rounds_forward(local, rows, plan, number, experts_NK, x_ND, weights_NK, params)[0]


def _rounds_forward(local, rows, plan, number, experts_NK, x_ND, weights_NK, params):
    def one(i):
        return partial(_round, local, rows, plan, i, experts_NK)

    y_NO, first_vjp = jax.vjp(one(0), x_ND, weights_NK, params)
    y_NO = _repeat(
        number, lambda i, y: jax.tree.map(jnp.add, y, one(i)(x_ND, weights_NK, params)), y_NO
    )
    return y_NO, (first_vjp, plan, number, experts_NK, x_ND, weights_NK, params)


def _rounds_backward(local, rows, residuals, g_NO):
    first_vjp, plan, number, experts_NK, *primals = residuals

    def add(i, grads):
        one = partial(_round, local, rows, plan, i, experts_NK)
        return jax.tree.map(jnp.add, grads, jax.vjp(one, *primals)[1](g_NO))

    return None, None, None, *_repeat(number, add, first_vjp(g_NO))


_rounds = jax.custom_vjp(_sum_of_rounds, nondiff_argnums=(0, 1))
_rounds.defvjp(_rounds_forward, _rounds_backward)


def _repeat(number, body, carry):
    """`body(i, carry)` for i = 1 ... number - 1."""

    def step(state):
        i, carry = state
        return i + 1, body(i, carry)

    return lax.while_loop(lambda state: state[0] < number, step, (jnp.int32(1), carry))[1]


def _round(local, rows, plan, nth, experts_NK, x_ND, weights_NK, params):
    """Serve the assignments that travel in round `nth`, at most R = `rows` a device.

    Where the receivers drop some, each row brings back a column that says whether it was served;
    these, 1. or 0., are the second result [N, K].
    """
    devices = local.size(local.axes.expert)
    num_local = local.num_experts // devices
    travel = routes.EXCHANGES[local.exchange]
    route = travel.route(plan, nth, axis=local.axes.expert, rows=rows)
    experts_R1 = route.label(experts_NK.T.reshape(-1) % num_local, num_local)[:, None]
    ones_R1 = jnp.ones(experts_R1.shape, weights_NK.dtype)
    y_RO, lost_R1 = _run(local, route.there(x_ND), experts_R1, ones_R1, params, experts_NK.size)
    if lost_R1 is not None:
        y_RO = jnp.concatenate([y_RO, 1 - lost_R1.astype(y_RO.dtype)], axis=1)
    y_KNO, served_NK = route.back(y_RO), None
    if lost_R1 is not None:
        y_KNO, served_NK = y_KNO[..., :-1], lax.stop_gradient(y_KNO[..., -1].T)
    return jnp.sum(y_KNO * weights_NK.T[..., None].astype(y_KNO.dtype), axis=0), served_NK
