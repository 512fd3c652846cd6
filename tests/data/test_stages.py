"""Stages against references: torchvision for the blur and the crop, Pillow for decoding."""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from raytrain.data.stages import color, images, registry
from raytrain.data.stages.stage import stage
from raytrain.data.stages.torchvision import DRAWS_NOTHING, torchvision
from raytrain.errors import ConfigError


def rng(seed=0):
    return np.random.default_rng(seed)


def photo(height=40, width=60, seed=0):
    noise = rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(image, kind="JPEG", **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return np.frombuffer(file.getvalue(), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_decode_agrees_with_pillow(kind):
    data = encoded(photo(), kind)
    expected = np.asarray(Image.open(io.BytesIO(data.tobytes())).convert("RGB"))
    difference = np.abs(images.decode_image(data).astype(int) - expected)
    assert difference.max() <= (3 if kind == "JPEG" else 1 if kind == "WEBP" else 0)


def test_decode_turns_the_image_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    assert images.decode_image(encoded(photo(40, 60), exif=exif)).shape == (60, 40, 3)


def test_decode_gives_grey_images_three_channels():
    assert images.decode_image(encoded(photo()[:, :, 0])).shape == (40, 60, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_image_is_corrupt_not_grey(kind):
    data = encoded(photo(200, 300), kind)
    with pytest.raises(ValueError, match="not a decodable image"):
        images.decode_image(data[: len(data) * 2 // 3])


@pytest.mark.parametrize("data", [b"", b"not an image", b"\xff\xd8\xff"])
def test_what_is_no_image_is_corrupt(data):
    with pytest.raises(ValueError, match="not a decodable image"):
        images.decode_image(np.frombuffer(data, dtype=np.uint8))


def test_a_jpeg_with_bytes_behind_its_end_is_whole():
    data = np.concatenate([encoded(photo()), np.zeros(500, np.uint8)])
    assert images.decode_image(data).shape == (40, 60, 3)


def test_ten_blurs_agree_with_torchvision():
    image = rng().standard_normal((64, 48, 3), dtype=np.float32)
    ours = images.gaussian_blur_image(image, rng(3), kernel=11, sigma=(0.1, 2.0), times=10)
    theirs = torch.from_numpy(image).permute(2, 0, 1)
    for sigma in rng(3).uniform(0.1, 2.0, 10):
        theirs = F.gaussian_blur(theirs, [11, 11], [float(sigma)] * 2)
    assert np.abs(ours - theirs.permute(1, 2, 0).numpy()).max() < 1e-5


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
    assert np.array_equal(images.gaussian_blur(times=3)(image, rng(2)), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_color_changes_agree_with_torchvision(name, channels, dtype):
    image = (photo()[..., :channels] / (1 if dtype == np.uint8 else 255)).astype(dtype)
    for factor in (0.0, 0.5, 1.0, 1.7):
        result = getattr(color, f"adjust_{name}")(image, factor)
        expected = getattr(F, f"adjust_{name}")(torch.from_numpy(image).permute(2, 0, 1), factor).permute(1, 2, 0)
        assert (result.dtype, result.shape) == (dtype, image.shape)
        difference = np.abs(result.astype(float) - expected.numpy())
        assert difference.max() <= (1 if dtype == np.uint8 else 1e-5)


def test_color_jitter_draws_each_change_and_their_order():
    stage, image = images.color_jitter(brightness=0.4, contrast=0.4, saturation=0.4), photo()
    assert stage.random
    assert np.array_equal(stage(image, rng(3)), stage(image, rng(3)))
    assert len({stage(image, rng(seed)).tobytes() for seed in range(9)}) == 9
    assert np.array_equal(images.color_jitter()(image, rng()), image)
    drawn = rng(5)
    brightness = drawn.uniform(0.6, 1.4)
    assert np.array_equal(
        images.color_jitter(brightness=0.4)(image, rng(5)), color.adjust_brightness(image, brightness)
    )


def test_a_torchvision_transform_takes_a_mirrored_image_and_leaves_its_order_in_memory():
    image = images.flip(1.0)(photo(), rng())
    result = torchvision("GaussianBlur", kernel_size=3)(image, rng())
    assert result.shape == image.shape
    assert result.transpose(2, 0, 1).flags.c_contiguous


def test_random_resized_crop_draws_boxes_as_torchvision_does():
    torch.manual_seed(0)
    transform, image = v2.RandomResizedCrop(32), torch.zeros(3, 300, 400)
    theirs = [transform.make_params([image]) for _ in range(2000)]
    ours = [
        images.random_box(300, 400, generator, (0.08, 1.0), (3 / 4, 4 / 3)) for generator in [rng()] for _ in theirs
    ]
    for name, column in {"top": 0, "left": 1, "height": 2, "width": 3}.items():
        for share in (0.25, 0.5, 0.75):
            expected = np.quantile([box[name] for box in theirs], share)
            assert abs(np.quantile([box[column] for box in ours], share) - expected) < 15
    assert images.random_resized_crop_image(photo(300, 400), rng(), 32).shape == (32, 32, 3)


def test_a_crop_that_never_fits_takes_the_middle():
    thin = np.zeros((4, 400, 3), np.uint8)
    assert images.random_resized_crop_image(thin, rng(), 8, scale=(1.0, 1.0), ratio=(1.0, 1.0)).shape == (8, 8, 3)


def test_geometry():
    image = photo(40, 60)
    assert images.resize_image(image, 16).shape == (16, 16, 3)
    assert images.resize_image(image, (10, 20)).shape == (10, 20, 3)
    assert images.resize_image(image[:, :, :1], 80).shape == (80, 80, 1)
    assert images.resize_image(image, (40, 60)) is image
    assert np.array_equal(images.center_crop_image(image, 40), image[:, 10:50])
    assert np.array_equal(images.flip_image(image, rng(), 1.0), image[:, ::-1])
    assert images.flip_image(image, rng(), 0.0) is image
    shifted = {images.random_shift_image(image, rng(seed), 2).tobytes() for seed in range(200)}
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge")
    assert shifted == {padded[y : y + 40, x : x + 60].tobytes() for y in range(5) for x in range(5)}


def test_values():
    image = np.array([[[-3.0, 0.5, 300.0]]], dtype=np.float32)
    assert images.to_uint8_image(image).tolist() == [[[0, 0, 255]]]
    assert images.to_uint8_image(photo(), size=8).shape == (8, 8, 3)
    assert images.cast_image(image, "float16").dtype == np.float16


def test_torchvision_by_name_and_by_value_is_reproducible():
    image = photo()
    by_name = torchvision("ColorJitter", brightness=0.5)
    by_value = registry.as_stage(v2.ColorJitter(brightness=0.5))
    assert by_value.random
    assert by_value.name == "torchvision.ColorJitter"
    results = [stage(image, rng(5)) for stage in (by_name, by_name, by_value)]
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])
    assert not np.array_equal(results[0], by_name(image, rng(6)))
    with pytest.raises(ValueError, match="must return an image tensor"):
        registry.as_stage(v2.Lambda(lambda x: 3))(image, rng())


def test_the_transforms_that_are_said_to_draw_nothing_exist():
    assert {"ToImage", "ConvertImageDtype", "Resize"} <= DRAWS_NOTHING <= set(dir(v2))


def test_torchvision_transforms_that_draw_nothing_stay_in_validation():
    assert not registry.as_stage(v2.Resize(8)).random
    assert not torchvision("CenterCrop", size=8).random
    assert not registry.as_stage(v2.Compose([v2.Resize(8), v2.CenterCrop(4)])).random
    assert registry.as_stage(v2.Compose([v2.Resize(8), v2.RandomCrop(4)])).random
    assert torchvision("CenterCrop", size=8)(photo(), None).shape == (8, 8, 3)
    assert registry.as_stage(v2.Resize((8, 8)))(photo(), None).shape == (8, 8, 3)


def test_a_function_becomes_a_stage_and_tells_whether_it_is_random():
    def darken(image, by=2):
        return image // by

    def jitter(image, rng):
        return image + rng.integers(3)

    assert not registry.as_stage(darken).random
    assert registry.as_stage(jitter).random
    assert stage(darken, by=4)(np.array([8]), None).tolist() == [2]
    assert registry.as_stage(np.flipud).name == "flipud"
    with pytest.raises(ConfigError, match=r"'darken' has no option 'bye'; did you mean 'by'\? \(its options: by\)"):
        stage(darken, bye=3)
    with pytest.raises(ConfigError, match="3 is not a stage"):
        registry.as_stage(3)
    with pytest.raises(ConfigError, match="stage 'two' is called with one array and its options: multiple values"):
        stage(lambda rng, image: image, name="two")
    for without_brackets in (images.resize, "resize"):
        with pytest.raises(ConfigError, match=r"'resize' is not a stage yet: write resize\(...\), with its options"):
            registry.as_stage(without_brackets)


@pytest.mark.parametrize("name", sorted(registry.STAGES))
def test_every_stage_of_a_job_file_can_travel(name):
    options = {
        "resize": {"size": 8},
        "center_crop": {"size": 8},
        "random_resized_crop": {"size": 8},
        "random_shift": {"pixels": 1},
        "cast": {"dtype": "float16"},
        "torchvision": {"transform": "RandomHorizontalFlip"},
    }.get(name, {})
    stage = pickle.loads(pickle.dumps(registry.parse_stage({name: options})))
    sample = encoded(photo()) if name == "decode" else photo().astype(np.float32)
    assert stage(sample, rng()).ndim == 3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resise", r"unknown stage 'resise'; did you mean 'resize'\? \(known: cast, "),
        ({"resize": {"siz": 3}}, r"stage 'resize' has no option 'siz'; did you mean 'size'\? \(its options: size\)"),
        ({"flip": {"x": 3}}, r"stage 'flip' has no option 'x' \(its options: probability\)"),
        ({"decode": {"x": 3}}, r"stage 'decode' has no option 'x' \(it has none\)"),
        ("resize", r"stage 'resize' needs its option 'size' \(its options: size\)"),
        ({"resize": 32}, r"stage 'resize': write its options by name, such as `resize: \{size: 32\}`"),
        ({"cast": "float16"}, r"write its options by name, such as `cast: \{dtype: 'float16'\}`"),
        ({"decode": 32}, r"stage 'decode' has no options \(given: 32\)"),
        (
            {"gaussian_blur": {"sigma": 2}},
            r"'gaussian_blur' does not take the values \{'sigma': 2\}: 'int'",
        ),
        ("nowhere.at_all:f", r"cannot import 'nowhere.at_all:f': there is no module 'nowhere'; put nowhere.py beside"),
        (":f", r"':f' must look like package.module:name"),
        ("math:nothing", r"module 'math' .*has no 'nothing'"),
        ("math:flor", r"module 'math' .*has no 'flor'; did you mean 'floor'\?"),
        ({"gaussian_blur": {"kernel": 4}}, r"kernel must be odd"),
        ({"gaussian_blur": {"sigma": [2, 1]}}, r"sigma must be \[low, high\]"),
        ({"color_jitter": {"contrast": -1}}, r"stage 'color_jitter': contrast must be at least 0 \(given: -1\)"),
        ({"resize": {"size": "big"}}, r"stage 'resize': size must be int \| tuple\[int, int\] \(given: 'big'\)"),
        (
            {"resize": {"size": [8, 8, 8]}},
            r"stage 'resize': size must be int \| tuple\[int, int\] \(given: \(8, 8, 8\)",
        ),
        ({"resize": {"size": "32"}}, r"stage 'resize': size must be int \| tuple\[int, int\] \(given: '32'\)"),
        ({"resize": {"size": True}}, r"stage 'resize': size must be int \| tuple\[int, int\] \(given: True\)"),
        ({"flip": {"probability": "0.5"}}, r"stage 'flip': probability must be float \(given: '0.5'\)"),
        ({"gaussian_blur": {"kernel": 3.0}}, r"stage 'gaussian_blur': kernel must be int \(given: 3.0\)"),
        (
            {"gaussian_blur": {"sigma": [1]}},
            r"stage 'gaussian_blur': sigma must be tuple\[float, float\] \(given: \(1,\)",
        ),
        (
            {"random_resized_crop": {"size": 8, "scale": [0.9, 0.1]}},
            r"scale must be \[low, high\] with 0 < low <= high",
        ),
        ({"random_resized_crop": {"size": 8, "ratio": [0, 0]}}, r"ratio must be \[low, high\] with 0 < low <= high"),
        ({"resize": {"size": [8, 0]}}, r"stage 'resize': size must be at least 1 \(given: \(8, 0\)\)"),
        ({"center_crop": {"size": 0}}, r"stage 'center_crop': size must be at least 1"),
        ({"random_resized_crop": {"size": -1}}, r"stage 'random_resized_crop': size must be at least 1"),
        ({"random_resized_crop": {"size": 8, "scale": [0.5, 2]}}, r"scale must be from 0 to 1 \(given: \(0.5, 2\)\)"),
        ({"flip": {"probability": 1.5}}, r"stage 'flip': probability must be from 0 to 1 \(given: 1.5\)"),
        ({"random_shift": {"pixels": -1}}, r"stage 'random_shift': pixels must be at least 0"),
        ({"random_shift": {"pixels": 1.5}}, r"stage 'random_shift': pixels must be int \(given: 1.5\)"),
        ({"gaussian_blur": {"times": 0}}, r"stage 'gaussian_blur': times must be at least 1"),
        ({"to_uint8": {"size": 0}}, r"stage 'to_uint8': size must be at least 1"),
        ({"cast": {"dtype": "flaot16"}}, r"unknown dtype 'flaot16'; did you mean 'float16'"),
    ],
)
def test_a_wrong_stage_is_one_clear_line(spec, message):
    with pytest.raises(ConfigError) as caught:
        registry.parse_stage(spec)
    assert re.search(message, str(caught.value)), str(caught.value)


@pytest.mark.parametrize(
    ("transform", "options", "message"),
    [
        ("ColourJitter", {}, "torchvision has no transform 'ColourJitter'; did you mean 'ColorJitter'?"),
        ("ColorJitter", {"brightnes": 1}, r"torchvision's ColorJitter does not take {'brightnes': 1}: "),
        ("GaussianBlur", {"kernel_size": 4}, r"torchvision's GaussianBlur does not take {'kernel_size': 4}: "),
    ],
)
def test_a_transform_that_torchvision_does_not_make_is_told_at_the_first_sample(transform, options, message):
    with pytest.raises(ConfigError) as caught:
        torchvision(transform, **options)(photo(), rng())
    assert str(caught.value).startswith(message), str(caught.value)


def test_options_of_a_torchvision_transform_may_be_lists():
    assert torchvision("Resize", size=[8, 6])(photo(), None).shape == (8, 6, 3)


def test_a_stage_of_any_module():
    assert registry.parse_stage({"numpy:clip": {"a_min": 0, "a_max": 1}})(np.array([5]), None).tolist() == [1]


def test_every_stage_of_a_job_file_can_be_imported_and_stands_in_the_guide():
    import raytrain.data
    from raytrain.data.stages.registry import STAGES

    guide = (Path(__file__).parents[2] / "docs" / "guide.md").read_text()
    sources = {"image_folder", "parquet", "synthetic", "webdataset"}
    assert set(STAGES) == set(raytrain.data.__all__) - sources - {"stage"}
    for name in STAGES:
        assert callable(getattr(raytrain.data, name))
        assert f"`{name}`" in guide or f"`{name}:" in guide, name
