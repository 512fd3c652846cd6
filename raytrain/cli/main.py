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
from raytrain.cli import cloud, cores, cost, export, infer, prices, tune
from raytrain.cli.options import Address, JobFile, Json, Nodes, Overrides
from raytrain.config.job import Job
from raytrain.errors import RaytrainError

app = typer.Typer(
    name="raytrain",
    help="Train PyTorch models on Ray with the preprocessing spread over every CPU of the cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cloud.app)
app.add_typer(cores.app)
app.add_typer(cost.app)
app.add_typer(export.app)
app.add_typer(infer.app)
app.add_typer(tune.app)
app.add_typer(prices.app, name="prices")
METRICS = "Metrics"  # a panel of its own, in which even its longest option fits 80 columns


class SampleData(StrEnum):
    digits = "digits"


class Efa(StrEnum):
    auto = "auto"
    on = "on"
    off = "off"


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
    job_file: JobFile,
    overrides: Overrides = None,
    nodes: Nodes = None,
    address: Address = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    run_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the run in DIR/<name>. (default: run_dir of the job)")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a job to its end and write its record."""
    from raytrain.report.live import shown
    from raytrain.report.terminal import terminal
    from raytrain.run.folder import process_started_at
    from raytrain.run.hosted import folder_of

    job = Job.from_yaml(job_file, overrides or [])
    if run_dir is not None:
        job = job.model_copy(update={"run_dir": str(run_dir)})
    asked = {"nodes": nodes, "address": address, "resume": resume}
    record = shown(None, None, job, terminal(), **asked, started_at=process_started_at(), resume_word="--resume")
    if as_json:
        typer.echo(record.model_dump_json(indent=1))
    else:
        typer.echo(f"record: {folder_of(job).record}")


@app.command(epilog="Example: raytrain sample-data digits data/digits")
def sample_data(
    name: Annotated[SampleData, typer.Argument(help="Which data set.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write it.")],
    as_json: Json = False,
) -> None:
    """Write a small real data set as image files."""
    from raytrain.data.toy import write_digits

    counts = {SampleData.digits: write_digits}[name](folder)
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), **counts}))
    else:
        typer.echo(f"{folder}: {counts['train']} training and {counts['validation']} validation images")


@app.command(
    epilog="Example: raytrain bootstrap --head-cpus 0 --head-gpus 0 -- train.py job.yaml",
    context_settings={"allow_interspersed_args": False},
)
def bootstrap(
    program: Annotated[list[str], typer.Argument(metavar="-- PROGRAM [ARGS]...", help="A .py, a .sh or a command.")],
    head_group: Annotated[
        str | None, typer.Option(help="Whose first host is the head. (default: the first group with GPUs)")
    ] = None,
    head_cpus: Annotated[int | None, typer.Option(min=0, help="CPUs that Ray may use on the head.")] = None,
    head_gpus: Annotated[int | None, typer.Option(min=0, help="GPUs that Ray may use on the head.")] = None,
    join_timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for all hosts.")] = 300,
    grace: Annotated[float, typer.Option(min=0, help="Seconds for the program after SIGTERM.")] = 100,
    linger: Annotated[float, typer.Option(min=0, help="Seconds to keep the cluster after the program.")] = 0,
    port: Annotated[int, typer.Option(min=1, max=65534, help="Ray's port on the head; the next one is ours.")] = 6379,
    token_file: Annotated[
        Path | None, typer.Option(help="Holds the token of Ray's authentication, the same on every host.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Run without authentication.")] = False,
    connect: Annotated[bool, typer.Option("--connect", help="Start a .py program connected to Ray.")] = False,
    efa: Annotated[Efa, typer.Option(help="Elastic Fabric Adapter: where it is found, or as you say.")] = Efa.auto,
    dashboard: Annotated[bool, typer.Option("--dashboard", help="Serve Ray's dashboard on the head.")] = False,
    dashboard_host: Annotated[str, typer.Option(help="Where the dashboard listens.")] = "127.0.0.1",
    dashboard_port: Annotated[int, typer.Option(min=1, max=65535)] = 8265,
    prometheus: Annotated[
        str | None,
        typer.Option(help="Run Prometheus on the head: a binary, its archive, or path.", rich_help_panel=METRICS),
    ] = None,
    remote_write: Annotated[
        str | None, typer.Option(metavar="URL", help="Where Prometheus sends it on.", rich_help_panel=METRICS)
    ] = None,
    remote_write_region: Annotated[
        str | None,
        typer.Option(
            help="Sign for this region (SigV4). (default: as the URL of Amazon's service says)", rich_help_panel=METRICS
        ),
    ] = None,
    remote_write_user: Annotated[
        str | None, typer.Option(help="For basic authentication.", rich_help_panel=METRICS)
    ] = None,
    remote_write_password_file: Annotated[
        Path | None, typer.Option(help="Or RAYTRAIN_REMOTE_WRITE_PASSWORD.", rich_help_panel=METRICS)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write the bootstrap's own lines as JSON.")] = False,
) -> None:
    """Start Ray on every host of a job, run PROGRAM once, and end everywhere with its exit status.

    The same command on every host. Outside a SageMaker job it is a cluster of this machine alone.
    """
    from raytrain.bootstrap.host import Options
    from raytrain.bootstrap.main import run

    asked = Options(
        program=tuple(program),
        head_group=head_group,
        head_cpus=head_cpus,
        head_gpus=head_gpus,
        join_timeout_s=join_timeout,
        grace_s=grace,
        linger_s=linger,
        port=port,
        token_file=token_file,
        insecure=insecure,
        connect=connect,
        efa=efa.value,
        dashboard=f"{dashboard_host}:{dashboard_port}" if dashboard else None,
        prometheus=prometheus,
        remote_write=remote_write,
        remote_write_region=remote_write_region,
        remote_write_user=remote_write_user,
        remote_write_password_file=remote_write_password_file,
        as_json=as_json,
    )
    raise typer.Exit(run(asked))


def main() -> None:
    """Entry point: what the user can mend is one line and an exit code, never a traceback."""
    try:
        raise SystemExit(app(standalone_mode=False) or 0)
    except RaytrainError as error:
        _say(error.told())
        raise SystemExit(error.exit_code) from None
    except typer.exceptions.TyperException as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        if message:  # calling the program without a command prints the help instead
            message = f"{message.rstrip('.')}; see raytrain --help"
            _say(message)
            if sys.argv[1:2] == ["bootstrap"]:  # a job that fails for its command line should say so too
                from raytrain.bootstrap.main import tell_failure

                tell_failure(message)
        raise SystemExit(getattr(error, "exit_code", 2)) from None
    except (KeyboardInterrupt, typer.Abort):
        _say("stopped")
        raise SystemExit(130) from None


def _say(message: str) -> None:
    print(f"raytrain: {message}", file=sys.stderr)  # noqa: T201 - rich would wrap the line
