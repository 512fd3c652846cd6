"""The twin: what a container finds, how a job ends, what is collected. Real processes on simulated hosts, no Ray."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
import threading
import time

import boto3
import pytest
from aws import BUCKET, REGION, ROLE
from conftest import RAYTRAIN, run_cli
from patience import patient
from simulated_job import on_simulated_hosts

from raytrain.cost.instances import catalog
from raytrain.errors import CloudError, ClusterError, ConfigError
from raytrain.sagemaker import aws as door
from raytrain.sagemaker.twin.store import Store, relative_key
from raytrain.sagemaker.twin.twin import TwinJob, TwinOptions, place

pytestmark = on_simulated_hosts

TWO_GROUPS = [
    {"InstanceGroupName": "gpu", "InstanceType": "ml.g5.12xlarge", "InstanceCount": 1},
    {"InstanceGroupName": "cpu", "InstanceType": "ml.c5.4xlarge", "InstanceCount": 2},
]


@pytest.fixture
def twin(tmp_path):
    """A function that runs a shell script as the container of a job of three hosts."""

    def run(script, store=None, options=None, groups=TWO_GROUPS, name="twin-1", heard=lambda lines: None, **changes):
        request = {
            "TrainingJobName": name,
            "RoleArn": ROLE,
            "AlgorithmSpecification": {
                "TrainingImage": "none",
                "TrainingInputMode": "File",
                "ContainerEntrypoint": ["/bin/bash"],
                "ContainerArguments": ["-c", script],
            },
            "OutputDataConfig": {"S3OutputPath": "s3://bucket/out"},
            "ResourceConfig": {"InstanceGroups": groups, "VolumeSizeInGB": 30},
            "StoppingCondition": {"MaxRuntimeInSeconds": int(patient(60))},
            **changes,
        }
        said: list[str] = []
        lines: list[tuple[str, str]] = []

        def show(host: str, line: str) -> None:
            lines.append((host, line))
            heard(lines)

        job = TwinJob(
            request,
            tmp_path / name,
            store or Store(),
            catalog(),
            options or TwinOptions(),
            show=show,
            say=said.append,
        )
        described = job.run()
        return described, lines, said

    return run


def channel(name, uri, groups=(), distribution="FullyReplicated", mode="File"):
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": distribution}
    if groups:
        source["InstanceGroupNames"] = list(groups)
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, "InputMode": mode, "ContentType": "text/x"}


def of(lines, host):
    return [line for who, line in lines if who == host]


def test_what_a_container_finds(twin, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of this machine")
    script = """
        cat /opt/ml/input/config/resourceconfig.json; echo
        cat /opt/ml/input/config/hyperparameters.json; echo
        hostname; env | sort | tr '\\n' ' '; echo; ls -d /opt/ml/model /opt/ml/output/data /opt/ml/checkpoints
        pwd; echo $$
    """
    described, lines, _ = twin(
        script,
        HyperParameters={"lr": "0.1"},
        Environment={"MINE": "1"},
        CheckpointConfig={"S3Uri": "s3://bucket/kept", "LocalPath": "/opt/ml/checkpoints"},
    )
    assert described["TrainingJobStatus"] == "Completed"
    groups = described["Twin"]["Groups"]
    for host in ("algo-1", "algo-2", "algo-3"):
        config, hyper, name, environment, *folders, where, pid = of(lines, host)
        config = json.loads(config)
        assert config["current_host"] == name == host
        assert config["current_group_name"] == groups[host]
        assert [g["instance_group_name"] for g in config["instance_groups"]] == ["gpu", "cpu"]
        assert json.loads(hyper) == {"lr": "0.1"}
        assert folders == ["/opt/ml/checkpoints", "/opt/ml/model", "/opt/ml/output/data"]
        assert (where, pid) == ("/", "1")
        assert "MINE=1 " in environment
        assert "TRAINING_JOB_NAME=twin-1 " in environment
        assert "TRAINING_JOB_ARN=arn:aws:sagemaker:twin:123456789012:training-job/twin-1 " in environment
        assert "AWS_SECRET" not in environment
        assert ("RAYTRAIN_EMULATED_GPUS=4 " in environment) == (groups[host] == "gpu")
    assert sorted(groups.values()) == ["cpu", "cpu", "gpu"]


def test_hosts_are_dealt_out_in_no_particular_order():
    base = {"ResourceConfig": {"InstanceGroups": TWO_GROUPS}}
    gpu_hosts = set()
    for number in range(30):
        placed = place({**base, "TrainingJobName": f"job-{number}"})
        assert list(placed) == ["algo-1", "algo-2", "algo-3"]
        gpu_hosts |= {name for name, group in placed.items() if group.name == "gpu"}
    assert gpu_hosts == {"algo-1", "algo-2", "algo-3"}
    assert place({**base, "TrainingJobName": "a"}) == place({**base, "TrainingJobName": "a"})


def test_channels_reach_the_groups_they_are_bound_to(twin, tmp_path):
    for name in ("both", "one"):
        (tmp_path / name).mkdir()
    for number in range(5):
        (tmp_path / "both" / f"{number}.txt").write_text(str(number))
    (tmp_path / "one" / "x.txt").write_text("x")
    store = Store({"s3://bucket/both": tmp_path / "both", "s3://bucket/one": tmp_path / "one"})
    channels = [
        channel("both", "s3://bucket/both", ["gpu", "cpu"], mode="FastFile"),
        channel("one", "s3://bucket/one", ["gpu"]),
        channel("shards", "s3://bucket/both", ["cpu"], "ShardedByS3Key"),
    ]
    script = "cd /opt/ml/input/data; find . -type f | sort | tr '\\n' ' '; echo; cat ../config/inputdataconfig.json"
    described, lines, _ = twin(script, store, InputDataConfig=channels)
    shards = []
    for host, group in described["Twin"]["Groups"].items():
        files, config = of(lines, host)
        whole = [f"./both/{n}.txt" for n in range(5)]
        assert files.split()[:5] == whole
        rest = files.split()[5:]
        assert set(json.loads(config)) == ({"both", "one"} if group == "gpu" else {"both", "shards"})
        assert json.loads(config)["both"]["TrainingInputMode"] == "FastFile"
        if group == "gpu":
            assert rest == ["./one/x.txt"]
        else:
            shards += rest
    assert sorted(shards) == [f"./shards/{n}.txt" for n in range(5)], "each object on one host of the group"


def test_what_the_hosts_leave_is_collected_and_their_disks_are_gone(twin, tmp_path):
    script = """
        echo m > /opt/ml/model/$(hostname).txt; echo $(hostname) > /opt/ml/model/same.txt
        mkdir -p /opt/ml/output/data/deep; echo o > /opt/ml/output/data/deep/$(hostname)
        echo c > /opt/ml/checkpoints/$(hostname); ln -s /etc/passwd /opt/ml/model/link
        echo out; echo err >&2; printf 'no newline'
    """
    described, lines, said = twin(script, CheckpointConfig={"S3Uri": "s3://b/kept"})
    artifacts = described["Twin"]["Artifacts"]
    with tarfile.open(artifacts["model"]) as archive:
        assert sorted(archive.getnames()) == ["algo-1.txt", "algo-2.txt", "algo-3.txt", "same.txt"]
        assert archive.extractfile("same.txt").read() == b"algo-1\n"
    assert sum("model: several hosts left same.txt; the first one's counts" in text for text in said) == 2
    with tarfile.open(artifacts["output"]) as archive:
        assert sorted(archive.getnames()) == ["deep/algo-1", "deep/algo-2", "deep/algo-3"]
    assert sorted(p.name for p in (tmp_path / "twin-1/checkpoints").iterdir()) == ["algo-1", "algo-2", "algo-3"]
    assert sorted(of(lines, "algo-2")) == ["err", "no newline", "out"]
    assert (tmp_path / "twin-1/logs/algo-2.log").read_text().splitlines()[-1] == "no newline"
    assert sorted(p.name for p in (tmp_path / "twin-1").iterdir()) == [
        "checkpoints",
        "description.json",
        "logs",
        "model.tar.gz",
        "output.tar.gz",
    ]


def test_any_container_that_fails_ends_the_job(twin, tmp_path):
    """The others get SIGTERM; the first failure is the job's, and there is no model."""
    script = """
        echo x > /opt/ml/model/x
        if [ $(hostname) = algo-2 ]; then
          until [ -e /opt/ml/go ]; do sleep 0.05; done; echo -n 'it broke' > /opt/ml/output/failure; exit 3
        fi
        trap 'echo terminated; exit 0' TERM; echo listens; while true; do sleep 0.1; done
    """

    def fail_when_the_others_listen(lines):
        if {("algo-1", "listens"), ("algo-3", "listens")} <= set(lines):
            (tmp_path / "twin-1/hosts/algo-2/ml/go").touch()

    began = time.monotonic()
    described, lines, said = twin(script, heard=fail_when_the_others_listen)
    assert time.monotonic() - began < patient(20)
    assert described["TrainingJobStatus"] == "Failed"
    assert described["FailureReason"] == "AlgorithmError: it broke, exit code: 3"
    assert described["Twin"]["ExitCodes"] == {"algo-1": 0, "algo-2": 3, "algo-3": 0}
    assert "terminated" in of(lines, "algo-1")
    assert "model" not in described["Twin"]["Artifacts"]
    assert any("Failed: SIGTERM to algo-1, algo-3" in text for text in said)


def test_a_failure_without_a_word(twin):
    described, _, _ = twin("exit 9", groups=[TWO_GROUPS[0]])
    assert described["FailureReason"] == "AlgorithmError: no failure file on algo-1, exit code: 9"


def test_a_failure_file_is_cut_as_sagemaker_cuts_it(twin):
    described, _, _ = twin(
        "head -c 5000 /dev/zero | tr '\\0' x > /opt/ml/output/failure; exit 1", groups=[TWO_GROUPS[0]]
    )
    assert described["FailureReason"].count("x") == 1024 + 1  # and the one in "exit code"


def test_the_longest_run_time_stops_the_job(twin):
    script = "trap 'echo saved > /opt/ml/model/x; exit 0' TERM; while true; do sleep 0.1; done"
    described, _, _ = twin(script, StoppingCondition={"MaxRuntimeInSeconds": int(patient(3))})
    assert (described["TrainingJobStatus"], described["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")
    assert "model" in described["Twin"]["Artifacts"], "what a stopped job saved is kept"


def test_a_stop_that_is_not_heard_ends_in_a_kill(twin):
    options = TwinOptions(stop_after_s=0.5, kill_after_s=1.0)
    described, _, _ = twin("trap '' TERM; while true; do sleep 0.1; done", options=options, groups=[TWO_GROUPS[0]])
    assert (described["TrainingJobStatus"], described["Twin"]["ExitCodes"]) == ("Stopped", {"algo-1": 137})


BURN = "(ulimit -t {}; while :; do :; done)"  # so many seconds of a CPU, however long they take


def cpu_s(described, lines, host):
    """Seconds of a CPU by the meter: the mean that it saw, over the time that the host has printed."""
    [mean] = [load["CPUUtilization"]["mean"] for load in described["Twin"]["Loads"] if load["Host"] == host]
    return mean / 100 * max(int(line) for name, line in lines if name == host and line.isdigit())


def test_billable_seconds_and_load_are_of_every_host(twin):
    script = f"if [ $(hostname) = algo-1 ]; then {BURN.format(3)}; else sleep 4; fi; echo $SECONDS"
    described, lines, _ = twin(script)
    assert 3 <= described["BillableTimeInSeconds"] <= patient(15)
    assert 2 < cpu_s(described, lines, "algo-1") < 4.5
    assert cpu_s(described, lines, "algo-2") < 1


def test_a_quota_scales_the_hosts_down(twin):
    """A tenth of four cores is 0.4: a busy loop gets no more."""
    groups = [{"InstanceGroupName": "cpu", "InstanceType": "ml.c5.xlarge", "InstanceCount": 1}]
    script = f"{BURN.format(2)}; echo $SECONDS"
    described, lines, _ = twin(script, options=TwinOptions(scale=0.1), groups=groups)
    assert 1 < cpu_s(described, lines, "algo-1") < 3
    assert described["Twin"]["Loads"][0]["CPUUtilization"]["mean"] < 50


def test_fewer_emulated_gpus(twin):
    described, lines, _ = twin("echo gpus=$RAYTRAIN_EMULATED_GPUS", options=TwinOptions(gpus=1))
    groups = described["Twin"]["Groups"]
    assert {(groups[host], line) for host, line in lines} == {("gpu", "gpus=1"), ("cpu", "gpus=")}


def test_of_a_checkpoint_that_came_back_the_changed_one_counts(twin, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "record").write_text("old")
    store = Store({"s3://b/kept": tmp_path / "kept"})
    script = "sleep 0.1; if [ $(hostname) = algo-3 ]; then echo -n new > /opt/ml/checkpoints/record; fi"
    _, _, said = twin(script, store, CheckpointConfig={"S3Uri": "s3://b/kept"})
    assert (tmp_path / "twin-1/checkpoints/record").read_text() == "new"
    assert not any("several hosts left" in text for text in said)


def test_checkpoints_that_are_kept_elsewhere_come_back(twin, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "old").write_text("old")
    store = Store({"s3://b/kept": tmp_path / "kept"})
    _, lines, _ = twin(
        "ls /opt/ml/checkpoints/deep",
        store,
        CheckpointConfig={"S3Uri": "s3://b/kept", "LocalPath": "/opt/ml/checkpoints/deep"},
    )
    assert {line for _, line in lines} == {"old"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"AlgorithmSpecification": {"TrainingImage": "i"}}, "the request has no ContainerEntrypoint"),
        ({"InputDataConfig": [channel("a", "s3://b/c", mode="Pipe")]}, "channel 'a': the twin knows S3 prefixes in"),
        ({"InputDataConfig": [channel("a", "s3://b/c")]}, "s3://b/c: no AWS account was asked; give a folder"),
        ({"CheckpointConfig": {"S3Uri": "s3://b/c", "LocalPath": "/data"}}, "the twin keeps those under /opt/ml alone"),
        ({"options": TwinOptions(scale=0)}, "--scale must be more than 0"),
        (
            {"groups": [{"InstanceGroupName": "a", "InstanceType": "ml.x.y", "InstanceCount": 1}]},
            "unknown instance type",
        ),
    ],
)
def test_what_the_twin_cannot_play(twin, changes, message):
    with pytest.raises(ConfigError, match=message):
        twin("true", **changes)


def test_what_could_not_begin_can_be_tried_again(twin, tmp_path):
    (tmp_path / "empty").mkdir()
    store = Store({"s3://b/c": tmp_path / "empty"})
    for _ in range(2):
        with pytest.raises(CloudError, match="channel 'a': there is nothing at s3://b/c"):
            twin("true", store, InputDataConfig=[channel("a", "s3://b/c")])
    assert not (tmp_path / "twin-1").exists()


def test_a_failure_file_of_bytes(twin):
    described, _, _ = twin("printf 'bad \\377' > /opt/ml/output/failure; exit 1", groups=[TWO_GROUPS[0]])
    assert described["FailureReason"].startswith("AlgorithmError: bad ")


def test_a_stop_after_nothing(twin):
    script = "trap 'exit 0' TERM; while true; do sleep 0.1; done"
    described, _, _ = twin(script, options=TwinOptions(stop_after_s=0, kill_after_s=3), groups=[TWO_GROUPS[0]])
    assert described["TrainingJobStatus"] == "Stopped"


def test_a_folder_is_never_overwritten(twin, tmp_path):
    (tmp_path / "twin-1").mkdir()
    with pytest.raises(ConfigError, match="exists already; choose another name, or remove it"):
        twin("true")


def test_a_machine_that_cannot_simulate_hosts(twin, monkeypatch):
    monkeypatch.setattr("raytrain.sagemaker.twin.twin.unavailable", lambda: "this is not Linux")
    with pytest.raises(ClusterError, match="the twin cannot run here: this is not Linux"):
        twin("true")


@pytest.mark.parametrize(
    ("key", "prefix", "expected"),
    [
        ("data/train/a/b.jpg", "data/train", "a/b.jpg"),
        ("data/train/a/b.jpg", "data/train/", "a/b.jpg"),
        ("data/train.csv", "data/train", "train.csv"),
        ("data/train.csv", "data/train.csv", "train.csv"),
        ("train.csv", "tr", "train.csv"),
        ("a/b", "", "a/b"),
    ],
)
def test_where_an_object_of_a_prefix_lies(key, prefix, expected):
    assert relative_key(key, prefix) == expected


def test_the_store_reads_s3(aws, tmp_path):
    client = boto3.client("s3")
    for key in ("d/x/1", "d/x/2", "d/x/3", "d/x/"):
        client.put_object(Bucket=BUCKET, Key=key, Body=key.encode())
    store = Store(known=door.account(REGION))
    assert store.fetch(f"s3://{BUCKET}/d/x", tmp_path / "all") == 3
    assert (tmp_path / "all" / "2").read_text() == "d/x/2"
    assert store.fetch(f"s3://{BUCKET}/d/x", tmp_path / "half", shard=(1, 2)) == 1
    client.put_object(Bucket=BUCKET, Key="e/../../../x", Body=b"")
    with pytest.raises(ConfigError, match="leads out of its channel's folder; the twin does not follow it"):
        store.fetch(f"s3://{BUCKET}/e", tmp_path / "out")
    for key in ("f/a", "f/a/b"):
        client.put_object(Bucket=BUCKET, Key=key, Body=b"")
    with pytest.raises(ConfigError, match="another object has this key as its folder"):
        store.fetch(f"s3://{BUCKET}/f", tmp_path / "both")
    with pytest.raises(CloudError, match="fetching s3://no-such-bucket/x: there is no bucket"):
        store.fetch("s3://no-such-bucket/x", tmp_path / "none")


@pytest.mark.hosts
def test_the_command_line_ends_as_the_job_does(cloud_file, source, tmp_path):
    """A user's own program that fails: packed, run, told."""
    (source / "train.py").write_text("import sys; print('about to fail', flush=True); sys.exit('my reason')")
    path = cloud_file(cluster__groups=[{"name": "cpu", "instance_type": "ml.c5.xlarge"}], sagemaker__role=None)
    result = run_cli("twin", path, "--name", "mine", "--folder", tmp_path / "out", timeout=100)
    assert result.returncode == 1, result.stderr
    assert "[algo-1] about to fail" in result.stdout
    assert "mine: Failed (AlgorithmError: my reason, exit code: 1)" in result.stderr
    assert result.stdout.splitlines()[-1] == str(tmp_path / "out" / "mine")
    described = json.loads((tmp_path / "out/mine/description.json").read_text())
    assert not re.search(r"\b[0-9a-f]{64}\b", result.stdout + result.stderr), "no token in any log"
    assert described["BillableTimeInSeconds"] >= 1
    record = run_cli("record", "mine", "--folder", tmp_path / "out")
    assert record.returncode == 2
    assert "the job left no run record in" in record.stderr


@pytest.mark.hosts
def test_ctrl_c_is_a_stop(cloud_file, source, tmp_path):
    (source / "train.py").write_text(
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "print('ready', flush=True)\ntime.sleep(100)"
    )
    path = cloud_file(cluster__groups=[{"name": "cpu", "instance_type": "ml.c5.xlarge"}])
    command = [*RAYTRAIN, "twin", str(path), "--name", "mine", "--folder", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    hang = threading.Timer(patient(90), process.kill)
    hang.start()
    for line in process.stdout:
        if "ready" in line:
            process.send_signal(2)
            break
    _, err = process.communicate()
    hang.cancel()
    assert process.returncode == 143
    assert "Stopped: SIGTERM to algo-1" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give a JOB.yaml or --job NAME, one of them"),
        (["--channel", "nonsense"], "--channel 'nonsense' must look like NAME=FOLDER"),
        (["--channel", "imags=/tmp"], "--channel: the job has no channel 'imags'; did you mean 'images'?"),
        (["--channel", "images=/no/such"], "--channel images: there is nothing at /no/such"),
        (["--channel", "images="], "--channel images: there is nothing at "),
        (["--checkpoints", "/no/such"], "--checkpoints: there is no folder /no/such"),
        (
            ["--checkpoints", "/tmp", "--set", "sagemaker.checkpoints=null"],
            "--checkpoints: the job keeps no checkpoints",
        ),
    ],
)
def test_wrong_words(cloud_file, cli, words, message):
    path = [cloud_file(sagemaker__channels={"images": {"uri": "s3://bucket/x"}})] if words else []
    result = cli("twin", *path, *words)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
