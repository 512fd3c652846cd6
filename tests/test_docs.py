"""The docs say what there is: every command and member, commands that parse, and the ported script as it stands."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
import typer
from conftest import ROOT, ray_processes, run_cli
from docs_lines import PAGES, as_it_stands, commands
from money import profile, run_on
from patience import patient
from simulated_job import needs_hosts

from raytrain import Job, Pipeline, fit
from raytrain.config.file import from_yaml
from raytrain.record.schema import read_record

REFERENCE = (ROOT / "docs" / "reference.md").read_text()
PORTING = (ROOT / "docs" / "porting.md").read_text()


def command_of(words):
    """The click command that the words name, and the rest of them."""
    command = typer.main.get_command(__import__("raytrain.cli.main", fromlist=["app"]).app)
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize(("page", "text"), commands(), ids=lambda value: value)
def test_every_command_of_the_docs_has_these_options(page, text):
    command, words = command_of(shlex.split(text)[1:])
    assert not hasattr(command, "commands") or not words, f"{page}: no such command: {text}"
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    words = words[: words.index("--")] if "--" in words else words
    for word in words:
        if word.startswith("-"):
            assert word.split("=")[0] in {*known, "--help"}, f"{page}: {word} is no option of: {text}"


QUICK = ("plan", "compare", "report", "prices")  # what trains nothing and asks nobody
TRAINING = ("train", "bootstrap", "twin", "diagnose")
A_FORM = re.compile(r"[A-Z]{3}")  # such as JOB.yaml: a placeholder, so that nobody can type the line


def quick_commands():
    """Those that stand in the docs as one can type them."""
    here = {text for _, text in commands() if text.split()[1] in QUICK}
    return sorted(text for text in here if "refresh" not in text and not A_FORM.search(text))


@pytest.fixture
def afterwards(tmp_path, record):
    """A working folder in which the runs have been that the README speaks of."""
    hosts = {"ml.g5.xlarge": ("gpu", 1, 1)}
    for name, more in (("digits", {}), ("single", {}), ("both", {"ml.c5.4xlarge": ("cpu", 1, 0)})):
        run = run_on(record, name, hosts | more, job={**record.job, "name": name})
        run.write(tmp_path / "runs" / name / "record.json")
    profile().write(tmp_path / "runs" / "digits.profile.json")
    return tmp_path


@pytest.mark.process
@pytest.mark.parametrize("text", quick_commands())
def test_a_command_of_the_docs_runs_as_it_stands(afterwards, text):
    ran = run_cli(*shlex.split(text)[1:], cwd=afterwards)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() or ran.stderr.strip()


def test_the_commands_of_the_docs_are_found():
    assert len(quick_commands()) >= 5
    assert len(commands()) > 30


def test_every_command_of_the_docs_that_trains_is_run_by_a_test():
    """With light settings behind it. Not here: `launch` without --dry-run and `twin --job`, which need AWS (and are run
    with moto's in tests/sagemaker), and forms with a placeholder."""
    tests = "".join(path.read_text() for path in sorted((ROOT / "tests").rglob("test_*.py")))
    run = re.findall(r'as_it_stands\("([^"]+)"\)', tests)
    assert {text for _, text in commands() if text.split()[1] in TRAINING and not A_FORM.search(text)} == set(run)


def record_of(ran, checkout, name="digits"):
    assert ran.returncode == 0, ran.stderr[-6000:]
    return read_record(checkout / "runs" / name / "record.json")


@pytest.mark.ray
def test_a_key_is_overridden_and_the_run_goes_on_from_its_last_checkpoint(checkout):
    line = as_it_stands("raytrain train launch/digits.yaml --set training.epochs=5")
    first = record_of(run_cli(*line, cwd=checkout), checkout)
    assert [epoch["epoch"] for epoch in first.epochs] == [1, 2, 3, 4, 5]
    assert (checkout / "runs/digits/model.pt").is_file()
    line = as_it_stands("raytrain train launch/digits.yaml --resume")
    ran = run_cli(*line, "--set", "training.epochs=6", cwd=checkout)
    record = record_of(ran, checkout)
    assert record.resumed_from == first.checkpoint
    assert record.epochs[:5] == first.epochs and len(record.epochs) == 6
    assert "Who waited for whom" in ran.stderr and "runs/digits/record.json" in ran.stdout


@pytest.mark.ray
def test_a_program_is_run_on_a_ray_that_is_gone_afterwards(checkout):
    line = as_it_stands("raytrain bootstrap -- source_dir/train.py launch/digits.yaml")
    before = ray_processes()
    record = record_of(run_cli(*line, "--set", "training.epochs=1", cwd=checkout), checkout)
    assert (record.status, record.cluster_attached, record.totals.samples) == ("finished", True, 120)
    assert ray_processes() <= before


@needs_hosts
@pytest.mark.hosts
@pytest.mark.ray
def test_the_twin_runs_the_request_on_this_machine(checkout):
    line = as_it_stands("raytrain twin launch/digits_sagemaker.yaml --channel digits=data/digits --gpus 1")
    ran = run_cli(*line, "--set", "training.epochs=1", cwd=checkout)
    assert ran.returncode == 0, ran.stderr[-6000:]
    left = checkout / ran.stdout.splitlines()[-1]
    assert json.loads((left / "description.json").read_text())["TrainingJobStatus"] == "Completed"
    assert (left / "model.tar.gz").is_file()
    gathered = run_cli("record", left.name, cwd=checkout)
    record = record_of(gathered, checkout, left.name)
    assert [(group.name, group.hosts) for group in record.cloud.groups] == [("gpu", 1), ("cpu", 2)]
    assert (record.world_size, record.emulated_gpus, record.totals.samples) == (1, True, 120)


def test_the_reference_has_every_command():
    command, _ = command_of([])
    named = set(re.findall(r"`raytrain ([a-z-]+)", REFERENCE))
    assert named == set(command.commands)


def test_the_readme_installs_every_extra_that_users_have():
    [extras] = re.findall(r"^    pip install '\.\[(.*)\]'", PAGES[0].read_text(), re.M)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert sorted(extras.split(",")) == sorted(set(known) - {"test"})


def members(kind, instance_names):
    return {name for name in (*dir(kind), *instance_names) if not name.startswith("_")}


def test_the_reference_has_every_member_of_a_context_and_of_a_batch():
    from raytrain.device.batch import DeviceBatch
    from raytrain.train.context import TrainContext

    source = inspect.getsource(TrainContext.__init__)
    given = {
        name.strip()
        for names in re.findall(r"^\s+((?:self\.[a-z_]+,? ?)+)(?::.*)? = ", source, re.M)
        for name in names.replace("self.", "").split(",")
    }
    assert set(re.findall(r"ctx\.([a-z_]+)", REFERENCE)) - {"py"} == members(TrainContext, given)
    fields = {field.name for field in dataclasses.fields(DeviceBatch)}
    fields |= {name for name, each in vars(DeviceBatch).items() if isinstance(each, property)}
    assert set(re.findall(r"batch\.([a-z_]+)", REFERENCE)) == fields


def sections():
    """What stands in the guide as YAML, by key of `data`; of several examples of one key, a line each."""
    blocks = re.findall(r"^```yaml\n(.*?)```", (ROOT / "docs" / "guide.md").read_text(), re.M | re.S)
    return [text for block in blocks for text in (block.splitlines() if block.startswith("train") else [block])]


@pytest.mark.parametrize("text", sections())
def test_the_sections_of_the_guide_are_what_a_job_takes(text):
    data = {"train": {"kind": "synthetic", "num_samples": 8}, **from_yaml(text)}
    Pipeline.from_config(Job.from_dict({"name": "guide", "data": data, "training": {"epochs": 1}}).data)


def test_the_guide_has_what_a_source_of_ones_own_may_have():
    from raytrain.data.sources.kinds import own

    text = (ROOT / "docs" / "guide.md").read_text().partition("### A source of your own")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", text, re.M)
    said = {name for cell in cells for name in re.findall(r"`(\w+)", cell)}
    source = inspect.getsource(own)
    asked = set(re.findall(r'getattr\((?:self\.source\.)?dataset, "(\w+)"', source))
    assert said == {"__len__", "__getitem__", *own.LABELS, *asked} - {"column_names"} and asked == {
        "classes",
        "describe",
        "column_names",
    }


@pytest.mark.ray
def test_the_own_source_is_the_same_run_by_its_name_and_in_python(tmp_path):
    """As they stand in examples/, in a folder without them."""
    for command in (
        [sys.executable, str(ROOT / "examples/own_source.py")],
        [sys.executable, "-m", "raytrain", "train", str(ROOT / "examples/own_source.yaml")],
    ):
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=patient(300))
        assert ended.returncode == 0, ended.stderr
    named = read_record(tmp_path / "runs/own-source/record.json")
    [before] = (tmp_path / "runs").glob("own-source~*/record.json")
    scripted = read_record(before)
    assert named.job["data"]["train"] == {"kind": "own_source:Digits"}
    for record in (named, scripted):
        assert (record.num_train, record.num_validation, record.totals.samples) == (1437, 360, 3 * 1437)
        assert record.epochs[-1]["validation_accuracy"] > 0.85
    assert named.epochs[0]["loss"] == pytest.approx(scripted.epochs[0]["loss"], rel=0.2)


def test_the_reference_has_the_signatures():
    [block] = re.findall(r"## `fit`.*?```python\n(.*?)```", REFERENCE, re.S)
    said = {}
    exec(block.replace("Job.", "Job_"), said)
    own = [
        each for name, each in inspect.signature(fit).parameters.items() if name not in ("started_at", "resume_word")
    ]
    for name, parameters in {
        "fit": own,
        "Pipeline": inspect.signature(Pipeline).parameters.values(),
        "Job_from_yaml": inspect.signature(Job.from_yaml).parameters.values(),
        "Job_from_dict": inspect.signature(Job.from_dict).parameters.values(),
    }.items():
        there = inspect.signature(said[name]).parameters.values()
        assert [shown(p) for p in there] == [shown(p) for p in parameters], name


def shown(parameter):
    """A dataclass shows what it makes anew each time as a factory."""
    default = {} if repr(parameter.default) == "<factory>" else parameter.default
    return parameter.name, parameter.kind, default


@pytest.mark.ray
def test_the_ported_script_runs_as_it_stands_and_learns_as_much_as_the_plain_one(tmp_path):
    """In the page's own order: the data, the script before, the script after."""
    [sample_data, plain, ported] = re.findall(r"^    ((?:raytrain|python) .*)$", PORTING, re.M)
    for name, text in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PORTING, re.S):
        (tmp_path / name).write_text(text)
    made = run_cli(*shlex.split(sample_data)[1:], cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    before = run_python(plain, tmp_path)
    accuracies = [float(text) for text in re.findall(r"validation accuracy ([\d.]+)", before.stdout)]
    run_python(ported, tmp_path)
    record = read_record(tmp_path / "runs" / "ported" / "record.json")
    ours = [epoch["validation_accuracy"] for epoch in record.epochs]
    assert len(ours) == len(accuracies) == 3
    assert accuracies[-1] > 0.85 and ours[-1] == pytest.approx(accuracies[-1], abs=0.05)


def run_python(command, folder):
    result = subprocess.run(
        [sys.executable, *shlex.split(command)[1:]], cwd=folder, capture_output=True, text=True, timeout=patient(300)
    )
    assert result.returncode == 0, result.stderr
    return result
