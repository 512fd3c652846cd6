"""Images, masks and boxes of one sample go the same way, through our own stages and through torchvision's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pictures import apply, apply_to, chw, hwc, photo, rng
from torchvision import tv_tensors
from torchvision.transforms import v2

from raytrain.data.stages.geometry import (
    center_crop,
    random_crop,
    random_horizontal_flip,
    random_resized_crop,
    random_vertical_flip,
    resize,
)
from raytrain.data.stages.registry import as_stage
from raytrain.data.stages.torchvision import DRAWS_NOTHING, torchvision
from raytrain.errors import ConfigError

KINDS = {"image": "image", "mask": "mask", "boxes": "boxes"}


def marked(height: int = 60, width: int = 80) -> dict:
    """A picture whose mask is a copy of its first channel, and whose box is around what is bright in both."""
    mask = np.zeros((height, width), np.uint8)
    top, left, bottom, right = 20, 30, 44, 62
    mask[top:bottom, left:right] = 200
    image = np.repeat(mask[:, :, None], 3, axis=2)
    return {"image": image, "mask": mask, "boxes": np.array([[left, top, right, bottom]], np.float32), "name": "a"}


def bright(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


JOINT = [
    resize((30, 40)),
    center_crop(36),
    center_crop((90, 100)),
    random_crop((50, 60)),
    random_crop((80, 90), padding=5, pad_if_needed=True),
    random_resized_crop((60, 80), scale=(0.5, 1.0), interpolation="nearest"),
    random_horizontal_flip(1.0),
    random_vertical_flip(1.0),
    torchvision("RandomCrop", size=(50, 60)),
    torchvision("RandomHorizontalFlip", p=1.0),
    torchvision("RandomZoomOut", p=1.0, fill=0),
    v2.RandomVerticalFlip(1.0),
    v2.Compose([v2.RandomHorizontalFlip(0.5), v2.RandomCrop((50, 60))]),
]


@pytest.mark.parametrize("given", JOINT, ids=lambda each: getattr(each, "name", type(each).__name__))
def test_image_mask_and_boxes_go_together(given):
    stage = as_stage(given)
    for seed in range(5):
        result = apply(stage, marked(), rng(seed), **KINDS)
        assert np.array_equal(result["image"][..., 0] > 100, result["mask"] > 100)
        np.testing.assert_allclose(result["boxes"], [bright(result["mask"] > 100)], atol=1.01)
        assert result["name"] == "a"
        assert result["mask"].dtype == np.uint8


def test_two_images_of_one_size_are_cut_alike_and_of_two_may_be_resized():
    one, other = photo(40, 60), photo(40, 60, seed=1)
    kinds = {"image": "image", "second": "image"}
    for stage in (random_crop(20), random_resized_crop(20), random_horizontal_flip()):
        both = apply(stage, {"image": one, "second": other}, rng(2), **kinds)
        assert np.array_equal(both["second"], apply_to(stage, other, rng(2)))
    small = photo(30, 50)
    resized = apply(resize((8, 9)), {"image": one, "second": small}, **kinds)
    assert resized["image"].shape == resized["second"].shape == (8, 9, 3)
    shorter = apply(resize(15), {"image": one, "second": small}, **kinds)
    assert (shorter["image"].shape, shorter["second"].shape) == ((15, 22, 3), (15, 25, 3))


@pytest.mark.parametrize("stage", [random_crop(20), random_resized_crop(20), random_horizontal_flip()])
def test_two_images_of_different_sizes_are_not_cut_at_random(stage):
    sample = {"boxes": np.zeros((1, 4)), "image": photo(40, 60), "second": photo(30, 50)}
    with pytest.raises(ValueError) as caught:
        apply(stage, sample, rng(), boxes="boxes", image="image", second="image")
    assert (
        str(caught.value)
        == "fields of one sample must have one size to be cut alike: `image` 40 x 60, `second` 30 x 50"
    )


def test_a_stage_may_be_for_one_field_alone():
    sample = marked()
    result = apply(random_horizontal_flip(1.0, on="image"), sample, rng(), **KINDS)
    assert np.array_equal(result["image"], sample["image"][:, ::-1])
    assert result["mask"] is sample["mask"]


def test_masks_may_have_channels():
    layers = np.stack([marked()["mask"], photo(60, 80)[..., 0]], axis=2)
    sample = {"image": photo(60, 80), "mask": layers}
    kinds = {"image": "image", "mask": "mask"}
    for ours, theirs in (
        (resize((30, 41)), torchvision("Resize", size=(30, 41))),
        (center_crop(70), torchvision("CenterCrop", size=70)),
        (random_horizontal_flip(1.0), torchvision("RandomHorizontalFlip", p=1.0)),
    ):
        one, other = apply(ours, sample, rng(), **kinds), apply(theirs, sample, rng(), **kinds)
        assert one["mask"].shape[2] == 2
        assert np.array_equal(one["mask"], other["mask"]), ours.name


def test_no_boxes_are_boxes_too():
    for given in (*JOINT[:9], JOINT[9]):
        sample = {**marked(), "boxes": np.zeros((0, 4), np.float32)}
        assert apply(as_stage(given), sample, rng(), **KINDS)["boxes"].shape == (0, 4)


# --- torchvision's --------------------------------------------------------------------------------------------------


def test_torchvision_by_name_and_by_value_is_reproducible():
    image = photo()
    by_name = torchvision("ColorJitter", brightness=0.5)
    by_value = as_stage(v2.ColorJitter(brightness=0.5))
    assert by_value.random
    assert by_value.name == "torchvision.ColorJitter"
    results = [apply_to(stage, image, rng(5)) for stage in (by_name, by_name, by_value)]
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])
    assert not np.array_equal(results[0], apply_to(by_name, image, rng(6)))
    torch.manual_seed(int(rng(5).integers(2**63 - 1)))
    assert np.array_equal(results[0], hwc(v2.ColorJitter(brightness=0.5)(tv_tensors.Image(chw(image)))))
    with pytest.raises(ValueError, match="Lambda must return an image tensor"):
        apply_to(as_stage(v2.Lambda(lambda x: 3)), image, rng())


class Mirror(v2.Transform):
    """Somebody's own."""

    def transform(self, inpt, params):
        return v2.functional.horizontal_flip(inpt)


def test_a_transform_of_ones_own_gets_what_torchvisions_do():
    stage = as_stage(Mirror())
    assert (stage.name, stage.random) == ("torchvision.Mirror", True)
    ours = apply(random_horizontal_flip(1.0), marked(), rng(), **KINDS)
    theirs = apply(stage, marked(), rng(), **KINDS)
    for name in ("image", "mask", "boxes"):
        assert np.array_equal(ours[name], theirs[name])


def test_transforms_of_torchvisions_first_kind_get_an_image():
    from torchvision import transforms

    image = photo()
    for transform in (transforms.Resize((8, 9)), transforms.Compose([transforms.Resize((8, 9))])):
        assert apply_to(as_stage(transform), image, rng()).shape == (8, 9, 3)


def test_the_transforms_that_are_said_to_draw_nothing_exist():
    assert {"ToImage", "ConvertImageDtype", "Resize"} <= DRAWS_NOTHING <= set(dir(v2))


def test_torchvision_transforms_that_draw_nothing_stay_in_validation():
    assert not as_stage(v2.Resize(8)).random
    assert not torchvision("CenterCrop", size=8).random
    assert not as_stage(v2.Compose([v2.ClampBoundingBoxes(), v2.ConvertBoundingBoxFormat("CXCYWH")])).random
    assert not as_stage(v2.Compose([v2.Resize(8), v2.CenterCrop(4)])).random
    assert as_stage(v2.Compose([v2.Resize(8), v2.RandomCrop(4)])).random
    assert apply_to(torchvision("CenterCrop", size=8), photo()).shape == (8, 8, 3)
    assert apply_to(as_stage(v2.Resize((8, 8))), photo()).shape == (8, 8, 3)


def test_a_torchvision_transform_takes_a_mirrored_image_and_leaves_its_order_in_memory():
    image = apply_to(random_horizontal_flip(1.0), photo(), rng())
    result = apply_to(torchvision("GaussianBlur", kernel_size=3), image, rng())
    assert result.shape == image.shape
    assert result.transpose(2, 0, 1).flags.c_contiguous


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
        apply_to(torchvision(transform, **options), photo(), rng())
    assert str(caught.value).startswith(message), str(caught.value)


def test_options_of_a_torchvision_transform_may_be_lists():
    assert apply_to(torchvision("Resize", size=[8, 6]), photo()).shape == (8, 6, 3)
