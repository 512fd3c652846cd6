"""diagnose: what the parts can do, what the whole does, and the profile that comes of it."""

from __future__ import annotations

import io
import json
import os
import shutil
import time

import numpy as np
import pytest
from conftest import ROOT, figures, run_cli
from docs_lines import as_it_stands
from patience import patient
from rich.console import Console

from raytrain.config.job import Job
from raytrain.cost.instances import catalog
from raytrain.cost.profile import Figure, parse_profile
from raytrain.data.pipeline import Pipeline
from raytrain.data.sources.kinds.image_folder import image_folder
from raytrain.data.sources.kinds.synthetic import synthetic
from raytrain.data.stages.geometry import resize
from raytrain.data.stages.images import decode, gaussian_blur
from raytrain.errors import ConfigError, DataError
from raytrain.record.schema import RankFigures, StageFigures
from raytrain.report.diagnosis import diagnosis_lines, show_diagnosis, what_helps
from raytrain.run.verdict import who_waits
from raytrain.study import alone, timed_loop
from raytrain.study import diagnose as module
from raytrain.study.alone import PARTS, preprocess
from raytrain.study.diagnose import Findings, TimedRun, diagnose, duration_s, with_device_stages
from raytrain.study.timed_loop import TimedContext, TimedLoop

BLURRED = (
    "data.train={kind: synthetic, num_samples: 400, shape: [96, 96, 3], num_classes: 3}",
    "data.validation=null",
    "data.stages=[{gaussian_blur: {kernel_size: 11, times: 10}}, {resize: {size: 16}}]",
    "data.batch_size=16",
    "model.options={img_size: 16, patch_size: 8, embed_dim: 8, depth: 1, num_heads: 1, num_classes: 3}",
    "training={steps: 50}",
)


@pytest.fixture(scope="module")
def diagnosed(tmp_path_factory):
    """A job that blurs a lot and trains a little, as a user diagnoses it."""
    folder = tmp_path_factory.mktemp("diagnosed")
    shutil.copytree(ROOT / "launch", folder / "launch")
    line = as_it_stands("raytrain diagnose launch/digits.yaml")
    changes = [word for change in BLURRED for word in ("--set", change)]
    result = run_cli(*line, *changes, "--seconds", "2", "--json", cwd=folder, timeout=250)
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout.splitlines()[-1])
    with open(folder / said["profile"]) as file:
        return said, parse_profile(json.load(file), "profile"), folder


def test_the_parts_and_the_whole(diagnosed):
    said, profile, _ = diagnosed
    assert said["profile"] == "runs/digits.profile.json"
    cores = len(os.sched_getaffinity(0))
    assert said["preprocessing"] < 1.1 * cores / profile.cpu_s(profile.cpu_kind), "by the clock it takes no less"
    assert said["preprocessing_alone"] < 1.1 / profile.cpu_s_per_sample_alone.value
    assert said["together"] < min(said["preprocessing"], said["accelerator"]), "the rank and the stages share cores"
    assert said["everything"] < 1.1 * cores / profile.cpu_s(profile.cpu_kind), "nor do the stages of the whole"
    assert said["lost_share"] == pytest.approx(max(1 - said["everything"] / said["accelerator"], 0))
    assert said["ranks_on_cpu"] and said["verdict"]["text"].startswith(said["verdict"]["kind"])
    assert [stage["name"] for stage in said["stages"]] == ["read", "gaussian_blur", "resize"]
    [line] = [line for line in said["what_helps"] if line.startswith("gaussian_blur is ")]
    assert line.endswith(gaussian_blur(3).helps)


def test_the_profile_has_every_figure_with_its_spread(diagnosed):
    _, profile, _ = diagnosed
    assert profile.accelerator_s_per_sample["CPU"].n == PARTS
    assert profile.cpu_s_per_sample[profile.cpu_kind].n == PARTS * len(os.sched_getaffinity(0))
    assert profile.efficiency.n == PARTS
    assert profile.wire_bytes_per_sample.value == 16 * 16 * 3 * 4 + 8, "the label too"
    assert profile.startup_s.n == 2
    assert profile.worker_memory_bytes > 20e6
    assert profile.accelerator_memory_bytes is None, "there is no GPU"
    assert 3 < profile.startup_s.value < patient(120)
    assert (profile.num_samples, profile.epochs) == (400, pytest.approx(50 * 16 / 400))
    assert Job.from_dict(profile.job).name == "digits"


def test_each_stage_is_measured_on_cpus_and_on_the_device(diagnosed):
    """Before the blur a sample is 96 x 96 x 3 floats and what it draws; a rank on a CPU is told so."""
    said, profile, _ = diagnosed
    read, blur, resized = profile.stages
    assert [stage.name for stage in profile.stages] == ["read", "gaussian_blur", "resize"]
    assert read.device_s_per_sample is None and read.wire_bytes_per_sample is None
    assert 0.3 < blur.cpu_share < 1 and sum(stage.cpu_share for stage in profile.stages) <= 1 + 1e-6
    image = 96 * 96 * 3 * 4 + 8
    assert resized.wire_bytes_per_sample.value == image
    assert image < blur.wire_bytes_per_sample.value < image + 200
    where, alone = said["where"], {stage["name"]: stage for stage in said["stages_alone"]}
    assert set(where["seconds"]) == {"gaussian_blur", "resize"} and set(alone) == {"read", "gaussian_blur", "resize"}
    for stage in (blur, resized):
        there = where["seconds"][stage.name]
        assert min(there.values()) > 0 and there["expected"] == pytest.approx(there["alone"] * where["dearer"])
        assert stage.device_s_per_sample["CPU"].value == pytest.approx(there["expected"])
    assert where["shared"] and where["expected"] >= where["on_cpus"] > 0
    assert where["on_device"] or where["expected"] == where["on_cpus"]


def test_nothing_is_left_behind(diagnosed):
    _, _, folder = diagnosed
    assert sorted(p.name for p in (folder / "runs").rglob("*")) == ["digits.profile.json"]


@pytest.mark.process
def test_preprocessing_alone_takes_the_time_that_it_takes():
    def wait(image):
        time.sleep(0.01)
        return image

    opened = Pipeline(synthetic(64, shape=(2, 2, 3)), [wait], batch_size=4).open(0)
    found = preprocess(opened, sorted(os.sched_getaffinity(0))[:1] * 2, 1.0)
    assert len(found.wall_s) == len(found.cpu_s) == len(found.read_bytes) == 2 * PARTS
    assert 0.01 <= np.median(found.wall_s) < patient(0.2)
    assert np.median(found.cpu_s) < 0.005, "it only waits"
    assert found.memory_bytes > 20e6
    assert set(found.wire_bytes) == {2 * 2 * 3 * 4 + 8}, "the label too"


@pytest.mark.process
def test_the_cpu_time_of_processes_that_share_a_core_is_what_each_of_them_used():
    """20 ms of a CPU for each sample, which two on one core have after 40 ms at best."""

    def compute(image):
        began = time.thread_time()
        while time.thread_time() - began < 0.02:
            pass
        return image

    opened = Pipeline(synthetic(64, shape=(2, 2, 3)), [compute], batch_size=4).open(0)
    found = preprocess(opened, sorted(os.sched_getaffinity(0))[:1] * 2, 2.0)
    assert 0.02 <= np.median(found.cpu_s) < 0.026
    assert np.median(found.wall_s) > 1.5 * np.median(found.cpu_s)
    stages = {stage.name: stage for stage in found.stage_figures}
    assert 0.02 <= stages["compute"].cpu_s_per_sample < 0.026
    assert stages["compute"].wall_s_per_sample > 1.5 * stages["compute"].cpu_s_per_sample


@pytest.mark.process
def test_what_cannot_be_read_is_said(tmp_path, images):
    opened = Pipeline(image_folder(images / "train"), [decode(), resize(8)], batch_size=4).open(0)
    for path in (images / "train").rglob("*.jpg"):
        path.rename(path.with_suffix(".away"))
    try:
        with pytest.raises(DataError, match="cannot be read|No such file"):
            preprocess(opened, sorted(os.sched_getaffinity(0))[:1], 1.0)
    finally:
        for path in (images / "train").rglob("*.away"):
            path.rename(path.with_suffix(".jpg"))


@pytest.mark.process
def test_a_process_that_dies_is_noticed():
    def die(_image):
        os._exit(9)

    opened = Pipeline(synthetic(8, shape=(2, 2, 3)), [die], batch_size=4).open(0)
    with pytest.raises(DataError, match="a preprocessing process ended without an answer"):
        preprocess(opened, sorted(os.sched_getaffinity(0))[:1], 1.0)


def test_a_stage_that_no_sample_survives_is_said(monkeypatch):
    class Broken:
        def __init__(self, work):
            raise RuntimeError("no such thing")

    from queue import Queue

    monkeypatch.setattr(alone, "Producer", Broken)
    answers, barrier = Queue(), __import__("threading").Barrier(1)
    before = os.sched_getaffinity(0)
    try:
        alone._prepare(None, min(before), 0, 1, 1.0, barrier, answers)
    finally:
        os.sched_setaffinity(0, before)
    assert str(answers.get_nowait()) == "preprocessing failed: no such thing"


@pytest.mark.parametrize(
    ("rates", "lost", "for_cpus"),
    [
        ((10, 20, 100, None, 19, 0.85), 0.81, 0.80),  # the CPUs are short, and a little is lost
        ((10, 400, 100, None, 90, 0.10), 0.10, 0.00),  # nothing is short
        ((10, 400, 100, 100, 120, 0.10), 0.00, 0.00),  # noise
        ((10, 20, 100, None, 50, 0.85), 0.50, 0.50),  # more than the CPUs alone could do: never more than there is
        ((10, 20, 100, None, 19, 0.05), 0.81, 0.05),  # nor more than the ranks waited
    ],
)
def test_where_lost_time_goes(rates, lost, for_cpus):
    found = Findings(*rates, verdict=who_waits(rates[-1], [], []))
    assert found.lost_share == pytest.approx(lost)
    assert found.lost_for_cpus == pytest.approx(for_cpus)
    assert found.lost_for_cpus + found.lost_for_the_rest == pytest.approx(found.lost_share)


HELPS = {"decode": "store the images nearer to the size", "to_uint8": "leave it out"}


def findings(wait_share, device, gap_s=None, **changes):
    """Decoding is 3 of 4 ms of CPU time; a rank's steps take 7 s."""
    costs = {"num_samples": 1000, "num_batches": 10, "batch_wall_p90_s": 0.1, "batch_wall_p99_s": 0.2}
    stages = [
        StageFigures(name=n, cpu_s=s, wall_s=s, **costs) for n, s in (("read", 0.5), ("decode", 3.0), ("to_uint8", 0.5))
    ]
    ranks = [RankFigures(**figures(device=device, gap_s=gap_s, compute_s=7.0 - (gap_s or 0.0)))]
    verdict = who_waits(wait_share, ranks, stages)
    return Findings(250, 500, 1000, None, 370, wait_share, verdict, device == "cpu", tuple(stages), HELPS, **changes)


def test_a_diagnosis_says_who_waits_what_is_lost_and_what_helps():
    waits, lost, _, helps = diagnosis_lines(findings(0.6, "cuda:0"))
    assert waits.startswith("bottleneck: input: the ranks wait for data 60% of the time; stage 'decode' takes longest")
    assert lost == (
        "the whole does 63.0% less than the accelerators do alone: 50.0% because the CPUs cannot prepare more, 13.0% "
        "for the rest (moving, handing over, sharing cores)"
    )
    assert helps.startswith("decode is 75% of the CPU time. What helps: store the images nearer to the size")
    assert diagnosis_lines(findings(0.6, "cuda:0", warnings=("warning: beware",)))[-1] == "warning: beware"


def test_a_diagnosis_says_what_helps_against_gaps_between_kernels():
    waits, _, _, helps = diagnosis_lines(findings(0.03, "cuda:0", gap_s=2.0))
    assert waits.startswith(
        "bottleneck: compute: the ranks wait for data 3% of the time; the GPU idles between kernels"
    )
    assert helps.startswith("what helps against the GPU's idling between kernels: "), "and not that they are busy"
    gaps, stages = what_helps(findings(0.6, "cuda:0", gap_s=2.0))
    assert gaps == helps and stages.startswith("decode is 75%")


def test_what_the_ranks_do_alone_has_their_stages_on_the_device(record):
    """Two batches' worth of 640 samples took 1.28 s there, which the resident batch has behind it."""
    record.ranks[0].device_stage_s = {"gaussian_blur": 1.28, "validation/resize": 9.0}
    whole, resident = TimedRun(record, [0.5], None), TimedRun(record, [0.1, 0.2], 7.0)
    found = with_device_stages(resident, whole)
    assert (found.parts, found.memory_bytes) == (pytest.approx([0.102, 0.202]), 7.0)


def test_ranks_that_train_on_the_cpu_are_no_accelerators():
    """The run of which one command said that the ranks hardly wait, and the other that accelerators stand idle."""
    waits, lost, _, helps = diagnosis_lines(findings(0.03, "cpu"))
    assert waits.startswith("bottleneck: compute: the ranks wait for data 3% of the time")
    assert lost == (
        "the whole does 63.0% less than the ranks, which train on the CPU, do alone: 3.0% because the CPUs cannot "
        "prepare more, 60.0% for the rest (moving, handing over, sharing cores)"
    )
    assert helps.startswith("decode is 75%"), "cheaper stages leave more of the cores to the ranks"
    assert what_helps(findings(0.03, "cuda:0"))[0].startswith("what helps: the ranks are busy")


def test_a_diagnosis_is_shown_with_the_stages_shares():
    from money import profile

    for device, ranks in (("cpu", "ranks alone, on the CPU"), ("cuda:0", "accelerator alone, batches on the device")):
        console = Console(width=160, file=io.StringIO())
        kind = "CPU" if device == "cpu" else "A10G"
        measured = profile(
            accelerator_s_per_sample={kind: Figure.once(0.001)}, read_wait_s_per_sample=Figure.once(0.0005)
        )
        show_diagnosis(findings(0.6, device, device_stages={"gaussian_blur": 0.002}), measured, console)
        text = console.file.getvalue()
        assert ranks in text and "bottleneck: input" in text
        assert ("accelerator" in text) == (device == "cuda:0"), "there is no accelerator where there is none"
        assert "stages stay where they are: none that runs on CPUs can be moved to the device" in " ".join(text.split())
        cells = [line.replace("│", " ").split() for line in text.splitlines()]
        assert ["decode", "3.000", "75.0%", "3.000"] in cells and ["gaussian_blur", "2.000"] in cells
        assert "waiting for storage, a sample 0.500 ms 0.500 ms 0.500 ms" in [" ".join(row) for row in cells]


def test_how_long_it_takes_is_known_before():
    """Twice 3 s to start processes, twice 15 s to start a run and 3 s until it is warm, and four measurements; where
    stages may move another process, 1 s until that is warm, two fifths of a measurement alone and one beside."""
    assert duration_s(8.0) == 2 * 3 + 2 * (15 + 3) + 4 * 8
    assert duration_s(8.0, moving=True) == pytest.approx(duration_s(8.0) + 3 + 1 + 1.4 * 8)


@pytest.mark.parametrize("missing", ["data", "model"])
def test_a_job_with_code_of_its_own_cannot_be_diagnosed(job_tree, missing):
    del job_tree[missing]
    with pytest.raises(
        ConfigError, match="only a job with a `data` section, and a `model` section or `training.loop`, can be"
    ):
        diagnose(Job.from_dict(job_tree), catalog())


def test_a_batch_larger_than_the_data_is_refused(job_tree):
    job_tree["data"]["batch_size"] = 1000
    with pytest.raises(ConfigError, match="data.batch_size=1000 is larger than the training set"):
        diagnose(Job.from_dict(job_tree), catalog())


class Context:
    """Of one rank of two, with a clock of its own."""

    def __init__(self, world_size, batches):
        self.world_size, self.checkpoint_s, self.measured = world_size, 0.0, None
        self.batches = lambda split: iter(batches)
        self.device = __import__("torch").device("cpu")

    def sum_over_ranks(self, value):
        return [value]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_loop_ends_once_it_has_been_timed(monkeypatch, world_size):
    from raytrain.train.contract import StopTraining

    now = [0.0]
    monkeypatch.setattr(timed_loop.time, "perf_counter", lambda: now[0])
    batch = type("Batch", (), {"ids": np.arange(8)})
    ctx = Context(world_size, [batch, batch])
    timed = TimedContext(ctx, resident=True, part_s=1.0)
    assert list(timed.batches("validation")) == []
    seen = 0
    with pytest.raises(StopTraining):
        for _ in timed.batches():
            seen += 1
            now[0] += 0.25
    assert seen >= (timed_loop.WARM_UP_S + 5.0) / 0.25
    assert ctx.measured == {"parts": [pytest.approx(0.25 / 8)] * PARTS, "memory_bytes": None, "moved": None}


def test_a_run_that_ends_too_soon_is_said(monkeypatch, job_tree, record):
    monkeypatch.setattr("raytrain.run.driver.run", lambda *_, **__: record)
    job = Job.from_dict(job_tree)
    opened = Pipeline.from_config(job.data).open(0)
    with pytest.raises(ConfigError, match="the run was over before 11 s of it could be measured"):
        module._run(job, opened.pipeline, opened, "f", None, None, TimedLoop(resident=False, seconds=8.0))
