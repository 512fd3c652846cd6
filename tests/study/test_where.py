"""Where stages had best run on the hosts that a job was measured on, by hand; and what measures it, against the CPU."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from money import profile
from rich.console import Console

from raytrain import Pipeline
from raytrain.cost.bounds import Bounds
from raytrain.cost.instances import catalog
from raytrain.cost.placing import Costs, Places
from raytrain.cost.planner import plan
from raytrain.cost.profile import Figure, StageCost
from raytrain.data import (
    decode,
    gaussian_blur,
    image_folder,
    random_horizontal_flip,
    random_resized_crop,
    resize,
    synthetic,
)
from raytrain.data.samples.block import batches_of, to_table
from raytrain.device.batch import DeviceBatch
from raytrain.errors import DataError
from raytrain.report.places import larger_sibling, names_of, places_lines, takes, ways
from raytrain.report.plans import show_plan
from raytrain.study.alone import AtCuts, at_cuts
from raytrain.study.diagnose import on_cpus
from raytrain.study.moved import ARRIVAL, MovedBatch
from raytrain.study.places import Seconds, Where, stage_costs, told_by_steps, where
from raytrain.study.timed_loop import TimedContext
from raytrain.train.contract import StopTraining

# --- measured ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("without", "with_them", "dearer"),
    [
        ([10, 11], [13, 14], 1.0),  # 2 to 4 more in a step, 3 alone
        ([10, 11], [16, 17], 5 / 3),  # at least 5 more
        ([10, 11], [11, 12], 2 / 3),  # at most 2 more: they ran beside each other
        ([10, 11], [5, 6], 1.0),  # less than without: nonsense
        ([1, 100], [2, 50], 1.0),  # noise
    ],
)
def test_steps_say_whether_stages_are_dearer_beside_the_model(without, with_them, dearer):
    assert told_by_steps({"a": 1.0, "b": 2.0}, without, with_them) == pytest.approx(dearer)


def test_a_figure_of_a_stage_spans_what_was_measured():
    assert Seconds(2.0, 1.0, 3.0).figure == Figure(value=3.0, low=1.0, high=3.0)


def test_shares_of_the_cpu_time_and_those_that_may_move_last():
    """What random stages on the device draw is a stage at the end of the workers', and no place for a cut."""
    cpu_s = {"read": 1.0, "blur": 4.0, "draw": 1.0}
    found = stage_costs(cpu_s, 8.0, "A10G", {"blur": Seconds(0.1, 0.2, 0.15)}, {"blur": 5.0})
    assert [(each.name, each.cpu_share) for each in found] == [("read", 0.125), ("draw", 0.125), ("blur", 0.5)]
    assert found[-1].device_s_per_sample == {"A10G": Figure(value=0.15, low=0.1, high=0.2)}
    assert found[-1].wire_bytes_per_sample == Figure.once(5.0)
    [alone] = stage_costs({"read": 9.0}, 8.0, "A10G", {}, {})
    assert alone.cpu_share == 1.0, "a stage's own clock may run a little longer than the process's"


PICTURES = Pipeline(
    synthetic(12, shape=(12, 17, 3)),
    [random_resized_crop((8, 10)), random_horizontal_flip(), gaussian_blur(3)],
    batch_size=4,
    normalize={"scale": 0.5, "mean": [0.5], "std": [0.25]},
)


def batch_at(opened, cut):
    from raytrain.data.producer import Producer
    from raytrain.study.alone import _work

    return Producer(_work(opened)).batch(0, 0, cut)


def cut_of(opened):
    part, pipeline = opened.on_device["train"], opened.pipeline
    block = to_table([batch_at(opened, part.cuts[0])])
    return AtCuts({}, block, part, opened.schema, pipeline.fields, pipeline.normalize)


def like(size=4):
    return DeviceBatch({}, size, np.arange(size), 0, weight=0.5)


def test_a_batch_through_the_device_is_what_cpus_make_of_it():
    """Normalised, channels first, and of every stage the seconds of a sample."""
    opened = PICTURES.open(0)
    moved = MovedBatch(cut_of(opened), torch.device("cpu"))
    made = moved.again(like())
    [plain] = batches_of(to_table([batch_at(opened, opened.on_device["train"].cuts[-1])]))
    image = torch.from_numpy(plain.fields["image"].copy())
    expected = ((image * 0.5 - 0.5) / 0.25).permute(0, 3, 1, 2)
    torch.testing.assert_close(made["image"], expected, rtol=0, atol=1e-4)
    assert made["label"].tolist() == plain.fields["label"].tolist() and made.ids.tolist() == plain.key.tolist()
    assert (made.size, made.weight) == (4, 0.5), "in all else like the other one"
    names = [stage.name for stage in opened.on_device["train"].stages]
    assert names == ["random_resized_crop", "random_horizontal_flip", "gaussian_blur"]
    taken = moved.taken()
    assert set(taken) == {*names, ARRIVAL} and min(taken.values()) > 0
    assert moved.taken() == {}, "it begins anew"
    assert set(moved.alone(like(), 0.01)) == {*names, ARRIVAL}


def test_on_cpus_nothing_is_left_to_a_run_to_choose():
    opened = PICTURES.open(0)
    part = opened.on_device["train"]
    assert len(part.cuts) > 1
    assert on_cpus(PICTURES, part.cuts[-1]).open(0).on_device["train"].cuts == part.cuts[-1:]


@pytest.mark.process
def test_a_sample_is_as_large_as_it_is_at_each_cut():
    """Floats of 12 x 17 x 3 with an int64 and what is drawn; of 8 x 10 x 3, with a truth value for
    the flip, and a number for the blur."""
    found = at_cuts(PICTURES.open(0))
    large, small = 12 * 17 * 3 * 4 + 8, 8 * 10 * 3 * 4 + 8
    assert large + 9 < found.wire_bytes.pop(0) <= large + 9 + 6 * 8
    assert found.wire_bytes == {1: small + 9, 2: small + 8, 3: small}
    [batch] = batches_of(found.block)
    assert batch.fields["image"].shape == (4, 12, 17, 3) and batch.header.cut == 0


@pytest.mark.process
def test_where_no_sample_can_be_prepared_it_is_said(tmp_path):
    for number in range(4):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / f"{number}.jpg").write_bytes(b"no image")
    opened = Pipeline(image_folder(tmp_path), [decode(), resize((8, 8)), gaussian_blur(3)], batch_size=2).open(0)
    assert len(opened.on_device["train"].cuts) > 1
    with pytest.raises(DataError, match="no sample of the first 2 batches could be prepared"):
        at_cuts(opened)


class Context:
    """Of one rank."""

    def __init__(self):
        self.world_size, self.checkpoint_s, self.measured = 1, 0.0, None
        self.device = torch.device("cpu")

    def batches(self, _split):
        return iter([like(), like()])


def test_a_resident_loop_goes_on_with_stages_on_the_device(monkeypatch):
    from raytrain.study import timed_loop

    monkeypatch.setattr(timed_loop, "WARM_UP_S", 0.02)
    monkeypatch.setattr(timed_loop, "WARM_AGAIN_S", 0.02)
    ctx = Context()
    seen = []
    with pytest.raises(StopTraining):
        for batch in TimedContext(ctx, resident=True, part_s=0.01, moved=cut_of(PICTURES.open(0))).batches():
            seen.append("image" in batch.fields)
    assert seen == sorted(seen) and seen[0] is False and seen[-1] is True
    moved = ctx.measured["moved"]
    assert set(moved) == {"alone", "beside", "parts"} and set(moved["alone"]) == set(moved["beside"])
    assert len(moved["parts"]) == len(ctx.measured["parts"]) == 5
    assert sum(moved["beside"].values()) < 1.5 * max(moved["parts"]), "they are in the step"


# --- where -----------------------------------------------------------------------------------------------------------


def found_where(cpu_s, device_s, step_s, cores=3, devices=1, shared_rate=None, efficiency=1.0):
    names = ["read", *(f"s{number}" for number in range(1, len(cpu_s)))]
    seconds = {n: Seconds(s, s, s) for n, s in zip(names[1:], device_s, strict=True)}
    costs = Costs(cpu_s, [None, *device_s], step_s)
    return where(
        names, costs, Places(cores, 0, devices), seconds, dearer=1.0, efficiency=efficiency, shared_rate=shared_rate
    )


def test_the_best_place_by_hand():
    """Three cores make 300 of 10 ms; with 9 of them on the device: min(3 / 1 ms, 1 / 0.41 ms), a half of it."""
    found = found_where([0.001, 0.009], [0.00005], 0.00036, efficiency=0.5)
    assert (found.on_cpus, found.expected) == (pytest.approx(150), pytest.approx(0.5 / 0.00041))
    assert found.on_device == {"s1": 1.0} and found.device_share == pytest.approx(0.05 / 0.41)
    split = found_where([0.001, 0.009], [0.001], 0.002)
    assert split.on_device == {"s1": pytest.approx(1 / 3)} and split.expected == pytest.approx(3000 / 7)
    two = found_where([0.001, 0.003, 0.006], [0.001, 0.0001], 0.001)  # of s1 x there: 3 / (4 - 3 x) = 1 / (1.1 + x)
    assert two.on_device == {"s1": pytest.approx(0.7 / 6), "s2": 1.0}
    assert two.expected == pytest.approx(1000 / (1.1 + 0.7 / 6))
    light = found_where([0.0001, 0.0004], [0.00005], 0.00036)
    assert (light.on_device, light.device_share) == ({}, 0.0)
    assert light.expected == light.on_cpus == pytest.approx(1 / 0.00036)
    assert light.all_on_device == pytest.approx(1 / 0.00041)
    assert found_where([0.01, 0.0001], [0.00001], 0.00036).on_device == {}, "1 % is not worth a change"


def test_a_device_that_is_a_cpu_shares_its_cores():
    """Two cores for 10 ms of stages and a step of 4: 143 a second. With s1 there 25 ms: 40; or 6 ms: 167."""

    def rate(cpu_s, device_s):
        return 2 / (cpu_s + device_s)

    dear = found_where([0.001, 0.009], [0.021], 0.004, cores=2, shared_rate=rate)
    assert dear.shared and dear.on_device == {} and dear.on_cpus == pytest.approx(2 / 0.014)
    assert dear.all_on_device == pytest.approx(1 / 0.025)
    cheap = found_where([0.001, 0.009], [0.002], 0.004, cores=2, shared_rate=rate)
    assert cheap.on_device == {"s1": 1.0} and cheap.expected == pytest.approx(1 / 0.006)


# --- said ------------------------------------------------------------------------------------------------------------


def test_what_a_diagnosis_says_of_places():
    found = Where({}, 1.0, 942.0, 2380.0, {"gaussian_blur": 1.0, "to_uint8": 1.0}, 0.13)
    assert places_lines(found) == [
        "cheapest: gaussian_blur and to_uint8 on the device: 942 -> 2,380 samples/s expected, +0 hosts, 13% of the "
        "device's time"
    ]
    light = Where({"blur": Seconds(1, 1, 1)}, 1.25, 900.0, 900.0, all_on_device=700.0, shared=True)
    assert places_lines(light) == [
        "cheapest: every stage on CPUs: 900 samples/s expected; 700 with blur on the device",
        "in a step with the model the stages on the device take 25% more than alone; that is reckoned with",
        "the device is a CPU here, which shares its cores with the workers: a GPU has other figures",
    ]
    [settled] = places_lines(None)
    assert settled == "stages stay where they are: none that runs on CPUs can be moved to the device"


@pytest.mark.parametrize(
    ("shares", "text"),
    [((1.0,), "a"), ((0.4, 1.0), "a (40% of the batches) and b"), ((1.0, 1.0, 1.0), "a, b and c")],
)
def test_names_of_stages(shares, text):
    assert names_of(dict(zip("abc", shares, strict=False))) == text


def planned(cpu_s=0.018, blur_s=0.00004, **bounds):
    """docs/costs.md: 18 ms of a vCPU, 1 / 1200 s of an A10G; the blur is 90 % of it."""
    device = {"A10G": Figure.once(blur_s)}
    blur = StageCost(name="blur", cpu_share=0.9, device_s_per_sample=device, wire_bytes_per_sample=Figure.once(150_528))
    job = profile(cpu_s_per_sample={"c5": Figure.once(cpu_s)}, stages=(blur,))
    return plan(job, catalog(), Bounds("us-east-1", families=("g5", "c5"), **bounds))


def test_a_plan_says_which_way_it_takes_and_why():
    """Three vCPUs make 1667 of 1.8 ms; the accelerator 1 / (0.833 + 0.04 ms)."""
    found = planned()
    best, other = found[0], found.on_cpus[0]
    assert str(best.shape).startswith("1 x ml.g5.xlarge") and best.device_share == pytest.approx(0.04 * 1.2 / 1.048)
    assert takes(found) == (
        "takes blur on the device of 1 x ml.g5.xlarge: +0 hosts, -5% device time, "
        f"${best.usd_per_million_samples:.3f} against ${other.usd_per_million_samples:.3f} a million samples "
        f"({other.shape}, the best with every stage on CPUs)"
    )
    there = dict(ways(found))
    assert (
        list(there)
        == [
            "all on CPUs, no CPU hosts",
            "on the device",
            "all on CPUs, with CPU hosts",
            "all on CPUs, a larger sibling",
            "on the device, with CPU hosts",
        ][: len(there)]
    )
    assert there["on the device"] == best
    assert there["all on CPUs, with CPU hosts"] == found.on_cpus.best_with_cpu_hosts
    sibling = there["all on CPUs, a larger sibling"]
    assert sibling.shape.gpu_hosts == 1 and sibling.shape.gpu_type != "ml.g5.xlarge" and not sibling.on_device
    assert larger_sibling(found.on_cpus, None) is None
    shown = io.StringIO()
    show_plan(found, catalog(), Console(file=shown, width=200))
    rows = [" ".join(line.split()) for line in shown.getvalue().splitlines()]
    assert rows[1] == takes(found)
    assert any(row.startswith("# shape") and row.endswith("on the device") for row in rows)
    assert any(row.startswith("1 1 x ml.g5.xlarge ") and row.endswith(" blur") for row in rows)
    assert any(row.startswith("on the device 1 x ml.g5.xlarge ") for row in rows)


def test_a_plan_that_leaves_stages_on_cpus_says_why():
    light = planned(cpu_s=0.0001)
    assert takes(light) == "takes every stage on CPUs: none makes a shape faster on the device"
    assert str(light[0].shape) == "1 x ml.g5.xlarge"
    assert larger_sibling(light.on_cpus, light[0]).shape.gpu_type == "ml.g5.2xlarge", "the next larger, though dearer"
    slow = planned(blur_s=0.01)
    there = slow.best_where((slow.figures["device_share"] > 0) & (slow.figures["first_hosts"] == 0))
    mine, others = (f"${each.usd_per_million_samples:.3g}" for each in (slow[0], there))
    assert takes(slow).startswith(f"takes every stage on CPUs: {mine} against {others}")
    assert takes(slow).endswith(f"on the device of {there.shape}, -{there.device_share:.0%} device time")
    alone = plan(profile(), catalog(), Bounds("us-east-1"))
    assert takes(alone) is None and ways(alone) == []


def test_where_start_up_decides_otherwise_the_jobs_money_is_told():
    """Many hosts are soon done, but each is paid for while it starts."""
    device, size = {"A10G": Figure.once(0.0002)}, Figure.once(150_528)
    stages = [
        StageCost(name=f"s{n}", cpu_share=0.15, device_s_per_sample=device, wire_bytes_per_sample=size)
        for n in range(5)
    ]
    found = plan(profile(stages=tuple(stages)), catalog(), Bounds("us-west-2", max_cpu_hosts=48))
    best, other = found[0], found.on_cpus[0]
    assert best.usd < other.usd and best.usd_per_million_samples > other.usd_per_million_samples
    assert takes(found).startswith("takes s4 (33% of the batches) on the device of 1 x ml.g5.2xlarge: +3 hosts, -7% ")
    assert f"${best.usd:.2f} against ${other.usd:.2f} for the job ({other.shape}, the best with" in takes(found)


def test_a_plan_whose_limits_only_the_device_keeps_says_so():
    fast = planned(max_hours=7.0, max_cpu_hosts=0, max_gpu_hosts=1, max_usd_per_hour=1.45)
    assert fast.on_cpus is None
    assert takes(fast).endswith("device time; no shape is within the limits with every stage on CPUs")
    assert [way for way, _ in ways(fast)] == ["on the device"]
