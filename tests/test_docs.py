"""The docs say what there is: every command and member, commands that parse, and the ported script as it stands."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shlex
import subprocess
import sys

import pytest
import typer
from conftest import ROOT, run_cli
from patience import patient

from raytrain.record.schema import read_record

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE = (ROOT / "docs" / "reference.md").read_text()
PORTING = (ROOT / "docs" / "porting.md").read_text()


def commands():
    """Every `raytrain ...` line of an indented or fenced block, as (page, words)."""
    found = []
    for page in PAGES:
        for line in page.read_text().splitlines():
            match = re.match(r"    (raytrain [a-z].*)", line)
            if match:
                text = re.sub(r"\[([^\]]*)\]", r"\1", match.group(1).split("  #")[0])  # what may be left out is tried
                found.append((page.name, text))
    return found


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


def test_the_commands_of_the_docs_are_found():
    assert len(commands()) > 30


def test_the_reference_has_every_command():
    command, _ = command_of([])
    named = set(re.findall(r"`raytrain ([a-z-]+)", REFERENCE))
    assert named == set(command.commands)


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
    assert set(re.findall(r"batch\.([a-z_]+)", REFERENCE)) == fields


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
