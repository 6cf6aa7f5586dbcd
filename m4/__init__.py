"""m4: multimodal, multitask mixture-of-experts on incomplete data.

    model = m4.fit("fusemoe_mimic:tiny")        # or m4.load("runs/demo")
    model.predict(df), model.evaluate(df), model.explain(df)

`m4.data.open` is a data set, `m4.moe.MoE` one layer for a model of your own. All of it is imported
when it is asked for.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
USE = "research use only; not a medical device"  # said in every file that leaves m4
__all__ = ["Model", "__version__", "data", "errors", "export", "fit", "load", "moe"]  # pyright: ignore
_HOME = {"fit": "fit", "load": "loaded", "Model": "loaded"}  # files of m4/api


def __getattr__(name: str) -> Any:
    """The public names, and the rooms that have some of their own."""
    if name in _HOME:
        return getattr(importlib.import_module(f"m4.api.{_HOME[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"m4.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
