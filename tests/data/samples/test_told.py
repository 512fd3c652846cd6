"""What samples that do not fit make of a run, seen through a Pipeline: one line that names the sample and its place."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from formats import write_tar

from raytrain import Pipeline
from raytrain.data import image_folder, padded, ragged, stage, webdataset
from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.data.producer import Producer, StreamWork
from raytrain.data.samples.block import batches_of
from raytrain.errors import ConfigError, DataError
from raytrain.record.status import Failure


class Rows:
    """Sample i is what `of` makes of i."""

    def __init__(self, of, count=6):
        self.of, self.count = of, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"x": self.of(index)}


def batches(source, stages=(), batch_size=6, **options):
    """Of the validation split, which keeps its order: ids are places."""
    opened = Pipeline(source, stages, batch_size=batch_size, validation=source, **options).open(0)
    plan = StreamPlan(StreamSpec(opened.num_validation, opened.num_validation, batch_size, 0, epochs=1), Position(), 1)
    producer = Producer(StreamWork(plan, opened.pickled_splits()))
    [segment] = [n for n, part in enumerate(plan.segments) if part.split == "validation"]
    return [batches_of(producer.block(segment, n, 1))[0] for n in range(plan.segments[segment].num_batches)]


def told(*arguments, error=DataError, **options):
    with pytest.raises(error) as caught:
        batches(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


LATER = {
    "shape": (lambda i: np.zeros(3 if i >= 4 else 2), "shapes", "(2,) float64", "(3,) float64"),
    "rank": (lambda i: np.zeros((2, 1) if i >= 4 else 2), "shapes", "(2,) float64", "(2, 1) float64"),
    "dtype": (lambda i: np.zeros(2, "f4" if i >= 4 else "f8"), "types", "(2,) float64", "(2,) float32"),
    "text": (lambda i: "four" if i >= 4 else np.zeros(2), "types", "(2,) float64", "text"),
    "bytes": (lambda i: b"four" if i >= 4 else "text", "types", "text", "bytes"),
}


@pytest.mark.parametrize("how", LATER)
@pytest.mark.parametrize("by", ["the data set", "a stage"])
def test_a_later_sample_that_does_not_go_with_the_first(how, by):
    of, what, first, other = LATER[how]
    stages = []
    if by == "a stage":
        of, stages = np.int64, [stage(of, on="x")]
    differ = f"field `x` is {first} of Rows[0] and {other} of Rows[4]"
    assert told(Rows(of), stages).startswith(f"samples come out in different {what}: {differ}; have a stage make")


@pytest.mark.parametrize(("rule", "fits"), [(padded(), True), (ragged(), True), (None, False)])
def test_shapes_that_differ_want_a_collation(rule, fits):
    source = Rows(lambda i: np.zeros(1 + i % 2))
    if fits:
        assert batches(source, collate={"x": rule})[0].key.tolist() == list(range(6))
        return
    assert told(source).endswith("make them alike, or give it a collation (collate: {x: padded} or ragged)")


def test_files_are_named_by_their_paths(images, tmp_path):
    root = images / "train"
    first, second = sorted(root.glob("dark/*.jpg"))[:2]
    lengths = stage(lambda data: np.frombuffer(data, np.uint8), on="image")
    message = told(image_folder(root), [lengths])
    assert f" of {first} and " in message and f" of {second}; " in message


@pytest.mark.parametrize("key", ["fields", "collate"])
def test_a_field_that_there_is_not(key):
    given = {"fields": {"y": {"dtype": "float32"}}, "collate": {"y": padded()}}[key]
    message = told(Rows(lambda i: np.zeros(2)), error=ConfigError, **{key: given})
    assert message == f"data.{key} wants field `y`; there are `x`"


@pytest.mark.parametrize(
    ("of", "given", "message"),
    [
        (np.float64, {"dtype": "flaot32"}, "data.fields.x: unknown dtype 'flaot32'; did you mean 'float32'? (known: "),
        (str, {"dtype": "int64"}, "data.fields.x: field `x` is text, which arrives as it was sent"),
    ],
)
def test_what_cannot_become_of_a_field(of, given, message):
    assert told(Rows(of), error=ConfigError, fields={"x": given}).startswith(message)


def test_text_that_is_no_utf_8_is_left_out_and_listed(tmp_path):
    write_tar(tmp_path / "0.tar", {"a.txt": b"whole", "b.txt": b"\xff\xfe", "c.txt": "é".encode()})
    [batch] = batches(webdataset(tmp_path), batch_size=3)
    assert (batch.key.tolist(), batch.fields["txt"]) == ([0, 2], ["whole", "é"])
    reason = (
        "ValueError: field `txt` is no text: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"
    )
    assert batch.header.failures == [Failure(1, f"{tmp_path}/0.tar:b", reason, None)]


def test_json_that_is_none_says_so(tmp_path):
    write_tar(tmp_path / "0.tar", {"a.json": b"1", "b.json": b'{"label": 0'})
    [batch] = batches(webdataset(tmp_path), batch_size=2)
    assert batch.fields["json"].tolist() == [1]
    assert batch.header.failures[0].reason.startswith("ValueError: field `json` is no json: Expecting ")


@pytest.mark.parametrize("where", ["the data set", "a stage"])
def test_what_cannot_be_pickled(where):
    lock = threading.Lock()
    if where == "the data set":
        source, stages = Rows(lambda i: np.zeros(i if lock.locked() else 2)), []
    else:
        source, stages = Rows(np.float64), [stage(lambda x: x if lock else x, on="x")]
    assert told(source, stages, error=ConfigError) == (
        "the data and its stages cannot be sent to other processes: TypeError: cannot pickle '_thread.lock' object; "
        "let an object open files and connections when it first needs them"
    )
