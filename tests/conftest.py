"""Which kind each test is of, and fixtures that several rooms share: small real image folders, and jobs on them."""

from __future__ import annotations

import contextlib
import multiprocessing.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import Phase, settings
from patience import factor, patient

from raytrain.config.job import Job
from raytrain.record.schema import RunRecord
from raytrain.record.status import RankProgress, RankTimes

pytest_plugins = ["buckets", "cloud_job", "docs_lines", "feeding", "ranks", "trained_models"]
ROOT = Path(__file__).parent.parent
settings.register_profile("mutation", deadline=None, phases=(Phase.explicit, Phase.generate))  # to fail is enough, soon
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own 15 leaves its workers 3 % of a core beside a busy process
RAYTRAIN = [sys.executable, "-m", "raytrain"]

KINDS = {"process", "ray", "hosts", "browser", "ranks", "models"}
KINDS_OF_FIXTURES = {
    "two_nodes": ["ray"],
    "diagnosed": ["ray"],
    "job": ["hosts", "ray"],
    "hosts": ["hosts"],
    "twin": ["hosts"],
    "browser": ["browser"],
    "ranks": ["ranks"],
}
OURS = "RAYTRAIN_TESTS"  # in the environment of every process that the tests start
STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--both-ways", action="store_true", help="run all tests marked both_ways in both ways")


def pytest_collection_modifyitems(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Every test is of a kind, and its time-out fits how slow the machine is."""
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            for kind in KINDS_OF_FIXTURES.get(fixture, ()):
                item.add_marker(kind)
        if not any(item.get_closest_marker(kind) for kind in KINDS):
            item.add_marker("pure")
        own = item.get_closest_marker("timeout")
        if config.getoption("timeout") is None:
            seconds = own.args[0] if own else float(config.getini("timeout"))
            item.add_marker(pytest.mark.timeout(seconds * factor()), append=False)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that is marked so runs through what raytrain knows of Ray's own parts, and through its public API as well
    where it is marked `always` or that is asked for."""
    if mark := metafunc.definition.get_closest_marker("both_ways"):
        both = mark.kwargs.get("always") or metafunc.config.getoption("both_ways")
        metafunc.fixturenames.append("way")
        metafunc.parametrize("way", ["private", "public"] if both else ["private"], indirect=True)


@pytest.fixture
def way(request, monkeypatch) -> str:
    monkeypatch.setenv("RAYTRAIN_PUBLIC_RAY", "1" if request.param == "public" else "0")
    return request.param


class PureTest:
    """What a pure test starts while it runs, told by Python's audit events."""

    def __init__(self) -> None:
        self.runs = False
        self.started: list[str] = []

    def heard(self, event: str, arguments: tuple) -> None:
        if self.runs and event in STARTS:
            self.started.append(f"{event} {arguments[:2]}"[:300])
            raise AssertionError(f"a pure test starts a process: {self.started[-1]}; mark it as {sorted(KINDS)}")


@pytest.fixture(scope="session")
def pure_test():
    """The watch over pure tests; an audit hook cannot be taken away again."""
    watch = PureTest()
    sys.addaudithook(watch.heard)
    with pytest.MonkeyPatch.context() as changed:
        real = multiprocessing.util.spawnv_passfds  # raises no event

        def spawn(path, args, passfds):
            watch.heard("subprocess.Popen", (path, args))
            return real(path, args, passfds)

        changed.setattr(multiprocessing.util, "spawnv_passfds", spawn)
        yield watch


@pytest.fixture(autouse=True)
def a_pure_test_starts_nothing(request, pure_test):
    """No process and with it no Ray, so that whoever asks for pure tests waits for nothing else."""
    pure_test.runs, pure_test.started = request.node.get_closest_marker("pure") is not None, []
    yield
    pure_test.runs = False
    assert pure_test.started == [], "a pure test starts a process, and hides that it may not"


@pytest.fixture(scope="session", autouse=True)
def an_environment_of_their_own(tmp_path_factory):
    """No test, and no process of one, reads or writes the prices of whoever runs the tests."""
    for folder in (ROOT, Path.cwd()):
        assert not (folder / "prices.yaml").exists(), f"move {folder}/prices.yaml away: the tests would read it"
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv(OURS, str(home))
        changed.setenv("XDG_CACHE_HOME", str(home / "cache"))
        changed.setenv("XDG_CONFIG_HOME", str(home / "config"))
        if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # where Ray notes which cluster is this machine's
            changed.setenv("RAY_TMPDIR", f"/tmp/raytrain-{worker}")
        yield


def write_images(folder: Path, classes: dict[str, int], side: int = 16, seed: int = 0) -> Path:
    """Class folders of random JPEG images whose brightness tells the class."""
    rng = np.random.default_rng(seed)
    for label, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image = rng.integers(0, 40, (side, side, 3), dtype=np.uint8) + np.uint8(60 * label)
            (folder / name / f"{number:03d}.jpg").write_bytes(cv2.imencode(".jpg", image)[1].tobytes())
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """train: 3 classes of 40; validation: 3 classes of 10."""
    root = tmp_path_factory.mktemp("images")
    write_images(root / "train", {"dark": 40, "grey": 40, "light": 40})
    write_images(root / "validation", {"dark": 10, "grey": 10, "light": 10}, seed=1)
    return root


@pytest.fixture
def job_tree(images, tmp_path) -> dict:
    """A small job on those images, as a job file would hold it."""
    return {
        "name": "small",
        "run_dir": str(tmp_path / "runs"),
        "data": {
            "train": {"kind": "image_folder", "path": str(images / "train")},
            "validation": {"kind": "image_folder", "path": str(images / "validation")},
            "stages": [
                "decode",
                {"random_crop": {"size": 16, "padding": 1, "padding_mode": "edge"}},
                {"resize": {"size": 8}},
            ],
            "batch_size": 16,
            "normalize": {"mean": [0.5], "std": [0.5]},
        },
        "model": {
            "name": "timm.models:VisionTransformer",
            "options": {
                "img_size": 8,
                "patch_size": 4,
                "embed_dim": 16,
                "depth": 1,
                "num_heads": 2,
                "num_classes": 3,
                "global_pool": "avg",
                "class_token": False,
            },
        },
        "training": {"epochs": 2, "optimizer": {"name": "adamw", "lr": 0.01}},
    }


def progress(**changes) -> RankProgress:
    """Of a rank that has begun the second of three epochs."""
    known = {"epoch": 2, "epochs": 3, "step": 30, "total_steps": 60, "history": [], "counts": {}}
    known["times"] = RankTimes(began_at=0.0, last_step_at=1.0, num_samples=8, wait_s=0.25, train_s=1.0)
    return RankProgress(**(known | changes))


def figures(**changes):
    """Of one rank."""
    return {
        "rank": 0,
        "device": "cpu",
        "wait_s": 2.0,
        "transfer_s": 1.0,
        "compute_s": 7.0,
        "transfer_overlaps": False,
        "evaluate_s": 0.5,
        "checkpoint_s": 0.25,
        "num_batches": 10,
        "num_samples": 640,
        "wire_bytes": 1000,
        "read_bytes": 500,
        **changes,
    }


@pytest.fixture
def record(job_tree) -> RunRecord:
    """A record of a small run."""

    host = {"cpus": 2, "gpus": 0, "instance_type": None, "emulated": True, "samples_prepared": 320}
    stage = {
        "name": "decode",
        "num_samples": 640,
        "num_batches": 10,
        "cpu_s": 3.2,
        "wall_s": 4.48,
        "batch_wall_p90_s": 0.4,
        "batch_wall_p99_s": 0.5,
    }
    return RunRecord(
        name="small",
        status="finished",
        error=None,
        started_at="2026-01-01T00:00:00.000+00:00",
        command=["raytrain"],
        job=Job.from_dict(job_tree).model_dump(mode="json"),
        versions={"python": "3.11"},
        hardware={"cpu_model": "x", "cpu_cores": 2, "memory_bytes": 1, "platform": "Linux", "gpus": []},
        environment={},
        cluster_attached=False,
        emulated_gpus=False,
        world_size=1,
        cpu_slots=4,
        hosts=[
            {**host, "name": "train-1", "group": "train", "is_head": True},
            {**host, "name": "cpu-1", "group": "cpu", "is_head": False},
        ],
        num_train=640,
        num_validation=64,
        startup={
            "manifest_s": 0.1,
            "cluster_s": 1.0,
            "trainer_s": 1.5,
            "first_batch_ready_s": 2.0,
            "first_batch_s": 3.0,
            "first_step_s": None,
        },
        totals={
            "wall_s": 12.0,
            "samples": 640,
            "samples_per_s": 64.0,
            "wait_share": 0.2,
            "limited_by": "balanced",
            "bottleneck": "balanced: the ranks wait for data 20% of the time; stage 'decode' takes longest",
            "attempts": 1,
        },
        ranks=[figures()],
        stages=[stage],
        epochs=[{"epoch": 1, "loss": 0.5, "validation_accuracy": 0.9}],
        corrupt={"train": 2, "validation": 0, "listed": ["train: a.jpg: bad"]},
        torch_in_preprocessing_workers=False,
        resumed_from=None,
        checkpoint=None,
    )


@pytest.fixture
def job_file(job_tree, tmp_path):
    """A function that writes `job_tree`, changed by dotted keys, and returns the file's path."""

    def write(**changes) -> Path:
        tree = yaml.safe_load(yaml.safe_dump(job_tree))
        for key, value in changes.items():
            node = tree
            *parents, last = key.split("__")
            for part in parents:
                node = node.setdefault(part, {})
            node[last] = value
        path = tmp_path / f"{tree['name']}.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    return write


def run_cli(*arguments: object, cwd: Path | None = None, timeout: float = 200, **environment: str):
    """The command line in a process of its own, output captured; `timeout` is for a quiet machine."""
    return subprocess.run(
        [*RAYTRAIN, *map(str, arguments)],
        cwd=cwd or ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=patient(timeout),
        stdin=subprocess.DEVNULL,
    )


def ray_processes() -> set[int]:
    """Process ids of every Ray process that these tests started: others may use Ray on this machine too."""
    import psutil

    found = set()
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        command = " ".join(process.info["cmdline"] or [])
        if process.info["status"] != psutil.STATUS_ZOMBIE and (
            "ray::" in command or "/raylet/raylet" in command or "/gcs/gcs_server" in command
        ):
            with contextlib.suppress(psutil.Error):
                if process.environ().get(OURS) == os.environ[OURS]:
                    found.add(process.pid)
    return found


@pytest.fixture
def job(tmp_path):
    """A function that makes a job of groups on simulated hosts; the hosts are gone afterwards."""
    from simulated_job import Job

    from raytrain.simulate.hosts import SimulatedHosts

    made: list[SimulatedHosts] = []

    def make(groups, cpus=None) -> Job:
        names = sorted(name for _, members in groups.values() for name in members)
        hosts = SimulatedHosts(names, tmp_path / "hosts", cpus or {})
        made.append(hosts.__enter__())
        return Job(hosts, groups)

    yield make
    for hosts in made:
        hosts.__exit__()
