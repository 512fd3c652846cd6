"""Every way in which a job ends: the same on all hosts, in time, with nothing left."""

from __future__ import annotations

import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from patience import patient, wait_for
from simulated_job import GONE_WITHIN_S, ONE, STUBBORN, THREE, TOKEN, TWO, Job, on_simulated_hosts

from raytrain.record.schema import read_record

pytestmark = on_simulated_hosts


@pytest.mark.parametrize(
    ("program", "status", "failure"),
    [
        ("import sys; print('to the end', file=sys.stderr); sys.exit(3)", 3, "to the end"),
        ("raise ValueError('no such thing')", 1, "ValueError: no such thing"),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            137,
            "program.py was ended by SIGKILL (often: out of memory)",
        ),
    ],
    ids=["exit-3", "exception", "sigkill"],
)
def test_the_programs_end_is_the_jobs_on_every_host(job, program, status, failure):
    started = job(TWO)
    started.write("program.py", program)
    started.start("--", "program.py")
    started.check({"algo-1": status, "algo-2": status}, failure)


CHECKPOINTING = """
import signal, sys, time, pathlib
def save(*_):
    time.sleep(0.5)
    pathlib.Path("/opt/ml/checkpoint").write_text("saved")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("READY", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("hit", [["algo-1"], ["algo-2"], ["algo-2", "algo-1"]], ids=["head", "another", "all"])
def test_sigterm_lets_the_program_write_its_checkpoint_and_is_no_success(job, hit):
    started = job(TWO)
    started.write("program.py", CHECKPOINTING)
    started.start("--", "program.py")
    started.until("algo-1", "READY")
    began = time.monotonic()
    for name in hit:
        started.hosts[name].signal(signal.SIGTERM)
        if name == "algo-2":
            started.until("algo-1", "algo-2 (cpu, ml.c5.4xlarge) was asked to stop")
    assert started.wait() == {"algo-1": 143, "algo-2": 143}, started.outputs
    assert time.monotonic() - began < patient(GONE_WITHIN_S)
    assert (started.hosts["algo-1"].ml / "checkpoint").read_text() == "saved"
    for host in started.hosts.hosts.values():
        told = re.fullmatch(r"stopped by SIGTERM; program.py ended with exit code 0 after (\d+\.\d) s", host.failure)
        assert 0.5 <= float(told[1]) < patient(GONE_WITHIN_S)


def test_sigterm_on_all_hosts_of_a_program_that_does_not_listen(job):
    started = job(TWO)
    started.write("program.py", STUBBORN)
    started.start("--grace", "3", "--", "program.py", watch=False)  # each bootstrap is PID 1, as in a container
    started.until("algo-1", "READY")
    began = time.monotonic()
    for host in started.hosts.hosts.values():
        host.signal(signal.SIGTERM)
    started.check(
        {"algo-1": 143, "algo-2": 143},
        "stopped by SIGTERM; program.py did not end within its 3 s of grace and was killed",
    )
    assert 3 <= time.monotonic() - began < 3 + patient(GONE_WITHIN_S)


def test_sigterm_before_the_program_starts(job):
    started = job(TWO)
    started.write("program.py", "print('RUNS')")
    started.start("--", "program.py", names=["algo-1"])
    started.until("algo-1", "Ray runs here")
    started.hosts["algo-1"].signal(signal.SIGTERM)
    assert started.wait() == {"algo-1": 143}
    assert started.hosts["algo-1"].failure == "stopped by SIGTERM before the program started"
    assert "RUNS" not in started.outputs


@pytest.mark.parametrize("how", ["killed", "unplugged"])
def test_the_others_leave_when_the_head_vanishes(job, how):
    started = job(TWO)
    started.write("program.py", STUBBORN)
    started.start("--", "program.py")
    started.until("algo-1", "READY")
    began = time.monotonic()
    if how == "killed":
        started.hosts["algo-1"].kill()
    else:
        started.hosts.unplug("algo-1")
        gone = started.hosts["algo-2"].process.poll
        wait_for(lambda: gone() is not None, 40, "algo-2 gives the head up", lambda: started.outputs)
        assert time.monotonic() - began > 10
        started.until("algo-1", "lost algo-2 (cpu, ml.c5.4xlarge): ")
        started.check_lost("algo-1", "algo-2 (cpu, ml.c5.4xlarge)", "its bootstrap is gone")
        started.hosts["algo-1"].kill()
    assert started.wait() == {"algo-1": 137, "algo-2": 1}, started.outputs
    assert started.hosts["algo-2"].failure == "the head algo-1 (gpu, ml.g5.xlarge) is gone"
    assert started.hosts["algo-2"].left_behind == []
    assert time.monotonic() - began < patient(60)


# the host's first process and this shell
UNTIL_ALONE = "for _ in $(seq 600); do set -- /proc/[0-9]*; [ $# -le 2 ] && break; sleep 0.1; done"


def test_a_killed_bootstrap_leaves_no_process(job):
    started = job(TWO)
    started.write("program.py", STUBBORN)
    words = f"{sys.executable} -m raytrain bootstrap -- program.py; {UNTIL_ALONE}"
    started.hosts.start("algo-1", ["bash", "-c", words], {"RAY_AUTH_TOKEN": TOKEN}, watch=True)
    started.start("--", "program.py", names=["algo-2"])
    started.until("algo-1", "READY")
    bootstrap = started.hosts["algo-1"].init().children()[0].children()[0]
    assert "bootstrap" in bootstrap.cmdline()
    bootstrap.kill()
    statuses = started.wait()
    assert statuses["algo-2"] == 1, started.outputs


SURVIVOR = """
import ray, time
ray.init(logging_level="warning", log_to_driver=False)

@ray.remote(num_cpus=1, max_retries=-1)
def work(number):
    time.sleep(1)
    return number

first = [work.remote(n) for n in range(12)]
print("READY", flush=True)
assert sorted(ray.get(first)) == list(range(12))
print("ALL DONE")
"""


def test_a_worker_killed_in_mid_run_is_left_to_ray(job):
    started = job(THREE)
    started.write("program.py", SURVIVOR)
    started.start("--", "program.py")
    started.until("algo-2", "READY")
    started.hosts["algo-3"].kill()
    assert started.wait() == {"algo-1": 0, "algo-2": 0, "algo-3": 137}, started.outputs
    started.check_lost("algo-2", "algo-3 (cpu, ml.c5.4xlarge)", "its bootstrap is gone")
    assert "ALL DONE" in started.head_log("algo-2")


def test_a_raylet_that_dies_is_reported_and_its_host_stays(job):
    started = job(THREE)
    started.write("program.py", SURVIVOR)
    started.start("--", "program.py")
    started.until("algo-2", "READY")
    below = started.hosts["algo-3"].init().children(recursive=True)
    next(process for process in below if process.name() == "raylet").kill()
    assert started.wait() == {"algo-1": 0, "algo-2": 0, "algo-3": 0}, started.outputs
    assert "Ray ended here: Ray's raylet ended with code -9" in started.hosts["algo-3"].output
    started.check_lost("algo-2", "algo-3 (cpu, ml.c5.4xlarge)", "Ray's raylet ended with code -9")


UNTIL_TOLD = "import os, time; print('READY', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.05)"


@pytest.mark.parametrize(("process", "vital"), [("gcs_server", True), ("log_monitor", False)])
def test_the_heads_ray_processes_are_watched(job, process, vital):
    started = job(TWO)
    started.write("program.py", STUBBORN if vital else UNTIL_TOLD)
    started.start("--grace", "1", "--", "program.py")
    started.until("algo-1", "READY")
    below = started.hosts["algo-1"].init().children(recursive=True)
    next(found for found in below if process in " ".join(found.cmdline())).kill()
    started.until("algo-1", f"Ray's {process} ended with code -9")
    started.write("go", "")
    failure = "Ray ended on the head: Ray's gcs_server ended with code -9" if vital else None
    started.check({"algo-1": int(vital), "algo-2": int(vital)}, failure)


def training_job(job_tree, started: Job, images: Path, **training: object) -> None:
    """`source_dir` and a small training job, as SageMaker would put them on every host."""
    job_tree["run_dir"] = "/opt/ml/checkpoints"
    for split in ("train", "validation"):
        job_tree["data"][split]["path"] = f"/opt/ml/input/data/images/{split}"
    job_tree["training"] |= training
    started.write("job.yaml", yaml.safe_dump(job_tree))
    for name in ("train.py", "requirements.txt"):
        started.write(name, (ROOT / "source_dir" / name).read_text())
    for host in started.hosts.hosts.values():
        shutil.copytree(images, host.ml / "input/data/images")


COORDINATED = {"head": ("ml.t3.large", ["algo-1"]), "work": ("ml.g5.xlarge", ["algo-2"])}
COORDINATOR = ("--head-group", "head", "--head-cpus", "0", "--head-gpus", "0")  # all work is the other host's

MINE = """
import numpy as np
from beside import here

def mark(image):
    return np.full_like(image, here())

def net(num_classes):
    import torch
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8 * 8 * 3, num_classes))

def train(ctx):
    import torch
    model = net(ctx.num_classes)
    model, optimizer = ctx.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for _ in ctx.epochs():
        marks = set()
        for batch in ctx.batches("train"):
            marks |= set(batch.image.flatten().tolist())
            loss = torch.nn.functional.cross_entropy(model(batch.image), batch.label)
            (loss * batch.weight).backward()
            optimizer.step()
            optimizer.zero_grad()
            ctx.report(loss)
        [prepared] = marks
        ctx.log(prepared_on=prepared, trained_on=here())
"""
BESIDE = """
import os, socket

def here():
    \"\"\"The number of this host, and 100 more where this file lies.\"\"\"
    return int(socket.gethostname()[-1]) + 100 * os.path.exists(__file__)
"""
OWN_JOB = """
name: own
run_dir: /opt/ml/checkpoints
data:
  train: {kind: synthetic, num_samples: 48, shape: [8, 8, 3], num_classes: 3}
  stages: ["mine:mark"]
  batch_size: 16
training: {loop: "mine:train", epochs: 2}
"""


def test_source_dir_trains_with_modules_that_only_the_head_has(job):
    """Stage, loop and model, and what they import, run on a host that has no such folder, as the head's is its own."""
    started = job(COORDINATED)
    started.write("train.py", (ROOT / "source_dir/train.py").read_text())
    for name, text in {"mine.py": MINE, "beside.py": BESIDE, "job.yaml": OWN_JOB}.items():
        path = started.hosts["algo-1"].ml / "code/jobs" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    started.start(*COORDINATOR, "--", "train.py", "jobs/job.yaml")
    started.check({"algo-1": 0, "algo-2": 0}, failure=None)
    record = read_record(started.hosts["algo-1"].ml / "checkpoints/own/record.json")
    assert [(epoch["prepared_on"], epoch["trained_on"]) for epoch in record.epochs] == [(2.0, 2.0)] * 2
    assert {host.name: host.samples_prepared for host in record.hosts} == {"algo-1": 0, "algo-2": 2 * 48}
    assert (record.status, record.totals.samples) == ("finished", 2 * 48)


@pytest.mark.parametrize("how", ["killed", "unplugged"])
def test_a_lost_training_rank_ends_the_job(job, job_tree, images, how):
    started = job(COORDINATED)
    training_job(job_tree, started, images, epochs=10_000)
    started.start(*COORDINATOR, "--grace", "12", "--", "train.py", "job.yaml")
    started.until("algo-1", "step", timeout_s=120)
    time.sleep(patient(2))  # the head looks every second where the ranks are, and says nothing about it
    if how == "killed":
        started.hosts["algo-2"].kill()
    else:
        started.hosts.unplug("algo-2")
    expected = {"algo-1": 1, "algo-2": 137 if how == "killed" else 1}
    assert started.wait(100) == expected, started.outputs
    assert "algo-2 (work, ml.g5.xlarge) was lost and with it a training rank" in started.hosts["algo-1"].failure


def test_bash_programs_run_live_and_hear_sigterm(job):
    started = job(TWO)
    script = """
    echo FIRST, $RAYTRAIN_STOP_GRACE_S s of grace
    until [ -e go ]; do sleep 0.05; done
    python3 - <<'PROGRAM'
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit("the checkpoint is written"))
print("READY", flush=True)
time.sleep(600)
PROGRAM
    """
    started.write("program.sh", script)
    started.start("--", "program.sh")
    started.until("algo-1", "FIRST")
    assert "READY" not in started.head_log("algo-1")  # as it comes
    assert "FIRST, 100 s of grace" in started.head_log("algo-1")
    started.write("go", "")
    started.until("algo-1", "READY")
    started.hosts["algo-1"].signal(signal.SIGTERM)
    assert started.wait() == {"algo-1": 143, "algo-2": 143}, started.outputs
    assert "the checkpoint is written" in started.head_log("algo-1")
    assert started.hosts["algo-2"].failure.startswith("stopped by SIGTERM; program.sh ended with")


def test_a_bash_programs_status_and_last_error(job):
    started = job(TWO)
    started.write("program.sh", "echo out\nls /no/such/folder\nexit 4\n")
    started.start("--", "program.sh")
    started.check({"algo-1": 4, "algo-2": 4}, "ls: cannot access '/no/such/folder': No such file or directory")


LOUD = """
import sys
line = "x" * 99 + "\\n"
for number in range(500_000):
    sys.stdout.write(line)
    sys.stderr.write(line)
sys.exit("the end of it")
"""


def test_a_hundred_megabytes_of_output_pass_whole(job):
    started = job(ONE)
    started.write("program.py", LOUD)
    started.start("--", "program.py")
    started.check({"algo-1": 1}, "the end of it")
    size = started.hosts["algo-1"].log.stat().st_size
    assert 100_000_000 <= size < 100_010_000
