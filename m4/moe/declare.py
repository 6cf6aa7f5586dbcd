"""How a gate, router or balance loss says what it needs: by its signature.

A parameter is an argument annotated with its initialiser; its name's suffix is its shape:

    def gaussian(x_ND, centre_DE: Annotated[Array, nn.initializers.normal(0.1)]): ...

declares one learned array `centre` of shape (D, E). A name without a suffix is a scalar. Every
other argument is an input (`key`, `modality_N`, ...) or an option with a default. `layer.py`
creates the parameters and passes each function the arguments that it names, so that adding a
gate is writing one function.

Letters: D token width, E experts, G groups, R rank, Q width of a query token, M modalities.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_origin, get_type_hints

Initialiser = Callable[..., Any]


def parameters(
    function: Callable, dims: Mapping[str, int]
) -> dict[str, tuple[tuple[int, ...], Initialiser]]:
    """Declared parameters of `function`: argument name -> (shape, initialiser).

    Raises ValueError for a shape letter that `dims` does not know.
    """
    declared = {}
    for argument, hint in get_type_hints(function, include_extras=True).items():
        if argument == "return" or get_origin(hint) is not Annotated:
            continue
        letters = shape_of(argument)
        unknown = [letter for letter in letters if letter not in dims]
        if unknown:
            raise ValueError(
                f"{function.__name__}: parameter {argument} has unknown dimensions {unknown}; "
                f"known here: {', '.join(sorted(dims))}"
            )
        declared[argument] = (tuple(dims[letter] for letter in letters), hint.__metadata__[0])
    return declared


def stem(argument: str) -> str:
    """The argument's name without its shape: `centre_DE` -> `centre`, `log_tau` -> `log_tau`."""
    letters = shape_of(argument)
    return argument.removesuffix(f"_{letters}") if letters else argument


def shape_of(argument: str) -> str:
    """The suffix that spells the shape: `centre_DE` -> `DE`, `log_tau` -> nothing."""
    suffix = argument.rpartition("_")[2]
    return suffix if "_" in argument and suffix.isupper() else ""


def call(function: Callable, *args: Any, options: Mapping[str, Any], **available: Any) -> Any:
    """Call `function` with `args`, the user's `options` and those of `available` that it names.

    Raises ValueError for an option that the function does not take, and for a required argument
    that is missing or None.
    """
    signature = inspect.signature(function).parameters
    names = list(signature)[len(args) :]
    unknown = sorted(set(options) - {n for n in names if n not in available})
    if unknown:
        known = [n for n in names if n not in available]
        raise ValueError(
            f"{function.__name__} takes no option {', '.join(unknown)}; it has: {', '.join(known)}"
        )
    given = {name: available[name] for name in names if available.get(name) is not None}
    missing = [
        name
        for name in names
        if signature[name].default is inspect.Parameter.empty
        and name not in given
        and name not in options
    ]
    if missing:
        raise ValueError(f"{function.__name__} needs {', '.join(missing)}, which was not given")
    return function(*args, **given, **options)
