"""What helps where a stage is dear."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import numpy as np
import pytest

from raytrain import Pipeline
from raytrain.data import decode, from_torch, resize, stage, torchvision
from raytrain.data.stages.registry import STAGES, parse_stage
from raytrain.study.advice import OF_YOUR_OWN, READING, WAITING, advice

HELPS = {"decode": "store them smaller", "resize": "do without"}


@dataclass
class Cost:
    name: str
    cpu_s: float
    wall_s: float


def test_the_dear_stages_are_named_the_dearest_first():
    costs = [Cost("read", 5, 5), Cost("resize", 25, 25), Cost("decode", 60, 60), Cost("to_uint8", 10, 10)]
    assert advice(costs, HELPS) == [
        "decode is 60% of the CPU time. What helps: store them smaller",
        "resize is 25% of the CPU time. What helps: do without",
    ]


def test_reads_that_wait_come_first():
    """75 of 300 s of workers' time."""
    costs = [Cost("read", 1, 76), Cost("decode", 224, 224)]
    assert advice(costs, HELPS)[0] == f"reading waits for 25% of the stages' time. What helps: {WAITING}"
    assert len(advice(costs, HELPS)) == 2
    assert [line.split()[0] for line in advice([Cost("read", 1, 75), Cost("decode", 225, 225)], HELPS)] == ["decode"]


def test_stages_that_wait_for_a_core_are_no_reads():
    assert not any("reading" in line for line in advice([Cost("read", 1, 1), Cost("decode", 1, 99)], HELPS))


def test_no_more_than_three_lines_and_none_of_nothing():
    assert len(advice([Cost(str(number), 25, 99) for number in range(4)], {})) == 3
    assert advice([], {}) == advice([Cost("read", 0, 0)], {}) == []


class Photos:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return {"image": np.zeros((8, 8, 3), np.uint8), "data": b"x"}


def helps_of(*stages):
    """By the names that the stages have in a pipeline."""
    opened = Pipeline(from_torch(Photos()), stages, batch_size=1).open(0)
    return {each.name: each.helps for each in opened.splits["train"].stages}


def test_what_helps_is_the_stages_own_whatever_it_is_called():
    def gaussian_blur(image):
        return image

    blur = parse_stage({"gaussian_blur": {"kernel_size": 3}})
    helps = helps_of(resize(6), blur, gaussian_blur, resize(4), torchvision("ColorJitter"), stage(len, name="decode"))
    assert [*helps] == ["resize", "gaussian_blur", "gaussian_blur_2", "resize_2", "torchvision.ColorJitter", "decode"]
    said = dict(
        zip(helps, (advice([Cost(name, 1, 1)], helps)[0].partition("helps: ")[2] for name in helps), strict=True)
    )
    assert (
        said["resize"] == said["resize_2"] == resize(4).helps == "store the images nearer to the size that you train on"
    )
    assert "a smaller kernel" in said["gaussian_blur"]
    assert said["gaussian_blur_2"] == said["decode"] == OF_YOUR_OWN, "functions of the user's"
    assert "raytrain's own stage of that name" in said["torchvision.ColorJitter"]


def test_a_decode_that_looks_ahead_says_what_helps_still():
    [decoding, _] = helps_of(decode(on="data"), resize(4, on="data")).values()
    assert decoding == decode().helps


def test_a_function_that_is_called_read_is_not_taken_for_the_reading():
    def read(image):
        return image

    helps = helps_of(read)
    assert [*helps] == ["read_2"]
    lines = advice([Cost("read", 1, 1), Cost("read_2", 1, 1)], helps)
    assert [line.partition("helps: ")[2] for line in lines] == [READING, OF_YOUR_OWN]


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_of_ours_says_what_helps(name):
    parameters = inspect.signature(STAGES[name]).parameters.values()
    given = {"dtype": "uint8", "transform": "Resize"}
    needed = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    assert STAGES[name](**{each: given.get(each, 3) for each in needed}).helps
