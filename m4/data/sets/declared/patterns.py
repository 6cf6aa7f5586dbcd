"""Code patterns in the language of RE2, which needs time in proportion to the text.

Python's own engine may need for ever, whatever pattern a file asks for.
"""

import re

import pyarrow as pa
import pyarrow.compute as pc


def pattern(text: str) -> str:
    """What matches a whole code: of a regular expression after `re:`, or of `*` and `?`."""
    if not text.startswith("re:"):
        text = "re:" + re.escape(text).replace(r"\*", ".*").replace(r"\?", ".")
    return rf"\A(?s:{text[3:]})\z"


def problem(text: str) -> str | None:
    """Why a text is no pattern, in words that follow it; else None."""
    try:
        pc.match_substring_regex(pa.array([""]), pattern(text))
    except pa.ArrowInvalid as error:
        reason = str(error).partition("expression: ")[2].partition(";")[0]
        return f"is no regular expression of RE2, the engine that is used: {reason or 'refused'}"
    return None
