"""Where a stage on the device could part from the same one on the CPU, and what is refused for that."""

from __future__ import annotations

import io
import pickle
import threading
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from moved_stages import Pictures, Run, assert_same, moved
from torchvision.transforms import v2

from raytrain import Pipeline
from raytrain.data import (
    from_torch,
    gaussian_blur,
    grayscale,
    on_cpu,
    on_device,
    padded,
    random_crop,
    random_erasing,
    random_horizontal_flip,
    random_vertical_flip,
    resize,
    stage,
    to_dtype,
)
from raytrain.data.stages.registry import as_stage
from raytrain.errors import ConfigError, DataError


def brighter(images: torch.Tensor, by: int = 1) -> torch.Tensor:
    assert images.shape[1] == 3, "channels come first"
    return (images.to(torch.int16) + by).clamp(0, 255).to(torch.uint8)


def smaller(images: torch.Tensor) -> torch.Tensor:
    return images[:, :, ::2, ::2]


def test_who_draws_by_a_size_is_told_when_nobody_knows_it():
    told = "stage 2, `random_crop`, draws by the size of the image, which nobody knows behind `torchvision.Resize`"
    with pytest.raises(ConfigError, match=told):
        Run([on_device(v2.Resize((8, 8))), random_crop(6)])
    with pytest.raises(ConfigError, match="`random_erasing`, draws by the size of the image, which nobody knows"):
        Run([on_device(v2.Resize((8, 8))), random_erasing()])
    known = [v2.Resize((8, 8)), resize((10, 14)), random_crop(6), random_vertical_flip()]
    assert_same(Run(known), Run([on_device(v2.Resize((8, 8))), *known[1:]]), 3)
    flips = Run([on_device(smaller, on="image"), random_horizontal_flip(1.0, on="image")], Pictures(1), batch_size=1)
    np.testing.assert_array_equal(flips.samples[0]["image"], Pictures()[0]["image"][::2, ::2][:, ::-1])


@pytest.mark.parametrize("before", [gaussian_blur(3), v2.GaussianBlur(3), random_horizontal_flip(1.0)])
def test_noise_falls_on_the_same_pixels_whatever_lay_before_it_in_memory(before):
    stages = [as_stage(before), as_stage(v2.GaussianNoise())]
    data = Pictures(dtype="float32")
    for first in (0, 1):
        assert_same(Run(stages, data), Run(moved(stages, first), data), 1e-3)


def doubled(fields: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"other": fields["image"] * 2}


def numbered(other: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    assert other.shape[1] == 3, "as the function before it returned it"
    return other[:, :, :1, :1] * 0 + (seeds % 100).to(torch.uint8)[:, None, None, None]


def test_a_field_that_comes_about_on_the_device_goes_through_functions_of_ones_own():
    made = Run([on_device(doubled, on=["image"]), on_device(numbered, on="other")])
    assert made.failures == [] and len({int(sample["other"].flat[0]) for sample in made.samples.values()}) > 3
    with pytest.raises(
        ConfigError, match="field `other` comes about on the device; only functions of your own can go on"
    ):
        Run([on_device(doubled, on=["image"]), random_horizontal_flip(1.0, on="other")])


def changing(images: torch.Tensor) -> torch.Tensor:
    return images.mul_(2)


def changing_one(fields: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    fields["number"][0] = 7
    return {"number": fields["number"] + 1}


@pytest.mark.parametrize(
    ("stage", "field"), [(on_device(changing), "image"), (on_device(changing_one, on=["number"]), "number")]
)
def test_a_function_that_changes_what_it_gets_is_told(stage, field):
    with pytest.raises(DataError, match=f"it changed field `{field}` in place, which is not its own"):
        Run([stage])


def test_validation_runs_stages_where_training_does():
    stages = [on_device(random_horizontal_flip()), resize((4, 4)), on_cpu(grayscale())]
    pipeline = Pipeline(from_torch(Pictures()), stages[:2])
    assert [each.place for each in pipeline.validation_stages] == ["device"]
    assert [each.place for each in Pipeline(from_torch(Pictures()), stages[1:]).validation_stages] == ["auto", "cpu"]


def test_a_stand_in_of_bfloat16():
    made = Run(
        [
            on_device(
                to_dtype("bfloat16"),
            ),
            random_horizontal_flip(on="image"),
            to_dtype("float32"),
        ]
    )
    blank = {"image": torch.zeros(1, 12, 17, 3), "mask": torch.zeros(1, 12, 17)}
    assert made.device.run("train", blank, {}, "a stand-in")["image"].shape == (1, 12, 17, 3)


def offset(images: torch.Tensor, seeds: torch.Tensor, canvas: int) -> torch.Tensor:
    return images + canvas


def draw(image: np.ndarray) -> np.ndarray:
    return image


def test_workers_import_nothing_for_what_runs_on_the_device():
    stages = [stage(draw, on="image"), on_device(offset, on="image", canvas=1), v2.ColorJitter(0.3)]
    made = Run(stages)
    assert len(made.samples) == 10 and made.failures == []
    assert [each.name for each in made.opened.splits["train"].stages] == ["draw_2", "draw"]
    taken = set()

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            taken.add(module.partition(".")[0])
            return super().find_class(module, name)

    Unpickler(io.BytesIO(cloudpickle.dumps(made.opened.splits["train"].stages[1:]))).load()
    assert taken <= {"raytrain", "builtins", "numpy"}


def test_what_cannot_travel_to_the_ranks():
    lock = threading.Lock()
    with pytest.raises(ConfigError, match="cannot be sent to other processes.*cannot pickle '_thread.lock'"):
        Run([on_device(lambda images: images if lock else images, on="image")])


def test_padded_images_stay_on_the_cpu():
    told = "data.stages: `random_horizontal_flip` runs on the device, where field `image` is padded"
    for stages, error in (([random_horizontal_flip()], told), ([v2.ColorJitter(0.1)], "image` is padded")):
        with pytest.raises(ConfigError, match=error):
            Pipeline(from_torch(Pictures()), [on_device(each) for each in stages], collate={"image": padded()}).open(0)
    fine = [on_device(brighter), to_dtype("float32")]
    Pipeline(from_torch(Pictures()), fine, collate={"image": padded()}).open(0)


def test_what_makes_a_stage_is_none():
    with pytest.raises(ConfigError, match=r"'gaussian_blur' is not a stage yet: write gaussian_blur\(...\)"):
        on_device(gaussian_blur)
