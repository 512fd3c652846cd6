"""What people's data sets and stages give, as what travels."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from raytrain.data.samples.fields import DTYPES, np_dtype
from raytrain.data.samples.values import kind_of, of_image, plain
from raytrain.errors import DataError


def same(found, expected) -> bool:
    return type(found) is type(expected) and found.dtype == expected.dtype and np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, np.bool_(True)),
        (3, np.int64(3)),
        (0.5, np.float64(0.5)),
        (1j, np.complex128(1j)),
        ([1, 2], np.array([1, 2])),
        ((1.0, 2), np.array([1.0, 2.0])),
        ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]])),
        ([True, False], np.array([True, False])),
        ([], np.zeros(0, np.int64)),
        ([[], []], np.zeros((2, 0), np.int64)),
        (np.float16(2), np.float16(2)),
        (torch.tensor([1, 2], dtype=torch.int16), np.array([1, 2], np.int16)),
        (torch.tensor(2.5), np.float32(2.5)),
        (torch.tensor([1.5], requires_grad=True), np.array([1.5], np.float32)),
        (torch.tensor([1.5, -2], dtype=torch.bfloat16), np.array([1.5, -2], ml_dtypes.bfloat16)),
        (torch.tensor([[True]]), np.array([[True]])),
        (Image.new("L", (2, 1), 7), np.full((1, 2, 3), 7, np.uint8)),
        (Image.fromarray(np.full((1, 2), 40_000, np.uint16)), np.full((1, 2, 1), 40_000, np.uint16)),
        (Image.fromarray(np.full((1, 2), 1000.5, np.float32)), np.full((1, 2, 1), 1000.5, np.float32)),
        (tv_tensors.Mask(torch.ones(2, 3, dtype=torch.uint8)), np.ones((2, 3), np.uint8)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_become_numpys(value, expected):
    assert same(plain(value, "it"), expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("é", "é"),
        (b"a", b"a"),
        (bytearray(b"a"), b"a"),
        (memoryview(b"a"), b"a"),
        (np.str_("é"), "é"),
        (np.bytes_(b"a"), b"a"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_strings_are_pythons_own(value, expected):
    found = plain(value, "it")
    assert (type(found), found) == (type(expected), expected)


def test_an_image_of_torchvisions_is_turned_and_another_tensor_is_not():
    chw = torch.arange(24, dtype=torch.uint8).reshape(3, 2, 4)
    assert same(plain(tv_tensors.Image(chw), "it"), chw.permute(1, 2, 0).numpy())
    assert same(plain(chw, "it"), chw.numpy())
    assert of_image(chw).shape == (2, 4, 3)
    assert of_image(tv_tensors.Image(chw)).shape == (3, 2, 4), "which `plain` turns"
    assert of_image(chw[0]).shape == (2, 4)
    assert of_image(chw.numpy()).shape == (3, 2, 4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_every_type_are_taken_as_they_are(dtype):
    value = np.ones((2, 3), np_dtype(dtype))
    assert plain(value, "it") is value


def test_tensors_and_lists_share_what_memory_they_can():
    tensor = torch.zeros(5)
    assert np.shares_memory(plain(tensor, "it"), tensor.numpy())


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (
            None,
            "field `x` is nothing; a field is an array, a tensor, a number, a list of numbers, bytes, text, or a Pil",
        ),
        ({"a": 1}, "field `x` is dict; a field is an array"),
        ([[1], [2, 3]], "field `x` is a list of lists of different lengths; a field is one array"),
        (["a", "b"], "field `x` is a list of something else than numbers: ['a', 'b']"),
        (np.array([None]), "field `x` holds object, which cannot travel; it may be bool, int8,"),
        (np.array(["a"]), "field `x` holds <U1, which cannot travel"),
        (np.zeros(1, "M8[s]"), "field `x` holds datetime64[s], which cannot travel"),
        (2**70, "field `x` holds object, which cannot travel"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_travel_is_told(value, told):
    with pytest.raises(DataError) as error:
        plain(value, "field `x`")
    assert str(error.value).startswith(told)


@pytest.mark.parametrize(
    ("value", "name", "kind"),
    [
        (tv_tensors.Image(torch.zeros(3, 2, 2)), "x", "image"),
        (tv_tensors.Mask(torch.zeros(2, 2)), "x", "mask"),
        (tv_tensors.BoundingBoxes(torch.zeros(1, 4), format="XYXY", canvas_size=(2, 2)), "x", "boxes"),
        (Image.new("RGB", (2, 2)), "x", "image"),
        (b"encoded", "image", "image"),
        (b"encoded", "x", ""),
        (np.zeros((2, 2, 3)), "image", "image"),
        (np.zeros((2, 2, 3)), "x", ""),
        (np.zeros((2, 2)), "image", ""),
        (torch.zeros(3, 2, 2), "image", "image"),
        (3, "image", ""),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_what_geometry_does_to_a_value(value, name, kind):
    assert kind_of(value, name) == kind
