"""The command line: one thin function a sub-command. What it is asked to say goes to standard output, the rest to
standard error."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
import typer.exceptions

from raytrain import __version__
from raytrain.config import Job
from raytrain.errors import RaytrainError

app = typer.Typer(
    name="raytrain",
    help="Train PyTorch models on Ray with the preprocessing spread over every CPU of the cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


class SampleData(StrEnum):
    digits = "digits"


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"raytrain {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = (
        False
    ),
) -> None:
    """Train PyTorch models on Ray with the preprocessing spread over every CPU of the cluster."""


@app.command(epilog="Example: raytrain train launch/digits.yaml --nodes train=1x1,cpu=1x1 --set training.epochs=5")
def train(
    job_file: Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job description.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be repeated.")
    ] = None,
    nodes: Annotated[
        str | None,
        typer.Option(metavar="GROUP=HOSTSxCPUS[xGPUS],...", help="Emulate a cluster of Ray nodes on this machine."),
    ] = None,
    address: Annotated[str | None, typer.Option(help="Attach to a running Ray cluster, such as auto.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    as_json: Json = False,
) -> None:
    """Train a job to its end and write its record."""
    from raytrain.report.live import fit
    from raytrain.run_folder import process_started_at

    job = Job.from_yaml(job_file, overrides or [])
    record = fit(None, None, job, nodes=nodes, address=address, resume=resume, started_at=process_started_at())
    if as_json:
        typer.echo(record.model_dump_json(indent=1))
    else:
        typer.echo(f"record: {Path(job.run_dir) / job.name / 'record.json'}")


@app.command(epilog="Example: raytrain sample-data digits data/digits")
def sample_data(
    name: Annotated[SampleData, typer.Argument(help="Which data set.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write it.")],
    as_json: Json = False,
) -> None:
    """Write a small real data set as image files."""
    from raytrain.data.samples import write_digits

    counts = {SampleData.digits: write_digits}[name](folder)
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), **counts}))
    else:
        typer.echo(f"{folder}: {counts['train']} training and {counts['validation']} validation images")


def main() -> None:
    """Entry point: what the user can mend is one line and an exit code, never a traceback."""
    try:
        raise SystemExit(app(standalone_mode=False) or 0)
    except RaytrainError as error:
        _say(str(error))
        raise SystemExit(error.exit_code) from None
    except typer.exceptions.TyperException as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        if message:  # calling the program without a command prints the help instead
            _say(f"{message.rstrip('.')}; see raytrain --help")
        raise SystemExit(getattr(error, "exit_code", 2)) from None
    except (KeyboardInterrupt, typer.Abort):
        _say("stopped")
        raise SystemExit(130) from None


def _say(message: str) -> None:
    print(f"raytrain: {message}", file=sys.stderr)  # noqa: T201 - rich would wrap the line
