"""The record of a job that has ended, out of S3, SageMaker and CloudWatch (moto's, over HTTP) or out of a twin."""

from __future__ import annotations

import io
import json
import tarfile
from datetime import UTC, datetime, timedelta

import boto3
import pytest
from aws import BUCKET, REGION, ROLE

from raytrain.errors import CloudError, ConfigError
from raytrain.record.schema import read_record
from raytrain.sagemaker import aws as door
from raytrain.sagemaker.gather import gather, gather_twin

BEGIN = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)


def archive(**files: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name.replace("__", "."))
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    return out.getvalue()


@pytest.fixture
def own(record) -> str:
    """What the run itself wrote."""
    tree = json.loads(record.model_dump_json())
    hosts = [
        {**tree["hosts"][0], "name": "algo-2", "group": "gpu", "instance_type": "ml.g5.xlarge"},
        {**tree["hosts"][0], "name": "algo-1", "group": "cpu", "instance_type": "ml.c5.4xlarge"},
        {**tree["hosts"][0], "name": "algo-3", "group": "cpu", "instance_type": "ml.c5.4xlarge"},
    ]
    return json.dumps({**tree, "hosts": hosts})


@pytest.fixture
def ended(aws, own):
    """A training job of three hosts that has ended, with its output and an hour of CloudWatch figures."""
    boto3.client("sagemaker").create_training_job(
        TrainingJobName="mine",
        RoleArn=ROLE,
        AlgorithmSpecification={"TrainingImage": "i", "TrainingInputMode": "File"},
        OutputDataConfig={"S3OutputPath": f"s3://{BUCKET}/out/"},
        ResourceConfig={
            "InstanceGroups": [
                {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1, "InstanceGroupName": "gpu"},
                {"InstanceType": "ml.c5.4xlarge", "InstanceCount": 2, "InstanceGroupName": "cpu"},
            ],
            "VolumeSizeInGB": 30,
        },
        StoppingCondition={"MaxRuntimeInSeconds": 100},
    )
    aws.states["mine"] = {
        "TrainingJobStatus": "Completed",
        "TrainingTimeInSeconds": 1900,
        "BillableTimeInSeconds": 1800,
        "TrainingStartTime": BEGIN.timestamp(),
        "TrainingEndTime": (BEGIN + timedelta(seconds=1900)).timestamp(),
    }
    boto3.client("s3").put_object(Bucket=BUCKET, Key="out/mine/output/output.tar.gz", Body=archive(record__json=own))
    figures = [
        ("algo-2", "CPUUtilization", 1, 300.0),
        ("algo-2", "CPUUtilization", 2, 100.0),
        ("algo-2", "GPUUtilization", 2, 95.0),
        ("algo-1", "CPUUtilization", 2, 1500.0),
    ]
    boto3.client("cloudwatch").put_metric_data(
        Namespace="/aws/sagemaker/TrainingJobs",
        MetricData=[
            {
                "MetricName": metric,
                "Dimensions": [{"Name": "Host", "Value": f"mine/{host}"}],
                "Timestamp": BEGIN + timedelta(minutes=minute),
                "Value": value,
            }
            for host, metric, minute, value in figures
        ],
    )
    return door.account(REGION)


def test_the_record_of_a_job(ended):
    record = gather("mine", ended)
    assert record.name == "small"
    cloud = record.cloud
    assert (cloud.kind, cloud.status, cloud.training_s, cloud.spot) == ("sagemaker", "Completed", 1900, False)
    gpu, cpu = cloud.groups
    assert (gpu.billable_s, cpu.billable_s, cloud.billable_s) == (1800, 3600, 5400)
    assert gpu.usd == pytest.approx(0.5 * 1.408)
    assert cpu.usd == pytest.approx(2 * 0.5 * 0.816)
    assert cloud.usd == pytest.approx(0.5 * (1.408 + 2 * 0.816))
    assert gpu.price_source
    loads = {load.host: load for load in cloud.loads}
    assert loads["algo-2"].group == "gpu"
    assert (loads["algo-2"].cpu_percent.mean, loads["algo-2"].cpu_percent.max) == (200.0, 300.0)
    assert loads["algo-2"].gpu_percent.mean == 95.0
    assert (loads["algo-1"].group, loads["algo-1"].cpu_percent.max) == ("cpu", 1500.0)
    assert loads["algo-3"].cpu_percent is None, "nobody measured it"


def test_the_command_writes_what_compare_reads(ended, cli, tmp_path):
    result = cli("record", "mine", "--out", tmp_path / "r.json")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"record: {tmp_path / 'r.json'}\n"
    assert read_record(tmp_path / "r.json") == gather("mine", ended)
    as_json = cli("record", "mine", "--out", tmp_path / "r.json", "--json", "--no-prices")
    assert json.loads(as_json.stdout)["cloud"]["usd"] is None


def test_a_job_that_runs_has_no_record_yet(aws, ended):
    aws.states["mine"]["TrainingJobStatus"] = "InProgress"
    with pytest.raises(CloudError, match="the job mine has not ended: InProgress"):
        gather("mine", ended)


def test_an_output_without_a_record(ended, own):
    where = {"Bucket": BUCKET, "Key": "out/mine/output/output.tar.gz"}
    for content, message in [
        (archive(other__txt="x"), "the job left no run record in"),
        (b"not an archive", "is not an archive, or was cut off"),
        (archive(record__json=own)[:200], "is not an archive, or was cut off"),
        (b"\x1f\x8b" + b"damaged" * 50, "is not an archive, or was cut off"),
        (archive(record__json="{}"), "has schema version None"),
        (archive(record__json=own[:99]), "record.json in .* is not JSON, or was cut off"),
    ]:
        boto3.client("s3").put_object(**where, Body=content)
        with pytest.raises(ConfigError, match=message):
            gather("mine", ended)
    boto3.client("s3").delete_object(**where)
    with pytest.raises(ConfigError, match="the job left no run record in s3://.*it ended as Completed"):
        gather("mine", ended)


def test_a_type_without_a_price_is_an_error_unless_one_goes_without(aws, ended):
    aws.jobs["mine"]["ResourceConfig"] = {}
    aws.states["mine"]["ResourceConfig"] = {"InstanceType": "ml.p4de.24xlarge", "InstanceCount": 1}
    with pytest.raises(ConfigError, match="no price of ml.p4de.24xlarge"):
        gather("mine", ended)
    assert gather("mine", ended, priced=False).cloud.usd is None


def test_a_record_packed_by_another_tool(ended, own):
    out = archive(**{"./record.json": own})
    boto3.client("s3").put_object(Bucket=BUCKET, Key="out/mine/output/output.tar.gz", Body=out)
    assert gather("mine", ended).name == "small"


def test_a_place_that_cannot_be_written(ended, cli):
    result = cli("record", "mine", "--out", "/proc/x/r.json")
    assert (result.returncode, "--out /proc/x/r.json cannot be written" in result.stderr) == (2, True)


def test_a_folder_that_is_no_twin(tmp_path):
    with pytest.raises(ConfigError, match="is not the folder of a twin that has ended"):
        gather_twin(tmp_path)
