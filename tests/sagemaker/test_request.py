"""The request: both doors give the same one, botocore accepts it, and what SageMaker refuses is refused before."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import datetime

import boto3
import pytest
from aws import BUCKET, REGION, ROLE
from botocore.exceptions import ClientError
from conftest import ROOT, progress
from hypothesis import given
from hypothesis import strategies as st

from raytrain.config.job import Job
from raytrain.errors import ConfigError
from raytrain.report.live import epoch_line, step_line
from raytrain.sagemaker.aws import Account
from raytrain.sagemaker.request import (
    METRICS,
    Group,
    Places,
    base_name,
    build,
    groups_of,
    timed_name,
)
from raytrain.sagemaker.rules import check, check_own_channels
from raytrain.sagemaker.sdk import trainer_for

IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/mine:1"
ONE = [{"name": "gpu", "instance_type": "ml.g5.xlarge", "hosts": 2}]

# Changes of the job file; between them every option of the `sagemaker` section.
VARIANTS = {
    "groups": {},
    "one type and count": {"cluster__groups": ONE},
    "one group that channels name": {
        "cluster__groups": ONE,
        "sagemaker__channels": {"images": {"uri": f"s3://{BUCKET}/i", "groups": ["gpu"]}},
    },
    "channels": {
        "sagemaker__channels": {
            "images": {"uri": f"s3://{BUCKET}/i", "mode": "FastFile", "content_type": "image/jpeg"},
            "rows": {"uri": f"s3://{BUCKET}/r", "distribution": "ShardedByS3Key"},
        }
    },
    "bound channels": {
        "sagemaker__channels": {
            "images": {"uri": f"s3://{BUCKET}/i", "groups": ["cpu"]},
            "rows": {"uri": f"s3://{BUCKET}/r", "groups": ["gpu", "cpu"]},
        }
    },
    "spot": {"sagemaker__spot": True, "sagemaker__max_run_s": 100, "sagemaker__max_wait_s": 300},
    "spot with the default wait": {"sagemaker__spot": True},
    "warm pool": {"cluster__groups": ONE, "sagemaker__keep_alive_s": 600},
    "network": {
        "sagemaker__vpc": {"subnets": ["subnet-1", "subnet-2"], "security_groups": ["sg-1"]},
        "sagemaker__encrypt_traffic": True,
        "sagemaker__network_isolation": True,
    },
    "keys": {
        "sagemaker__kms": {"volume": "0123-4567", "output": "alias/out"},
        "cluster__groups": [{"name": "cpu", "instance_type": "ml.c5.4xlarge"}],
    },
    "checkpoints elsewhere": {"sagemaker__checkpoints": {"uri": f"s3://{BUCKET}/kept", "path": "/opt/ml/kept"}},
    "no checkpoints": {"sagemaker__checkpoints": None},
    "the rest": {
        "sagemaker__tags": {"team": "vision", "cost center": "7"},
        "sagemaker__environment": {"OMP_NUM_THREADS": "1", "PYTHONPATH": "/opt/mine"},
        "sagemaker__remote_debug": True,
        "sagemaker__retries": 3,
        "sagemaker__max_run_s": 7200,
        "sagemaker__max_pending_s": 3600,
        "sagemaker__volume_gb": 100,
        "sagemaker__output": f"s3://{BUCKET}/elsewhere",
        "sagemaker__metrics": {"mine": "x=([0-9]+)"},
        "sagemaker__image": IMAGE,
        "sagemaker__prefix": "",
        "sagemaker__bootstrap": ["--head-cpus", "2"],
        "name": "My_job.1",
    },
    "token in the environment": {"sagemaker__token": "environment"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_both_doors_send_the_same_request(aws, cloud_file, without_raytrain, variant):
    """Field by field, as the SDK sent it over HTTP; of the two names that it makes up only itself knows the second."""
    for key in ("i/1", "r/1"):
        boto3.client("s3").put_object(Bucket=BUCKET, Key=key, Body=b"1")
    job = Job.from_yaml(cloud_file(**VARIANTS[variant]))
    with trainer_for(job) as trainer:
        trainer.train(wait=False)
    [sent] = aws.requests("CreateTrainingJob")
    token_id = next((k.split("/")[-2] for k in aws.objects() if "tokens/" in k), "")
    prefix = job.sagemaker.prefix
    places = Places(BUCKET, prefix, base_name(job), sent["TrainingJobName"], token_id)
    image = IMAGE if "image" in str(VARIANTS[variant].keys()) else sent["AlgorithmSpecification"]["TrainingImage"]
    token = sent["Environment"].get("RAY_AUTH_TOKEN", "")
    mine = build(job, places, image=image, role=ROLE, token=token)
    assert mine == sent
    check(mine)
    assert len(token) == (64 if variant == "token in the environment" else 0)
    assert bool(token_id) != bool(token)
    for channel in mine["InputDataConfig"]:  # the SDK uploaded where the request says
        bucket, key = channel["DataSource"]["S3DataSource"]["S3Uri"].removeprefix("s3://").split("/", 1)
        assert any(name.startswith(key) for name in aws.objects(bucket=bucket)), channel


def test_the_pure_door_touches_nothing(cloud_tree, monkeypatch):
    import socket

    monkeypatch.setattr(socket, "socket", None)
    job = Job.from_dict(cloud_tree)
    check(build(job, Places(BUCKET, "p", "digits", "digits-1", "t"), image=IMAGE, role=ROLE))


def request(**changes):
    """A good request with some keys replaced; None drops one."""
    tree = {
        "name": "digits",
        "training": {"epochs": 1},
        "cluster": {
            "groups": [
                {"name": "gpu", "instance_type": "ml.g5.xlarge"},
                {"name": "cpu", "instance_type": "ml.c5.4xlarge"},
            ]
        },
        "sagemaker": {"role": ROLE},
    }
    made = build(Job.from_dict(tree), Places(BUCKET, "p", "digits", "digits-1", "t"), image=IMAGE, role=ROLE)
    return {key: value for key, value in {**made, **changes}.items() if value is not None}


def group(name, count=1, kind="ml.c5.xlarge"):
    return {"InstanceGroupName": name, "InstanceCount": count, "InstanceType": kind}


def channel(name, *groups):
    source = {"S3DataType": "S3Prefix", "S3Uri": "s3://b/c", **({"InstanceGroupNames": list(groups)} if groups else {})}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}


POOL = {"KeepAlivePeriodInSeconds": 60, "VolumeSizeInGB": 30}
SPOT = {"MaxRuntimeInSeconds": 100, "MaxWaitTimeInSeconds": 200}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"ResourceConfig": {"InstanceGroups": [group("a")], "InstanceCount": 1, "VolumeSizeInGB": 30}},
            "instance groups and one instance type and count exclude each other",
        ),
        (
            {"ResourceConfig": {"InstanceGroups": [group(f"g{n}") for n in range(6)]}},
            "at most 5 instance groups, and the job has 6",
        ),
        ({"ResourceConfig": {"InstanceGroups": [group("a"), group("a")]}}, "two instance groups are named 'a'"),
        ({"ResourceConfig": {"InstanceGroups": [group("a", 0)]}}, "an instance group needs at least one host"),
        ({"ResourceConfig": {"InstanceGroups": [group("a")], **POOL}}, "no warm pool .* for instance groups"),
        (
            {
                "ResourceConfig": {"InstanceType": "ml.c5.xlarge", "InstanceCount": 1, **POOL},
                "EnableManagedSpotTraining": True,
                "StoppingCondition": SPOT,
            },
            "no warm pool .* for spot jobs",
        ),
        ({"StoppingCondition": SPOT}, "max_wait_s is for spot jobs"),
        ({"EnableManagedSpotTraining": True}, "a spot job needs max_wait_s of at least its max_run_s, 86400 s"),
        (
            {"EnableManagedSpotTraining": True, "StoppingCondition": {**SPOT, "MaxWaitTimeInSeconds": 50}},
            "a spot job needs max_wait_s",
        ),
        ({"InputDataConfig": [channel("a"), channel("a")]}, "two input channels are named 'a'"),
        (
            {"InputDataConfig": [channel("a", "gpu"), channel("code")]},
            "either all input channels name instance groups or none does; without: code",
        ),
        ({"InputDataConfig": [channel("a", "gpo")]}, "bound to group 'gpo', which the job does not have.*mean 'gpu'"),
        (
            {
                "AlgorithmSpecification": {
                    "TrainingInputMode": "File",
                    "MetricDefinitions": [{"Name": "a", "Regex": "("}],
                }
            },
            "metric 'a': '.' is no regular expression",
        ),
        (
            {
                "AlgorithmSpecification": {
                    "TrainingInputMode": "File",
                    "MetricDefinitions": [{"Name": "a", "Regex": "b"}],
                }
            },
            "metric 'a': 'b' has no group",
        ),
        ({"CheckpointConfig": {"S3Uri": "s3://b/c", "LocalPath": "kept"}}, "must be an absolute path outside of"),
        (
            {"CheckpointConfig": {"S3Uri": "s3://b/c", "LocalPath": "/opt/ml/input/x"}},
            "must be an absolute path outside of",
        ),
        ({"Tags": [{"Key": "AWS:x", "Value": "y"}]}, "names that begin with aws: are Amazon's own"),
        ({"TrainingJobName": "a_b"}, "TrainingJobName: 'a_b' does not look like"),
        ({"TrainingJobName": "a" * 64}, "TrainingJobName is 64, and at most 63 is allowed"),
        ({"RoleArn": None}, 'Missing required parameter in input: "RoleArn"'),
        ({"RoleArn": "arn:aws:iam::1:role/x-and-more"}, "RoleArn: .* does not look like"),
        (
            {"ResourceConfig": {"InstanceGroups": [group("a", kind="ml.g5.xlrge")], "VolumeSizeInGB": 30}},
            r"ResourceConfig.InstanceGroups\[0\].InstanceType: there is no 'ml.g5.xlrge'; did you mean 'ml.g5.xlarge'",
        ),
        ({"RetryStrategy": {"MaximumRetryAttempts": 31}}, "RetryStrategy.MaximumRetryAttempts is 31, and at most 30"),
        ({"Environment": {"A-B": "1"}}, "a name in Environment: 'A-B' does not look like"),
        ({"Environment": {"A": "x" * 600}}, r"Environment\['A'\] is 600, and at most 512"),
        ({"Nonsense": 1}, 'SageMaker would refuse the request: Unknown parameter in input: "Nonsense"'),
    ],
)
def test_what_sagemaker_refuses_is_refused_before(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        check(request(**changes))
    assert "\n" not in str(caught.value)


def test_a_good_request_passes():
    check(request())
    check(request(ResourceConfig={"InstanceType": "ml.c5.xlarge", "InstanceCount": 1, **POOL}))


@pytest.mark.parametrize("name", ["code", "sm_drivers", "raytrain_token"])
def test_our_own_channels_are_taken(cloud_tree, name):
    cloud_tree["sagemaker"]["channels"] = {name: {"uri": "s3://bucket/x"}}
    made = build(Job.from_dict(cloud_tree), Places(BUCKET, "p", "b", "b-1", "t"), image=IMAGE, role=ROLE)
    with pytest.raises(ConfigError, match=f"'{name}' is a channel of raytrain's own"):
        check_own_channels(made)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sagemaker": None}, "the job file has no `sagemaker` section"),
        ({"cluster": {"groups": []}}, "the job file has no `cluster.groups`"),
        ({"cluster": {"groups": [{"name": "a", "cpus": 1}]}}, "group 'a' has no instance_type, such as"),
        ({"cluster": {"groups": [{"name": "a"}]}}, "group 'a' needs `instance_type` or `cpus`"),
        ({"cluster": {"groups": [{"name": "a", "instance_type": "g5.xlarge"}]}}, "does not have the form that"),
    ],
)
def test_a_job_that_cannot_be_a_request(cloud_tree, changes, message):
    with pytest.raises(ConfigError, match=message):
        job = Job.from_dict({**cloud_tree, **changes})
        build(job, Places(BUCKET, "p", "b", "b-1"), image=IMAGE, role=ROLE)


def test_groups_of_both_forms():
    assert groups_of(request()) == [Group("gpu", "ml.g5.xlarge", 1), Group("cpu", "ml.c5.4xlarge", 1)]
    one = request(ResourceConfig={"InstanceType": "ml.c5.xlarge", "InstanceCount": 3})
    assert groups_of(one) == [Group("homogeneousCluster", "ml.c5.xlarge", 3)]


def test_a_job_without_instances_of_its_own():
    with pytest.raises(ConfigError, match="the job a has no instances of its own"):
        groups_of({"TrainingJobName": "a"})


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", fullmatch=True))
def test_every_job_name_gives_a_name_that_sagemaker_takes(name):
    job = Job.from_dict({"name": name, "training": {"epochs": 1}})
    made = timed_name(base_name(job), datetime(2026, 11, 22, 13, 4, 55))
    assert re.fullmatch("[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", made)
    assert made.endswith("-20261122130455")


def test_the_metrics_read_the_lines_that_we_write():
    """CloudWatch searches every line of the log for each expression."""
    now = progress(epoch=3, epochs=30, step=5, total_steps=9, loss=0.4101, samples_per_s=812.4, wait_share=0.012)
    step = step_line(now, 21.0)
    epoch = {"epoch": 3, "loss": 0.25, "validation_loss": 0.5, "validation_accuracy": 0.9833, "seconds": 2.0}
    lines = [f"[algo-1] {step}", step, epoch_line({**epoch, "samples_per_s": 700.0}, 30)]
    found = {name: [float(m) for line in lines for m in re.findall(regex, line)] for name, regex in METRICS.items()}
    assert found == {
        "raytrain:samples_per_s": [812.4, 812.4, 700.0],
        "raytrain:wait_percent": [1.2, 1.2],
        "raytrain:loss": [0.4101, 0.4101, 0.25],
        "raytrain:validation_loss": [0.5],
        "raytrain:validation_accuracy": [0.9833],
    }


def test_the_region_is_the_jobs(aws, cloud_file, without_raytrain):
    """Both doors go where the job file says, whatever the environment has."""
    job = Job.from_yaml(cloud_file(sagemaker__region="eu-west-1", sagemaker__bucket="in-ireland"))
    boto3.client("s3", region_name="eu-west-1").create_bucket(
        Bucket="in-ireland", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
    )
    with trainer_for(job) as trainer:
        assert trainer.sagemaker_session.boto_region_name == "eu-west-1"
        assert ".eu-west-1." in trainer.training_image
        trainer.train(wait=False)
    assert Account(boto3.Session(region_name=REGION)).region == REGION
    [listed] = boto3.client("sagemaker", region_name="eu-west-1").list_training_jobs()["TrainingJobSummaries"]
    assert listed["TrainingJobName"].startswith("digits-")


def test_a_trainer_that_is_not_used_leaves_nothing(aws, cloud_file, without_raytrain):
    job = Job.from_yaml(cloud_file())
    with trainer_for(job):
        assert len(aws.objects()) == 1
    assert aws.objects() == []
    aws.refuse("CreateTrainingJob", "ResourceLimitExceeded", "no", times=99)
    with pytest.raises(ClientError), trainer_for(job) as trainer:
        trainer.train(wait=False)
    assert not any("/tokens/" in key for key in aws.objects())


def test_the_sdks_door_keeps_the_cap_too(aws, cloud_file, without_raytrain):
    with (
        pytest.raises(ConfigError, match=r"the job costs \$3.040 an hour"),
        trainer_for(Job.from_yaml(cloud_file(sagemaker__max_usd_per_hour=1))),
    ):
        pass


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nope.yaml"], 2, "raytrain: cannot read the job file nope.yaml"),
        ([], 2, "the following arguments are required"),
    ],
)
def test_the_sdks_script_has_no_tracebacks(words, code, message):
    command = [sys.executable, str(ROOT / "launch/with_sdk.py"), *words]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (ran.returncode, message in ran.stderr, "Traceback" in ran.stderr) == (code, True, False)
