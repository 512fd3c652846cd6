"""Options and questions that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raytrain.errors import Stopped

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job description.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be repeated.")
]
Nodes = Annotated[
    str | None,
    typer.Option(metavar="GROUP=HOSTSxCPUS[xGPUS],...", help="Emulate a cluster of Ray nodes on this machine."),
]
Address = Annotated[str | None, typer.Option(help="Attach to a running Ray cluster, such as auto.")]
JobName = Annotated[str, typer.Argument(metavar="NAME", help="Of the training job.")]
Region = Annotated[str | None, typer.Option(help="(default: of your AWS configuration)")]


def confirm(question: str, otherwise: str) -> None:
    """
    Raises:
        Stopped: `otherwise`, since the answer was no, or nobody was there to answer.
    """
    try:
        yes = typer.confirm(question, err=True)
    except typer.Abort:
        typer.echo(err=True)
        yes = False
    if not yes:
        raise Stopped(otherwise)
