"""What a preprocessing worker makes of a plan, without Ray around it."""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import write_images

from raytrain.config.data import Normalize
from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.data.pipeline import Pipeline
from raytrain.data.process import bind_submodules, prepare_process, undisturbed
from raytrain.data.producer import Producer, StreamWork
from raytrain.data.samples.block import batches_of
from raytrain.data.sources.kinds.image_folder import image_folder
from raytrain.data.stages.geometry import random_crop, resize
from raytrain.data.stages.images import decode
from raytrain.data.stages.torchvision import torchvision
from raytrain.errors import ConfigError, DataError
from raytrain.record.status import Failure

SHIFT = random_crop(16, padding=3)


class Delivered:
    """A producer whose batches are as a rank reads them."""

    def __init__(self, *arguments):
        self._producer = Producer(*arguments)

    def batch(self, segment, number):
        return self.block(segment, number, 1)[0]

    def block(self, segment, number, count):
        return batches_of(self._producer.block(segment, number, count))


def producer(folder, stages, batch_size=4, epochs=2, **options) -> Delivered:
    pipeline = Pipeline(image_folder(folder), stages, batch_size=batch_size, **options).open(0)
    spec = StreamSpec(pipeline.train.num_samples, pipeline.num_validation, batch_size, 0, epochs=epochs)
    return Delivered(StreamWork(StreamPlan(spec, Position(), 1), pipeline.pickled_splits()))


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "images", {"cat": 5, "dog": 4})


def test_a_stage_may_reuse_the_memory_that_it_returns(folder):
    memory = np.empty((64, 64, 3), np.float32)

    def into_memory(image):
        memory[:] = image.mean()
        return memory

    def afresh(image):
        return np.full((64, 64, 3), image.mean(), np.float32)

    plain = producer(folder, [decode(), afresh], 9).batch(0, 0)
    assert len({image.mean() for image in plain.fields["image"]}) > 1
    assert np.array_equal(
        plain.fields["image"], producer(folder, [decode(), into_memory], 9).batch(0, 0).fields["image"]
    )
    one_by_one = producer(folder, [decode(), into_memory], 1).block(0, 0, 9)
    assert np.array_equal(plain.fields["image"], np.concatenate([batch.fields["image"] for batch in one_by_one])), (
        "nor across batches"
    )


def test_labels_and_ids_belong_to_the_images(folder):
    made = producer(folder, [decode(), resize(8)])
    batches = [made.batch(0, b) for b in range(3)]
    ids = np.concatenate([b.key for b in batches])
    assert sorted(ids) == list(range(9))
    for each in batches:
        assert each.fields["label"].tolist() == [int(i >= 5) for i in each.key]
        bright = each.fields["image"].reshape(len(each.key), -1).mean(1) > 50
        assert bright.tolist() == each.fields["label"].astype(bool).tolist()


def test_augmentation_depends_on_seed_epoch_and_id_alone(folder):
    stages = [decode(), SHIFT, resize(8)]
    one, other = producer(folder, stages), producer(folder, stages, batch_size=9)

    def by_id(made, segment, batches):
        return {i: image.tobytes() for b in range(batches) for i, image in _items(made.batch(segment, b))}

    assert by_id(one, 0, 3) == by_id(other, 0, 1), "whatever the batch it is in"
    assert by_id(one, 0, 3) == by_id(one, 0, 3), "however often it is made"
    assert by_id(one, 0, 3) != by_id(one, 1, 3), "but anew each epoch"


def _items(made):
    return zip(made.key.tolist(), made.fields["image"], strict=True)


def test_validation_is_in_order_without_random_stages(folder):
    pipeline = Pipeline(image_folder(folder), [decode(), SHIFT, resize(8)], validation=image_folder(folder))
    assert [stage.name for stage in pipeline.validation_stages] == ["decode", "resize"]
    own = Pipeline(image_folder(folder), [decode()], validation_stages=[decode(), resize(4)])
    assert [stage.name for stage in own.validation_stages] == ["decode", "resize"]
    made = producer(folder, [decode(), SHIFT, resize(8)], validation=image_folder(folder))
    assert made.batch(1, 0).key.tolist() == [0, 1, 2, 3]
    assert made.batch(1, 0).fields["image"].tobytes() == made.batch(3, 0).fields["image"].tobytes()


def test_a_corrupt_image_is_left_out_and_named(folder):
    (folder / "cat" / "002.jpg").write_bytes(b"broken")
    made = producer(folder, [decode(), resize(8)], batch_size=9).batch(0, 0)
    assert len(made.key) == len(made.fields["image"]) == 8
    assert 2 not in made.key
    (failure,) = made.header.failures
    assert failure == Failure(2, f"{folder}/cat/002.jpg", "ValueError: not a decodable image")


def test_a_sample_that_a_stage_fails_on_is_left_out_with_the_stages_name(folder):
    def grumble(image, rng):
        raise IndexError("tuple index out of range")

    def nothing(image):
        return None

    [first, *_] = producer(folder, [decode(), grumble], batch_size=9).batch(0, 0).header.failures
    assert (first.reason, first.stage) == ("IndexError: tuple index out of range", "grumble")
    [first, *_] = producer(folder, [decode(), nothing], batch_size=9).batch(0, 0).header.failures
    assert first.reason == "TypeError: it returned nothing for field `image`"
    assert first.stage == "nothing"


def test_a_stage_that_no_sample_can_pass_ends_the_run_and_is_no_corrupt_sample(folder):
    made = producer(folder, [decode(), torchvision("NoSuchThing")])
    with pytest.raises(ConfigError, match="torchvision has no transform 'NoSuchThing'"):
        made.batch(0, 0)


def test_a_batch_of_nothing_but_corrupt_images_is_empty(folder):
    for path in folder.glob("*/*.jpg"):
        path.write_bytes(b"broken")
    made = producer(folder, [decode(), resize(8)]).batch(0, 0)
    assert len(made.key) == 0
    assert made.fields == {}, "nobody knows what a sample is like"
    assert len(made.header.failures) == 4


def test_a_batch_of_corrupt_images_has_the_shape_of_the_others_wherever_they_are(tmp_path):
    """The first 70 files of 74 are broken; one of the others tells how large an image is."""
    folder = write_images(tmp_path / "images", {"cat": 70, "dog": 4})
    for path in folder.glob("cat/*.jpg"):
        path.write_bytes(b"broken")
    made = producer(folder, [decode(), resize(8)], batch_size=1)
    empty = next(batch for batch in (made.batch(0, number) for number in range(74)) if not len(batch.key))
    assert empty.fields["image"].shape == (0, 8, 8, 3)


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
    with pytest.raises(
        DataError, match=r"different shapes: field `image` is .* end its stages \(those on the CPU\) with"
    ):
        producer(folder, [decode()], batch_size=11).batch(0, 0)


def test_a_stage_that_returns_what_no_field_can_be_is_a_failure_of_the_sample(folder):
    made = producer(folder, [decode(), lambda image: {image.shape}], batch_size=9).batch(0, 0)
    assert "field `image` behind `<lambda>` is set; a field is an array" in made.header.failures[0].reason
    assert len(made.header.failures) == 9


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
    again = pickle.loads(splits)[1]["train"].stages[1]({"image": np.zeros((9, 9, 3))}, None)
    assert again["image"].shape == (8, 8, 3)


@pytest.mark.process
def test_a_worker_imports_neither_torch_nor_pydantic():
    code = "import sys, raytrain.data.producer; print({'torch', 'pydantic', 'timm', 'pandas'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_preparing_the_process_is_harmless_and_done_once():
    prepare_process()
    assert prepare_process.cache_info().currsize == 1


def test_an_import_that_was_broken_off_is_made_whole(tmp_path, monkeypatch):
    (tmp_path / "cut_short" / "core").mkdir(parents=True)
    (tmp_path / "cut_short" / "core" / "__init__.py").touch()
    (tmp_path / "cut_short" / "core" / "frame.py").write_text("DataFrame = dict")
    (tmp_path / "cut_short" / "__init__.py").write_text(
        "import builtins\nfrom cut_short.core.frame import DataFrame\nif builtins.cut: raise KeyboardInterrupt"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("builtins.cut", True, raising=False)
    with pytest.raises(KeyboardInterrupt):
        importlib.import_module("cut_short")
    monkeypatch.setattr("builtins.cut", False)
    package = importlib.import_module("cut_short")
    assert not hasattr(package, "core"), "Python binds it now, and nothing has to be mended"
    bind_submodules("cut_short")
    assert package.core.frame.DataFrame is package.DataFrame


def test_normalize_is_a_value():
    assert Normalize(mean=(0.5,), std=(0.5,)).scale == 1 / 255


def test_what_a_worker_imports_is_not_broken_off_with_its_task():
    done, go_on = [], threading.Event()

    def imports():
        os.kill(os.getpid(), signal.SIGINT)  # as when Ray cancels the task
        go_on.wait(60)
        done.append("whole")
        return "made"

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            undisturbed(imports)
        assert not done
        [thread] = [each for each in threading.enumerate() if each.name == "raytrain-imports"]
        go_on.set()
        thread.join()
        assert done == ["whole"], "it went on"
    finally:
        signal.signal(signal.SIGINT, before)
    assert undisturbed(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        undisturbed(lambda: 1 / 0)
