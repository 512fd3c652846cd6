"""What becomes of fields on the device."""

from __future__ import annotations

import pytest
import torch

from raytrain.config.data import Arrival, Normalize
from raytrain.data import Field
from raytrain.data.samples.fields import Schema
from raytrain.device.arrival import Arrived, Receiver, arrivals

SCHEMA = Schema(
    {
        "image": Field("uint8", (None, None, 3), "image"),
        "mask": Field("uint8", (None, None), "mask"),
        "photo": Field("bytes", (), "image"),
        "label": Field("int64", ()),
        "name": Field("text", ()),
    }
)
NORMALIZE = Normalize(mean=(0.25, 0.5, 0.75), std=(0.5, 0.25, 0.125))


def test_an_image_is_float32_and_channels_first_and_all_else_as_it_was_sent():
    assert arrivals(SCHEMA, {}, NORMALIZE) == {"image": Arrived(torch.float32, True, NORMALIZE)}
    assert arrivals(SCHEMA, {}, None) == {"image": Arrived(torch.float32, True)}


def test_a_field_may_have_something_else_become_of_it():
    own = Normalize(scale=1.0)
    fields = {
        "image": Arrival(dtype="uint8", channels_first=False, normalize=own),
        "mask": Arrival(dtype="int64"),
        "later": Arrival(dtype="bfloat16"),
    }
    assert arrivals(SCHEMA, fields, NORMALIZE) == {
        "image": Arrived(torch.uint8, False, own),
        "mask": Arrived(torch.int64),
        "later": Arrived(torch.bfloat16),
    }


def normalized(value: torch.Tensor, by: Normalize) -> torch.Tensor:
    return (value * by.scale - torch.tensor(by.mean)) / torch.tensor(by.std)


@pytest.mark.parametrize("first", [True, False])
def test_images_are_normalised_channel_by_channel_wherever_their_channels_are(first):
    image = torch.randint(0, 256, (2, 3, 4, 3), dtype=torch.uint8)  # as high as there are channels
    found = Receiver({"image": Arrived(torch.float32, first, NORMALIZE)}, torch.device("cpu")).ready("image", image)
    expected = normalized(image, NORMALIZE)
    torch.testing.assert_close(found, expected.permute(0, 3, 1, 2) if first else expected)
    assert found.permute(0, 2, 3, 1).is_contiguous() if first else found.is_contiguous(), "memory as it was sent"


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 2, 2)])
def test_numbers_and_rows_of_them_are_normalised_and_keep_their_shape(shape):
    by = Normalize(scale=1, mean=(40.0,), std=(10.0,))
    value = torch.rand(shape) * 100
    found = Receiver({"age": Arrived(normalize=by)}, torch.device("cpu")).ready("age", value)
    assert found.shape == shape
    torch.testing.assert_close(found, (value - 40) / 10)


def test_what_is_not_named_stays_the_tensor_that_it_was():
    value = torch.arange(3)
    receiver = Receiver({"x": Arrived(torch.bfloat16)}, torch.device("cpu"))
    assert receiver.ready("y", value) is value
    assert receiver.ready("x", value).dtype == torch.bfloat16


@pytest.mark.parametrize("by", [NORMALIZE, Normalize(mean=(0.5,), std=(0.25,)), None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, None])
def test_bytes_become_what_arithmetic_makes_of_them_to_the_last_bit(by, dtype):
    """On the CPU a table is looked up in."""
    image = torch.randint(0, 256, (2, 5, 4, 3), dtype=torch.uint8)
    receiver = Receiver({"image": Arrived(dtype, True, by)}, torch.device("cpu"))
    wide = receiver.ready("image", image.to(torch.int16))  # the other way
    assert torch.equal(receiver.ready("image", image), wide if by or dtype else wide.to(torch.uint8))
    none = receiver.ready("image", image[:0])
    assert (none.shape, none.dtype) == ((0, 3, 5, 4), wide.dtype if by or dtype else torch.uint8)


def test_single_bytes_are_looked_up_too():
    receiver = Receiver(
        {"age": Arrived(torch.float32, normalize=Normalize(scale=1, mean=(40.0,)))}, torch.device("cpu")
    )
    assert receiver.ready("age", torch.tensor([0, 40, 255], dtype=torch.uint8)).tolist() == [-40, 0, 215]


@pytest.mark.parametrize("channels", [1, 3, 128, 129, 768])
def test_any_number_of_channels_is_normalised(channels):
    by = Normalize(mean=tuple(n / channels for n in range(channels)), std=(0.5,) * channels)
    value = torch.randint(0, 256, (2, 5, channels), dtype=torch.uint8)
    found = Receiver({"x": Arrived(normalize=by)}, torch.device("cpu")).ready("x", value)
    torch.testing.assert_close(found, normalized(value, by))


def test_an_image_of_a_torchvision_transform_lies_in_memory_as_it_was_sent():
    sent = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    image = sent.permute(0, 2, 3, 1)
    found = Receiver({"image": Arrived(torch.float32, True, NORMALIZE)}, torch.device("cpu")).ready("image", image)
    assert found.is_contiguous()
    torch.testing.assert_close(found, normalized(image, NORMALIZE).permute(0, 3, 1, 2))
