"""YAML -> SDK -> HTTP -> DescribeTrainingJob -> twin of exactly that -> Ray over three hosts -> model and record."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import boto3
import pytest
import torch
from aws import BUCKET
from conftest import ROOT, run_cli
from simulated_job import on_simulated_hosts

from raytrain.config.job import Job
from raytrain.record.schema import read_record
from raytrain.sagemaker.sdk import trainer_for
from raytrain.train.models import build_model

pytestmark = [*on_simulated_hosts, pytest.mark.hosts, pytest.mark.ray, pytest.mark.timeout(500)]


def upload_images(folder: Path) -> None:
    client = boto3.client("s3")
    for path in folder.rglob("*.jpg"):
        client.upload_file(str(path), BUCKET, f"data/images/{path.relative_to(folder)}")


def test_from_the_yaml_over_the_sdk_to_a_model(aws, cloud_file, job_tree, images, tmp_path):
    upload_images(images)
    at = "/opt/ml/input/data/images"
    path = cloud_file(
        data={
            **job_tree["data"],
            "train": {"kind": "image_folder", "path": f"{at}/train"},
            "validation": {"kind": "image_folder", "path": f"{at}/validation"},
        },
        model=job_tree["model"],
        training=job_tree["training"],
        sagemaker__channels={"images": {"uri": f"s3://{BUCKET}/data/images", "groups": ["gpu", "cpu"]}},
        sagemaker__source_dir=str(ROOT / "source_dir"),
    )
    job = Job.from_yaml(path)
    with trainer_for(job) as trainer:
        trainer.train(wait=False)
    [sent] = aws.requests("CreateTrainingJob")
    name = sent["TrainingJobName"]

    ran = run_cli("twin", "--job", name, "--folder", tmp_path / "twin", "--gpus", "1", "--json", timeout=200)
    assert ran.returncode == 0, ran.stderr[-6000:]
    described = json.loads(ran.stdout)
    assert {key: described[key] for key in sent if key != "Tags"} == {k: v for k, v in sent.items() if k != "Tags"}
    assert described["TrainingJobStatus"] == "Completed"
    assert set(described["Twin"]["ExitCodes"].values()) == {0}
    log = ran.stderr
    assert "/opt/ml/input/data/sm_drivers/scripts/environment.py" in log, "the SDK's own script ran"
    assert "3 of 3 hosts" in log
    token = next(key for key in aws.objects() if "/tokens/" in key)
    assert boto3.client("s3").get_object(Bucket=BUCKET, Key=token)["Body"].read().decode() not in log

    with tarfile.open(described["Twin"]["Artifacts"]["model"]) as archive:
        content = archive.extractfile("model.pt").read()
    model = build_model(job.model)
    model.load_state_dict(torch.load(io.BytesIO(content), weights_only=True))

    gathered = run_cli("record", name, "--folder", tmp_path / "twin", "--out", tmp_path / "record.json")
    assert gathered.returncode == 0, gathered.stderr
    record = read_record(tmp_path / "record.json")
    assert record.status == "finished"
    assert record.totals.samples == 240
    assert {host.name for host in record.hosts} == {"algo-1", "algo-2", "algo-3"}
    assert sum(host.samples_prepared for host in record.hosts) >= 240
    assert record.emulated_gpus
    assert record.versions["raytrain"] == run_cli("--version").stdout.split()[-1]
    groups = {host.name: host.group for host in record.hosts}
    assert {load.host: load.group for load in record.loads} == groups, "each host has a sampler of its own"
    assert record.progress.at_s[-1] < record.totals.wall_s
    cloud = record.cloud
    assert (cloud.kind, cloud.job_name, cloud.status, cloud.usd) == ("twin", name, "Completed", None)
    assert [(g.name, g.hosts) for g in cloud.groups] == [("gpu", 1), ("cpu", 2)]
    assert cloud.groups[1].billable_s == 2 * cloud.groups[0].billable_s == 2 * described["BillableTimeInSeconds"]
    assert {load.group for load in cloud.loads} == {"gpu", "cpu"}
    assert all(load.cpu_percent.max > 10 for load in cloud.loads)
