"""What a sample is: named fields, and what is known of each before any has been seen.

Imported by every preprocessing worker: NumPy and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from raytrain.errors import ConfigError, nearest

Sample = dict[str, Any]
"""By field: a NumPy array or number, bytes, or text."""

Kind = Literal["", "image", "mask", "boxes"]
KINDS: tuple[Kind, ...] = ("image", "mask", "boxes")
IMAGE = "image"  # a field of this name that has three axes is an image, unless its source says something else

BFLOAT16 = "bfloat16"
TEXT, BYTES = "text", "bytes"
DTYPES = (
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *("float16", BFLOAT16, "float32", "float64", "complex64", "complex128"),
)


@dataclass(frozen=True)
class Field:
    """What one field of every sample is.

    Attributes:
        dtype: a name of NumPy's, `bfloat16`, `bytes` or `text`; empty where nobody knows.
        shape: None for an axis that varies; None in its place where nobody knows how many there are.
        kind: what geometry does to it. An `image` is (height, width, channels), a `mask` (height, width) or (height,
            width, channels), `boxes` are (number, 4) of left, top, right and bottom in pixels. Encoded images and masks
            are `bytes`.
        classes: names by value.
    """

    dtype: str = ""
    shape: tuple[int | None, ...] | None = None
    kind: Kind = ""
    classes: tuple[str, ...] = ()

    @property
    def is_encoded(self) -> bool:
        return self.dtype == BYTES and self.kind != ""

    @property
    def may_be_array(self) -> bool:
        return self.dtype not in (BYTES, TEXT)

    def __str__(self) -> str:
        what = self.dtype or "?"
        if self.may_be_array and self.shape != ():
            what += "(?)" if self.shape is None else f"({', '.join('?' if n is None else str(n) for n in self.shape)})"
        return f"{what} {self.kind}" if self.kind else what


ANYTHING = Field()


@dataclass(frozen=True)
class Schema(Mapping[str, Field]):
    """The fields of a sample, in order.

    Args:
        whole: whether there can be no others; not so behind a stage that may return anything.
    """

    fields: Mapping[str, Field] = field(default_factory=dict)
    whole: bool = True

    def __getitem__(self, name: str) -> Field:
        return self.fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def but(self, **changed: Field) -> Schema:
        """With fields added or changed."""
        return replace(self, fields={**self.fields, **changed})

    def of_kind(self, *kinds: Kind) -> tuple[str, ...]:
        """Names of the arrays of these kinds."""
        return tuple(name for name, each in self.items() if each.kind in kinds and each.may_be_array)

    def check_has(self, names: Iterable[str], who: str) -> None:
        """
        Args:
            who: wants them, for the message.

        Raises:
            ConfigError: there is no such field.
        """
        for name in names:
            if name not in self.fields and self.whole:
                raise ConfigError(f"{who} wants field `{name}`{nearest(name, self.fields)}; there are {self.names}")

    @property
    def names(self) -> str:
        """For messages."""
        return ", ".join(f"`{name}`" for name in self.fields) or "none"

    def __str__(self) -> str:
        return ", ".join(f"{name}: {each}" for name, each in self.items()) + ("" if self.whole else ", …")


def encoded_bytes(samples: Iterable[Sample | Exception]) -> int:
    """What was read from files."""
    read = (sample.values() for sample in samples if not isinstance(sample, Exception))
    return sum(len(value) for values in read for value in values if isinstance(value, bytes))


def np_dtype(name: str) -> np.dtype:
    """The NumPy dtype of a name in DTYPES."""
    if name == BFLOAT16:
        import ml_dtypes  # NumPy has none of its own

        found: np.dtype = np.dtype(ml_dtypes.bfloat16)
        return found
    return np.dtype(name)


def field_of(value: Any, name: str = "", kind: Kind = "") -> Field:
    """What a value is, as `values.plain` returns it."""
    if isinstance(value, str):
        return Field(TEXT, ())
    if isinstance(value, bytes):
        return Field(BYTES, (), kind)
    if not kind and name == IMAGE and value.ndim == 3:
        kind = "image"
    return Field(value.dtype.name, value.shape, kind)
