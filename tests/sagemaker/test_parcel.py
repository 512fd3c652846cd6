"""What is uploaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import boto3
import pytest
import yaml
from aws import BUCKET
from conftest import ROOT
from packaging.requirements import Requirement

from raytrain.config.job import Job
from raytrain.errors import ConfigError
from raytrain.sagemaker.drivers import write_drivers
from raytrain.sagemaker.parcel import IGNORE_FILE, pack, requirements
from raytrain.sagemaker.sdk import trainer_for

KEY = "-----BEGIN " + "RSA PRIVATE KEY-----\nabc"  # in two pieces: this file is no secret itself
AWS_KEY = "AKIA" + "ABCDEFGHIJKLMNOP"


@pytest.fixture
def parcel(cloud_tree, tmp_path):
    """A function that stages the job; what it returns and the paths in its code folder."""

    def run(**changes):
        job = Job.from_dict({**cloud_tree, "sagemaker": {**cloud_tree["sagemaker"], **changes}})
        found = pack(job, tmp_path / "parcel")
        return found, {p.relative_to(found.code).as_posix() for p in found.code.rglob("*") if p.is_file()}

    return run


def test_code_raytrain_job_and_requirements_are_packed(parcel, source):
    (source / "lib").mkdir()
    (source / "lib" / "deep.py").write_text("x = 1")
    (source / "run.sh").write_text("#!/bin/sh")
    (source / "run.sh").chmod(0o755)
    found, files = parcel()
    assert {"train.py", "lib/deep.py", "run.sh", "job.yaml", "requirements.txt"} <= files
    assert {"raytrain/cli/main.py", "raytrain/cost/instances.json"} <= files
    assert not any("__pycache__" in name for name in files)
    assert os.access(found.code / "run.sh", os.X_OK)
    assert found.num_files == sum(1 for p in found.code.parent.rglob("*") if p.is_file())
    assert found.num_bytes == sum(p.stat().st_size for p in found.code.parent.rglob("*") if p.is_file())


def test_the_packed_job_is_the_job_where_it_will_run(parcel, cloud_tree):
    found, _ = parcel(environment={"MY_PASSWORD": "hunter2"})
    job = Job.from_yaml(found.code / "job.yaml")
    assert job.run_dir == "/opt/ml/checkpoints"
    assert job.sagemaker is None
    assert "hunter2" not in (found.code / "job.yaml").read_text()
    assert job.data == Job.from_dict(cloud_tree).data


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A folder of modules that are importable here."""
    folder = tmp_path / "beside"
    (folder / "photos/deep").mkdir(parents=True)
    (folder / "photos/__init__.py").write_text("from helpers import x\n")
    (folder / "photos/deep/sources.py").write_text("class Photos:\n    pass\n")
    (folder / "helpers.py").write_text("x = 1\n")
    (folder / "loops.py").write_text("import numpy\n\ndef train(ctx):\n    pass\n")
    (folder / "unused.py").write_text("")
    monkeypatch.syspath_prepend(str(folder))
    return folder


NAMES = {
    "training": {"epochs": 1, "loop": "loops:train"},
    "model": "timm.models:VisionTransformer",
    "data": {
        "train": {"kind": "photos.deep.sources:Photos", "root": "x"},
        "stages": [{"numpy:ascontiguousarray": None}],
    },
}


def test_modules_that_the_job_names_go_with_it(cloud_tree, source, tmp_path, beside):
    """With what they import; what the source folder has too is not packed twice."""
    (source / "loops.py").write_text((beside / "loops.py").read_text())
    found = pack(Job.from_dict({**cloud_tree, **NAMES}), tmp_path / "staged")
    files = {p.relative_to(found.code).as_posix() for p in found.code.rglob("*.py")}
    assert {name for name in files if not name.startswith("raytrain/")} == {
        "train.py",
        "loops.py",
        "helpers.py",
        "photos/__init__.py",
        "photos/deep/__init__.py",
        "photos/deep/sources.py",
    }
    assert (found.code / "photos/deep/sources.py").read_text() == "class Photos:\n    pass\n"


@pytest.mark.parametrize("other", ["loops.py", "photos/elsewhere.txt"])
def test_another_module_of_that_name_in_the_source_folder_is_no_substitute(cloud_tree, source, tmp_path, beside, other):
    """It would be imported in the place of the one that was checked here."""
    (source / other).parent.mkdir(exist_ok=True)
    (source / other).write_text("# another")
    with pytest.raises(ConfigError, match="in its place; rename one of them"):
        pack(Job.from_dict({**cloud_tree, **NAMES}), tmp_path / "staged")


def test_a_module_that_is_nowhere_is_missed_before_the_launch(cloud_tree, source, tmp_path, beside):
    job = Job.from_dict({**cloud_tree, **NAMES, "training": {"epochs": 1, "loop": "nowhere.loops:train"}})
    with pytest.raises(ConfigError, match="the job names 'nowhere.loops:train', and nothing of that name would be up"):
        pack(job, tmp_path / "staged")
    (source / "requirements.txt").write_text("nowhere==1.0\n")
    pack(job, tmp_path / "again")


def test_a_module_beside_the_job_that_holds_a_secret_stays_here(cloud_tree, tmp_path, beside):
    (beside / "helpers.py").write_text(f"x = '{AWS_KEY}'")
    with pytest.raises(ConfigError, match="beside/helpers.py looks like an AWS access key and would be uploaded"):
        pack(Job.from_dict({**cloud_tree, **NAMES}), tmp_path / "staged")


@pytest.mark.process
def test_the_packed_folder_runs_by_itself(parcel):
    """As the container has it: the packed raytrain is imported, not an installed one."""
    found, _ = parcel()
    code = "import raytrain, sys; print(raytrain.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(found.code)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, cwd="/", capture_output=True, text=True)
    assert ran.stdout.strip() == str(found.code / "raytrain" / "__init__.py")


def test_the_ignore_file_is_honoured_and_caches_always_are_ignored(parcel, source):
    (source / IGNORE_FILE).write_text("data/\n*.log\n!keep.log\n/only_here.txt\n")
    for name in ("data/a.bin", "x.log", "keep.log", "only_here.txt", "sub/only_here.txt", ".git/config", "a.pyc"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("x")
    _, files = parcel()
    mine = {name for name in files if not name.startswith("raytrain/")}
    assert mine == {"train.py", "keep.log", "sub/only_here.txt", "job.yaml", "requirements.txt"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (".env", "A=1", "a secret, by its name"),
        (".env.production", "A=1", "a secret, by its name"),
        ("deep/server.pem", "x", "a secret, by its name"),
        (".aws/config", "x", "a secret, by its name"),
        ("id_ed25519", "x", "a secret, by its name"),
        ("credentials", "x", "a secret, by its name"),
        (".git-credentials", "x", "a secret, by its name"),
        (".docker/config.json", "x", "a secret, by its name"),
        ("prod.env", "x", "a secret, by its name"),
        ("kaggle.json", "x", "a secret, by its name"),
        ("notes.txt", KEY, "a private key"),
        ("a.json", '{"aws_secret_access_key": "' + "a" * 40 + '"}', "an AWS secret key"),
        ("a.json", '{"SecretAccessKey": "' + "a" * 40 + '"}', "an AWS secret key"),
        ("settings.py", "github_pat_" + "a" * 30, "a GitHub token"),
        ("settings.py", f"KEY = '{AWS_KEY}'", "an AWS access key"),
        ("settings.py", "aws_secret_access_key = '" + "a" * 40 + "'", "an AWS secret key"),
        ("settings.py", "ghp_" + "a" * 36, "a GitHub token"),
        ("settings.py", "hf_" + "a" * 34, "a Hugging Face token"),
    ],
)
def test_a_secret_is_refused_unless_ignored(parcel, source, tmp_path, name, content, message):
    (source / name).parent.mkdir(parents=True, exist_ok=True)
    (source / name).write_text(content)
    with pytest.raises(ConfigError, match=f"looks like {message}.* and would be uploaded; take it out") as caught:
        parcel()
    assert name in str(caught.value)
    assert len(content) < 4 or content not in str(caught.value)
    (source / IGNORE_FILE).write_text(name)
    shutil.rmtree(tmp_path / "parcel")
    _, files = parcel()
    assert name not in files


def test_ordinary_names_are_no_secrets(parcel, source):
    for name in ("keyboard.py", "environment.py", "tokenizer.json", "my_credentials_doc.md", "sample.env.py"):
        (source / name).write_text("x")
    _, files = parcel()
    assert "keyboard.py" in files


def test_links_within_are_followed_and_others_refused(parcel, source, tmp_path):
    (source / "lib").mkdir()
    (source / "lib" / "a.py").write_text("a")
    (source / "b.py").symlink_to(source / "lib" / "a.py")
    (source / "same").symlink_to("lib")
    found, files = parcel()
    assert {"b.py", "same/a.py"} <= files
    assert not (found.code / "b.py").is_symlink()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("/etc/passwd", "is a link out of"),
        ("/etc", "is a link out of"),
        (".", "is a link to a folder around it"),
        ("nowhere", "is a link to nothing"),
    ],
)
def test_a_link_that_cannot_be_sent(parcel, source, target, message):
    (source / "link").symlink_to(target)
    with pytest.raises(ConfigError, match=message):
        parcel()


def test_a_link_is_what_it_means(parcel, source, tmp_path):
    """Neither the list of names nor the ignore file is got round by another name."""
    (source / ".env").write_text("A=1")
    (source / "settings.txt").symlink_to(".env")
    with pytest.raises(ConfigError, match="looks like a secret, by its name"):
        parcel()
    shutil.rmtree(tmp_path / "parcel")
    (source / IGNORE_FILE).write_text(".env")
    with pytest.raises(ConfigError, match="is a link to something that .raytrainignore leaves here; name the link too"):
        parcel()


@pytest.mark.parametrize(
    ("content", "message"), [(b"!\n", "has a line that .gitignore would not know"), (b"\xff", "not know")]
)
def test_an_ignore_file_that_cannot_be_understood(parcel, source, content, message):
    (source / IGNORE_FILE).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        parcel()


def test_a_name_that_is_no_text(parcel, source):
    (source / os.fsdecode(b"a\xff.txt")).write_text("")
    with pytest.raises(ConfigError, match="is not UTF-8; rename it"):
        parcel()


@pytest.mark.parametrize("name", ["job.yaml", "requirements.txt"])
def test_a_folder_where_a_file_should_be(parcel, source, name):
    (source / name).mkdir()
    (source / name / "x").write_text("")
    with pytest.raises(ConfigError, match=f"cannot pack .*{name}: Is a directory"):
        parcel()


def test_the_jobs_own_run_dir_is_for_other_machines(parcel, cloud_tree):
    cloud_tree["run_dir"] = "runs"
    found, _ = parcel()
    assert Job.from_yaml(found.code / "job.yaml").run_dir == "/opt/ml/checkpoints"


def test_without_checkpoints_sagemakers_folder_is_the_default(parcel, cloud_tree):
    cloud_tree["run_dir"] = "runs"
    found, _ = parcel(checkpoints=None)
    assert "run_dir" not in Job.from_yaml(found.code / "job.yaml").model_fields_set


def test_a_pipe_is_refused(parcel, source):
    os.mkfifo(source / "pipe")
    with pytest.raises(ConfigError, match="or no plain file"):
        parcel()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source_dir": "/no/such"}, "sagemaker.source_dir: there is no folder /no/such$"),
        ({"program": ["other.py"]}, "sagemaker.program: other.py is not in"),
        ({"program": []}, "sagemaker.program is empty"),
    ],
)
def test_a_folder_without_its_program(parcel, changes, message):
    with pytest.raises(ConfigError, match=message):
        parcel(**changes)


def test_a_relative_source_folder_that_does_not_exist_is_shown_whole(parcel, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        parcel(source_dir="sorce")
    assert str(caught.value) == (
        f"sagemaker.source_dir: there is no folder sorce (looked for {tmp_path}/sorce; relative paths start where "
        "raytrain is started)"
    )


def test_the_name_raytrain_is_taken(parcel, source):
    (source / "raytrain").mkdir()
    (source / "raytrain" / "x.py").write_text("")
    with pytest.raises(ConfigError, match="something named raytrain, which is where raytrain itself goes"):
        parcel()


def test_the_images_torch_is_left_alone(tmp_path):
    (tmp_path / "requirements.txt").write_text(
        "#\ntorch==2.1.0\nTorchVision>=0.1  # pinned\nnvidia-cudnn-cu12\nalbumentations>=1.3 ; python_version>'3'\n"
        "timm==1.0.22\nnvidia-ml-py\n-r more.txt\n--extra-index-url https://example.com/simple\n./wheels/own-1.0-py3-none-any.whl\n"
    )
    (tmp_path / "more.txt").write_text("torchaudio\nscikit-learn\nraytrain\n")
    lines, left_out = requirements(tmp_path / "requirements.txt", tmp_path)
    assert left_out == ["torch==2.1.0", "TorchVision>=0.1", "nvidia-cudnn-cu12", "torchaudio", "raytrain"]
    assert "albumentations>=1.3 ; python_version>'3'" in lines
    assert {"timm==1.0.22", "nvidia-ml-py", "scikit-learn"} <= set(lines)
    assert {"--extra-index-url https://example.com/simple", "./wheels/own-1.0-py3-none-any.whl"} <= set(lines)
    names = [Requirement(line).name for line in lines if not line.startswith(("-", "."))]
    assert names.count("timm") == 1, "the user's pin counts, not ours"
    assert {"ray", "pydantic", "opencv-python-headless"} <= set(names)
    assert not {"torch", "torchvision", "pytest", "moto"} & set(names)


def test_requirements_in_other_forms(tmp_path):
    (tmp_path / "requirements.txt").write_text(
        "\ufefftorch @ https://example.com/torch.whl\ntorch==2.1 --index-url https://x\nnumpy==2.0 --hash=sha256:ab\n"
        "-r requirements.txt\n-r https://example.com/more.txt\nhttps://example.com/own.whl\n",
        encoding="utf-8",
    )
    lines, left_out = requirements(tmp_path / "requirements.txt", tmp_path)
    assert left_out == ["torch @ https://example.com/torch.whl", "torch==2.1 --index-url https://x"]
    assert lines[:3] == [
        "numpy==2.0 --hash=sha256:ab",
        "-r https://example.com/more.txt",
        "https://example.com/own.whl",
    ]


def test_without_requirements_raytrains_own_are_enough(tmp_path):
    lines, left_out = requirements(None, tmp_path)
    assert any(line.startswith("ray[") for line in lines)
    assert left_out == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not a requirement!!", "is not a requirement that pip understands"),
        ("-r missing.txt", "cannot read missing.txt"),
        ("-r ../outside.txt", "or it lies outside of source_dir"),
    ],
)
def test_requirements_that_cannot_be_read(tmp_path, text, message):
    folder = tmp_path / "source"
    folder.mkdir()
    (tmp_path / "outside.txt").write_text("numpy")
    (folder / "requirements.txt").write_text(text)
    with pytest.raises(ConfigError, match=message):
        requirements(folder / "requirements.txt", folder)


def test_a_raytrain_that_is_not_installed_cannot_say_what_it_needs(tmp_path, monkeypatch):
    from importlib.metadata import PackageNotFoundError

    def missing(_):
        raise PackageNotFoundError

    monkeypatch.setattr("raytrain.sagemaker.parcel.requires", missing)
    with pytest.raises(ConfigError, match="raytrain is not installed as a package here"):
        requirements(None, tmp_path)


def test_our_drivers_are_the_ones_that_the_sdk_uploads(aws, cloud_file, tmp_path):
    """Byte by byte, but for the two notes of what the ModelTrainer was given, which only the SDK's own driver reads."""
    job = Job.from_yaml(cloud_file())
    with trainer_for(job) as trainer:
        trainer.train(wait=False)
    theirs = {}
    for key in aws.objects():
        if "/sm_drivers/" in key and "__pycache__" not in key:
            body = boto3.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()
            theirs[key.split("/sm_drivers/")[1]] = body
    write_drivers(job.sagemaker, tmp_path / "ours")
    ours = {p.relative_to(tmp_path / "ours").as_posix(): p.read_bytes() for p in (tmp_path / "ours").rglob("*.*")}
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} <= {"sourcecode.json"}
    both = [json.loads(side["sourcecode.json"]) for side in (ours, theirs)]
    assert both[0]["command"] == both[1]["command"]


def test_without_the_sdk_one_line_says_what_to_install(cloud_tree, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sagemaker.train.templates", None)
    with pytest.raises(ConfigError, match="launching needs the SageMaker SDK, version 3"):
        write_drivers(Job.from_dict(cloud_tree).sagemaker, tmp_path / "drivers")


def test_without_pathspec_one_line_says_what_to_install(parcel, monkeypatch):
    monkeypatch.setitem(sys.modules, "pathspec", None)
    with pytest.raises(ConfigError, match="launching needs pathspec"):
        parcel()


def test_the_repositorys_own_source_dir_can_be_packed(tmp_path):
    tree = yaml.safe_load((ROOT / "launch" / "heterogeneous.yaml").read_text())
    found = pack(Job.from_dict(tree), tmp_path / "parcel", base=ROOT)
    assert (found.code / "train.py").is_file()
    assert found.num_bytes < 2_000_000
