"""The planner against a plain loop over made-up hosts, and against figures that a pencil gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from money import prices_file, profile

from raytrain.cost import planner
from raytrain.cost.bounds import Bounds
from raytrain.cost.instances import catalog
from raytrain.cost.planner import LIMITS, Prediction, Shape, plan
from raytrain.cost.profile import Figure
from raytrain.errors import ConfigError
from raytrain.sagemaker import rules

GIB = 2.0**30


@dataclass(frozen=True)
class Host:
    """A made-up type; `bytes_per_s` of its network card."""

    name: str
    usd: float
    vcpus: int
    memory_gib: float
    bytes_per_s: float = math.inf
    gpus: int = 0
    gpu: str | None = None

    @property
    def entry(self) -> dict:
        entry = {"name": self.name, "vcpus": self.vcpus, "memory_gib": self.memory_gib}
        if self.gpus:
            entry |= {"gpus": self.gpus, "gpu": self.gpu, "gpu_memory_gib": 24}
        return entry | ({} if math.isinf(self.bytes_per_s) else {"network_gbps": self.bytes_per_s * 8 / 1e9})


BIG, ONE = Host("ml.g9.big", 3.0, 8, 64, 1e9, 2, "X"), Host("ml.h9.one", 1.0, 2, 16, 1e8, 1, "Y")
SMALL, LARGE = Host("ml.c9.small", 0.5, 4, 8, 1e8), Host("ml.c9.large", 1.5, 16, 32, 2e8)
OTHER = Host("ml.d9.other", 0.25, 2, 4)
HOSTS = {host.name: host for host in (BIG, ONE, SMALL, LARGE, OTHER)}


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    path = tmp_path_factory.mktemp("prices") / "prices.yaml"
    return catalog(prices_file(path, {h.name: h.usd for h in HOSTS.values()}, types=[h.entry for h in HOSTS.values()]))


def work(**changes):
    """10 ms of a vCPU, 1 ms of an X, 2 ms of a Y; 100 kB to a rank, 50 kB from storage; 3.6 million samples in all."""
    return profile(
        cpu_s_per_sample={"c9": Figure.once(0.01)},
        accelerator_s_per_sample={"X": Figure.once(0.001), "Y": Figure.once(0.002)},
        **(
            {"wire_bytes_per_sample": Figure.once(100_000.0), "read_bytes_per_sample": Figure.once(50_000.0)}
            | {"startup_s": Figure.once(360.0), "efficiency": Figure.once(0.5), "num_samples": 1_000_000, "epochs": 3.6}
            | changes
        ),
    )


def found(result, text: str) -> Prediction:
    [index] = [index for index in range(len(result)) if str(result.prediction(index).shape) == text]
    return result.prediction(index)


def test_every_figure_of_one_shape(known):
    """Six of eight vCPUs prepare 600 samples/s; 300 of them at an efficiency of one half."""
    assert found(plan(work(), known, Bounds("here-1")), "1 x ml.g9.big") == Prediction(
        shape=Shape("ml.g9.big", 1, ()),
        samples_per_s=300.0,
        limit="CPUs",
        usd_per_hour=3.0,
        usd_per_million_samples=pytest.approx(3 / 3600 / 300 * 1e6),
        hours=pytest.approx((360 + 3_600_000 / 300) / 3600),
        usd=pytest.approx(3 * (360 + 3_600_000 / 300) / 3600),
        efficient=False,
    )


def test_waiting_for_storage_is_counted_and_said(known):
    def said(**changes):
        return [line for line in plan(work(**changes), known, Bounds("here-1")).assumptions if "storage" in line]

    assert said(read_wait_s_per_sample=Figure.once(0.03)) == [
        "a worker, one a vCPU, waits 30 ms for storage beside the CPU time of each sample, as it was measured"
    ]
    assert said() == said(read_wait_s_per_sample=Figure.once(0.0)) == []


@pytest.mark.parametrize(
    ("shape", "changes", "rate", "limit"),
    [
        # 600 + 400 + 1600 = 2600 prepared, two X train 2000
        ("1 x ml.g9.big + 1 x ml.c9.small + 1 x ml.c9.large", {}, 2000, "accelerator"),
        # 600 + 2 x 400
        ("1 x ml.g9.big + 2 x ml.c9.small", {}, 1400, "CPUs"),
        # a large one sends 200 MB/s, 1000 samples of 200 kB
        ("1 x ml.g9.big + 1 x ml.c9.large", {"wire_bytes_per_sample": Figure.once(2e5)}, 1600, LIMITS[2]),
        # or reads 800 of 250 kB; 600 of them are 150 MB of the training host's gigabyte
        ("1 x ml.g9.big + 1 x ml.c9.large", {"read_bytes_per_sample": Figure.once(2.5e5)}, 1400, LIMITS[2]),
        # one of two vCPUs prepares 100; the card of 100 MB/s has 95 left, which is 380 samples of 250 kB
        ("1 x ml.h9.one + 1 x ml.c9.small", {"wire_bytes_per_sample": Figure.once(2.5e5)}, 480, LIMITS[3]),
        # it reads no more than 50 samples of 2 MB
        ("1 x ml.h9.one", {"read_bytes_per_sample": Figure.once(2e6)}, 50, LIMITS[3]),
        # two have 200 MB/s; 4 of an unknown network prepare 800
        ("2 x ml.h9.one + 4 x ml.d9.other", {}, 1000, "accelerator"),
        ("2 x ml.h9.one + 3 x ml.d9.other", {}, 800, "CPUs"),
        # a vCPU that waits 30 ms beside its 10 prepares 25: six, and four, of them
        ("1 x ml.g9.big", {"read_wait_s_per_sample": Figure.once(0.03)}, 150, "CPUs"),
        ("1 x ml.g9.big + 1 x ml.c9.small", {"read_wait_s_per_sample": Figure.once(0.03)}, 250, "CPUs"),
        # nothing to read and nothing to send
        (
            "1 x ml.g9.big + 1 x ml.c9.large",
            {"read_bytes_per_sample": Figure.once(0.0), "wire_bytes_per_sample": Figure.once(0.0)},
            2000,
            "accelerator",
        ),
    ],
)  # fmt: skip
def test_each_limit_by_hand(known, shape, changes, rate, limit):
    one = found(plan(work(**changes), known, Bounds("here-1")), shape)
    assert (one.samples_per_s, one.limit) == (pytest.approx(rate / 2), limit)
    assert one.shape.heterogeneous == ("+ " in shape)


def prepares(work, host: Host, bounds: Bounds) -> float:
    """Samples a second that one host's CPUs prepare."""
    slots = host.vcpus
    if host.gpus:
        wanted = bounds.reserved_cpus
        slots -= min(host.gpus, host.vcpus // 2) if wanted is None else min(wanted, host.vcpus)
        slots = 0 if bounds.cpu_groups_only else slots
    if work.worker_memory_bytes:
        slots = min(slots, math.floor(host.memory_gib * GIB * 0.7 / work.worker_memory_bytes))
    waits = work.read_wait_s_per_sample.value if work.read_wait_s_per_sample else 0
    return slots / (work.cpu_s_per_sample["c9"].value + waits)


def by_hand(work, bounds: Bounds, gpu: Host, gpus: int, added: list[tuple[Host, int]]) -> dict:
    """One shape, by the formula of the module's first lines."""
    wire, read = work.wire_bytes_per_sample.value, work.read_bytes_per_sample.value

    def carried(bytes_per_s, size):
        return bytes_per_s / size if size else math.inf

    trained = gpus * gpu.gpus / work.accelerator_s_per_sample[gpu.gpu].value
    at_home, card = gpus * prepares(work, gpu, bounds), gpus * gpu.bytes_per_s
    own = min(at_home, carried(card, read))
    prepared = sum(count * prepares(work, host, bounds) for host, count in added)
    sent = sum(count * min(prepares(work, h, bounds), carried(h.bytes_per_s, max(wire, read))) for h, count in added)
    came = min(sent, carried(max(card - own * read, 0.0), wire))
    rate = min(trained, own + came)
    if rate >= trained:
        limit = "accelerator"
    elif came < sent:
        limit = "network of the GPU hosts"
    elif sent < prepared:
        limit = "network of the CPU hosts"
    else:
        limit = "network of the GPU hosts" if own < at_home else "CPUs"
    usd_per_hour = gpus * gpu.usd + sum(count * host.usd for host, count in added)
    speed = rate * (1 if work.cores_shared_with else min(work.efficiency.value, 1))
    startup = bounds.startup_s
    if startup is None:
        startup = work.startup_s.value if work.on_sagemaker else 0
    seconds = startup + (work.num_samples * work.epochs / speed if speed else math.inf)
    return {
        "samples_per_s": speed,
        "limit": limit,
        "usd_per_hour": usd_per_hour,
        "usd_per_million_samples": usd_per_hour / 3600 / speed * 1e6 if speed else math.inf,
        "hours": seconds / 3600,
        "usd": usd_per_hour * seconds / 3600,
    }


def all_shapes(bounds: Bounds) -> list[tuple]:
    """(GPU host, its number, what is beside it) of the module's first lines."""
    cpus = (SMALL, LARGE, OTHER)
    beside = [[]] + [[(host, n)] for host in cpus for n in range(1, bounds.max_cpu_hosts + 1)]
    for many, single in ((SMALL, LARGE), (LARGE, SMALL)):
        beside += [[(many, n), (single, 1)] for n in range(2, bounds.max_cpu_hosts + 1)]
    beside += [[(SMALL, 1), (LARGE, 1)]] if bounds.max_cpu_hosts else []
    return list(product((BIG, ONE), range(1, bounds.max_gpu_hosts + 1), beside))


sizes = st.sampled_from([0.0, 1e3, 5e4, 3e5, 4e6])


@given(
    wire=sizes,
    read=sizes,
    cpu=st.sampled_from([1e-4, 1e-3, 1e-2]),
    waits=st.sampled_from([None, 0.0, 2e-3]),
    efficiency=st.sampled_from([0.3, 1.0, 1.4]),
    memory=st.sampled_from([None, 0.5 * GIB, 2.8 * GIB, 6 * GIB]),
    reserved=st.sampled_from([None, 0, 1, 3, 9]),
    cpu_groups_only=st.booleans(),
    most=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    there=st.booleans(),
    startup=st.sampled_from([None, 0.0, 7e4]),
    shared=st.sampled_from([None, "the CPU stages"]),
)
@settings(max_examples=60, deadline=None)
def test_every_shape_is_what_a_plain_loop_says(
    known, wire, read, cpu, waits, efficiency, memory, reserved, cpu_groups_only, most, there, startup, shared
):
    job = work(
        wire_bytes_per_sample=Figure.once(wire),
        read_bytes_per_sample=Figure.once(read),
        read_wait_s_per_sample=None if waits is None else Figure.once(waits),
        efficiency=Figure.once(efficiency),
        worker_memory_bytes=memory,
        on_sagemaker=there,
        cores_shared_with=shared,
    ).model_copy(update={"cpu_s_per_sample": {"c9": Figure.once(cpu)}})
    bounds = Bounds(
        "here-1", max_gpu_hosts=most[0], max_cpu_hosts=most[1], reserved_cpus=reserved, cpu_groups_only=cpu_groups_only,
        startup_s=startup,
    )  # fmt: skip
    expected = {}
    for gpu, gpus, added in all_shapes(bounds):
        shape = (gpu.name, gpus, frozenset((host.name, count) for host, count in added))
        assert shape not in expected
        expected[shape] = by_hand(job, bounds, gpu, gpus, added)
    expected = {shape: one for shape, one in expected.items() if one["samples_per_s"]}
    if not expected:
        with pytest.raises(ConfigError, match="no shape can prepare a sample"):
            plan(job, known, bounds)
        return
    result = plan(job, known, bounds)
    assert len(result) == len(expected)
    for index in range(len(result)):
        one = result.prediction(index)
        figures = expected.pop((one.shape.gpu_type, one.shape.gpu_hosts, frozenset(one.shape.cpu_hosts)))
        assert one.limit == figures.pop("limit"), one.shape
        assert {name: getattr(one, name) for name in figures} == pytest.approx(figures, rel=1e-9), one.shape
    assert not expected


def test_the_defaults_are_four_gpu_hosts_and_sixteen_cpu_hosts(tmp_path):
    prices = prices_file(tmp_path / "p.yaml", {"ml.g5.xlarge": 1.4, "ml.c5.4xlarge": 0.8})
    result = plan(profile(), catalog(prices), Bounds("here-1"))
    assert len(result) == 4 * (1 + 16)
    assert result.figures["gpu_hosts"].max() == 4
    assert sorted({price.type for price in result.prices}) == ["ml.c5.4xlarge", "ml.g5.xlarge"]


def test_types_with_another_accelerator_are_no_cpu_hosts(tmp_path):
    prices = {"ml.g5.xlarge": 1.4, "ml.g6.xlarge": 1.1, "ml.trn1.2xlarge": 1.5, "ml.c5.4xlarge": 0.8}
    result = plan(profile(), catalog(prices_file(tmp_path / "p.yaml", prices)), Bounds("here-1"))
    assert [t.name for t in (*result.gpus.types, *result.cpus.types)] == ["ml.g5.xlarge", "ml.c5.4xlarge"]


def test_the_order_is_money_then_time_and_of_equals_one_is_efficient(tmp_path):
    """4 h at $1 and 2 h at $2 cost the same; a second type like the second is no better than it."""
    slow, fast = Host("ml.g9.a", 1.0, 64, 64, math.inf, 1, "X"), Host("ml.g9.b", 2.0, 64, 64, math.inf, 1, "Y")
    twin = Host("ml.g9.c", 2.0, 64, 64, math.inf, 1, "Y")
    types = [slow.entry, fast.entry, twin.entry]
    known = catalog(prices_file(tmp_path / "p.yaml", {h.name: h.usd for h in (slow, fast, twin)}, types=types))
    job = profile(
        cpu_s_per_sample={"c9": Figure.once(1e-6)},
        accelerator_s_per_sample={"X": Figure.once(1.0), "Y": Figure.once(0.25)},
        startup_s=Figure.once(4800.0),
        efficiency=Figure.once(1.0),
        num_samples=9600,
        epochs=1,
    )
    result = plan(job, known, Bounds("here-1", max_gpu_hosts=1))
    assert [(str(each.shape), each.usd, each.hours) for each in result.best(9)] == [
        ("1 x ml.g9.b", 4.0, 2.0),
        ("1 x ml.g9.c", 4.0, 2.0),
        ("1 x ml.g9.a", 4.0, 4.0),
    ]
    assert [str(each.shape) for each in result.front()] == ["1 x ml.g9.b"]
    assert [each.efficient for each in result.best(3)] == [True, False, False]
    assert len(result.best(2)) == 2
    assert (len(result), str(result[2].shape)) == (3, "1 x ml.g9.a")


def test_without_a_known_start_up_of_equals_the_lowest_price_an_hour_is_first(known):
    """Any number of the same hosts costs the same, then: two hours on one are one on two."""
    free = {"read_bytes_per_sample": Figure.once(0.0), "efficiency": Figure.once(1.0)}
    job = work(on_sagemaker=False, **free).model_copy(update={"cpu_s_per_sample": {"c9": Figure.once(1e-9)}})
    result = plan(job, known, Bounds("here-1", families=("h9", "c9"), max_cpu_hosts=0))
    assert result.startup_s is None
    assert [(each.shape.gpu_hosts, each.usd) for each in result.best(4)] == [
        (number, pytest.approx(2.0)) for number in (1, 2, 3, 4)
    ]
    assert len(result.front()) == 4, "each is faster than the one before, and no dearer"
    slow = plan(job, known, Bounds("here-1", families=("h9", "c9"), max_cpu_hosts=0, startup_s=3600.0))
    assert [(each.shape.gpu_hosts, each.usd) for each in slow.best(2)] == [(1, pytest.approx(3)), (2, pytest.approx(4))]
    assert slow.startup_share == pytest.approx(1 / 3)
    assert result.startup_share == 0


def test_a_short_job_of_unknown_start_up_is_ranked_by_the_price_an_hour(known):
    """One h9 at $1 trains 100 samples/s at an efficiency of one half: 29,999 of them for just less than ten minutes."""
    job = work(on_sagemaker=False, num_samples=1, epochs=29_999)
    result = plan(job, known, Bounds("here-1"))
    assert result.by_hour
    prices = [result[rank].usd_per_hour for rank in range(len(result))]
    assert prices == sorted(prices)
    assert str(result[0].shape) == "1 x ml.h9.one"
    every = [result.prediction(index) for index in range(len(result))]
    for each in result.front():
        assert not any(e.hours < each.hours and e.usd_per_hour < each.usd_per_hour for e in every)
    assert not plan(job.model_copy(update={"epochs": 30_001}), known, Bounds("here-1")).by_hour
    assert not plan(job, known, Bounds("here-1", startup_s=0.0)).by_hour
    assert not plan(job.model_copy(update={"on_sagemaker": True}), known, Bounds("here-1")).by_hour


def test_a_limit_is_still_within(known):
    whole = plan(work(), known, Bounds("here-1"))
    lowest, fastest = whole.figures["usd_per_hour"].min(), whole.figures["hours"].min()
    assert {str(e.shape) for e in plan(work(), known, Bounds("here-1", max_usd_per_hour=lowest)).best(9)} == {
        "1 x ml.h9.one"
    }
    assert {e.hours for e in plan(work(), known, Bounds("here-1", max_hours=fastest)).best(9)} == {fastest}
    with pytest.raises(ConfigError) as caught:
        plan(work(), known, Bounds("here-1", max_usd_per_hour=0.5, max_hours=0.01))
    assert str(caught.value) == (
        "no shape is within --max-price 0.5 (the lowest is $1.000) and "
        f"--max-hours 0.01 (the fastest takes {fastest:.2f})"
    )


def test_a_model_fits_into_memory_of_just_its_size(known, tmp_path):
    def gpus(job, prices=known):
        return [t.name for t in plan(job, prices, Bounds("here-1")).gpus.types]

    assert gpus(work(accelerator_memory_bytes=24 * GIB)) == ["ml.g9.big", "ml.h9.one"]
    with pytest.raises(
        ConfigError, match=r"the profile has X, Y, here-1 has prices of types with X, Y; add --acc.* X="
    ):
        plan(work(accelerator_memory_bytes=24 * GIB + 1), known, Bounds("here-1"))
    vague = {**BIG.entry, "gpu_memory_gib": None}
    prices = catalog(prices_file(tmp_path / "p.yaml", {BIG.name: 1.0, ONE.name: 1.0}, types=[vague, ONE.entry]))
    assert gpus(work(accelerator_memory_bytes=GIB), prices) == ["ml.h9.one"], "of the other nobody knows"
    assert gpus(work(), prices) == ["ml.g9.big", "ml.h9.one"]


def test_without_a_gpu_in_the_region_it_says_none(tmp_path):
    known = catalog(prices_file(tmp_path / "p.yaml", {"ml.c5.4xlarge": 0.8}))
    with pytest.raises(ConfigError, match="has A10G, here-1 has prices of types with none; add --accelerator none="):
        plan(profile(), known, Bounds("here-1"))


def test_families_narrow_both_kinds(known):
    result = plan(work(), known, Bounds("here-1", families=("g9", "c9")))
    assert [t.name for t in (*result.gpus.types, *result.cpus.types)] == [BIG.name, SMALL.name, LARGE.name]


def test_as_many_shapes_as_allowed_are_allowed(known, monkeypatch):
    number = len(plan(work(), known, Bounds("here-1")))
    assert number == 2 * 4 * (1 + 3 * 16 + 2 * 15 + 1)
    monkeypatch.setattr(planner, "MAX_SHAPES", number)
    assert len(plan(work(), known, Bounds("here-1"))) == number
    monkeypatch.setattr(planner, "MAX_SHAPES", number - 1)
    with pytest.raises(ConfigError, match="^640 shapes are too many; narrow them by"):
        plan(work(), known, Bounds("here-1"))


def test_the_cheapest_by_another_figure(known):
    result = plan(work(), known, Bounds("here-1", max_cpu_hosts=3))
    every = [result.prediction(index) for index in range(len(result))]
    for figure in ("usd_per_hour", "usd_per_million_samples"):
        for mask, some in (
            (result.figures["first_hosts"] == 0, [e for e in every if not e.shape.cpu_hosts]),
            (result.figures["first_hosts"] > 0, [e for e in every if e.shape.cpu_hosts]),
        ):
            assert getattr(result.cheapest(figure, mask), figure) == min(getattr(e, figure) for e in some)
    assert result.cheapest("usd_per_hour", np.zeros(len(result), dtype=bool)) is None


def test_the_best_with_and_without_and_the_curve(known):
    result = plan(work(), known, Bounds("here-1", max_cpu_hosts=3))
    every = [result.prediction(index) for index in range(len(result))]
    assert result.best_without_cpu_hosts.usd == min(e.usd for e in every if not e.shape.cpu_hosts)
    assert not result.best_without_cpu_hosts.shape.heterogeneous
    assert result.best_with_cpu_hosts.usd == min(e.usd for e in every if e.shape.cpu_hosts)
    assert result.best_with_cpu_hosts.shape.heterogeneous
    assert result.best_where(np.zeros(len(result), dtype=bool)) is None
    assert result.best_where(result.efficient) == result.front()[0] == result[0], "nothing is cheaper than the cheapest"
    for gpu_hosts, prefix in ((1, "1 x ml.g9.big"), (2, "2 x ml.g9.big")):
        assert [str(each.shape) for each in result.curve(BIG.name, LARGE.name, gpu_hosts)] == [
            prefix,
            *(f"{prefix} + {count} x ml.c9.large" for count in (1, 2, 3)),
        ]
    assert result.curve(BIG.name, LARGE.name) == result.curve(BIG.name, LARGE.name, 1)


def lines(job, known, **bounds) -> tuple[str, ...]:
    return plan(job, known, Bounds("here-1", **bounds)).assumptions


def test_each_assumption_is_said_where_it_is_made(known, tmp_path):
    several = "several GPUs train as fast as one, times their number: what they tell each other costs nothing"
    like = "a vCPU of d9, g9, h9 prepares as much as one of c9 did"
    network = "the network of ml.d9.other is not known and does not limit"
    memory = "the model fits into every GPU's memory: none was measured"
    assert lines(work(), known) == (like, network, several, memory)
    assert lines(work(accelerator_memory_bytes=GIB), known) == (like, network, several)
    steps = "the job, which is given in steps, does as many samples on any number of GPUs: in fewer steps"
    assert lines(work(job={"training": {"steps": 5}}), known)[-2:] == (steps, memory)
    assert steps not in lines(work(job={"training": {"steps": None}}), known)
    assert steps not in lines(work(job={}), known)
    assert several in lines(work(), known, max_gpu_hosts=1), "one of the types has two"
    prices = prices_file(tmp_path / "p.yaml", {ONE.name: 1.0}, types=[ONE.entry])
    assert several not in lines(work(), catalog(prices), max_gpu_hosts=1)
    assert several in lines(work(), catalog(prices), max_gpu_hosts=2)


def test_as_many_groups_as_sagemaker_takes():
    assert planner.MAX_GROUPS == rules.MAX_GROUPS


def test_the_limits_are_these():
    assert LIMITS == ("accelerator", "CPUs", "network of the CPU hosts", "network of the GPU hosts")
