"""Comparisons: the published kinds of table, and what must not be compared."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from money import on_sagemaker, prices_file, run_on

from raytrain.cost.compare import Column, against, compare, curve_of
from raytrain.cost.instances import catalog
from raytrain.errors import ConfigError

SINGLE = {"ml.g5.xlarge": ("gpu", 1, 1)}
BOTH = {"ml.g5.xlarge": ("gpu", 1, 1), "ml.c5.4xlarge": ("cpu", 1, 0)}


def two(record, speedup=1.943, **changes):
    return [
        run_on(record, "single", SINGLE, samples_per_s=32.0, **changes),
        run_on(record, "both", BOTH, samples_per_s=32.0 * speedup, **changes),
    ]


def test_the_published_kind_of_table(record):
    """ml.g5.xlarge at $1.408 against the same and ml.c5.4xlarge at $0.816: 23 % better at 1.94 times the speed."""
    found = compare(on_sagemaker(two(record)), catalog(), region="us-east-1")
    first, second, single = found.columns
    assert (first.usd_per_hour, second.usd_per_hour) == (1.408, 1.408 + 0.816)
    assert second.break_even == pytest.approx(2.224 / 1.408)
    assert second.price_efficiency == pytest.approx(0.23, abs=0.001)
    assert (first.speedup, first.break_even, first.price_efficiency) == (1, 1, 0)
    assert first.usd_per_million_samples == pytest.approx(1.408 / 3600 / 32 * 1e6)
    assert first.usd_per_epoch == pytest.approx(1.408 / 3600 / 32 * 640)
    assert first.startup_usd == pytest.approx(1.408 * 120 / 3600)
    assert first.step_s == pytest.approx(64 / 32)
    assert first.cpu_busy == {"gpu-1": 1.5 / 4}
    assert single.predicted
    assert set(single.hosts) < {"ml.g5.xlarge", "ml.g5.2xlarge", "ml.g5.4xlarge", "ml.g5.12xlarge"}
    assert {price.type for price in found.prices} >= {"ml.g5.xlarge", "ml.c5.4xlarge", *single.hosts}


def test_another_machines_start_up_has_no_price(record):
    """It is none of SageMaker's: the run took 120 s to start on this machine."""
    first, _, single = compare(two(record), catalog(), region="us-east-1").columns
    assert (first.startup_s, first.startup_usd) == (120.0, None)
    assert (single.startup_s, single.startup_usd) == (None, None)


@pytest.mark.parametrize(("usd", "cheaper"), [(37.69, 0.46), (25.251, 0.42)])
def test_the_tensorflow_notebooks_ratio(record, tmp_path, usd, cheaper):
    """p4d.24xlarge and two c5.18xlarge: 192 -> 86 ms a step; 46 % cheaper in 2022, 42 % at the prices of 2026-09."""
    known = catalog(prices_file(tmp_path / "p.yaml", {"ml.p4d.24xlarge": usd, "ml.c5.18xlarge": 3.672}))
    alone, beside = {"ml.p4d.24xlarge": ("gpu", 1, 8)}, {"ml.c5.18xlarge": ("cpu", 2, 0)}
    runs = [run_on(record, "alone", alone, samples_per_s=1 / 0.192)]
    runs.append(run_on(record, "beside", {**alone, **beside}, samples_per_s=1 / 0.086))
    first, second, _ = compare(runs, known, region="here-1").columns
    assert 1 - second.usd_per_million_samples / first.usd_per_million_samples == pytest.approx(cheaper, abs=0.006)
    assert second.speedup == pytest.approx(192 / 86)


@given(price=st.floats(0.01, 100), other=st.floats(0.01, 100), speed=st.floats(0.01, 1e4), speedup=st.floats(0.1, 20))
def test_break_even_is_the_price_ratio(price, other, speed, speedup):
    def column(usd, rate):
        sample = usd / 3600 / rate
        return Column("c", False, {}, 1.0, rate, None, usd_per_hour=usd, usd_per_million_samples=sample * 1e6)

    first, second = column(price, speed), against(column(price, speed), column(other, speed * speedup))
    assert second.break_even == pytest.approx(other / price)
    saved = second.usd_per_million_samples / first.usd_per_million_samples
    assert second.price_efficiency == pytest.approx(1 / saved - 1, rel=1e-6, abs=1e-9)
    assert (second.price_efficiency > 1e-9) == (second.speedup > second.break_even * (1 + 1e-9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "model: .* in single, None in both"),
        ({"data.batch_size": 7}, "data.batch_size: 16 in single, 7 in both"),
        ({"training.precision": "bf16"}, "training.precision: fp32 in single, bf16 in both"),
        ({"data.stages": []}, r"data.stages: \['decode', .*… in single, \[\] in both"),
        ({"num_train": 9}, "training samples: 640 in single, 9 in both"),
    ],
)
def test_unlike_workloads_are_refused_unless_told(record, change, message):
    runs = two(record)
    (key, value), *_ = change.items()
    if key == "num_train":
        runs[1] = runs[1].model_copy(update=change)
    else:
        job = runs[1].model_copy(deep=True).job
        *parents, last = key.split(".")
        node = job
        for name in parents:
            node = node[name]
        node[last] = value
        runs[1] = runs[1].model_copy(update={"job": job})
    with pytest.raises(ConfigError, match=f"the records are of different workloads: .*({message})") as caught:
        compare(runs, catalog(), region="us-east-1")
    assert str(caught.value).endswith("--unlike compares them all the same")
    notes = compare(runs, catalog(), region="us-east-1", unlike=True).notes
    assert any(note.startswith("they differ, and were compared all the same: ") for note in notes)


def test_where_the_data_lies_does_not_matter(record):
    runs = two(record)
    job = runs[1].model_copy(deep=True).job
    job["data"]["train"]["path"] = "/elsewhere"
    runs[1] = runs[1].model_copy(update={"job": job})
    assert len(compare(runs, catalog(), region="us-east-1").columns) == 3


def test_a_run_that_failed_early_is_refused(record):
    nothing = record.totals.model_copy(update={"samples": 0, "samples_per_s": 0.0})
    failed = run_on(record, "bad", SINGLE).model_copy(update={"totals": nothing, "status": "failed"})
    with pytest.raises(ConfigError, match="the record of bad has no training to compare: its run failed"):
        compare([failed], catalog(), region="us-east-1")


def test_hosts_without_a_type_are_compared_without_money(record):
    runs = [record, record]
    found = compare(runs, catalog())
    assert [column.name for column in found.columns] == ["small", "small (2)"]
    assert found.columns[1].price_efficiency is None
    assert "small: group 'train' has no instance type; give --instances train=ml.…" in found.notes
    assert any("no single instance is predicted" in note for note in found.notes)
    assert any(note == "small: on emulated nodes, which share one machine" for note in found.notes)


def apart(record, cpus=(2, 2)):
    """The record's hosts with so many CPUs each, on a machine that has them all."""
    hosts = [host.model_copy(update={"cpus": n}) for host, n in zip(record.hosts, cpus, strict=True)]
    hardware = record.hardware.model_copy(update={"cpu_cores": sum(cpus)})
    return record.model_copy(update={"hosts": hosts, "hardware": hardware})


def test_instances_can_be_given(record):
    types = {"train": "ml.g5.xlarge", "cpu": "ml.c5.4xlarge"}
    whole = apart(record, (4, 16))
    found = compare([whole, whole], catalog(), region="us-east-1", instances=[types, types])
    assert found.columns[0].usd_per_hour == 1.408 + 0.816
    stood_in = "its ranks stood in for A10G GPUs, with an efficiency of 80%: they trained on a CPU"
    assert any(stood_in in note for note in found.notes), found.notes
    with pytest.raises(ConfigError, match="--instances was given 1 times for 2 records; give one for each"):
        compare([record, record], catalog(), region="us-east-1", instances=[types])
    with pytest.raises(ConfigError, match=r"unknown instance type 'ml.g5.xlage'; did you mean 'ml.g5.xlarge'"):
        compare([record], catalog(), region="us-east-1", instances=[{**types, "train": "ml.g5.xlage"}])


def test_the_job_files_types_and_region_are_used(record):
    groups = [{"name": "train", "instance_type": "ml.g5.xlarge"}, {"name": "cpu", "instance_type": "ml.c5.4xlarge"}]
    record = apart(record, (4, 16))
    record.job["cluster"]["groups"] = groups
    assert "its job names no region" in " ".join(compare([record], catalog()).notes)
    record.job["sagemaker"] = {"region": "us-east-1"}
    assert compare([record], catalog()).columns[0].usd_per_hour == pytest.approx(2.224)


def test_a_curve_with_the_measured_points_on_it(record):
    runs = two(record)
    known = catalog()
    cpu_type, curve, points = curve_of(runs[0], compare(runs, known, region="us-east-1"), known)
    assert cpu_type == "ml.c5.4xlarge"
    assert [str(each.shape) for each in curve[:2]] == ["1 x ml.g5.xlarge", "1 x ml.g5.xlarge + 1 x ml.c5.4xlarge"]
    assert [(hosts, column.name) for hosts, column in points] == [(0, "single"), (1, "both")]
    alone = compare(runs[:1], known, region="us-east-1")
    assert curve_of(runs[0], alone, known)[0].startswith("ml.c5.")
    assert curve_of(record, compare([record], known), known) is None
