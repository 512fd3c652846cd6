"""Jobs that `plan -o` writes: of the shape, with channels for the data, and taken by `raytrain launch`."""

from __future__ import annotations

import ast
import json
from dataclasses import replace

import pytest
import yaml
from conftest import ROOT
from money import profile

from raytrain.config.job import Job
from raytrain.cost.instances import catalog
from raytrain.cost.planner import Prediction, Shape
from raytrain.errors import ConfigError
from raytrain.study.planned_job import PROGRAM, job_for

SHAPE = Shape("ml.g5.12xlarge", 1, (("ml.c5.4xlarge", 2),))
PLANNED = Prediction(SHAPE, 100.0, "CPUs", 8.7, 24.2, hours=2.0, usd=17.4, efficient=True)


def folder(path):
    return {"kind": "image_folder", "path": str(path)}


def written(tree, *, planned=PLANNED, role="training", data="s3://mine/in", **changes):
    tree, left = job_for(planned, profile(job=tree, **changes), catalog(), "us-east-1", role=role, data=data)
    return Job.from_dict(tree), left


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder without anything in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tree(here):
    """A job on folders of this machine."""
    return {
        "name": "toy",
        "data": {"train": folder("data/digits/train"), "validation": folder("data/digits/validation")},
        "model": {"name": "timm.models:VisionTransformer"},
        "training": {"epochs": 10},
    }


def test_launch_takes_what_plan_writes(tree, here, cli, without_raytrain):
    """From a profile of a job that knows nothing of AWS, through both commands, to the request."""
    profile(job=tree).write(here / "p.json")
    options = ["--role", "arn:aws:iam::123456789012:role/training", "--data", "s3://mine/digits"]
    planned = cli("plan", "p.json", "--region", "us-east-1", "-o", "job.yaml", *options)
    assert planned.returncode in (None, 0), planned.stderr
    launched = cli("launch", "job.yaml", "--dry-run", "--json")
    assert launched.returncode in (None, 0), launched.stderr
    request = json.loads(launched.stdout)["request"]
    assert request["RoleArn"] == "arn:aws:iam::123456789012:role/training"
    assert request["ResourceConfig"]["InstanceGroups"] == [
        {"InstanceGroupName": "gpu", "InstanceType": "ml.g5.2xlarge", "InstanceCount": 1},
        {"InstanceGroupName": "cpu", "InstanceType": "ml.c5.4xlarge", "InstanceCount": 1},
    ]
    channels = {c["ChannelName"]: c["DataSource"]["S3DataSource"]["S3Uri"] for c in request["InputDataConfig"]}
    assert channels["digits"] == "s3://mine/digits"
    job = Job.from_yaml(here / "job.yaml")
    assert job.data.train.path == "/opt/ml/input/data/digits/train"
    assert job.data.validation.path == "/opt/ml/input/data/digits/validation"


def test_placeholders_are_launchable_but_said(tree, here, cli, without_raytrain):
    profile(job=tree).write(here / "p.json")
    planned = cli("plan", "p.json", "--region", "us-east-1", "-o", "job.yaml")
    said = [line for line in planned.stdout.splitlines() if line.startswith("before you launch it: ")]
    assert said[0].startswith("before you launch it: sagemaker.role is a placeholder, your-sagemaker-role: put in")
    assert "sagemaker.channels.digits.uri is a placeholder, s3://your-bucket/digits: put in your bucket" in said[1]
    assert said[2].endswith("aws s3 sync data/digits s3://your-bucket/digits")
    assert "the source folder source_dir was made, with a train.py that trains the job" in said[3]
    assert (
        (here / "job.yaml").read_text().startswith("# 1 x ml.g5.2xlarge + 1 x ml.c5.4xlarge, planned by raytrain from ")
    )
    launched = cli("launch", "job.yaml", "--dry-run")
    assert launched.returncode in (None, 0), launched.stderr
    again = cli("plan", "p.json", "--region", "us-east-1", "-o", "job.yaml", "--role", "mine")
    assert "source folder" not in again.stdout
    assert "role" not in again.stdout.partition("before you launch it")[2]


def test_the_program_that_it_makes_is_the_one_of_the_repository():
    """But for the words at their top."""
    mine, theirs = (ast.parse(text).body[1:] for text in (PROGRAM, (ROOT / "source_dir" / "train.py").read_text()))
    assert [ast.dump(each) for each in mine] == [ast.dump(each) for each in theirs]


def test_a_source_folder_of_ones_own_stays(tree, here, cli):
    (here / "source_dir").mkdir()
    profile(job=tree).write(here / "p.json")
    assert "was made" not in cli("plan", "p.json", "--region", "us-east-1", "-o", "job.yaml").stdout
    assert list((here / "source_dir").iterdir()) == []
    tree["sagemaker"] = {"source_dir": "elsewhere", "program": ["mine.py"]}
    profile(job=tree).write(here / "p.json")
    assert "was made" not in cli("plan", "p.json", "--region", "us-east-1", "-o", "job.yaml").stdout
    assert not (here / "elsewhere").exists()


def test_a_source_folder_that_cannot_be_made_is_one_line(tree, here, cli):
    (here / "source_dir").write_text("a file")
    profile(job=tree).write(here / "p.json")
    planned = cli("plan", "p.json", "--region", "us-east-1", "-o", "job.yaml")
    assert planned.returncode == 2
    assert "the job file cannot be written to source_dir: File exists" in planned.stderr


def test_groups_keep_their_names_and_steps_their_samples(tree):
    tree["cluster"] = {"groups": [{"name": "train", "instance_type": "ml.g5.xlarge"}]}
    tree["training"] = {"steps": 100}
    job, _ = written(tree, world_size=2)
    assert [(group.name, group.instance_type, group.hosts) for group in job.cluster.groups] == [
        ("train", "ml.g5.12xlarge", 1),
        ("cpu", "ml.c5.4xlarge", 2),
    ]
    assert job.training.steps == 50, "four GPUs in the place of two"
    assert job.sagemaker.region == "us-east-1"


def test_a_channel_of_a_group_that_is_gone_is_refused(tree):
    tree["sagemaker"] = {"channels": {"images": {"uri": "s3://bucket/images", "groups": ["gone"]}}}
    with pytest.raises(ConfigError, match="channel 'images' of the job is for group 'gone', which 1 x ml.g5.12xlarge"):
        written(tree)


def test_data_that_lies_in_channels_already_stays(tree):
    tree["data"] = {"train": folder("/opt/ml/input/data/images/train"), "validation": folder("s3://bucket/validation")}
    tree["sagemaker"] = {"channels": {"images": {"uri": "s3://bucket/images", "groups": ["gpu"]}}, "role": "own"}
    job, left = written(tree, role=None, data=None)
    assert job.data.train.path == "/opt/ml/input/data/images/train"
    assert job.data.validation.path == "s3://bucket/validation"
    assert list(job.sagemaker.channels) == ["images"]
    assert (job.sagemaker.role, left) == ("own", [])


def test_a_channel_beside_bound_ones_is_bound_too(tree):
    tree["sagemaker"] = {"channels": {"more": {"uri": "s3://bucket/more", "groups": ["cpu"]}}}
    job, _ = written(tree)
    assert job.sagemaker.channels["digits"].groups == ("gpu", "cpu")
    assert written({**tree, "sagemaker": None})[0].sagemaker.channels["digits"].groups == ()


@pytest.mark.parametrize(
    ("train", "validation", "inside", "channels"),
    [
        ("data/digits/train", None, ["train"], {"train": "s3://mine/in"}),
        ("data/a.parquet", "data/b.parquet", ["data/a.parquet", "data/b.parquet"], {"data": "s3://mine/in"}),
        ("one", "two", ["one", "two"], {"one": "s3://mine/in/one", "two": "s3://mine/in/two"}),
        ("/far/one/t", "/away/two/v", ["t", "v"], {"t": "s3://mine/in/t", "v": "s3://mine/in/v"}),
        ("my data/set 1", None, ["set-1"], {"set-1": "s3://mine/in"}),
        ("code/x.tar", None, ["data-code/x.tar"], {"data-code": "s3://mine/in"}),
        ("photos.2024", None, ["photos.2024"], {"photos.2024": "s3://mine/in"}),
        ("sets/v1.0", "sets/v1.1", ["sets/v1.0", "sets/v1.1"], {"sets": "s3://mine/in"}),
    ],
)
def test_where_the_data_goes(tree, train, validation, inside, channels):
    tree["data"] = {"train": folder(train), "validation": folder(validation) if validation else None}
    job, left = written(tree)
    paths = [source.path for source in (job.data.train, job.data.validation) if source]
    assert paths == [f"/opt/ml/input/data/{path}" for path in inside]
    assert {name: channel.uri for name, channel in job.sagemaker.channels.items()} == channels
    assert all("aws s3 sync" in line for line in left)


@pytest.mark.parametrize(
    ("train", "command"),
    [
        ("photos.2024", "aws s3 sync photos.2024 s3://mine/in"),
        ("sets/a.parquet", "aws s3 sync sets s3://mine/in"),
        ("shards.tar", "aws s3 sync shards.tar s3://mine/in"),
        ("listed.bin", "aws s3 cp listed.bin s3://mine/in/"),
        ("a.parquet", "aws s3 cp a.parquet s3://mine/in/"),
        ("../a.parquet", "aws s3 cp ../a.parquet s3://mine/in/"),
    ],
)
def test_the_current_folder_is_never_copied(tree, here, train, command):
    """`shards.tar` is a folder here and `listed.bin` a file; of what is not here, the name says it."""
    (here / "shards.tar").mkdir()
    (here / "listed.bin").write_text("")
    tree["data"] = {"train": folder(train)}
    job, left = written(tree)
    assert left == [f"the data is not in S3 yet, as far as this knows: {command}"]
    [name] = job.sagemaker.channels
    if " cp " in command:
        assert job.data.train.path == f"/opt/ml/input/data/train/{train.rpartition('/')[2]}"
        assert name == "train"


def test_two_files_of_the_current_folder_are_two_channels(tree):
    tree["data"] = {"train": folder("a.parquet"), "validation": folder("b.parquet")}
    job, left = written(tree)
    assert {name: channel.uri for name, channel in job.sagemaker.channels.items()} == {
        "train": "s3://mine/in/train",
        "validation": "s3://mine/in/validation",
    }
    assert [line.partition(": ")[2] for line in left] == [
        "aws s3 cp a.parquet s3://mine/in/train/",
        "aws s3 cp b.parquet s3://mine/in/validation/",
    ]


@pytest.mark.parametrize("path", [".", "..", "/", "data/.."])
def test_data_that_is_the_current_folder_is_refused(tree, path):
    tree["data"] = {"train": folder("a.parquet"), "validation": folder(path)}
    with pytest.raises(ConfigError) as caught:
        written(tree)
    assert str(caught.value) == (
        f"data.validation.path {path!r} is the folder that you are in, or one above it, which may hold more than data; "
        "move the data into a folder of its own, or start raytrain outside of it"
    )


def test_a_long_job_gets_the_time_that_it_takes(tree):
    """SageMaker's usual end is after a day: 20 hours with half as much again are more."""
    assert written(tree, planned=replace(PLANNED, hours=16.0))[0].sagemaker.max_run_s == 86_400
    job, left = written(tree, planned=replace(PLANNED, hours=20.0))
    assert job.sagemaker.max_run_s == 30 * 3600
    assert "sagemaker.max_run_s is 108000, 1.5 times the predicted 20 hours: check it" in left


def test_code_of_ones_own_is_named(tree):
    tree["model"] = {"name": "mine:Net"}
    tree["data"]["stages"] = ["decode", {"own.stages:speckle": {"much": 1}}, "resize"]
    tree["data"]["train"] = {"kind": "photos:Photos", "count": 3}
    tree["data"]["validation"] = {"kind": "photos:Others", "path": "data/others"}
    tree["training"]["loop"] = "loops:train"
    job, left = written(tree)
    where = "beside the job file or in its source folder, or come with its requirements"
    assert f"loops:train, mine:Net, own.stages:speckle, photos:Others, photos:Photos must lie {where}" in left
    assert "photos:Photos finds its data by itself: see that it does on the job's hosts" in left
    assert not [line for line in left if line.startswith("photos:Others")]
    assert job.data.validation.options == {"path": "/opt/ml/input/data/others"}


def test_code_of_validations_stages_is_named_and_that_of_packages_is_not(tree, here, monkeypatch):
    (here / "beside.py").write_text("def crop(image):\n    return image\n")
    monkeypatch.syspath_prepend(str(here))
    tree["data"]["stages"] = ["torchvision.transforms.v2:RGB", "numpy:ascontiguousarray", "math:sqrt"]
    tree["data"]["validation_stages"] = ["decode", {"beside:crop": None}, {"not_here:crop": {"size": 3}}]
    _, left = written(tree)
    [line] = [line for line in left if "source folder" in line]
    assert line.startswith("beside:crop, not_here:crop must lie beside the job file or in its source folder, ")
    tree["data"]["validation_stages"] = None
    assert not [line for line in written(tree)[1] if "source folder" in line]


def test_an_estimate_is_marked_in_the_job_file(tree, here, cli):
    from raytrain.cost.profile import Figure

    tree["data"]["stages"] = [{"resize": {"size": 224}}]
    tree["model"] = {"name": "resnet18"}
    profile(job=tree, accelerator_s_per_sample={"CPU": Figure.once(0.1)}).write(here / "p.json")
    planned = cli("plan", "p.json", "--region", "us-east-1", "-o", "job.yaml", "--html", "plan.html")
    assert planned.stdout.startswith("estimated, no GPU was measured: CPU hosts ")
    assert "shapes, estimates" in planned.stdout
    assert "assumed: device seconds are ESTIMATES" in planned.stdout
    assert "its device seconds were estimated, not measured" in (here / "job.yaml").read_text().splitlines()[0]
    assert yaml.safe_load((here / "job.yaml").read_text())["name"] == "toy"
    assert "estimated, no GPU was measured: " in (here / "plan.html").read_text()
    tree = json.loads(cli("plan", "p.json", "--region", "us-east-1", "--json").stdout)
    assert tree["estimated"] is True
    assert tree["verdict"].startswith("estimated, no GPU was measured: ")
