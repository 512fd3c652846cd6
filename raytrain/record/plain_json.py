"""JSON from outside, as its standard has it."""

from __future__ import annotations

import json
import math
from typing import Any

MOST_DIGITS = 20  # of a whole number; 64 bits have 19


def from_json(text: str) -> Any:
    """Without what only Python takes for JSON: NaN, infinite numbers, and half a surrogate pair, which can be neither
    printed nor written again.

    Raises:
        ValueError: it is none, or nested too deep.
    """
    try:
        tree = json.loads(text, parse_constant=_refused, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if "\\u" in text:
        json.dumps(tree, ensure_ascii=False).encode()
    return tree


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"{text[:20]}… is too large a number")
    return int(text)


def _refused(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large a number")
    return number
