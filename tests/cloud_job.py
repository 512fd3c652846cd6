"""Jobs for SageMaker, and moto's server to send them to."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from aws import BUCKET, REGION, ROLE, Aws
from botocore.loaders import JSONFileLoader

from raytrain.cli.main import main
from raytrain.sagemaker import training_jobs

ROOT = Path(__file__).parent.parent

GROUPS = [
    {"name": "gpu", "instance_type": "ml.g5.xlarge"},
    {"name": "cpu", "instance_type": "ml.c5.4xlarge", "hosts": 2},
]


@pytest.fixture(scope="session", autouse=True)
def models_are_read_once():
    """All sessions share what botocore reads of a service, as all clients of one do: SageMaker's model takes 0.1 s."""
    read = functools.cache(JSONFileLoader().load_file)
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(JSONFileLoader, "load_file", lambda _, path: read(path))
        yield


@pytest.fixture(scope="session")
def server():
    aws = Aws().start()
    yield aws
    aws.stop()


@pytest.fixture
def aws(server, monkeypatch):
    """moto's server, empty but for the default bucket and the role, as this process's AWS."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.reset()
    return server


class Ran(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def cli(monkeypatch, capsys):
    """The command line in this process, which is quicker: what it printed and its exit status."""

    def run(*words, **environment) -> Ran:
        with monkeypatch.context() as changed:
            for name, value in environment.items():
                changed.setenv(name, value)
            changed.setattr(sys, "argv", ["raytrain", *map(str, words)])
            with pytest.raises(SystemExit) as ended:
                main()
        return Ran(ended.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def quick_looks(monkeypatch):
    """Whoever follows a job looks ten times a second."""
    monkeypatch.setattr(training_jobs, "follow", functools.partial(training_jobs.follow, poll_s=0.1))


@pytest.fixture
def source(tmp_path):
    """A small source folder of a user's."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "train.py").write_text((ROOT / "source_dir" / "train.py").read_text())
    return folder


@pytest.fixture
def without_raytrain(monkeypatch):
    """What is packed is small: raytrain itself is left out, for tests that do not look at it."""
    monkeypatch.setattr("raytrain.sagemaker.parcel._copy_package", lambda target: target.mkdir())


@pytest.fixture
def cloud_tree(source):
    """A job file for two groups."""
    return {
        "name": "digits",
        "data": {"train": {"kind": "synthetic", "num_samples": 64, "shape": [8, 8, 3], "num_classes": 4}},
        "model": {"name": "timm.models:VisionTransformer"},
        "training": {"epochs": 1},
        "cluster": {"groups": GROUPS},
        "sagemaker": {"role": ROLE, "region": REGION, "bucket": BUCKET, "source_dir": str(source)},
    }


@pytest.fixture
def cloud_file(cloud_tree, tmp_path):
    """A function that writes `cloud_tree`, changed by dotted keys, and returns the file's path."""

    def write(**changes):
        tree = yaml.safe_load(yaml.safe_dump(cloud_tree))
        for key, value in changes.items():
            node = tree
            *parents, last = key.split("__")
            for part in parents:
                node = node.setdefault(part, {})
            node[last] = value
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    return write
