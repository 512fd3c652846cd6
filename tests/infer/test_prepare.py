"""Preparing, a stream and its answers, in this process: against plain torch, with padding into size classes too."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import predicting
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from raytrain import PredictionJob
from raytrain.data.producer import Producer
from raytrain.errors import ConfigError, DataError, PredictionError
from raytrain.infer import prepare as preparing
from raytrain.infer import stream
from raytrain.infer.backends import load as loading
from raytrain.infer.backends.find import find_model
from raytrain.infer.contract import ModelFile, Outputs, StreamShape, Wanted
from raytrain.infer.output.answers import answers
from raytrain.infer.plan import EXAMPLES, InferencePlan, find_examples, made_by
from raytrain.infer.predict import stream_work
from raytrain.infer.prepare import prepared
from raytrain.infer.sizes import Sizes
from raytrain.infer.stream import Stream
from raytrain.infer.streams import binding

pytestmark = pytest.mark.usefixtures("one_thread", "timed_briefly")


@pytest.fixture
def timed_briefly(monkeypatch):
    monkeypatch.setattr(stream, "ALONE_S", 0.0)


def plan_of(tree: dict) -> InferencePlan:
    job = PredictionJob.from_dict(tree)
    return InferencePlan.of(job, find_model(job.model), lambda told: None)


def all_of(plan: InferencePlan) -> tuple[list, list, pa.Table]:
    """What was prepared and answered of all blocks, and the rows by id."""
    producer = Producer(plan.work)

    def ask(ids: np.ndarray):
        told, blocks = prepared(producer, ids, plan.sizes, {})
        return told, *blocks

    examples = find_examples(plan.num_samples, ask)
    shape, takes = StreamShape((), torch.get_num_threads()), tuple(range(len(plan.sizes)))
    actor = Stream(stream_work(plan, examples), shape, takes, "cpu")
    begun = actor.begin()
    assert begun.samples_per_s > 0
    told, answered, tables = [], [], []
    for block in plan.blocks({}, examples.sample_bytes):
        made, pieces = prepared(producer, np.asarray(block.ids), plan.sizes, plan.keep)
        told.append(made)
        for piece in pieces:
            if piece is not None:
                said, rows = actor.predict(piece)
                answered.append(said)
                tables.append(rows)
    found = pa.concat_tables(tables)
    return told, answered, found.sort_by("id")


@pytest.fixture
def texts(tmp_path) -> list[np.ndarray]:
    """41 sequences of 1 to 20 numbers, in a Parquet file."""
    rng = np.random.default_rng(0)
    found = [rng.integers(1, 64, rng.integers(1, 21)) for _ in range(41)]
    pyarrow.parquet.write_table(pa.table({"text": [each.tolist() for each in found]}), tmp_path / "texts.parquet")
    return found


def text_tree(folder: Path, **more) -> dict:
    classes = [{"upto": 8, "batch_size": 4}, {"upto": 20}]
    return {
        "name": "texts",
        "run_dir": str(folder / "runs"),
        "model": {
            "name": "small_models:encoder",
            "options": {"num_classes": 4},
            "inputs": {"tokens": "text", "mask": "text_mask"},
        },
        "data": {"source": {"kind": "parquet", "path": str(folder / "texts.parquet")}},
        "output": {"probabilities": "all"},
        "inference": {"batch_size": 3, "block": {"rows": 9}, "buckets": {"by": "text", "classes": classes}},
        **more,
    }


def test_size_classes_say_what_the_model_says_of_each_sequence_as_it_is(texts, tmp_path):
    plan = plan_of(text_tree(tmp_path))
    blocks = plan.blocks({}, 200.0)
    assert [len(block) for block in blocks] == [8, 6, 9, 9, 9], "whole batches of each class, and the rest"
    assert [len(block) for block in plan.blocks({}, 200.0, 5)] == [8, 6, 9, 9, 9]
    assert max(len(block) for block in plan.blocks({}, 200.0, 20)) <= 4, "each of 20 workers has some"
    lengths = np.array([len(each) for each in texts])
    assert all(len(set(lengths[np.asarray(block.ids)] > 8)) == 1 for block in blocks), "one class each"
    told, answered, rows = all_of(plan)
    assert sum(made.counts[0] for made in told) == (lengths <= 8).sum()

    from raytrain.infer.backends.module import built

    model = built(plan.file).eval()
    for row, text in zip(rows.to_pylist(), texts, strict=True):
        with torch.no_grad():
            said = model(torch.from_numpy(text)[None], torch.ones(1, len(text), dtype=torch.bool))
        np.testing.assert_allclose(row["probabilities"], said["logits"].softmax(1)[0], atol=1e-5)
    sizes = [len(batch) for batch in (each.batches_s for each in answered)]
    assert max(sizes) <= 3


def test_the_first_batch_counts_in_no_rate_however_slow_it_is(texts, tmp_path, monkeypatch):
    """It compiles, with torch.compile: seconds that the others do not take."""
    times = iter([10.0, *[0.1] * 10**6])
    monkeypatch.setattr("raytrain.infer.stream._timed", lambda model, inputs: next(times))
    plan = plan_of(text_tree(tmp_path))
    producer = Producer(plan.work)
    ask = lambda ids: (lambda told, blocks: (told, *blocks))(*prepared(producer, ids, plan.sizes, {}))  # noqa: E731
    work = stream_work(plan, find_examples(plan.num_samples, ask))
    assert Stream(work, StreamShape((), 1), (0, 1), "cpu").begin().samples_per_s == pytest.approx(3 / 0.1)


def test_where_each_sample_lies_is_written_unless_it_has_such_a_field(texts, tmp_path):
    plan = plan_of(text_tree(tmp_path, output={"fields": ["where"]}))
    assert plan.keep == {"where": "where"}
    producer = Producer(plan.work)
    told, _ = prepared(producer, np.array([3, 40]), plan.sizes, plan.keep)
    path = tmp_path / "texts.parquet"
    assert told.kept.to_pydict() == {"id": [3, 40], "where": [f"{path} (row group 0, row {n})" for n in (3, 40)]}
    own = pa.table({"text": [each.tolist() for each in texts], "where": [f"page {n}" for n in range(len(texts))]})
    pyarrow.parquet.write_table(own, path)
    plan = plan_of(text_tree(tmp_path, output={"fields": ["where"]}))
    told, _ = prepared(Producer(plan.work), np.array([3]), plan.sizes, plan.keep)
    assert told.kept.column("where").to_pylist() == ["page 3"]


def test_a_model_that_fails_alone_is_said_with_what_it_was_given(tmp_path):
    table = pa.table({"text": [[10_000, 2]] * 4})  # of no such row of the embedding
    pyarrow.parquet.write_table(table, tmp_path / "texts.parquet")
    with pytest.raises(PredictionError, match=r"the model failed on inputs of shape \(4, 8\), \(4, 8\): IndexError: "):
        all_of(plan_of(text_tree(tmp_path)))


def test_a_sequence_that_no_class_takes_is_an_error_at_the_start_or_a_row_of_its_own(texts, tmp_path):
    tree = text_tree(tmp_path)
    tree["inference"]["buckets"]["classes"] = [{"upto": 8}, {"upto": 19}]
    long = [number for number, text in enumerate(texts) if len(text) > 19]
    assert long
    with pytest.raises(DataError, match=rf"{len(long)} of 41 samples are longer than the last class \(19\); the first"):
        plan_of(tree)
    tree["data"]["stages"] = [{"deadly_stages:as_it_is": {"on": "text"}}]  # which might change the length
    told, _, rows = all_of(plan_of(tree))
    failures = [failure for made in told for failure in made.failures]
    assert [failure.id for failure in failures] == long
    assert {failure.stage for failure in failures} == {"size"}
    assert failures[0].reason == "`text` has length 20; the last class is 19"
    assert rows.column("id").to_pylist() == [number for number in range(41) if number not in long]


@pytest.mark.parametrize("known", [True, False], ids=["read beforehand", "known behind the stages"])
def test_a_sequence_that_is_cut_goes_to_the_class_of_what_is_left(known, texts, tmp_path):
    tree = text_tree(tmp_path)
    tree["inference"]["buckets"]["classes"] = [{"upto": 8}, {"upto": 19}]
    tree["data"]["collate"] = {"text": {"padded": {"most": 19}}}
    if not known:
        tree["data"]["stages"] = [{"deadly_stages:as_it_is": {"on": "text"}}]
    plan = plan_of(tree)
    assert (plan.classes is not None) == known
    told, _, rows = all_of(plan)
    assert not [failure for made in told for failure in made.failures]
    assert rows.num_rows == 41


def test_raw_output_of_what_is_padded_batch_by_batch_differs_in_length(texts, tmp_path):
    tree = text_tree(tmp_path, inference={"batch_size": 3, "block": {"rows": 9}})
    tree["model"] = {"name": "torch.nn:Identity", "inputs": "text", "task": "raw"}
    tree["data"]["collate"] = {"text": "padded"}
    _, _, rows = all_of(plan_of(tree))
    for row, text in zip(rows.to_pylist(), texts, strict=True):
        assert row["output"][: len(text)] == text.tolist() and not any(row["output"][len(text) :])


def test_what_a_stage_makes_none_or_several_of_has_no_row(tmp_path):
    predicting.write_rows(tmp_path / "rows.parquet", 12)
    tree = {
        "name": "rows",
        "run_dir": str(tmp_path / "runs"),
        "model": {"name": "predicting:linear", "inputs": "x", "task": "raw"},
        "data": {
            "source": {"kind": "parquet", "path": str(tmp_path / "rows.parquet")},
            "stages": [{"deadly_stages:some_more": {"on": "*"}}],
        },
        "output": {"fields": ["name"]},
    }
    plan = plan_of(tree)
    [made], _, rows = all_of(plan)
    assert {each.id: (each.stage, each.reason) for each in made.failures} == {
        3: ("filter", "a stage does not want it"),
        5: ("stages", "the stages have made 2 samples of it; a prediction is of one"),
    }
    assert rows.column("id").to_pylist() == [0, 1, 2, 4, *range(6, 12)]
    assert rows.column("output").type == pa.list_(pa.float32(), 3)
    assert made.kept.column("name").to_pylist() == [f"row {number}" for number in range(12)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"output": {"fields": ["nmae"]}}, "output.fields wants field `nmae`; did you mean 'name'"),
        ({"output": {"fields": ["x"]}}, "output.fields: field `x` is float32.*; what is written is text or a number"),
        ({"model": {"name": "predicting:linear", "inputs": "name"}}, "field `name` is text, which no model takes"),
        ({"model": {"name": "predicting:linear"}}, "model.inputs wants field `image`"),
        ({"inference": {"buckets": {"by": "y", "classes": [{"upto": 8}]}}}, "inference.buckets.by wants field `y`"),
    ],
)
def test_what_does_not_go_with_the_data_is_said_at_once(tmp_path, changes, said):
    predicting.write_rows(tmp_path / "rows.parquet", 12)
    tree = {
        "name": "rows",
        "run_dir": str(tmp_path / "runs"),
        "model": {"name": "predicting:linear", "inputs": "x"},
        "data": {"source": {"kind": "parquet", "path": str(tmp_path / "rows.parquet")}},
    }
    with pytest.raises(ConfigError, match=said):
        plan_of({**tree, **changes})


ROWS = {"name": "rows", "model": {"name": "predicting:linear"}, "data": {"source": {"kind": "parquet", "path": "rows"}}}


def depends_on(file: ModelFile = ModelFile("module", b"", digest="abc"), fingerprint: str = "def", **changes) -> dict:
    """Each change is of a key, as `section__key`."""
    tree = {"output": {}, "inference": {}, **{name: value.copy() for name, value in ROWS.items() if name != "name"}}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        tree[section][name] = value
    return made_by(PredictionJob.from_dict({**tree, "name": "rows"}), file, fingerprint)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.inputs", "y"),
        ("model.task", "raw"),
        ("model.embeddings", True),
        ("data.stages", ["decode"]),
        ("data.collate", {"x": "padded"}),
        ("data.normalize", {"mean": [0.5]}),
        ("data.fields", {"x": {"dtype": "float32"}}),
        ("output.fields", ["y"]),
        ("output.probabilities", 2),
        ("output.shard_rows", 7),
        ("inference.backend", "onnx"),
        ("inference.precision", "bf16"),
        ("inference.buckets", {"by": "x", "classes": [{"upto": 8}]}),
    ],
)
def test_predictions_are_others_with_another(key, value):
    before, now = depends_on(), depends_on(**{key.replace(".", "__"): value})
    assert [each for each in before if before[each] != now[each]] == [key]


def test_what_predictions_depend_on_besides_and_what_not():
    before = depends_on()
    assert depends_on(ModelFile("module", b"", digest="abd")) != before
    assert depends_on(fingerprint="deg") != before
    named = [depends_on(ModelFile("module", b"", digest="abc", classes=names)) for names in (("a", "b"), ("b", "a"))]
    assert named[0] != named[1]
    assert depends_on(inference__batch_size=2, inference__block={"rows": 3}, inference__streams={"count": 2}) == before


def test_a_task_keeps_to_the_cpus_that_no_stream_has_and_leaves_the_process_as_it_was(monkeypatch):
    before = os.sched_getaffinity(0)
    found = []
    monkeypatch.setattr(preparing, "producer_of", lambda reference: (0, None))
    monkeypatch.setattr(preparing, "node_id", lambda: "here")
    monkeypatch.setattr(preparing, "prepared", lambda *_: (found.append(os.sched_getaffinity(0)), []))
    for rest in ({"here": (min(before),)}, {"there": (min(before),)}):
        preparing.prepare(np.arange(1), work_ref=[None], sizes=Sizes((1,)), keep={}, rest=rest)
        assert os.sched_getaffinity(0) == before
    assert found == [{min(before)}, before]


def test_a_stream_is_bound_before_its_model_is_loaded(monkeypatch, tmp_path):
    predicting.write_rows(tmp_path / "rows.parquet", 12)
    tree = {**ROWS, "run_dir": str(tmp_path), "data": {"source": {"kind": "parquet", "path": str(tmp_path)}}}
    plan, done = plan_of({**tree, "model": {"name": "predicting:linear", "inputs": "x"}}), []
    producer = Producer(plan.work)

    def ask(ids: np.ndarray):
        told, blocks = prepared(producer, ids, plan.sizes, {})
        return told, *blocks

    shape = StreamShape((0,), 1)

    def bind(asked: StreamShape) -> str:
        done.append((asked, threading.current_thread().name))
        return "no node"

    monkeypatch.setattr(binding, "bind", bind)
    real = loading.load
    monkeypatch.setattr(loading, "load", lambda *given: done.append("load") or real(*given))
    begun = Stream(stream_work(plan, find_examples(plan.num_samples, ask)), shape, (0,), "cpu").begin()
    assert begun.said == "no node"
    [(bound, thread), loaded] = done
    assert (bound, loaded) == (shape, "load") and thread.startswith("raytrain-stream"), "whose memory it is"


def test_the_columns_of_what_a_model_says():
    output = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]])
    keys, shares = np.array([7, 9]), output.softmax(1)
    rows, without = answers(keys, Outputs(output, torch.ones(2, 5)), Wanted(classes=("a", "b"), probabilities=2))
    assert not len(without)
    assert rows.column_names == [
        *("id", "prediction", "prediction_index", "probability", "top", "top_probability", "embedding"),
    ]
    assert rows.column("top").to_pylist() == [["b", "2"], ["a", "2"]], "the last has no name"
    assert rows.column("prediction").to_pylist() == ["b", "a"]
    np.testing.assert_allclose(rows.column("probability").to_numpy(), shares.max(1).values)
    plain, _ = answers(keys, Outputs(output.half()), Wanted(probabilities="none"))
    assert plain.column_names == ["id", "prediction", "probability"]
    assert plain.column("prediction").to_pylist() == [1, 0]
    every, _ = answers(keys, Outputs(output), Wanted(probabilities="all"))
    np.testing.assert_allclose(every.column("probabilities").to_pylist(), shares, atol=1e-7)
    raw, _ = answers(keys, Outputs(output.reshape(2, 1, 3)), Wanted(task="raw", alike=False))
    assert raw.column("output").to_pylist() == output.tolist()
    inf = torch.inf
    odd = torch.tensor([[0.0, torch.nan, 1.0], [0.0, -inf, 0.0], [-inf, -inf, -inf], [0.0, inf, 0.0]])
    some, without = answers(np.arange(4), Outputs(odd), Wanted())
    assert some.column("id").to_pylist() == [1] and without.tolist() == [0, 2, 3], "softmax gives those no number"
    assert len(answers(np.arange(4), Outputs(odd), Wanted(task="raw"))[0]) == 4, "as it is"
    with pytest.raises(PredictionError, match=r"shape \(2, 1, 3\), which is not \(samples, classes\)"):
        answers(keys, Outputs(output.reshape(2, 1, 3)), Wanted())
    with pytest.raises(PredictionError, match="one number a sample, and the softmax of one is always 1; write it as"):
        answers(keys, Outputs(output[:, :1]), Wanted())
    with pytest.raises(PredictionError, match=r"shape \(2, 3\) for 3 samples; it must have one row"):
        answers(np.arange(3), Outputs(output), Wanted())
    for names in ("ab", "abcd"):
        with pytest.raises(PredictionError, match=rf"are {len(names)} names of classes, and the model returned 3 numb"):
            answers(keys, Outputs(output), Wanted(classes=tuple(names), all_named=True))
    with pytest.raises(PredictionError, match="are 4 names"):
        answers(keys, Outputs(output), Wanted(classes=tuple("abcd")))


def test_samples_are_tried_until_some_can_be_prepared():
    """Whole tries are lost with their process; no sample is tried twice."""
    tried: list[int] = []

    def ask(ids: np.ndarray):
        assert len(ids) <= EXAMPLES
        tried.extend(ids.tolist())

    with pytest.raises(DataError, match="none of 64 samples from all over the data could be prepared: each killed its"):
        find_examples(1000, ask)
    assert len(set(tried)) == len(tried) == 64 and (min(tried), max(tried)) == (0, 999)
