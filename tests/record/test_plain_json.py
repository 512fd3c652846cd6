"""JSON that only Python reads, or that nobody can write again, is none."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from of_models import anything

from raytrain.errors import ConfigError, RaytrainError, nearest
from raytrain.record.plain_json import from_json
from raytrain.record.schema import parse_record


@given(anything)
def test_what_json_can_say_comes_back(value):
    assert from_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "[Infinity]",
        '{"a": -Infinity}',
        "1e999",
        "-1e999",
        '"\\ud800"',
        "[" * 100_000,
        "9" * 5000,
        "1" + "0" * 20,
        "",
        "{'a': 1}",
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError):
        from_json(text)
    with pytest.raises(ConfigError, match=r"^record\.json is not JSON, or was cut off$"):
        parse_record(text, "record.json")


def test_a_pair_of_surrogates_is_text():
    assert from_json('"\\ud83e\\udd99"') == "\U0001f999"


@given(st.text())
def test_a_message_is_one_line_that_can_be_printed(text):
    said = str(RaytrainError(f"a\n{text}"))
    assert said.isprintable() and said.startswith("a\\n")
    said.encode()


def test_a_name_as_long_as_a_book_is_near_to_nothing():
    began = time.process_time()
    assert nearest("sagemake" + "re" * 50_000, ["sagemaker"]) == "" == nearest("sagemaker", ["re" * 50_000])
    assert time.process_time() - began < 0.5
    assert nearest("sagemakre", ["sagemaker", "re" * 50_000]) == "; did you mean 'sagemaker'?"


def test_a_long_message_keeps_its_ends():
    said = str(RaytrainError("first " + "x" * 100_000 + " last"))
    assert len(said) < 3_000 and said.startswith("first x") and said.endswith("x last")
