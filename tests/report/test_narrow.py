"""What a person reads in a terminal of 80 columns, or of 120: the point first, and nothing cut."""

from __future__ import annotations

import io
import re
import shlex
import shutil
import subprocess
from datetime import UTC, datetime

import pytest
from aws import BUCKET, ROLE
from conftest import RAYTRAIN, ROOT
from patience import patient
from rich.console import Console
from test_architecture import SURFACE
from typer.main import get_command
from typer.testing import CliRunner

from raytrain.cli.main import app
from raytrain.config.job import Job
from raytrain.report.cloud import show_jobs, show_quote
from raytrain.sagemaker.quote import quote
from raytrain.sagemaker.request import Places, build

IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.9.0-gpu-py312"
URI = f"s3://{BUCKET}/a/very/long/way/to/the/images/of/the/whole/department/version-2/train"
GROUPS = ("gpu-hosts-of-the-second-team-in-the-first-row", "cpu-hosts-of-the-second-team-in-the-first-row")


def quoted():
    groups = [
        {"name": GROUPS[0], "instance_type": "ml.g5.12xlarge", "hosts": 4},
        {"name": GROUPS[1], "instance_type": "ml.c5.18xlarge", "hosts": 16},
    ]
    tree = {
        "name": "digits",
        "training": {"epochs": 1},
        "cluster": {"groups": groups},
        "sagemaker": {"role": ROLE, "channels": {"images": {"uri": URI, "groups": list(GROUPS)}}},
    }
    job = Job.from_dict(tree)
    request = build(job, Places(BUCKET, "p", "b", "job-1", "t"), image=IMAGE, role=ROLE)
    return quote(request, job, "us-east-1", None)


def column(text: str, number: int) -> str:
    """What stands in a column of a table, its folded lines put together again."""
    rows = [line.split("│") for line in text.splitlines() if line.count("│") == 5]
    return "".join(row[number].strip() for row in rows)


@pytest.mark.parametrize("width", [80, 120])
def test_a_launch_begins_with_what_it_comes_to_and_cuts_nothing(width):
    found, out = quoted(), io.StringIO()
    show_quote(found, Console(file=out, width=width), None, ("a note",))
    text = out.getvalue()
    assert text.splitlines()[:2] == [
        f"20 hosts in us-east-1 for ${found.usd_per_hour:,.3f} an hour, at most ${found.max_usd:,.2f}",
        "job: job-1",
    ]
    assert "…" not in text
    assert column(text, 0) == "".join(GROUPS)
    assert column(text, 1) == "ml.g5.12xlargeml.c5.18xlarge"
    assert column(text, 5).endswith(f"${found.usd_per_hour:,.3f}")
    for whole in (IMAGE, ROLE, URI, f"{found.single.group.hosts} x ml.g5.12xlarge"):
        assert any(whole in line for line in text.splitlines()), "whole on its line, so that it can be copied"
    lines = [line for line in text.splitlines() if "│" in line]
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("width", [80, 120])
def test_the_names_of_jobs_are_whole(width):
    out, name = io.StringIO(), "a" * 30 + "-" + "b" * 32  # as long as SageMaker takes
    at = datetime(2026, 1, 1, tzinfo=UTC)
    show_jobs(
        [{"TrainingJobName": name, "TrainingJobStatus": "InProgress", "CreationTime": at}],
        Console(file=out, width=width),
    )
    rows = [[cell.strip() for cell in line.split("│")] for line in out.getvalue().splitlines() if "│" in line]
    assert "".join(row[0] for row in rows) == name
    assert "".join(row[1] for row in rows) == "InProgress"


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", ["", *SURFACE])
def test_help_names_every_option_whole(name, width):
    result = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": str(width), "TERM": "dumb"})
    assert result.exit_code == 0
    assert "…" not in result.output
    assert max(map(len, result.output.splitlines())) <= width
    command = get_command(app)
    for word in name.split():
        command = command.commands[word]
    for option in (max(each.opts, key=len) for each in command.params if each.param_type_name == "option"):
        assert re.search(rf"{option}\b", result.output), option


@pytest.mark.process
@pytest.mark.skipif(shutil.which("tmux") is None, reason="no tmux: the terminal of 80 x 24 is one of its")
def test_a_dry_run_in_a_real_terminal_of_80_by_24(tmp_path):
    tmux = ["tmux", "-u", "-S", str(tmp_path / "tmux"), "-f", "/dev/null"]
    command = shlex.join([*RAYTRAIN, "launch", str(ROOT / "launch" / "digits_sagemaker.yaml"), "--dry-run"])
    script = (
        f"{command}; echo ended with $?; {shlex.join(tmux)} wait-for -S ended; cat"  # cat: it stays to be looked at
    )

    def tell(*words: str) -> str:
        done = subprocess.run(
            [*tmux, *words], cwd=ROOT, capture_output=True, text=True, timeout=patient(120), check=True
        )
        return done.stdout

    tell("new-session", "-d", "-x", "80", "-y", "24", script)
    try:
        tell("wait-for", "ended")
        screen = tell("capture-pane", "-p", "-S", "-").splitlines()  # with what has scrolled away
        joined = tell("capture-pane", "-p", "-J", "-S", "-")
    finally:
        tell("kill-server")
    screen = [line.rstrip() for line in screen]
    assert len(screen) == 24, "nothing has scrolled away"
    assert re.fullmatch(r"3 hosts in us-east-1 for \$[\d.]+ an hour, at most \$[\d.]+", screen[0])
    assert "ended with 0" in screen
    assert "…" not in joined
    for whole in ("ml.g5.xlarge", "ml.c5.4xlarge", "s3://your-bucket/digits (File) to gpu, cpu", IMAGE):
        assert whole in joined
