"""Geometry of images, masks and boxes against torchvision's, with the same numbers drawn."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import apply, apply_to, chw, hwc, photo, rng
from sklearn.datasets import load_sample_image
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from raytrain.data.stages import draws, geometry
from raytrain.data.stages.geometry import (
    center_crop,
    random_crop,
    random_horizontal_flip,
    random_resized_crop,
    random_vertical_flip,
    resize,
)

SIZES = [(40, 60), (41, 63), (63, 41), (7, 90)]


def sample_of(height: int, width: int) -> dict[str, np.ndarray]:
    """An image, a mask of its size and boxes, some of them at its border."""
    ends = rng(1).uniform(0, 1, (5, 2, 2)) * (width, height)
    boxes = np.concatenate([ends.min(axis=1), ends.max(axis=1)], axis=1)
    boxes[0] = 0, 0, width, height
    mask = rng(2).integers(0, 5, (height, width), dtype=np.uint8)
    return {"image": photo(height, width), "mask": mask, "boxes": boxes.astype(np.float32)}


KINDS = {"image": "image", "mask": "mask", "boxes": "boxes"}


def tensors(sample):
    canvas = sample["image"].shape[:2]
    return {
        "image": tv_tensors.Image(chw(sample["image"])),
        "mask": tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(sample["mask"]))),
        "boxes": tv_tensors.BoundingBoxes(torch.from_numpy(sample["boxes"]), format="XYXY", canvas_size=canvas),
    }


def check_equal(ours, theirs):
    """Images and masks to the last bit, boxes to what float32 holds."""
    assert np.array_equal(ours["image"], hwc(theirs["image"]))
    assert np.array_equal(ours["mask"], theirs["mask"].numpy())
    np.testing.assert_allclose(ours["boxes"], theirs["boxes"].numpy(), rtol=1e-5, atol=1e-4)
    assert ours["boxes"].dtype == np.float32


# --- resize -------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    canvas=st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
    size=st.one_of(st.integers(1, 1000), st.tuples(st.integers(1, 1000), st.integers(1, 1000))),
    more=st.one_of(st.none(), st.integers(1, 500)),
)
def test_sizes_are_torchvisions(canvas, size, more):
    from torchvision.transforms.functional import _compute_resized_output_size

    most = size + more if more is not None and isinstance(size, int) else None
    wanted = _compute_resized_output_size(canvas, [size] if isinstance(size, int) else list(size), max_size=most)
    assert list(geometry.resized_canvas(canvas, size, most)) == wanted


@pytest.mark.parametrize("size", [8, 50, 64, (10, 20), (90, 17), (100, 100)])
@pytest.mark.parametrize("canvas", SIZES)
def test_nearest_masks_and_boxes_are_torchvisions(canvas, size):
    sample = sample_of(*canvas)
    theirs = v2.Resize([size] if isinstance(size, int) else size, interpolation=v2.InterpolationMode.NEAREST)
    check_equal(apply(resize(size, interpolation="nearest"), sample, **KINDS), theirs(tensors(sample)))


def difference(canvas, size, interpolation, dtype, *, seed=0):
    """Mean and most of the difference to torchvision's antialiased image, in levels of 255."""
    image = photo(*canvas, seed=seed, dtype=dtype)
    ours = apply_to(resize(size, interpolation=interpolation), image)
    theirs = hwc(F.resize(chw(image), list(size), interpolation=v2.InterpolationMode(interpolation), antialias=True))
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    found = np.abs(ours.astype(float) - theirs) * (1 if dtype == "uint8" else 255)
    return found.mean(), found.max()


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize(("canvas", "size"), [((41, 63), (90, 127)), ((40, 60), (41, 60)), ((20, 30), (200, 300))])
def test_what_grows_is_torchvisions(canvas, size, dtype):
    """Bilinear: equal in float32, and within one level of uint8, which OpenCV rounds in its own way."""
    assert difference(canvas, size, "bilinear", dtype)[1] <= (1 if dtype == "uint8" else 0.01)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("canvas", "size"),
    [
        ((375, 500), (224, 224)),
        ((41, 63), (17, 29)),
        ((41, 63), (20, 100)),
        ((41, 63), (100, 20)),
        ((200, 301), (199, 300)),
    ],
)
def test_what_shrinks_is_antialiased_about_as_torchvisions(canvas, size, interpolation):
    """Of bicubic, areas are averaged, where torchvision's filter weighs four times the area with less towards its rim:
    a compromise for speed. On this picture of noise, whose smallest things are four pixels wide, a mean of 3 levels of
    255 was measured; without antialiasing it is three times as much."""
    mean, most = difference(canvas, size, interpolation, "uint8")
    assert mean < 8
    assert most < 48
    image = chw(photo(*canvas))
    whole = hwc(F.resize(image, list(size), interpolation=v2.InterpolationMode(interpolation), antialias=True))
    plain = hwc(F.resize(image, list(size), interpolation=v2.InterpolationMode(interpolation), antialias=False))
    assert mean <= np.abs(whole.astype(float) - plain).mean() * 1.1 + 2


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("times", [1.05, 1.3, 1.67, 2.0, 2.5, 3.9, 4.1, 7.3])
def test_photographs_shrink_to_what_torchvision_makes_of_them(name, times):
    """Blurred and interpolated as its triangular filter spreads: mean of the difference in levels of 255 at most 1.6
    where averaging areas has up to 2.9, and at twice the size the same filter."""
    image = load_sample_image(name).copy()
    size = round(427 / times), round(640 / times)
    wanted = hwc(F.resize(chw(image), list(size), antialias=True)).astype(float)
    ours = np.abs(apply_to(resize(size), image) - wanted)
    areas = np.abs(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA) - wanted)
    assert ours.mean() < (1.6 if times < 1.9 else 0.9 if times < 4 else 1.2)
    assert ours.max() < (45 if times < 1.9 else 15 if times < 4 else 30)
    if times > 1.6:
        assert ours.mean() < 0.8 * areas.mean()


@pytest.mark.parametrize("size", [(50, 75), (50, 600), (400, 75)])
def test_what_shrinks_along_either_side_is_antialiased(size):
    """On noise a pixel wide: at most half of what plain interpolation would be away from torchvision's."""
    image = rng().integers(0, 256, (200, 300, 3), dtype=np.uint8)
    filtered, plain = (hwc(F.resize(chw(image), list(size), antialias=each)).astype(float) for each in (True, False))
    ours = apply_to(resize(size), image)
    assert np.abs(ours - filtered).mean() < np.abs(plain - filtered).mean() / 2


def test_bicubic_growth_is_torchs_without_antialiasing():
    """Its kernel has a = -0.75; with antialiasing torch takes -0.5."""
    image = photo(41, 63, dtype="float32")
    ours = apply_to(resize((90, 127), interpolation="bicubic"), image)
    plain = F.resize(chw(image), [90, 127], interpolation=v2.InterpolationMode.BICUBIC, antialias=False)
    assert np.abs(ours - hwc(plain)).max() < 1e-5
    mean, most = difference((41, 63), (90, 127), "bicubic", "uint8")
    assert mean < 2
    assert most < 10


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 9])
@pytest.mark.parametrize("size", [(10, 20), (60, 90), (60, 20)])
def test_any_number_of_channels_is_resized_and_bordered_alike(channels, size):
    image = np.concatenate([photo(30, 40, seed) for seed in range(3)], axis=2)[..., :channels]
    result = apply_to(resize(size), image)
    assert result.shape == (*size, channels)
    for number in range(channels):
        assert np.array_equal(result[..., number : number + 1], apply_to(resize(size), image[..., number : number + 1]))
    bordered = apply_to(center_crop((50, 60)), image)
    assert np.array_equal(bordered[10:40, 10:50], image)
    filled = apply_to(random_crop((34, 44), padding=2, fill=7), image, rng())
    assert (filled[:2] == 7).all()


@pytest.mark.parametrize("dtype", ["uint16", "float64"])
def test_other_types_are_resized(dtype):
    image = photo().astype(dtype)
    assert apply_to(resize(20), image).dtype == dtype


def test_a_type_that_cannot_be_resized_is_told():
    with pytest.raises(
        TypeError, match="an image of int64 cannot be resized; it may be uint8, uint16, float32 or float"
    ):
        apply_to(resize(8), photo().astype(np.int64))


def test_an_image_of_the_size_is_left_alone():
    image = photo(40, 60)
    assert apply_to(resize((40, 60)), image) is image
    assert apply_to(resize(40), image) is image


@settings(max_examples=100, deadline=None)
@given(old=st.integers(1, 700), new=st.integers(1, 700))
def test_a_box_at_the_border_stays_there(old, new):
    for dtype in (np.int64, np.float32, np.uint16):
        box = np.array([[0, 0, old, old]], dtype)
        assert geometry.scaled(box, "boxes", (old, old), (new, new)).tolist() == [[0, 0, new, new]]


# --- crops --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 50, 61, 100, (10, 20), (91, 5), (64, 64)])
@pytest.mark.parametrize("canvas", SIZES)
def test_center_crop_is_torchvisions(canvas, size):
    """But for boxes on an image with an odd border, which torchvision moves by another half pixel than the image."""
    sample = sample_of(*canvas)
    ours, theirs = apply(center_crop(size), sample, **KINDS), v2.CenterCrop(size)(tensors(sample))
    assert np.array_equal(ours["image"], hwc(theirs["image"]))
    assert np.array_equal(ours["mask"], theirs["mask"].numpy())
    wanted = geometry.both_sides(size)
    is_odd = any(new > old and (new - old) % 2 for old, new in zip(canvas, wanted, strict=True))
    np.testing.assert_allclose(ours["boxes"], theirs["boxes"].numpy(), atol=1.001 if is_odd else 1e-4)
    whole = {"mask": np.ones(canvas, np.uint8), "boxes": np.array([[0, 0, canvas[1], canvas[0]]], np.float32)}
    made = apply(center_crop(size), whole, mask="mask", boxes="boxes")
    rows, columns = (np.flatnonzero(made["mask"].any(axis=axis)) for axis in (1, 0))
    assert made["boxes"].tolist() == [[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]]


def cropped_by_torchvision(sample, transform, left, top):
    """What a transform makes of the sample, with these numbers in place of those that it draws."""
    given = tensors(sample)
    params = transform.make_params(list(given.values()))
    params |= {"left": left, "top": top, "needs_crop": True}
    return {name: transform.transform(each, params) for name, each in given.items()}


def drawn(seed, size, sides, canvas):
    """Left and top as `random_crop` draws them; `sides` are left, top, right and bottom."""
    generator = rng(seed)
    over = canvas[0] + sides[1] + sides[3] - size[0], canvas[1] + sides[0] + sides[2] - size[1]
    top, left = generator.integers(over[0] + 1), generator.integers(over[1] + 1)
    return int(left), int(top)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize(
    ("size", "options", "sides"),
    [
        ((30, 30), {}, (0, 0, 0, 0)),
        ((40, 60), {}, (0, 0, 0, 0)),
        ((30, 50), {"padding": 4}, (4, 4, 4, 4)),
        ((45, 70), {"padding": (5, 3)}, (5, 3, 5, 3)),
        ((40, 60), {"padding": (1, 2, 3, 4), "fill": 77}, (1, 2, 3, 4)),
        ((50, 65), {"pad_if_needed": True}, (5, 10, 5, 10)),
        ((50, 65), {"pad_if_needed": True, "padding": 2, "fill": 3}, (3, 8, 3, 8)),
    ],
)
def test_random_crop_is_torchvisions(size, options, sides, dtype):
    sample = sample_of(40, 60)
    sample["image"] = photo(40, 60, dtype=dtype)
    fill = options.get("fill", 0)
    # a mask has 0 around it, since the fill of an image is no class
    given = options | {"fill": {tv_tensors.Image: fill, tv_tensors.Mask: 0}, "padding": options.get("padding")}
    given["padding"] = given["padding"] if isinstance(given["padding"], int | None) else list(given["padding"])
    for seed in range(4):
        left, top = drawn(seed, size, sides, (40, 60))
        ours = apply(random_crop(size, **options), sample, rng(seed), **KINDS)
        check_equal(ours, cropped_by_torchvision(sample, v2.RandomCrop(size, **given), left, top))


@pytest.mark.parametrize("padding_mode", ["constant", "edge", "reflect", "symmetric"])
@pytest.mark.parametrize("canvas", SIZES)
@pytest.mark.parametrize("dtype", ["uint8", "float32", "uint16"])
def test_every_padding_mode_is_torchvisions(canvas, padding_mode, dtype):
    image = photo(*canvas).astype(dtype)
    mask = image[..., 0]
    sides = (3, 1, 6, 5)
    theirs = F.pad(chw(image.astype(np.float32)), list(sides), fill=9, padding_mode=padding_mode)
    ours = geometry.padded(image, "image", sides, 9, padding_mode)
    assert np.array_equal(ours, hwc(theirs))
    assert ours.dtype == dtype
    inner = geometry.padded(mask, "mask", sides, 9, padding_mode)[1:-5, 3:-6]
    assert np.array_equal(inner, mask)
    whole = np.float32(geometry.padded(mask, "mask", sides, 9, padding_mode))
    theirs = F.pad(torch.from_numpy(np.float32(mask))[None], list(sides), fill=0, padding_mode=padding_mode)
    assert np.array_equal(whole, theirs[0].numpy())


def test_every_crop_is_as_likely():
    image = photo(40, 60)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge")
    stage = random_crop((40, 60), padding=2, padding_mode="edge")
    crops = {apply_to(stage, image, rng(seed)).tobytes() for seed in range(200)}
    assert crops == {padded[y : y + 40, x : x + 60].tobytes() for y in range(5) for x in range(5)}


def test_a_crop_that_does_not_fit_is_told():
    with pytest.raises(ValueError, match="a crop of 50 x 50 does not fit into 40 x 60"):
        apply_to(random_crop(50), photo(40, 60), rng())
    assert apply_to(random_crop(50, padding=5), photo(40, 60), rng()).shape == (50, 50, 3)


def test_random_resized_crop_cuts_and_resizes_as_torchvision_does():
    sample = sample_of(41, 63)
    for seed in range(5):
        box = draws.random_box((41, 63), rng(seed), (0.08, 1.0), (3 / 4, 4 / 3))
        stage = random_resized_crop((24, 33), interpolation="nearest")
        ours = apply(stage, sample, rng(seed), **KINDS)
        theirs = {
            name: F.resized_crop(each, *box, [24, 33], interpolation=v2.InterpolationMode.NEAREST)
            for name, each in tensors(sample).items()
        }
        check_equal(ours, theirs)


def test_random_resized_crop_draws_boxes_as_torchvision_does():
    torch.manual_seed(0)
    transform, image = v2.RandomResizedCrop(32), torch.zeros(3, 300, 400)
    theirs = [transform.make_params([image]) for _ in range(2000)]
    generator = rng()
    ours = [draws.random_box((300, 400), generator, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in theirs]
    for name, column in {"top": 0, "left": 1, "height": 2, "width": 3}.items():
        for share in (0.25, 0.5, 0.75):
            expected = np.quantile([box[name] for box in theirs], share)
            assert abs(np.quantile([box[column] for box in ours], share) - expected) < 15
    assert apply_to(random_resized_crop(32), photo(300, 400), rng()).shape == (32, 32, 3)


@pytest.mark.parametrize("canvas", [(4, 400), (400, 4), (30, 31), (100, 90)])
@pytest.mark.parametrize("ratio", [(1.0, 1.0), (3 / 4, 4 / 3), (0.1, 0.2)])
def test_a_crop_that_never_fits_takes_the_middle_as_torchvision_does(canvas, ratio):
    """Ten draws of more than the whole area."""
    transform = v2.RandomResizedCrop(8, scale=(1.0, 1.0), ratio=ratio)
    transform.scale = (9.0, 9.0)
    wanted = transform.make_params([torch.zeros(3, *canvas)])
    box = draws.random_box(canvas, rng(), (9.0, 9.0), ratio)
    assert box == tuple(wanted[name] for name in ("top", "left", "height", "width"))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64, np.float32, np.float64])
def test_boxes_of_any_type_are_cut_off_at_the_border(dtype):
    boxes = np.array([[0, 0, 60, 40], [5, 6, 8, 9], [30, 20, 50, 30]], dtype)
    cut = geometry.cut(boxes, "boxes", (10, 20, 15, 25))
    assert cut.tolist() == [[0, 0, 25, 15], [0, 0, 0, 0], [10, 10, 25, 15]]
    assert cut.dtype == dtype


# --- flips --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("canvas", SIZES)
@pytest.mark.parametrize(
    ("stage", "transform"),
    [
        (random_horizontal_flip, v2.RandomHorizontalFlip),
        (random_vertical_flip, v2.RandomVerticalFlip),
    ],
)
def test_flips_are_torchvisions(stage, transform, canvas):
    sample = sample_of(*canvas)
    check_equal(apply(stage(1.0), sample, rng(), **KINDS), transform(1.0)(tensors(sample)))
    assert all(apply(stage(0.0), sample, rng(), **KINDS)[name] is value for name, value in sample.items())
    flipped = sum(apply(stage(), sample, rng(seed), **KINDS)["mask"] is not sample["mask"] for seed in range(200))
    assert 70 < flipped < 130
