"""What a record says about its samples, figure by figure and by hand."""

from __future__ import annotations

import json
import math

import pytest
from money import on_sagemaker, profile, run_on

from raytrain.cost.instances import catalog
from raytrain.cost.profile import (
    Figure,
    Profile,
    StageCost,
    epochs_of,
    hardware_of,
    parse_profile,
    profile_of_record,
    shared_cores,
)
from raytrain.errors import ConfigError
from raytrain.record.placements import PlacedStage, Placement

SINGLE = {"ml.g5.xlarge": ("gpu", 1, 1)}
BOTH = {"ml.g5.xlarge": ("gpu", 1, 1), "ml.c5.4xlarge": ("cpu", 1, 0)}


@pytest.fixture(scope="module")
def known():
    return catalog()


def changed(part, **update):
    return part.model_copy(update=update)


def test_the_median_by_hand():
    assert Figure.of([3.0, 1.0, 9.0]) == Figure(value=3.0, low=1.0, high=9.0, n=3)
    assert Figure.of([10.0, 1.0, 2.0, 4.0]) == Figure(value=3.0, low=1.0, high=10.0, n=4)
    assert Figure.of([7.0]) == Figure.once(7.0) == Figure(value=7.0, low=7.0, high=7.0, n=1)
    assert Figure.of([1.0, 2.0]) == Figure(value=1.5, low=1.0, high=2.0, n=2)


@pytest.mark.parametrize(("low", "high"), [(5.0, 6.0), (4.0, 5.0), (5.0, 5.0)])
def test_a_figure_may_be_its_own_lowest_and_highest(low, high):
    assert Figure(value=5.0, low=low, high=high).n == 1


@pytest.mark.parametrize(("low", "high"), [(5.1, 6.0), (4.0, 4.9)])
def test_a_figure_out_of_order_is_refused(low, high):
    with pytest.raises(ValueError, match="low, value and high are not in order"):
        Figure(value=5.0, low=low, high=high)


def test_what_is_nearly_absurd_is_taken():
    assert profile(efficiency=Figure.once(1.5)).efficiency.value == 1.5
    with pytest.raises(ValueError, match="an efficiency of 1.51 is absurd"):
        profile(efficiency=Figure.once(1.51))
    with pytest.raises(ValueError, match="efficiency is 0: nothing takes no time"):
        profile(efficiency=Figure.once(0.0))
    with pytest.raises(ValueError, match="accelerator_s_per_sample of L4 is 0: nothing takes no time"):
        profile(accelerator_s_per_sample={"A10G": Figure.once(1), "L4": Figure.once(0)})
    nothing = profile(wire_bytes_per_sample=Figure.once(0), read_bytes_per_sample=Figure.once(0))
    assert nothing.read_bytes_per_sample.value == 0
    for bad in ({"num_samples": 0}, {"world_size": 0}, {"epochs": 0.0}, {"epochs": math.inf}):
        with pytest.raises(ValueError, match="Input should be"):
            profile(**bad)
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        Figure(value=1, low=1, high=1, n=0)


def test_what_a_profile_does_not_say():
    own = profile()
    assert (own.schema_version, own.world_size, own.cpu_s_per_sample_alone) == (1, 1, None)
    assert (own.worker_memory_bytes, own.accelerator_memory_bytes) == (None, None)
    assert (own.cores_shared_with, own.estimated) == (None, None)
    assert Profile.model_fields["on_sagemaker"].default is False


def test_a_profile_and_its_figures_do_not_change():
    own = profile()
    for part, name in ((own, "epochs"), (own.startup_s, "value")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(part, name, 9.0)


def test_a_family_that_was_not_measured_is_like_the_first():
    own = profile(cpu_s_per_sample={"m5": Figure.once(0.5), "c5": Figure.once(0.25)})
    assert (own.cpu_kind, own.cpu_s("c5"), own.cpu_s("m5"), own.cpu_s("g5")) == ("m5", 0.25, 0.5, 0.5)


def test_a_profile_is_written_whole_over_another(tmp_path):
    path = tmp_path / "profile.json"
    path.write_text("old")
    named = profile(name="Größe")
    named.write(path)
    text = path.read_text(encoding="utf-8")
    assert text.startswith('{\n "schema_version": 1,\n') and text.endswith("}\n")
    assert parse_profile(json.loads(text), "p") == named
    assert [each.name for each in tmp_path.iterdir()] == ["profile.json"]


def test_a_version_that_is_missing_is_another(tmp_path):
    tree = profile().model_dump(mode="json")
    del tree["schema_version"]
    with pytest.raises(ConfigError, match="^p is a profile of schema version None; this raytrain reads 1"):
        parse_profile(tree, "p")
    with pytest.raises(ConfigError, match="^p is not a profile: cpu_s_per_sample.c5.n: Input should"):
        parse_profile({**profile().model_dump(mode="json"), "cpu_s_per_sample": {"c5": {
            "value": 1, "low": 1, "high": 1, "n": 0}}}, "p")  # fmt: skip


def test_every_figure_of_a_run(record, known):
    """640 samples at 64/s by two ranks that computed 5 s each and copied 1.5 s each: 13 s, or 10 s where that overlaps.

    The only stage takes 5 ms of a CPU and 7 ms by the clock, and 'decode/first' is a part of it. 1000 samples were
    read, for 2000 and 1000 bytes, 640 of them for training, each in 1 ms more than its CPU time, which was none.
    """
    run = run_on(record, "r", {"ml.g5.xlarge": ("gpu", 2, 1), "ml.c5.4xlarge": ("cpu", 1, 0)})
    decode = run.stages[0]
    parts = [changed(decode, name="decode/first"), changed(decode, name="never", num_samples=0)]
    ranks = [changed(rank, compute_s=5.0, transfer_s=1.5, num_batches=20) for rank in run.ranks]
    read = changed(run.stages[1], wall_s=0.64)
    run = changed(run, stages=[decode, read, *run.stages[2:], *parts], ranks=ranks, cpu_slots=2)
    found = profile_of_record(run, known)
    assert found == Profile(
        name="r",
        job=run.job,
        source="the record of r",
        measured_at="2026-01-01T00:00:00.000+00:00",
        hardware="2 x x, 1 x NVIDIA A10G",
        cpu_s_per_sample={"g5": Figure.once(0.005)},
        read_wait_s_per_sample=Figure.once(0.001),
        accelerator_s_per_sample={"A10G": Figure.once(13 / 640)},
        stages=(StageCost(name="decode", cpu_share=1.0), StageCost(name="read", cpu_share=0.0)),
        wire_bytes_per_sample=Figure.once(2000 / 1000),
        read_bytes_per_sample=Figure.once(1000 / 1000),
        startup_s=Figure.once(120.0),
        efficiency=Figure.once(64 / (2 / (13 / 640))),
        world_size=2,
        num_samples=640,
        epochs=2,
    )
    overlaps = changed(run, ranks=[changed(rank, transfer_overlaps=True) for rank in ranks])
    assert profile_of_record(overlaps, known).accelerator_s_per_sample["A10G"].value == 10 / 640
    gaps = changed(run, ranks=[changed(rank, transfer_overlaps=True, gap_s=2.0, compute_s=3.0) for rank in ranks])
    assert profile_of_record(gaps, known) == profile_of_record(overlaps, known), "a step takes what it takes"
    one_slot = changed(run, cpu_slots=0.4)
    efficiency = profile_of_record(one_slot, known).efficiency.value
    assert efficiency == pytest.approx(64 / (0.4 / 0.008)), "the CPUs are the slower part, by the clock"
    threads = changed(one_slot, stages=[changed(decode, wall_s=1.6)])
    efficiency = profile_of_record(threads, known).efficiency.value
    assert efficiency == pytest.approx(64 / (0.4 / 0.005)), "a worker's other threads need CPUs too"
    slow = changed(run, totals=changed(run.totals, samples_per_s=640.0))
    assert profile_of_record(slow, known).efficiency.value == 1.5, "no more than can be"
    # 16 samples a batch, two ranks: 32 a step
    steps = run.model_copy(deep=True)
    steps.job["training"] |= {"epochs": None, "steps": 40}
    assert profile_of_record(steps, known).epochs == 40 * 32 / 640


def test_stages_of_a_record_stay_where_they_ran(record, known):
    """What a stage on the device would take of a CPU is in no record."""
    run = run_on(record, "r", SINGLE)
    run = changed(run, ranks=[changed(run.ranks[0], device_stage_s={"gaussian_blur": 1.28})])
    found = profile_of_record(run, known)
    assert [stage.name for stage in found.stages] == ["decode", "read"]
    assert not found.may_move and all(stage.device_s_per_sample is None for stage in found.stages)


def test_stages_that_ran_on_both_have_places(record, known):
    """640 samples, of which some had `decode` on the device, for 1.28 s of the ranks' 10: 8.72 s of steps."""
    run = run_on(record, "r", SINGLE)
    rank = changed(run.ranks[0], compute_s=10.0, transfer_s=0.0, device_stage_s={"decode": 1.28, "mine": 0.5})
    decided = Placement(
        at_s=4.0, on_device=[], sometimes_on_device=["decode"], share=0.5, cpu_cores=0, host_cores=3, step_s=0.014,
        stages=[PlacedStage(name="decode", cpu_s=0.007, device_s=0.002)], interference=0.1, samples_per_s=80.0,
        samples_per_s_before=50.0, text="",
    )  # fmt: skip
    run = changed(run, ranks=[rank], placements=[decided])
    found = profile_of_record(run, known)
    assert found.accelerator_s_per_sample["A10G"].value == pytest.approx(8.72 / 640), "`mine` runs nowhere else"
    decode = found.stages[-1]
    assert (decode.name, decode.cpu_share) == ("decode", 1.0)
    assert decode.device_s_per_sample == {"A10G": Figure.once(0.002)}
    assert decode.wire_bytes_per_sample == found.wire_bytes_per_sample
    assert found.efficiency.value == pytest.approx(64 / 80), "of what was expected of that placement"
    stayed = changed(decided, sometimes_on_device=[], share=0.0)
    plain = profile_of_record(changed(run, placements=[stayed]), known)
    assert plain.may_move and plain.efficiency.value != pytest.approx(64 / 80)


def moving(**device_s):
    once = {gpu: Figure.once(seconds) for gpu, seconds in device_s.items()}
    return StageCost(name="blur", cpu_share=0.5, device_s_per_sample=once, wire_bytes_per_sample=Figure.once(1.0))


def test_a_stage_takes_as_much_longer_on_another_gpu_as_a_step_does():
    steps = {"CPU": Figure.once(0.5), "A10G": Figure.once(0.002), "L4": Figure.once(0.003)}
    own = profile(accelerator_s_per_sample=steps, stages=(moving(CPU=0.1, A10G=0.0004),))
    [blur] = own.stages
    assert own.may_move and own.measured_like(blur) == "A10G"
    assert own.device_s(blur, "A10G") == 0.0004
    assert own.device_s(blur, "L4") == pytest.approx(0.0006)
    assert own.device_s(blur, "H100") is None, "nobody has measured a step there"
    for device_s in ({"CPU": 0.1}, {"H100": 0.1}):
        assert own.device_s(moving(**device_s), "L4") is None, "a CPU says nothing of a GPU, nor one without a step"
    assert own.device_s(StageCost(name="read", cpu_share=0.5), "A10G") is None


def test_start_up_is_until_the_first_step_or_all_of_it(record, known):
    def startup(first_step_s, wall_s):
        run = run_on(record, "r", SINGLE, first_step_s=first_step_s)
        return profile_of_record(changed(run, totals=changed(run.totals, wall_s=wall_s)), known).startup_s.value

    assert (startup(3.0, 12.0), startup(None, 12.0), startup(1e-9, 12.0)) == (3.0, 12.0, 1e-3)


def test_nothing_that_was_read_or_counted_is_no_division_by_zero(record, known):
    run = run_on(record, "r", SINGLE)
    run = changed(run, stages=run.stages[:1], ranks=[changed(run.ranks[0], num_batches=0)])
    run.job["training"] |= {"epochs": None, "steps": 3}
    found = profile_of_record(run, known)
    assert (found.wire_bytes_per_sample.value, found.read_bytes_per_sample.value) == (1000.0, 500.0)
    assert found.epochs == 3 * 640 / 640


@pytest.mark.parametrize("without", ["samples", "samples_per_s", "compute", "cpu"])
def test_a_run_without_one_of_the_figures_has_no_profile(record, known, without):
    run = run_on(record, "r", SINGLE)
    if without == "compute":
        run = changed(run, ranks=[changed(run.ranks[0], compute_s=0.0)])
    elif without == "cpu":
        run = changed(run, stages=[changed(stage, cpu_s=0.0) for stage in run.stages])
    else:
        run = changed(run, totals=changed(run.totals, **{without: 0}))
    with pytest.raises(ConfigError, match="the record of r has no training to learn from: its run finished"):
        profile_of_record(run, known)


def test_epochs_of_a_job():
    assert epochs_of(3, None, 64, 640) == 3
    assert epochs_of(None, 40, 64.0, 640) == 4
    assert epochs_of(None, 0, 64.0, 640) == 1e-9, "no time at all is none"


def test_cores_that_prepare_and_train_are_shared(record):
    """12 cores, 5 ms of a CPU to prepare. Training takes 20 ms of a rank, on each of its threads."""
    run = run_on(record, "r", SINGLE)
    rank = changed(run.ranks[0], device="cpu")
    run = changed(run, ranks=[rank, rank], world_size=2, hardware=changed(run.hardware, cpu_cores=12))

    def rate(run, threads=None):
        run = run.model_copy(deep=True)
        run.job["training"]["threads"] = threads
        return shared_cores(run, 0.005, 0.02)

    assert rate(run, 3) == pytest.approx(12 / (0.005 + 0.02 * 6 / 2))
    assert rate(run, 100) == pytest.approx(12 / (0.005 + 0.02 * 12 / 2)), "no more threads run than there are cores"
    assert rate(run) == pytest.approx(12 / (0.005 + 0.02 * 8 / 2)), "as many as the head, which has four"
    assert rate(changed(run, hosts=[])) == pytest.approx(12 / (0.005 + 0.02 * 12 / 2))
    other = [changed(run.hosts[0], is_head=False, cpus=1.0), changed(run.hosts[0], cpus=2.0)]
    assert rate(changed(run, hosts=other)) == pytest.approx(12 / (0.005 + 0.02 * 4 / 2)), "of the head alone"
    assert rate(changed(run, cluster_attached=True)) == math.inf
    assert rate(changed(run, ranks=[rank, changed(rank, device="cuda:0")])) == math.inf


def test_what_a_rank_shared_its_cores_with(record, known):
    run = run_on(record, "r", BOTH)
    [gpu_host, cpu_host] = run.hosts
    on_cpu = changed(run, ranks=[changed(run.ranks[0], device="cpu")])

    def shared(run, **update):
        return profile_of_record(changed(run, **update), known).cores_shared_with

    assert shared(run) is None, "a GPU has none"
    assert shared(run, ranks=[run.ranks[0], changed(run.ranks[0], device="cpu")]) is None
    assert shared(on_cpu) == "the CPU stages", "all nodes are this machine"
    assert shared(on_cpu, cluster_attached=True) == "the CPU stages", "its host prepared samples too"
    apart = [changed(gpu_host, samples_prepared=0), cpu_host]
    assert shared(on_cpu, cluster_attached=True, hosts=apart) is None
    assert shared(on_cpu, hosts=apart) == "the CPU stages"


@pytest.mark.parametrize(
    ("measured", "with_whom", "used"), [(0.51, None, 0.51), (0.51, "the CPU stages", 1.0), (1.4, None, 1.0)]
)
def test_how_much_of_an_efficiency_holds_on_gpus(measured, with_whom, used):
    assert profile(efficiency=Figure.once(measured), cores_shared_with=with_whom).efficiency_on_gpus == used


def test_whose_start_up_it_is(record, known):
    run = run_on(record, "r", SINGLE)
    there, twin = (on_sagemaker([run], kind)[0] for kind in ("sagemaker", "twin"))
    assert [profile_of_record(each, known).on_sagemaker for each in (run, there, twin)] == [False, True, False]


def gpu(run, known):
    return list(profile_of_record(run, known).accelerator_s_per_sample)


def test_which_gpu_it_was(record, known):
    run = run_on(record, "r", BOTH)
    [gpu_host, cpu_host] = run.hosts
    plain = changed(run, hardware=changed(run.hardware, gpus=["NVIDIA A100-SXM4-40GB", "NVIDIA L4"]))
    assert gpu(plain, known) == ["A10G"], "as the host's type says, whatever the driver sees"
    assert gpu(changed(plain, hosts=[cpu_host]), known) == ["A100"], "else the driver's first"
    for hosts in (
        [changed(gpu_host, instance_type=None)],
        [changed(gpu_host, instance_type="ml.x9.huge")],
        [changed(gpu_host, gpus=0)],
        [changed(cpu_host, gpus=1)],
    ):
        assert gpu(changed(plain, hosts=hosts), known) == ["A100"]
    with_l40 = changed(run, hosts=[], hardware=changed(run.hardware, gpus=["NVIDIA L40S"]))
    assert gpu(with_l40, known) == ["L40S"], "whole words"
    mixed = changed(plain, ranks=[changed(run.ranks[0], device="cpu"), run.ranks[0]], world_size=2)
    assert gpu(mixed, known) == ["A10G"], "not all ranks are without"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO Server 6000"),
        ("NVIDIA RTX PRO 4500 Blackwell", "RTX PRO 4500"),
        ("RTX-PRO-4500", "RTX PRO 4500"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "NVIDIA RTX PRO 6000 Blackwell Workstation Edition"),
        ("NVIDIA H200 NVL", "H200"),
    ],
)
def test_a_gpu_whose_name_is_of_several_words(record, known, name, kind):
    run = run_on(record, "r", SINGLE)
    assert gpu(changed(run, hosts=[], hardware=changed(run.hardware, gpus=[name])), known) == [kind]


def cpu(run, known):
    return list(profile_of_record(run, known).cpu_s_per_sample)


def test_which_cpu_it_was(record, known):
    run = run_on(record, "r", BOTH)
    [gpu_host, cpu_host] = run.hosts
    more = changed(cpu_host, samples_prepared=321)
    assert cpu(changed(run, hosts=[gpu_host, more]), known) == ["c5"], "of the host that prepared most"
    assert cpu(changed(run, hosts=[gpu_host, changed(more, cpus=0.0)]), known) == ["g5"]
    assert cpu(changed(run, hosts=[gpu_host, changed(more, instance_type=None)]), known) == ["g5"]
    assert cpu(changed(run, hosts=[changed(more, instance_type=None)]), known) == ["x"], "the CPU's name"


def test_hardware_is_counted(record):
    hardware = changed(record.hardware, cpu_model="EPYC", cpu_cores=8, gpus=["B", "A", "B"])
    assert hardware_of(changed(record, hardware=hardware)) == "8 x EPYC, 2 x B, 1 x A"
    assert hardware_of(changed(record, hardware=changed(hardware, gpus=[]))) == "8 x EPYC"
