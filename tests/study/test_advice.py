"""What helps where a stage is dear."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from raytrain.data.stages.registry import STAGES
from raytrain.study.advice import OF_YOUR_OWN, WAITING, WHAT_HELPS, advice, what_helps


@dataclass
class Cost:
    name: str
    cpu_s: float
    wall_s: float


def test_the_dear_stages_are_named_the_dearest_first():
    costs = [Cost("read", 5, 5), Cost("resize", 25, 25), Cost("decode", 60, 60), Cost("to_uint8", 10, 10)]
    assert advice(costs) == [
        f"decode is 60% of the CPU time. What helps: {WHAT_HELPS['decode']}",
        f"resize is 25% of the CPU time. What helps: {WHAT_HELPS['resize']}",
    ]
    assert "store the images nearer to the size that you train on" in WHAT_HELPS["decode"]


def test_reads_that_wait_come_first():
    """75 of 300 s of workers' time."""
    costs = [Cost("read", 1, 76), Cost("decode", 224, 224)]
    assert advice(costs)[0] == f"reading waits for 25% of the stages' time. What helps: {WAITING}"
    assert len(advice(costs)) == 2
    assert [line.split()[0] for line in advice([Cost("read", 1, 75), Cost("decode", 225, 225)])] == ["decode"]


def test_stages_that_wait_for_a_core_are_no_reads():
    assert not any("reading" in line for line in advice([Cost("read", 1, 1), Cost("decode", 1, 99)]))


def test_no_more_than_three_lines_and_none_of_nothing():
    assert len(advice([Cost(str(number), 25, 99) for number in range(4)])) == 3
    assert advice([]) == advice([Cost("read", 0, 0)]) == []


@pytest.mark.parametrize(
    ("stage", "kind"),
    [("resize_2", "resize"), ("center_crop_12", "center_crop"), ("torchvision.ColorJitter_2", "torchvision")],
)
def test_a_stages_kind_is_told_by_its_name(stage, kind):
    assert what_helps(stage) == WHAT_HELPS[kind]


def test_a_function_of_your_own_is_yours_to_mend():
    assert what_helps("speckle") == what_helps("speckle_2") == OF_YOUR_OWN


def test_every_stage_of_a_job_file_has_its_advice():
    assert set(WHAT_HELPS) == {*STAGES, "read"}
