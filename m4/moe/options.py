"""What a configuration says of a mixture-of-experts layer: the section `method.moe`.

A method hands it to the layer whole, so a new option is a field here and a line where it acts.

Letters as in `m4.moe.route`.
"""

import dataclasses
import difflib
import functools
import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from m4.moe import route
from m4.moe.engine import dispatch, mesh
from m4.moe.product_keys import ProductKeys
from m4.resolve import resolve
from m4.types import Routing


@dataclasses.dataclass(frozen=True)
class MoEOptions:
    """Gate, router, share, sizes of the experts, and the engine that runs them.

    `gate` and `router` are names in `m4.moe.gates` and `.routers`, `activation` and `output` in
    `m4.moe.experts`, or 'package.module:name'.
    """

    gate: str = "laplace"  # scores
    router: str = "top_k"  # choice; 'product_keys' has experts of its own (`.product_keys`)
    share: Literal["joint", "permod", "disjoint"] = "joint"  # of one gate, or one per modality
    num_experts: int = 16
    top_k: int = 2  # experts that a token visits
    hidden: int = 128  # units of an expert
    num_shared: int = 0  # further experts that every token visits at weight 1
    activation: str = "gelu"
    output: str | None = None  # function on every expert's output before mixing
    dtype: Literal["float32", "bfloat16", "float16"] | None = None  # of the experts' arithmetic
    # None: that of the input and the parameters
    rank: int = 8  # of the low-rank gates
    num_slots: int = 1  # slots per expert, of the 'soft' router
    num_groups: int = 1  # groups of experts, of the 'group_limited' and 'hierarchical' routers
    outer_gate: str = "laplace"  # between groups, of the 'hierarchical' router
    gate_options: Mapping[str, Any] = FrozenDict()
    router_options: Mapping[str, Any] = FrozenDict()
    engine: dispatch.Engine = "auto"
    capacity: float | None = None  # rows that an expert serves over the mean load N K / E
    exchange: mesh.Exchange = "auto"  # of rows between devices
    slack: float = 1.25  # rows of a bucket that travels, over the mean
    overflow: mesh.Overflow = "exact"  # what becomes of rows that fit in no bucket
    replicas: int = 0  # hot experts that every device of a mesh runs for its own tokens
    # What the layer is compiled for (None: the devices at hand); no field of a configuration.
    target: dispatch.Target | None = dataclasses.field(default=None, metadata={"set_by": "m4.run"})

    def __post_init__(self) -> None:
        """Freezes the options of gate and router, so that a layer can be hashed."""
        for name in ("gate_options", "router_options"):
            object.__setattr__(self, name, FrozenDict(getattr(self, name)))

    def with_router(self, **defaults: Any) -> "MoEOptions":
        """The same, with these options of the router where none are given."""
        return dataclasses.replace(self, router_options={**defaults, **self.router_options})


@dataclasses.dataclass(frozen=True)
class SoftOptions:
    """The same of a soft mixture (`m4.moe.soft`): every token reaches every slot of every expert.

    So there is no router, no capacity and no engine to choose.
    """

    gate: str = "m4.moe.soft:scaled_cosine"  # any gate that needs no more than the tokens
    num_experts: int = 16
    hidden: int = 128
    activation: str = "gelu"
    output: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    rank: int = 8
    gate_options: Mapping[str, Any] = FrozenDict()
    inputs: Literal["raw", "unit"] = "raw"  # tokens that slots mix: as they are, as Soft-MoE's
    # authors do, or of length 1, as M4oE's release does


# --- what can be said before any data are read ----------------------------------------------------

ROOMS = {  # of what a field names: file in m4/moe, its positional arguments that are not learned
    "gate": ("gates", ("x_ND",)),
    "outer_gate": ("gates", ("x_ND",)),
    "router": ("routers", ("logits_NE", "valid_N")),
    "losses": ("losses", ("routing",)),
    "activation": ("experts", ("x",)),
    "output": ("experts", ("x",)),
}
LEAST = {"num_shared": 0, "replicas": 0}  # of whole numbers; of all others 1


def choices(field: str) -> tuple[str, ...]:
    """Names that a configuration can give a field (a key of `ROOMS`), but those from outside."""
    return known(field) + (("product_keys",) if field == "router" else ())


def known(field: str) -> tuple[str, ...]:
    """The public functions of the kind that a field (a key of `ROOMS`) names."""
    room, positional = ROOMS[field]
    module = importlib.import_module(f"m4.moe.{room}")
    return tuple(
        name
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and function.__module__ == module.__name__
        and not name.startswith("_")
        and _positional(function) == positional
    )


def problems(
    options: MoEOptions | SoftOptions, losses: Sequence[str] = (), num_modalities: int | None = None
) -> list[str]:
    """Everything about a layer that cannot work, each in one line that begins with its field.

    Such as "gate='laplas': unknown; did you mean laplace?" or "top_k=9 must be in [1, 8] experts";
    empty if all is well. Nothing is computed: gate and router are traced with arrays without
    values. `losses` are those that the method asks for; without `num_modalities` (the modalities
    that the method routes) what depends on it is not checked.
    """
    found = [*_choices(options), *_names(options, losses)]
    found = found or [*_functions(options)]
    if isinstance(options, SoftOptions):  # the same gate, before the router 'soft'
        shared = ("gate", "num_experts", "rank", "gate_options")
        options = MoEOptions(router="soft", **{f: getattr(options, f) for f in shared}, top_k=1)
    if found:
        return found
    found = _traced(options, num_modalities, losses)
    for part in ("gate", "router"):  # without what was wrong with the one, is the other right?
        if options.gate_options and options.router_options and f"moe.{part}: " in "".join(found):
            other = dataclasses.replace(options, **{f"{part}_options": {}})
            more = _traced(other, num_modalities, losses)
            found += [text for text in more if not text.startswith(f"moe.{part}: ")]
    return [" ".join(text.removeprefix("moe.").split()) for text in dict.fromkeys(found)]


def grouped(router: str) -> bool:
    """Whether a router knows groups of experts."""
    if router == "product_keys":
        return False
    taken = inspect.signature(resolve(router, "m4.moe.routers")).parameters
    return not {"num_groups", "outer_NG"}.isdisjoint(taken)


def _traced(options, num_modalities, losses) -> list[str]:
    """What `_trace` raises, at most one line."""
    try:
        _trace(options, num_modalities, losses)
    except route.MissingInput as error:
        given = any(route.shape_of(n)[:1] == "N" for n in str(error).split())
        return [] if given else [str(error)]  # the method gives what there is of every token
    except (ValueError, TypeError) as error:
        return [str(error)]
    return []


def _choices(options) -> Iterator[str]:
    """Values that their fields do not have, and numbers out of range."""
    hints = get_type_hints(type(options))
    for field in dataclasses.fields(options):
        name, value = field.name, getattr(options, field.name)
        allowed = [c for hint in (hints[name], *get_args(hints[name])) for c in _literal(hint)]
        if type(None) in get_args(hints[name]):
            if value is None:
                continue
            hints[name] = get_args(hints[name])[0]
        if allowed and value not in allowed:
            yield f"{name}={value!r}: unknown; {_nearest(value, allowed)}"
        elif hints[name] is int:
            if isinstance(value, bool) or not isinstance(value, int):
                yield f"{name}={value!r} must be a whole number"
            elif value < LEAST.get(name, 1):
                yield f"{name}={value} must be at least {LEAST.get(name, 1)}"
        elif hints[name] is float and not value > 0:
            yield f"{name}={value} must be positive"
    if getattr(options, "replicas", 0) > options.num_experts:
        yield f"replicas={options.replicas} must be at most num_experts={options.num_experts}"


def _literal(hint):
    return get_args(hint) if get_origin(hint) is Literal else ()


def _nearest(name, allowed):
    close = difflib.get_close_matches(str(name), map(str, allowed), 1)
    return f"did you mean {close[0]}?" if close else "choose one of " + ", ".join(map(str, allowed))


def _names(options, losses) -> Iterator[str]:
    """Names of nothing."""
    named = [(f, getattr(options, f, None)) for f in ROOMS if f != "losses"]
    for field, name in named + [("losses", name) for name in losses]:
        if name is None or (field, name) == ("router", "product_keys"):
            continue
        try:
            resolve(name, f"m4.moe.{ROOMS[field][0]}")
        except (ValueError, ImportError) as error:
            hint = f"unknown; {_nearest(name, choices(field))}"
            hint = str(error) if ":" in name else hint
            yield f"{field}={name!r}: {hint}"


def _functions(options) -> Iterator[str]:
    """Activations that fail, or whose result has another shape."""
    units_ECF = jax.ShapeDtypeStruct((2, 3, 4), jnp.float32)
    for field in ("activation", "output"):
        name = getattr(options, field)
        try:
            found = name and jax.eval_shape(resolve(name, "m4.moe.experts"), units_ECF)
            if name and getattr(found, "shape", None) != units_ECF.shape:
                yield f"{field}={name!r}: must return an array of the shape that it takes"
        except Exception as error:  # of foreign code
            yield f"{field}={name!r}: fails: {type(error).__name__}: {error}"


def _positional(function) -> tuple[str, ...]:
    hints = get_type_hints(function, include_extras=True)
    return tuple(
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY
        and get_origin(hints.get(name)) is not Annotated
    )


def _trace(options, num_modalities, losses):
    """Gate, router and losses on arrays without values, for what they raise."""
    if options.router == "product_keys":
        keys, x_ND = ProductKeys.of(options, losses), jnp.ones((8, 4))
        jax.eval_shape(lambda: keys.init(jax.random.key(0), x_ND, jnp.ones(8, bool)))
        return
    own = (num_modalities or 1) if options.share == "disjoint" else 1
    num, width, reach = 8, 4, route.reach(options.num_experts, options.top_k, own)
    parts = route.Parts.of(
        options.gate,
        options.router,
        options.outer_gate,
        options.gate_options,
        options.router_options,
    )
    dims = {"D": width, "E": reach * options.num_slots, "R": options.rank, "Q": width}
    declared = parts.declared(dims | {"G": options.num_groups})
    parts = _tried(parts, (num, dims["E"]))
    params = {
        part: {
            name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, (shape, _) in arrays.items()
        }
        for part, arrays in declared.items()
    }
    whole_N, valid_N = jax.ShapeDtypeStruct((num,), jnp.int32), jax.ShapeDtypeStruct((num,), bool)
    tokens = dict.fromkeys(("modality_N", "slot_N", "pattern_N", "task_N", "gate_N"), whole_N)
    tokens |= {
        name: jax.ShapeDtypeStruct((num, width), jnp.float32) for name in ("x_ND", "query_NQ")
    }
    others = {"num_modalities": num_modalities or 1, "num_rows": 1, "num_experts": reach}
    others |= {"num_groups": options.num_groups, "k": options.top_k, "train": False, "num_tasks": 1}

    def run(params, valid_N, tokens):
        routing = parts.route(params, valid_N, route.Inputs(tokens, others))
        if options.share != "joint" and (routing.tokens is not None or routing.combine is not None):
            raise ValueError("share must be 'joint': this router cannot have several gates")
        given = {"allowed_GE": jnp.ones((1, reach), bool), **others, **tokens}
        given |= {n: a[None] for n, a in params["router"].items()}
        for name in losses:
            try:
                route.call(resolve(name, "m4.moe.losses"), routing, **given)
            except ValueError as error:
                raise type(error)(f"losses: {error}") from None
        return routing

    jax.eval_shape(run, params, valid_N, tokens)


def _tried(parts, scores):
    """The same gate and router, of which a failure or a wrong result is a ValueError."""

    def tried(function, right, what):
        @functools.wraps(function)
        def tries(*args, **given):
            try:
                found = function(*args, **given)
            except ValueError:
                raise
            except Exception as error:  # of foreign code, on arrays without values
                reason = f"{type(error).__name__}: {error}"
                raise ValueError(f"{function.__name__} fails: {reason}") from error
            if not right(found):
                raise ValueError(f"{function.__name__} must return {what}")
            return found

        return tries

    gate = tried(parts.gate, lambda found: jnp.shape(found) == scores, "scores of shape [N, E]")
    router = tried(parts.router, lambda found: isinstance(found, Routing), "a Routing")
    return dataclasses.replace(parts, gate=gate, router=router)
