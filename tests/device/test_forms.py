"""The device forms of CPU stages against the stages' own functions, on the CPU."""

from __future__ import annotations

import inspect
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from raytrain.data.stages import color, draws, geometry, images
from raytrain.data.stages.mixing import MIXING
from raytrain.data.stages.registry import STAGES
from raytrain.device.forms import FORMS

DRAWS = {
    geometry.random_crop_field: draws.random_crop_draws,
    geometry.random_resized_crop_field: draws.random_resized_crop_draws,
    geometry.random_horizontal_flip_field: draws.flip_draws,
    geometry.random_vertical_flip_field: draws.flip_draws,
    images.gaussian_blur_image: draws.gaussian_blur_draws,
    color.color_jitter_image: draws.color_jitter_draws,
    color.random_grayscale_image: draws.random_grayscale_draws,
    images.random_erasing_image: draws.random_erasing_draws,
}
DRAWS_NOTHING = {
    geometry.resize_field,
    geometry.center_crop_field,
    color.grayscale_image,
    images.convert,
    images.to_uint8_image,
}
FLOAT = 2e-5  # of values from 0 to 1
MOVED = ("bool", "uint8", "int16", "uint16", "int32", "int64", "float16", "float32", "float64")

seeds = st.integers(0, 2**32 - 1)
sides = st.one_of(st.integers(1, 6), st.integers(7, 48))
sizes = st.one_of(sides, st.tuples(sides, sides))
layouts = st.sampled_from(["channels last", "channels first", "cut out"])
interpolations = st.sampled_from(["bilinear", "bicubic", "nearest"])
examples = settings(deadline=None, max_examples=40)


@st.composite
def batches(draw, dtypes=("uint8", "float32"), channels=(1, 3)):
    """(samples, height, width[, channels]), read-only: noise, few levels, or a ramp."""
    shape = [draw(st.integers(1, 4)), draw(sides), draw(sides), draw(st.sampled_from(channels))]
    shape = shape if shape[-1] else shape[:-1]
    made = np.random.default_rng(draw(seeds)).random(shape)
    look = draw(st.sampled_from(["noise", "black and white", "ramp"]))
    if look == "ramp":
        made = np.sort(made.ravel()).reshape(shape)
    elif look == "black and white":
        made = np.round(made)
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    top = {"b": 1.999, "f": 1.0, "u": 255.0, "i": 255.0}[dtype.kind] if dtype != np.uint16 else 65535.0
    return laid_out((made * top).astype(dtype), draw(layouts))


def laid_out(values: np.ndarray, layout: str) -> np.ndarray:
    """The same values, otherwise in memory, read-only."""
    if layout == "channels first" and values.ndim == 4:
        values = np.ascontiguousarray(values.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    elif layout == "cut out":
        values = np.repeat(np.pad(values, [(0, 0), (2, 1), (1, 3)] + [(0, 0)] * (values.ndim - 3)), 2, axis=2)
        values = values[:, 2:-1, 2:-6:2]
    values.flags.writeable = False
    return values


def on_cpu(function, batch, first_seed, kind="image", **options) -> np.ndarray:
    made = []
    for number, value in enumerate(batch):
        told = {"rng": np.random.default_rng(first_seed + number), "kind": kind, "canvas": value.shape[:2]}
        asked = {name: told[name] for name in told if name in inspect.signature(function).parameters}
        made.append(function(np.array(value, order="C"), **asked, **options))
    return np.stack(made)


def on_device(function, batch, first_seed, kind="image", **options) -> np.ndarray:
    """Raises AssertionError when it changes what it is given."""
    drawn = None
    if function in DRAWS:
        rngs = [np.random.default_rng(first_seed + number) for number in range(len(batch))]
        drawn = np.stack([np.asarray(DRAWS[function](rng, batch.shape[1:3], **options)) for rng in rngs])
        drawn = drawn.astype(np.int64 if drawn.dtype == bool else drawn.dtype)
        drawn.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # read-only
        value = torch.from_numpy(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = value.clone()
        made = FORMS[function](value, drawn, kind, **options)
        assert torch.equal(before, value)
    return made if made.dtype == torch.bfloat16 else made.numpy()


def apart(function, batch, seed, kind="image", **options) -> float:
    """The largest difference of a value."""
    ours, theirs = on_device(function, batch, seed, kind, **options), on_cpu(function, batch, seed, kind, **options)
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    return float(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max())


def same(function, batch, seed, kind="image", **options) -> None:
    ours, theirs = on_device(function, batch, seed, kind, **options), on_cpu(function, batch, seed, kind, **options)
    assert ours.dtype == theirs.dtype
    assert np.array_equal(ours, theirs)


def test_the_forms_are_of_just_these_stages():
    assert set(FORMS) == set(DRAWS) | DRAWS_NOTHING | {*MIXING}


OPTIONS = {"resize": (4,), "center_crop": (4,), "random_crop": (4,), "random_resized_crop": (4,), "gaussian_blur": (3,)}


def test_a_stage_of_ours_that_can_move_has_a_form_and_says_what_it_draws():
    options = {**OPTIONS, "to_dtype": ("float32",)}
    for name, make in STAGES.items():
        if name not in ("torchvision", "decode", "mixup", "cutmix"):  # which is done as a batch arrives
            stage = make(*options.get(name, ()))
            assert stage.movable and stage.function in FORMS, name
            assert stage.draws is DRAWS.get(stage.function), name
            assert stage.random == (stage.draws is not None), name


# --- what is only moved -------------------------------------------------------------------------------------------

moved = batches(MOVED, (0, 1, 3, 5))  # 0: a mask without that axis


def kind_of(batch: np.ndarray, is_mask: bool) -> str:
    return "mask" if is_mask or batch.ndim == 3 else "image"


@examples
@given(moved, seeds, st.booleans())
@pytest.mark.parametrize("flip", [geometry.random_horizontal_flip_field, geometry.random_vertical_flip_field])
def test_flips(flip, batch, seed, is_mask):
    same(flip, batch, seed, kind_of(batch, is_mask), p=0.6)


@examples
@given(moved, sizes, st.booleans())
def test_the_middle(batch, size, is_mask):
    same(geometry.center_crop_field, batch, 0, kind_of(batch, is_mask), size=size)


paddings = st.one_of(st.integers(0, 9), st.tuples(*[st.integers(0, 9)] * 2), st.tuples(*[st.integers(0, 9)] * 4))


@settings(deadline=None, max_examples=150)
@given(
    moved,
    seeds,
    sizes,
    paddings,
    st.sampled_from([0, 1, 0.7, 40, 260]),
    st.sampled_from(["constant", "edge", "reflect", "symmetric"]),
    st.booleans(),
)
def test_random_crop(batch, seed, size, padding, fill, padding_mode, is_mask):
    kind = kind_of(batch, is_mask)
    if kind == "image" and fill > 255 and batch.shape[3] > 4:
        fill = 255  # which NumPy refuses
    same(
        geometry.random_crop_field,
        batch,
        seed,
        kind,
        size=size,
        padding=padding,
        pad_if_needed=True,
        fill=fill,
        padding_mode=padding_mode,
    )


@pytest.mark.parametrize("channels", [3, 5])
@pytest.mark.parametrize("fill", [0.7, 2.5, 3.5])
def test_a_border_between_two_levels(fill, channels):
    batch = np.ones((2, 3, 3, channels), np.uint8)
    same(geometry.random_crop_field, batch, 0, size=5, padding=1, fill=fill)


@examples
@given(moved, seeds, sizes, interpolations)
def test_masks_and_nearest_images_in_another_size(batch, seed, size, interpolation):
    kind = "mask" if batch.ndim == 3 or interpolation != "nearest" else "image"
    same(geometry.resize_field, batch, seed, kind, size=size, interpolation=interpolation)
    same(geometry.random_resized_crop_field, batch, seed, kind, size=size, interpolation=interpolation)


# --- another size -------------------------------------------------------------------------------------------------

sizes_of_images = batches(("uint8", "uint16", "float32", "float64"), (1, 3, 5))


def levels(batch: np.ndarray, interpolation: str) -> float:
    """By how much OpenCV, which rounds integers after each of several steps, may be apart."""
    if batch.dtype.kind == "f":
        return FLOAT
    return {"nearest": 0, "bicubic": 1, "bilinear": 2}[interpolation]


@settings(deadline=None, max_examples=150)
@given(sizes_of_images, sizes, interpolations, st.one_of(st.none(), st.integers(49, 60)))
def test_resize(batch, size, interpolation, max_size):
    options = {"size": size, "interpolation": interpolation, "max_size": max_size if isinstance(size, int) else None}
    assume(min(geometry.resized_canvas(batch.shape[1:3], size, options["max_size"])) > 0)
    assert apart(geometry.resize_field, batch, 0, **options) <= levels(batch, interpolation)


@settings(deadline=None, max_examples=150)
@given(sizes_of_images, seeds, sizes, interpolations, st.sampled_from([(0.08, 1.0), (0.01, 0.2), (1.0, 1.0)]))
def test_random_resized_crop(batch, seed, size, interpolation, scale):
    options = {"size": size, "scale": scale, "interpolation": interpolation}
    assert apart(geometry.random_resized_crop_field, batch, seed, **options) <= levels(batch, interpolation)


def test_crops_of_more_samples_than_are_resized_at_once():
    batch = np.random.default_rng(0).random((150, 9, 8, 1), np.float32)
    assert apart(geometry.random_resized_crop_field, batch, 0, size=5) <= FLOAT


@pytest.mark.parametrize("function", [geometry.resize_field, geometry.random_resized_crop_field])
def test_images_of_other_types_are_not_resized(function):
    with pytest.raises(TypeError, match="an image of float16 cannot be resized; it may be uint8, uint16, float32"):
        on_device(function, np.zeros((1, 4, 4, 3), np.float16), 0, size=3)


# --- blur ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(
    batches(("uint8", "uint16", "float32", "float64")),
    seeds,
    st.integers(0, 11),
    st.sampled_from([(0.1, 2.0), (0.01, 0.2), (3.0, 9.0)]),
    st.integers(1, 4),
)
def test_gaussian_blur(batch, seed, half, sigma, times):
    options = {"kernel_size": 2 * half + 1, "sigma": sigma, "times": times}
    assert apart(images.gaussian_blur_image, batch, seed, **options) <= (FLOAT if batch.dtype.kind == "f" else 0)


# --- colours ------------------------------------------------------------------------------------------------------

factors = st.sampled_from([(1.0, 1.0), (0.6, 1.4), (0.0, 2.0)])


@settings(deadline=None, max_examples=100)
@given(batches(("uint8",)), seeds, factors, factors, factors)
def test_color_jitter_of_uint8_without_hue(batch, seed, brightness, contrast, saturation):
    options = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    assert apart(color.color_jitter_image, batch, seed, **options) == 0


@settings(deadline=None, max_examples=100)
@given(batches(), seeds, st.sampled_from([(-0.1, 0.1), (-0.5, 0.5)]))
def test_hue(batch, seed, hue):
    assert apart(color.color_jitter_image, batch, seed, hue=hue) <= (1 if batch.dtype == np.uint8 else FLOAT)


def test_hue_of_few_pixels_is_a_level_apart():
    batch = np.random.default_rng(0).integers(0, 256, (4, 60, 60, 3), np.uint8)
    ours, theirs = (each(color.color_jitter_image, batch, 0, hue=(-0.5, 0.5)) for each in (on_device, on_cpu))
    assert (ours != theirs).mean() < 1e-3


@settings(deadline=None, max_examples=100)
@given(batches(), seeds, st.sampled_from([(-0.1, 0.1), (-0.5, 0.5)]))
def test_color_jitter(batch, seed, hue):
    """A level by which the hue is apart is multiplied by what comes after it."""
    options = dict.fromkeys(("brightness", "contrast", "saturation"), (0.6, 1.4)) | {"hue": hue}
    assert apart(color.color_jitter_image, batch, seed, **options) <= (4 if batch.dtype == np.uint8 else FLOAT)


@examples
@given(batches(), st.sampled_from([1, 3]))
def test_grayscale(batch, number):
    within = apart(color.grayscale_image, batch, 0, num_output_channels=number)
    assert within <= (1 if batch.dtype == np.uint8 else FLOAT)


@examples
@given(batches(), seeds)
def test_random_grayscale(batch, seed):
    assert apart(color.random_grayscale_image, batch, seed, p=0.5) <= (1 if batch.dtype == np.uint8 else FLOAT)


@examples
@given(batches(MOVED), seeds, st.integers(0, 1))
def test_random_erasing(batch, seed, value):
    assert apart(images.random_erasing_image, batch, seed, p=0.7, scale=(0.02, 0.9), value=value) == 0


# --- types --------------------------------------------------------------------------------------------------------


@examples
@given(batches(("uint8", "uint16", "float16", "float32", "float64")), st.booleans())
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64"])
def test_to_dtype(dtype, batch, scale):
    batch = np.clip(batch, 0, 255) if not scale and batch.dtype == np.uint16 else batch
    if (batch.dtype, dtype, scale) == (np.float64, "float16", False):  # torch rounds to float32 between them
        assert apart(images.convert, batch, 0, kind="", dtype=dtype) <= np.finfo(np.float16).eps
    else:
        same(images.convert, batch, 0, kind="", dtype=dtype, scale=scale)


def test_to_bfloat16():
    batch = np.random.default_rng(0).random((2, 5, 4, 3), np.float32)
    ours = on_device(images.convert, batch, 0, kind="", dtype="bfloat16")
    assert np.array_equal(ours.float().numpy(), on_cpu(images.convert, batch, 0, dtype="bfloat16").astype(np.float32))


def test_values_without_a_range_are_not_scaled():
    batch = np.zeros((1, 2, 2, 1), np.int32)
    with pytest.raises(TypeError, match="values of int32 cannot be scaled; those can of uint8"):
        on_device(images.convert, batch, 0, kind="", dtype="float32", scale=True)


@examples
@given(batches(("bool", "uint8", "int16", "uint16", "float32", "float64")), st.sampled_from([1, 7]))
def test_to_uint8(batch, factor):
    batch = batch if batch.dtype == bool else (batch * batch.dtype.type(factor) - batch.dtype.type(factor // 2))
    same(images.to_uint8_image, batch, 0)
