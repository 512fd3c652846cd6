"""Profiles: figures with their spread, and what a record says about its samples."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from money import profile, run_on

from raytrain.cost.instances import catalog
from raytrain.cost.profile import Figure, parse_profile, profile_of_record
from raytrain.errors import ConfigError


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=9))
def test_a_figure_is_the_median_with_its_spread(values):
    figure = Figure.of(values)
    assert (figure.low, figure.high, figure.n) == (min(values), max(values), len(values))
    assert sum(v <= figure.value for v in values) * 2 >= len(values) <= sum(v >= figure.value for v in values) * 2


def test_a_profile_comes_back(tmp_path):
    profile().write(tmp_path / "deep" / "profile.json")
    assert parse_profile(json.loads((tmp_path / "deep" / "profile.json").read_text()), "p") == profile()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["profile.json"]


def test_a_profile_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="the profile cannot be written to"):
        profile().write(tmp_path / "file" / "profile.json")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schema_version", 7, "is a profile of schema version 7; this raytrain reads 1: diagnose again"),
        ("num_samples", -3, "p is not a profile: num_samples: Input should be greater than 0"),
        ("wire_bytes_per_sample", {"value": -1, "low": 1, "high": 1}, "wire_bytes_per_sample.value: Input should be"),
        ("startup_s", {"value": 0, "low": 0, "high": 0}, "startup_s is 0: nothing takes no time"),
        ("cpu_s_per_sample", {"c5": {"value": 0, "low": 0, "high": 0}}, "cpu_s_per_sample of c5 is 0: nothing"),
        ("cpu_s_per_sample", {}, "cpu_s_per_sample"),
        ("startup_s", {"value": float("nan"), "low": 1, "high": 1}, "startup_s.value: Input should be"),
        ("startup_s", {"value": 5, "low": 6, "high": 7}, "startup_s: low, value and high are not in order"),
        (
            "efficiency",
            {"value": 30, "low": 30, "high": 30},
            "an efficiency of 30 is absurd: the whole cannot be faster",
        ),
        ("surprise", 1, "surprise: Extra inputs are not permitted"),
        ("stages", [{"name": "blur", "cpu_share": 1.1}], "stages.0.cpu_share: Input should be less than or equal to 1"),
        (
            "stages",
            [{"name": "read", "cpu_share": 0.5}, {"name": "blur", "cpu_share": 0.6}],
            "the stages' shares of the CPU time are 110% in all, which is more than there is",
        ),
        (
            "stages",
            [{"name": "blur", "cpu_share": 0.5, "wire_bytes_per_sample": {"value": 1, "low": 1, "high": 1}}],
            "stage `blur` has one of device_s_per_sample and wire_bytes_per_sample: it must have both, or none",
        ),
        (
            "stages",
            [
                {
                    "name": "blur",
                    "cpu_share": 0.5,
                    "device_s_per_sample": {"A10G": {"value": 0, "low": 0, "high": 0}},
                    "wire_bytes_per_sample": {"value": 1, "low": 1, "high": 1},
                }
            ],
            "device_s_per_sample of `blur` on A10G is 0: nothing takes no time",
        ),
    ],
)
def test_absurd_measurements_are_one_line(key, value, message):
    tree = {**profile().model_dump(mode="json"), key: value}
    with pytest.raises(ConfigError, match=message) as caught:
        parse_profile(tree, "p")
    assert "\n" not in str(caught.value)


def test_a_profile_that_is_a_list_is_one_line():
    with pytest.raises(ConfigError, match="schema version None"):
        parse_profile([], "p")


def test_what_a_record_says_about_its_samples(record):
    """64 samples/s, half of the time waiting: 1/128 s of a GPU, and the only stage takes 5 ms."""
    run = run_on(record, "r", {"ml.g5.xlarge": ("gpu", 1, 1), "ml.c5.4xlarge": ("cpu", 1, 0)})
    found = profile_of_record(run, catalog())
    assert found.accelerator_s_per_sample["A10G"].value == pytest.approx(1 / 128)
    assert found.cpu_s_per_sample == {"g5": Figure.once(0.005)}
    assert found.efficiency.value == pytest.approx(64 / 128)
    assert (found.startup_s.value, found.num_samples, found.epochs) == (120.0, 640, 2)
    assert found.read_bytes_per_sample.value == pytest.approx(500 / 1000), "validation is read too"
    on_cpu = run.model_copy(update={"ranks": [run.ranks[0].model_copy(update={"device": "cpu"})]})
    shared = profile_of_record(on_cpu, catalog())
    assert shared.efficiency.value == pytest.approx(64 / (2 / (0.005 + 1 / 128 * 2))), "the cores do both"


def test_steps_are_told_in_epochs(record):
    run = run_on(record, "r", {"ml.g5.xlarge": ("gpu", 1, 1)})
    run.job["training"] |= {"epochs": None, "steps": 40}
    assert profile_of_record(run, catalog()).epochs == pytest.approx(40 * 64 / 640)


@pytest.mark.parametrize(
    ("update", "gpu"),
    [
        ({}, "A10G"),
        ({"device": "cpu"}, "CPU"),
        ({"hosts": []}, "A10G"),
        ({"hosts": [], "gpus": ["NVIDIA H100 80GB HBM3"]}, "H100"),
        ({"hosts": [], "gpus": ["NVIDIA Something"]}, "NVIDIA Something"),
        ({"hosts": [], "gpus": []}, "unknown GPU"),
    ],
)
def test_the_gpu_has_the_catalogs_name(record, update, gpu):
    run = run_on(record, "r", {"ml.g5.xlarge": ("gpu", 1, 1)})
    gpus, device = update.pop("gpus", run.hardware.gpus), update.pop("device", "cuda:0")
    run = run.model_copy(update={"ranks": [run.ranks[0].model_copy(update={"device": device})]})
    run = run.model_copy(update={**update, "hardware": run.hardware.model_copy(update={"gpus": gpus})})
    assert list(profile_of_record(run, catalog()).accelerator_s_per_sample) == [gpu]


def test_a_run_that_never_trained_has_no_profile(record):
    nothing = record.totals.model_copy(update={"samples": 0, "samples_per_s": 0.0})
    with pytest.raises(ConfigError, match="the record of small has no training to learn from: its run failed"):
        profile_of_record(record.model_copy(update={"totals": nothing, "status": "failed"}), catalog())
