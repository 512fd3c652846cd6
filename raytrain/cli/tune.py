"""`raytrain tune`: how a prediction runs best on this host."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from raytrain.cli.options import JobFile, Json, Overrides
from raytrain.errors import ConfigError

app = typer.Typer()
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


@app.command(epilog="Example: raytrain tune launch/predict_digits.yaml --budget 10m --instance ml.c5.4xlarge")
def tune(
    job_file: JobFile,
    overrides: Overrides = None,
    budget: Annotated[str | None, typer.Option(metavar="10m", help="(default: tune.budget_s of the job)")] = None,
    objective: Annotated[
        str | None, typer.Option(metavar="throughput|latency", help="(default: inference.objective of the job)")
    ] = None,
    instance: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="Price predictions as on it. (default: that of the job's groups)"),
    ] = None,
    region: Annotated[str | None, typer.Option(help="Of the prices.")] = None,
    prices: Annotated[Path | None, typer.Option(metavar="FILE", help="More types and prices.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="JOB.yaml", help="(default: tuned.yaml in the run's folder)")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it on a page.")] = None,
    as_json: Json = False,
) -> None:
    """Try settings on this host, and write the job file with the best. Run again, it measures nothing twice."""
    from raytrain.config.file import read_tree
    from raytrain.config.inference import PredictionJob
    from raytrain.cost.instances import catalog
    from raytrain.infer.tune.tuned import write_tuned
    from raytrain.report.terminal import terminal
    from raytrain.report.tuning import show_tuned, tree_of, tuned_here

    sets = list(overrides or [])
    sets += [f"inference.objective={objective}"] if objective else []
    sets += [f"tune.budget_s={seconds(budget)}"] if budget else []
    job, known, console = PredictionJob.from_yaml(job_file, sets), catalog(prices), terminal()
    found, rate, folder = tuned_here(job, known, instance, region, console)
    path = out or folder / "tuned.yaml"
    write_tuned(read_tree(job_file, sets), found.pick, found.space.on_gpu, found.why, path)
    if html is not None:
        from raytrain.report.pages.tuning import write_tuning

        write_tuning(job.name, found, rate, known, html)
    if as_json:
        typer.echo(json.dumps({"job_file": str(path), **tree_of(found, rate)}))
    else:
        show_tuned(found, rate, known, terminal(standard_output=True))
        typer.echo(f"job file: {path}")
    if html is not None:
        typer.echo(f"page: {html}", err=as_json)


def seconds(text: str) -> float:
    """Of `90`, `90s`, `10m` or `1.5h`.

    Raises:
        ConfigError: another form, or nothing.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if match is None or not float(match[1]):
        raise ConfigError(f"--budget {text!r} must look like 90s, 10m or 1.5h, and be more than nothing")
    return float(match[1]) * SECONDS[match[2]]
