"""The commands that launch on SageMaker, or on simulated hosts, and look after what was launched."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from raytrain.cli.options import JobFile, JobName, Json, Overrides, Region, confirm
from raytrain.config.job import Job
from raytrain.errors import ConfigError

app = typer.Typer()


@app.command(epilog="Example: raytrain launch launch/heterogeneous.yaml --set sagemaker.role=training --wait")
def launch(
    job_file: JobFile,
    overrides: Overrides = None,
    name: Annotated[str | None, typer.Option(help="Of the training job. (default: the job's and the time)")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Show the log and end as the job ends.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what it is and costs; ask and send nothing.")
    ] = False,
    prices: Annotated[Path | None, typer.Option(metavar="FILE", help="More types and prices.")] = None,
    no_prices: Annotated[bool, typer.Option("--no-prices", help="Launch without knowing what it costs.")] = False,
    as_json: Json = False,
) -> None:
    """Run a job on SageMaker: show what it is and costs, ask, upload, create."""
    from raytrain.report.cloud import show_quote
    from raytrain.report.terminal import terminal
    from raytrain.sagemaker import aws, submit, training_jobs
    from raytrain.sagemaker.parcel import pack

    job = Job.from_yaml(job_file, overrides or [])
    console = terminal(standard_output=dry_run)
    known = None if dry_run else aws.account(submit.settings(job).region)
    prepared = submit.prepare(job, known, name=name, prices=prices, priced=not no_prices)
    with tempfile.TemporaryDirectory() as folder:
        parcel = pack(job, Path(folder) / "parcel")
        if dry_run and as_json:
            _echo_json({**prepared.quote.figures, "request": prepared.shown})
            return
        show_quote(prepared.quote, console, parcel, prepared.notes)
        if dry_run:
            typer.echo("dry run: nobody was asked and nothing was sent; --json prints the request")
            return
        if not yes:
            confirm("launch?", "not launched; --yes launches without asking")
        arn = submit.submit(
            prepared, parcel, known, say=lambda text: console.print(text, markup=False, highlight=False)
        )
    link = known.console + prepared.quote.name
    if as_json and not wait:
        typer.echo(json.dumps({"name": prepared.quote.name, "arn": arn, "console": link}))
    elif not as_json:
        typer.echo(prepared.quote.name)
    console.print(link, highlight=False, soft_wrap=True)
    if wait:
        described = _follow(prepared.quote.name, known, as_json)
        if as_json:
            typer.echo(json.dumps(described, default=lambda value: value.isoformat()))
        raise typer.Exit(training_jobs.EXIT_CODES[described["TrainingJobStatus"]])


def _show(line: Any, as_json: bool) -> None:
    typer.echo(json.dumps(asdict(line)) if as_json else f"[{line.host}] {line.text}")


def _follow(name: str, known: Any, as_json: bool) -> dict[str, Any]:
    """Log lines on standard output, changes of state on standard error."""
    from raytrain.report.terminal import terminal
    from raytrain.sagemaker import submit, training_jobs

    console = terminal()
    with submit.goes_on(name):
        return training_jobs.follow(
            name,
            known,
            show=lambda line: _show(line, as_json),
            say=lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True),
        )


def _echo_json(tree: Any) -> None:
    typer.echo(json.dumps(tree, indent=1, default=lambda value: value.isoformat()))


@app.command(epilog="Example: raytrain twin launch/heterogeneous.yaml --set training.steps=4 --scale 0.125")
def twin(
    job_file: Annotated[Path | None, typer.Argument(metavar="JOB.yaml", help="The job description.")] = None,
    overrides: Overrides = None,
    described: Annotated[
        str | None, typer.Option("--job", metavar="NAME", help="Run what DescribeTrainingJob says of this job instead.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the twin. (default: the job's and the time)")] = None,
    channels: Annotated[
        list[str] | None,
        typer.Option("--channel", metavar="NAME=FOLDER", help="What stands for a channel's place in S3."),
    ] = None,
    scale: Annotated[
        float | None, typer.Option(help="CPUs a host, as a share of its vCPUs. (default: no limit)")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="Emulated GPUs a GPU host. (default: as it has)")] = None,
    checkpoints: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Kept by an earlier twin: go on from them, as a spot job does."),
    ] = None,
    stop_after: Annotated[float | None, typer.Option(min=0, help="Stop the job after so many seconds.")] = None,
    folder: Annotated[Path, typer.Option(help="What the job leaves goes to FOLDER/NAME.")] = Path("runs/twin"),
    prices: Annotated[Path | None, typer.Option(metavar="FILE", help="More instance types.")] = None,
    region: Region = None,
    as_json: Json = False,
) -> None:
    """Run the request of a job on simulated hosts of this machine, and collect what it leaves."""
    from raytrain.report.cloud import show_status
    from raytrain.report.terminal import terminal
    from raytrain.sagemaker import training_jobs
    from raytrain.sagemaker.twin.job import Asked, twin_of_description, twin_of_file
    from raytrain.sagemaker.twin.twin import TwinOptions

    console = terminal()
    if (job_file is None) == (described is None):
        raise typer.BadParameter("give a JOB.yaml or --job NAME, one of them")
    wanted = Asked(
        name=name,
        channels=channels or [],
        checkpoints=checkpoints,
        folder=folder,
        prices=prices,
        options=TwinOptions(scale=scale, gpus=gpus, stop_after_s=stop_after),
        show=lambda host, line: typer.echo(f"[{host}] {line}", err=as_json),
        say=lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True),
    )
    if described is None:
        found = twin_of_file(Job.from_yaml(job_file, overrides or []), wanted)
    else:
        found = twin_of_description(described, region, wanted)
    if as_json:
        _echo_json(found)
    else:
        show_status(found, console)
        typer.echo(folder / found["TrainingJobName"])
    raise typer.Exit(training_jobs.EXIT_CODES[found["TrainingJobStatus"]])


@app.command(epilog="Example: raytrain record digits-20261122130455")
def record(
    name: JobName,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="(default: runs/NAME/record.json)")] = None,
    folder: Annotated[Path, typer.Option(help="Where twins leave their things.")] = Path("runs/twin"),
    prices: Annotated[Path | None, typer.Option(metavar="FILE", help="More types and prices.")] = None,
    no_prices: Annotated[bool, typer.Option("--no-prices", help="Leave the money out.")] = False,
    region: Region = None,
    as_json: Json = False,
) -> None:
    """Gather what is known of an ended job, or of a twin, into its run record."""
    from raytrain.sagemaker import aws, gather

    twin_folder = folder / name
    if twin_folder.exists():
        found = gather.gather_twin(twin_folder)
    else:
        found = gather.gather(name, aws.account(region), prices, priced=not no_prices)
    path = out or Path("runs") / name / "record.json"
    try:
        found.write(path)
    except OSError as error:
        raise ConfigError(f"--out {path} cannot be written: {error.strerror}") from None
    typer.echo(found.model_dump_json(indent=1) if as_json else f"record: {path}")


@app.command(epilog="Example: raytrain status digits-20261122130455")
def status(name: JobName, region: Region = None, as_json: Json = False) -> None:
    """Say how a training job is."""
    from raytrain.report.cloud import show_status
    from raytrain.report.terminal import terminal
    from raytrain.sagemaker import aws, submit

    described = submit.describe(name, aws.account(region))
    if as_json:
        _echo_json(described)
    else:
        show_status(described, terminal(standard_output=True))


@app.command(epilog="Example: raytrain logs digits-20261122130455 --follow")
def logs(
    name: JobName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    region: Region = None,
    as_json: Json = False,
) -> None:
    """Print a training job's log, the lines of all hosts by time."""
    from raytrain.sagemaker import aws, submit, training_jobs

    known = aws.account(region)
    if follow:
        described = _follow(name, known, as_json)
        raise typer.Exit(training_jobs.EXIT_CODES[described["TrainingJobStatus"]])
    submit.describe(name, known)
    for line in training_jobs.Logs(name, known).new():
        _show(line, as_json)


@app.command(epilog="Example: raytrain stop digits-20261122130455")
def stop(name: JobName, region: Region = None, as_json: Json = False) -> None:
    """End a training job: SIGTERM to every host, and SIGKILL two minutes later."""
    from raytrain.sagemaker import aws, training_jobs

    training_jobs.stop(name, aws.account(region))
    typer.echo(json.dumps({"name": name, "status": "Stopping"}) if as_json else f"{name} is stopping")


@app.command(epilog="Example: raytrain jobs --contains digits")
def jobs(
    contains: Annotated[str, typer.Option(help="Only names with this in them.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="How many, at most.")] = 20,
    region: Region = None,
    as_json: Json = False,
) -> None:
    """List the latest training jobs, newest first."""
    from raytrain.report.cloud import show_jobs
    from raytrain.report.terminal import terminal
    from raytrain.sagemaker import aws, training_jobs

    found = training_jobs.jobs(aws.account(region), contains, limit)
    if as_json:
        _echo_json(found)
    else:
        show_jobs(found, terminal(standard_output=True))
