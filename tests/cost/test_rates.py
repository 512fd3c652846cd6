"""Shapes with stages on CPUs or on the device: by hand, and against every other placement."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from money import prices_file, profile

from raytrain.cost.bounds import Bounds
from raytrain.cost.instances import catalog
from raytrain.cost.placing import LEAST_GAIN
from raytrain.cost.planner import plan
from raytrain.cost.profile import Figure, StageCost
from raytrain.cost.rates import cuts_of

TYPES = [
    {"name": "ml.g9.one", "vcpus": 4, "memory_gib": 64, "gpus": 1, "gpu": "X", "gpu_memory_gib": 24},
    {"name": "ml.g9.two", "vcpus": 8, "memory_gib": 64, "gpus": 1, "gpu": "X", "gpu_memory_gib": 24},
    {"name": "ml.h9.two", "vcpus": 8, "memory_gib": 64, "gpus": 2, "gpu": "Y", "gpu_memory_gib": 24,
     "network_gbps": 8},
    {"name": "ml.c9.small", "vcpus": 4, "memory_gib": 8, "network_gbps": 0.8},
    {"name": "ml.d9.large", "vcpus": 16, "memory_gib": 32, "network_gbps": 1.6},
]  # fmt: skip
PRICES = {"ml.g9.one": 1.0, "ml.g9.two": 1.2, "ml.h9.two": 3.0, "ml.c9.small": 0.2, "ml.d9.large": 0.8}
HERE = Bounds("here-1", max_gpu_hosts=2, max_cpu_hosts=2)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return catalog(prices_file(tmp_path_factory.mktemp("prices") / "p.yaml", PRICES, types=TYPES))


def stage(name, cpu_share, device_s=None, wire=0.0):
    if device_s is None:
        return StageCost(name=name, cpu_share=cpu_share)
    device = {gpu: Figure.once(seconds) for gpu, seconds in device_s.items()}
    wire_bytes = Figure.once(wire)
    return StageCost(name=name, cpu_share=cpu_share, device_s_per_sample=device, wire_bytes_per_sample=wire_bytes)


def work(stages=(), cpu_s=0.01, step_s=0.00036, **changes):
    free = {"wire_bytes_per_sample": Figure.once(0.0), "read_bytes_per_sample": Figure.once(0.0)}
    return profile(
        cpu_s_per_sample={"c9": Figure.once(cpu_s)},
        stages=tuple(stages),
        **{**free, "accelerator_s_per_sample": {"X": Figure.once(step_s)}, "efficiency": Figure.once(1.0), **changes},
    )


def one(found, text):
    [place] = [place for place in range(len(found)) if str(found.prediction(place).shape) == text]
    return found.prediction(place)


BLUR = stage("blur", 0.9, {"X": 0.00005})


def test_what_the_device_does_where_the_cpus_are_few(known):
    """Three free vCPUs make 300 a second of 10 ms. With 9 of the 10 on the device: min(3 / 1 ms, 1 / 0.41 ms)."""
    found = plan(work([BLUR]), known, HERE)
    alone = one(found, "1 x ml.g9.one")
    assert alone.samples_per_s == pytest.approx(1 / 0.00041)
    assert (alone.on_device, alone.limit) == ({"blur": 1.0}, "accelerator")
    assert alone.device_share == pytest.approx(0.05 / 0.41)
    plain = one(found.on_cpus, "1 x ml.g9.one")
    assert (plain.samples_per_s, plain.on_device, plain.device_share) == (pytest.approx(300), {}, 0.0)
    assert found[0].on_device and not found[0].shape.heterogeneous, "+0 hosts"
    assert found[0].usd < found.on_cpus[0].usd


def test_batches_have_two_cuts_where_that_pays(known):
    """A step of 2 ms and 1 ms for the blur: 1 / 3 ms on the device, 300 on CPUs. Of a share x there:
    3 / (10 - 9 x) = 1 / (2 + x), so that x = 1 / 3 and 3 / 7 ms are made, and trained."""
    found = plan(work([stage("blur", 0.9, {"X": 0.001})], step_s=0.002), known, HERE)
    split = one(found, "1 x ml.g9.one")
    assert split.on_device == {"blur": pytest.approx(1 / 3)}
    assert split.samples_per_s == pytest.approx(3000 / 7)
    assert split.device_share == pytest.approx((1 / 3) / (2 + 1 / 3))


def test_a_light_pipeline_stays_on_cpus(known):
    """0.5 ms of a vCPU: three make 6000 a second, and the accelerator trains 2778."""
    found = plan(work([BLUR], cpu_s=0.0005), known, HERE)
    assert not any(found[rank].on_device for rank in range(len(found)))
    assert [found[rank] for rank in range(9)] == [found.on_cpus[rank] for rank in range(9)]


def test_on_a_slow_device_cpu_hosts_pay(known):
    """5 ms on the device, 10 on a CPU: a device that trains 500 a second would do no more than 143 of them."""
    found = plan(work([stage("blur", 0.9, {"X": 0.005})], step_s=0.002), known, HERE)
    assert found[0].shape.heterogeneous and not found[0].on_device
    assert one(found, "1 x ml.g9.one").samples_per_s < 1.2 * 300, "but a few batches there do help a host alone"


def test_a_little_is_not_worth_a_change(known):
    """3 / 10 ms on CPUs; with 0.1 ms of that on the device 3 / 9.9 ms."""
    found = plan(work([stage("flip", 0.01, {"X": 0.00001})]), known, HERE)
    assert one(found, "1 x ml.g9.one").on_device == {} and found.on_cpus is not None


def test_who_may_move_is_a_tail_of_the_stages():
    stages = [stage("a", 0.1, {"X": 1e-4}, 1.0), stage("b", 0.2), stage("c", 0.3, {"X": 1e-4, "Y": 1e-5}, 2.0)]
    stages.append(stage("d", 0.4, {"X": 1e-4}, 3.0))
    cuts = cuts_of(work(stages, wire_bytes_per_sample=Figure.once(4.0)), ["X", "Z"])
    assert [cut.on_device for cut in cuts] == [(), ("d",), ("c", "d")], "a is before b, which cannot"
    assert [cut.cpu_share for cut in cuts] == pytest.approx([1.0, 0.6, 0.3])
    assert [cut.device_s[0] for cut in cuts] == pytest.approx([0.0, 1e-4, 2e-4])
    assert cuts[1].device_s[1] == np.inf, "nobody knows of a Z"
    assert [cut.wire_bytes for cut in cuts] == [4.0, 3.0, 2.0]
    assert [cut.on_device for cut in cuts_of(work(stages), ["Z"])] == [()]


def test_of_several_gpus_only_those_that_are_known_have_stages(known):
    steps = {"X": Figure.once(0.00036), "Y": Figure.once(0.00072)}
    both = plan(work([BLUR], accelerator_s_per_sample=steps), known, HERE)
    scaled = one(both, "1 x ml.h9.two")
    assert scaled.samples_per_s == pytest.approx(2 / 0.00082), "twice as long as on an X, as a step"
    assert "stages on Y take as much longer than on X as a step does; they were not measured there" in both.assumptions
    assert not any("as a step does" in line for line in plan(work([BLUR]), known, HERE).assumptions)


def test_what_was_measured_on_a_cpu_is_not_used_and_said(known):
    steps = {"CPU": Figure.once(0.03), "X": Figure.once(0.00036)}
    found = plan(work([stage("blur", 0.9, {"CPU": 0.001})], accelerator_s_per_sample=steps), known, HERE)
    assert found.on_cpus is None and not found[0].on_device
    [line] = [line for line in found.assumptions if line.startswith("every stage stays on CPUs")]
    assert "diagnose on a host with a GPU, or give their device_s_per_sample in the profile" in line


def test_what_is_sent_is_as_large_as_it_is_at_the_cut(known):
    """A CPU host sends 100 MB a second: 100 samples of a megabyte; 9 of 10 ms are left to the device."""
    heavy = stage("crop", 0.9, {"X": 0.00005}, 1e6)
    both = plan(work([heavy]), known, HERE)
    sent = one(both, "1 x ml.g9.one + 1 x ml.c9.small")
    assert sent.on_device == {"crop": 1.0} and sent.samples_per_s == pytest.approx(1 / 0.00041)
    dear = plan(work([stage("crop", 0.05, {"X": 0.00005}, 1e6)]), known, HERE)
    assert one(dear, "1 x ml.g9.one + 1 x ml.c9.small").on_device == {}, "700 on CPUs, and the card lets 100 out"


SMALLER_BEFORE = stage("crop", 0.5, {"X": 0.00005, "Y": 0.00005}, 2e5)  # nothing is sent where it runs on CPUs


def test_where_more_is_sent_a_share_does_more_than_either_cut(known):
    """16 vCPUs beside it: 10 ms a sample and nothing to send, or 5 ms and 200 kB of 200 MB a second, 1000 of them. Of a
    share x on the device 16 / (10 - 5 x) = 1 / x, so that x = 10 / 21 and 2100 are sent; the accelerators never limit.
    A training host that prepares has 3 vCPUs: 3 / 7.62 ms more."""
    job = work([SMALLER_BEFORE], step_s=0.0001)
    only = one(plan(job, known, replace(HERE, cpu_groups_only=True)), "1 x ml.g9.one + 1 x ml.d9.large")
    assert only.on_device == {"crop": pytest.approx(10 / 21, rel=1e-3)}
    assert only.samples_per_s == pytest.approx(2100, rel=1e-3)
    both = one(plan(job, known, HERE), "1 x ml.g9.one + 1 x ml.d9.large")
    assert both.samples_per_s == pytest.approx(2100 + 3 / (0.01 - 0.05 / 21), rel=1e-3)


def test_a_worker_waits_for_storage_wherever_the_stages_run(known):
    """Three workers of 1 ms and 2 of waiting: 1000 a second."""
    waits = plan(work([BLUR], read_wait_s_per_sample=Figure.once(0.002)), known, HERE)
    assert one(waits, "1 x ml.g9.one").samples_per_s == pytest.approx(1000)
    assert one(waits.on_cpus, "1 x ml.g9.one").samples_per_s == pytest.approx(250)


def test_without_a_shape_fast_enough_on_cpus_there_is_none_to_compare(known):
    found = plan(work([BLUR]), known, Bounds("here-1", max_gpu_hosts=1, max_cpu_hosts=0, max_hours=2.0))
    assert found[0].on_device and found.on_cpus is None


def placed_so(job, taken):
    """The job with everything on CPUs that takes what this one does with a placement of its stages."""
    cpu_share, device_s, wire = taken
    return job.model_copy(
        update={
            "stages": (),
            "cpu_s_per_sample": {k: Figure.once(f.value * cpu_share) for k, f in job.cpu_s_per_sample.items()},
            "accelerator_s_per_sample": {
                gpu: Figure.once(step.value + own)
                for (gpu, step), own in zip(job.accelerator_s_per_sample.items(), device_s, strict=True)
            },
            "wire_bytes_per_sample": Figure.once(wire),
        }
    )


def rates(found):
    """By shape."""
    every = (found.prediction(place) for place in range(len(found)))
    return {(e.shape.gpu_type, e.shape.gpu_hosts, frozenset(e.shape.cpu_hosts)): e for e in every}


seconds = st.floats(1e-5, 1e-2)
sizes = st.sampled_from([0.0, 1e4, 2e5])


@st.composite
def jobs(draw, sizes=sizes):
    shares = np.array(draw(st.lists(st.floats(0.05, 1.0), min_size=2, max_size=4)))
    shares /= shares.sum() * draw(st.floats(1.0, 2.0))
    first, *rest = shares.tolist()
    stages = [stage("read", first)]
    for number, share in enumerate(rest):
        stages.append(stage(f"s{number}", share, {"X": draw(seconds), "Y": draw(seconds)}, draw(sizes)))
    waits = draw(st.sampled_from([None, 1e-3]))
    return work(
        stages,
        accelerator_s_per_sample={"X": Figure.once(draw(seconds)), "Y": Figure.once(draw(seconds))},
        read_wait_s_per_sample=None if waits is None else Figure.once(waits),
        wire_bytes_per_sample=Figure.once(draw(sizes)),
        read_bytes_per_sample=Figure.once(draw(sizes)),
    ).model_copy(
        update={"cpu_s_per_sample": {"c9": Figure.once(draw(seconds)), "d9": Figure.once(draw(seconds))}}
    )  # fmt: skip


SENDS_MORE = work([SMALLER_BEFORE], accelerator_s_per_sample={"X": Figure.once(1e-4), "Y": Figure.once(1e-4)})


def mixed(cut, other, share):
    """(CPU share, device seconds, bytes sent) on average."""
    mine, others = ([each.cpu_share, *each.device_s, each.wire_bytes] for each in (cut, other))
    cpu_share, *device_s, wire = ((1 - share) * np.array(mine) + share * np.array(others)).tolist()
    return cpu_share, device_s, wire


@settings(max_examples=25, deadline=None)
@example(
    job=SENDS_MORE, pick=0
)  # 1 x ml.g9.one + 1 x ml.d9.large had no share on the device, and 1900 of 2494 a second
@given(job=jobs(), pick=st.integers(0, 1_000_000))
def test_no_cut_and_no_share_does_more(known, job, pick):
    """Each placement as a job of its own that has everything on CPUs, planned as ever."""
    found = plan(job, known, HERE)
    mine, cuts = rates(found), cuts_of(job, ["X", "Y"])
    for cut, other in combinations(range(len(cuts)), 2):
        for share in np.linspace(0, 1, 6):
            there = rates(plan(placed_so(job, mixed(cuts[cut], cuts[other], share)), known, HERE))
            for shape, each in there.items():
                least = each.samples_per_s / (1 + LEAST_GAIN) ** 2
                assert mine[shape].samples_per_s >= least * (1 - 1e-6), (shape, share)
    shape, each = sorted(mine.items(), key=str)[pick % len(mine)]
    own = next(place for place in range(len(found)) if found.prediction(place).shape == each.shape)
    f = {name: values[own] for name, values in found.figures.items()}
    same = rates(plan(placed_so(job, mixed(cuts[f["cut"]], cuts[f["other"]], float(f["share"]))), known, HERE))[shape]
    assert each.samples_per_s == pytest.approx(same.samples_per_s, rel=1e-6)
    assert each.limit == same.limit or f["share"] > 0, "at an even share two limit"
