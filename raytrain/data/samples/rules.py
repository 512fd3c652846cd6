"""Which fields of a batch go together how, and what may become of them: before anything starts, not in the workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raytrain.config.data import Arrival, Collate, Normalize
from raytrain.data.samples.collate import Collation, Pad, Ragged, can_fill, padded_names
from raytrain.data.samples.fields import DTYPES, Field, Schema, np_dtype
from raytrain.errors import ConfigError, nearest


def parse_collation(name: str, given: Any) -> Collation:
    """As a job file or a script has it.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(given, Pad | Ragged):
        return given
    if isinstance(given, Collate):
        return Ragged() if given.padded is None else Pad(**dict(given.padded))
    if given in ("padded", "ragged"):
        return Pad() if given == "padded" else Ragged()
    raise ConfigError(f"collate: `{name}` is to be padded() or ragged(), from raytrain.data (given: {given!r})")


def collated(schema: Schema, collations: Mapping[str, Collation]) -> Schema:
    """What a batch's fields are, by sample.

    Raises:
        ConfigError: a field that has no length, that cannot hold what it is padded with, or one whose name is taken.
    """
    for name, rule in collations.items():
        what = schema.get(name, Field())
        if not what.may_be_array or what.shape == ():
            raise ConfigError(f"collate: field `{name}` is {what}, which has no axis whose length could vary")
        if isinstance(rule, Ragged):
            continue
        if what.shape is not None and rule.axes[-1] >= len(what.shape):
            raise ConfigError(f"collate: field `{name}` is {what}, which has no axis {rule.axes[-1]} that could vary")
        if what.dtype and not can_fill(rule.value, np_dtype(what.dtype)):
            raise ConfigError(f"collate: `{name}` is padded with {rule.value:g}, which {what.dtype} cannot hold")
        mask, length = padded_names(name)
        for each in (mask, length):
            if each in schema:
                raise ConfigError(f"collate: padding `{name}` makes a field `{each}`, and there is one; rename it")
        axes = len(rule.axes)
        sizes = () if axes == 1 else (axes,)
        schema = schema.but(**{mask: Field("bool", (None,) * axes), length: Field("int64", sizes)})
    return schema


def check_arrivals(schema: Schema, fields: Mapping[str, Arrival], normalize: Normalize | None = None) -> None:
    """Whether what is to become of fields on the device can.

    Args:
        normalize: of all images.

    Raises:
        ConfigError: there is no such field or type, it is no array, or has other axes or channels.
    """
    schema.check_has(fields, "data.fields")
    for name, what in schema.items():
        own = fields.get(name, Arrival())
        if own.normalize is not None:
            _check_channels(f"data.fields.{name}.normalize", own.normalize, name, what)
        elif normalize is not None and what.kind == "image" and what.may_be_array:
            _check_channels("data.normalize", normalize, name, what)
    for name, each in fields.items():
        what = schema.get(name, Field())
        if each.dtype is not None and each.dtype not in DTYPES:
            raise ConfigError(
                f"data.fields.{name}: unknown dtype {each.dtype!r}{nearest(each.dtype, DTYPES)} (known: "
                f"{', '.join(DTYPES)})"
            )
        if not what.may_be_array and each != Arrival():
            raise ConfigError(f"data.fields.{name}: field `{name}` is {what}, which arrives as it was sent")
        if each.channels_first and what.shape is not None and len(what.shape) != 3:
            raise ConfigError(
                f"data.fields.{name}: field `{name}` is {what}; channels_first is for (height, width, channels)"
            )


def _check_channels(key: str, normalize: Normalize, name: str, what: Field) -> None:
    channels = None if what.shape is None else what.shape[-1] if what.shape else 1
    for part, numbers in (("mean", normalize.mean), ("std", normalize.std)):
        if channels is not None and len(numbers) not in (1, channels):
            raise ConfigError(
                f"{key}.{part} has {len(numbers)} numbers, and field `{name}` is {what}; give one, or {channels}"
            )
