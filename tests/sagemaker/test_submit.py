"""Launching, over real HTTP to moto's server: everything or nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import boto3
import pytest
from aws import ACCOUNT, BUCKET, REGION, ROLE
from botocore.exceptions import ClientError, EndpointConnectionError
from conftest import RAYTRAIN, ROOT, run_cli
from patience import patient

from raytrain.config.job import Job
from raytrain.errors import CloudError, ConfigError, Stopped
from raytrain.sagemaker import aws as door
from raytrain.sagemaker import submit
from raytrain.sagemaker.parcel import pack


@pytest.fixture
def launch(cli, without_raytrain):
    return lambda path, *words, **environment: cli("launch", path, *words, **environment)


def line_of(result) -> str:
    """The one line that an error is."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    last = [line for line in result.stderr.splitlines() if line.startswith("raytrain: ")]
    assert len(last) == 1, result.stderr
    return last[0]


def test_a_launch_shows_the_plan_uploads_and_creates(aws, cloud_file, launch):
    result = launch(cloud_file(), "--yes")
    assert result.returncode == 0, result.stderr
    name = result.stdout.strip()
    assert "$3.040" in result.stderr
    assert f"https://{REGION}.console.aws.amazon.com/sagemaker/home?region={REGION}#/jobs/{name}" in result.stderr
    [request] = aws.requests("CreateTrainingJob")
    assert request["TrainingJobName"] == name
    for channel in request["InputDataConfig"]:
        key = channel["DataSource"]["S3DataSource"]["S3Uri"].removeprefix(f"s3://{BUCKET}/")
        assert any(found.startswith(f"{key}/") for found in aws.objects()), channel
    [token_key] = [key for key in aws.objects() if "/tokens/" in key]
    token = boto3.client("s3").get_object(Bucket=BUCKET, Key=token_key)["Body"].read().decode()
    assert len(token) == 64
    assert token not in result.stdout + result.stderr + json.dumps(request)


def test_two_launches_have_two_tokens(aws, cloud_file, launch):
    for name in ("a", "b"):
        assert launch(cloud_file(), "--yes", "--name", name).returncode == 0
    keys = [key for key in aws.objects() if "/tokens/" in key]
    assert len({boto3.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}) == 2


def test_a_dry_run_says_first_what_it_comes_to_and_touches_nothing(aws, cloud_file, launch):
    result = launch(cloud_file(), "--dry-run", "--name", "mine", AWS_ENDPOINT_URL="http://127.0.0.1:1")
    assert (result.returncode, result.stderr) == (0, "")
    first, second, *_, last = result.stdout.splitlines()
    assert (first, second) == (f"3 hosts in {REGION} for $3.040 an hour, at most $72.96", "job: mine")
    assert last == "dry run: nobody was asked and nothing was sent; --json prints the request"
    assert "{" not in result.stdout
    assert aws.sent == []
    assert aws.objects() == []


def test_a_dry_run_as_json_has_the_request_and_the_money(cloud_file, launch):
    result = launch(cloud_file(), "--dry-run", "--json")
    assert result.stderr == ""
    tree = json.loads(result.stdout)
    assert tree["request"]["RoleArn"] == ROLE
    assert tree["request"]["ResourceConfig"]["InstanceGroups"][1]["InstanceCount"] == 2
    assert tree["usd_per_hour"] == pytest.approx(1.408 + 2 * 0.816)
    assert tree["break_even"] == pytest.approx((1.408 + 2 * 0.816) / 1.408)
    assert tree["request"]["TrainingJobName"].startswith("digits-")


def test_a_dry_run_knows_the_account_from_the_role_or_says_that_it_does_not(cloud_file, launch):
    named = launch(cloud_file(sagemaker__bucket=None), "--dry-run")
    assert f"s3://sagemaker-{REGION}-{ACCOUNT}/" in named.stdout
    unnamed = launch(cloud_file(sagemaker__bucket=None, sagemaker__role="training"), "--dry-run")
    assert "nobody was asked for the account's number: 000000000000 stands for it" in unnamed.stdout


@pytest.mark.process
def test_no_is_no(aws, cloud_file):
    result = run_cli("launch", cloud_file())  # nothing on standard input: nobody said yes
    assert result.returncode == 130
    assert result.stderr.splitlines()[-1] == "raytrain: not launched; --yes launches without asking"
    assert aws.requests("CreateTrainingJob") == []
    assert aws.objects() == []


@pytest.mark.process
def test_a_yes_is_asked_for(aws, cloud_file):
    asked = subprocess.run([*RAYTRAIN, "launch", cloud_file()], input="y\n", capture_output=True, text=True, cwd=ROOT)
    assert asked.returncode == 0, asked.stderr
    assert "launch? [y/N]" in asked.stderr
    assert len(aws.requests("CreateTrainingJob")) == 1


def test_role_by_name_and_default_bucket_are_looked_up(aws, cloud_file, launch):
    result = launch(cloud_file(sagemaker__role="training", sagemaker__bucket=None), "--yes", "--json")
    assert json.loads(result.stdout)["arn"].startswith("arn:aws:sagemaker:")
    [request] = aws.requests("CreateTrainingJob")
    assert request["RoleArn"] == ROLE
    assert request["OutputDataConfig"]["S3OutputPath"].startswith(f"s3://{BUCKET}/")


@pytest.mark.parametrize(
    ("changes", "environment", "message"),
    [
        ({"sagemaker__role": None}, {}, "no role: set sagemaker.role to the ARN or name"),
        ({"sagemaker__role": "nobody"}, {}, "there is no role nobody; create it, or correct sagemaker.role"),
        ({"sagemaker__bucket": "not-there"}, {}, f"there is no bucket not-there; create it in {REGION}"),
        (
            {"sagemaker__channels": {"images": {"uri": f"s3://{BUCKET}/no/such"}}},
            {},
            f"channel 'images': there is nothing at s3://{BUCKET}/no/such",
        ),
        (
            {"sagemaker__channels": {"images": {"uri": "s3://no-bucket/x"}}},
            {},
            "channel 'images' (s3://no-bucket/x): there is no bucket no-bucket",
        ),
        ({}, {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no AWS credentials found; run `aws configure`"),
        ({}, {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "AWS cannot be reached: "),
        (
            {},
            {"AWS_PROFILE": "nobody"},
            "the AWS configuration cannot be used: The config profile (nobody) could not be found",
        ),
        ({"sagemaker__region": None}, {"AWS_DEFAULT_REGION": ""}, "no AWS region is known; set sagemaker.region"),
        ({"cluster__groups": [{"name": "a", "instance_type": "ml.g5.xlrge"}]}, {}, "there is no 'ml.g5.xlrge'; did"),
        ({"sagemaker__image": {"version": "0.1"}}, {}, "sagemaker.image: Unsupported pytorch version: 0.1"),
        ({"sagemaker__role": "arn:aws:iam::999999999999:role/training"}, {}, f"in this account, but {ROLE}; correct"),
        ({"sagemaker__bucket": "s3://mine"}, {}, "sagemaker.bucket does not have the form"),
        ({"sagemaker__source_dir": "/nowhere"}, {}, "sagemaker.source_dir: there is no folder /nowhere"),
    ],
)
def test_what_is_wrong_is_one_line_and_no_job(aws, cloud_file, changes, environment, message, launch):
    result = launch(cloud_file(**changes), "--yes", **environment)
    assert message in line_of(result)
    assert aws.requests("CreateTrainingJob") == []
    assert aws.objects() == []


def test_a_bucket_in_another_region(aws, cloud_file, launch):
    boto3.client("s3", region_name="eu-west-3").create_bucket(
        Bucket="in-paris", CreateBucketConfiguration={"LocationConstraint": "eu-west-3"}
    )
    message = line_of(launch(cloud_file(sagemaker__bucket="in-paris"), "--yes"))
    assert f"the bucket in-paris is in eu-west-3, the job in {REGION}; SageMaker wants both in one" in message


@pytest.mark.parametrize(
    ("region", "start"),
    [
        ("eu-west-1", "https://eu-west-1.console.aws.amazon.com/sagemaker/home?region=eu-west-1#/jobs/"),
        ("cn-north-1", "https://console.amazonaws.cn/sagemaker/home?region=cn-north-1#/jobs/"),
        ("us-gov-west-1", "https://console.amazonaws-us-gov.com/sagemaker/home?region=us-gov-west-1#/jobs/"),
    ],
)
def test_the_console_of_every_partition(region, start):
    assert door.account(region).console == start


def test_a_region_without_prices_says_how_to_go_on(aws, cloud_file, launch):
    boto3.client("s3", region_name="eu-west-3").create_bucket(
        Bucket="in-paris", CreateBucketConfiguration={"LocationConstraint": "eu-west-3"}
    )
    path = cloud_file(sagemaker__region="eu-west-3", sagemaker__bucket="in-paris")
    message = line_of(launch(path, "--yes"))
    assert "there are no prices of region 'eu-west-3' here (only of us-east-1, us-west-2)" in message
    assert "--no-prices" in message
    assert launch(path, "--yes", "--no-prices").returncode == 0


REFUSALS = [
    ("ResourceLimitExceeded", "The account-level service limit 'ml.g5.xlarge' is 0.", "a quota of this account is too"),
    ("ExpiredTokenException", "The security token is expired", "the AWS credentials have expired; log in again"),
    ("UnrecognizedClientException", "Invalid", "AWS does not know these credentials (UnrecognizedClientException)"),
    ("AccessDeniedException", "User is not authorized to perform PassRole", "not allowed: User is not authorized"),
    ("ValidationException", "Something else", "ValidationException: Something else"),
]


@pytest.mark.parametrize(("code", "text", "message"), REFUSALS)
def test_a_refusal_is_one_line_and_takes_back_what_was_uploaded(aws, cloud_file, code, text, message, launch):
    aws.refuse("CreateTrainingJob", code, text, times=9)
    result = launch(cloud_file(), "--yes")
    assert message in line_of(result)
    assert "taking back what was uploaded" in result.stderr
    assert aws.objects() == []


@pytest.fixture
def ready(aws, cloud_file, tmp_path, without_raytrain):
    """A function that prepares and stages a launch in this process."""

    def make(**changes):
        job = Job.from_yaml(cloud_file(**changes))
        known = door.account(REGION)
        return submit.prepare(job, known), pack(job, tmp_path / "parcel"), known

    return make


def test_throttling_is_tried_again(aws, ready):
    prepared, parcel, known = ready()
    aws.refuse("CreateTrainingJob", "ThrottlingException", "Rate exceeded", times=2)
    assert submit.submit(prepared, parcel, known).endswith(prepared.quote.name)
    assert len(aws.requests("CreateTrainingJob")) == 3


def test_throttling_that_does_not_end(aws, ready, monkeypatch):
    monkeypatch.setattr(door, "TRIES", 2)
    prepared, parcel, known = ready()
    aws.refuse("CreateTrainingJob", "ThrottlingException", "Rate exceeded", times=99)
    with pytest.raises(CloudError, match="AWS goes on throttling after 2 tries"):
        submit.submit(prepared, parcel, known)
    assert aws.objects() == []


def test_a_name_that_is_taken_is_found_before_anything_is_uploaded(aws, cloud_file, launch):
    assert launch(cloud_file(), "--yes", "--name", "mine").returncode == 0
    before = aws.objects()
    message = line_of(launch(cloud_file(), "--yes", "--name", "mine"))
    assert "there is a training job named mine already; choose another by --name" in message
    assert aws.objects() == before


def test_a_name_taken_meanwhile_is_found_too(aws, ready):
    prepared, parcel, known = ready()
    other = Job.from_dict({**prepared.job.model_dump(exclude_unset=True), "name": "somebody-elses"})
    elsewhere = submit.prepare(other, known)
    known.sagemaker.create_training_job(**{**elsewhere.request, "TrainingJobName": prepared.quote.name})
    with pytest.raises(CloudError, match="there is a training job named .* already"):
        submit.submit(prepared, parcel, known)
    assert aws.objects() == []


def test_an_answer_that_was_lost_is_no_second_job(aws, ready):
    """The first try created the job, its answer did not come back, and the second finds the name taken: by us."""
    prepared, parcel, known = ready()
    known.sagemaker.create_training_job(**prepared.request)
    assert submit.submit(prepared, parcel, known).endswith(prepared.quote.name)
    assert len(aws.jobs) == 1
    assert len(aws.objects()) > 10


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_ctrl_c_while_uploading_leaves_nothing(aws, ready, monkeypatch):
    prepared, parcel, known = ready()
    monkeypatch.setattr(known.s3, "put_object", interrupt)
    with pytest.raises(Stopped, match="stopped; nothing was started"):
        submit.submit(prepared, parcel, known)
    assert aws.objects() == []


def test_sigterm_while_uploading_leaves_nothing(aws, ready, monkeypatch):
    prepared, parcel, known = ready()
    monkeypatch.setattr(known.s3, "put_object", lambda **_: os.kill(os.getpid(), 15))
    with pytest.raises(Stopped, match="stopped; nothing was started") as caught:
        submit.submit(prepared, parcel, known)
    assert caught.value.exit_code == 143
    assert aws.objects() == []


def created_but(known, monkeypatch, then):
    """The service takes the request, and then its answer does not arrive."""
    create = known.sagemaker.create_training_job

    def lost(**request):
        create(**request)
        then()

    monkeypatch.setattr(known.sagemaker, "create_training_job", lost)


def test_ctrl_c_after_the_request_arrived_says_that_the_job_exists(aws, ready, monkeypatch):
    prepared, parcel, known = ready()
    created_but(known, monkeypatch, interrupt)
    with pytest.raises(
        Stopped, match=f"stopped, but the job {prepared.quote.name} exists and goes on; end it: raytrain"
    ):
        submit.submit(prepared, parcel, known)
    assert len(aws.objects()) > 10, "its code and token are still there"


@pytest.mark.parametrize("token", ["channel", "environment"])
def test_an_answer_that_never_comes_is_looked_up(aws, ready, monkeypatch, token):
    prepared, parcel, known = ready(sagemaker__token=token)
    created_but(known, monkeypatch, lambda: (_ for _ in ()).throw(EndpointConnectionError(endpoint_url="x")).__next__())
    assert submit.submit(prepared, parcel, known).endswith(prepared.quote.name)
    assert len(aws.objects()) > 10


def test_ctrl_c_before_the_request_arrived_leaves_nothing(aws, ready, monkeypatch):
    prepared, parcel, known = ready()
    monkeypatch.setattr(known.sagemaker, "create_training_job", interrupt)
    with pytest.raises(Stopped, match="stopped; nothing was started"):
        submit.submit(prepared, parcel, known)
    assert aws.objects() == []


def test_what_cannot_be_known_is_said_and_nothing_deleted(aws, ready, monkeypatch):
    prepared, parcel, known = ready()
    created_but(known, monkeypatch, interrupt)
    aws.refuse("DescribeTrainingJob", "AccessDeniedException", "no", times=9)
    with pytest.raises(CloudError, match="whether the job .* exists is not known, so that what was uploaded stays"):
        submit.submit(prepared, parcel, known)
    assert len(aws.objects()) > 10


@pytest.mark.parametrize("token", ["channel", "environment"])
def test_two_launches_in_the_same_second_do_not_harm_each_other(aws, ready, token):
    """The same name, and so the same place for the code: the second is refused and deletes no more than its own."""
    prepared, parcel, known = ready(sagemaker__token=token)
    other = submit.prepare(prepared.job, known, name=prepared.quote.name)
    submit.submit(prepared, parcel, known)
    before = aws.objects()
    with pytest.raises(CloudError, match="there is a training job named .* already"):
        submit.submit(other, parcel, known)
    assert aws.objects() == before


def test_what_cannot_be_deleted_is_named(aws, ready, monkeypatch):
    prepared, parcel, known = ready()
    aws.refuse("CreateTrainingJob", "ValidationException", "no")
    delete = known.s3.delete_object

    def refuse(**where):
        if where["Key"].endswith("job.yaml"):
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "DeleteObject")
        return delete(**where)

    monkeypatch.setattr(known.s3, "delete_object", refuse)
    said = []
    with pytest.raises(CloudError, match="ValidationException: no"):
        submit.submit(prepared, parcel, known, said.append)
    [left] = aws.objects()
    assert said[-1] == f"could not delete 1 objects, delete them yourself: s3://{BUCKET}/{left} …"


def test_uploads_are_encrypted_with_the_users_key(aws, ready):
    prepared, parcel, known = ready(sagemaker__kms={"output": "alias/mine"})
    submit.submit(prepared, parcel, known)
    for key in aws.objects():
        head = boto3.client("s3").head_object(Bucket=BUCKET, Key=key)
        assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", "alias/mine")


def test_what_looks_like_a_secret_is_told_of_and_not_shown(cloud_file, launch):
    path = cloud_file(
        sagemaker__environment={"HF_TOKEN": "planted-1", "EPOCHS": "3"}, model__options={"api_key": "planted-2"}
    )
    as_json, told = launch(path, "--dry-run", "--json"), launch(path, "--dry-run")
    assert json.loads(as_json.stdout)["request"]["Environment"]["HF_TOKEN"] == "***"
    assert json.loads(as_json.stdout)["request"]["Environment"]["EPOCHS"] == "3"
    said = " ".join((told.stdout + told.stderr).split())
    assert "HF_TOKEN is in the job's environment: whoever may describe the job can read it" in said
    assert "model.options.api_key goes into S3 with the job file: whoever can read it there has it" in said
    assert "planted-" not in as_json.stdout + as_json.stderr + said


def test_the_token_travels_in_the_environment_only_when_asked_to(aws, cloud_file, launch):
    result = launch(cloud_file(sagemaker__token="environment"), "--yes")
    [request] = aws.requests("CreateTrainingJob")
    token = request["Environment"]["RAY_AUTH_TOKEN"]
    assert "whoever may describe the job can read it" in result.stderr
    assert token not in result.stdout + result.stderr
    assert not any("/tokens/" in key for key in aws.objects())
    dry = launch(cloud_file(sagemaker__token="environment"), "--dry-run", "--json")
    assert json.loads(dry.stdout)["request"]["Environment"]["RAY_AUTH_TOKEN"] == "(made for every launch)"


@pytest.mark.parametrize("name", ["a_b", "-a", "a" * 64, "a--b-"])
def test_a_name_that_sagemaker_does_not_take(cloud_tree, name):
    with pytest.raises(ConfigError, match="must be letters, digits and, between them, hyphens"):
        submit.prepare(Job.from_dict(cloud_tree), None, name=name)


def test_what_one_may_not_see_is_left_to_the_role(aws, cloud_tree, monkeypatch):
    """Neither the role nor a channel that the user may use but not look at stops a launch."""
    known = door.account(REGION)
    denied = ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "x")

    def refuse(**_):
        raise denied

    asked = Job.from_dict(cloud_tree | {"sagemaker": {"role": ROLE, "channels": {"a": {"uri": "s3://bucket/x"}}}})
    monkeypatch.setattr(known.s3, "list_objects_v2", refuse)
    [note] = door.check_channels(asked.sagemaker, known)
    assert note == "channel a: you may not look into s3://bucket/x; the role must be able to"
    iam = known.client("iam")
    monkeypatch.setattr(iam, "get_role", refuse)
    monkeypatch.setattr(door.Account, "client", lambda *_: iam)
    assert door.role_arn(asked.sagemaker, known) == ROLE
    with pytest.raises(CloudError, match="looking up the role training: not allowed: no"):
        door.role_arn(asked.sagemaker.model_copy(update={"role": "training"}), known)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("SSOTokenLoadError", "have expired; run `aws sso login` again"),
        ("UnauthorizedSSOTokenError", "have expired; run `aws sso login` again"),
        ("NoRegionError", "no AWS region; set sagemaker.region or AWS_DEFAULT_REGION"),
        ("DataNotFoundError", "looking: Unable to load data"),
    ],
)
def test_what_boto3_raises_is_one_line(error, message):
    import botocore.exceptions

    kind = getattr(botocore.exceptions, error)
    words = {"error_msg": "gone", "data_path": "x"} if error != "NoRegionError" else {}
    with pytest.raises(CloudError, match=message), door.explained("looking"):
        raise kind(**words)


def test_an_upload_that_s3_refuses(aws, ready):
    prepared, parcel, known = ready()
    boto3.client("s3").delete_bucket(Bucket=BUCKET)
    with pytest.raises(CloudError, match="uploading to s3://.*Failed to upload .*NoSuchBucket"):
        submit.submit(prepared, parcel, known)


@pytest.mark.parametrize(
    ("module", "message"),
    [("boto3", "this needs boto3: pip install"), ("sagemaker.core", "give an address, or pip install")],
)
def test_what_is_not_installed_is_named(cloud_tree, monkeypatch, module, message):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"{message} 'raytrain.sagemaker.'"):
        submit.prepare(Job.from_dict(cloud_tree), None)


def test_wait_shows_the_log_and_ends_as_the_job_does(aws, cloud_file, launch, quick_looks):
    name = "mine"
    aws.states[name] = {"TrainingJobStatus": "InProgress", "SecondaryStatus": "Starting"}
    logs = boto3.client("logs")
    logs.create_log_group(logGroupName="/aws/sagemaker/TrainingJobs")
    stream = {"logGroupName": "/aws/sagemaker/TrainingJobs", "logStreamName": f"{name}/algo-1-1700000000"}
    logs.create_log_stream(**stream)
    logs.put_log_events(**stream, logEvents=[{"timestamp": int(time.time() * 1000), "message": "hello from the job"}])

    reason = "AlgorithmError: it broke in [/opt/ml/code] [gpu], exit code: 3"
    looks = []

    def fail_at_the_second_look(_):
        looks.extend(aws.jobs)
        if len(looks) == 2:
            aws.states[name] = {"TrainingJobStatus": "Failed", "FailureReason": reason}

    aws.on_describe = fail_at_the_second_look
    result = launch(cloud_file(), "--yes", "--name", name, "--wait")
    assert result.returncode == 1
    assert result.stdout.splitlines() == [name, "[algo-1] hello from the job"]
    assert "InProgress: Starting" in result.stderr
    assert f"Failed ({reason})" in result.stderr


@pytest.mark.process
def test_ctrl_c_while_waiting_leaves_the_job_alone(aws, cloud_file):
    aws.states["mine"] = {"TrainingJobStatus": "InProgress"}
    command = [*RAYTRAIN, "launch", str(cloud_file()), "--yes", "--name", "mine", "--wait"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    assert any(line.startswith("InProgress") for line in process.stderr), "it waits"
    process.send_signal(2)
    last = process.stderr.read().splitlines()[-1]  # not `communicate`, which does not see what was read ahead
    assert process.wait(timeout=patient(30)) == 130
    assert last == (
        "raytrain: no longer waiting; the job goes on. See it: raytrain logs mine --follow; end it: raytrain stop mine"
    )
    assert aws.requests("StopTrainingJob") == []
