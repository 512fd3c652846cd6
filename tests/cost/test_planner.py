"""The planner: its arithmetic, its limits, and the shapes it looks at."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from money import prices_file, profile

from raytrain.cost.bounds import Bounds
from raytrain.cost.instances import catalog
from raytrain.cost.planner import MAX_GROUPS, plan
from raytrain.cost.profile import Figure
from raytrain.errors import ConfigError

EAST = Bounds("us-east-1")


def one(found, text):
    """The shape that reads `text`."""
    names = [str(found.prediction(index).shape) for index in range(len(found))]
    return found.prediction(names.index(text))


def test_the_worked_example_of_the_docs():
    """docs/costs.md, by hand: 18 ms of a vCPU, 1/1200 s of an A10G, efficiency 0.97, 12,811,670 samples."""
    found = plan(profile(), catalog(), EAST)
    alone = one(found, "1 x ml.g5.xlarge")
    assert alone.samples_per_s == pytest.approx(0.97 * 3 / 0.018)  # three of four vCPUs: 161.7
    assert alone.limit == "CPUs"
    assert alone.usd_per_million_samples == pytest.approx(1.408 / 3600 / (0.97 * 3 / 0.018) * 1e6)  # $2.42
    beside = one(found, "1 x ml.g5.xlarge + 1 x ml.c5.4xlarge")
    assert beside.samples_per_s == pytest.approx(0.97 * 19 / 0.018)  # 1023.9
    assert beside.usd_per_hour == pytest.approx(1.408 + 0.816)
    assert beside.usd_per_million_samples == pytest.approx(0.6034, abs=1e-4)
    two = one(found, "1 x ml.g5.xlarge + 2 x ml.c5.4xlarge")
    assert two.samples_per_s == pytest.approx(0.97 * 1200)
    assert two.limit == "accelerator"
    assert two.hours == pytest.approx((120 + 12_811_670 / 1164) / 3600)
    assert two.usd == pytest.approx(two.hours * (1.408 + 2 * 0.816))


def test_ten_thousand_shapes_and_no_loop_over_them():
    found = plan(profile(), catalog(), Bounds("us-west-2", max_cpu_hosts=48))
    assert len(found) > 10_000
    shapes = [(each.shape.gpu_type, each.shape.gpu_hosts, frozenset(each.shape.cpu_hosts)) for each in found.best(3000)]
    assert len(set(shapes)) == 3000, "none comes twice"
    usd = [each.usd for each in found.best(500)]
    assert usd == sorted(usd)
    assert max(1 + len(each.shape.cpu_hosts) for each in found.best(500)) <= MAX_GROUPS


def test_the_front_is_what_nothing_beats_in_both():
    found = plan(profile(), catalog(), EAST)
    front = found.front()
    hours, usd = found.figures["hours"], found.figures["usd"]
    for each in front:
        better = (hours <= each.hours) & (usd <= each.usd) & ((hours < each.hours) | (usd < each.usd))
        assert not better.any(), each.shape
        assert each.efficient
    for index in range(0, len(found), 97):
        other = found.prediction(index)
        assert any(f.hours <= other.hours and f.usd <= other.usd for f in front)


def test_a_larger_sibling_is_found_to_be_cheaper_than_a_cpu_host(tmp_path):
    """One vCPU of the sibling costs half of one of c5: where a few are enough, CPU hosts do not pay."""
    cheap = profile(cpu_s_per_sample={"c5": Figure.once(0.004)}, accelerator_s_per_sample={"A10G": Figure.once(0.0006)})
    found = plan(cheap, catalog(), EAST)
    assert str(found[0].shape).endswith("x ml.g5.2xlarge")
    assert found.best_without_cpu_hosts.usd < found.best_with_cpu_hosts.usd


@pytest.mark.parametrize(
    ("changes", "shape", "limit"),
    [
        (
            {"wire_bytes_per_sample": Figure.once(4e6)},
            "1 x ml.g5.xlarge + 2 x ml.c5.4xlarge",
            "network of the GPU hosts",
        ),
        ({"read_bytes_per_sample": Figure.once(20e6)}, "1 x ml.g5.xlarge", "network of the GPU hosts"),
        (
            {"wire_bytes_per_sample": Figure.once(3e6)},
            "2 x ml.g5.xlarge + 1 x ml.c5.4xlarge",
            "network of the CPU hosts",
        ),
    ],
)
def test_networks_limit(changes, shape, limit):
    found = one(plan(profile(**changes), catalog(), EAST), shape)
    assert found.limit == limit
    assert found.samples_per_s < one(plan(profile(), catalog(), EAST), shape).samples_per_s


def test_memory_limits(tmp_path):
    """A worker of 8 GiB: a g5.xlarge with 16 GiB holds one beside the object store, a c5.4xlarge with 32 GiB two."""
    found = plan(profile(worker_memory_bytes=8 * 2.0**30), catalog(), EAST)
    assert one(found, "1 x ml.g5.xlarge + 1 x ml.c5.4xlarge").samples_per_s == pytest.approx(0.97 * 3 / 0.018)
    with pytest.raises(ConfigError, match="no type with a GPU that fits was measured"):
        plan(profile(accelerator_memory_bytes=30 * 2.0**30), catalog(), EAST)


def test_hosts_without_room_for_one_worker_are_no_shapes():
    found = plan(profile(worker_memory_bytes=12 * 2.0**30), catalog(), EAST)
    assert "1 x ml.g5.xlarge" not in {str(found.prediction(index).shape) for index in range(len(found))}
    assert np.isfinite(found.figures["usd"]).all()


def test_what_was_not_measured_is_said():
    lines = plan(profile(), catalog(), EAST).assumptions
    assert lines[0] == "a vCPU of g5, m5 prepares as much as one of c5 did"
    assert "several GPUs train as fast as one" in lines[1]
    both = profile(cpu_s_per_sample={"c5": Figure.once(0.018), "g5": Figure.once(0.036), "m5": Figure.once(0.02)})
    found = plan(both, catalog(), EAST)
    assert not any("vCPU" in line for line in found.assumptions)
    assert one(found, "1 x ml.g5.xlarge").samples_per_s == pytest.approx(0.97 * 3 / 0.036)


CPU_RANK = {
    "accelerator_s_per_sample": {"CPU": Figure.once(0.05), "A10G": Figure.once(1 / 1200)},
    "efficiency": Figure.once(0.51),
    "cores_shared_with": "the CPU stages",
    "on_sagemaker": False,
    "startup_s": Figure.once(8.0),
}


def test_what_does_not_carry_over_is_not_used_and_is_said():
    """What shared cores could do says nothing about a host with a GPU, nor a laptop's start-up about SageMaker."""
    found = plan(profile(**CPU_RANK), catalog(), EAST)
    shape = one(found, "1 x ml.g5.xlarge")
    assert shape.samples_per_s == pytest.approx(3 / 0.018)
    assert shape.hours == pytest.approx(12_811_670 / (3 / 0.018) / 3600)
    assert found.assumptions[:3] == (
        "an efficiency of 100%, the most there is: the measured 51% is not used, because the rank trained on a CPU and "
        "shared its cores with the CPU stages, which a GPU does not",
        "the 50 ms a sample of the rank that trained on a CPU are not used: hosts have GPUs",
        "no start-up: the measured 8 s are not SageMaker's, which were not measured; --startup SECONDS adds it",
    )
    given = plan(profile(**CPU_RANK), catalog(), Bounds("us-east-1", startup_s=360.0))
    assert one(given, "1 x ml.g5.xlarge").hours == pytest.approx(0.1 + shape.hours)
    assert not any("start-up" in line for line in given.assumptions)
    alone = plan(profile(**{**CPU_RANK, "cores_shared_with": None}), catalog(), EAST)
    assert one(alone, "1 x ml.g5.xlarge").samples_per_s == pytest.approx(0.51 * 3 / 0.018), "on hosts of its own"
    assert not any("efficiency" in line for line in alone.assumptions)


def test_an_unknown_network_does_not_limit_and_is_said(tmp_path):
    types = [{"name": "ml.x9.large", "vcpus": 64, "memory_gib": 64}]
    path = prices_file(tmp_path / "p.yaml", {"ml.x9.large": 0.5, "ml.g5.xlarge": 1.4}, types=types)
    found = plan(profile(), catalog(path), Bounds("here-1", max_gpu_hosts=1))
    assert "the network of ml.x9.large is not known and does not limit" in found.assumptions
    assert str(found[0].shape) == "1 x ml.g5.xlarge + 1 x ml.x9.large"


def test_a_region_without_cpu_types_has_shapes_without_cpu_hosts(tmp_path):
    found = plan(profile(), catalog(prices_file(tmp_path / "p.yaml", {"ml.g5.xlarge": 1.4})), Bounds("here-1"))
    assert len(found) == 4
    assert found.best_with_cpu_hosts is None


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (Bounds("us-est-1"), r"no prices of region 'us-est-1' here \(only of .*\); did you mean 'us-east-1'"),
        (Bounds("us-east-1", families=("g55",)), "unknown family 'g55'; did you mean 'g5'"),
        (Bounds("us-east-1", families=("c5",)), "no type with a GPU that fits was measured: the profile has A10G"),
        (Bounds("us-east-1", max_usd_per_hour=0.1), r"no shape is within --max-price 0.1 \(the lowest is \$1.408\)"),
        (Bounds("us-east-1", max_hours=0.01), r"no shape is within --max-hours 0.01 \(the fastest takes"),
    ],
)
def test_what_cannot_be_planned_is_one_line(bounds, message):
    with pytest.raises(ConfigError, match=message) as caught:
        plan(profile(), catalog(), bounds)
    assert "\n" not in str(caught.value)


def test_where_nothing_can_prepare_it_says_so():
    with pytest.raises(ConfigError, match="no shape can prepare a sample: cluster.reserved_cpus, cluster.placement or"):
        plan(profile(), catalog(), Bounds("us-east-1", max_cpu_hosts=0, cpu_groups_only=True))


def test_too_many_shapes_are_refused():
    with pytest.raises(ConfigError, match="shapes are too many; narrow them by --families, --max-gpu-hosts or"):
        plan(profile(), catalog(), Bounds("us-east-1", max_cpu_hosts=50_000, max_gpu_hosts=64))


def test_training_hosts_that_only_train_prepare_nothing():
    found = plan(profile(), catalog(), Bounds("us-east-1", cpu_groups_only=True))
    assert found.best_without_cpu_hosts is None
    assert one(found, "1 x ml.g5.xlarge + 1 x ml.c5.4xlarge").samples_per_s == pytest.approx(0.97 * 16 / 0.018)


def test_limits_leave_the_rest_as_it_was():
    whole = plan(profile(), catalog(), EAST)
    some = plan(profile(), catalog(), Bounds("us-east-1", max_usd_per_hour=3.0, max_hours=10))
    assert (some.figures["usd_per_hour"] <= 3.0).all()
    assert (some.figures["hours"] <= 10).all()
    kept = (whole.figures["usd_per_hour"] <= 3.0) & (whole.figures["hours"] <= 10)
    assert len(some) == kept.sum()
    assert some[0].usd == whole.figures["usd"][kept].min()


figures = st.floats(1e-5, 1.0).map(Figure.once)


@settings(max_examples=40, deadline=None)
@given(cpu=figures, accelerator=figures, factor=st.floats(0.1, 10), wire=st.floats(0, 1e7), read=st.floats(0, 1e7))
def test_known_arithmetic(tmp_path_factory, cpu, accelerator, factor, wire, read):
    prices = {"ml.g5.xlarge": 1.4, "ml.g5.12xlarge": 7.0, "ml.c5.4xlarge": 0.8, "ml.m5.xlarge": 0.2}
    folder = tmp_path_factory.mktemp("prices")
    work = profile(
        cpu_s_per_sample={"c5": cpu},
        accelerator_s_per_sample={"A10G": accelerator},
        wire_bytes_per_sample=Figure.once(wire),
        read_bytes_per_sample=Figure.once(read),
    )
    found = plan(work, catalog(prices_file(folder / "a.yaml", prices)), Bounds("here-1", max_cpu_hosts=4))
    dearer = {name: usd * factor for name, usd in prices.items()}
    scaled = plan(work, catalog(prices_file(folder / "b.yaml", dearer)), Bounds("here-1", max_cpu_hosts=4))
    f, g = found.figures, scaled.figures
    np.testing.assert_allclose(g["usd"], f["usd"] * factor, rtol=1e-9)  # money scales with the prices
    np.testing.assert_array_equal(g["samples_per_s"], f["samples_per_s"])
    gpus = np.where(f["gpu"] == [t.name for t in found.gpus.types].index("ml.g5.12xlarge"), 4, 1) * f["gpu_hosts"]
    assert (f["samples_per_s"] <= gpus / accelerator.value * (1 + 1e-9)).all()  # the accelerator's limit holds
    for cpu_type in ("ml.c5.4xlarge", "ml.m5.xlarge"):
        curve = found.curve("ml.g5.xlarge", cpu_type)
        speeds = [each.samples_per_s for each in curve]
        assert all(after >= before * (1 - 1e-9) for before, after in zip(speeds, speeds[1:], strict=False))
        assert [each.shape.heterogeneous for each in curve] == [False, True, True, True, True]
        for one_, other in zip(curve, curve[1:], strict=False):  # break-even: cheaper just where faster than dearer
            cheaper = other.usd_per_million_samples < one_.usd_per_million_samples * (1 - 1e-9)
            faster = other.samples_per_s / one_.samples_per_s > other.usd_per_hour / one_.usd_per_hour * (1 + 1e-9)
            assert cheaper == faster
