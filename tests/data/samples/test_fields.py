"""What is known of a sample before any has been seen."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from raytrain.data.samples.fields import DTYPES, Field, Schema, field_of, np_dtype
from raytrain.errors import ConfigError

SCHEMA = Schema(
    {
        "image": Field("uint8", (None, None, 3), "image"),
        "mask": Field("uint8", (None, None), "mask"),
        "photo": Field("bytes", (), "image"),
        "label": Field("int64", ()),
        "name": Field("text", ()),
        "other": Field(),
    }
)


def test_a_schema_reads_as_it_would_be_said():
    assert str(SCHEMA) == (
        "image: uint8(?, ?, 3) image, mask: uint8(?, ?) mask, photo: bytes image, label: int64, name: text, other: ?(?)"
    )
    assert str(Schema({"x": Field("float32")}, whole=False)) == "x: float32(?), …"
    assert SCHEMA.names == "`image`, `mask`, `photo`, `label`, `name`, `other`"
    assert Schema().names == "none"


def test_fields_are_told_apart_by_what_they_may_be():
    assert [name for name, each in SCHEMA.items() if each.is_encoded] == ["photo"]
    assert [name for name, each in SCHEMA.items() if not each.may_be_array] == ["photo", "name"]
    assert SCHEMA.of_kind("image") == ("image",), "an encoded one is no array yet"
    assert SCHEMA.of_kind("image", "mask", "boxes") == ("image", "mask")


def test_a_schema_is_a_mapping_that_is_never_changed():
    more = SCHEMA.but(label=Field("int32", ()), score=Field("float32", ()))
    assert list(more) == [*SCHEMA, "score"]
    assert (more["label"].dtype, SCHEMA["label"].dtype, "score" in SCHEMA) == ("int32", "int64", False)
    assert len(more) == 7 and more.get("nothing") is None


def test_a_field_that_is_not_there_is_told_with_the_nearest():
    SCHEMA.check_has(["image", "label"], "stage 1, `resize`,")
    with pytest.raises(
        ConfigError, match="^stage 1, `resize`, wants field `imag`.*`?image`?.*; there are `image`, `mask`"
    ):
        SCHEMA.check_has(["image", "imag"], "stage 1, `resize`,")
    Schema({}, whole=False).check_has(["anything"], "a stage")


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_has_its_name_in_numpy(name):
    assert np_dtype(name).name == name
    assert np_dtype("bfloat16") == ml_dtypes.bfloat16


@pytest.mark.parametrize(
    ("value", "name", "kind", "what"),
    [
        ("a", "image", "", Field("text", ())),
        (b"a", "image", "", Field("bytes", ())),
        (b"a", "photo", "image", Field("bytes", (), "image")),
        (np.zeros((2, 3, 1), np.uint8), "image", "", Field("uint8", (2, 3, 1), "image")),
        (np.zeros((2, 3, 1), np.uint8), "image", "mask", Field("uint8", (2, 3, 1), "mask")),
        (np.zeros((2, 3, 1), np.uint8), "depth", "", Field("uint8", (2, 3, 1))),
        (np.zeros((2, 3), np.uint8), "image", "", Field("uint8", (2, 3))),
        (np.float32(1), "x", "", Field("float32", ())),
        (np.zeros(2, ">i2"), "x", "", Field("int16", (2,))),
    ],
)
def test_what_a_value_is(value, name, kind, what):
    assert field_of(value, name, kind) == what
