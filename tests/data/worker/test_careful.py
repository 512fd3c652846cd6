"""A block prepared in workers that may die, which here are functions that end as Ray says that workers have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import write_images
from ray.exceptions import OutOfMemoryError, WorkerCrashedError

from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.data.pipeline import Pipeline
from raytrain.data.producer import Producer, StreamWork
from raytrain.data.samples.block import batches_of
from raytrain.data.sources.kinds.image_folder import image_folder
from raytrain.data.stages.geometry import resize
from raytrain.data.stages.images import decode
from raytrain.data.worker import careful as module
from raytrain.data.worker import task
from raytrain.data.worker.careful import CRUMB, LOG, Careful
from raytrain.data.worker.crumb import Crumb
from raytrain.errors import DataError


@pytest.fixture
def producer(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PAUSE_S", 0.0)
    folder = write_images(tmp_path / "images", {"cat": 8})
    opened = Pipeline(image_folder(folder), [decode(), resize(8)], batch_size=4).open(0)
    plan = StreamPlan(StreamSpec(8, 0, 4, 0, epochs=1), Position(), 1)
    made = Producer(StreamWork(plan, opened.pickled_splits()))
    made.crumb = Crumb()
    return made


class Workers:
    """Those that die at some samples, by id what is left of the stages then and what is written of their end."""

    def __init__(self, producer, deadly, error=WorkerCrashedError):
        self.producer, self.deadly, self.error = producer, deadly, error

    def __call__(self, trial):
        place, ids = trial.place, trial.ids
        if ids is None:
            ids = np.concatenate([self.producer.samples(0, place["batch"] + n)[2] for n in range(place["count"])])
        for each in ids.tolist():
            if each in self.deadly and each not in trial.left_out["train"]:
                crumb = Crumb()
                crumb.into(Path(trial.folder, CRUMB))
                left, words = self.deadly[each]
                crumb.batch(place["batch"], place["cut"])
                crumb.sample(each)
                crumb.stage(left)
                if words is not None:
                    Path(trial.folder, LOG).write_text(words)
                raise self.error()
        return trial.run(self.producer)


def failures_of(table):
    return {failure.id: failure for batch in batches_of(table) for failure in batch.header.failures}


@pytest.mark.parametrize(
    ("left", "words", "error", "reason", "stage"),
    [
        (2, "Fatal Python error: Aborted\n", WorkerCrashedError, "its worker died in `decode` (SIGABRT)", None),
        (1, "", WorkerCrashedError, "its worker died in `resize` (killed)", "resize"),
        (-1, None, WorkerCrashedError, "its worker died in `read` (killed before it had begun)", None),
        (1, "", lambda: OutOfMemoryError("x"), "its worker died in `resize` (out of memory)", "resize"),
        (1, "Timeout (0:00:07)!\n", WorkerCrashedError, "`resize` took longer than 7 s", "resize"),
    ],
)
def test_a_sample_is_named_with_what_its_worker_died_of(producer, left, words, error, reason, stage):
    careful = Careful(producer, Workers(producer, {3: (left, words)}, error), 7.0)
    table = careful.block(0, 0, 2)
    [failure] = failures_of(table).values()
    assert (failure.id, failure.reason, failure.stage, failure.killed) == (3, reason, stage, True)
    assert failure.where.endswith("cat/003.jpg")
    keys = np.concatenate([batch.key for batch in batches_of(table)])
    assert sorted(keys) == [0, 1, 2, 4, 5, 6, 7]
    again = producer.block(0, 0, 2)
    assert failures_of(again) == {3: failure}, "it is not tried again"


def test_deaths_that_no_sample_is_to_blame_for_end_the_run(producer):
    def dies(trial):
        if trial.ids is None:
            raise WorkerCrashedError()

    with pytest.raises(DataError, match="workers go on dying of the batch from .*jpg to .*jpg, the last") as caught:
        Careful(producer, dies, None).block(0, 0, 1)
    assert "and of no sample alone; is there memory for as many workers as CPUs?" in str(caught.value)


def test_an_error_of_the_users_is_handed_on(producer):
    def fails(trial):
        raise DataError("as it is")

    with pytest.raises(DataError, match="as it is"):
        Careful(producer, fails, None).block(0, 0, 1)


def test_a_trial_has_a_bound_on_its_memory_and_lifts_it():
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    with module._bounded_memory():
        bound, _ = resource.getrlimit(resource.RLIMIT_DATA)
        with pytest.raises(MemoryError):
            np.empty(bound, np.uint8)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_a_task_that_is_tried_for_ever_says_so(producer, monkeypatch):
    import contextlib

    import pyarrow as pa

    monkeypatch.setattr(task, "producer_of", lambda ref: (StreamWork(producer.plan, b""), producer))
    monkeypatch.setattr(task, "earlier_tries", lambda *_: contextlib.nullcontext(task.MOST_TRIES))
    with pytest.raises(DataError, match="a preprocessing task has been begun 31 times, and its worker or host"):
        next(task.produce(pa.table({"segment": [0], "batch": [0], "count": [1]}), work_ref=["a reference"]))
