"""Stages as a job file has them, and their defaults beside torchvision's."""

from __future__ import annotations

import importlib
import inspect
import pickle
import re
import sys

import numpy as np
import pytest
from pictures import apply_to, encoded, photo, rng
from torchvision.transforms import v2

import raytrain.data
from raytrain.data.stages import registry
from raytrain.errors import ConfigError

NEEDED = {
    "resize": {"size": 8},
    "center_crop": {"size": 8},
    "random_crop": {"size": 8},
    "random_resized_crop": {"size": 8},
    "gaussian_blur": {"kernel_size": 3},
    "to_dtype": {"dtype": "float16"},
    "mixup": {"num_classes": 2},
    "cutmix": {"num_classes": 2},
    "torchvision": {"transform": "RandomHorizontalFlip"},
}


@pytest.mark.parametrize("name", sorted(registry.STAGES))
def test_every_stage_of_a_job_file_can_travel(name):
    stage = pickle.loads(pickle.dumps(registry.parse_stage({name: NEEDED.get(name, {})})))
    if stage.place == "device":  # and runs nowhere else
        return
    sample = encoded(photo()) if name == "decode" else photo(dtype="float32")
    assert apply_to(stage, sample, rng()).ndim == 3


def test_every_stage_of_a_job_file_can_be_imported():
    assert set(NEEDED) <= set(registry.STAGES) <= set(raytrain.data.__all__)


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        ("resize", v2.Resize),
        ("center_crop", v2.CenterCrop),
        ("random_crop", v2.RandomCrop),
        ("random_resized_crop", v2.RandomResizedCrop),
        ("random_horizontal_flip", v2.RandomHorizontalFlip),
        ("random_vertical_flip", v2.RandomVerticalFlip),
        ("gaussian_blur", v2.GaussianBlur),
        ("color_jitter", v2.ColorJitter),
        ("grayscale", v2.Grayscale),
        ("random_erasing", v2.RandomErasing),
        ("random_grayscale", v2.RandomGrayscale),
        ("to_dtype", v2.ToDtype),
    ],
)
def test_parameters_and_defaults_are_torchvisions(name, transform):
    """Ours may have more, behind; where torchvision has None for nothing, ours may have 0."""
    ours = inspect.signature(registry.STAGES[name]).parameters
    without = ("antialias", "inplace")
    theirs = {n: p.default for n, p in inspect.signature(transform).parameters.items() if n not in without}
    assert [n for n in ours if n in theirs] == [*theirs]
    for parameter, default in theirs.items():
        found = ours[parameter].default
        assert found == default or (default is None and found == 0), parameter


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resise", r"unknown stage 'resise'; did you mean 'resize'\? \(known: "),
        (
            {"resize": {"siz": 3}},
            r"'resize' has no option 'siz'; did you mean 'size'\? \(its options: size, interpolation",
        ),
        (
            {"random_horizontal_flip": {"x": 3}},
            r"'random_horizontal_flip' has no option 'x' \(its options: p, on, place\)",
        ),
        ({"to_uint8": {"x": 3}}, r"stage 'to_uint8' has no option 'x' \(its options: on, place\)"),
        ("resize", r"stage 'resize' needs its option 'size' \(its options: size"),
        ("gaussian_blur", r"stage 'gaussian_blur' needs its option 'kernel_size'"),
        ({"resize": 32}, r"stage 'resize': write its options by name, such as `resize: \{size: 32\}`"),
        ({"to_dtype": "float16"}, r"write its options by name, such as `to_dtype: \{dtype: 'float16'\}`"),
        ("nowhere.at_all:f", r"cannot import 'nowhere.at_all:f': there is no module 'nowhere'; put nowhere.py beside"),
        (":f", r"':f' must look like package.module:name"),
        ("math:nothing", r"module 'math' .*has no 'nothing'"),
        ("math:flor", r"module 'math' .*has no 'flor'; did you mean 'floor'\?"),
        ({"gaussian_blur": {"kernel_size": 4}}, r"kernel_size must be odd and positive \(given: 4\)"),
        ({"gaussian_blur": {"kernel_size": 3, "sigma": [2, 1]}}, r"sigma must be \[low, high\]"),
        ({"gaussian_blur": {"kernel_size": 3, "sigma": [1]}}, r"sigma must be a list of 2 numbers \(given: \(1,\)\)"),
        (
            {"gaussian_blur": {"kernel_size": 3.0}},
            r"'gaussian_blur': kernel_size must be a whole number \(given: 3.0\)",
        ),
        ({"gaussian_blur": {"kernel_size": 3, "times": 0}}, r"stage 'gaussian_blur': times must be at least 1"),
        ({"color_jitter": {"contrast": -1}}, r"stage 'color_jitter': contrast must be at least 0 \(given: -1\)"),
        ({"color_jitter": {"hue": 0.6}}, r"stage 'color_jitter': hue must be from -0.5 to 0.5 \(given: 0.6\)"),
        ({"color_jitter": {"contrast": [2, 1]}}, r"stage 'color_jitter': a range is \[low, high\] \(given: \[2, 1\]\)"),
        ({"grayscale": {"num_output_channels": 2}}, r"'grayscale': num_output_channels must be 1 or 3 \(given: 2\)"),
        ({"random_erasing": {"scale": [0.5, 1.5]}}, r"stage 'random_erasing': scale must be from 0 to 1"),
        ({"random_erasing": {"ratio": [3, 2]}}, r"stage 'random_erasing': ratio must be \[low, high\]"),
        ({"random_grayscale": {"p": 2.0}}, r"stage 'random_grayscale': p must be from 0 to 1"),
        (
            {"resize": {"size": "big"}},
            r"stage 'resize': size must be a whole number or a list of 2 whole numbers \(given: 'big'\)",
        ),
        (
            {"random_crop": {"size": "big"}},
            r"stage 'random_crop': size must be a whole number or a list of 2 whole numbers \(given: 'big'\)",
        ),
        (
            {"resize": {"size": [8, 8, 8]}},
            r"size must be a whole number or a list of 2 whole numbers \(given: \(8, 8, 8\)",
        ),
        (
            {"resize": {"size": "32"}},
            r"stage 'resize': size must be a whole number or a list of 2 whole numbers \(given: '32'\)",
        ),
        (
            {"resize": {"size": True}},
            r"stage 'resize': size must be a whole number or a list of 2 whole numbers \(given: True\)",
        ),
        ({"resize": {"size": [8, 0]}}, r"stage 'resize': size must be at least 1 \(given: \(8, 0\)\)"),
        ({"resize": {"size": 8, "max_size": 8}}, r"max_size must be larger than one size \(given: 8 and 8\)"),
        (
            {"resize": {"size": [8, 9], "max_size": 9}},
            r"max_size must be larger than one size \(given: 9 and \(8, 9\)\)",
        ),
        ({"resize": {"size": 8, "interpolation": "box"}}, r"interpolation must be one of bilinear, bicubic, nearest"),
        ({"center_crop": {"size": 0}}, r"stage 'center_crop': size must be at least 1"),
        ({"random_crop": {"size": 8, "padding": -1}}, r"stage 'random_crop': padding must be at least 0"),
        (
            {"random_crop": {"size": 8, "padding_mode": "wrap"}},
            r"padding_mode must be one of constant, edge, reflect, sym",
        ),
        ({"random_resized_crop": {"size": -1}}, r"stage 'random_resized_crop': size must be at least 1"),
        (
            {"random_resized_crop": {"size": 8, "scale": [0.9, 0.1]}},
            r"scale must be \[low, high\] with 0 < low <= high",
        ),
        ({"random_resized_crop": {"size": 8, "ratio": [0, 0]}}, r"ratio must be \[low, high\] with 0 < low <= high"),
        ({"random_resized_crop": {"size": 8, "scale": [0.5, 2]}}, r"scale must be from 0 to 1 \(given: \(0.5, 2\)\)"),
        (
            {"random_horizontal_flip": {"p": 1.5}},
            r"stage 'random_horizontal_flip': p must be from 0 to 1 \(given: 1.5\)",
        ),
        ({"random_vertical_flip": {"p": "0.5"}}, r"stage 'random_vertical_flip': p must be a number \(given: '0.5'\)"),
        ({"to_dtype": {"dtype": "flaot16"}}, r"unknown dtype 'flaot16'; did you mean 'float16'"),
    ],
)
def test_a_wrong_stage_is_one_clear_line(spec, message):
    with pytest.raises(ConfigError) as caught:
        registry.parse_stage(spec)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_sizes_may_be_lists_in_python_too():
    assert apply_to(raytrain.data.resize([8, 9]), photo()).shape == (8, 9, 3)


def test_a_stage_of_any_module():
    stage = registry.parse_stage({"numpy:clip": {"a_min": 0, "a_max": 1, "on": "x"}})
    assert stage.on == ("x",)
    assert stage({"x": np.array([5])}, None)["x"].tolist() == [1]


# --- of one's own -------------------------------------------------------------------------------------------------

OWN = """
from __future__ import annotations

from dataclasses import dataclass

from torchvision.transforms import v2

from raytrain.data import stage
from raytrain.data.stages import stage as stages
from raytrain.data.stages.stage import Stage

def half(image):
    return image / 2

def scaled(by: float, *, on=None) -> Stage:
    return stage(times, by=by, on=on)

def also(by: float = 3) -> stages.Stage:
    return scaled(by)

def times(image, by):
    return image * by

class Scaled(Stage):
    pass

made = stage(times, by=5, name="five times")
flip = v2.RandomHorizontalFlip(1.0)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_stages.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("own_stages")
    del sys.modules["own_stages"]


def test_a_stage_that_has_been_made_is_taken_as_it_is(own):
    assert registry.parse_stage("own_stages:made") is own.made
    assert registry.parse_stage({"own_stages:made": None}) is own.made
    with pytest.raises(
        ConfigError, match="'own_stages:made' has been made already and takes no options; name the func"
    ):
        registry.parse_stage({"own_stages:made": {"by": 2}})


@pytest.mark.parametrize(
    ("spec", "name", "factor"),
    [
        ("own_stages:half", "half", 0.5),
        ({"own_stages:times": {"by": 4}}, "times", 4),
        ({"own_stages:scaled": {"by": 2.0, "on": "image"}}, "times", 2),
        ("own_stages:also", "times", 3),
        ({"own_stages:Scaled": {"name": "called", "function": np.negative, "on": ("image",)}}, "called", -1),
        ("raytrain.data:to_uint8", "to_uint8", 1),
    ],
)
def test_a_path_names_a_function_of_an_array_or_what_makes_a_stage(own, spec, name, factor):
    stage = registry.parse_stage(spec)
    assert stage.name == name
    image = np.arange(12.0).reshape(2, 2, 3)
    assert np.array_equal(apply_to(stage, image.copy()), image * factor)


def test_a_path_may_name_a_transform_of_torchvisions(own):
    image = photo()
    flipped = apply_to(registry.parse_stage("own_stages:flip"), image.copy(), rng())
    assert np.array_equal(flipped, image[:, ::-1])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"own_stages:scaled": {"bye": 2}}, r"'own_stages:scaled' has no option 'bye'; did you mean 'by'\?"),
        ("own_stages:scaled", r"'own_stages:scaled' needs its option 'by'"),
        ({"own_stages:scaled": 2}, r"such as `own_stages:scaled: \{by: 2\}`"),
    ],
)
def test_options_of_what_makes_a_stage_are_checked(own, spec, message):
    with pytest.raises(ConfigError, match=message):
        registry.parse_stage(spec)
