"""Which fields of a batch go together how: before anything starts, and not in the workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raytrain.config.data import Collate
from raytrain.data.samples.collate import Collation, Pad, Ragged, padded_names
from raytrain.data.samples.fields import Field, Schema
from raytrain.errors import ConfigError


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
        ConfigError: a field that has no length, or one whose name is taken.
    """
    for name, rule in collations.items():
        what = schema.get(name, Field())
        if not what.may_be_array or what.shape == ():
            raise ConfigError(f"collate: field `{name}` is {what}, which has no axis whose length could vary")
        if isinstance(rule, Ragged):
            continue
        mask, length = padded_names(name)
        for each in (mask, length):
            if each in schema:
                raise ConfigError(f"collate: padding `{name}` makes a field `{each}`, and there is one; rename it")
        axes = len(rule.axes)
        sizes = () if axes == 1 else (axes,)
        schema = schema.but(**{mask: Field("bool", (None,) * axes), length: Field("int64", sizes)})
    return schema
