"""A source of the user's own: an object with `len(it)` and `it[i]`, in Python as it is, in a job file by its name."""

from __future__ import annotations

import pickle
import random
import re
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest
from pictures import apply_to
from PIL import Image

from raytrain import Pipeline
from raytrain.config.data import Data, OwnSource
from raytrain.data import decode, from_torch, resize
from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.data.producer import Producer, StreamWork
from raytrain.data.samples import block
from raytrain.data.samples.fields import Schema
from raytrain.data.sources.kinds import own
from raytrain.data.sources.labels import label_field
from raytrain.data.sources.open import open_manifest
from raytrain.errors import ConfigError, DataError, Stopped

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
LABELS = [0, 1, 2, 0, 1, 2]


class Photos:
    """Six images of 5 x 4. `form` says what an image is, `broken` which cannot be read."""

    def __init__(self, form="array", broken=(), **more):
        self.form, self.broken = form, broken
        self.__dict__ |= more

    def __len__(self):
        return len(PIXELS)

    def __getitem__(self, index):
        if index in self.broken:
            raise EOFError(f"no image {index}")
        image, label = PIXELS[index], LABELS[index]
        if self.form == "mapping":
            return {"image": image, "label": np.int64(label), "id": "x"}
        if self.form == "png":
            return cv2.imencode(".png", image[:, :, ::-1])[1].tobytes(), label
        if self.form == "pillow":
            return Image.fromarray(image), label
        if self.form == "tensor":
            import torch

            return torch.from_numpy(image).permute(2, 0, 1), torch.tensor(label)
        return image, label


class Texts(Photos):
    def __getitem__(self, index):
        return PIXELS[index], "cat"


class Broken:
    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("no labels")


class Options:
    def __init__(self, root, *, limit=3):
        if limit == 0:
            raise FileNotFoundError("no such root")
        self.labels = [0, 1, 2][:limit]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return PIXELS[index], self.labels[index]


NOT_A_CLASS = 3


def makes_a_number():
    return 3


def named(name, **options):
    return OwnSource(kind=f"{__name__}:{name}", **options)


@pytest.mark.parametrize("form", ["array", "mapping", "png", "pillow", "tensor"])
def test_whatever_an_image_is_it_becomes_the_same_array(form):
    manifest = pickle.loads(pickle.dumps(open_manifest(Photos(form))))
    assert manifest.num_samples == 6
    assert manifest.schema["image"].kind == "image"
    for sample, number in zip(manifest.read_many([5, 0]), (5, 0), strict=True):
        np.testing.assert_array_equal(apply_to(decode(), sample["image"]), PIXELS[number])
        assert sample["label"] == LABELS[number]
        assert sample["label"].dtype == np.int64


def test_torchvisions_data_sets_will_do_as_they_are(tmp_path):
    """Beside our own reading of the same folder."""
    from conftest import write_images
    from torchvision.datasets import ImageFolder

    from raytrain.data import image_folder

    folder = write_images(tmp_path, {"cat": 3, "dog": 2})
    theirs, ours = open_manifest(ImageFolder(folder)), open_manifest(image_folder(folder))
    assert theirs.schema["label"].classes == ours.schema["label"].classes == ("cat", "dog")
    assert theirs.values("label").tolist() == ours.values("label").tolist()
    for one, other in zip(theirs.read_many(range(5)), ours.read_many(range(5)), strict=True):
        assert np.abs(one["image"].astype(int) - apply_to(decode(), other["image"])).max() <= 2  # two JPEG decoders
    fake = open_manifest(OwnSource(kind="torchvision.datasets:FakeData", size=4, image_size=[3, 8, 8]))
    assert [sample["image"].shape for sample in fake.read_many(range(4))] == 4 * [(8, 8, 3)]


def test_a_data_set_by_its_name_is_the_one_made_in_python():
    by_name = open_manifest(named("Photos", form="png", labels=LABELS, classes=["a", "b", "c"]))
    in_python = open_manifest(Photos("png", labels=LABELS, classes=["a", "b", "c"]))
    assert by_name.fingerprint == in_python.fingerprint
    assert by_name.schema["label"].classes == in_python.schema["label"].classes == ("a", "b", "c")
    assert by_name.read_many([3]) == in_python.read_many([3])
    assert by_name.describe(3) == f"{__name__}:Photos[3]"
    assert in_python.describe(3) == "Photos[3]"
    told = open_manifest(Photos(describe=lambda index: f"photo {index}.jpg"))
    assert told.describe(3) == "photo 3.jpg"


class Columns(Photos):
    """Asked for as Hugging Face's data sets are."""

    column_names = ("image", "label")

    def __getitem__(self, index):
        return iter(LABELS) if index == "label" else super().__getitem__(index)


def test_labels_that_it_has_are_not_read_sample_by_sample():
    assert open_manifest(Columns("mapping", broken=range(1, 6))).values("label").tolist() == LABELS
    for name, labels in (("labels", LABELS), ("targets", tuple(LABELS)), ("labels", np.array(LABELS, np.int16))):
        manifest = open_manifest(Photos(broken=range(1, 6), **{name: labels}))
        assert manifest.values("label").tolist() == LABELS
    assert open_manifest(Photos()).values("label") is None


class Interrupted(Photos):
    """Ctrl-C comes while sample `at` is being read, or the labels are."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def __getitem__(self, index):
        if index == self.at:
            raise Stopped("stopped before training began", 2)
        return super().__getitem__(index)


def test_ctrl_c_while_it_is_listed_is_a_stop():
    with pytest.raises(Stopped):
        own.open_from_torch(own.FromTorch(Interrupted(0)), None, 0)
    with pytest.raises(Stopped):
        open_manifest(Interrupted(1)).read_many([1])


def test_samples_that_cannot_be_read_are_left_out_and_listed():
    """As undecodable images are."""
    opened = Pipeline(Photos(broken=[4], labels=LABELS), [resize(2)], batch_size=3).open(0)
    plan = StreamPlan(StreamSpec(opened.train.num_samples, 0, 3, 0, epochs=1), Position(), 1)
    producer = Producer(StreamWork(plan, opened.pickled_splits()))
    batches = [block.batches_of(producer.block(0, number, 1))[0] for number in range(2)]
    assert sorted(np.concatenate([batch.key for batch in batches]).tolist()) == [0, 1, 2, 3, 5]
    assert all(batch.fields["label"].tolist() == [LABELS[key] for key in batch.key] for batch in batches)
    [failure] = [failure for batch in batches for failure in batch.header.failures]
    assert failure == block.Failure(4, "Photos[4]", "EOFError: no image 4")


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([3], "list[0] is int, not (image, label) or a mapping with its fields"),
        ([(1, 2, 3)], "list[0] holds 3 values, not (image, label); name them with from_torch(…, fields=…)"),
        (
            [(PIXELS[0], object)],
            "field `label` of list[0] is type; a field is an array, a tensor, a number, a list of num",
        ),
        (Texts(labels=LABELS), "the label of Texts[0] must be a whole number, not 'cat'"),
        (Photos(labels=[-1] * 6), "must be 6 whole numbers from 0, one a sample, not int64 of shape (6,) down to -1"),
        ([], "list holds no samples"),
        (
            Photos(labels=[0, 1]),
            "labels of source 'Photos' must be 6 whole numbers from 0, one a sample, not int64 of ",
        ),
        (Photos(labels=[0.5] * 6), "one a sample, not float64 of shape (6,)"),
        (Photos(labels=[2] * 6), "Photos[0] has the label 0, where the labels of the data set say 2"),
        (Photos(labels=LABELS, classes=["a", "b"]), "source 'Photos' names 2 classes, but has the label 2"),
        (Photos(broken=range(6)), "source 'Photos': none of its first 6 samples can be read: EOFError: no image 5"),
        (Photos(labels=Broken()), "source 'Photos' cannot be listed: RuntimeError: no labels ("),
        (named("Options", root="x", limit=0), "Options' cannot be made: FileNotFoundError: no such root ("),
        (named("makes_a_number"), "makes int, which is no map-style data set: it needs __len__ and __getitem__"),
    ],
)
def test_what_is_no_data_set_is_one_clear_line(samples, message):
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        open_manifest(samples)
    assert "\n" not in str(caught.value)


def test_a_validation_split_numbers_its_classes_as_the_training_split_does():
    def opened(dataset, *classes):
        return open_manifest(dataset, like=Schema({"label": label_field(classes)})).schema["label"].classes

    assert opened(Photos(labels=LABELS), "a", "b", "c") == ("a", "b", "c")
    assert opened(Photos(classes="abc"), "a", "b", "c") == ("a", "b", "c")
    with pytest.raises(DataError, match="source 'Photos' numbers other classes than the training data does: b for c"):
        opened(Photos(classes=["a", "b", "d"]), "a", "c", "d")
    with pytest.raises(DataError, match="numbers other classes than the training data does: 3 for 4"):
        opened(Photos(classes=["a", "b", "c"]), "a", "b", "c", "d")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"kind": "no_such.mine:Photos"}, "data.train.kind: cannot import 'no_such.mine:Photos': there is no module "),
        ({"kind": f"{__name__}:Photo"}, "has no 'Photo'; did you mean 'Photos'?"),
        (
            {"kind": f"{__name__}:NOT_A_CLASS"},
            "data.train.kind: '{0}:NOT_A_CLASS' must be a class or function, not int",
        ),
        (
            {"kind": f"{__name__}:Options", "rot": 1},
            "data.train: source '{0}:Options' has no option 'rot'; did you mean 'ro",
        ),
        (
            {"kind": f"{__name__}:Options"},
            "data.train: source '{0}:Options' needs its option 'root' (its options: root, l",
        ),
        ({"kind": "builtins:divmod"}, "data.train: source 'builtins:divmod' needs its option 'x'"),
        (
            {"kind": "builtins:divmod", "x": 1, "y": 2},
            "data.train: source 'builtins:divmod' is called with its options: ",
        ),
        ({"kind": "builtins:int", "x": 1}, None),
    ],
)
def test_a_source_of_a_job_file_is_checked_before_it_is_made(source, message):
    data = Data.model_validate({"train": source})
    if message is None:  # without a signature
        assert Pipeline.from_config(data).train == data.train
        return
    with pytest.raises(ConfigError) as caught:
        Pipeline.from_config(data)
    assert message.format(__name__) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_data_set_that_cannot_travel_is_refused_before_anything_starts():
    pipeline = Pipeline(Photos(lock=threading.Lock()))
    with pytest.raises(
        ConfigError, match="the data and its stages cannot be sent to other processes: TypeError: cannot "
    ):
        pipeline.open(0)


@pytest.mark.process
def test_a_worker_imports_no_more_than_the_data_set_does():
    code = "import sys, raytrain.data.sources.kinds.own; print({'torch', 'pydantic', 'PIL', 'ray'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


class Segmented(Photos):
    """As torchvision's data sets of masks and boxes are."""

    def __getitem__(self, index):
        import torch
        from torchvision import tv_tensors

        palette = Image.fromarray(PIXELS[index][..., 0] % 5)
        palette.putpalette([9] * 768)
        box = tv_tensors.BoundingBoxes(torch.tensor([[1.0, 2, 2, 1]]), format="XYWH", canvas_size=(5, 4))
        layers = tv_tensors.Mask(torch.from_numpy(PIXELS[index]).permute(2, 0, 1))
        return Image.fromarray(PIXELS[index]), palette, box, layers, random.random()


def test_tuples_have_the_names_that_they_are_given():
    names = ("image", "seg", "boxes", "layers", "drawn")
    manifest = open_manifest(from_torch(Segmented(), fields=names, masks=["seg"]))
    assert [each.kind for each in manifest.schema.values()] == ["image", "mask", "boxes", "mask", ""]
    [sample] = manifest.read_many([3])
    np.testing.assert_array_equal(sample["image"], PIXELS[3])
    np.testing.assert_array_equal(sample["seg"], PIXELS[3][..., 0] % 5)
    np.testing.assert_array_equal(sample["layers"], PIXELS[3])
    assert sample["boxes"].tolist() == [[1, 2, 3, 3]]
    drawn = [manifest.read_many([3], lambda place: np.random.default_rng(7))[0]["drawn"] for _ in range(2)]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: from_torch(iter([])),
            "from_torch takes a map-style data set, with __len__ and __getitem__, not an itera",
        ),
        (lambda: from_torch(3), "from_torch takes a map-style data set, with __len__ and __getitem__, not int"),
        (lambda: from_torch([], fields=["a", "a"]), "from_torch: fields must be different names (given: a, a)"),
        (lambda: from_torch([], fields=[]), "from_torch: fields must be different names (given: none)"),
    ],
)
def test_what_from_torch_does_not_take_is_one_clear_line(make, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make()
