"""A rank whose batch has no sample: what shape the image has that stands in for it. No Ray: the rank is fed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raytrain.config.data import Normalize
from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.data.samples.block import NO_SAMPLE, Header, Prepared, batches_of, to_table
from raytrain.device.loader import RankIngest
from raytrain.errors import DataError
from raytrain.record.status import Failure

LIKE = np.empty((6, 5, 3), np.float32)


class Heard:
    """An actor's handle that does nothing."""

    def __getattr__(self, name):
        return self

    def remote(self, *arguments):
        return None


class ByHand(RankIngest):
    def _fetch(self) -> None:
        """Nobody fetches: the test puts batches into the queue."""


def ranks_batches(*made: tuple[np.ndarray, int]):
    """What a rank gets of a pass whose batches are (a sample's like, number of samples)."""
    plan = StreamPlan(StreamSpec(2 * len(made), 0, 2, 0, epochs=1), Position(), 1)
    rank = ByHand(Heard(), "a", 0, plan, torch.device("cpu"), Normalize(mean=(0.5,), std=(0.5,)))
    for number, (like, count) in enumerate(made):
        failures = [Failure(9, "a.jpg", "ValueError: broken")] if not count else []
        header = Header(0, number, {"read": 0.0}, {"read": 0.0}, failures)
        samples = [np.ones_like(like)] * count
        prepared = Prepared.of(samples, like, np.zeros(count, np.int64), np.arange(count), header, together=True)
        rank._queue.put(rank._arriving(0, number, batches_of(to_table([prepared]))[0]), timeout=600)
    return list(rank.segment(0))


def test_it_has_the_shape_that_the_worker_knew():
    [first] = ranks_batches((LIKE, 0))
    assert (first.stand_in, first.weight, first.ids.tolist()) == (True, 0.0, [])
    assert (tuple(first.image.shape), first.label.tolist()) == ((1, 3, 6, 5), [0])


def test_it_has_the_shape_of_an_earlier_batch_where_the_worker_knew_none():
    first, second = ranks_batches((LIKE, 2), (NO_SAMPLE, 0))
    assert (first.stand_in, second.stand_in) == (False, True)
    assert tuple(second.image.shape) == (1, *first.image.shape[1:]) == (1, 3, 6, 5)
    assert second.image.dtype == first.image.dtype


def test_without_any_sample_the_run_ends_and_says_why():
    with pytest.raises(DataError) as error:
        ranks_batches((NO_SAMPLE, 0))
    assert str(error.value) == (
        "no train sample could be prepared, neither of the first batch nor of those tried all over the data set, so "
        "that there is nothing to train on: a.jpg (ValueError: broken); mend the files or data.stages"
    )
