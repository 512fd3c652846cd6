"""The commands of prediction."""

from __future__ import annotations

import typer

from raytrain.cli.options import Address, JobFile, Json, Nodes, Overrides
from raytrain.config.inference import PredictionJob

app = typer.Typer()


@app.command(epilog="Example: raytrain infer launch/predict_digits.yaml --nodes train=1x1,cpu=1x1")
def infer(
    job_file: JobFile,
    overrides: Overrides = None,
    nodes: Nodes = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Predict with a model on all samples of a source. Run again, it goes on where it was."""
    from raytrain.infer.predict import folder_of
    from raytrain.report.inference import shown
    from raytrain.report.terminal import terminal

    job = PredictionJob.from_yaml(job_file, overrides or [])
    record = shown(job, terminal(), nodes=nodes, address=address)
    if as_json:
        typer.echo(record.model_dump_json(indent=1))
    else:
        typer.echo(f"record: {folder_of(job) / 'record.json'}")
