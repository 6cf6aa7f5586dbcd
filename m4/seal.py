"""JSON documents that hold a digest of themselves, so that damage to them is noticed.

It detects accidents, not malice.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

KEY = "sha256"


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document as it will be read, with the digest of its other keys under `KEY`."""
    body = json.loads(json.dumps({k: v for k, v in document.items() if k != KEY}))
    return body | {KEY: _digest(body)}


def intact(document: Any) -> bool:
    """Whether it is a sealed document and nothing in it has changed since."""
    if not isinstance(document, dict) or KEY not in document:
        return False
    return document[KEY] == _digest({k: v for k, v in document.items() if k != KEY})


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
