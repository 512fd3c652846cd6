"""State, logs, stop and list of jobs, over real HTTP to moto's server."""

from __future__ import annotations

import json
import time

import boto3
import pytest
from aws import BUCKET, REGION, ROLE
from botocore.exceptions import EndpointConnectionError

from raytrain.errors import CloudError, CloudUnreachable
from raytrain.sagemaker import aws as door
from raytrain.sagemaker import training_jobs
from raytrain.sagemaker.submit import describe

GROUP = "/aws/sagemaker/TrainingJobs"
NOW = int(time.time() * 1000)


@pytest.fixture
def create(aws):
    """A function that creates a training job in a state, and its log."""

    def make(name="mine", **state):
        boto3.client("sagemaker").create_training_job(
            TrainingJobName=name,
            RoleArn=ROLE,
            AlgorithmSpecification={"TrainingImage": "i", "TrainingInputMode": "File"},
            OutputDataConfig={"S3OutputPath": f"s3://{BUCKET}/out"},
            ResourceConfig={
                "InstanceGroups": [
                    {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1, "InstanceGroupName": "gpu"},
                    {"InstanceType": "ml.c5.4xlarge", "InstanceCount": 3, "InstanceGroupName": "cpu"},
                ],
                "VolumeSizeInGB": 30,
            },
            StoppingCondition={"MaxRuntimeInSeconds": 100},
        )
        aws.states[name] = state
        return door.account(REGION)

    return make


def write_log(stream: str, *lines: tuple[int, str], new: bool = True) -> None:
    logs = boto3.client("logs")
    if new:
        if not logs.describe_log_groups()["logGroups"]:
            logs.create_log_group(logGroupName=GROUP)
        logs.create_log_stream(logGroupName=GROUP, logStreamName=stream)
    events = [{"timestamp": NOW + at, "message": text} for at, text in lines]
    logs.put_log_events(logGroupName=GROUP, logStreamName=stream, logEvents=events)


def test_the_lines_of_all_hosts_come_by_time_and_once(create):
    known = create()
    logs = training_jobs.Logs("mine", known)
    assert logs.new() == []  # before the first job of an account there is no group of logs
    write_log("mine/algo-1-170", (0, "a"), (20, "c"))
    write_log("mine/algo-2-171", (10, "b"))
    write_log("mine2/algo-1-170", (5, "another job's"))
    assert [(line.host, line.text) for line in logs.new()] == [("algo-1", "a"), ("algo-2", "b"), ("algo-1", "c")]
    assert logs.new() == []
    write_log("mine/algo-2-171", (30, "d"), new=False)
    assert [line.text for line in logs.new()] == ["d"]


def test_a_long_log_is_read_to_its_end(create):
    known = create()
    write_log("mine/algo-1-170", *[(n, f"line {n}") for n in range(9000)])
    assert len(training_jobs.Logs("mine", known).new()) == 9000


def test_what_was_read_before_an_error_is_not_lost(create, monkeypatch):
    known = create()
    write_log("mine/algo-1-170", (0, "a"))
    write_log("mine/algo-2-171", (10, "b"))
    logs = training_jobs.Logs("mine", known)
    read = logs._client.get_log_events
    broken = [True]

    def flaky(**more):
        if "algo-2" in more["logStreamName"] and broken:
            broken.clear()
            raise EndpointConnectionError(endpoint_url="x")
        return read(**more)

    monkeypatch.setattr(logs._client, "get_log_events", flaky)
    with pytest.raises(CloudUnreachable):
        logs.new()
    assert [line.text for line in logs.new()] == ["a", "b"]


def test_an_empty_page_is_not_the_end(create, monkeypatch):
    logs = training_jobs.Logs("mine", create())
    write_log("mine/algo-1-170", (0, "moto's"))
    pages = iter(
        [
            {"events": [], "nextForwardToken": "1"},
            {"events": [{"timestamp": 1, "message": "late"}], "nextForwardToken": "2"},
            {"events": [], "nextForwardToken": "2"},
        ]
    )
    monkeypatch.setattr(logs._client, "get_log_events", lambda **_: next(pages))
    assert [line.text for line in logs.new()] == ["late"]


def test_lines_that_arrive_after_the_end_are_shown(aws, create):
    known = create(TrainingJobStatus="Completed")
    write_log("mine/algo-1-170", (0, "begun"))
    shown = []

    def show(line):
        shown.append(line.text)
        if len(shown) == 1:
            write_log("mine/algo-1-170", (0, "the last words"), new=False)

    training_jobs.follow("mine", known, show, poll_s=0.01)
    assert shown == ["begun", "the last words"]


def test_throttling_does_not_end_the_following(aws, create, monkeypatch):
    monkeypatch.setattr(door, "TRIES", 1)
    create(TrainingJobStatus="Completed")
    aws.refuse("DescribeTrainingJob", "ThrottlingException", "slow down", times=1)
    assert training_jobs.follow("mine", door.account(REGION), print, poll_s=0.01)["TrainingJobStatus"] == "Completed"


def test_following_shows_states_and_ends_with_the_job(aws, create):
    known = create(TrainingJobStatus="InProgress", SecondaryStatus="Downloading")
    write_log("mine/algo-1-170", (0, "begun"))
    said, shown = [], []

    def show(line):
        shown.append(line.text)
        if line.text == "begun":
            write_log("mine/algo-1-170", (0, "ended"), new=False)
            aws.states["mine"] = {"TrainingJobStatus": "Completed"}

    described = training_jobs.follow("mine", known, show, said.append, poll_s=0.1)
    assert described["TrainingJobStatus"] == "Completed"
    assert [text.split(" (")[0] for text in said] == ["InProgress: Downloading", "Completed"]
    assert shown == ["begun", "ended"]


def test_following_lives_through_a_lost_connection(aws, create, monkeypatch):
    known = create(TrainingJobStatus="InProgress")
    calls = []

    def flaky(name, known, **more):
        calls.append(name)
        if len(calls) in (2, 3):
            raise CloudUnreachable("looking: AWS cannot be reached: gone")
        if len(calls) == 4:
            aws.states["mine"] = {"TrainingJobStatus": "Completed"}
        return describe(name, known, **more)

    monkeypatch.setattr(training_jobs, "describe", flaky)
    assert training_jobs.follow("mine", known, print, poll_s=0.01)["TrainingJobStatus"] == "Completed"
    monkeypatch.setattr(training_jobs, "PATIENCE_S", 0.0)
    calls.clear()
    aws.states["mine"] = {"TrainingJobStatus": "InProgress"}
    with pytest.raises(CloudError, match="AWS cannot be reached: gone; the job may go on: raytrain logs mine --follow"):
        training_jobs.follow("mine", known, print, poll_s=0.01)


def test_other_refusals_end_the_following(aws, create):
    known = create(TrainingJobStatus="InProgress")
    aws.refuse("DescribeTrainingJob", "AccessDeniedException", "no", times=9)
    with pytest.raises(CloudError, match="looking up the training job mine: not allowed: no"):
        training_jobs.follow("mine", known, print)


def test_stop_asks_once_and_refuses_what_has_ended(aws, create, cli):
    known = create(TrainingJobStatus="InProgress")
    stopped = cli("stop", "mine")
    assert stopped.stdout == "mine is stopping\n"
    assert len(aws.requests("StopTrainingJob")) == 1
    aws.states["mine"] = {"TrainingJobStatus": "Stopped"}
    with pytest.raises(CloudError, match="the job mine has ended already: Stopped"):
        training_jobs.stop("mine", known)
    again = cli("stop", "mine")
    assert (again.returncode, again.stderr) == (2, "raytrain: the job mine has ended already: Stopped\n")


def test_a_stop_that_comes_too_late_is_one_line(aws, create):
    """It ended between our look and our request."""
    known = create(TrainingJobStatus="InProgress")
    aws.refuse("StopTrainingJob", "ValidationException", "The request was rejected because it is in status Completed.")
    with pytest.raises(CloudError, match="stopping mine: ValidationException: The request was rejected"):
        training_jobs.stop("mine", known)


@pytest.mark.parametrize("command", ["status", "logs", "stop", "record"])
def test_a_job_that_does_not_exist(aws, command, cli):
    result = cli(command, "nobody")
    assert result.returncode == 2
    assert result.stderr == f"raytrain: there is no training job nobody in {REGION}; see raytrain jobs\n"


def test_status_says_how_it_is_and_what_it_costs_in_seconds(aws, create, cli):
    create(TrainingJobStatus="Completed", BillableTimeInSeconds=100)
    text = cli("status", "mine").stdout
    assert "mine: Completed" in text
    assert "gpu: 1 x ml.g5.xlarge, 100 billable instance seconds" in text
    assert "cpu: 3 x ml.c5.4xlarge, 300 billable instance seconds" in text
    assert "model: s3://" in text
    tree = json.loads(cli("status", "mine", "--json").stdout)
    assert tree["TrainingJobStatus"] == "Completed"
    assert "ResponseMetadata" not in tree


def test_the_services_own_words_are_shown():
    steps = [{"StatusMessage": "Insufficient capacity error from EC2 while launching instances, retrying!"}]
    described = {
        "TrainingJobStatus": "InProgress",
        "SecondaryStatus": "Pending",
        "SecondaryStatusTransitions": steps,
    }
    assert training_jobs.state_of(described) == f"InProgress: Pending ({steps[0]['StatusMessage']})"


def test_jobs_lists_the_latest_first(aws, create, cli):
    for name in ("first", "second", "other"):
        create(name)
    names = [found["TrainingJobName"] for found in json.loads(cli("jobs", "--json", "--limit", "2").stdout)]
    asked = aws.requests("ListTrainingJobs")[-1]
    assert (asked["SortBy"], asked["SortOrder"]) == ("CreationTime", "Descending")
    assert len(names) == 2
    text = cli("jobs", "--contains", "second").stdout
    assert "second" in text
    assert "Completed" in text
    assert "first" not in text


def test_logs_prints_what_there_is(aws, create, cli, quick_looks):
    create(TrainingJobStatus="Completed")
    write_log("mine/algo-1-170", (0, "hello"))
    assert cli("logs", "mine").stdout == "[algo-1] hello\n"
    assert json.loads(cli("logs", "mine", "--json").stdout)["text"] == "hello"
    followed = cli("logs", "mine", "--follow", "--json")
    assert (followed.returncode, json.loads(followed.stdout)["text"]) == (0, "hello")


def test_the_exit_code_is_the_jobs():
    assert training_jobs.EXIT_CODES == {"Completed": 0, "Failed": 1, "Stopped": 143}
