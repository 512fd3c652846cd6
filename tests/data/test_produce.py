"""What a preprocessing worker makes of a plan, without Ray around it."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
from conftest import write_images

from raytrain.config import Normalize
from raytrain.data import batch as codec
from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.data.pipeline import Pipeline
from raytrain.data.produce import Producer, StreamWork, prepare_process
from raytrain.data.sources import image_folder
from raytrain.data.transforms import decode, random_shift, resize
from raytrain.errors import ConfigError, DataError


def producer(folder, stages, batch_size=4, epochs=2, **options) -> Producer:
    pipeline = Pipeline(image_folder(folder), stages, batch_size=batch_size, **options).open(0)
    spec = StreamSpec(pipeline.train.num_samples, pipeline.num_validation, batch_size, 0, epochs=epochs)
    return Producer(StreamWork(StreamPlan(spec, Position(), 1), pipeline.pickled_splits()))


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "images", {"cat": 5, "dog": 4})


def test_a_batch_is_one_block_and_comes_back_as_views(folder):
    made = producer(folder, [decode(), resize(8)]).batch(0, 0)
    assert made.image.shape == (4, 8, 8, 3)
    assert made.image.dtype == np.uint8
    table = codec.encode(made)
    assert table.num_rows == 1
    again = codec.decode(table)
    assert again.header == made.header
    for name in ("image", "label", "id"):
        assert np.array_equal(getattr(again, name), getattr(made, name))
    assert np.shares_memory(again.image, made.image), "no copy between the stages and the object store"


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "int64"])
def test_every_dtype_survives_the_block(dtype):
    header = codec.Header(0, 0, {"read": 0.1}, [codec.Failure(3, "x.jpg", "bad")], 5, "node", True)
    image = (np.random.default_rng(0).random((2, 3, 4, 1)) * 100).astype(dtype)
    again = codec.decode(codec.encode(codec.Batch(image, np.array([1, 2]), np.array([7, 8]), header)))
    assert np.array_equal(again.image, image)
    assert again.image.dtype == image.dtype
    assert again.header == header


def test_labels_and_ids_belong_to_the_images(folder):
    made = producer(folder, [decode(), resize(8)])
    batches = [made.batch(0, b) for b in range(3)]
    ids = np.concatenate([b.id for b in batches])
    assert sorted(ids) == list(range(9))
    for each in batches:
        assert each.label.tolist() == [int(i >= 5) for i in each.id]
        bright = each.image.reshape(len(each.id), -1).mean(1) > 50
        assert bright.tolist() == each.label.astype(bool).tolist()


def test_augmentation_depends_on_seed_epoch_and_id_alone(folder):
    stages = [decode(), random_shift(3), resize(8)]
    one, other = producer(folder, stages), producer(folder, stages, batch_size=9)

    def by_id(made, segment, batches):
        return {i: image.tobytes() for b in range(batches) for i, image in _items(made.batch(segment, b))}

    assert by_id(one, 0, 3) == by_id(other, 0, 1), "whatever the batch it is in"
    assert by_id(one, 0, 3) == by_id(one, 0, 3), "however often it is made"
    assert by_id(one, 0, 3) != by_id(one, 1, 3), "but anew each epoch"


def _items(made):
    return zip(made.id.tolist(), made.image, strict=True)


def test_validation_is_in_order_without_random_stages(folder):
    pipeline = Pipeline(image_folder(folder), [decode(), random_shift(3), resize(8)], validation=image_folder(folder))
    assert [stage.name for stage in pipeline.validation_stages] == ["decode", "resize"]
    own = Pipeline(image_folder(folder), [decode()], validation_stages=[decode(), resize(4)])
    assert [stage.name for stage in own.validation_stages] == ["decode", "resize"]
    made = producer(folder, [decode(), random_shift(3), resize(8)], validation=image_folder(folder))
    assert made.batch(1, 0).id.tolist() == [0, 1, 2, 3]
    assert made.batch(1, 0).image.tobytes() == made.batch(3, 0).image.tobytes()


def test_a_corrupt_image_is_left_out_and_named(folder):
    (folder / "cat" / "002.jpg").write_bytes(b"broken")
    made = producer(folder, [decode(), resize(8)], batch_size=9).batch(0, 0)
    assert len(made.id) == len(made.image) == 8
    assert 2 not in made.id
    (failure,) = made.header.failures
    assert failure == codec.Failure(2, f"{folder}/cat/002.jpg", "ValueError: not a decodable image")


def test_a_batch_of_nothing_but_corrupt_images_is_empty(folder):
    for path in folder.glob("*/*.jpg"):
        path.write_bytes(b"broken")
    made = producer(folder, [decode(), resize(8)]).batch(0, 0)
    again = codec.decode(codec.encode(made))
    assert len(again.id) == len(again.image) == 0
    assert len(again.header.failures) == 4


def test_images_of_different_shapes_are_an_error_that_says_what_to_do(folder):
    write_images(folder, {"big": 2}, side=20)
    with pytest.raises(DataError, match=r"different shapes or types: .* end the stages with a resize"):
        producer(folder, [decode()], batch_size=11).batch(0, 0)


def test_a_stage_that_returns_something_else_is_a_failure_of_the_sample(folder):
    made = producer(folder, [decode(), lambda image: image.tolist()], batch_size=9).batch(0, 0)
    assert "the last stage returned list, expected a NumPy array" in made.header.failures[0].reason


def test_seconds_are_kept_by_stage_and_equal_names_are_told_apart(folder):
    made = producer(folder, [decode(), resize(12), resize(8)]).batch(0, 0)
    assert list(made.header.stage_s) == ["read", "decode", "resize", "resize_2"]
    assert all(seconds > 0 for seconds in made.header.stage_s.values())
    files = sorted(folder.glob("*/*.jpg"))
    assert made.header.read_bytes == sum(files[i].stat().st_size for i in made.id)


def test_a_batch_size_below_one_is_refused(folder):
    with pytest.raises(ConfigError, match="batch_size must be at least 1"):
        Pipeline(image_folder(folder), batch_size=0)


def test_functions_of_a_script_travel_by_value(folder):
    def local(image):
        return image[:8, :8]

    splits = Pipeline(image_folder(folder), [decode(), local]).open(0).pickled_splits()
    assert pickle.loads(splits)["train"].stages[1](np.zeros((9, 9, 3)), None).shape == (8, 8, 3)


def test_a_worker_imports_neither_torch_nor_pydantic():
    code = "import sys, raytrain.data.produce; print({'torch', 'pydantic', 'timm', 'pandas'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_preparing_the_process_is_harmless_and_done_once():
    prepare_process()
    assert prepare_process.cache_info().currsize == 1


def test_normalize_is_a_value():
    assert Normalize(mean=(0.5,), std=(0.5,)).scale == 1 / 255
