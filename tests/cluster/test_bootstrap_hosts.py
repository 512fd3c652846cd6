"""The bootstrap on simulated hosts: real Ray, the real toolkit, real processes that are killed for real.

Each host is a set of Linux namespaces with its own name, address, SageMaker folder, /tmp and /dev/shm.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from raytrain.cluster.simulated import SimulatedHost, SimulatedHosts, unavailable
from raytrain.errors import ClusterError

pytestmark = [
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
    pytest.mark.timeout(180),
]

PROMETHEUS = Path(sys.prefix) / "bin" / "prometheus"
TOKEN = "0123456789abcdef" * 4
TWO = {"gpu": ("ml.g5.xlarge", ["algo-1"]), "cpu": ("ml.c5.4xlarge", ["algo-2"])}
THREE = {"cpu": ("ml.c5.4xlarge", ["algo-1", "algo-3"]), "gpu": ("ml.g5.xlarge", ["algo-2"])}
GONE_WITHIN_S = 5.0

NODES = """
import json, ray
ray.init(logging_level="warning")
nodes = [{**n["Labels"], **n["Resources"]} for n in ray.nodes() if n["Alive"]]
print("NODES", json.dumps(nodes))
"""


class Job:
    """A job on simulated hosts: what a test starts, waits for and looks at."""

    def __init__(self, hosts: SimulatedHosts, groups: Mapping[str, tuple[str, Sequence[str]]]):
        self.hosts, self.groups = hosts, groups
        hosts.place(groups)

    def write(self, name: str, text: str) -> None:
        for host in self.hosts.hosts.values():
            (host.ml / "code").mkdir(exist_ok=True)
            (host.ml / "code" / name).write_text(text)

    def start(self, *words: str, names: Sequence[str] | None = None, watch: bool = True, **environment: str) -> None:
        """`raytrain bootstrap WORDS` on all hosts, or on some."""
        command = [sys.executable, "-m", "raytrain", "bootstrap", *words]
        for name in names or self.hosts.names:
            self.hosts.start(name, command, {"RAY_AUTH_TOKEN": TOKEN, **environment}, watch=watch)

    def until(self, name: str, text: str, timeout_s: float = 60) -> None:
        """Wait until a host has said something."""
        deadline = time.monotonic() + timeout_s
        while text not in self.hosts[name].output:
            assert time.monotonic() < deadline, f"{name} did not say {text!r}:\n{self.hosts[name].output}"
            assert self.hosts[name].process.poll() is None, self.hosts[name].output
            time.sleep(0.02)

    def wait(self, timeout_s: float = 60) -> dict[str, int]:
        """Exit statuses; whatever a host did, it must have left no process behind."""
        try:
            statuses = self.hosts.wait(timeout_s)
        except ClusterError as error:
            pytest.fail(f"{error}\n" + self.outputs)
        for host in self.hosts.hosts.values():
            if (host.folder / "left").exists():
                assert host.left_behind == [], self.outputs
        return statuses

    @property
    def outputs(self) -> str:
        return "\n".join(f"--- {host.name}\n{host.output[-4000:]}" for host in self.hosts.hosts.values())

    def spread_s(self) -> float:
        """From the first host's end to the last's."""
        ends = [host.ended_at for host in self.hosts.hosts.values() if host.ended_at is not None]
        return max(ends) - min(ends)

    def check(self, statuses: Mapping[str, int], failure: str | None) -> None:
        """The same end everywhere: exit status, failure file, within the time that a teardown may take."""
        assert self.wait() == dict(statuses), self.outputs
        assert self.spread_s() < GONE_WITHIN_S
        for name in statuses:
            assert self.hosts[name].failure == failure, self.outputs

    def head_log(self, head: str) -> str:
        return self.hosts[head].output


@pytest.fixture
def job(tmp_path):
    """A function that makes a job of these groups; its hosts are gone afterwards."""
    made: list[SimulatedHosts] = []

    def make(groups: Mapping[str, tuple[str, Sequence[str]]], cpus: Mapping[str, float] | None = None) -> Job:
        names = sorted(name for _, members in groups.values() for name in members)
        hosts = SimulatedHosts(names, tmp_path / "hosts", cpus or {})
        made.append(hosts.__enter__())
        return Job(hosts, groups)

    yield make
    for hosts in made:
        hosts.__exit__()


def nodes_of(host: SimulatedHost) -> list[dict]:
    lines = [line for line in host.output.splitlines() if line.startswith("NODES ")]
    assert len(lines) == 1, host.output  # the program ran once
    return json.loads(lines[0].removeprefix("NODES "))


ONE = {"gpu": ("ml.g5.xlarge", ["algo-1"])}
FIVE = {
    "b-cpu": ("ml.c5.xlarge", ["algo-5", "algo-1"]),
    "c-gpu": ("ml.g5.xlarge", ["algo-4", "algo-2"]),
    "a-cpu": ("ml.m5.xlarge", ["algo-3"]),
}


@pytest.mark.parametrize(
    ("groups", "head"), [(ONE, "algo-1"), (TWO, "algo-1"), (THREE, "algo-2"), (FIVE, "algo-2")], ids=[1, 2, 3, 5]
)
def test_hosts_of_any_number_and_order_become_one_cluster(job, groups, head):
    started = job(groups)
    started.write("program.py", NODES)
    started.start("--", "program.py")
    names = sorted(started.hosts.names)
    started.check(dict.fromkeys(names, 0), failure=None)
    nodes = {node["raytrain-host"]: node for node in nodes_of(started.hosts[head])}
    assert sorted(nodes) == names
    for group, (kind, members) in groups.items():
        for name in members:
            node = nodes[name]
            assert node["raytrain-group"] == group and node["raytrain-instance-type"] == kind
            assert node[f"group:{group}"] == 1 and node[f"instance:{kind}"] == 1
            assert node["CPU"] >= 1
    others = [name for name in names if name != head]
    assert not any("NODES" in started.hosts[name].output for name in others)
    assert f"head {head}" in started.head_log(head)
    assert "read by the toolkit" in started.head_log(head)
    assert TOKEN not in "".join(host.output for host in started.hosts.hosts.values())


def test_a_coordinator_and_one_worker_are_one_cluster(job):
    coordinator = {"head": ("ml.t3.large", ["algo-2"]), "work": ("ml.g5.xlarge", ["algo-1"])}
    started = job(coordinator)
    started.write("program.py", NODES)
    started.start("--head-group", "head", "--head-cpus", "0", "--head-gpus", "0", "--", "program.py")
    started.check({"algo-1": 0, "algo-2": 0}, failure=None)
    nodes = {node["raytrain-host"]: node for node in nodes_of(started.hosts["algo-2"])}
    assert sorted(nodes) == ["algo-1", "algo-2"]
    assert "CPU" not in nodes["algo-2"] and nodes["algo-2"]["memory"] < 2
    assert nodes["algo-1"]["CPU"] >= 1


def test_a_host_is_sized_by_its_cpu_quota(job):
    started = job(TWO, cpus={"algo-2": 1.0})
    started.write("program.py", NODES)
    started.start("--", "program.py")
    started.check({"algo-1": 0, "algo-2": 0}, failure=None)
    nodes = {node["raytrain-host"]: node for node in nodes_of(started.hosts["algo-1"])}
    assert nodes["algo-2"]["CPU"] == 1


def test_a_host_that_never_comes_is_named_and_nothing_runs(job):
    started = job(THREE)
    started.write("program.py", "print('RUNS')")
    began = time.monotonic()
    started.start("--join-timeout", "9", "--", "program.py", names=["algo-1", "algo-2"])
    assert started.wait() == {"algo-1": 2, "algo-2": 2}
    assert 9 <= time.monotonic() - began < 9 + GONE_WITHIN_S
    failure = "2 of 3 hosts joined within 9 s; missing: algo-3 (cpu, ml.c5.4xlarge): nothing came from 10.213.7.3"
    assert started.hosts["algo-1"].failure == started.hosts["algo-2"].failure == failure
    assert "RUNS" not in started.outputs


def test_a_host_with_another_token_is_refused_at_once(job):
    started = job(TWO)
    started.write("program.py", "print('RUNS')")
    started.start("--join-timeout", "9", "--", "program.py", names=["algo-1"])
    started.start("--join-timeout", "9", "--", "program.py", names=["algo-2"], RAY_AUTH_TOKEN="f" * 32)
    assert started.wait() == {"algo-1": 2, "algo-2": 2}
    assert started.spread_s() > 1  # algo-2 did not wait for the head's time to be up
    assert started.hosts["algo-2"].failure == "the head algo-1 refuses algo-2: its token is not the head's"
    assert "its call was refused, its token is not the head's" in started.hosts["algo-1"].failure
    assert "RUNS" not in started.outputs


def test_several_hosts_without_a_token_refuse_to_start(job):
    started = job(TWO)
    started.write("program.py", "print('RUNS')")
    started.start("--", "program.py", names=["algo-1"], RAY_AUTH_TOKEN="")
    assert started.wait() == {"algo-1": 2}
    assert "RAY_AUTH_TOKEN must hold one word of at least 16 characters" in started.hosts["algo-1"].failure
    command = [sys.executable, "-m", "raytrain", "bootstrap", "--", "program.py"]
    started.hosts.start("algo-2", command, watch=True)
    assert started.wait() == {"algo-1": 2, "algo-2": 2}
    assert "no token for Ray's authentication" in started.hosts["algo-2"].failure


def test_insecure_runs_without_a_token(job):
    started = job(TWO)
    started.write("program.py", NODES)
    command = [sys.executable, "-m", "raytrain", "bootstrap", "--insecure", "--", "program.py"]
    for name in started.hosts.names:
        started.hosts.start(name, command, watch=True)
    started.check({"algo-1": 0, "algo-2": 0}, failure=None)
    assert "whoever reaches this host's ports can run code here" in started.head_log("algo-1")


def test_a_name_that_does_not_resolve_for_ten_seconds(job):
    started = job(TWO)
    started.write("program.py", NODES)
    worker = started.hosts["algo-2"]
    worker.know({"algo-2": worker.address})
    for host in started.hosts.hosts.values():  # nor does the platform say which interface to use
        config = json.loads((host.ml / "input/config/resourceconfig.json").read_text())
        host.configure("resourceconfig.json", {**config, "network_interface_name": None})
    started.start("--", "program.py")
    time.sleep(10)
    assert "NODES" not in started.outputs
    worker.know({"algo-1": started.hosts["algo-1"].address, "algo-2": worker.address})
    started.check({"algo-1": 0, "algo-2": 0}, failure=None)


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
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
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
        time.sleep(0.1)  # so that the head hears it from the other host first
    assert started.wait() == {"algo-1": 143, "algo-2": 143}, started.outputs
    assert time.monotonic() - began < GONE_WITHIN_S
    assert (started.hosts["algo-1"].ml / "checkpoint").read_text() == "saved"
    for host in started.hosts.hosts.values():
        assert host.failure.startswith("stopped by SIGTERM; program.py ended with exit code 0 after 0.")


def test_sigterm_on_all_hosts_of_a_program_that_does_not_listen(job):
    started = job(TWO)
    started.write("program.py", STUBBORN)
    started.start("--grace", "3", "--", "program.py", watch=False)  # each bootstrap is PID 1, as in a container
    started.until("algo-1", "READY")
    for host in started.hosts.hosts.values():
        host.signal(signal.SIGTERM)
    began = time.monotonic()
    started.check(
        {"algo-1": 143, "algo-2": 143},
        "stopped by SIGTERM; program.py did not end within its 3 s of grace and was killed",
    )
    assert 3 <= time.monotonic() - began < 3 + GONE_WITHIN_S


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
        while started.hosts["algo-2"].process.poll() is None and time.monotonic() - began < 40:
            time.sleep(0.1)
        assert 10 < time.monotonic() - began < 30
        started.until("algo-1", "lost algo-2 (cpu, ml.c5.4xlarge): Ray no longer hears from it; Ray goes on")
        started.hosts["algo-1"].kill()
    assert started.wait() == {"algo-1": 137, "algo-2": 1}, started.outputs
    assert started.hosts["algo-2"].failure == "the head algo-1 (gpu, ml.g5.xlarge) is gone"
    assert started.hosts["algo-2"].left_behind == []
    assert time.monotonic() - began < 30


def test_a_killed_bootstrap_leaves_no_process(job):
    started = job(TWO)
    started.write("program.py", STUBBORN)
    words = f"{sys.executable} -m raytrain bootstrap -- program.py; sleep 4"
    started.hosts.start("algo-1", ["bash", "-c", words], {"RAY_AUTH_TOKEN": TOKEN}, watch=True)
    started.start("--", "program.py", names=["algo-2"])
    started.until("algo-1", "READY")
    bootstrap = started.hosts["algo-1"].init().children()[0].children()[0]
    assert "bootstrap" in bootstrap.cmdline()
    bootstrap.kill()
    statuses = started.wait()
    assert statuses["algo-2"] == 1, started.outputs


def test_a_worker_killed_before_it_joined(job):
    started = job(TWO)
    started.write("program.py", "print('RUNS')")
    started.start("--", "program.py")
    started.until("algo-2", "the head algo-1 answers")
    started.hosts["algo-2"].kill()
    assert started.wait() == {"algo-1": 2, "algo-2": 137}
    assert started.hosts["algo-1"].failure == "algo-2 (cpu, ml.c5.4xlarge) cannot join: its bootstrap is gone"
    assert "RUNS" not in started.outputs


def test_a_worker_killed_after_it_joined_while_another_is_missing(job):
    started = job(THREE)
    started.write("program.py", "print('RUNS')")
    started.start("--", "program.py", names=["algo-1", "algo-2"])
    started.until("algo-2", "algo-1 (cpu, ml.c5.4xlarge) is in")
    began = time.monotonic()
    started.hosts["algo-1"].kill()
    assert started.wait() == {"algo-1": 137, "algo-2": 2}
    assert time.monotonic() - began < 2 * GONE_WITHIN_S  # it cannot be whole any more
    assert started.hosts["algo-2"].failure == "algo-1 (cpu, ml.c5.4xlarge) cannot join: its bootstrap is gone"


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
    assert "lost algo-3 (cpu, ml.c5.4xlarge): its bootstrap is gone; Ray goes on" in started.head_log("algo-2")
    assert "ALL DONE" in started.head_log("algo-2")


def test_a_raylet_that_dies_is_reported_and_its_host_stays(job):
    started = job(THREE)
    started.write("program.py", SURVIVOR)
    started.start("--", "program.py")
    started.until("algo-2", "READY")
    below = started.hosts["algo-3"].init().children(recursive=True)
    next(process for process in below if process.name() == "raylet").kill()
    assert started.wait() == {"algo-1": 0, "algo-2": 0, "algo-3": 0}, started.outputs
    assert "lost algo-3 (cpu, ml.c5.4xlarge): Ray's raylet ended with code -9; Ray goes on" in started.head_log(
        "algo-2"
    )


@pytest.mark.parametrize("port", [6379, 6380])
def test_a_taken_port_on_the_head(job, port):
    started = job(TWO)
    started.write("program.py", "print('RUNS')")
    started.write("holder.py", f"import socket, time; s = socket.create_server(('', {port})); time.sleep(600)")
    words = f"{sys.executable} holder.py & sleep 0.5; exec {sys.executable} -m raytrain bootstrap -- program.py"
    started.hosts.start("algo-1", ["bash", "-c", words], {"RAY_AUTH_TOKEN": TOKEN})
    if port == 6379:  # the others can still be told
        started.start("--", "program.py", names=["algo-2"])
        assert started.wait() == {"algo-1": 2, "algo-2": 2}
        assert started.hosts["algo-2"].failure == started.hosts["algo-1"].failure
    assert started.wait()["algo-1"] == 2
    assert started.hosts["algo-1"].failure.startswith(f"port {port} is taken on algo-1")


@pytest.mark.parametrize(("process", "vital"), [("gcs_server", True), ("log_monitor", False)])
def test_the_heads_ray_processes_are_watched(job, process, vital):
    started = job(TWO)
    started.write("program.py", STUBBORN if vital else "print('READY'); import time; time.sleep(4)")
    started.start("--grace", "1", "--", "program.py")
    started.until("algo-1", "READY")
    below = started.hosts["algo-1"].init().children(recursive=True)
    next(found for found in below if process in " ".join(found.cmdline())).kill()
    failure = "Ray ended on the head: Ray's gcs_server ended with code -9" if vital else None
    started.check({"algo-1": int(vital), "algo-2": int(vital)}, failure)
    assert f"Ray's {process} ended with code -9" in started.head_log("algo-1")


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


def test_source_dir_trains_on_the_cluster_as_on_a_laptop(job, job_tree, images):
    started = job(TWO)
    training_job(job_tree, started, images, epochs=1)
    started.start("--", "train.py", "job.yaml")
    started.check({"algo-1": 0, "algo-2": 0}, failure=None)
    assert "Ray nodes: 2" in started.head_log("algo-1")
    record = started.hosts["algo-1"].ml / "checkpoints/small/record.json"
    assert '"status": "finished"' in record.read_text()


@pytest.mark.parametrize("how", ["killed", "unplugged"])
def test_a_lost_training_rank_ends_the_job(job, job_tree, images, how):
    coordinator = {"head": ("ml.t3.large", ["algo-1"]), "work": ("ml.g5.xlarge", ["algo-2"])}
    started = job(coordinator)
    training_job(job_tree, started, images, epochs=10_000)
    words = ("--head-group", "head", "--head-cpus", "0", "--head-gpus", "0", "--grace", "12", "--", "train.py")
    started.start(*words, "job.yaml")
    started.until("algo-1", "step", timeout_s=90)
    time.sleep(2)  # the head looks every second where the ranks are
    if how == "killed":
        started.hosts["algo-2"].kill()
    else:
        started.hosts.unplug("algo-2")
    expected = {"algo-1": 1, "algo-2": 137 if how == "killed" else 1}
    assert started.wait(80) == expected, started.outputs
    assert "algo-2 (work, ml.g5.xlarge) was lost and with it a training rank" in started.hosts["algo-1"].failure


def test_bash_programs_run_live_and_hear_sigterm(job):
    started = job(TWO)
    script = """
    echo FIRST
    sleep 1
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
    started.until("algo-1", "READY")
    time.sleep(0.5)
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


def test_linger_keeps_the_cluster_for_a_look(job):
    started = job(ONE)
    started.write("program.py", "raise SystemExit(3)")
    started.start("--linger", "600", "--", "program.py")
    started.until("algo-1", "the cluster stays for 600 s (--linger)")
    look = "import ray; ray.init(address='auto', logging_level='error'); print(len(ray.nodes()), 'NODE')"
    token = next(started.hosts["algo-1"].folder.glob("tmp/raytrain-*/token"))
    assert token.read_text() == TOKEN and token.stat().st_mode & 0o777 == 0o600
    assert token.parent.stat().st_mode & 0o777 == 0o700
    seen = started.hosts.look("algo-1", [sys.executable, "-c", look], RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
    assert "1 NODE" in seen
    started.hosts["algo-1"].signal(signal.SIGTERM)
    assert started.wait() == {"algo-1": 3}
    assert not list(started.hosts["algo-1"].folder.glob("tmp/raytrain-*"))


def test_the_dashboard_listens_on_loopback_and_the_way_there_is_said(job):
    started = job(ONE)
    started.write("program.py", "print('READY'); import time; time.sleep(600)")
    arn = "arn:aws:sagemaker:eu-west-1:123456789012:training-job/vit-1"
    started.start("--dashboard", "--", "program.py", TRAINING_JOB_NAME="vit-1", TRAINING_JOB_ARN=arn)
    started.until("algo-1", "READY")
    wanted = (
        "aws ssm start-session --target sagemaker-training-job:vit-1_algo-1 --region eu-west-1 "
        "--document-name AWS-StartPortForwardingSession "
        """--parameters '{"portNumber":["8265"],"localPortNumber":["8265"]}'"""
    )
    assert wanted in started.head_log("algo-1")
    ask = (
        "import time, urllib.request\n"
        "def answer(host):\n"
        "    try: return urllib.request.urlopen(f'http://{host}:8265/', timeout=5).read().decode()\n"
        "    except OSError as error: return str(error)\n"
        "while 'refused' in answer('127.0.0.1'): time.sleep(0.2)\n"
        "print(answer('127.0.0.1'), answer('algo-1'))\n"
    )
    seen = started.hosts.look("algo-1", [sys.executable, "-c", ask])
    assert "<title>Ray Dashboard</title>" in seen and "Connection refused" in seen
    started.hosts["algo-1"].signal(signal.SIGTERM)
    assert started.wait() == {"algo-1": 143}


def test_no_more_ports_are_open_to_the_network_than_ray_and_we_need(job):
    started = job(TWO)
    started.write("program.py", "print('READY'); import time; time.sleep(600)")
    started.start("--", "program.py")
    started.until("algo-1", "READY")
    look = (
        "import psutil\n"
        "for c in psutil.net_connections('tcp'):\n"
        "    if c.status == 'LISTEN': print(c.laddr.ip, c.laddr.port, psutil.Process(c.pid).name())\n"
    )
    seen = started.hosts.look("algo-1", [sys.executable, "-c", look])
    fixed = {int(line.split()[1]) for line in seen.splitlines() if int(line.split()[1]) < 10_002}
    assert fixed <= {6379, 6380}, seen  # no Ray Client, no dashboard
    started.hosts["algo-1"].kill()
    assert started.wait()["algo-2"] == 1


RECEIVER = """
import base64, http.server, json, os, sys, threading, time, urllib.request

class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        print("WRITTEN", len(body), self.headers["Content-Encoding"], self.headers["Authorization"], flush=True)
        self.send_response(int(sys.argv[1]))
        self.end_headers()

    def log_message(self, *_):
        pass

threading.Thread(target=http.server.HTTPServer(("127.0.0.1", 9999), Receiver).serve_forever, daemon=True).start()
deadline = time.time() + 40
while time.time() < deadline:
    try:
        answer = json.load(urllib.request.urlopen("http://127.0.0.1:9090/api/v1/targets"))
        targets = answer["data"]["activeTargets"]
        if targets and all(t["health"] == "up" for t in targets):
            break
    except OSError:
        pass
    time.sleep(0.5)
print("TARGETS", json.dumps(sorted([t["labels"]["host"], t["labels"]["group"], t["health"]] for t in targets)))
query = urllib.request.urlopen("http://127.0.0.1:9090/api/v1/query?query=ray_node_cpu_count")
print("SERIES", len(json.load(query)["data"]["result"]), flush=True)
time.sleep(3)
"""


@pytest.mark.skipif(not PROMETHEUS.exists() and not shutil.which("prometheus"), reason="no prometheus on this machine")
@pytest.mark.parametrize("answer", ["204", "403"])
def test_a_real_prometheus_collects_from_every_node_and_sends_it_on(job, answer):
    started = job(TWO)
    started.write("program.py", RECEIVER)
    words = ["--remote-write", "http://127.0.0.1:9999/api/v1/write", "--remote-write-user", "me"]
    path = f"{PROMETHEUS.parent}:{os.environ['PATH']}"
    secret = {"PATH": path, "RAYTRAIN_REMOTE_WRITE_PASSWORD": "secretsecretsecret"}
    started.start(*words, "--", "program.py", answer, **secret)
    started.check({"algo-1": 0, "algo-2": 0}, failure=None)
    seen = started.head_log("algo-1")
    assert 'TARGETS [["algo-1", "gpu", "up"], ["algo-2", "cpu", "up"]]' in seen
    assert "SERIES 2" in seen
    written = [line for line in seen.splitlines() if line.startswith("WRITTEN ")]
    assert written and all(line.endswith(" snappy Basic bWU6c2VjcmV0c2VjcmV0c2VjcmV0") for line in written), seen
    assert ("raytrain [algo-1" in seen and "server returned HTTP status 403" in seen) == (answer == "403")
    assert "secretsecretsecret" not in seen
