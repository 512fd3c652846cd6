"""Stages of the user's own: what they are called with, what they may return, and what is said before and after."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pictures import apply, photo, rng

from raytrain.data.samples.fields import Field, Schema
from raytrain.data.stages.geometry import center_crop, random_crop, random_horizontal_flip, resize
from raytrain.data.stages.images import color_jitter, decode, gaussian_blur, grayscale, to_dtype, to_uint8
from raytrain.data.stages.registry import as_stage
from raytrain.data.stages.settling import settle
from raytrain.data.stages.stage import keep_if, stage
from raytrain.data.stages.torchvision import torchvision
from raytrain.errors import ConfigError, DataError


def darken(image, by=2):
    return image // by


def jitter(image, rng):
    return image + rng.integers(1000)


# --- what a function is called with ---------------------------------------------------------------------------------


def test_a_function_gets_the_image_or_the_only_array():
    assert apply(as_stage(darken), {"image": np.array([8]), "other": np.array([8])})["image"].tolist() == [4]
    assert apply(stage(darken, by=4), {"x": np.array([8]), "label": np.int64(3)})["x"].tolist() == [2]
    assert apply(stage(darken, on="other"), {"image": np.array([8]), "other": np.int64(8)}) == {
        "image": [8],
        "other": 4,
    }


def test_a_function_gets_several_fields_and_returns_what_is_new():
    def swap(fields, by=1):
        assert sorted(fields) == ["a", "b"]
        return {"a": fields["b"] * by, "new": [1.5, 2.5]}

    result = apply(stage(swap, on=["a", "b"], by=2), {"a": np.int64(1), "b": np.int64(3), "c": "x"})
    assert (result["a"], result["b"], result["c"]) == (6, 3, "x")
    assert result["new"].tolist() == [1.5, 2.5]
    assert apply(stage(lambda fields: None, on=["a"], name="none"), {"a": np.int64(1)}) is None


def test_a_function_gets_the_whole_sample():
    """And returns all that goes on: one, several, or none."""

    def halves(sample):
        return ({**sample, "x": part} for part in np.split(sample["x"], 2))

    sample = {"x": np.arange(4), "label": np.int64(1)}
    first, second = apply(stage(halves, on="*"), sample)
    assert (first["x"].tolist(), second["x"].tolist(), second["label"]) == ([0, 1], [2, 3], 1)
    assert apply(stage(lambda sample: {"y": sample["x"].sum()}, on="*", name="sum"), sample) == {"y": 6}
    assert apply(stage(lambda sample: None, on="*", name="none"), sample) is None
    assert apply(stage(lambda sample: [], on="*", name="nothing"), sample) == []


def test_a_function_gets_the_whole_batch():
    """Arrays where shapes agree, lists where they do not."""

    def centred(batch, by=0):
        assert isinstance(batch["name"], list)
        assert isinstance(batch["boxes"], list)
        return {**batch, "x": batch["x"] - batch["x"].mean(axis=0) + by}

    made = stage(centred, whole_batch=True, by=10)
    samples = [
        {"x": np.array([1.0, 2.0]), "name": "a", "boxes": np.zeros((1, 4))},
        {"x": np.array([3.0, 6.0]), "name": "b", "boxes": np.ones((2, 4))},
    ]
    one, other = made.on_batch(samples, None)
    assert (one["x"].tolist(), other["x"].tolist()) == ([9.0, 8.0], [11.0, 12.0])
    assert (other["name"], other["boxes"].shape) == ("b", (2, 4))

    def mixed(batch, rng):
        order = rng.permutation(len(batch["x"]))
        return {"x": batch["x"][order], "order": order}

    made = stage(mixed, whole_batch=True)
    assert made.random
    assert [each["order"] for each in made.on_batch(samples, rng(1))] == rng(1).permutation(2).tolist()


def test_what_is_kept_is_not_changed():
    bright = keep_if(lambda image, least: image.mean() >= least, on="image", least=4)
    sample = {"image": np.array([8, 2]), "label": np.int64(0)}
    assert apply(bright, sample) == sample
    assert apply(bright, {**sample, "image": np.array([1, 2])}) is None
    small = keep_if(lambda sample: sample["label"] < 3)
    assert apply(small, sample) == sample
    assert apply(small, {**sample, "label": np.int64(3)}) is None
    both = keep_if(lambda fields: fields["image"].sum() > fields["label"], on=["image", "label"])
    assert apply(both, {**sample, "label": np.int64(10)}) is None
    some = keep_if(lambda sample, rng: rng.random() < 0.3)
    assert some.random
    assert 60 < sum(apply(some, sample, rng(seed)) is not None for seed in range(300)) < 120


def test_a_function_tells_whether_it_is_random():
    assert not as_stage(darken).random
    assert as_stage(jitter).random
    assert as_stage(np.flipud).name == "flipud"
    image = np.array([8])
    assert apply(stage(jitter), {"image": image}, rng(3))["image"] == image + rng(3).integers(1000)


def test_a_stage_of_several_fields_of_ones_own_draws_the_same_for_each():
    sample = {"image": photo(), "second": photo(seed=1)}
    made = gaussian_blur(5, on=["image", "second"])
    result = apply(made, sample, rng(2), image="image", second="image")
    alone = apply(gaussian_blur(5), {"image": sample["second"]}, rng(2), image="image")
    assert np.array_equal(result["second"], alone["image"])


@pytest.mark.parametrize(
    ("returned", "expected"),
    [(3, np.int64(3)), ([1, 2], np.array([1, 2])), ("text", "text"), (b"x", b"x"), (True, np.bool_(True))],
)
def test_what_a_function_returns_becomes_a_field(returned, expected):
    result = apply(stage(lambda image: returned, name="gives"), {"image": np.array([1])})["image"]
    assert type(result) is type(expected)
    assert np.array_equal(result, expected)


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (stage(lambda image: None, name="gives"), TypeError, "it returned nothing for field `image`"),
        (
            stage(lambda image: object, name="gives"),
            DataError,
            "field `image` behind `gives` is type; a field is an arr",
        ),
        (stage(lambda image: {"a": 1}, on=["image"], name="g"), None, ""),
        (
            stage(lambda image: 3, on=["image"], name="g"),
            TypeError,
            "it returned int, expected a dict of fields, or None",
        ),
        (stage(lambda image: {"a": None}, on=["image"], name="g"), TypeError, "it returned nothing for field `a`"),
        (
            stage(lambda image: 3, on="*", name="g"),
            TypeError,
            "it returned int, expected a dict of all fields, a list of",
        ),
        (
            stage(lambda image: [3], on="*", name="g"),
            TypeError,
            "it returned list, expected a dict of all fields, a list",
        ),
    ],
)
def test_what_no_field_can_be_is_told(made, error, message):
    if error is None:
        assert apply(made, {"image": np.array([1])})["a"] == 1
        return
    with pytest.raises(error) as caught:
        apply(made, {"image": np.array([1])})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (3, "it returned int, expected a dict of fields"),
        ({"x": [1]}, "it returned 1 values of field `x` for 2 samples"),
    ],
)
def test_a_batch_of_another_length_is_told(returned, message):
    with pytest.raises(TypeError, match=message):
        stage(lambda batch: returned, whole_batch=True, name="g").on_batch(2 * [{"x": np.int64(1)}], None)


# --- before anything starts -----------------------------------------------------------------------------------------

ENCODED = {"image": Field("bytes", (), "image"), "label": Field("int64", ())}
PIXELS = {"pixels": Field("uint8", (8, 8, 3)), "target": Field("float32", (8, 8, 3)), "name": Field("text", ())}


def settled(stages, fields, whole=True):
    found = settle([as_stage(each) for each in stages], Schema(fields, whole), "data.stages")
    return found.cpu, found.schema


@pytest.mark.parametrize(
    ("stages", "fields", "message"),
    [
        (
            [darken, darken, resize(8)],
            PIXELS,
            "stage 1, `darken`, does not know which field it is for; there are `pixels`",
        ),
        (
            [resize(8)],
            PIXELS,
            "stage 1, `resize`, wants field `image`; there are `pixels`, `target`, `name`; say which ",
        ),
        (
            [resize(8, on="pixel")],
            PIXELS,
            "stage 1, `resize`, wants field `pixel`; did you mean 'pixels'?; there are `pi",
        ),
        ([stage(darken, on="a")], {}, "stage 1, `darken`, wants field `a`; there are none"),
        (
            [stage(darken, on=["pixels", "b"])],
            PIXELS,
            "stage 1, `darken`, wants field `b`; there are `pixels`, `target`,",
        ),
        ([keep_if(darken, on="b")], PIXELS, "stage 1, `darken`, wants field `b`; there are"),
        ([resize(8, on="name")], PIXELS, "stage 1, `resize`, works on arrays, and field `name` is text"),
        ([to_dtype("float16", on="name")], PIXELS, "stage 1, `to_dtype`, works on arrays, and field `name` is text"),
        (
            [resize(8)],
            ENCODED,
            "stage 1, `resize`, needs decoded images, and field `image` is encoded; put `decode` bef",
        ),
        (
            [random_crop(8)],
            {**ENCODED, "mask": Field("uint8", (9, 9), "mask")},
            "`random_crop`, needs decoded images, and field `image` is encoded",
        ),
        (
            [random_horizontal_flip()],
            {**ENCODED, "boxes": Field("float32", (None, 4), "boxes")},
            "`random_horizontal_flip`, needs decoded images, and field `image` is encoded",
        ),
        ([resize(8)], {"photo": ENCODED["image"]}, "`resize`, needs decoded images, and field `photo` is encoded"),
        ([to_dtype("float16")], ENCODED, "stage 1, `to_dtype`, needs decoded images, and field `image` is encoded"),
        (
            [torchvision("RandomHorizontalFlip")],
            ENCODED,
            "`torchvision.RandomHorizontalFlip`, needs decoded images, and",
        ),
        (
            [stage(lambda b: b, whole_batch=True, name="mix"), resize(8)],
            ENCODED,
            "stage 2, `resize`, works on one sample, ",
        ),
        (
            [center_crop(8, on="boxes")],
            {"boxes": Field("float32", (None, 4), "boxes")},
            "`center_crop`, needs an image or a mask beside boxes, which alone have no size",
        ),
        (
            [torchvision("RandomHorizontalFlip")],
            {"boxes": Field("float32", (None, 4), "boxes")},
            "`torchvision.RandomHorizontalFlip`, needs an image or a mask beside boxes, which alone have no size",
        ),
        (
            [decode()],
            {"label": Field("int64", ())},
            "stage 1, `decode`, wants field `image`; there are `label`; say whi",
        ),
    ],
)
def test_a_stage_that_does_not_fit_is_one_clear_line(stages, fields, message):
    with pytest.raises(ConfigError) as caught:
        settled(stages, fields)
    assert message in str(caught.value)
    assert str(caught.value).startswith("data.stages: stage ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "first", [resize(3), random_horizontal_flip(), to_dtype("float16"), to_uint8(), grayscale(), color_jitter(0.1)]
)
def test_a_late_decode_is_refused(first):
    with pytest.raises(
        ConfigError, match=f"`{first.name}`, needs decoded images, and field `image` is encoded; put `d"
    ):
        settled([first, decode()], ENCODED)


def test_what_is_decoded_or_may_be_needs_no_decode():
    settled([lambda data: data, resize(3)], ENCODED)  # one's own may decode
    settled([stage(lambda sample: sample, on="*", name="own"), resize(3)], ENCODED)
    [made], _ = settled([decode()], {"image": Field("uint8", (8, 8, 3), "image")})
    assert made.on == ("image",)
    [made], _ = settled([resize(3)], {"pixels": PIXELS["pixels"], "label": Field("int64", ())})
    assert made.on == ("pixels",), "the only array"
    [made], _ = settled([decode()], {"picture": Field("bytes", ()), "label": Field("int64", ())})
    assert made.on == ("picture",), "the only bytes"
    [made], _ = settled([resize(3)], {}, whole=False)
    assert made.on == ("image",), "nobody knows"


def test_stages_tell_what_is_behind_them():
    fields = {**ENCODED, "mask": Field("bytes", (), "mask"), "boxes": Field("float32", (None, 4), "boxes")}
    stages = [decode(), resize(256), random_crop((224, 192)), grayscale(), to_dtype("float16", on="image")]
    made, schema = settled(stages, fields)
    assert [each.on for each in made] == [("image", "mask"), ("image", "mask", "boxes"), ("image", "mask", "boxes")] + [
        ("image",)
    ] * 2
    assert schema["image"] == Field("float16", (224, 192, 1), "image")
    assert schema["mask"] == Field("", (224, 192), "mask")
    assert schema["boxes"] == fields["boxes"]
    assert schema["label"] == ENCODED["label"]
    assert schema.whole
    _, schema = settled([decode(), resize(32), darken], ENCODED)
    assert schema["image"] == Field(kind="image"), "one's own may have made anything of it"
    _, schema = settled([stage(darken, on="*", gives={"x": Field("float32", (3,))})], ENCODED)
    assert dict(schema) == {"x": Field("float32", (3,))}
    with pytest.raises(ConfigError, match="stage 2, `resize`, wants field `image`; there are `label`"):
        given = {"label": Field("int64", ())}
        settled([stage(lambda sample: sample, on="*", gives=given, name="own"), resize(8)], ENCODED)
    _, schema = settled(
        [stage(lambda fields: fields, on=["label"], gives={"y": Field("int64", ())}, name="y")], ENCODED
    )
    assert [*schema] == ["image", "label", "y"]


def test_stages_of_one_name_are_told_apart():
    made, _ = settled([decode(), resize(8), resize(4), darken, darken], ENCODED)
    assert [each.name for each in made] == ["decode", "resize", "resize_2", "darken", "darken_2"]


def test_a_field_that_only_the_sample_lacks_is_told_when_it_comes():
    made, _ = settled([stage(lambda sample: sample, on="*", name="own"), resize(8)], ENCODED)
    with pytest.raises(ConfigError, match="stage `resize` wants field `image`; there are `picture`"):
        made[1]({"picture": photo()}, None)


def test_a_shape_that_is_no_images_is_told():
    with pytest.raises(TypeError, match=r"field `image` has the shape \(3,\), expected \(height, width, channels\)"):
        replace(resize(8), on=("image",), on_kinds=("image",))({"image": np.arange(3)}, None)  # of an unknown shape


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: stage(darken, bye=3), "stage 'darken' has no option 'bye'; did you mean 'by'? (its options: by)"),
        (lambda: as_stage(3), "3 is not a stage: give a function of one array, or a torchvision v2 transform"),
        (lambda: stage(3, name="three"), "stage 'three': 3 is not a callable object"),
        (
            lambda: stage(lambda rng, image: image, name="two"),
            "stage 'two' is called with one array and its options: multiple values",
        ),
        (
            lambda: stage(lambda *, image: image, on="*", name="key"),
            "stage 'key' is called with a dict of all fields and",
        ),
        (
            lambda: as_stage(resize),
            "'resize' is not a stage yet: write resize(...), with its options, from raytrain.data",
        ),
        (lambda: as_stage("resize"), "'resize' is not a stage yet: write resize(...), with its options"),
        (
            lambda: stage(darken, on="image", whole_batch=True),
            "stage 'darken': a stage of a whole batch gets all fields; leave `on` out",
        ),
        (lambda: stage(darken, on=[]), "stage 'darken': `on` is a field, a list of fields, or \"*\" (given: [])"),
        (lambda: stage(darken, on=[3]), "stage 'darken': `on` is a field, a list of fields, or \"*\" (given: [3])"),
    ],
)
def test_what_is_no_stage_is_one_clear_line(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
