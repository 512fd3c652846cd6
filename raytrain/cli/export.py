"""The command that hands a model on."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from raytrain.cli.options import Json
from raytrain.errors import ConfigError

app = typer.Typer()


class Format(StrEnum):
    safetensors = "safetensors"
    torch_export = "torch-export"
    onnx = "onnx"


@app.command(epilog="Example: raytrain export runs/digits --format onnx --output digits-model")
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run that has ended.")],
    format: Annotated[Format, typer.Option(help="Of the model's file.")] = Format.safetensors,  # noqa: A002
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Empty, or not there. (default: <run>-<format>)")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(metavar="C,H,W", help="Of one input. (default: what the stages end with)")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a run's model and its preprocessing for use without raytrain."""
    from raytrain.infer.export.folder import export as write

    done = write(run, format.value, output, shape=_numbers(shape))
    if as_json:
        typer.echo(json.dumps(asdict(done), default=str))
    else:
        for note in done.notes:
            typer.echo(note, err=True)
        typer.echo(f"{done.folder}: {', '.join(done.files)}")


def _numbers(shape: str | None) -> tuple[int, ...] | None:
    if shape is None:
        return None
    sides = shape.split(",")
    if not all(side.isdecimal() and int(side) for side in sides):
        raise ConfigError(f"--shape: {shape!r} is no list of whole numbers such as 3,224,224")
    return tuple(map(int, sides))
