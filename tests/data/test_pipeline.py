"""What a Pipeline, a source and a normalisation say when they are given something else than they take."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from formats import write_parquet, write_shards

from raytrain import Pipeline
from raytrain.config.data import Normalize
from raytrain.config.job import Job
from raytrain.data import (
    decode,
    held_out,
    image_folder,
    parquet,
    random_horizontal_flip,
    resize,
    stage,
    synthetic,
    to_dtype,
    torchvision,
    webdataset,
)
from raytrain.errors import ConfigError, DataError
from raytrain.run.checks import check_data, check_sendable, checked

SOURCE = image_folder("/data")


class Photos:
    """Somebody's map-style data set."""

    def __len__(self) -> int:
        return 1


class Whole(Photos):
    def __getitem__(self, index: int) -> tuple:
        return np.zeros((2, 2, 3), np.uint8), 0


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (["/data"], {}, "Pipeline: train must be a source, not a path; write image_folder('/data'), or another "),
        ([Path("/data")], {}, "Pipeline: train must be a source, not a path; write image_folder('/data')"),
        ([Photos()], {}, "a map-style data set of your own, with __len__ and __getitem__, not Photos"),
        ([{0: "a"}], {}, "with __len__ and __getitem__, not dict"),
        ([Whole], {}, "Pipeline: train must be a data set, not its class: write Whole(...)"),
        ([None], {}, "Pipeline: train must be a source of raytrain.data, such as image_folder or "),
        ([None], {}, "not nothing"),
        ([SOURCE], {"validation": "/data"}, "Pipeline: validation must be a source, not a path"),
        (
            [SOURCE, "decode"],
            {},
            "stages must be a list of stages, such as [decode(), resize(32)], not 'decode'",
        ),
        ([SOURCE, decode()], {}, "Pipeline: stages must be a list of stages"),
        (
            [SOURCE, [resize]],
            {},
            "'resize' is not a stage yet: write resize(...), with its options",
        ),
        ([SOURCE], {"validation_stages": 3}, "Pipeline: validation_stages must be a list of stages"),
        ([SOURCE], {"batch_size": "8"}, "batch_size must be a whole number of at least 1 (given: '8')"),
        ([SOURCE], {"global_batch_size": 0}, "global_batch_size must be a whole number of at least 1 (given: 0)"),
        (
            [SOURCE],
            {"batch_size": 4, "global_batch_size": 8},
            "Pipeline: give `batch_size`, of a rank, or `global_batch",
        ),
        ([SOURCE], {"max_corrupt_share": 3}, "max_corrupt_share must be a share from 0 to 1 (given: 3)"),
        ([SOURCE], {"max_corrupt_share": "1%"}, "max_corrupt_share must be a share from 0 to 1 (given: '1%')"),
        ([SOURCE], {"stage_timeout_s": 0}, "stage_timeout_s must be seconds above 0, or None (given: 0)"),
        ([SOURCE], {"batches_per_task": -3}, "batches_per_task must be a whole number of at least 1 (given: -3)"),
        ([SOURCE], {"fields": ["image"]}, "Pipeline: fields must be a dict with the names of fields (given: ['image'"),
        ([SOURCE], {"collate": "padded"}, "Pipeline: collate must be a dict with the names of fields (given: 'padded'"),
        (
            [SOURCE],
            {"buckets": "tokens"},
            "Pipeline: buckets must be a dict of its keys: by, batches (given: 'tokens')",
        ),
        ([SOURCE], {"normalize": ([0.5], [0.5])}, "Pipeline: normalize must be a dict of its keys: scale, mean, std ("),
        ([SOURCE], {"fields": {"image": "float32"}}, "Pipeline: fields.image must be a dict of its keys: dtype, chan"),
        ([SOURCE], {"fields": {"image": None}}, "Pipeline: fields.image must be a dict of its keys: dtype, "),
        ([SOURCE], {"normalize": {"men": [0.5]}}, "Pipeline: normalize: unknown key 'men'; did you mean 'mean'?"),
    ],
)
def test_a_wrong_pipeline_is_one_clear_line(arguments, options, message):
    with pytest.raises(ConfigError) as caught:
        Pipeline(*arguments, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: image_folder(3), "image_folder: path must be text (given: 3)"),
        (lambda: parquet("x", shapes={"a": (0,)}), "parquet: shapes.a.0 must be greater than 0 (given: 0)"),
        (lambda: synthetic(0), "synthetic: num_samples must be greater than 0 (given: 0)"),
        (lambda: synthetic(1, shape=(8, 8)), "synthetic: 'shape.2' is missing"),
    ],
)
def test_a_wrong_source_is_one_clear_line(source, message):
    with pytest.raises(ConfigError) as caught:
        source()
    assert str(caught.value) == message


ENCODED = {
    "image_folder": lambda images, folder: image_folder(images),
    "webdataset": lambda images, folder: webdataset(write_shards(folder / "w", images)),
    "parquet": lambda images, folder: parquet(write_parquet(folder / "p", images)),
    "parquet of Hugging Face": lambda images, folder: parquet(write_parquet(folder / "h", images, struct=True)),
}


@pytest.mark.parametrize("kind", ENCODED)
@pytest.mark.parametrize(
    "first", [resize(3), random_horizontal_flip(), to_dtype("float16"), torchvision("RandomHorizontalFlip")]
)
def test_a_late_decode_is_refused_before_anything_is_started(images, tmp_path, kind, first):
    source = ENCODED[kind](images / "train", tmp_path)
    with pytest.raises(ConfigError) as caught:
        Pipeline(source, [first, decode()]).open(0)
    assert str(caught.value) == (
        f"data.stages: stage 1, `{first.name}`, needs decoded images, and field `image` is encoded; put `decode` "
        "before it"
    )


def test_a_late_decode_is_refused_of_either_split(images):
    source = image_folder(images / "train")
    stages = {"validation": source, "validation_stages": [resize(3)]}
    with pytest.raises(
        ConfigError, match="data.validation_stages: stage 1, `resize`, needs decoded images, and field `im"
    ):
        Pipeline(source, [decode(), resize(3)], **stages).open(0)


def test_a_validation_split_has_the_fields_of_training(tmp_path):
    pq.write_table(pa.table({"x": [1.5], "y": [1]}), tmp_path / "train.parquet")
    pq.write_table(pa.table({"x": [1.5]}), tmp_path / "less.parquet")
    pq.write_table(pa.table({"x": [1], "y": [1]}), tmp_path / "other.parquet")
    for name, message in (
        ("less", "data.validation has no field `y`, as training has; there are `x`"),
        ("other", "data.validation: field `x` is int64, and float64 of training; stages can cast it"),
    ):
        with pytest.raises(ConfigError) as caught:
            Pipeline(parquet(tmp_path / "train.parquet"), validation=parquet(tmp_path / f"{name}.parquet")).open(0)
        assert str(caught.value) == message


def test_settings_of_fields_that_there_are_not_are_refused():
    source = synthetic(4, shape=(8, 8, 3))
    for options, key in (({"collate": {"imag": "padded"}}, "data.collate"), ({"fields": {"imag": {}}}, "data.fields")):
        with pytest.raises(
            ConfigError, match=rf"{key} wants field `imag`; did you mean 'image'\?; there are `image`, `la"
        ):
            Pipeline(source, **options).open(0)


def test_a_part_is_held_out():
    opened = Pipeline(synthetic(10, shape=(8, 8, 3)), validation=held_out(0.3, seed=1)).open(0)
    assert (opened.train.num_samples, opened.num_validation) == (7, 3)
    for share in (0, 1, 1.5):
        with pytest.raises(ConfigError, match="held_out: share must be "):
            held_out(share)


@pytest.mark.parametrize("scale", [255, 0, -1, 1.01])
def test_a_scale_multiplies(scale):
    with pytest.raises(
        ConfigError, match=r"scale multiplies: 0.00392 \(1 / 255\) for values from 0 to 255, 1 to leave"
    ):
        Pipeline(SOURCE, normalize={"scale": scale})


def test_what_is_decoded_or_may_be_needs_no_decode(images, tmp_path):
    arrays = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((5, 4, 4, 3), np.uint8))
    pq.write_table(pa.table({"image": arrays, "label": pa.array(range(5))}), tmp_path / "arrays.parquet")
    for source in (parquet(tmp_path / "arrays.parquet"), synthetic(5)):
        assert Pipeline(source, [resize(3)]).open(0).train.num_samples == 5
        assert Pipeline(source).open(0).train.num_samples == 5
    Pipeline(image_folder(images / "train"), [lambda data: data, resize(3)]).open(0)  # one's own may decode


def test_a_dictionary_will_do_for_the_normalisation():
    pipeline = Pipeline(SOURCE, normalize={"mean": [0.5], "std": [0.25]})
    assert pipeline.normalize == Normalize(mean=(0.5,), std=(0.25,))


TRAINING = {"name": "a", "training": {"epochs": 1}}


@pytest.mark.parametrize(
    ("loop", "pipeline", "its_job", "message"),
    [
        (
            print,
            Pipeline(SOURCE),
            TRAINING,
            "the job must be a Job, which Job.from_yaml('job.yaml') or",
        ),
        (
            print,
            SOURCE,
            Job.from_dict(TRAINING),
            "must be a Pipeline(source, stages), not ImageFolderSource",
        ),
        (
            "loop",
            Pipeline(SOURCE),
            Job.from_dict(TRAINING),
            "the training loop must be a function of one argument, the context, not str",
        ),
        (
            lambda: None,
            Pipeline(SOURCE),
            Job.from_dict(TRAINING),
            "the training loop must be a function of one argument, the context; it takes ()",
        ),
        (
            None,
            Pipeline(SOURCE),
            Job.from_dict({"name": "a", "training": {"epochs": 1, "loop": "os.path:joined"}}),
            "has no 'joined'; did you mean 'join'?",
        ),
        (
            None,
            Pipeline(SOURCE),
            Job.from_dict({"name": "a", "training": {"epochs": 1, "loop": "os.path:sep"}}),
            "training.loop: 'os.path:sep' must be a function of one argument, the context, not str",
        ),
        (
            None,
            Pipeline(SOURCE),
            Job.from_dict({"name": "a", "training": {"epochs": 1, "loop": "os.path:relpath"}}),
            None,
        ),
        (
            None,
            Pipeline(SOURCE),
            Job.from_dict({"name": "a", "training": {"epochs": 1, "loop": "os:rename"}}),
            "training.loop: 'os:rename' must be a function of one argument, the context; it takes (src, dst",
        ),
        (
            None,
            Pipeline(SOURCE),
            Job.from_dict({"name": "a", "training": {"epochs": 1, "loop": "no_such:loop"}}),
            "training.loop: cannot import 'no_such:loop': there is no module 'no_such'; put no_such.py beside",
        ),
        (None, Pipeline(SOURCE), Job.from_dict(TRAINING), "the job has no `model` section, and no training loop was"),
    ],
)
def test_what_makes_no_run_is_one_clear_line(loop, pipeline, its_job, message):
    if message is None:
        assert checked(loop, pipeline, its_job) is pipeline
        return
    with pytest.raises(ConfigError) as caught:
        checked(loop, pipeline, its_job)
    assert message in str(caught.value)


def test_a_loop_that_cannot_travel_is_one_clear_line():
    held = threading.Lock()

    def loop(ctx):
        with held:
            pass

    with pytest.raises(ConfigError) as caught:
        check_sendable(loop)
    assert str(caught.value) == (
        "the training loop cannot be sent to the ranks: TypeError: cannot pickle '_thread.lock' object; let it make "
        "within itself what it takes from around it, or import it"
    )


def test_a_loop_of_a_script_may_read_the_classes():
    """cloudpickle takes an attribute `classes` of a function that uses torch for the module `torch.classes`."""

    def loop(ctx):
        return torch.full((1,), len(ctx.task.classes)), ctx.ops

    check_sendable(loop)
    context = SimpleNamespace(task=SimpleNamespace(classes=("red", "blue")), ops=0)
    assert pickle.loads(cloudpickle.dumps(loop))(context) == (torch.tensor([2]), 0)


def labelled(num_train: int, num_validation: int = 0):
    validation = synthetic(num_validation, num_classes=num_validation) if num_validation else None
    return Pipeline(synthetic(num_train, num_classes=num_train), validation=validation).open(0)


@pytest.mark.parametrize(
    ("options", "classes", "message"),
    [
        (
            {"num_classes": 9},
            (10,),
            "model.options.num_classes=9, but the data has 10 classes; leave it out",
        ),
        ({"num_classes": 11}, (10, 12), "model.options.num_classes=11, but the data has 12 classes"),
        ({}, (10, 12), "the validation data holds the label 11, but the training data has only 10 classes; give "),
        ({"num_classes": 10}, (10, 10), None),
        ({"num_classes": 1000}, (10,), None),
        ({}, (10, 3), None),
    ],
)
def test_a_model_has_no_fewer_classes_than_the_data(options, classes, message):
    job = Job.from_dict({**TRAINING, "model": {"name": "resnet18", "options": options}})
    opened = labelled(*classes)
    own = job.model_copy(update={"training": job.training.model_copy(update={"loop": "mine:loop"})})
    check_data(opened, False, job)  # a loop of one's own knows better
    check_data(opened, True, own)
    if message is None:
        check_data(opened, True, job)
        return
    with pytest.raises(ConfigError) as caught:
        check_data(opened, True, job)
    assert message in str(caught.value)


def test_a_model_takes_no_encoded_images(images):
    opened = Pipeline(image_folder(images / "train"), batch_size=4).open(0)
    with pytest.raises(ConfigError) as caught:
        check_data(opened, True, Job.from_dict({**TRAINING, "model": {"name": "resnet18"}}))
    told = "data.stages: field `image` arrives as encoded bytes, and no stage decodes them; add `decode`"
    assert str(caught.value) == told


class Numbered:
    """A data set that does not say its labels."""

    def __init__(self, labels):
        self.all = labels

    def __len__(self) -> int:
        return len(self.all)

    def __getitem__(self, index):
        return {"image": np.zeros((4, 4, 3), np.uint8), "kind": self.all[index]}


def coarse(sample):
    sample["coarse"] = np.int64(sample["kind"] // 2)
    return sample


@pytest.mark.parametrize(
    ("labels", "target", "options", "number"),
    [
        ([0, 4, 2], "kind", {}, 5),
        ([False, True, True], "kind", {}, 2),
        ([0, 4, 2], "coarse", {}, None),  # a stage makes it: nobody knows
        ([0] * 10_001, "coarse", {}, None),
        ([0] * 10_001, "kind", {"num_classes": 3}, None),  # as the message of the next says
        (
            [0] * 10_001,
            "kind",
            {},
            "nobody says which classes the 10,001 samples have: give the source `classes` or `labels` (an attribute of "
            "that name), or the model model.options.num_classes; no more than 10,000 samples are read for it",
        ),
        ([0, -1, 2], "kind", {}, "the label of Numbered[1] must be a whole number from 0 (given: -1)"),
    ],
)
def test_how_many_classes_there_are_is_read_where_nobody_says_so(labels, target, options, number):
    training = {"epochs": 1, "task": {"target": target}}
    job = Job.from_dict({"name": "a", "model": {"name": "resnet18", "options": options}, "training": training})
    opened = Pipeline(Numbered(labels), [stage(coarse, on="*")], batch_size=2).open(0)
    if isinstance(number, str):
        with pytest.raises(DataError) as caught:
            check_data(opened, True, job)
        assert number in str(caught.value)
        return
    assert check_data(opened, True, job).num_classes == number
