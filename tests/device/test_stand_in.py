"""What a rank makes of batches, and what stands in for one without a sample. No Ray: the rank is fed by hand."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch

from raytrain.config.data import Normalize
from raytrain.data import Field, padded, ragged
from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.data.samples.block import Header, Prepared, batches_of, to_table
from raytrain.data.samples.collate import columns_of, without_samples
from raytrain.data.samples.fields import Schema
from raytrain.device.arrival import arrivals
from raytrain.device.batch import Ragged
from raytrain.device.loader import RankIngest
from raytrain.errors import DataError
from raytrain.record.status import Failure

ARRIVED = arrivals(Schema({"image": Field("float32", (6, 5, 3), "image")}), {}, Normalize(mean=(0.5,), std=(0.5,)))
IMAGE = {"image": np.ones((6, 5, 3), np.float32), "label": np.int64(4)}


class Heard:
    """An actor's handle that does nothing."""

    def __getattr__(self, name):
        return self

    def remote(self, *arguments):
        return None


class ByHand(RankIngest):
    def _fetch(self) -> None:
        """Nobody fetches: the test puts batches into the queue."""


def prepared(number: int, samples: list[dict], collate=None, like: dict | None = None) -> Prepared:
    """`like` is a sample whose form the worker knew where there is none."""
    failures = [] if samples else [Failure(9, "a.jpg", "ValueError: broken", "speckle")]
    columns = columns_of(samples or [like], collate or {}, str, together=True) if samples or like else {}
    if not samples:
        columns = {name: without_samples(column) for name, column in columns.items()}
    return Prepared(columns, np.arange(len(samples)), Header(0, number, {"read": 0.0}, {"read": 0.0}, failures))


def ranks_batches(*made: Prepared, arrived=ARRIVED):
    """What a rank gets of a pass of these batches."""
    plan = StreamPlan(StreamSpec(2 * len(made), 0, 2, 0, epochs=1), Position(), 1)
    rank = ByHand(Heard(), "a", 0, plan, torch.device("cpu"), arrived)
    for number, each in enumerate(made):
        rank._queue.put(rank._arriving(0, number, batches_of(to_table([each]))[0]), timeout=600)
    return list(rank.segment(0))


def test_it_has_the_shape_that_the_worker_knew():
    [first] = ranks_batches(prepared(0, [], like=IMAGE))
    assert (first.stand_in, first.weight, first.ids.tolist(), first.size) == (True, 0.0, [], 1)
    assert (tuple(first.image.shape), first.label.tolist()) == ((1, 3, 6, 5), [0])


def test_it_has_the_shape_of_an_earlier_batch_where_the_worker_knew_none():
    first, second = ranks_batches(prepared(0, [IMAGE, IMAGE]), prepared(1, []))
    assert (first.stand_in, second.stand_in) == (False, True)
    assert tuple(second.image.shape) == (1, *first.image.shape[1:]) == (1, 3, 6, 5)
    assert second.image.dtype == first.image.dtype


def test_without_any_sample_the_run_ends_and_says_why():
    with pytest.raises(DataError) as error:
        ranks_batches(prepared(0, []))
    assert str(error.value) == (
        "no train sample could be prepared, neither of the first batch nor of those tried all over the data set, so "
        "that there is nothing to train on: a.jpg (`speckle`: ValueError: broken); mend the files or data.stages"
    )


EVERY_FORM = {
    "dense": np.ones(3, np.float32),
    "number": np.float64(2),
    "half": np.ones(2, ml_dtypes.bfloat16),
    "text": "a",
    "data": b"a",
    "tokens": np.arange(3),
    "grid": np.ones((2, 3), np.float32),
    "points": np.ones((2, 4), np.float32),
}
COLLATE = {"tokens": padded(-1), "grid": padded(axes=(0, 1)), "points": ragged()}


@pytest.mark.parametrize("known", ["by the worker", "from an earlier batch"])
def test_there_is_one_of_every_form(known):
    """What is padded is full: a mean over a mask of nothing would be no number, and 0 times that is none either."""
    if known == "by the worker":
        [blank] = ranks_batches(prepared(0, [], COLLATE, like=EVERY_FORM), arrived={})
    else:
        _, blank = ranks_batches(prepared(0, [EVERY_FORM] * 2, COLLATE), prepared(1, []), arrived={})
    assert blank.stand_in and blank.size == 1
    assert blank["dense"].tolist() == [[0, 0, 0]] and blank["number"].tolist() == [0]
    assert (blank["half"].dtype, blank["half"].tolist()) == (torch.bfloat16, [[0, 0]])
    assert (blank["text"], blank["data"]) == ([""], [b""])
    assert blank["tokens"].tolist() == [[0, 0, 0]]
    assert (blank["tokens_mask"].tolist(), blank["tokens_length"].tolist()) == ([[True] * 3], [3])
    assert (blank["grid_mask"].all().item(), blank["grid_length"].tolist()) == (True, [[2, 3]])
    assert isinstance(blank["points"], Ragged)
    assert [tuple(each.shape) for each in blank["points"]] == [(1, 4)]
    assert blank["points"].offsets.tolist() == [0, 1]
    blank.empty()
    assert blank.size == 0 and all(len(value) == 0 for value in blank.values())


def test_every_form_arrives_as_it_was_sent():
    other = {**EVERY_FORM, "tokens": np.arange(1), "points": np.zeros((0, 4), np.float32), "text": "é"}
    [batch] = ranks_batches(replace(prepared(0, [EVERY_FORM, other], COLLATE), part=np.array([0, 1])), arrived={})
    assert (batch["half"].dtype, batch["half"].tolist()) == (torch.bfloat16, [[1, 1], [1, 1]])
    assert (batch["dense"].dtype, batch["number"].dtype) == (torch.float32, torch.float64)
    assert batch["tokens"].tolist() == [[0, 1, 2], [0, -1, -1]] and batch["text"] == ["a", "é"]
    assert (batch["points"].offsets.tolist(), batch["points"].lengths.tolist()) == ([0, 2, 2], [2, 0])
    assert (batch.parts.tolist(), batch.size) == ([0, 1], 2)


@pytest.mark.parametrize(
    ("later", "told"),
    [
        ({"x": np.zeros(2, np.float64)}, "field `x` was float32 with 1 axes and is float64 with 1 axes"),
        ({"x": np.zeros((2, 1), np.float32)}, "field `x` was float32 with 1 axes and is float32 with 2 axes"),
        ({"x": "a"}, "field `x` was float32 with 1 axes and is text"),
        ({"y": np.zeros(2, np.float32)}, "field `x` was float32 with 1 axes and is not there"),
        ({"x": np.zeros(2, np.float32), "y": b"a"}, "field `y` was not there and is bytes"),
    ],
)
def test_a_field_that_changes_within_the_run_is_told(later, told):
    with pytest.raises(DataError) as error:
        ranks_batches(prepared(0, [{"x": np.zeros(2, np.float32)}]), prepared(1, [later]))
    assert str(error.value) == (
        f"the train samples have changed within the run: {told} in batch 1, first of id 0; every sample must have the "
        "same fields, of the same type"
    )


def test_lengths_may_differ_from_batch_to_batch():
    made = [prepared(n, [{"x": np.zeros(length)}], {"x": padded()}) for n, length in enumerate((2, 5))]
    assert [tuple(batch["x"].shape) for batch in ranks_batches(*made, arrived={})] == [(1, 2), (1, 5)]


def test_a_sample_that_an_epoch_has_carried_is_told_by_its_id():
    """Its key is beyond the ids: those of 4 samples, one epoch late."""
    later = replace(prepared(1, [{"x": np.float32(1)}]), key=np.array([4 + 3]))
    with pytest.raises(DataError, match="is float32 with 0 axes in batch 1, first of id 3;"):
        ranks_batches(prepared(0, [{"x": np.int64(1)}]), later)
