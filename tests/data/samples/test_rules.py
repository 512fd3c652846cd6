"""Which fields go together how, and what may become of them: said before anything starts."""

from __future__ import annotations

import pytest

from raytrain.config.data import Arrival, Collate, Normalize, Padded
from raytrain.data import Field, padded, ragged
from raytrain.data.samples.fields import Schema
from raytrain.data.samples.rules import check_arrivals, collated, parse_collation
from raytrain.errors import ConfigError

TOKENS = Schema({"tokens": Field("int64", (None,)), "label": Field("int64", ()), "name": Field("text", ())})


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ("padded", padded()),
        ("ragged", ragged()),
        (padded(3), padded(3)),
        (ragged(), ragged()),
        (Collate(ragged=True), ragged()),
        (
            Collate(padded=Padded(value=-1, axes=(0, 2), multiple_of=8, most=9)),
            padded(-1, axes=(0, 2), multiple_of=8, most=9),
        ),
    ],
)
def test_a_collation_of_a_script_or_a_job_file(given, rule):
    assert parse_collation("tokens", given) == rule


def test_what_is_no_collation_is_refused():
    with pytest.raises(
        ConfigError, match=r"collate: `x` is to be padded\(\) or ragged\(\), from raytrain.data \(given: 3"
    ):
        parse_collation("x", 3)


def test_padding_adds_a_mask_and_lengths():
    made = collated(TOKENS, {"tokens": padded()})
    assert dict(made) == {**TOKENS, "tokens_mask": Field("bool", (None,)), "tokens_length": Field("int64", ())}
    made = collated(Schema({"x": Field("float32", (None, None, 3))}), {"x": padded(axes=(0, 1))})
    assert (made["x_mask"], made["x_length"]) == (Field("bool", (None, None)), Field("int64", (2,)))
    assert collated(TOKENS, {"tokens": ragged()}) == TOKENS


@pytest.mark.parametrize(
    ("schema", "rules", "told"),
    [
        (TOKENS, {"label": padded()}, "collate: field `label` is int64, which has no axis whose length could vary"),
        (TOKENS, {"name": ragged()}, "collate: field `name` is text, which has no axis whose length could vary"),
        (TOKENS, {"tokens": padded(0.5)}, "collate: `tokens` is padded with 0.5, which int64 cannot hold"),
        (
            TOKENS.but(tokens_mask=Field("bool")),
            {"tokens": padded()},
            "collate: padding `tokens` makes a field `tokens_mask`, and there is one; rename it",
        ),
    ],
)
def test_a_collation_that_cannot_be_is_refused(schema, rules, told):
    with pytest.raises(ConfigError) as error:
        collated(schema, rules)
    assert str(error.value) == told


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"token": Arrival()}, "data.fields wants field `token` (did you mean `tokens`?)"),
        ({"tokens": Arrival(dtype="flaot32")}, "data.fields.tokens: unknown dtype 'flaot32'"),
        ({"name": Arrival(dtype="int64")}, "data.fields.name: field `name` is text, which arrives as it was sent"),
        ({"name": Arrival(normalize=Normalize())}, "data.fields.name: field `name` is text, which arrives as it was"),
    ],
)
def test_what_cannot_become_of_a_field_on_the_device_is_refused(fields, told):
    with pytest.raises(ConfigError) as error:
        check_arrivals(TOKENS, fields)
    assert str(error.value).startswith(told.split(" (did")[0])


def test_what_can_become_of_a_field_passes():
    check_arrivals(TOKENS, {"tokens": Arrival(dtype="bfloat16", normalize=Normalize(scale=1)), "name": Arrival()})
    check_arrivals(Schema({}, whole=False), {"later": Arrival(dtype="int32")})
