"""Decoding against Pillow, and the stages that change values against torchvision."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import apply, apply_to, chw, encoded, hwc, photo, rng
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from raytrain.data.stages import color, draws, images
from raytrain.errors import ConfigError


def decoded(data, kind="image"):
    return images.decode_field(data, kind)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_decode_agrees_with_pillow(kind, tmp_path):
    data = encoded(photo(), kind)
    (tmp_path / "x").write_bytes(data)
    expected = np.asarray(Image.open(tmp_path / "x").convert("RGB"))
    difference = np.abs(decoded(data).astype(int) - expected)
    assert difference.max() <= (3 if kind == "JPEG" else 1 if kind == "WEBP" else 0)


def test_decode_turns_the_image_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    assert decoded(encoded(photo(40, 60), exif=exif)).shape == (60, 40, 3)


def test_decode_gives_grey_images_three_channels():
    assert decoded(encoded(photo()[:, :, 0])).shape == (40, 60, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_image_is_corrupt_not_grey(kind):
    data = encoded(photo(200, 300), kind)
    with pytest.raises(ValueError, match="not a decodable image"):
        decoded(data[: len(data) * 2 // 3])


@pytest.mark.parametrize("kind", ["image", "mask"])
@pytest.mark.parametrize("data", [b"", b"not an image", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + bytes(17) + b"\x03"])
def test_what_is_no_image_is_corrupt(data, kind):
    with pytest.raises(ValueError, match="not a decodable image"):
        decoded(data, kind)


def test_a_jpeg_with_bytes_behind_its_end_is_whole():
    assert decoded(encoded(photo()) + bytes(500)).shape == (40, 60, 3)


def test_an_array_needs_no_decoding():
    image = photo()
    assert decoded(image) is image
    assert apply_to(images.decode(), image) is image


NUMBERS = np.arange(12, dtype=np.uint8).reshape(3, 4)


def palette_png(bits: int) -> bytes:
    picture = Image.fromarray(NUMBERS % np.uint8(2**bits - 1))
    picture.putpalette([each * 7 % 256 for each in range(3 * 2**bits)])
    picture.save(file := io.BytesIO(), "PNG", bits=bits)
    return file.getvalue()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_mask_with_a_palette_has_the_numbers_of_its_colours(bits):
    """As the masks of Pascal VOC are stored."""
    data = palette_png(bits)
    assert data[24:26] == bytes([bits, 3])
    assert np.array_equal(decoded(data, "mask"), NUMBERS % np.uint8(2**bits - 1))
    assert decoded(data).shape == (3, 4, 3), "and as an image its colours"


@pytest.mark.parametrize("values", [NUMBERS, NUMBERS.astype(np.uint16) * 3000, NUMBERS % 2 == 1], ids=lambda v: v.dtype)
def test_a_mask_is_as_it_is_stored(values):
    mask = decoded(encoded(values, "PNG"), "mask")
    assert np.array_equal(mask, values)
    assert mask.dtype == (np.uint8 if values.dtype == bool else values.dtype)


def test_a_mask_has_one_channel():
    with pytest.raises(ValueError, match="a mask has one channel, this has 3"):
        decoded(encoded(photo(), "PNG"), "mask")


def test_images_and_masks_are_decoded_together():
    mask = np.tile(NUMBERS, (2, 2))
    sample = {"image": encoded(photo(6, 8), "PNG"), "mask": encoded(mask, "PNG"), "name": "a"}
    result = apply(images.decode(), sample, image="image", mask="mask")
    assert np.array_equal(result["image"], photo(6, 8))
    assert np.array_equal(result["mask"], mask)
    assert result["name"] == "a"


# --- blur ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "level"), [("uint8", 1), ("float32", 1e-6)])
@pytest.mark.parametrize("kernel_size", [1, 3, 11])
def test_a_blur_agrees_with_torchvision(dtype, level, kernel_size):
    image = photo(31, 47, dtype=dtype)
    ours = images.gaussian_blur_image(image, rng(3), kernel_size)
    sigma = float(rng(3).uniform(0.1, 2.0))
    theirs = hwc(F.gaussian_blur(chw(image), [kernel_size] * 2, [sigma] * 2))
    assert ours.dtype == theirs.dtype
    assert np.abs(ours.astype(float) - theirs).max() <= level


def test_a_sigma_alone_is_drawn_from_nothing_else():
    image = photo(dtype="float32")
    ours = apply_to(images.gaussian_blur(5, sigma=1.5), image, rng())
    assert np.abs(ours - hwc(F.gaussian_blur(chw(image), [5, 5], [1.5, 1.5]))).max() < 1e-6


def test_ten_blurs_agree_with_torchvision():
    image = rng().standard_normal((64, 48, 3), dtype=np.float32)
    ours = images.gaussian_blur_image(image, rng(3), 11, sigma=(0.1, 2.0), times=10)
    theirs = chw(image)
    for sigma in rng(3).uniform(0.1, 2.0, 10):
        theirs = F.gaussian_blur(theirs, [11, 11], [float(sigma)] * 2)
    assert np.abs(ours - hwc(theirs)).max() < 1e-5


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3])),
    kernel=st.sampled_from([1, 3, 11]),
    sigmas=st.lists(st.floats(0.1, 3.0), min_size=1, max_size=6),
)
def test_blurs_in_a_row_are_one_blur_whatever_the_border(shape, kernel, sigmas):
    image = rng(1).standard_normal(shape).astype(np.float32)
    expected = image
    for sigma in sigmas:
        expected = cv2.GaussianBlur(expected, (kernel, kernel), sigma, borderType=cv2.BORDER_REFLECT_101)
    taps = images.blur_taps(kernel, sigmas)
    assert len(taps) % 2 == 1
    assert taps.sum() == pytest.approx(1)
    result = cv2.sepFilter2D(image, -1, taps, taps, borderType=cv2.BORDER_REFLECT_101)
    assert np.abs(result - expected).max() < 2e-5


def test_blurs_of_whole_numbers_round_each_time():
    image = photo()
    expected = image
    for sigma in rng(2).uniform(0.1, 2.0, size=3):
        expected = cv2.GaussianBlur(expected, (11, 11), sigma, borderType=cv2.BORDER_REFLECT_101)
    assert np.array_equal(apply_to(images.gaussian_blur(11, times=3), image, rng(2)), expected)


# --- types --------------------------------------------------------------------------------------------------------

EVERY = {
    "uint8": np.arange(256, dtype=np.uint8),
    "uint16": np.arange(65536, dtype=np.uint16),
    "float32": np.linspace(0, 1, 10001, dtype=np.float32),
    "float64": np.linspace(0, 1, 10001),
}


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("to", ["uint8", "uint16", "float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("of", EVERY)
def test_to_dtype_agrees_with_torchvision(of, to, scale):
    """Equal, but for the last digit where torchvision rounds to the new type before it divides, and ours behind it."""
    values = EVERY[of].reshape(-1, 1, 1)
    if (of, to) in {("uint16", "float16"), ("float32", "uint16")}:
        values = values[values < values.max() * 0.9].reshape(-1, 1, 1)  # above, torchvision overflows
    ours = apply_to(images.to_dtype(to, scale=scale), values)
    theirs = F.to_dtype(chw(values), getattr(torch, to), scale=scale).permute(1, 2, 0)
    assert ours.dtype.name == to
    difference = np.abs(ours.astype(np.float64) - theirs.to(torch.float64).numpy())
    levels = {("uint16", "float16"): 2**-11, ("uint16", "bfloat16"): 2**-8, ("float32", "uint16"): 1}
    level = levels.get((of, to), 1e-7 if to == "float64" else 0)
    assert difference.max() <= (level if scale else 0)


def test_whole_numbers_scaled_up_and_down_are_the_same():
    image = EVERY["uint8"].reshape(-1, 1, 1)
    for between in ("uint16", "float32", "float64"):
        there = images.convert(image, between, True)
        assert np.array_equal(images.convert(there, "uint8", True), image), between


def test_half_precision_is_scaled_to_whole_numbers_without_overflow():
    """torchvision makes 0 of 1.0, since float16 has no 255.999."""
    image = np.array([[[0.0], [0.5], [1.0]]], np.float16)
    assert images.convert(image, "uint8", True).ravel().tolist() == [0, 127, 255]


def test_a_type_that_is_no_images_cannot_be_scaled():
    with pytest.raises(TypeError, match="values of int64 cannot be scaled; those can of uint8, uint16"):
        images.convert(np.arange(3), "uint8", True)
    with pytest.raises(ConfigError, match="to_dtype: int64 cannot be scaled to; that can uint8, uint16, float16"):
        images.to_dtype("int64", scale=True)
    with pytest.raises(ConfigError, match="to_dtype: unknown dtype 'flaot16'; did you mean 'float16'"):
        images.to_dtype("flaot16")


def test_to_dtype_takes_any_array():
    sample = {"tokens": np.arange(3), "length": np.int64(3)}
    assert apply(images.to_dtype("int32"), sample)["tokens"].dtype == np.int32
    assert apply(images.to_dtype("float32", on="length"), sample)["length"].dtype == np.float32


def test_to_uint8_rounds_and_clips_without_scaling():
    image = np.array([[[-3.0, 0.5, 300.0], [1.5, 2.4, 254.6]]], dtype=np.float32)
    assert apply_to(images.to_uint8(), image).tolist() == [[[0, 0, 255], [2, 2, 255]]]
    assert images.to_uint8_image(photo()).dtype == np.uint8


# --- colour -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "amounts"),
    [
        ("brightness", (0.0, 0.5, 1.0, 1.7)),
        ("contrast", (0.0, 0.5, 1.0, 1.7)),
        ("saturation", (0.0, 0.5, 1.0, 1.7)),
        ("hue", (-0.5, -0.2, 0.0, 0.1, 0.5)),
    ],
)
def test_color_changes_agree_with_torchvision(name, amounts, channels, dtype):
    """Within one level of 255: torchvision cuts fractions off where OpenCV rounds."""
    image = photo(31, 47, dtype=dtype)[..., :channels]
    for amount in amounts:
        result = getattr(color, f"adjust_{name}")(image, amount)
        expected = hwc(getattr(F, f"adjust_{name}")(chw(image), amount))
        assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
        difference = np.abs(result.astype(float) - expected)
        assert difference.max() <= (1 if dtype == "uint8" else 1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("number", [1, 3])
def test_grayscale_agrees_with_torchvision(number, channels, dtype):
    image = photo(31, 47, dtype=dtype)[..., :channels]
    result = apply_to(images.grayscale(number), image)
    expected = hwc(F.rgb_to_grayscale(chw(image), number))
    assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
    assert np.abs(result.astype(float) - expected).max() <= (1 if dtype == "uint8" else 1e-6)


def test_random_grayscale_keeps_the_channels():
    image = photo()
    grey = apply_to(images.random_grayscale(1.0), image, rng())
    assert np.array_equal(grey, color.grayscale_image(image, 3))
    assert apply_to(images.random_grayscale(0.0), image, rng()) is image
    drawn = [apply_to(images.random_grayscale(0.3), image, rng(seed)) is not image for seed in range(300)]
    assert 60 < sum(drawn) < 120


def test_color_jitter_draws_each_change_and_their_order():
    stage, image = images.color_jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1), photo()
    assert stage.random
    assert np.array_equal(apply_to(stage, image, rng(3)), apply_to(stage, image, rng(3)))
    assert len({apply_to(stage, image, rng(seed)).tobytes() for seed in range(9)}) == 9
    assert np.array_equal(apply_to(images.color_jitter(), image, rng()), image)
    brightness = rng(5).uniform(0.6, 1.4)
    jittered = apply_to(images.color_jitter(brightness=0.4), image, rng(5))
    assert np.array_equal(jittered, color.adjust_brightness(image, brightness))
    turned = apply_to(images.color_jitter(hue=[0.25, 0.25]), image, rng())
    assert np.array_equal(turned, color.adjust_hue(image, 0.25))
    assert images.color_jitter(1.5).options["brightness"] == (0.0, 2.5)
    assert images.color_jitter(hue=0.2).options["hue"] == (-0.2, 0.2)


@pytest.mark.parametrize(
    "stage", [images.gaussian_blur(3), images.color_jitter(0.5, 0.5, 0.5, 0.5), images.grayscale(), images.to_uint8()]
)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_mirrored_image_has_the_same_values(stage, dtype):
    """Its memory runs backwards, which OpenCV and torch do not take as it is."""
    image = photo(dtype=dtype)
    mirrored = apply_to(stage, image[::-1, ::-1], rng(1))
    assert np.array_equal(mirrored, apply_to(stage, np.ascontiguousarray(image[::-1, ::-1]), rng(1)))


def test_random_erasing_draws_rectangles_as_torchvision_does():
    torch.manual_seed(0)
    transform, image = v2.RandomErasing(p=1.0), torch.zeros(3, 300, 400)
    theirs = [transform.make_params([image]) for _ in range(2000)]
    generator = rng()
    ours = [draws.random_erasing_draws(generator, (300, 400), 1.0) for _ in theirs]
    for name, column in {"i": 0, "j": 1, "h": 2, "w": 3}.items():
        for share in (0.25, 0.5, 0.75):
            expected = np.quantile([box[name] for box in theirs], share)
            assert abs(np.quantile([box[column] for box in ours], share) - expected) < 15


@pytest.mark.parametrize(("height", "width"), [(30, 40), (1, 9), (4, 4)])
def test_what_is_erased_is_what_torchvision_erases(height, width):
    image = photo(height, width)
    for seed in range(20):
        top, left, rows, columns = draws.random_erasing_draws(rng(seed), (height, width), 0.7)
        wanted = F.erase(torch.from_numpy(image).permute(2, 0, 1), top, left, rows, columns, torch.tensor(9))
        found = apply_to(images.random_erasing(0.7, value=9), image, rng(seed))
        assert np.array_equal(found, wanted.permute(1, 2, 0).numpy())
        assert (found is image) == (rows * columns == 0)
    assert draws.random_erasing_draws(rng(), (height, width), 1.0, (9.0, 9.0)) == (0, 0, 0, 0), "it never fits"
    assert draws.random_erasing_draws(rng(), (height, width), 0.0) == (0, 0, 0, 0)
