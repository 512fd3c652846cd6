"""Stages on the device, from the pipeline to the batch: what they give is what they would have given on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moved_stages import Pictures, Run, assert_same, moved
from torchvision.transforms import v2

from raytrain import Pipeline
from raytrain.data import (
    center_crop,
    color_jitter,
    from_torch,
    gaussian_blur,
    grayscale,
    image_folder,
    keep_if,
    on_cpu,
    on_device,
    ragged,
    random_crop,
    random_erasing,
    random_grayscale,
    random_horizontal_flip,
    random_resized_crop,
    random_vertical_flip,
    resize,
    stage,
    to_dtype,
    to_uint8,
    torchvision,
)
from raytrain.data.samples.fields import Field, Schema
from raytrain.data.stages.registry import parse_stage
from raytrain.data.stages.settling import settle
from raytrain.data.stages.stage import Stage
from raytrain.errors import ConfigError, DataError

GEOMETRY = [
    random_crop(10, padding=1),
    random_horizontal_flip(),
    random_vertical_flip(),
    center_crop(8),
]
COLORS = [gaussian_blur(3, times=2), color_jitter(0.4, 0.4, 0.4, 0.1), random_grayscale(0.5)]
ROUNDINGS = 4  # levels of 255: each of several changes rounds


@settings(deadline=None, max_examples=25)
@given(
    st.permutations(COLORS + GEOMETRY[:3]),
    st.integers(0, 5),
    st.sampled_from([(4, 1), (3, 2), (10, 1)]),
    st.integers(0, 9),
)
def test_wherever_the_stages_are_cut_a_sample_comes_out_the_same(stages, first, shape, seed):
    """The numbers that a stage draws depend on the stages before it, and not on where any of them runs."""
    stages = [Stage(**{**each.__dict__, "on": ("image",)}) if each in COLORS else each for each in stages]
    dataset = Pictures(dtype="float32")
    cpu = Run(stages, dataset, seed=seed)
    device = Run(moved(stages, first), dataset, *shape, seed=seed)
    assert_same(cpu, device, 1e-3)


@pytest.mark.parametrize(
    ("stages", "within"),
    [
        ([random_crop(10, padding=2, padding_mode="reflect"), random_horizontal_flip(), random_vertical_flip()], 0),
        ([center_crop((7, 9)), random_horizontal_flip()], 0),
        ([center_crop((9, 14)), random_crop(8), random_crop(6)], 0),
        ([resize(10), random_crop(9), random_resized_crop(8)], 3),
        ([resize((6, 9))], 2),
        ([resize(9), random_horizontal_flip()], 2),
        ([random_resized_crop(8), random_horizontal_flip()], 2),
        ([gaussian_blur(5, times=3)], 3),
        ([color_jitter(0.4, 0.4, 0.4, 0.1)], ROUNDINGS),
        ([random_grayscale(0.5), grayscale(3)], 1),
        ([random_erasing(0.7), random_erasing(0.7, value=7)], 0),
        ([to_dtype("float32", scale=True), gaussian_blur(5, times=3)], 1e-3),
        ([to_dtype("float32"), to_uint8()], 0),
    ],
    ids=lambda value: "-".join(each.name for each in value) if isinstance(value, list) else "",
)
def test_each_stage_gives_what_it_gives_on_the_cpu(stages, within):
    cpu, device = Run(stages), Run(moved(stages, 0))
    assert len(device.opened.on_device["train"].at()) == len(stages)
    assert device.opened.schema.fields == cpu.opened.schema.fields
    assert_same(cpu, device, within)


@pytest.mark.filterwarnings("ignore:RandomErasing")  # which leaves masks alone
def test_torchvisions_transforms_draw_what_they_draw_on_the_cpu():
    for stages in (
        [torchvision("RandomHorizontalFlip"), torchvision("RandomCrop", size=9)],
        [torchvision("RandomErasing", p=1.0)],
        [torchvision("CenterCrop", size=6)],
    ):
        assert_same(Run(stages), Run(moved(stages, 0)), 0)


def brighter(images: torch.Tensor, by: int = 1) -> torch.Tensor:
    assert images.shape[1] == 3, "channels come first"
    return (images.to(torch.int16) + by).clamp(0, 255).to(torch.uint8)


def mixed(fields: dict[str, torch.Tensor], seeds: torch.Tensor) -> dict[str, torch.Tensor]:
    """Half of the batch turned round, by one draw a sample."""
    weight = torch.stack([torch.rand(1, generator=torch.Generator().manual_seed(seed)) for seed in seeds.tolist()])
    return {"number": fields["number"] * 10, "weight": weight}


def test_functions_of_ones_own():
    run = Run([on_device(brighter, by=5), on_device(mixed, on=["image", "number"])])
    for key, sample in run.samples.items():
        original = Pictures()[key]
        assert np.array_equal(sample["image"], np.clip(original["image"].astype(int) + 5, 0, 255))
        assert sample["number"] == 10 * key
    weights = {key: float(sample["weight"][0]) for key, sample in run.samples.items()}
    assert len({*weights.values()}) == 10, "each sample has a seed of its own"
    again = Run([on_device(brighter), on_device(mixed, on=["image", "number"])], batch_size=3, world=2)
    assert weights == {key: float(sample["weight"][0]) for key, sample in again.samples.items()}
    assert set(run.meter.device_stage_s) == {"brighter", "mixed"}


def test_what_the_loop_chose_for_its_model_is_not_for_the_stages():
    stages = [to_dtype("float32", scale=True), gaussian_blur(5, times=3), resize((6, 9))]
    with torch.autocast("cpu", torch.bfloat16):
        device = Run(moved(stages, 0))
    assert_same(Run(stages), device, 1e-3)


def test_what_travels_for_the_device_is_small():
    run = Run(moved([gaussian_blur(3, times=4), random_horizontal_flip(), random_crop(8)], 0))
    assert run.wire_bytes == 10 * (4 * 8 + 1 + 2 * 8)
    assert [each.name for each in run.opened.splits["train"].stages] == ["draw"]
    assert [each.name for each in Run([on_device(grayscale())]).opened.splits["train"].stages] == []


def test_a_job_file_says_where_a_stage_runs():
    places = [parse_stage(spec) for spec in ("grayscale", {"grayscale": {"place": "device"}})]
    assert [each.place for each in places] == ["auto", "device"]
    own = parse_stage({f"{__name__}:brighter": {"place": "device", "by": 7}})
    assert (own.place, own.options, own.movable) == ("device", {"by": 7}, True)
    cpu = parse_stage({"gaussian_blur": {"kernel_size": 3, "place": "cpu"}})
    assert cpu == on_cpu(gaussian_blur(3)) and cpu.options["kernel_size"] == 3


def shorter(images: torch.Tensor) -> torch.Tensor:
    return images[1:]


def broken(images: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no such luck")


def listed(images: torch.Tensor) -> Any:
    return [1]


def nothing(fields: dict[str, torch.Tensor]) -> Any:
    return None


def number(images: torch.Tensor) -> torch.Tensor:
    return images.sum()


def drawing(images: torch.Tensor, rng: Any) -> torch.Tensor:
    return images


def boxed(image: np.ndarray) -> np.ndarray:
    return image


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        (
            [on_device(grayscale()), stage(boxed, on="image")],
            "stage 2, `boxed`, can run on the CPU alone; put it before",
        ),
        (
            [on_device(grayscale()), on_cpu(to_uint8())],
            "stage 2, `to_uint8`, is to run on the CPU, and `grayscale` before",
        ),
        ([on_device(grayscale()), keep_if(bool)], "can run on the CPU alone"),
        ([on_device(brighter), random_crop(4)], "draws by the size of the image, which nobody knows behind `brighter`"),
    ],
)
def test_what_cannot_run_where_it_is_to(stages, told):
    with pytest.raises(ConfigError) as error:
        Run(stages)
    assert told in str(error.value)


def test_boxes_and_ragged_fields_stay_on_the_cpu():
    schema = Schema({"image": Field("uint8", (8, 8, 3), "image"), "boxes": Field("float32", (None, 4), "boxes")})
    with pytest.raises(ConfigError, match="stage 1, `random_horizontal_flip`, cannot move boxes on the device"):
        settle([on_device(random_horizontal_flip())], schema, "data.stages")
    with pytest.raises(ConfigError, match="data.stages: `to_dtype` runs on the device, where field `image` is ragged"):
        Pipeline(from_torch(Pictures()), [on_device(to_dtype("float32"))], collate={"image": ragged()}).open(0)


def test_encoded_images_are_decoded_first(pets):
    with pytest.raises(ConfigError, match="needs decoded images, and field `image` is encoded; put `decode` before it"):
        Pipeline(image_folder(pets), [on_device(grayscale())]).open(0)


def test_what_is_no_stage_for_the_device():
    for make, told in (
        (lambda: on_device(keep_if(bool)), "`bool` can run on the CPU alone"),
        (
            lambda: on_device(drawing),
            "drawing has a parameter `rng`, which is for the CPU; a random function on the device has",
        ),
        (lambda: on_device(grayscale(), on="mask"), "give the stage its fields and options where it is made"),
        (lambda: on_device(brighter, on="*"), "`on` of 'brighter' is a field or a list of fields"),
        (lambda: on_device(brighter, whole_batch=True), "gets the whole batch in any case; leave `whole_batch` out"),
        (
            lambda: on_device(v2.RandomHorizontalFlip),
            "'RandomHorizontalFlip' is not a stage yet: write",
        ),
        (lambda: on_device([grayscale()] * 9), "is not a stage: give"),
        (lambda: on_device(brighter, up=1), "has no option 'up'"),
        (lambda: on_device(3), "3 is not a stage"),
        (lambda: parse_stage({"grayscale": {"place": "gpu"}}), "place is one of auto, cpu, device"),
    ):
        with pytest.raises(ConfigError) as error:
            make()
        assert told in str(error.value)


@pytest.mark.parametrize(
    ("function", "on", "told"),
    [
        (
            shorter,
            None,
            "returned 3 for the 4 samples of field `image`, on a batch; on the device a batch keeps",
        ),
        (broken, None, "the stage `broken` failed on the device, on a batch: RuntimeError: no such luck"),
        (listed, None, "the stage `listed` returned list for field `image`, on a batch, expected a tensor"),
        (nothing, ["image"], "returned NoneType, expected a dict of fields"),
        (nothing, None, "returned nothing for field `image`, on a batch, expected a tensor; is its `return` missing?"),
        (number, None, "returned a number for the 4 samples of field `image`"),
    ],
)
def test_a_function_of_ones_own_that_fails_is_one_line(function, on, told):
    with pytest.raises(DataError) as error:
        Run([on_device(function, on=on)])
    assert told in str(error.value) and "\n" not in str(error.value)


def test_images_that_are_cut_alike_have_one_size():
    class Two(Pictures):
        def __getitem__(self, index):
            return {"image": np.zeros((8, 8, 3), np.uint8), "mask": np.zeros((9, 8), np.uint8)}

    crop = random_crop(4, on=["image", "mask"])
    told = "must have one size to be cut alike: `image` 8 x 8, `mask` 9 x 8"
    assert all(told in reason for reason in Run([on_device(crop)], Two(4)).failures)


def test_a_stand_in_goes_through_the_stages_too():
    stages = Run(moved([gaussian_blur(3, on="image"), random_crop(8, on="image")], 0)).device
    made = stages.run("train", {"image": torch.zeros(1, 12, 17, 3)}, {}, "a stand-in")
    assert made["image"].shape == (1, 8, 8, 3) and not made["image"].any()
