"""What a preprocessing worker makes of a plan, without Ray around it."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import write_images

from raytrain.config.data import Normalize
from raytrain.data import block as codec
from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.data.pipeline import Pipeline
from raytrain.data.producer import Producer, StreamWork, prepare_process
from raytrain.data.sources.kinds.image_folder import image_folder
from raytrain.data.stages.images import decode, random_shift, resize
from raytrain.data.stages.torchvision import torchvision
from raytrain.errors import ConfigError, DataError


class Delivered:
    """A producer whose batches are as a rank reads them."""

    def __init__(self, *arguments):
        self._producer = Producer(*arguments)

    def batch(self, segment, number):
        return self.block(segment, number, 1)[0]

    def block(self, segment, number, count):
        return codec.batches_of(self._producer.block(segment, number, count))


def producer(folder, stages, batch_size=4, epochs=2, **options) -> Delivered:
    pipeline = Pipeline(image_folder(folder), stages, batch_size=batch_size, **options).open(0)
    spec = StreamSpec(pipeline.train.num_samples, pipeline.num_validation, batch_size, 0, epochs=epochs)
    return Delivered(StreamWork(StreamPlan(spec, Position(), 1), pipeline.pickled_splits()))


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "images", {"cat": 5, "dog": 4})


ORDERS = {
    "rows": lambda image: image,
    "channels first": lambda image: image.transpose(2, 0, 1).copy().transpose(1, 2, 0),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("side", "dtype"), [(8, np.uint8), (8, np.int64), (128, np.float32), (211, np.uint8), (211, np.float16)]
)
def test_batches_of_a_block_come_back_as_they_were(order, side, dtype):
    rng = np.random.default_rng(0)
    batches, given = [], []
    for number, size in enumerate((3, 0, 1)):
        samples = [ORDERS[order]((rng.random((side, side + 1, 3)) * 99).astype(dtype)) for _ in range(size)]
        header = codec.Header(
            0, number, {"read": 0.1}, {"read": 0.05}, [codec.Failure(3, "x.jpg", "bad")], 5, "node", True
        )
        like = np.empty((side, side + 1, 3), dtype)
        batches.append(codec.Prepared.of(samples, like, np.arange(size) + 5, np.arange(size) + 7, header))
        given.append(samples)
    for group in ([batches[0]], [batches[1]], batches):
        table = codec.to_table(group)
        assert table.num_rows == 1
        for made, again in zip(group, codec.batches_of(table), strict=True):
            assert again.image.shape == (len(made.key), side, side + 1, 3)
            assert again.image.dtype == dtype
            expected = given[made.header.batch]
            assert all(np.array_equal(one, other) for one, other in zip(again.image, expected, strict=True))
            assert again.label.tolist() == made.label.tolist()
            assert again.key.tolist() == made.key.tolist()
            assert again.header == made.header


def test_large_samples_go_into_the_block_without_a_copy():
    samples = [np.random.default_rng(n).random((3, 64, 256), np.float32).transpose(1, 2, 0) for n in range(4)]
    header = codec.Header(0, 0, {}, {})
    table = codec.to_table([codec.Prepared.of(samples, samples[0], np.arange(4), np.arange(4), header)])
    addresses = [table.column(str(n)).chunk(0).buffers()[1].address for n in range(4)]
    assert addresses == [sample.__array_interface__["data"][0] for sample in samples]


def test_a_stage_may_reuse_the_memory_that_it_returns(folder):
    memory = np.empty((64, 64, 3), np.float32)

    def into_memory(image):
        memory[:] = image.mean()
        return memory

    def afresh(image):
        return np.full((64, 64, 3), image.mean(), np.float32)

    plain = producer(folder, [decode(), afresh], 9).batch(0, 0)
    assert len({image.mean() for image in plain.image}) > 1
    assert np.array_equal(plain.image, producer(folder, [decode(), into_memory], 9).batch(0, 0).image)
    one_by_one = producer(folder, [decode(), into_memory], 1).block(0, 0, 9)
    assert np.array_equal(plain.image, np.concatenate([batch.image for batch in one_by_one])), "nor across batches"


def test_labels_and_ids_belong_to_the_images(folder):
    made = producer(folder, [decode(), resize(8)])
    batches = [made.batch(0, b) for b in range(3)]
    ids = np.concatenate([b.key for b in batches])
    assert sorted(ids) == list(range(9))
    for each in batches:
        assert each.label.tolist() == [int(i >= 5) for i in each.key]
        bright = each.image.reshape(len(each.key), -1).mean(1) > 50
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
    return zip(made.key.tolist(), made.image, strict=True)


def test_validation_is_in_order_without_random_stages(folder):
    pipeline = Pipeline(image_folder(folder), [decode(), random_shift(3), resize(8)], validation=image_folder(folder))
    assert [stage.name for stage in pipeline.validation_stages] == ["decode", "resize"]
    own = Pipeline(image_folder(folder), [decode()], validation_stages=[decode(), resize(4)])
    assert [stage.name for stage in own.validation_stages] == ["decode", "resize"]
    made = producer(folder, [decode(), random_shift(3), resize(8)], validation=image_folder(folder))
    assert made.batch(1, 0).key.tolist() == [0, 1, 2, 3]
    assert made.batch(1, 0).image.tobytes() == made.batch(3, 0).image.tobytes()


def test_a_corrupt_image_is_left_out_and_named(folder):
    (folder / "cat" / "002.jpg").write_bytes(b"broken")
    made = producer(folder, [decode(), resize(8)], batch_size=9).batch(0, 0)
    assert len(made.key) == len(made.image) == 8
    assert 2 not in made.key
    (failure,) = made.header.failures
    assert failure == codec.Failure(2, f"{folder}/cat/002.jpg", "ValueError: not a decodable image")


def test_a_sample_that_a_stage_fails_on_is_left_out_with_the_stages_name(folder):
    def grumble(image, rng):
        raise IndexError("tuple index out of range")

    def nothing(image):
        return None

    [first, *_] = producer(folder, [decode(), grumble], batch_size=9).batch(0, 0).header.failures
    assert (first.reason, first.stage) == ("IndexError: tuple index out of range", "grumble")
    [first, *_] = producer(folder, [decode(), nothing], batch_size=9).batch(0, 0).header.failures
    assert first.reason == "TypeError: the last stage returned NoneType, expected a NumPy array"
    assert first.stage == "nothing"


def test_a_stage_that_no_sample_can_pass_ends_the_run_and_is_no_corrupt_sample(folder):
    made = producer(folder, [decode(), torchvision("NoSuchThing")])
    with pytest.raises(ConfigError, match="torchvision has no transform 'NoSuchThing'"):
        made.batch(0, 0)


def test_a_batch_of_nothing_but_corrupt_images_is_empty(folder):
    for path in folder.glob("*/*.jpg"):
        path.write_bytes(b"broken")
    made = producer(folder, [decode(), resize(8)]).batch(0, 0)
    assert len(made.key) == len(made.image) == 0
    assert made.image.shape[1:] == codec.NO_SAMPLE.shape, "nobody knows the shape of a sample"
    assert len(made.header.failures) == 4


def test_a_batch_of_corrupt_images_has_the_shape_of_the_others_wherever_they_are(tmp_path):
    """The first 70 files of 74 are broken; one of the others tells how large an image is."""
    folder = write_images(tmp_path / "images", {"cat": 70, "dog": 4})
    for path in folder.glob("cat/*.jpg"):
        path.write_bytes(b"broken")
    made = producer(folder, [decode(), resize(8)], batch_size=1)
    empty = next(batch for batch in (made.batch(0, number) for number in range(74)) if not len(batch.key))
    assert empty.image.shape == (0, 8, 8, 3)


def test_a_stage_that_waits_takes_wall_time_and_no_cpu_time(folder):
    def wait(image):
        time.sleep(0.02)
        return image

    header = producer(folder, [decode(), wait, resize(8)]).batch(0, 0).header
    assert header.stage_wall_s["wait"] >= 4 * 0.02
    assert header.stage_cpu_s["wait"] < 0.02


def test_what_a_stage_does_in_other_threads_is_its_cpu_time_too(folder):
    def elsewhere(image):
        def work():
            began = time.thread_time()
            while time.thread_time() - began < 0.03:
                pass

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return image

    header = producer(folder, [elsewhere, decode(), resize(8)]).batch(0, 0).header
    assert header.stage_cpu_s["elsewhere"] > 4 * 0.03 * 0.9, "shared out by wall time, of which it has nearly all"


def test_images_of_different_shapes_are_an_error_that_says_what_to_do(folder):
    write_images(folder, {"big": 2}, side=20)
    with pytest.raises(DataError, match=r"different shapes or types: .* end the stages with a resize"):
        producer(folder, [decode()], batch_size=11).batch(0, 0)


def test_a_stage_that_returns_something_else_is_a_failure_of_the_sample(folder):
    made = producer(folder, [decode(), lambda image: image.tolist()], batch_size=9).batch(0, 0)
    assert "the last stage returned list, expected a NumPy array" in made.header.failures[0].reason


def test_seconds_are_kept_by_stage_and_equal_names_are_told_apart(folder):
    made = producer(folder, [decode(), resize(12), resize(8)]).batch(0, 0)
    for of_stages in (made.header.stage_wall_s, made.header.stage_cpu_s):
        assert list(of_stages) == ["read", "decode", "resize", "resize_2"]
        assert all(seconds > 0 for seconds in of_stages.values())
    files = sorted(folder.glob("*/*.jpg"))
    assert made.header.read_bytes == sum(files[i].stat().st_size for i in made.key)


def test_a_batch_size_below_one_is_refused(folder):
    with pytest.raises(ConfigError, match="batch_size must be a whole number of at least 1"):
        Pipeline(image_folder(folder), batch_size=0)


def test_functions_of_a_script_travel_by_value(folder):
    def local(image):
        return image[:8, :8]

    splits = Pipeline(image_folder(folder), [decode(), local]).open(0).pickled_splits()
    assert pickle.loads(splits)[1]["train"].stages[1](np.zeros((9, 9, 3)), None).shape == (8, 8, 3)


@pytest.mark.process
def test_a_worker_imports_neither_torch_nor_pydantic():
    code = "import sys, raytrain.data.producer; print({'torch', 'pydantic', 'timm', 'pandas'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_preparing_the_process_is_harmless_and_done_once():
    prepare_process()
    assert prepare_process.cache_info().currsize == 1


def test_normalize_is_a_value():
    assert Normalize(mean=(0.5,), std=(0.5,)).scale == 1 / 255
