"""Whole runs: real Ray with several nodes, real images, real kills."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import psutil
import pytest
import torch
from conftest import ROOT, ray_processes, run_cli
from docs_lines import as_it_stands
from patience import patient, wait_for
from plan_model import consumed_ids

from raytrain.cluster.topology import Topology
from raytrain.errors import TrainingError
from raytrain.record.schema import RunRecord, read_record
from raytrain.run.folder import RunFolder
from raytrain.run.load import Samplers, here, machines
from raytrain.run.plan import RunOptions
from raytrain.train.checkpoints import checkpoint, shelf
from raytrain.train.trainer import _translate

TESTS = ROOT / "tests"


@pytest.fixture(autouse=True)
def no_ray_process_is_left():
    before = ray_processes()
    yield
    wait_for(lambda: not ray_processes() - before, 30, "all of Ray has ended", ray_processes, every_s=0.2)


@pytest.mark.both_ways(always=True)
@pytest.mark.ray
def test_a_job_trains_on_several_nodes_and_leaves_a_record(checkout):
    line = as_it_stands("raytrain train launch/digits.yaml --nodes train=1x1,cpu=2x1")
    changes = ("--set", "training.epochs=4", "--set", "data.batch_size=16")
    result = run_cli(*line, *changes, "--json", cwd=checkout)
    assert result.returncode == 0, result.stderr
    tree = json.loads(result.stdout)
    jsonschema.validate(tree, RunRecord.model_json_schema())
    record = read_record(checkout / "runs" / "digits" / "record.json")
    assert record == RunRecord.model_validate(tree)
    assert (record.status, record.error, record.world_size, record.cpu_slots) == ("finished", None, 1, 3)
    assert [host.group for host in record.hosts] == ["train", "cpu", "cpu"]
    assert sum(host.samples_prepared for host in record.hosts) == 4 * (120 + 30)
    assert sum(host.samples_prepared > 0 for host in record.hosts) >= 2, "CPU work is spread over the nodes"
    assert not record.torch_in_preprocessing_workers
    assert record.totals.samples == 4 * 120
    assert record.totals.bottleneck.startswith(f"{record.totals.limited_by}: ")
    losses, accuracies = ([each[name] for each in record.epochs] for name in ("loss", "validation_accuracy"))
    assert losses[-1] < losses[0] / 2 and max(accuracies) > 0.9, "batches come as they are ready: no run is the same"
    assert [stage.name for stage in record.stages][:4] == ["read", "decode", "random_crop", "resize"]
    assert all(stage.num_samples == 480 for stage in record.stages[:4])
    startup = record.startup
    marks = [startup.manifest_s, startup.cluster_s, startup.trainer_s, startup.first_batch_s, startup.first_step_s]
    assert marks == sorted(marks)
    assert startup.first_batch_ready_s < startup.first_step_s
    assert record.environment["MALLOC_TRIM_THRESHOLD_"]
    assert "Ray nodes: 3, CPUs for the stages: 3, ranks: 1 (CPU)" in result.stderr
    assert samples_of(record.progress) == pytest.approx(480, rel=0.01)
    assert [(load.host, load.group) for load in record.loads] == [("this machine", None)]
    for text in ("Who waited for whom", "What the CPU stages cost", "Where samples were prepared", "epoch 4/4"):
        assert text in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.both_ways(always=True)
@pytest.mark.ray
def test_emulated_gpus_make_ranks_that_train_together(checkout):
    line = as_it_stands("raytrain train launch/digits.yaml --nodes gpu=1x2x2,cpu=1x2")
    changes = ("data.batch_size=16", "training.epochs=2", "training.accumulate=2", "training.precision=bf16")
    result = run_cli(*line, *(word for change in changes for word in ("--set", change)), cwd=checkout)
    assert result.returncode == 0, result.stderr
    record = read_record(checkout / "runs" / "digits" / "record.json")
    assert (record.world_size, record.emulated_gpus) == (2, True)
    assert [rank.num_samples for rank in record.ranks] == [120, 120]
    assert [rank.num_batches for rank in record.ranks] == [8, 8]
    facts, state = checkpoint.load(Path(record.checkpoint))
    assert (facts.epoch, facts.steps, facts.updates, facts.samples, facts.world_size) == (2, 8, 4, 240, 2)
    assert len(state["rng"]) == 2


@pytest.mark.both_ways
@pytest.mark.ray
def test_steps_fp16_and_a_placement(job_file, tmp_path):
    job = job_file(training={"steps": 11, "precision": "fp16"}, cluster={"placement": "cpu-groups-only"})
    result = run_cli("train", job, "--nodes", "train=1x1,cpu=1x1")
    assert result.returncode == 0, result.stderr
    record = read_record(tmp_path / "runs" / "small" / "record.json")
    assert record.ranks[0].num_batches == 11
    facts = shelf.read_facts(Path(record.checkpoint))
    assert (facts.epoch, facts.consumed_in_epoch) == (1, 48), "`steps` ended the second epoch half-way"
    more = run_cli("train", job, "--nodes", "train=1x1,cpu=1x1", "--resume", "--set", "training.steps=16")
    assert more.returncode == 0, more.stderr
    assert "; going on after step 11, in epoch 2" in more.stderr + more.stdout
    second = read_record(tmp_path / "runs" / "small" / "record.json")
    assert (second.totals.samples, second.ranks[0].num_batches) == (72, 5), "the rest of that epoch"
    assert {host.group: host.samples_prepared > 0 for host in record.hosts} == {"train": False, "cpu": True}


def run(command, cwd=ROOT):
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=patient(200))


def counting(images, runs, nodes, *more):
    return [sys.executable, str(TESTS / "counting_job.py"), str(images / "train"), str(runs), nodes, *more]


def trace(runs) -> list[dict]:
    path = runs / "trace.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def steps_of(lines):
    return [line for line in lines if line["event"] == "step"]


def until_step(step, runs, driver):
    """Wait until a counting job has done so many steps."""

    def done():
        assert driver.poll() is None, "the run ended by itself"
        return any(line["steps"] >= step for line in steps_of(trace(runs)))

    wait_for(done, 120, f"step {step} is done", lambda: trace(runs)[-1:])


def ids_of(lines, epoch):
    return Counter(i for line in lines if line["epoch"] == epoch for i in line["ids"])


def samples_of(progress) -> float:
    """What a reader of the timeline adds up to."""
    times = [0.0, *progress.at_s]
    return sum(rate * (b - a) for rate, a, b in zip(progress.samples_per_s, times, times[1:], strict=False))


def descendants(driver, name) -> list[psutil.Process]:
    """Processes below the driver whose title starts with `name`."""
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(name):
                found.append(process)
    return found


EVERY_ID_ONCE = Counter(range(120))


@pytest.mark.both_ways
@pytest.mark.ray
def test_a_killed_driver_loses_and_doubles_no_sample_on_another_cluster_shape(images, tmp_path):
    """kill -9 with two ranks in mid-epoch, resumed with one."""
    driver = subprocess.Popen(counting(images, tmp_path, "gpu=1x1x2,cpu=1x1"), cwd=ROOT, start_new_session=True)
    until_step(12, tmp_path, driver)  # epoch 1 has steps 9 to 16
    checkpoints = tmp_path / "counting" / "checkpoints"
    wait_for(lambda: any(facts.steps > 8 for _, facts in shelf.whole(checkpoints)), 10, "that of step 11 is on disk")
    driver.kill()
    driver.wait()
    wait_for(lambda: not ray_processes(), 60, "all of Ray has ended", ray_processes, every_s=0.2)
    first = steps_of(trace(tmp_path))
    latest = shelf.latest(checkpoints)
    facts, state = checkpoint.load(latest)  # now: the run that goes on from it keeps only its own last ones

    resumed = run(counting(images, tmp_path, "train=1x2", "--resume"))
    assert resumed.returncode == 0, resumed.stderr
    second = steps_of(trace(tmp_path))[len(first) :]
    record = read_record(tmp_path / "counting" / "record.json")
    assert record.resumed_from == str(latest)
    assert facts.epoch == 1
    assert 8 < facts.steps < 16
    ledger = consumed_ids(state["consumed"].numpy())

    counted = [line for line in first if line["steps"] <= facts.steps]
    assert ids_of(counted, 0) == EVERY_ID_ONCE
    assert ids_of(counted, 1) == Counter(ledger), "the ledger is what the loops saw"
    assert 0 < len(ledger) < 120
    assert ids_of(counted, 1) + ids_of(second, 1) == EVERY_ID_ONCE
    assert ids_of(second, 2) == EVERY_ID_ONCE
    assert {line["rank"] for line in first} == {0, 1}
    assert {line["rank"] for line in second} == {0}


@pytest.mark.both_ways
@pytest.mark.ray
def test_a_killed_rank_comes_back_and_every_sample_counts_once(images, tmp_path):
    (tmp_path / "die").touch()
    result = run(counting(images, tmp_path, "gpu=1x1x2,cpu=1x1"))
    assert result.returncode == 0, result.stderr
    lines = trace(tmp_path)
    begins = [number for number, line in enumerate(lines) if line["event"] == "begin" and line["steps"] > 0]
    assert len(begins) == 2, "both ranks were started again, from a checkpoint"
    restored = lines[begins[0]]["steps"]
    again = {lines[number]["pid"] for number in begins}
    counted = [line for line in steps_of(lines) if line["pid"] in again or line["steps"] <= restored]
    for epoch in range(3):
        assert ids_of(counted, epoch) == EVERY_ID_ONCE
    record = read_record(tmp_path / "counting" / "record.json")
    assert record.totals.attempts == 2
    trained = sum(len(line["ids"]) for line in steps_of(lines))
    assert 0.7 * trained < samples_of(record.progress) < 1.01 * trained, "both attempts are in the timeline"
    [load], [timeline] = record.loads, record.timelines  # the nodes are emulated: one machine
    assert (load.host, load.group, timeline.host) == ("this machine", None, "this machine")
    assert 10 < load.cpu_percent.mean <= load.cpu_percent.max < 100 * psutil.cpu_count() + 5
    assert load.gpu_percent is None or record.hardware.gpus
    seconds = timeline.at_s[-1] - timeline.at_s[0]
    assert seconds > 3 and 0.8 * seconds - 1 < len(timeline.at_s) <= seconds + 2, "a row a second"
    assert record.startup.trainer_s < timeline.at_s[0] < timeline.at_s[-1] < record.totals.wall_s
    assert "How busy the hosts were" in result.stderr


@pytest.mark.both_ways
@pytest.mark.ray
def test_ctrl_c_ends_soon_and_the_run_can_go_on(images, tmp_path):
    command = counting(images, tmp_path, "train=1x1,cpu=1x1")
    driver = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True)
    until_step(5, tmp_path, driver)
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
    driver.communicate(timeout=patient(30))
    assert ray_processes() == set()
    record = read_record(tmp_path / "counting" / "record.json")
    assert record.status == "stopped"
    facts = shelf.read_facts(Path(record.checkpoint))
    seen = steps_of(trace(tmp_path))
    assert facts.steps == seen[-1]["steps"], "the checkpoint holds everything that was done"
    assert facts.consumed_in_epoch == sum(len(line["ids"]) for line in seen)

    resumed = run([*command, "--resume"])
    assert resumed.returncode == 0, resumed.stderr
    for epoch in range(3):
        assert ids_of(steps_of(trace(tmp_path)), epoch) == EVERY_ID_ONCE


@pytest.mark.ray
def test_sigterm_through_the_command_line_is_exit_code_143(job_file, tmp_path):
    job = job_file(training={"epochs": 2000, "checkpoint": {"every_steps": 50}})
    command = [sys.executable, "-m", "raytrain", "train", str(job), "--nodes", "gpu=1x1x2,cpu=1x1"]
    driver = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    checkpoints = tmp_path / "runs" / "small" / "checkpoints"
    wait_for(lambda: list(checkpoints.glob("*/checkpoint_*")), 120, "a checkpoint is written")
    samplers = wait_for(lambda: descendants(driver, "ray::Sampler"), 60, "a sampler is started")
    samplers[0].kill()
    psutil.wait_procs(samplers, timeout=patient(10))
    at_the_kill = shelf.latest(checkpoints)
    wait_for(lambda: shelf.latest(checkpoints) != at_the_kill, 60, "another checkpoint: the run does not miss it")
    assert driver.poll() is None
    assert not descendants(driver, "ray::Sampler"), "it is not started again"
    driver.terminate()
    _, errors = driver.communicate(timeout=patient(30))
    assert driver.returncode == 143, errors
    assert "stopped; go on with --resume" in errors
    assert "Traceback" not in errors
    assert [load.host for load in read_record(tmp_path / "runs" / "small" / "record.json").loads] == ["this machine"]


@pytest.mark.ray
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_all_processes_while_ray_starts_ends_at_once(job_file, number, code):
    """As from a terminal, or from `timeout`."""
    command = [sys.executable, "-m", "raytrain", "train", str(job_file()), "--nodes", "train=1x1,cpu=1x1"]
    driver = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True)
    groups = [os.getpgid(pid) for pid in wait_for(ray_processes, 60, "Ray starts")]
    assert driver.pid not in groups, "the signal must not reach Ray itself"
    os.killpg(driver.pid, number)
    _, errors = driver.communicate(timeout=patient(30))
    assert driver.returncode == code, errors
    assert errors.strip().splitlines()[-1] == "raytrain: stopped before training began"
    assert "Traceback" not in errors


@pytest.mark.both_ways
@pytest.mark.ray
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_does_not_wait_for_a_step_that_never_ends(images, tmp_path, times):
    script = tmp_path / "endless.py"
    script.write_text(
        "import sys, time\nfrom raytrain import Job, Pipeline, fit\n"
        "from raytrain.data import decode, image_folder\n"
        "def loop(ctx):\n    for _ in ctx.epochs():\n        for batch in ctx.batches():\n"
        "            open(MARK, 'w').close()\n            time.sleep(600)\n"
        f"MARK = {str(tmp_path / 'in_step')!r}\n"
        "fit(loop, Pipeline(image_folder(sys.argv[1]), [decode()], batch_size=8),\n"
        "    Job.from_dict({'name': 'endless', 'training': {'epochs': 1}}), nodes='train=1x1')\n"
    )
    command = [sys.executable, str(script), str(images / "train")]
    environment = {**os.environ, "RAYTRAIN_STOP_GRACE_S": "6" if times == 1 else "120"}
    driver = subprocess.Popen(
        command, cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE, text=True, env=environment
    )
    wait_for((tmp_path / "in_step").exists, 120, "a step begins")
    for number in range(times):
        if number:
            time.sleep(patient(0.7))  # or the two would be one
        os.killpg(driver.pid, signal.SIGINT)
    stopped = time.monotonic()
    _, errors = driver.communicate(timeout=patient(30))
    assert time.monotonic() - stopped < patient(15)
    assert driver.returncode != 0
    assert "Traceback" not in errors
    message = "raytrain: stopped before the first checkpoint; there is nothing to resume"
    assert (message if times == 1 else "stopped at once, without waiting for a checkpoint") in errors
    assert read_record(tmp_path / "runs" / "endless" / "record.json").status == "stopped"


@pytest.mark.parametrize(("word", "told"), [("--resume", "--resume"), ("resume=True", "fit(..., resume=True)")])
def test_a_stop_says_how_to_go_on_to_whoever_started_the_run(word, told):
    options = RunOptions(job=None, started_at=0.0, environment={}, folder=RunFolder(Path("/runs/a")), resume_word=word)
    said = f"stopped; go on with {told} (checkpoints in /runs/a/checkpoints)"
    assert options.stopped_message(Path("/x")) == said


def test_a_module_that_a_rank_lacks_is_to_be_installed():
    error = SimpleNamespace(worker_failures={0: SimpleNamespace(_base_exc=ImportError("a\nNo module named 'mine'"))})
    said = str(_translate(error))
    assert said.startswith(
        "the training loop failed: ImportError: No module named 'mine'; it must be installed on every"
    )


def test_a_notebook_shows_a_message_and_its_notes():
    error = TrainingError("the loop failed")
    error.add_note("on the rank: x")
    assert error._render_traceback_() == ["TrainingError: the loop failed\non the rank: x"]


@pytest.mark.ray
def test_the_readmes_own_loop_runs_as_it_stands(images, tmp_path):
    text = (ROOT / "README.md").read_text()
    block = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    example = (ROOT / "examples" / "own_everything.py").read_text()
    assert block == example, "README and examples/ hold the same text"
    assert len([line for line in block.splitlines() if line.strip()]) < 40
    script = tmp_path / "own.py"
    script.write_text(block)
    result = run([sys.executable, str(script), str(images / "train")], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    record = read_record(tmp_path / "runs" / "own" / "record.json")
    assert record.totals.samples == 240
    assert "speckle" in [stage.name for stage in record.stages]


@pytest.mark.both_ways
@pytest.mark.ray
def test_corrupt_images_are_skipped_counted_and_listed(job_file, images, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(images / "train", folder)
    (folder / "dark" / "003.jpg").write_bytes(b"broken")
    result = run_cli("train", job_file(data__train__path=str(folder)), "--nodes", "train=1x2")
    assert result.returncode == 0, result.stderr
    record = read_record(tmp_path / "runs" / "small" / "record.json")
    assert (record.corrupt.train, record.corrupt.validation) == (1, 0)
    assert record.corrupt.listed == [f"train: {folder}/dark/003.jpg: ValueError: not a decodable image"]
    assert record.totals.samples == 2 * 119
    assert "could not be prepared: 1 of 120 training samples (0.83%); the record names them" in result.stderr


@pytest.mark.ray
def test_too_many_corrupt_images_stop_the_run_and_are_named(job_file, images, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(images / "train", folder)
    for number in range(5):
        (folder / "dark" / f"{number:03d}.jpg").write_bytes(b"broken")
    result = run_cli("train", job_file(data__train__path=str(folder)), "--nodes", "train=1x2")
    assert result.returncode == 2, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert re.match(
        r"raytrain: [2-5] of 120 train samples \([\d.]+%\) could not be prepared; "
        r"data.max_corrupt_share: 0.01 allows 1 of them: "
        r".*/dark/00\d.jpg \(ValueError: not a decodable image\)",
        last,
    ), last
    assert read_record(tmp_path / "runs" / "small" / "record.json").status == "failed"


@pytest.mark.both_ways
@pytest.mark.ray
def test_an_error_in_the_users_loop_is_told_once_and_not_tried_again(images, tmp_path):
    script = tmp_path / "bug.py"
    script.write_text(
        "import sys\nfrom raytrain import Job, Pipeline, fit\nfrom raytrain.data import decode, image_folder\n"
        "def loop(ctx):\n    print('hello from the loop')\n    undefined_name\n"
        "fit(loop, Pipeline(image_folder(sys.argv[1]), [decode()], batch_size=8),\n"
        "    Job.from_dict({'name': 'bug', 'training': {'epochs': 1}}))\n"
    )
    result = run([sys.executable, str(script), str(images / "train")], cwd=tmp_path)
    assert result.returncode == 1
    assert result.stdout.count("hello from the loop") == 1
    record = read_record(tmp_path / "runs" / "bug" / "record.json")
    assert record.status == "failed"
    assert re.match(r"the training loop failed in .*bug.py:6: NameError: name 'undefined_name' is not", record.error)


@pytest.mark.both_ways
@pytest.mark.ray
def test_attaching_to_a_running_cluster_leaves_it_running(job_file, tmp_path):
    from raytrain.cluster import local
    from raytrain.config.cluster import parse_nodes

    cluster = local.start(parse_nodes("train=1x1,cpu=1x1"))
    try:
        result = run_cli("train", job_file(), "--address", cluster.address)
        assert result.returncode == 0, result.stderr
        record = read_record(tmp_path / "runs" / "small" / "record.json")
        assert record.cluster_attached
        assert len(record.hosts) == 2
        import ray

        assert ray.get(ray.remote(num_cpus=1)(lambda: 1 + 1).remote(), timeout=patient(60)) == 2
        check_samplers(cluster.topology)
    finally:
        cluster.close()


def check_samplers(topology):
    """One on every node, of which one has gone before its sampler started, and one sampler is killed."""
    import ray

    hosts = [replace(host, emulated=False, address=f"10.0.0.{n}") for n, host in enumerate(topology.hosts)]
    gone = replace(hosts[0], name="gone", address="10.0.0.9", node_id="f" * 56)
    samplers = Samplers(machines(Topology((*hosts, gone)), attached=True))
    samplers.look(training_began=False)
    assert samplers.timelines == {}, "nobody trains yet"
    began = time.monotonic()
    samplers.look(training_began=True)
    assert time.monotonic() - began < patient(1), "nobody waits for them"
    wait_for(
        lambda: samplers.look(training_began=True) or len(samplers._heard) == 2,
        60,
        "both answer",
        lambda: samplers._heard,
    )

    def rows() -> list[int]:
        began = time.monotonic()
        samplers.collect(timeout_s=patient(60))
        assert time.monotonic() - began < patient(30), "nor for one that never came"
        return sorted(len(timeline.rows) for timeline in samplers.timelines.values())

    wait_for(lambda: rows()[1] >= 2, 30, "each has two rows", rows, every_s=0.5)
    found = {machine.name: machine for machine in samplers.timelines}
    counts = {name: len(samplers.timelines[machine].rows) for name, machine in found.items()}
    assert counts.pop("gone") == 0
    assert set(counts) == {host.name for host in hosts} and min(counts.values()) >= 2
    ask = [samplers._actors[found[name]].__ray_call__.remote(lambda _: here()["ray.io/node-id"]) for name in counts]
    nodes = dict(zip(counts, ray.get(ask, timeout=patient(30)), strict=True))
    assert nodes == {host.name: host.node_id for host in hosts}
    ray.kill(samplers._actors[found[hosts[1].name]])
    wait_for(lambda: rows() and len(samplers.timelines[found[hosts[0].name]].rows) > counts[hosts[0].name], 30, "more")
    assert len(samplers.timelines[found[hosts[1].name]].rows) >= counts[hosts[1].name], "what it had said remains"


@pytest.mark.ray
def test_a_checkpoint_that_does_not_fit_is_refused(job_file, images, tmp_path):
    assert run_cli("train", job_file(training__epochs=1), "--nodes", "train=1x2").returncode == 0
    for changes, message in (
        ({"seed": 3}, "was written with seed 0, not 3; start without --resume"),
        ({"data__train__path": str(images / "validation")}, "was written for other training data"),
        ({"model__options__embed_dim": 32}, "the checkpoint does not fit this VisionTransformer"),
    ):
        result = run_cli("train", job_file(**changes), "--nodes", "train=1x2", "--resume")
        assert result.returncode == 2, result.stderr
        assert message in result.stderr
    finished = run_cli("train", job_file(training__epochs=1), "--nodes", "train=1x2", "--resume")
    assert finished.returncode == 2
    assert "is finished; raise training.epochs or training.steps to go on" in finished.stderr
    records = sorted((tmp_path / "runs" / "small").glob("record*.json"))
    assert [read_record(path).status for path in records] == ["finished", "failed"], "the earlier record is kept"
    assert run_cli("train", job_file(data__train__path="/nowhere")).returncode == 2
    assert (tmp_path / "runs" / "small" / "record.json").exists(), "a run that cannot start moves nothing away"
    for path in (tmp_path / "runs").glob("small/checkpoints/*/*/state.pt"):
        path.write_bytes(b"")
    result = run_cli("train", job_file(), "--nodes", "train=1x2", "--resume")
    assert result.returncode == 2
    assert "has no whole checkpoint to resume from" in result.stderr


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"data__train__path": "/nowhere"}, [], r"/nowhere does not exist; check the path"),
        ({"data__batch_size": 121}, [], r"data.batch_size=121 is larger than the training set of 120 samples"),
        ({"model__name": "resnet5O"}, [], r"timm has no model 'resnet5O'; did you mean 'resnet50'"),
        ({"model": None}, [], r"the job has no `model` section"),
        ({"data": None}, [], r"the job has no `data` section"),
        ({"data__stages": ["decod"]}, [], r"unknown stage 'decod'; did you mean 'decode'"),
        ({}, ["--set", "training.epochs=0"], r"training.epochs must be greater than 0 \(given: 0\)"),
        ({}, ["--set", "training.epoch=1"], r"unknown key 'training.epoch'; did you mean 'epochs'"),
        ({}, ["--nodes", "gpu=x"], r"--nodes 'gpu=x' must look like"),
        ({}, ["--nodes", "a=1x1", "--address", "auto"], r"give one of them"),
        ({}, ["--resume"], r"has no checkpoint to resume from"),
        ({}, ["--address", "127.0.0.1:1"], r"cannot attach to the Ray cluster at 127.0.0.1:1: .*refused"),
        ({}, ["--address", "ray://x:1"], r"--address 'ray://x:1' must be auto or HOST:PORT"),
        ({}, ["--address", "auto"], r"--address auto: no Ray cluster runs on this machine"),
        ({"cluster__reserved_cpus": 2}, ["--nodes", "a=1x2"], r"reserved_cpus=2 leaves nothing"),
        pytest.param(
            {"data__batch_size": 64},
            ["--nodes", "gpu=1x1x2"],
            r"a step of 2 ranks x data.batch_size=64 is larger than",
            marks=pytest.mark.ray,
        ),
        pytest.param(
            {"cluster__placement": "cpu-groups-only"},
            ["--nodes", "a=1x1"],
            r"every host belongs to the training group",
            marks=pytest.mark.ray,
        ),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(cli, job_file, tmp_path, monkeypatch, changes, options, message):
    # what others run on this machine is not found; Ray remembers a cluster that has ended
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", functools.cache(set))
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda _: "127.0.0.1:1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    result = cli("train", job_file(**changes), *options)
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("raytrain: ")
    assert re.search(message, last), last
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists(), "nor does it leave a folder"


@pytest.mark.ray
def test_the_same_seed_trains_the_same_model(job_file, tmp_path):
    states = []
    for number in range(2):
        job = job_file(name=f"run{number}", data__batches_per_task=2)
        assert run_cli("train", job, "--nodes", "train=1x1").returncode == 0
        record = read_record(tmp_path / "runs" / f"run{number}" / "record.json")
        states.append(checkpoint.load_object(Path(record.checkpoint), 0))
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])
