"""From values to columns: what is padded, what is left ragged, and what does not go together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_model import expected_padding, padded_fields

from raytrain.data import padded, ragged
from raytrain.data.samples.collate import PIECE_BYTES, columns_of, padded_names
from raytrain.errors import ConfigError, DataError


def columns(values, rule=None, **options):
    """Of the field `x`."""
    return columns_of([{"x": v} for v in values], {"x": rule} if rule else {}, "sample {}".format, **options)


def array_of(column):
    return column.pieces[0]


# --- padded and ragged --------------------------------------------------------------------------------------------


def test_padding_by_hand():
    made = columns([np.array([1, 2, 3], np.int16), np.array([4], np.int16)], padded(-7))
    assert list(made) == ["x", *padded_names("x")] == ["x", "x_mask", "x_length"]
    assert array_of(made["x"]).tolist() == [[1, 2, 3], [4, -7, -7]]
    assert array_of(made["x_mask"]).tolist() == [[True, True, True], [True, False, False]]
    assert array_of(made["x_length"]).tolist() == [3, 1]
    assert [made[name].dtype for name in made] == ["int16", "bool", "int64"]
    assert {column.form for column in made.values()} == {"dense"}


def test_padding_is_rounded_up_and_cut_off():
    values = [np.arange(n, dtype=np.float32) for n in (5, 2)]
    assert array_of(columns(values, padded(multiple_of=4))["x"]).shape == (2, 8)
    made = columns(values, padded(most=3))
    assert array_of(made["x"]).tolist() == [[0, 1, 2], [0, 1, 0]]
    assert array_of(made["x_length"]).tolist() == [3, 2]
    assert array_of(columns(values, padded(most=3, multiple_of=2))["x"]).shape == (2, 4)


def test_several_axes_are_padded_and_the_first_of_them_cut_off():
    values = [np.ones((1, 4, 2)), np.ones((3, 1, 2))]
    made = columns(values, padded(axes=(0, 1)))
    assert array_of(made["x"]).shape == (2, 3, 4, 2)
    assert array_of(made["x"]).sum(axis=(1, 2, 3)).tolist() == [8, 6]
    assert array_of(made["x_mask"]).shape == (2, 3, 4)
    assert array_of(made["x_length"]).tolist() == [[1, 4], [3, 1]]
    cut = columns([np.ones((2, 5)), np.ones((2, 3))], padded(axes=(1,), most=4))
    assert array_of(cut["x"]).shape == (2, 2, 4)
    assert array_of(cut["x_length"]).tolist() == [4, 3]


def test_values_that_are_all_empty_are_padded_to_one():
    """A model that takes a mean over an axis of no length gets no number."""
    made = columns([np.zeros((0, 2)), np.zeros((0, 2))], padded())
    assert array_of(made["x"]).shape == (2, 1, 2)
    assert not array_of(made["x_mask"]).any()
    assert array_of(made["x_length"]).tolist() == [0, 0]


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 4).flatmap(padded_fields))
def test_padding_is_the_models(drawn):
    made = columns(drawn.values, drawn.rule)
    for name, expected in zip(("x", "x_mask", "x_length"), expected_padding(drawn, drawn.rule), strict=True):
        found = array_of(made[name])
        assert (found.dtype, found.shape, made[name].shape) == (expected.dtype, expected.shape, expected.shape[1:])
        assert found.tobytes() == expected.tobytes()


def test_ragged_by_hand():
    values = [np.array([[1, 2], [3, 4]]), np.zeros((0, 2), int), np.array([[5, 6]])]
    [made] = columns(values, ragged()).values()
    assert (made.form, made.shape, made.lengths.tolist()) == ("ragged", (2,), [2, 0, 1])
    assert array_of(made).tolist() == [[1, 2], [3, 4], [5, 6]]


def test_strings_lie_behind_one_another_with_their_lengths_in_bytes():
    [made] = columns(["é", "", "\udcff"]).values()
    assert (made.form, made.lengths.tolist(), array_of(made).tobytes()) == ("text", [2, 0, 3], b"\xc3\xa9\xed\xb3\xbf")
    [made] = columns([b"a", b"", b"bc"]).values()
    assert (made.form, made.lengths.tolist(), array_of(made).tobytes()) == ("bytes", [1, 0, 2], b"abc")


def test_a_field_that_is_padded_is_one_array_however_large():
    large = np.zeros(PIECE_BYTES, np.uint8)
    assert len(columns([large, large[:-64]], padded())["x"].pieces) == 1
    assert len(columns([large, large])["x"].pieces) == 2


# --- what does not go together ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (np.zeros((2, 3, 1)), np.zeros((2, 4, 1)), "shapes: field `x` is (2, 3, 1) float64 of sample 0 and (2, 4, 1)"),
        (np.zeros(2), np.zeros(3), "float64 of sample 2; have a stage make them alike, or give it a collation"),
        (
            np.zeros((2, 3, 1)),
            np.zeros((1, 3, 1)),
            "; end its stages (those on the CPU) with a resize, or give it a collation (collate: {x:",
        ),
        (np.zeros(2), np.zeros((2, 1)), "shapes: field `x` is (2,) float64 of sample 0 and (2, 1) float64 of sample 2"),
        (np.zeros(2), np.zeros(2, "f4"), "types: field `x` is (2,) float64 of sample 0 and (2,) float32 of sample 2"),
        (np.int64(1), np.float64(1), "types: field `x` is () int64 of sample 0 and () float64 of sample 2"),
        ("a", b"a", "types: field `x` is text of sample 0 and bytes of sample 2; have a stage make them alike"),
        (b"a", np.zeros(1), "types: field `x` is bytes of sample 0 and (1,) float64 of sample 2"),
        (np.zeros(1), "a", "types: field `x` is (1,) float64 of sample 0 and text of sample 2"),
    ],
)
def test_values_that_do_not_go_together_are_told_with_both_samples(one, other, told):
    with pytest.raises(DataError, match="samples come out in different ") as error:
        columns([one, one, other])
    assert told in str(error.value)
    if getattr(one, "ndim", None) != getattr(other, "ndim", None):
        assert "collat" not in str(error.value), "it would not help"


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (ragged(), "have a stage make them alike: `ragged` lets the first axis vary alone"),
        (padded(), "have a stage make them alike, or name what else varies in `axes` of `padded` (now [0])"),
    ],
)
def test_an_axis_that_was_not_to_vary_is_told(rule, told):
    values = [np.zeros((2, 3)), np.zeros((1, 3)), np.zeros((2, 4))]
    with pytest.raises(DataError) as error:
        columns(values, rule)
    expected = "different shapes: field `x` is (2, 3) float64 of sample 0 and (2, 4) float64 of sample 2; "
    assert str(error.value) == f"samples come out in {expected}{told}"


@pytest.mark.parametrize(("rule", "axis"), [(ragged(), 0), (padded(), 0), (padded(axes=(0, 1)), 1)])
def test_a_value_without_the_axis_that_varies_is_told(rule, axis):
    value = np.zeros((2,) * axis)
    shape = str(value.shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(DataError, match=f"field `x` of sample 0 has the shape {shape}, and no axis {axis} that could"):
        columns([value], rule)


@pytest.mark.parametrize(
    ("value", "dtype", "fits"),
    [
        (-100, np.int64, True),
        (-100.0, np.int8, True),
        (-100.0, np.uint8, False),
        (-100, np.uint64, False),
        (0.5, np.int32, False),
        (float("nan"), np.int64, False),
        (float("nan"), np.float16, True),
        (0.1, np.float32, True),
        (2, np.bool_, False),
        (1, np.bool_, True),
    ],
)
def test_what_is_padded_with_must_fit_the_field(value, dtype, fits):
    values = [np.zeros(2, dtype), np.zeros(1, dtype)]
    if fits:
        filled = array_of(columns(values, padded(value))["x"])[1, 1]
        assert np.array_equal(filled, np.asarray(value).astype(dtype), equal_nan=np.dtype(dtype).kind == "f")
        return
    with pytest.raises(DataError, match=f"collate: `x` is padded with {value:g}, which {np.dtype(dtype)} cannot hold"):
        columns(values, padded(value))


def test_samples_with_other_fields_are_told():
    rows = [{"x": np.zeros(1), "y": "a"}, {"y": "a", "x": np.zeros(1)}, {"x": np.zeros(1)}]
    assert list(columns_of(rows[:2], {}, str)) == ["x", "y"], "in whatever order"
    for rows_ in (rows, rows[::-1]):
        with pytest.raises(
            DataError, match="samples come out with different fields: x.* of 0 and .*x.* of [12]; have a"
        ):
            columns_of(rows_, {}, str)


def test_samples_without_fields_are_told():
    with pytest.raises(
        DataError, match="no field is left of sample 0; have its last stage return a dict that has some"
    ):
        columns_of([{}, {}], {}, "sample {}".format)


@pytest.mark.parametrize("value", [np.array([None]), np.zeros(1, "M8[s]"), np.array(["a"]), np.zeros(1, np.longdouble)])
def test_arrays_that_cannot_travel_are_told(value):
    with pytest.raises(
        DataError, match="field `x` of sample 0 is .*, which cannot travel; have a stage make it one of"
    ):
        columns([value])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"multiple_of": 0}, "padded: multiple_of must be a whole number of at least 1 (given: 0)"),
        ({"multiple_of": 2.0}, "padded: multiple_of must be a whole number of at least 1 (given: 2.0)"),
        ({"most": 0}, "padded: most must be a whole number of at least 1 (given: 0)"),
        ({"axes": ()}, "padded: axes must be different axes in order, from 0 (given: [])"),
        ({"axes": (1, 0)}, "padded: axes must be different axes in order, from 0 (given: [1, 0])"),
        ({"axes": (0, 0)}, "padded: axes must be different axes in order, from 0 (given: [0, 0])"),
        ({"axes": (-1,)}, "padded: axes must be different axes in order, from 0 (given: [-1])"),
        ({"axes": 1}, "padded: axes must be different axes in order, from 0 (given: 1)"),
        ({"axes": ["a"]}, "padded: axes must be different axes in order, from 0 (given: ['a'])"),
        ({"value": "0"}, "padded: value must be a number (given: '0')"),
        ({"value": None}, "padded: value must be a number (given: None)"),
    ],
)
def test_padding_that_cannot_be_is_refused(options, told):
    with pytest.raises(ConfigError) as error:
        padded(**options)
    assert str(error.value) == told


@pytest.mark.parametrize("taken", ["x_length", "x_mask"])
@pytest.mark.parametrize("first", [True, False])
def test_padding_leaves_no_field_of_the_samples_own_out(taken, first):
    """Which a stage may have made that did not say so beforehand."""
    x, own = {"x": np.zeros(2)}, {taken: np.int64(7)}
    with pytest.raises(DataError) as error:
        columns_of([x | own if first else own | x], {"x": padded()}, str)
    assert str(error.value) == f"collate: padding `x` makes a field `{taken}`, and there is one; rename it"
