"""The commands that say what a job costs: before it, after it, and on a page."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from raytrain.cli.options import Address, JobFile, Json, Nodes, Overrides, confirm
from raytrain.errors import ConfigError

app = typer.Typer()
Prices = Annotated[Path | None, typer.Option(metavar="FILE", help="More types and prices.")]
Region = Annotated[str | None, typer.Option(help="Of the prices. (default: as the job says)")]
Instances = Annotated[
    list[str] | None,
    typer.Option(metavar="GROUP=TYPE,...", help="Instance types of a record's groups; once for each record."),
]
Unlike = Annotated[bool, typer.Option("--unlike", help="Compare different workloads all the same.")]
Accelerators = Annotated[
    list[str] | None,
    typer.Option("--accelerator", metavar="GPU=SECONDS", help="Of one GPU for a sample, where it was not measured."),
]


@app.command(epilog="Example: raytrain compare runs/single/record.json runs/heterogeneous/record.json")
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RECORD|JOB.yaml...", help="Records, or job files to run.")],
    on: Annotated[
        str, typer.Option(metavar="nodes|twin|sagemaker", help="Where job files run, one after the other.")
    ] = "nodes",
    overrides: Overrides = None,
    scale: Annotated[
        float | None, typer.Option(help="CPUs of an emulated host, as a share of its vCPUs. (default: as it has)")
    ] = None,
    channels: Annotated[
        list[str] | None, typer.Option("--channel", metavar="NAME=FOLDER", help="Of twins, as raytrain twin has it.")
    ] = None,
    region: Region = None,
    instances: Instances = None,
    unlike: Unlike = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Run job files without asking.")] = False,
    prices: Prices = None,
    as_json: Json = False,
) -> None:
    """Set runs beside each other, and the best single instance that could have done the first."""
    from raytrain.cost.compare import check_instances
    from raytrain.cost.compare import compare as compared
    from raytrain.cost.instances import catalog
    from raytrain.report.costs import show_comparison
    from raytrain.report.terminal import terminal
    from raytrain.study.trials import Trials

    known = catalog(prices)
    trials = Trials(on, known, overrides or [], scale, prices, tuple(channels or ()))
    check_instances(len(runs), instances or [])
    _agree(trials, [path for path in runs if path.suffix != ".json"], yes)
    found = compared(
        [trials.record(path) for path in runs],
        known,
        region=region or trials.region(runs),
        instances=[_types(text) for text in instances] if instances else None,
        unlike=unlike,
    )
    if as_json:
        typer.echo(json.dumps(asdict(found), default=_plain))
    else:
        show_comparison(found, known, terminal(standard_output=True))


def _agree(trials: Any, job_files: list[Path], yes: bool) -> None:
    """Say which trainings will run and about how long, and ask, unless the answer is known.

    Raises:
        ConfigError: nobody is there to ask.
        Stopped: the answer was no.
    """
    from raytrain.report.terminal import terminal

    if not job_files:
        return
    lines = [trials.intended(path) for path in job_files]
    if not yes and not sys.stdin.isatty():
        raise ConfigError(f"this would train, which may take long, and nobody is asked: {'; '.join(lines)}; give --yes")
    console = terminal()
    for line in ("one after the other:", *lines):
        console.print(line, markup=False, highlight=False)
    if yes:
        return
    console.print("how long? finding out takes a moment", markup=False, highlight=False)
    for path in job_files:
        console.print(trials.duration(path), markup=False, highlight=False)
    confirm("run them?", "nothing was trained to the end; --yes trains without asking")


@app.command(epilog="Example: raytrain diagnose launch/digits.yaml")
def diagnose(
    job_file: JobFile,
    overrides: Overrides = None,
    nodes: Nodes = None,
    address: Address = None,
    seconds: Annotated[float, typer.Option(min=1, help="Of each measurement.")] = 8.0,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="(default: runs/NAME.profile.json)")
    ] = (None),
    as_json: Json = False,
) -> None:
    """Measure preprocessing and training apart and together, and write what a sample takes as a profile."""
    from raytrain.config.job import Job
    from raytrain.report.diagnosis import show_diagnosis, what_helps
    from raytrain.report.terminal import terminal

    job = Job.from_yaml(job_file, overrides or [])
    profile, findings = _diagnosed(job, nodes, address, seconds)
    path = out or Path(job.run_dir).expanduser() / f"{job.name}.profile.json"
    profile.write(path)
    if as_json:
        said = {"lost_share": findings.lost_share, "what_helps": what_helps(findings)}
        typer.echo(json.dumps({"profile": str(path), **asdict(findings), **said}, default=_plain))
    else:
        show_diagnosis(findings, profile, terminal())
        typer.echo(f"profile: {path}")


def _diagnosed(job: Any, nodes: str | None, address: str | None, seconds: float) -> tuple[Any, Any]:
    from raytrain.cost.instances import catalog
    from raytrain.report.terminal import terminal
    from raytrain.study.diagnose import diagnose as measured

    console = terminal()
    return measured(
        job,
        catalog(),
        nodes=nodes,
        address=address,
        seconds=seconds,
        say=lambda text: console.print(text, markup=False, highlight=False),
    )


@app.command(epilog="Example: raytrain plan runs/digits.profile.json --region us-west-2 --max-hours 12")
def plan(
    measured: Annotated[Path, typer.Argument(metavar="PROFILE|RECORD|JOB.yaml", help="A job file is diagnosed first.")],
    region: Region = None,
    max_price: Annotated[float | None, typer.Option(min=0, help="Dollars an hour, of all hosts together.")] = None,
    max_hours: Annotated[float | None, typer.Option(min=0, help="Of the whole job.")] = None,
    families: Annotated[str | None, typer.Option(metavar="g5,c5,...", help="Of instance types. (default: all)")] = None,
    max_gpu_hosts: Annotated[int, typer.Option(min=1, max=64)] = 4,
    max_cpu_hosts: Annotated[int, typer.Option(min=0, max=64, help="Of one type.")] = 16,
    accelerator: Accelerators = None,
    startup: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="Of SageMaker. (default: if it was measured there)")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many shapes a table has.")] = 5,
    pick: Annotated[int, typer.Option(min=1, help="Which of the best becomes the job file.")] = 1,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="JOB.yaml", help="Write a job file for it.")
    ] = None,
    role: Annotated[str | None, typer.Option(help="Of the job file: ARN or name. (default: the job's own)")] = None,
    data: Annotated[
        str | None, typer.Option(metavar="s3://...", help="Where the data will lie, for the job file.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it on a page.")] = None,
    prices: Prices = None,
    as_json: Json = False,
) -> None:
    """Say which cluster shape is cheapest for a job, and which are the fastest for their money."""
    from raytrain.cost.bounds import Bounds
    from raytrain.cost.instances import catalog
    from raytrain.cost.planner import plan as planned
    from raytrain.report.plans import show_plan
    from raytrain.report.terminal import terminal
    from raytrain.study.planned_job import write_job
    from raytrain.study.profile_file import profile_from, with_accelerators, with_estimates

    known = catalog(prices)
    profile = profile_from(measured, known, lambda job: _diagnosed(job, None, None, 8.0)[0])
    profile = with_estimates(with_accelerators(profile, accelerator or [], known), known)
    where = region or (profile.job.get("sagemaker") or {}).get("region")
    if where is None:
        raise ConfigError("the job names no region; give --region")
    cluster = profile.job.get("cluster") or {}
    bounds = Bounds(
        where,
        families=tuple(families.split(",")) if families else None,
        max_usd_per_hour=max_price,
        max_hours=max_hours,
        max_gpu_hosts=max_gpu_hosts,
        max_cpu_hosts=max_cpu_hosts,
        reserved_cpus=cluster.get("reserved_cpus"),
        cpu_groups_only=cluster.get("placement") == "cpu-groups-only",
        startup_s=startup,
    )
    found = planned(profile, known, bounds)
    if pick > len(found):
        raise ConfigError(f"--pick {pick}: there are {len(found)} shapes")
    if as_json:
        typer.echo(json.dumps(_plan_tree(found)))
    else:
        show_plan(found, known, terminal(standard_output=True), top)
    if html is not None:
        from raytrain.report.pages.page import write_plan

        write_plan(found, known, html)
        typer.echo(f"page: {html}", err=as_json)
    if out is not None:
        left = write_job(found[pick - 1], profile, known, where, out, role=role, data=data)
        typer.echo(f"job file for {found[pick - 1].shape}: {out}", err=as_json)
        for line in left:
            typer.echo(f"before you launch it: {line}", err=as_json)


def _plan_tree(found: Any) -> dict[str, Any]:
    """For a program to read."""
    from raytrain.report.places import ways
    from raytrain.report.plans import answer

    return {
        "shapes": len(found),
        "estimated": found.profile.estimated is not None,
        "verdict": " ".join(answer(found)),
        "assumptions": found.assumptions,
        "startup_s": found.startup_s,
        "best": [_prediction(each) for each in found.best(10)],
        "front": [_prediction(each) for each in found.front()],
        "ways": {way: _prediction(each) for way, each in ways(found)},
    }


@app.command(epilog="Example: raytrain report runs/single runs/heterogeneous -o report.html")
def report(
    records: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of ended runs, or their records.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="The page.")] = Path("report.html"),
    region: Region = None,
    instances: Instances = None,
    unlike: Unlike = False,
    prices: Prices = None,
    as_json: Json = False,
) -> None:
    """Write one self-contained page about runs: final figures, curves, timelines, costs."""
    from raytrain.cost.compare import Comparison
    from raytrain.cost.compare import compare as compared
    from raytrain.cost.instances import catalog
    from raytrain.report.pages.page import write_report
    from raytrain.run.folder import read_run

    known, read = catalog(prices), [read_run(path) for path in records]
    types = [_types(text) for text in instances] if instances else None
    if len(read) == 1 and not read[0].totals.samples:
        found = Comparison((), (), ())  # a run that failed: its curves, and why
    else:
        found = compared(read, known, region=region, instances=types, unlike=unlike)
    write_report(read, found, known, out)
    typer.echo(json.dumps({"page": str(out)}) if as_json else f"page: {out}")


def _types(text: str) -> dict[str, str]:
    """`gpu=ml.g5.xlarge,cpu=ml.c5.4xlarge`"""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name and kind for name, _, kind in pairs):
        raise ConfigError(f"--instances {text!r} must look like gpu=ml.g5.xlarge,cpu=ml.c5.4xlarge")
    return {name.strip(): kind.strip() for name, _, kind in pairs}


def _prediction(each: Any) -> dict[str, Any]:
    return {**asdict(each), "shape": str(each.shape)}


def _plain(value: Any) -> Any:
    return value.model_dump() if hasattr(value, "model_dump") else str(value)
