"""pyarrow has no types of its own, and makes the functions of `compute` while it is imported."""

from typing import Any

def __getattr__(name: str) -> Any: ...
