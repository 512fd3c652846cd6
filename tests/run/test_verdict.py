"""Who waits for whom, and what a measurement is worth."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import get_args, get_type_hints

import pytest
from conftest import ROOT, figures

from raytrain.cost.profile import Figure
from raytrain.record.gaps import gap_share
from raytrain.record.schema import RankFigures, StageFigures
from raytrain.run.outcome import _stages
from raytrain.run.verdict import (
    COMPUTE_UP_TO,
    GAPS_FROM,
    INPUT_FROM,
    Verdict,
    against_gaps,
    busy_machine,
    who_waits,
    wide_spreads,
)


def stage(name, cpu_s, wall_s, num_samples=1000):
    return StageFigures(
        name=name,
        num_samples=num_samples,
        num_batches=10,
        cpu_s=cpu_s,
        wall_s=wall_s,
        batch_wall_p90_s=0.1,
        batch_wall_p99_s=0.2,
    )


STAGES = [stage("read", 1.0, 6.0), stage("decode", 4.0, 5.0), stage("validation/decode", 90.0, 90.0)]
GPU = [RankFigures(**figures(device="cuda:0"))]
CPU = [RankFigures(**figures(device="cpu"))]
READ = "stage 'read' takes longest, 6.00 ms of a worker for a sample, 1.00 ms of them CPU time"


@pytest.mark.parametrize(
    ("share", "on", "kind", "text"),
    [
        (0.08, GPU, "compute", "compute: the ranks wait for data 8% of the time and are busy for the rest"),
        (0.10, GPU, "compute", "compute: the ranks wait for data 10% of the time and are busy for the rest"),
        (0.11, GPU, "balanced", f"balanced: the ranks wait for data 11% of the time; {READ}"),
        (0.29, CPU, "balanced", f"balanced: the ranks wait for data 29% of the time; {READ}"),
        (0.30, CPU, "input", f"input: the ranks wait for data 30% of the time; {READ}"),
        (0.02, CPU, "compute", "compute: the ranks wait for data 2% of the time and are busy for the rest, on CPUs "
         "that the stages may share"),
    ],
)  # fmt: skip
def test_the_share_of_waiting_decides(share, on, kind, text):
    found = who_waits(share, on, STAGES)
    assert (found.kind, found.text) == (kind, text)


def test_stages_on_the_device_that_take_much_are_named():
    """10 s of training: 1 waiting, 3 transferring, 6 computing (on a GPU the transfer runs beside that)."""
    times = {"wait_s": 1.0, "transfer_s": 3.0, "compute_s": 6.0, "num_samples": 100}
    for taken, device, told in (
        (
            {"gaussian_blur": 2.0, "mine": 0.5, "validation/mine": 50.0},
            "cpu",
            "; the stages on the device take 25% of it",
        ),
        ({"gaussian_blur": 2.1}, "cuda:0", "; the stages on the device take 30% of it"),
        ({"gaussian_blur": 0.9}, "cpu", ""),
        ({"decode": 40.0, "gaussian_blur": 0.9}, "cpu", ""),  # which runs beside it
    ):
        beside = {"decode_s": taken.get("decode", 0.0)}
        own = {**times, "transfer_overlaps": device != "cpu", "device_stage_s": taken, **beside}
        ranks = [RankFigures(**{**figures(device=device), **own})] * 2
        for share in (0.05, 0.5):
            before, found = who_waits(share, CPU if device == "cpu" else GPU, STAGES), who_waits(share, ranks, STAGES)
            assert found.text == before.text + told


def on_gpu(gap_s, wait_s=2.0, train_s=100.0):
    """A rank's `train_s`, of which it waits 2 s; the driver tells of gaps, or does not."""
    compute_s = train_s - wait_s - (gap_s or 0.0)
    times = {"wait_s": wait_s, "compute_s": compute_s, "gap_s": gap_s, "transfer_overlaps": True}
    return RankFigures(**figures(device="cuda:0", **times))


GAPS = "; the GPU idles between kernels 12% of the time: the rank's own Python, or its host's CPUs are busy"


@pytest.mark.parametrize(
    ("gaps_s", "share", "text"),
    [
        ([12.0], 0.02, f"compute: the ranks wait for data 2% of the time{GAPS}"),
        ([8.0, 16.0], 0.02, f"compute: the ranks wait for data 2% of the time{GAPS}"),
        ([None, 12.0], 0.02, f"compute: the ranks wait for data 2% of the time{GAPS}"),
        ([12.0], 0.2, f"balanced: the ranks wait for data 20% of the time; {READ}{GAPS}"),
        ([12.0], 0.5, f"input: the ranks wait for data 50% of the time; {READ}{GAPS}"),
        ([9.9], 0.02, "compute: the ranks wait for data 2% of the time and are busy for the rest"),
        ([None], 0.02, "compute: the ranks wait for data 2% of the time and are busy for the rest"),
    ],
)
def test_gaps_between_kernels_are_named_from_a_tenth_on(gaps_s, share, text):
    """Of 100 s of each rank that can tell."""
    ranks = [on_gpu(gap_s) for gap_s in gaps_s]
    found = who_waits(share, ranks, STAGES)
    assert found.text == text
    assert (found.gaps is not None) == text.endswith(GAPS) and found.gaps == against_gaps(ranks)
    if found.gaps:
        for word in ("cluster.placement: cpu-groups-only", "cluster.reserved_cpus", "larger batches", "CUDA graphs"):
            assert word in found.gaps


def test_gaps_stand_behind_the_stages_on_the_device():
    rank = on_gpu(12.0).model_copy(update={"device_stage_s": {"blur": 20.0}})
    found = who_waits(0.02, [rank], STAGES).text
    assert found == (f"compute: the ranks wait for data 2% of the time; the stages on the device take 20% of it{GAPS}")


def test_a_rank_that_has_not_trained_has_no_share_of_gaps():
    assert gap_share([on_gpu(0.0, wait_s=0.0, train_s=0.0)]) is None
    assert gap_share([]) is None
    assert gap_share([on_gpu(0.0, wait_s=0.0, train_s=0.0), on_gpu(5.0)]) == 0.05


def test_nothing_is_said_of_a_run_that_trained_on_nothing():
    for ranks, stages in (([], STAGES), (GPU, []), (GPU, STAGES[2:])):
        assert who_waits(0.0, ranks, stages).text == "unknown: no batch was trained on"


def test_stages_that_are_kept_from_their_cpus_are_a_warning():
    """8.9 ms by the clock for 3.7 ms of a CPU; reading may wait, and validation is not looked at."""
    assert busy_machine([stage("decode", 3.7, 8.9), *STAGES[::2]]).startswith(
        "warning: the stages took 2.4 times their CPU time: more was running than there are cores"
    )
    assert busy_machine([stage("decode", 1.0, 1.5)]) is not None
    assert busy_machine([stage("decode", 1.0, 1.4)]) is None
    assert busy_machine(STAGES) is None
    assert busy_machine([]) is None


def test_a_wide_spread_is_a_warning():
    measured = {
        "the whole": Figure(value=2.0, low=1.0, high=2.5, n=5),
        "one core": Figure(value=2.0, low=1.5, high=2.5),
    }
    assert wide_spreads(measured) == [
        "warning: the whole went from 50% to 125% of its median over 5 parts: something else may be using this "
        "machine; measure again, or longer (--seconds)"
    ]
    assert wide_spreads({"nothing": Figure.once(0.0)}) == []


def test_the_ranks_figures_of_a_stage_are_added_up():
    one = {"name": "read", "num_samples": 10, "num_batches": 2, "cpu_s": 1.0, "wall_s": 2.0}
    quantiles = {"batch_wall_p90_s": 0.5, "batch_wall_p99_s": 0.75}
    other = {"name": "read", "num_samples": 30, "num_batches": 3, "cpu_s": 7.0, "wall_s": 10.0}
    higher = {"batch_wall_p90_s": 0.25, "batch_wall_p99_s": 4.0}
    ranks = [StageFigures(**one, **quantiles), StageFigures(**other, **higher)]
    [both] = _stages([SimpleNamespace(stages=[each]) for each in ranks])
    assert both == StageFigures(
        name="read",
        num_samples=40,
        num_batches=5,
        cpu_s=8.0,
        wall_s=12.0,
        batch_wall_p90_s=0.5,
        batch_wall_p99_s=4.0,
    )
    assert (both.cpu_s_per_sample, both.wall_s_per_sample, both.wait_s_per_sample) == (0.2, 0.3, 0.1)


def test_the_documentation_names_every_verdict_and_its_limits():
    page = (ROOT / "docs" / "figures.md").read_text()
    rows = dict(re.findall(r"\| bottleneck: (\w+) \| (.*) \|", page))
    assert set(rows) == set(get_args(get_type_hints(Verdict)["kind"]))
    assert f"{COMPUTE_UP_TO * 100:.0f} %" in rows["compute"] and f"{INPUT_FROM * 100:.0f} %" in rows["input"]
    assert f"{GAPS_FROM * 100:.0f} % or more" in next(line for line in page.splitlines() if line.startswith("| gaps |"))
    assert f"between {COMPUTE_UP_TO * 100:.0f} % and {INPUT_FROM * 100:.0f} %" in rows["balanced"]
