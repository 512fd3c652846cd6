"""Stages that run here or there, batch by batch: nobody can tell from the samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moved_stages import Pictures, Run, assert_same
from torchvision.transforms import v2

from raytrain import Pipeline
from raytrain.data import (
    center_crop,
    color_jitter,
    decode,
    from_torch,
    gaussian_blur,
    held_out,
    image_folder,
    on_cpu,
    on_device,
    padded,
    random_crop,
    random_erasing,
    random_horizontal_flip,
    random_resized_crop,
    random_vertical_flip,
    resize,
    stage,
    to_dtype,
    to_uint8,
)
from raytrain.data.samples.fields import Field, Schema
from raytrain.data.stages.geometry import random_vertical_flip_field
from raytrain.data.stages.registry import as_stage, parse_stage
from raytrain.data.stages.settling import settle
from raytrain.data.stages.stage import Stage
from raytrain.device.forms import FORMS
from raytrain.errors import ConfigError, DataError

SIDES = Pictures().sides
IMAGE, MASK = Field("uint8", (*SIDES, 3), "image"), Field("uint8", SIDES, "mask")
WHOLE = center_crop(SIDES)  # behind it, sizes are known
ROUNDINGS = 4  # levels of 255: each of several changes rounds


def brighter(image: np.ndarray, by: int = 5) -> np.ndarray:
    return np.minimum(image.astype(np.int16) + by, 255).astype(np.uint8)


def brighter_there(images: torch.Tensor, by: int = 5) -> torch.Tensor:
    return (images.to(torch.int16) + by).clamp(max=255).to(torch.uint8)


def own(form: Any = brighter_there, channels: int | None = None) -> Stage:
    return stage(brighter, gives={"image": Field("uint8", (*SIDES, channels), "image")}, device=form)


def cuts(*stages: Any, **fields: Field) -> tuple[int, ...]:
    schema = Schema({"image": IMAGE, "mask": MASK, **fields})
    return settle([as_stage(each) for each in stages], schema, "data.stages").cuts


STAGES = [
    gaussian_blur(3, times=2),
    color_jitter(0.4, 0.4, 0.4, 0.1),
    random_horizontal_flip(),
    random_vertical_flip(),
    random_erasing(1.0, value=7),
    own(),
]


@settings(deadline=None, max_examples=12)
@given(st.permutations(STAGES), st.booleans(), st.lists(st.integers(0, 7), min_size=1, max_size=4))
def test_a_sample_is_the_same_wherever_its_stages_run(order, crops, each_batch):
    stages = [WHOLE, random_crop(9), *order] if crops else [WHOLE, *order]
    stages = [each for each in stages if not (crops and each.form)]  # which says what size it gives
    usual = Run(stages)
    known = usual.opened.on_device["train"].cuts
    assert known == tuple(range(1, len(stages) + 1))
    assert_same(usual, Run(stages, cuts=[known[each % len(known)] for each in each_batch]), ROUNDINGS)


def test_what_runs_nowhere_else_on_the_cpu_and_what_may_on_the_device():
    run = Run([WHOLE, gaussian_blur(3), random_horizontal_flip(), random_crop(8)], cuts=[2])
    here = [each.name for each in run.opened.splits["train"].stages_at[2]]
    assert here == ["center_crop", "gaussian_blur", "draw"]
    assert set(run.meter.device_stage_s) == {"random_horizontal_flip", "random_crop"}
    assert run.wire_bytes == 10 * (1 + 2 * 8), "of what travels for the stages that moved, and no others"
    assert run.opened.on_device["train"].names == (*here[:2], "random_horizontal_flip", "random_crop")


def test_which_stages_measurement_may_move():
    blur, flip = gaussian_blur(3), random_horizontal_flip()
    assert cuts(blur, flip) == (0, 1, 2)
    assert cuts(blur, on_cpu(flip)) == (2,), "what is put somewhere stays there, and what is before it"
    assert cuts(on_cpu(blur), flip) == (1, 2)
    assert cuts(blur, flip, on_device(to_uint8())) == (0, 1, 2), "the last runs on the device in any case"
    assert cuts(blur, on_device(flip)) == (0, 1)
    assert cuts(flip, stage(brighter), blur) == (3,), "nobody knows how large an image is behind a function"
    assert cuts(flip, own(), blur) == (0, 1, 2, 3), "unless it says so, and gives the same on the device"
    assert cuts(v2.RandomCrop(4)) == (1,), "torchvision's draw from the device's own generator"
    assert cuts(blur, image=Field("uint8", (None, None, 3), "image")) == (1,), "sizes differ"
    assert cuts(blur, image=Field("uint8", (None, None, None), "image")) == (1,), "and nobody knows of what"
    assert cuts(resize(8), blur, image=Field("uint8", (None, None, 3), "image")) == (2,), "one side of them still"
    assert cuts(resize((8, 8)), blur, image=Field("uint8", (None, None, 3), "image")) == (1, 2)
    unknown = Field("uint8", (*SIDES, None), "image")
    assert cuts(blur, flip, image=unknown) == (0, 1, 2), "the channels are what they are at the end"
    assert cuts(blur, own(channels=3), image=unknown) == (2,), "unless a stage makes them three"
    assert cuts(flip, boxes=Field("float32", (None, 4), "boxes")) == (1,)


def test_what_is_decoded_for_the_next_stage_stays_with_it(pets):
    opened = Pipeline(image_folder(pets), [decode(), random_resized_crop(8), gaussian_blur(3), to_uint8()]).open(0)
    assert opened.on_device["train"].cuts == (2, 3, 4)


def test_fields_that_are_no_tensors_of_a_batch_stay_on_the_cpu():
    blur = gaussian_blur(3)
    for collate, expected in (({"image": padded()}, (2,)), ({"mask": padded()}, (1, 2))):
        opened = Pipeline(from_torch(Pictures(), masks=["mask"]), [WHOLE, blur], collate=collate).open(0)
        assert opened.on_device["train"].cuts == expected


def test_the_validation_moves_what_it_has_in_common():
    stages = [WHOLE, gaussian_blur(3), random_horizontal_flip(), to_dtype("float32")]
    pipeline = Pipeline(from_torch(Pictures(), masks=["mask"]), stages, validation=held_out(0.5), batch_size=1)
    train, validation = (pipeline.open(0).on_device[split] for split in ("train", "validation"))
    assert (train.cuts, validation.cuts) == ((1, 2, 3, 4), (1, 2))
    assert [validation.alike({each.name for each in train.at(cut)}) for cut in train.cuts] == [1, 1, 1, 2]
    other = Pipeline(
        pipeline.train,
        stages,
        validation=held_out(0.5),
        validation_stages=[WHOLE, random_crop(9), to_dtype("float32")],
        batch_size=1,
    )
    train, validation = (other.open(0).on_device[split] for split in ("train", "validation"))
    found = [validation.alike({each.name for each in train.at(cut)}) for cut in train.cuts]
    assert found == [2, 2, 2, 3], "random_crop is not what training has on the device"


@pytest.mark.parametrize("most", [1, 3, 7])
def test_a_batch_that_does_not_fit_is_done_in_parts(most, monkeypatch):
    """On a device whose memory is emulated: more than `most` samples are refused."""
    from raytrain.device import stages as device_stages

    usual, changed, sizes = Run([WHOLE, own(), random_horizontal_flip()]), device_stages._changed, []

    def refusing(stage, fields, drawn):
        sizes.append(len(fields["image"]))
        if sizes[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return changed(stage, fields, drawn)

    monkeypatch.setattr(device_stages, "_changed", refusing)
    assert_same(usual, Run([WHOLE, own(), random_horizontal_flip()], batch_size=5, cuts=[1]), 0)
    assert max(sizes) == 5 and any(size <= most for size in sizes)


CALLS: list[int] = []


def greedy(images: torch.Tensor, by: int = 0) -> torch.Tensor:
    CALLS.append(len(images))
    raise torch.OutOfMemoryError("CUDA out of memory")


def at_second(images: torch.Tensor) -> torch.Tensor:
    CALLS.append(len(images))
    if len(CALLS) == 1:
        raise NotImplementedError("not for 'Byte'")
    return brighter_there(images)


def test_memory_that_is_too_small_for_one_sample_or_for_a_function_of_the_batch():
    CALLS.clear()
    with pytest.raises(DataError, match="the stages on the device need more memory than it has, on a batch: CUDA out"):
        Run([WHOLE, own(greedy)], cuts=[1])
    assert CALLS == [4, 2, 1]
    CALLS.clear()
    with pytest.raises(DataError, match="need more memory than it has"):
        Run([on_device(greedy)])
    assert CALLS == [4], "what a function makes of a batch need not be what it makes of its halves"


def failing_once(form: Any) -> Any:
    calls = []

    def fails(*given: Any, **options: Any) -> Any:
        calls.append(given)
        if len(calls) == 1:
            raise NotImplementedError("not here")
        return form(*given, **options)

    return fails


def test_what_fails_on_the_device_runs_on_its_host(caplog, monkeypatch):
    """The device's own failure is emulated: the form fails when it is first called."""
    CALLS.clear()
    stages = [WHOLE, own(at_second)]
    assert_same(Run([WHOLE, own()]), Run(stages, cuts=[1]), 0)
    assert CALLS == [4], "from then on its other form is called, sample by sample"
    assert [each.getMessage() for each in caplog.records] == [
        "the stage `brighter` failed on the device and runs on the rank's CPU there: NotImplementedError: not for "
        "'Byte'"
    ]
    monkeypatch.setitem(FORMS, random_vertical_flip_field, failing_once(FORMS[random_vertical_flip_field]))
    stages = [WHOLE, random_vertical_flip()]
    assert_same(Run(stages), Run(stages, cuts=[1]), 0)
    assert "`random_vertical_flip` failed on the device" in caplog.records[-1].getMessage()
    CALLS.clear()
    with pytest.raises(DataError, match="the stage `at_second` failed on the device, on a batch: NotImplementedError"):
        Run([on_device(at_second)])


def drawing(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: stage(drawing, device=brighter_there), "`device` is for a function that is not random, of a field or"),
        (lambda: stage(brighter, on="*", device=brighter_there), "`device` is for a function that is not random"),
        (lambda: stage(brighter, whole_batch=True, device=brighter_there), "`device` is for a function that is not"),
        (lambda: stage(brighter, device=lambda images: images, by=3), "has no option 'by'"),
    ],
)
def test_a_form_for_the_device_is_of_the_same_fields_and_options(make, told):
    with pytest.raises(ConfigError) as error:
        make()
    assert told in str(error.value)


def test_a_job_file_gives_both_forms():
    made = parse_stage({f"{__name__}:brighter": {"device": f"{__name__}:brighter_there", "by": 3, "on": "image"}})
    assert (made.form, made.options, made.may_move) == (brighter_there, {"by": 3}, True)
    assert parse_stage({f"{__name__}:brighter": {"place": "cpu"}}).may_move is False
    described = {"dtype": "uint8", "shape": [12, 17, None], "kind": "image"}
    made = parse_stage({f"{__name__}:brighter": {"gives": {"image": described}}})
    assert made.gives == own().gives
    for wrong in (
        {**described, "dtype": "uint9"},
        {**described, "kind": "picture"},
        {"size": 3},
        "uint8",
        ("uint8", 3),
    ):
        with pytest.raises(ConfigError, match="`gives` says of field `image` its dtype, shape and kind, such as"):
            parse_stage({f"{__name__}:brighter": {"gives": {"image": wrong}}})
    with pytest.raises(ConfigError, match="has no 'brightest'; did you mean 'brighter'"):
        parse_stage({f"{__name__}:brighter": {"device": f"{__name__}:brightest"}})


def test_workers_do_not_get_the_form_for_the_device():
    run = Run([WHOLE, own()])
    assert [each.form for each in run.opened.splits["train"].stages] == [None, None]
    assert [each.form for each in run.opened.on_device["train"].stages] == [brighter_there]
